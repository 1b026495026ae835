"""SI: synaptic intelligence (Zenke et al., arXiv 1703.04200).

During training every weight accumulates its share of the decrease of the loss,

    w_i += -g_i (theta_i^after - theta_i^before)      at each step, g the gradient of the loss without the penalty,

which becomes its importance after task t:  Omega_i += max(0, w_i) / ((theta_i - theta_i^start)^2 + xi).
L = CE_t + c sum_i Omega_i (theta_i - theta*_{t-1},i)^2 over the parameters that every task uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchsuite.fields import setting
from benchsuite.method import Method, Preset, Range, register
from benchsuite.nn.conditional import shared_parameters


@register
@dataclass
class SI(Method):
    """SI: penalises changes of weights in proportion to their contribution to the loss decrease of earlier tasks."""

    strength: float = setting(0.1, least=0)  # c
    damping: float = setting(0.1, above=0)  # xi

    label = "SI"
    family = "regularisation"
    marker = "^"
    settings: ClassVar = (
        Preset(
            protocol="split-cifar100",
            tier="lite",
            values={"strength": 10.0},
            origin="ours: from an earlier search at full width and PyTorch's initial law; to be searched again",
        ),
        Preset(
            protocol="rotated-digits",
            tier="paper",
            values={"strength": 10.0},
            origin="tuned: 5 trials of `benchsuite tune`, ACC after the first 3 tasks of seed 1002 on a held-out 10 % of"
            " the training images",
        ),
    )
    space: ClassVar = {"strength": Range(1e-2, 1e2, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}  # the weights at the start of the current task

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        parameters = shared_parameters(self.model.backbone)
        self.anchor = {name: p.detach().clone() for name, p in parameters.items()}
        self.path = {name: torch.zeros_like(p) for name, p in self.anchor.items()}

    @torch.no_grad()
    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the plain gradient for the path integral, then add the penalty's gradient, 2 c Omega (theta - anchor)."""
        self._before = {}
        for name, p in shared_parameters(self.model.backbone).items():
            if p.grad is not None:
                self._before[name] = (p.grad.clone(), p.detach().clone())
                if self.importance and self.strength:
                    p.grad.addcmul_(self.importance[name], p - self.anchor[name], value=2 * self.strength)

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        parameters = shared_parameters(self.model.backbone)
        for name, (gradient, before) in self._before.items():
            self.path[name].addcmul_(gradient, parameters[name] - before, value=-1)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        for name, p in shared_parameters(self.model.backbone).items():
            new = self.path[name].clamp_min(0) / ((p - self.anchor[name]).square() + self.damping)
            self.importance[name] = self.importance[name] + new if name in self.importance else new
        self._before = {}

    def state(self) -> dict[str, Any]:
        return {"importance": self.importance}
