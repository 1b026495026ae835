"""What a run counts, measures and reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from ..errors import Diverged
from ..method.base import Method
from .accounting import StepMemory, training_state
from .strategy import Strategy


class Watch(SupervisedPlugin):
    """Counts, measures and reports a run. Reads from the device once per epoch and once per evaluation.

    correct: {task: right answers} of the last evaluation. training_state_bytes: the most so far. memory: see `RunRecord.memory`.

    Both are measured in the second and the last epoch of a training, and the larger value counts: a method may prune in between.
    In the first epoch, gradients and optimiser state are only being made.
    """

    def __init__(self, report: Callable[[int, int, float], None] = lambda task, epoch, loss: None) -> None:
        super().__init__()
        self.report = report
        self.correct: dict[int, int] = {}
        self.iterations = self.training_state_bytes = 0
        self.memory: dict[str, int] = {}
        self._measured: StepMemory | None = None

    def close(self) -> None:
        """End a measurement that a failing step left open: its hooks belong to the process, not to the run."""
        if self._measured is not None:
            self._measured.close()
            self._measured = None

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        self.iterations, self.memory, self._formula = 0, {}, 0

    def before_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        self._loss, self._steps = torch.zeros((), device=strategy.device), 0
        if type(strategy.method).state is Method.state and strategy.clock.train_exp_epochs < 2:
            strategy.method.state()  # what no checkpoint can hold is told before hours of training

    def _measured_in(self, strategy: Strategy) -> bool:
        return strategy.clock.train_exp_epochs in (1, strategy.train_epochs - 1) or strategy.schedule.may_end()

    def start_of_step(self, strategy: Strategy) -> None:
        """Called before any plugin in a step."""
        if not self._steps and self._measured_in(strategy):
            self._measured = StepMemory(strategy.model)
            self._measured.open(getattr(strategy, "mb_output", None), getattr(strategy, "loss", None))

    def before_forward(self, strategy: Strategy, **kwargs: Any) -> None:
        if strategy.method.compression is not None:
            strategy.method.compression.bytes = 0
        if self._measured is not None:
            self._measured.start_of_forward()

    def before_backward(self, strategy: Strategy, **kwargs: Any) -> None:
        if self._measured is not None:
            self._measured.end_of_forward()

    def after_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        compression = strategy.method.compression
        if self._measured is not None:
            measured = self._measured
            self.close()
            kept = compression.bytes if compression is not None else 0  # 0 if no layer is compressed
            found = {"formula": kept or measured.inputs, "held": measured.held, "peak": measured.peak}
            self.memory = {name: max(n, self.memory.get(name, 0)) for name, n in found.items()}
        if compression is not None:
            self._formula += compression.bytes
        self._loss += strategy.loss.detach()
        self._steps += 1

    def after_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        self.iterations += self._steps
        epoch, task = strategy.clock.train_exp_epochs, strategy.experience.current_experience
        loss = float(self._loss) / max(self._steps, 1)
        if loss != loss or abs(loss) == float("inf"):
            raise Diverged(f"the training loss became {loss} at task {task + 1}, epoch {epoch + 1}")
        if self.memory and self._formula:
            self.memory["formula_mean"] = round(self._formula / self.iterations)
        if self._measured_in(strategy):  # all gradients and optimiser states exist, and nothing is consolidated yet
            self.training_state_bytes = max(self.training_state_bytes, training_state(strategy))
        self.report(task, epoch, loss)

    def before_eval(self, strategy: Strategy, **kwargs: Any) -> None:
        self._counts: dict[int, Tensor] = {}
        self._finite = torch.ones((), dtype=torch.bool, device=strategy.device)

    def after_eval_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        task = strategy.experience.current_experience
        right = (strategy.mb_output.argmax(1) == strategy.mb_y).sum()
        self._counts[task] = self._counts[task] + right if task in self._counts else right
        self._finite &= strategy.mb_output.isfinite().all()

    def after_eval(self, strategy: Strategy, **kwargs: Any) -> None:
        *counts, finite = torch.stack([*self._counts.values(), self._finite.long()]).tolist()
        if not finite:  # the last step of a task comes after the last loss that was checked
            raise Diverged(f"the logits are no longer finite numbers after task {max(self._counts) + 1}, its last epoch")
        self.correct = dict(zip(self._counts, counts, strict=True))
