"""Runs on a Ray cluster: an engine like `local.Local`.

What a run needs is sent along: the files of its method and protocol, and its image sets as decoded here. Each set goes to a node
once and stays in that node's cache. If a node shares the results folder, which it sees by a marker file, the run works there, and
if the node dies, the run continues on another node after its last finished task. Otherwise the run works in the node's cache and
its files are sent back here; the node keeps its own copies until a later run tells it that they are on record here.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from tempfile import NamedTemporaryFile
from threading import Thread
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import numpy as np

from ..data import cache, sets
from ..errors import UserError, one_line
from ..files import ELSEWHERE, all_below, read, write_atomic
from ..record.folder import ARTIFACT, FAILURE, PREDICTIONS, PROGRESS, RunFolder
from ..record.schema import Job
from ..record.store import RECORD, record_paths
from ..registry import with_those_beside
from ..source import stale
from ..training.logs import LOGS
from ..training.runner import made_by
from .messages import Ending, Failed, Files, Finished, Killed, Message
from .worker import RunContext, load, outcome

# The order is that of writing: a record says that a run is done.
FILES = (PROGRESS, FAILURE, ARTIFACT, PREDICTIONS, RECORD)


BETWEEN, LOST = 2.0, 15.0  # seconds between two looks at the head; without an answer, after which it is given up


class Sent(NamedTuple):
    """An image set that is sent: its arrays lie in Ray's object store, from which a node fetches them when it needs them."""

    arrays: Any
    digest: str
    complete: bool
    note: str
    own: bool = False


class Cluster:
    """The nodes of a Ray cluster. address: of its head, or "local" for a cluster on this machine only.

    images: what the runs need, by name; None for a set that may be missing and is. cpus, gpus: for each run; a GPU can be shared.
    """

    def __init__(
        self, address: str, context: RunContext, images: Mapping[str, sets.ImageSet | None], *, cpus: float = 1, gpus: float = 0
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # else it writes many lines to the terminal, past Python
        if address == "local" and "RAY_AUTH_MODE" not in os.environ:
            # Nobody else may run anything there. The token is set here because Ray would leave a file with one in the home
            # folder, and later clusters would ask for it.
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        try:
            import ray
        except ImportError:
            raise UserError("--ray needs Ray, which is not installed", "pip install 'benchsuite[ray]'") from None
        self.ray, self.address, self.context, self.images = ray, address, context, images
        self.cpus, self.gpus = cpus, gpus
        self.locks: dict[Any, ExitStack] = {}
        self.jobs: dict[Any, Job] = {}
        self.unkept: dict[Any, str] = {}  # why the files that a run sent last could not be written
        self.recorded: set[str] = set()  # digests of the record files here
        self.remark: str | None = None
        self.heard, self.lost = time.monotonic(), False  # when the head last answered, and whether it is given up

    def __enter__(self) -> Cluster:
        self._answers()
        self.recorded = {_digest(read(path)) for path in record_paths(self.context.results)}  # first: a folder may be unreadable
        own = {"include_dashboard": False} if self.address == "local" else {}
        handler = signal.getsignal(signal.SIGTERM)  # Ray installs its own
        try:
            # Nodes import from the working folder, where a source tree would shadow the installed package.
            with chdir(os.sep), _quiet():
                self.ray.init(address=self.address, log_to_driver=False, logging_level="CRITICAL", **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise self._unreached(error) from None
        finally:
            signal.signal(signal.SIGTERM, handler)
        self.head, self.heard = self.ray.get_runtime_context().gcs_address, time.monotonic()
        try:
            self.remark = self._too_large()
            with NamedTemporaryFile(dir=self._results(), prefix=".shared.", delete=False) as file:
                self.mark = Path(file.name)
        except OSError as error:
            self.ray.shutdown()
            raise UserError(f"cannot write to {self.context.results}: {error.strerror}", ELSEWHERE) from None
        except UserError:
            self.ray.shutdown()
            raise
        self.sent = {
            name: images
            and Sent([self.ray.put(tuple(map(_whole, _arrays(images))))], images.digest, images.complete, images.note, images.own)
            for name, images in self.images.items()
        }
        self.texts = {
            str(path): {str(file.relative_to(path.parent)): file.read_bytes() for file in with_those_beside(path)}
            for path in self.context.user_files
        }
        self.remote = self.ray.remote(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_calls=1,  # a process of its own for each run
            max_retries=0,
            num_returns="streaming",
        )(on_node)
        return self

    def _answers(self) -> None:
        """Raises UserError if nothing answers at the address. Ray itself would try for minutes."""
        host, colon, port = self.address.rpartition(":")
        if colon and port.isdecimal() and "/" not in host:
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except (OSError, OverflowError) as error:
                raise self._silence(str(error)) from None
        elif self.address not in ("local", "auto") and "://" not in self.address:
            raise UserError(f"--ray takes the HOST:PORT of a cluster's head, or local, got {self.address!r}")

    def _unreached(self, error: BaseException) -> UserError:
        """What keeps this machine from joining, from what Ray raises and what it gives as the cause."""
        said = f"{error} {error.__cause__ or ''}"
        if re.search("unauthenticated|authentication ?token|InvalidAuthToken", said, re.IGNORECASE):
            token = "another RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_MODE") == "token" else "a token"
            return UserError(
                f"the Ray cluster at {self.address!r} refuses this machine: it asks for {token}",
                "set RAY_AUTH_MODE=token and the RAY_AUTH_TOKEN of its nodes here",
            )
        return self._silence(" ".join(str(error).split())[:200])

    def _check_head(self, between: float = 0.0) -> None:
        """Wait until the head answers, unless it did so in the last `between` seconds. Raises UserError if it has not for LOST
        seconds. A call of Ray's would not return, and Ray would end this process after a minute."""
        while time.monotonic() - self.heard >= between:
            host, _, port = self.head.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
                self.heard = time.monotonic()
                return
            except OSError as error:
                if time.monotonic() - self.heard > LOST:
                    self.lost = True
                    raise UserError(
                        f"the Ray cluster at {self.address!r} no longer answers ({error})",
                        "what is finished is kept; start the cluster again and repeat the command",
                    ) from None
            time.sleep(0.5)

    def _silence(self, what: str) -> UserError:
        return UserError(
            f"no Ray cluster answers at {self.address!r} ({what})", "start one with `ray start --head`, or use --ray local"
        )

    def _too_large(self) -> str | None:
        """A remark if none of the present nodes has room for one run. Raises UserError if no further node can join."""
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= need for name, need in needs.items()) for node in nodes):
            return None
        what = f"no node has {self.cpus:g} cores" + (f" and {self.gpus:g} GPUs" if self.gpus else "") + " for a run"
        lower = "lower --cpus-per-run" + (" or --gpus-per-run" if self.gpus else "")
        if self.address == "local":
            raise UserError(f"{what}", f"{lower}")
        return f"{what}; {lower}, or the runs wait until such a node joins"

    def _results(self) -> Path:
        self.context.results.mkdir(parents=True, exist_ok=True)
        return self.context.results.resolve()

    @property
    def slots(self) -> int:
        """As many runs as the present nodes can take, and one more that waits: it makes a cluster that can grow do so."""
        self._check_head()
        there, needs = self.ray.cluster_resources(), {"CPU": self.cpus, "GPU": self.gpus}
        return 1 + min(int(there.get(name, 0) / need + 1e-9) for name, need in needs.items() if need)

    def start(self, job: Job) -> Any:
        self._check_head()
        key = self.remote.remote(job, self.context, self.texts, self.sent, self.mark, made_by(job), self.recorded)
        self.jobs[key] = job
        return key

    def messages(self, keys: Sequence[Any]) -> Iterator[tuple[Any, Message]]:
        ready: list[Any] = []
        while not ready:  # wait briefly each time, for Ctrl-C
            self._check_head(BETWEEN)
            ready, _ = self.ray.wait(list(keys), timeout=1, fetch_local=False)
        for key in ready:
            try:
                message: Message | Files = self.ray.get(next(key))
            except StopIteration:
                message = Killed()
            except self.ray.exceptions.RayTaskError as error:
                message = Failed(f"{self.jobs[key]}: {' '.join(str(error.cause or error).split())}")
            except self.ray.exceptions.RayError:
                message = Killed()  # its process, or its whole node, is gone
            if isinstance(message, Files):
                self.unkept.pop(key, None)
                try:
                    self._keep(key, message.contents, message.logs)
                except UserError as error:  # only the last files count, which include the record
                    self.unkept[key] = f"{self.jobs[key]}: {error}"
                continue
            if isinstance(message, Finished) and key in self.unkept:
                message = Failed(self.unkept[key])
            if isinstance(message, Ending):
                self._forget(key)
            yield key, message

    def _keep(self, key: Any, files: Mapping[str, bytes], logs: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """Write the files that a node without access to the results folder has sent, under the run's lock."""
        folder = RunFolder(self._results() / self.jobs[key].folder)
        if key not in self.locks and not folder.is_locked():
            with ExitStack() as stack:
                stack.enter_context(folder.locked())
                self.locks[key] = stack.pop_all()
        if key not in self.locks or (folder.record.exists() and not stale(folder.read())):
            return  # another command is running, or has run, the same job
        for name, content in logs.items():
            write_atomic(self._results() / LOGS / self.jobs[key].folder / name, content)
        if RECORD in files and folder.record.exists():
            folder.set_aside()
        for name in FILES:
            if name in files:
                write_atomic(folder.path / name, files[name])
        if RECORD in files:
            self.recorded.add(_digest(files[RECORD]))
            folder.tidy()

    def _forget(self, key: Any) -> None:
        del self.jobs[key]
        self.unkept.pop(key, None)
        if key in self.locks:
            self.locks.pop(key).close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        for key in list(self.jobs):
            with suppress(Exception):
                if not self.lost:
                    self.ray.cancel(key, force=True)
            self._forget(key)
        with _quiet():
            self.ray.shutdown()
        self.mark.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Ray writes to the terminal past Python."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _arrays(images: Any) -> cache.Arrays:
    return cache.Arrays(images.train_x, images.train_y, images.test_x, images.test_y)


def _whole(array: Any) -> Any:
    return np.array(array)  # a memory map refers to a file on this machine


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def on_node(
    job: Job,
    context: RunContext,
    texts: Mapping[str, Mapping[str, bytes]],
    images: Mapping[str, Sent | None],
    mark: Path,
    made: Mapping[str, str],
    recorded: Set[str] = frozenset(),
) -> Iterator[Message | Files]:
    """One run on a node, in a process of its own. Yields its events and its ending and, if the node cannot see the results
    folder, the files of the run's folder as they are written.

    texts: for each of the user's files its content and that of the files beside it, by their names.
    recorded: digests of record files that this node no longer needs to keep."""
    shared = mark.exists()
    context = replace(
        context,
        results=mark.parent if shared else cache.root() / "runs",
        user_files=tuple(_written(Path(path).name, files) for path, files in texts.items()),
    )
    if not shared:
        _clear(context.results, recorded)
    folder = context.results / job.folder
    messages: SimpleQueue[Message] = SimpleQueue()

    def work() -> None:
        try:
            own = {name: sent and received(name, sent) for name, sent in images.items()}
            load(context)
            if (here := made_by(job)) != made:
                differ = ", ".join(name for name in {**here, **made} if here.get(name) != made.get(name))
                raise UserError(
                    f"{job}: node {socket.gethostname()} has another {differ}", "install the same benchsuite everywhere"
                )
            messages.put(outcome(job, replace(context, images=own), messages.put))
        except UserError as error:
            messages.put(Failed(str(error)))
        except BaseException as error:  # whatever happens, the reader waits for an ending
            messages.put(Failed(f"{job}: {one_line(error)}"))

    Thread(target=work, daemon=True).start()
    while not isinstance(message := messages.get(), Ending):
        if not shared:
            yield Files(_content(folder, PROGRESS))
        yield message
    if not shared:
        logs = context.results / LOGS / job.folder
        written = [str(path.relative_to(logs)) for path in all_below(logs) if path.is_file() and not path.is_symlink()]
        yield Files(_content(folder, *FILES[1:]), _content(logs, *written))
    yield message


def _clear(runs: Path, arrived: Set[str]) -> None:
    """Remove this node's files of runs whose records have arrived."""
    for path in record_paths(runs):
        with suppress(OSError, UserError):  # another process is using it
            if _digest(read(path)) in arrived:
                with RunFolder(path.parent).locked(wait=False):
                    shutil.rmtree(path.parent)
                    shutil.rmtree(runs / LOGS / path.parent.relative_to(runs), ignore_errors=True)


def _content(folder: Path, *names: str) -> dict[str, bytes]:
    found = {}
    for name in names:
        with suppress(FileNotFoundError):
            found[name] = (folder / name).read_bytes()
    return found


def _written(name: str, files: Mapping[str, bytes]) -> Path:
    """The path of a user's file in this node's cache, written if necessary with the files beside it."""
    content = _digest(b"".join(_digest(part).encode() for file in sorted(files) for part in (file.encode(), files[file])))
    folder = cache.root() / "files" / content[:16]
    for file, text in files.items():
        if not (folder / file).exists():
            write_atomic(folder / file, text)
    return folder / name


def received(name: str, sent: Sent) -> sets.ImageSet:
    """The image set from this node's cache, where it is stored on first use."""
    key = f"received-{sent.digest[:16]}"
    entry = cache.lookup(name, key)
    if entry is None:
        with cache.decoding(name):
            entry = cache.lookup(name, key)  # another process may have stored it meanwhile
            if entry is None:
                import ray

                entry = cache.store(name, key, cache.Arrays(*ray.get(sent.arrays[0])), sent.note)
    if entry.digest != sent.digest:
        raise UserError(f"{name}: the images in {cache.root()} are not the ones that were sent", "delete that folder")
    return sets.ImageSet(
        name=name, **entry.arrays._asdict(), digest=sent.digest, complete=sent.complete, note=sent.note, own=sent.own
    )
