"""Many runs: those without a record, in local processes; a finished one is never lost, a failed one never stops the others."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from .errors import UserError
from .records import Job, read_of


def cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def missing(jobs: Sequence[Job], results: Path) -> list[Job]:
    """The jobs that have no record yet. Raises UserError where there is one that cannot be trusted or is of another job."""
    left = []
    for job in jobs:
        path = results / job.folder / "record.json"
        if path.exists():
            read_of(job, path)
        else:
            left.append(job)
    return left


def run_all(
    jobs: Sequence[Job],
    *,
    results: Path,
    data_dir: Path | None,
    device: str,
    workers: int,
    method_files: Sequence[Path] = (),
    report: Callable[[Any], None] = lambda event: None,
) -> dict[str, str]:
    """Run every job that has no record. Returns what went wrong, by the run's folder, where the error is on record too.

    workers: processes at once; they share the cores evenly. report is called with each run's `runner.Event`s.
    """
    left = missing(jobs, results)
    errors: dict[str, str] = {}
    shared = (results, data_dir, device, method_files)
    threads = max(1, cores() // workers)  # whatever is left to run: a result must not depend on it
    survivors = _round(left, min(workers, len(left)), threads, shared, report, errors)
    for job in survivors:  # a worker died: one at a time, to find out with which job
        if _round([job], 1, threads, shared, report, errors):
            errors[str(job.folder)] = f"{job}: its process was killed (out of memory?); run the same command to resume it"
    return errors


def _round(
    jobs: Sequence[Job],
    workers: int,
    threads: int,
    shared: tuple[Any, ...],
    report: Callable[[Any], None],
    errors: dict[str, str],
) -> list[Job]:
    """Run jobs in a pool; returns those whose outcome is unknown because a worker process died."""
    if not jobs:
        return []
    context = multiprocessing.get_context("spawn")
    # A pipe of each round's own: a worker that is killed may leave half a message and the lock taken, and its pool ends with it.
    reader, writer = context.Pipe(duplex=False)
    start = (threads, context.Lock(), writer, *shared)
    listener = Thread(target=_listen, args=(reader, report), daemon=True)
    unknown = []
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=start) as pool:
            try:
                # Workers inherit the mask: Ctrl-C, which a terminal sends to every process, is for this one to deal with.
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
                try:
                    futures = {pool.submit(_work, job): job for job in jobs}
                finally:
                    writer.close()  # the workers have theirs: when the last one has gone, the listener reads the end
                    listener.start()
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                for future in as_completed(futures):
                    try:
                        error = future.result()
                    except BrokenProcessPool:
                        unknown.append(futures[future])
                    else:
                        if error:
                            errors[str(futures[future].folder)] = error
            except BaseException:
                for process in list(pool._processes.values()):
                    process.terminate()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        if listener.ident:
            listener.join()
    return unknown


def _listen(reader: Any, report: Callable[[Any], None]) -> None:
    """Pass on what the workers tell, until the last of them has gone."""
    with reader, suppress(EOFError, OSError):  # OSError: one was killed in the middle of a message
        while True:
            message = reader.recv_bytes()
            report(pickle.loads(message))


def _follow_parent() -> None:
    """In a worker: go when the parent goes, however it was killed; finished tasks are in the checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


_shared: tuple[Any, ...] = ()


def _start(threads: int, lock: Any, writer: Any, *shared: Any) -> None:
    """In a worker, once: its share of the cores, and the methods that live in files."""
    global _shared
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    Thread(target=_follow_parent, daemon=True).start()
    import torch

    from .method import methods

    torch.set_num_threads(min(threads, torch.get_num_threads()))  # torch's own number heeds OMP_NUM_THREADS
    for path in shared[-1]:
        methods.load_file(path)
    _shared = (lock, writer, *shared)


def _work(job: Job) -> str:
    """In a worker: one run; returns what went wrong, or ""."""
    from .runner import Event, RunFailed, run

    lock, writer, results, data_dir, device, _ = _shared

    def tell(event: Event) -> None:
        with lock, suppress(OSError):  # nobody listens any more: no reason for a run to fail
            writer.send_bytes(pickle.dumps(event))

    try:
        run(job, results=results, data_dir=data_dir, device=device, report=tell)
    except (UserError, RunFailed) as error:
        return str(error)
    return ""
