"""Many runs: those without a record, in local processes; a finished one is never lost, a failed one never stops the others."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Thread
from typing import Any

from .records import Job, read


def missing(jobs: Sequence[Job], results: Path) -> list[Job]:
    """The jobs that have no record yet. Raises UserError where there is one that cannot be trusted."""
    left = []
    for job in jobs:
        path = results / job.folder / "record.json"
        if path.exists():
            read(path)
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
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        events = manager.Queue()

        def listen() -> None:
            while (event := events.get()) is not None:
                report(pickle.loads(event))

        listener = Thread(target=listen, daemon=True)
        listener.start()
        shared = (results, data_dir, device, method_files, events)
        survivors = _round(left, min(workers, len(left)), context, shared, errors)
        for job in survivors:  # a worker died: one at a time, to find out with which job
            if _round([job], 1, context, shared, errors):
                errors[str(job.folder)] = f"{job}: its process was killed (out of memory?); run the same command to resume it"
        events.put(None)
        listener.join()
    return errors


def _round(jobs: Sequence[Job], workers: int, context: Any, shared: tuple[Any, ...], errors: dict[str, str]) -> list[Job]:
    """Run jobs in a pool; returns those whose outcome is unknown because a worker process died."""
    if not jobs:
        return []
    threads = max(1, (os.cpu_count() or 1) // workers)
    unknown = []
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(threads, *shared)) as pool:
        futures = {pool.submit(_work, job): job for job in jobs}
        try:
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
    return unknown


_shared: tuple[Any, ...] = ()


def _start(threads: int, *shared: Any) -> None:
    """In a worker, once: its share of the cores, and the methods that live in files."""
    global _shared
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from .method import methods

    torch.set_num_threads(threads)
    for path in shared[3]:
        methods.load_file(path)
    _shared = shared


def _work(job: Job) -> str:
    """In a worker: one run; returns what went wrong, or ""."""
    from .errors import UserError
    from .runner import RunFailed, run

    results, data_dir, device, _, events = _shared
    try:
        # as bytes, or the process that holds the queue would have to import all that an event is made of: torch, Avalanche
        run(job, results=results, data_dir=data_dir, device=device, report=lambda event: events.put(pickle.dumps(event)))
    except (UserError, RunFailed) as error:
        return str(error)
    return ""
