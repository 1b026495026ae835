"""Losses and accuracies of a run as it goes on, for TensorBoard, a CSV file or Weights & Biases.

The files lie in the results folder, under `logs` and the run's own path: never in the run's folder, which is merged and compared.
All values stand over the number of steps since the run began: the loss of every step and epoch, and after each task the accuracy
on the test set of every task so far, and their mean. A resumed run goes on after its last finished task.
"""

from __future__ import annotations

import csv
import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from msgspec import to_builtins
from torch import Tensor

from ..errors import UserError
from ..files import read, write_atomic
from ..record.schema import Job
from ..registry import suggest

LOGS = "logs"  # in the results folder


class Log(SupervisedPlugin):
    """Writes what happens to one kind of file. Reads from the device once per epoch and once per evaluation."""

    def __init__(self, kind: str, job: Job, results: Path, tasks: Sequence[str]) -> None:
        super().__init__()
        self.job, self.folder, self.sink = job, results / LOGS / job.folder / kind, KINDS[kind]()
        self.tasks = [f"{position} {name}" for position, name in enumerate(tasks, 1)]
        self.step = self.learnt = 0
        self.losses: list[Tensor] = []
        self.right: dict[int, Tensor] = {}
        self.seen: dict[int, int] = {}

    @contextmanager
    def opened(self, learnt: int, step: int) -> Iterator[None]:
        """learnt, step: how many tasks and steps the run has behind it."""
        self.learnt, self.step = learnt, step
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.sink.open(self.folder, self.job, step)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written: {error.strerror or error}", "make room, or log elsewhere"
            ) from None
        try:
            yield
        finally:
            self.sink.close()

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.losses = []

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.losses.append(strategy.loss.detach().clone())

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if self.losses:
            values = torch.stack(self.losses).tolist()
            for step, value in enumerate(values, self.step + 1):
                self.sink.write("loss/step", value, step)
            self.step, self.losses = self.step + len(values), []
            self.sink.write("loss/epoch", sum(values) / len(values), self.step)
            self.sink.flush()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.learnt += len(strategy.experience.task_labels)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.right, self.seen = {}, {}

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if not strategy.is_training and strategy.experience.origin_stream.name == "test":
            task = strategy.experience.current_experience
            self.right[task] = self.right.get(task, 0) + (strategy.mb_output.argmax(1) == strategy.mb_y).sum()
            self.seen[task] = self.seen.get(task, 0) + len(strategy.mb_y)

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        if self.right:
            shares = [
                100 * n / self.seen[t] for t, n in zip(self.right, torch.stack([*self.right.values()]).tolist(), strict=True)
            ]
            for task, share in zip(self.right, shares, strict=True):
                self.sink.write(f"accuracy/{self.tasks[task]}", share, self.step)
            self.sink.write("accuracy/mean", sum(shares) / len(shares), self.step)
            self.sink.flush()


class Csv:
    """log.csv: step, name, value. Rows beyond the step at which a run resumes are written anew."""

    __slots__ = ("file", "rows")  # no __dict__: what a writer holds, and its threads change, is not searched for tensors

    def open(self, folder: Path, job: Job, step: int) -> None:
        path = folder / "log.csv"
        kept = [["step", "name", "value"]]
        if step and path.exists():
            with suppress(csv.Error):  # a crash may leave anything in it
                for row in csv.reader(io.StringIO(read(path).decode(errors="replace"), newline="")):
                    if len(row) == 3 and re.fullmatch(r"[0-9]{1,18}", row[0]) and int(row[0]) <= step:
                        kept.append(row)
        text = io.StringIO(newline="")
        csv.writer(text).writerows(kept)
        write_atomic(path, text.getvalue())
        self.file = path.open("a", newline="")
        self.rows = csv.writer(self.file)

    def write(self, name: str, value: float, step: int) -> None:
        self.rows.writerow([step, name, value])

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """An event file. TensorBoard leaves out what an interrupted run wrote beyond the step at which it resumes."""

    __slots__ = ("kind", "writer")

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self.kind = SummaryWriter

    def open(self, folder: Path, job: Job, step: int) -> None:
        self.writer = self.kind(str(folder), purge_step=step + 1 if step else None)

    def write(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run in the project "benchsuite" of Weights & Biases, or in a folder with WANDB_MODE=offline."""

    __slots__ = ("mode", "run", "wandb")

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        self.mode: Any = os.environ.get("WANDB_MODE", "online")
        if self.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise UserError("--logger wandb: nobody is logged in", "run `wandb login`, or set WANDB_MODE=offline")
        self.wandb = wandb

    def open(self, folder: Path, job: Job, step: int) -> None:
        known = folder / "id"
        own = read(known).decode(errors="replace").strip() if step and known.exists() else secrets.token_hex(4)
        write_atomic(known, own)
        settings = self.wandb.Settings(silent=True, console="off")
        try:
            self.run = self.wandb.init(
                project="benchsuite",
                name=str(job),
                group=f"{job.method} {job.config}",
                config=to_builtins(job),
                dir=str(folder),
                id=own,
                mode=self.mode,
                resume="allow",
                settings=settings,
            )
        except Exception as error:
            raise UserError(
                f"--logger wandb: {' '.join(str(error).split())}", "set WANDB_MODE=offline to log to a folder"
            ) from None

    def write(self, name: str, value: float, step: int) -> None:
        self.run.log({name: value}, step=step)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.run.finish()


KINDS: dict[str, Any] = {"tensorboard": TensorBoard, "csv": Csv, "wandb": WandB}


def _missing(package: str) -> UserError:
    return UserError(f"--logger {package} needs the package {package}, which is not installed", f"pip install {package}")


def check_loggers(kinds: Iterable[str]) -> None:
    """Raises UserError for a logger that is unknown or cannot be used here."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"no logger is called {kind!r}", suggest(kind, KINDS))
        KINDS[kind]()
