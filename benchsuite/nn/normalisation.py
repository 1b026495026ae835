"""Policies for batch normalisation: which parts belong to a task, and which change when later tasks are learnt."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .conditional import TaskConditional, replace_modules

BatchNormPolicy = Literal["per_task", "frozen_after_first", "batch_stats", "shared"]


class PerTaskBatchNorm(TaskConditional):
    """Separate scale, shift and running statistics for each task: 4 C numbers per task. A new task starts at the identity."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.channels, self.norms, self._task = norm.num_features, nn.ModuleDict(), -1

    def add_task(self, task: int, seed: int) -> None:
        self.norms[str(task)] = nn.BatchNorm2d(self.channels)

    def set_task(self, task: int) -> None:
        self._task = task

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[str(self._task)](x)


class FirstTaskBatchNorm(nn.Module):
    """Learns scale and shift with the first task; the guard freezes them at its end.

    running: normalise by the running statistics, which are then frozen too ("frozen_after_first"). Otherwise normalise by the
    statistics of the batch, also in evaluation ("batch_stats"), so that logits depend on the other images of the batch.
    """

    def __init__(self, norm: nn.BatchNorm2d, running: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(norm.num_features, track_running_stats=running)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm.weight.requires_grad:
            return self.norm(x)
        mean, variance = self.norm.running_mean, self.norm.running_var
        return F.batch_norm(x, mean, variance, self.norm.weight, self.norm.bias, mean is None, 0.0, self.norm.eps)


def apply_policy(network: nn.Module, policy: BatchNormPolicy) -> None:
    """Apply `policy` to every batch normalisation of `network`."""
    if policy == "per_task":
        replace_modules(network, nn.BatchNorm2d, lambda _, norm: PerTaskBatchNorm(norm))
    elif policy != "shared":
        replace_modules(network, nn.BatchNorm2d, lambda _, norm: FirstTaskBatchNorm(norm, policy == "frozen_after_first"))
