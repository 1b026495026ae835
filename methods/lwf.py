"""LwF: learning without forgetting (Li and Hoiem, arXiv 1606.09282).

The teacher is the network before task t. On the images of task t alone:

    L = CE_t + alpha sum_{k<t} tau^2 KL( softmax(z'_k / tau) || softmax(z_k / tau) ),

averaged over the batch, with z'_k and z_k the logits of old head k from the teacher and the network. The backbone and all heads
are trained. The teacher is fixed and in evaluation mode. The network computes its features once for all heads.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchsuite.fields import setting
from benchsuite.method import Choice, Method, Preset, Range, register
from benchsuite.nn.backbones import has_batchnorm
from benchsuite.protocol import Recipe


@register
@dataclass
class LwF(Method):
    """LwF: distils the previous network's outputs into the old heads."""

    strength: float = setting(1.0, least=0)  # alpha
    temperature: float = setting(2.0, above=0)  # tau

    label = "LwF"
    family = "regularisation"
    marker = "o"
    trains_old_heads = True
    settings: ClassVar = (
        Preset(
            protocol="split-cifar100",
            tier="lite",
            values={"strength": 0.178, "temperature": 2.0},
            origin="tuned: 5 trials of `benchsuite tune` with precision=bf16, ACC after the first 3 tasks of seed 1002"
            " on a held-out 10 % of the training images",
        ),
        Preset(
            protocol="rotated-digits",
            tier="paper",
            values={"strength": 1.0, "temperature": 2.0},
            origin="tuned: 5 trials of `benchsuite tune`, ACC after the first 3 tasks of seed 1002 on a held-out 10 % of"
            " the training images",
        ),
    )
    space: ClassVar = {"strength": Range(0.1, 10.0, log=True), "temperature": Choice((1.0, 2.0, 4.0))}

    def unsupported_reason(self, recipe: Recipe) -> str | None:
        if recipe.batchnorm == "per_task" and has_batchnorm(recipe.backbone):
            return "it compares all old heads on one set of features, which batchnorm=per_task has not; use another policy"
        return None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._hook = self.model.backbone.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, features: Tensor) -> None:
        self._features: Any = features

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        task = strategy.experience.current_experience
        if task and self.strength:
            strategy.loss += self.strength * self.distillation(strategy, task)

    def distillation(self, strategy: Any, task: int) -> Tensor:
        """sum_{k<t} tau^2 KL(teacher || network), averaged over the batch."""
        tau, loss = self.temperature, self._features.new_zeros((), dtype=strategy.dtype)
        bf16 = strategy.precision == "bf16"
        with torch.no_grad(), torch.autocast(strategy.device.type, torch.bfloat16, enabled=bf16):
            taught = self.teacher.embed(strategy.mb_x, task)
        taught, features = taught.to(strategy.dtype), self._features.to(strategy.dtype)
        for k in range(task):
            target = (self.teacher.heads[str(k)](taught) / tau).log_softmax(1)
            student = (self.model.heads[str(k)](features) / tau).log_softmax(1)
            loss = loss + tau**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)
        return loss

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._features = None

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._hook.remove()
        del self.teacher

    def state(self) -> dict[str, Any]:
        return {}  # the next task's teacher is the network in the checkpoint
