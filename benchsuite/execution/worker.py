"""One run of a grid, wherever it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, one_line
from ..record.schema import Job


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every run of a grid shares.

    device: "cpu" or "cuda". threads: of each run, whatever is left to run, because a result must not depend on that.
    method_files: the files of methods that lie outside of any package.
    """

    results: Path
    data_dir: Path | None
    device: str
    threads: int
    method_files: tuple[Path, ...] = ()


def outcome(job: Job, place: RunContext, tell: Callable[[Any], None]) -> str:
    """Run a job in this thread; returns what went wrong, or "". tell: called with the run's `runner.Event`s."""
    import torch

    from ..method.registered import methods
    from ..training.runner import RunFailed, run

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
