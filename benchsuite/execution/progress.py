"""Progress on the screen: a progress bar for each run on a terminal, otherwise a plain line for each finished task and run."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..training.events import Event, Note
from .messages import Begun, Done


class Display:
    """A context manager; call it with what runs report. runs: the number of runs besides those that a `Begun` announces."""

    def __init__(self, runs: int = 0) -> None:
        self.console = Console(stderr=True)
        self.total, self.finished = runs, 0
        self.bars: Progress | None = None
        self.overall: Any = None
        self.rows: dict[str, Any] = {}

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[speed]}"),
            )
            self.bars = Progress(*columns, console=self.console)
            self.bars.start()
            self._show_total()
        return self

    def _show_total(self) -> None:
        if self.bars and self.overall is not None:
            self.bars.update(self.overall, total=self.total)
        elif self.bars and self.total > 1:
            self.overall = self.bars.add_task("runs", total=self.total, speed="")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self.bars:
            self.bars.stop()

    def say(self, line: str) -> None:
        if self.bars:
            self.bars.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def __call__(self, event: Event | Note | Begun | Done) -> None:
        if isinstance(event, Begun):
            self.total += event.runs
            self._show_total()
            if event.slots:
                self.say(f"benchsuite: {event.runs} of {event.of} runs to do, {event.slots} at once")
            return
        if isinstance(event, Note):
            self.say(f"benchsuite: {event.text}")
            return
        if isinstance(event, Done):
            self.finished += 1
            if self.bars and self.overall is not None:
                self.bars.update(self.overall, completed=self.finished)
            elif self.total > 1:
                self.say(f"{event.job}: done  [{self.finished}/{self.total} runs]")
            return
        if event.note:
            self.say(f"{event.job}: {event.note}")
        key, last = str(event.job.folder), event.stage + 1 == event.stages and event.epoch == event.epochs
        if self.bars:
            done = event.stage * event.epochs + event.epoch
            if key not in self.rows:
                self.rows[key] = self.bars.add_task(
                    f"{event.job.method} seed {event.job.seed}", total=event.stages * event.epochs, speed=""
                )
            speed = f"{event.images_per_second:,.0f} images/s" if event.images_per_second else ""
            self.bars.update(self.rows[key], completed=done, speed=speed)
            if last:
                self.bars.remove_task(self.rows.pop(key))
        elif event.epoch == event.epochs:
            self.say(f"{event.job}: {event.stage + 1}/{event.stages} trained, loss {event.loss:.4f}")
        elif event.epoch == 0 and event.stage:
            self.say(f"{event.job}: resumes after {event.stage}/{event.stages}")
