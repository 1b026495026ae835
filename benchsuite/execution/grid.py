"""Many runs: those without a record, longest first. A finished run is never lost, and a failed one never stops the others.

The engine decides where they run: `local.Local` in processes on this machine, `ray.Cluster` on a Ray cluster. Each run has a
process of its own, so no run affects another; if the process is killed, its run loses only the task being trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Protocol

from ..errors import UserError
from ..files import folders_below, listed
from ..record.folder import EVERY_RECORD, IN_HAND, RunFolder
from ..record.schema import Job
from ..record.store import read
from ..source import stale
from ..training.events import Event, Note
from .messages import Done, Failed, Finished, Message

RETRIES = 2  # of a run whose process was killed


class Engine(Protocol):
    """Where runs are executed. A context manager: when it exits, no run is under way."""

    @property
    def slots(self) -> int:
        """How many runs fit at once."""

    @property
    def remark(self) -> str | None:
        """What the user should know once the engine has started, if anything."""

    def start(self, job: Job) -> Any:
        """Start a run; returns a key for it."""

    def messages(self, keys: Sequence[Any]) -> Iterator[tuple[Any, Message]]:
        """Wait for the runs with these keys, and yield messages of some of them. An `Ending` is a run's last message."""

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None: ...


def missing(
    jobs: Sequence[Job], results: Path, say: Callable[[str], None] = lambda line: None, *, predictions: bool = False
) -> list[Job]:
    """The jobs without a valid record, longest first; those whose duration is unknown come before all others.

    predictions: also those without predictions, which take no training.
    say: called with a line for each of them that is stale, that failed before, or whose record cannot be trusted or is of another
    job. The last kind is returned too, for `run_all` to refuse.
    """
    left = []
    for job in jobs:
        folder = RunFolder(results / job.folder)
        if folder.record.exists():
            try:
                if not (reason := stale(folder.read_of(job))):
                    if predictions and not folder.predictions.exists():
                        left.append(job)
                    continue
                say(f"stale: {job}: {reason}; it is run again, and the old record is kept beside the new one")
            except UserError as error:
                say(f"not run: {job}: {error}")
        elif reason := folder.read_failure():
            say(f"failed before: {job}: {reason}; it is run again")
        left.append(job)
    known = {folder: measured(results / folder) for folder in dict.fromkeys(job.folder.parent for job in left)}
    return sorted(left, key=lambda job: -expected(job, known[job.folder.parent]))


def refusal(job: Job, results: Path) -> str | None:
    """What is wrong with the job's record and what to do about it; None if there is no record or it can be trusted."""
    folder = RunFolder(results / job.folder)
    try:
        if folder.record.exists():
            folder.read_of(job)
    except UserError as error:
        return f"{job}: {error}"
    return None


def measured(folder: Path) -> list[tuple[str, float]]:
    """Configuration and seconds (wall clock, training and evaluation) of each record of a method, stale ones too."""
    found = []
    paths = [run / name for run in folders_below(folder, 1) for name in listed(run)[1] if fnmatch(name, EVERY_RECORD)]
    for path in paths:
        with suppress(UserError):  # it is refused when its run is requested
            record = read(path)
            found.append((record.job.config, sum(record.seconds.train) + sum(record.seconds.evaluate)))
    return found


def expected(job: Job, known: Sequence[tuple[str, float]]) -> float:
    """Expected seconds of a run: the mean of its configuration, or else of its method; infinite if neither was measured."""
    times = [seconds for config, seconds in known if config == job.config] or [seconds for _, seconds in known]
    return fmean(times) if times else float("inf")


def run_all(
    left: Sequence[Job], *, results: Path, engine: Engine, report: Callable[[Event | Note | Done], None] = lambda event: None
) -> dict[str, str]:
    """Run these jobs in this order. Returns the errors by run folder; each is also on record in that folder.

    A job whose folder holds a record that cannot be trusted is an error: it is not run, and its folder is not touched.
    report: called with the `Event`s of every run, with `Done` when it has its record, and with `Note`s.
    """
    errors = {str(job.folder): reason for job in left if (reason := refusal(job, results))}
    queue, running = [job for job in left if str(job.folder) not in errors], dict[Any, Job]()
    killed: Counter[str] = Counter()
    with engine:
        if engine.remark:
            report(Note(engine.remark))
        while queue or running:
            while queue and len(running) < engine.slots:
                # Runs of another command come later: by then they may be finished.
                free = next((i for i, job in enumerate(queue) if not RunFolder(results / job.folder).is_locked()), None)
                job = queue.pop(free or 0)
                if free is None:
                    report(Note(f"{job}: {IN_HAND}"))
                running[engine.start(job)] = job
            for key, message in engine.messages(list(running)):
                if isinstance(message, Event):
                    report(message)
                    continue
                job = running.pop(key)
                name, folder = str(job.folder), RunFolder(results / job.folder)
                if isinstance(message, Finished):
                    report(Done(job))
                    continue
                if isinstance(message, Failed):
                    reason = message.reason
                else:
                    killed[name] += 1
                    if killed[name] <= RETRIES:
                        report(Note(f"{job}: its process was killed; it resumes after its last finished task"))
                        # The last attempt waits until the machine is least busy.
                        queue.insert(0 if killed[name] < RETRIES else len(queue), job)
                        continue
                    reason = (
                        f"{job}: its process was killed {killed[name]} times (out of memory?); run the same command to resume it"
                    )
                errors[name] = reason
                # A run that failed has written its reason and traceback; any other failure is known only here.
                known = folder.read_failure()
                if not (known and known in reason) and not folder.record.exists():
                    folder.write_failure(job, reason.removeprefix(f"{job}: "))
    return errors
