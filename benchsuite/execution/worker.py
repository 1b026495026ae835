"""One run of a grid, on whichever machine it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.sets import Images
from ..errors import UserError, one_line
from ..method.registered import methods
from ..record.schema import Job
from ..registry import load_file
from ..training.device import configure_process
from ..training.events import Event
from ..training.runner import RunFailed, run
from .messages import Failed, Finished


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every run of a grid shares.

    device: "cpu" or "cuda". threads: of each run; the same however many runs are left, because results depend on it.
    user_files: those that define methods and protocols outside any package. loggers: kinds of logs to write (`training.logs`).
    predictions: whether runs write their answers to the test images.
    plugins: those of --plugin. images: image sets that are loaded already.
    """

    results: Path
    data_dir: Path | None
    device: str
    threads: int
    user_files: tuple[Path, ...] = ()
    loggers: tuple[str, ...] = ()
    predictions: bool = False
    plugins: tuple[str, ...] = ()
    images: Images | None = None


def load(context: RunContext) -> list[Any]:
    """Load what the user has of their own. Returns the plugins that look on."""
    for path in context.user_files:
        load_file(path)
    return methods.plugins(context.plugins)[1]


def outcome(job: Job, context: RunContext, tell: Callable[[Event], None]) -> Finished | Failed:
    """Run a job in this thread. tell: called with its events."""
    try:
        threads = min(context.threads, torch.get_num_threads())  # torch's default respects OMP_NUM_THREADS
        configure_process(context.device, job.precision, threads)
        looking = load(context)
        # Notes are dropped: `run_all` itself reports a run that another process is running.
        report = lambda message: tell(message) if isinstance(message, Event) else None  # noqa: E731
        run(
            job,
            results=context.results,
            data_dir=context.data_dir,
            device=context.device,
            report=report,
            plugins=looking,
            loggers=context.loggers,
            predictions=context.predictions,
            images=context.images,
        )
    except (UserError, RunFailed) as error:
        return Failed(str(error))
    except (Exception, SystemExit) as error:
        return Failed(f"{job}: {one_line(error)}")
    return Finished()
