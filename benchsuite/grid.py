"""Many runs: those without a record, longest first; a finished one is never lost, a failed one never stops the others.

An engine says where: `Local` in processes of this machine, `cluster.Cluster` on Ray. Each run has a process of its own, so that
nothing of one run reaches another, and a process that is killed costs the task in training of its own run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import connection, resource_tracker
from pathlib import Path
from statistics import fmean
from threading import Thread
from types import TracebackType
from typing import Any, Protocol

from .errors import UserError, one_line
from .records import SCHEMA, Job, held, read, read_of, write_atomic
from .source import stale

RETRIES = 2  # of a run whose process was killed
IN_HAND = "is in the hands of another process; waiting for it"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What every run of a grid shares.

    device: "cpu" or "cuda". threads: of each run, whatever is left to run, because a result must not depend on that.
    method_files: the files of methods that lie outside of any package.
    """

    results: Path
    data_dir: Path | None
    device: str
    threads: int
    method_files: tuple[Path, ...] = ()


class Engine(Protocol):
    """Where runs are run. A context manager: at its end no run is under way any more."""

    @property
    def slots(self) -> int:
        """Runs at once."""

    @property
    def remark(self) -> str:
        """What the user should know when it has begun, or ""."""

    def start(self, job: Job) -> Any:
        """Begin a run; returns a key for it."""

    def messages(self, keys: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Wait for the runs of these keys, and return what some of them have to say: their `runner.Event`s, at the end what went
        wrong ("" for nothing), or None where the process was killed before that."""

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None: ...


def cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def missing(jobs: Sequence[Job], results: Path, say: Callable[[str], None] = lambda line: None) -> list[Job]:
    """The jobs without a record that counts, longest first; those that nothing is known of come before all others.

    say: is told which of them are stale, which failed before and why, and which have a record that cannot be trusted or is of
    another job: these are among them, for `run_all` to refuse.
    """
    left = []
    for job in jobs:
        path = results / job.folder / "record.json"
        if path.exists():
            try:
                if not (changed := stale(read_of(job, path))):
                    continue
                what = ", ".join(changed)
                say(f"stale: {job}: {what} changed since; it is run again, the old record is kept beside the new one")
            except UserError as error:
                say(f"not run: {job}: {error}")
        elif reason := failure(path.parent):
            say(f"failed before: {job}: {reason}; it is run again")
        left.append(job)
    known = {folder: measured(results / folder) for folder in dict.fromkeys(job.folder.parent for job in left)}
    return sorted(left, key=lambda job: -expected(job, known[job.folder.parent]))


def refusal(job: Job, results: Path) -> str:
    """What is wrong with the job's record and what to do about it, "" where there is none or it can be trusted."""
    path = results / job.folder / "record.json"
    try:
        if path.exists():
            read_of(job, path)
    except UserError as error:
        return f"{job}: {error}"
    return ""


def failure(folder: Path) -> str:
    """Why the last run in this folder failed, "" if it did not."""
    try:
        return str(json.loads((folder / "failure.json").read_text())["error"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "its failure.json cannot be read"


def write_failure(job: Job, folder: Path, reason: str, trace: str = "") -> None:
    """Put on record why a run failed. A folder that cannot be written any more is no reason to hide the failure itself."""
    content = {
        "schema": SCHEMA,
        "job": asdict(job),
        "error": reason,
        "traceback": trace,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with suppress(UserError):
        write_atomic(folder / "failure.json", json.dumps(content, indent=1) + "\n")


def measured(folder: Path) -> list[tuple[str, float]]:
    """Configuration and seconds (wall clock, training and evaluation) of each record of a method, stale ones too."""
    found = []
    for path in folder.glob("*/record*.json"):
        with suppress(UserError):  # it is refused where its run is asked for
            record = read(path)
            found.append((record.job.config, sum(map(sum, record.seconds.values()))))
    return found


def expected(job: Job, known: Sequence[tuple[str, float]]) -> float:
    """Seconds that a run will take: as its configuration took, else as its method did; infinite where neither was measured."""
    times = [seconds for config, seconds in known if config == job.config] or [seconds for _, seconds in known]
    return fmean(times) if times else float("inf")


def run_all(
    left: Sequence[Job], *, results: Path, engine: Engine, report: Callable[[Any], None] = lambda event: None
) -> dict[str, str]:
    """Run these jobs in their order. Returns what went wrong, by the run's folder, where the error is on record too, unless that
    holds a record that cannot be trusted: it is left alone, and its job is not run.

    report: called with each run's `runner.Event`s, and with lines of text.
    """
    errors = {str(job.folder): reason for job in left if (reason := refusal(job, results))}
    queue, running = [job for job in left if str(job.folder) not in errors], dict[Any, Job]()
    killed: Counter[str] = Counter()
    with engine:
        if engine.remark:
            report(engine.remark)
        while queue or running:
            while queue and len(running) < engine.slots:
                # What another command has in hand comes later: by then it may be done.
                free = next((i for i, job in enumerate(queue) if not held(results / job.folder / "lock")), None)
                job = queue.pop(free or 0)
                if free is None:
                    report(f"{job}: {IN_HAND}")
                running[engine.start(job)] = job
            for key, message in engine.messages(list(running)):
                if message is not None and not isinstance(message, str):
                    report(message)
                    continue
                job = running.pop(key)
                name, folder = str(job.folder), results / job.folder
                if message is None:
                    killed[name] += 1
                    if killed[name] <= RETRIES:
                        report(f"{job}: its process was killed; goes on after its last finished task")
                        # The last time it waits until there is most room for it.
                        queue.insert(0 if killed[name] < RETRIES else len(queue), job)
                        continue
                    message = (
                        f"{job}: its process was killed {killed[name]} times (out of memory?); run the same command to resume it"
                    )
                if message:
                    errors[name] = message
                    # A run that broke has said why by itself, with the traceback; the others are known here alone.
                    known = failure(folder)
                    if not (known and known in message) and not (folder / "record.json").exists():
                        write_failure(job, folder, message.removeprefix(f"{job}: "))
    return errors


class Local:
    """Processes of this machine, `slots` at once; several share one GPU."""

    remark = ""

    def __init__(self, slots: int, place: Place) -> None:
        self.slots, self.place = slots, place
        # A server that has everything imported forks the processes, which takes no time; what has seen a GPU cannot be forked.
        forks = place.device == "cpu" and "forkserver" in multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            from multiprocessing import forkserver

            self.context.set_forkserver_preload(["benchsuite.runner"])
            # It imports from where it starts: a source tree would hide the package that is installed.
            with _deaf(), chdir(os.sep):
                forkserver.ensure_running()
        self.processes: dict[Any, Any] = {}

    def __enter__(self) -> Local:
        return self

    def start(self, job: Job) -> Any:
        reader, writer = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_work, args=(writer, dict(os.environ), job, self.place))
        try:
            with _deaf():
                process.start()
                self.processes[reader] = process
        finally:
            writer.close()  # the process has its own: when it has gone, the reader comes to the end
        return reader

    def messages(self, keys: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        for reader in connection.wait(keys):
            assert isinstance(reader, connection.Connection)
            try:
                message = reader.recv()
            except (EOFError, OSError):  # OSError: killed in the middle of a message
                message = None
            if message is None or isinstance(message, str):
                self._bury(reader)
            yield reader, message

    def _bury(self, reader: Any) -> None:
        reader.close()
        process = self.processes.pop(reader)
        process.join(10)  # it may be writing its last words
        if process.is_alive():
            process.kill()
            process.join()
        process.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        for process in self.processes.values():
            process.terminate()
        for reader in list(self.processes):
            self._bury(reader)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes started here inherit deaf ears: Ctrl-C, which a terminal sends to all of them, is for this one to deal with."""
    resource_tracker.ensure_running()  # where it has to be started, it changes the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _work(pipe: Any, environment: dict[str, str], job: Job, place: Place) -> None:
    """In a process of its own: one run."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    Thread(target=_follow_parent, daemon=True).start()
    os.environ.clear()  # the server may have been started with another one
    os.environ.update(environment)

    def tell(message: Any) -> None:
        with suppress(OSError):  # nobody listens any more: no reason for a run to fail
            pipe.send(message)

    tell(outcome(job, place, tell))


def _follow_parent() -> None:
    """Go when the parent goes, however it was killed; finished tasks are in the checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def outcome(job: Job, place: Place, tell: Callable[[Any], None]) -> str:
    """Run a job in this thread; returns what went wrong, or "". tell: called with the run's `runner.Event`s."""
    import torch

    from .method import methods
    from .runner import RunFailed, run

    try:
        torch.set_num_threads(min(place.threads, torch.get_num_threads()))  # torch's own number heeds OMP_NUM_THREADS
        for path in place.method_files:
            methods.load_file(path)
        # Lines of text stay here: to the engine they are last words, and `run_all` has told of a run in other hands.
        report = lambda event: None if isinstance(event, str) else tell(event)  # noqa: E731
        run(job, results=place.results, data_dir=place.data_dir, device=place.device, report=report)
    except (UserError, RunFailed) as error:
        return str(error)
    except (Exception, SystemExit) as error:
        return f"{job}: {one_line(error)}"
    return ""
