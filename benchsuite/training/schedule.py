"""The learning rate of every step, and when a task ends: the recipe's `lr_schedule`.

milestones: divided by ten at the start of these epochs.
cosine: lr (1 + cos(pi e / E)) / 2 in epoch e of E from 0, without restarts within a task (torch's CosineAnnealingLR, a step each
    epoch).
one_cycle: up from lr / 25 to lr in the first 30 % of all steps of the task, then down to lr / 250,000, along cosines (torch's
    OneCycleLR with its defaults, a step each iteration, without its cycle of the momentum).
patience: after each epoch the mean cross-entropy on the validation images is computed. Is it no new minimum for `lr_patience`
    epochs, the rate is divided by `lr_factor` and the counting starts again; would the rate fall below `lr_min`, the task ends.
    Then everything is as it was after the best epoch (the rule of HAT's and GPM's code; HAT's also makes a new optimiser when the
    rate falls, which plain SGD does not need).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch.nn import functional as F

from ..errors import UserError
from ..method.base import Method
from ..nn.backbones import reseed_dropout
from ..nn.conditional import evaluating
from ..protocol import Recipe
from .batches import Batches
from .rollback import Rollback


def relative_rate(recipe: Recipe, epoch: int, epochs: int, step: int, steps: int) -> float:
    """The rate of step `step` of `steps` of epoch `epoch` of `epochs`, all from 0, as a share of the recipe's; milestones are
    scaled to `epochs`. Under patience 1: what it divides by is not known beforehand."""
    if recipe.lr_schedule == "milestones":
        return 0.1 ** sum(epoch >= max(1, round(m * epochs / recipe.epochs)) for m in recipe.milestones)
    if recipe.lr_schedule == "cosine":
        return (1 + math.cos(math.pi * epoch / epochs)) / 2
    if recipe.lr_schedule == "one_cycle":
        now, last = min(epoch * steps + step, epochs * steps - 1), epochs * steps - 1
        top = 0.3 * epochs * steps - 1
        low, high, share = (1 / 25, 1.0, now / top) if now <= top else (1 / 250_000, 1.0, (last - now) / (last - top))
        return low + (high - low) * (1 - math.cos(math.pi * share)) / 2
    return 1.0


class Schedule(SupervisedPlugin):
    """Sets the learning rate, ends tasks, and gives each task new dropout generators.

    A change multiplies what is there, so that a method or a plugin may scale the rate. kept: under patience, the epoch, from 1,
    whose state the last task ended with.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe, self.kept = recipe, 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        reseed_dropout(strategy.model, strategy.seed, strategy.experience.current_experience)
        for group in strategy.optimizer.param_groups:
            group["lr"] = self.recipe.lr
        self.share, self.best, self.left, self.kept = 1.0, math.inf, self.recipe.lr_patience, 0
        self._best_state: Rollback | None = None

    def rate(self, strategy: Any, epochs: int | None = None) -> float:
        """The rate of the current step as a share of the recipe's, by a schedule over `epochs` (default: all of the task's)."""
        clock, steps = strategy.clock, len(strategy.dataloader)
        epoch, step = clock.train_exp_epochs, clock.train_epoch_iterations
        whole = self.recipe.epochs if epochs is None else epochs
        return self.share if self.recipe.lr_schedule == "patience" else relative_rate(self.recipe, epoch, whole, step, steps)

    def _multiply(self, strategy: Any, factor: float) -> None:
        for group in strategy.optimizer.param_groups:
            group["lr"] *= factor

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if self.recipe.lr_schedule == "milestones":
            if strategy.clock.train_exp_epochs in self.recipe.milestones:
                self._multiply(strategy, 0.1)
        elif self.recipe.lr_schedule == "cosine":
            self._follow(strategy)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self.recipe.lr_schedule == "one_cycle":
            self._follow(strategy)

    def _follow(self, strategy: Any) -> None:
        now = self.rate(strategy)
        self._multiply(strategy, now / self.share)
        self.share = now

    def may_end(self) -> bool:
        """Whether the task ends after this epoch if its validation loss is no new minimum."""
        lower = self.recipe.lr * self.share / self.recipe.lr_factor
        return self.recipe.lr_schedule == "patience" and self.left == 1 and lower < self.recipe.lr_min

    def end_of_epoch(self, strategy: Any) -> None:
        """Called after every plugin's hook."""
        if self.recipe.lr_schedule != "patience":
            return
        loss = validation_loss(strategy)
        if loss < self.best:
            if not self.kept:
                check_can_go_back(strategy.method)
            self.best, self.left, self.kept = loss, self.recipe.lr_patience, strategy.clock.train_exp_epochs
            self._best_state = None  # before the new one is made: there is memory for one
            self._best_state = Rollback(strategy.model, strategy.method)
            return
        ends = self.may_end()
        self.left -= 1
        if ends:
            strategy.stop_training()
        elif self.left == 0:
            self.share /= self.recipe.lr_factor
            self._multiply(strategy, 1 / self.recipe.lr_factor)
            self.left = self.recipe.lr_patience

    def end_of_training(self, strategy: Any) -> None:
        """Called after the last epoch of a task, before any plugin's hook."""
        if self._best_state is not None:
            self._best_state.restore()
            self._best_state = None


def check_can_go_back(method: Method) -> None:
    """Raises UserError for a method that holds what cannot be set back to the best epoch, such as an iterator."""
    if unsaved := method.unsaved():
        raise UserError(f"{unsaved}, nor can lr_schedule=patience set it back to the best epoch", "use another lr_schedule")


@torch.no_grad()
def validation_loss(strategy: Any) -> float:
    """Mean cross-entropy on the validation images of what is being learnt, as it would be served."""
    experience = strategy.experience
    images = experience.validation if isinstance(experience.validation, list) else [experience.validation]
    positions, total = sorted(experience.task_labels), torch.zeros((), dtype=torch.float64)
    with evaluating(strategy.model), strategy.precise():
        for task, part in zip(positions, images, strict=True):
            for x, y, _ in Batches([part], [task], strategy.eval_mb_size, augmentation=None, dtype=strategy.dtype):
                total += F.cross_entropy(strategy.model(x, task).to(strategy.dtype), y, reduction="sum").cpu()
    return float(total) / sum(len(part.labels) for part in images)
