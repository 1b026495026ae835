"""MAS: memory aware synapses (Aljundi et al., arXiv 1711.09601).

After task t, on its training images without augmentation, with the logits z_t of its head:

    Omega^t_i = 1/N sum_n | d ||z_t(x_n)||_2^2 / d theta_i |,      one gradient for each image, its absolute value averaged.

Omega = (1 - alpha) Omega + alpha Omega^t from the second task on; alpha = 0.5 is the convex average in common use.
L = CE_t + lambda sum_i Omega_i (theta_i - theta*_{t-1},i)^2 over the parameters that every task uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from benchsuite.fields import setting
from benchsuite.method import Method, Preset, Range, register
from benchsuite.nn.conditional import shared_parameters
from benchsuite.nn.importance import Quadratic, no_image_alone, per_sample_gradients
from benchsuite.protocol import Recipe
from benchsuite.training.batches import Batches


@register
@dataclass
class MAS(Method):
    """MAS: penalises changes of weights in proportion to the logits' sensitivity to them."""

    strength: float = setting(1.0, least=0)  # lambda
    average: float = setting(0.5, least=0, most=1)  # alpha, the newest task's share of the importance

    label = "MAS"
    family = "regularisation"
    marker = "D"
    settings: ClassVar = (
        Preset(
            protocol="split-cifar100",
            tier="lite",
            values={"strength": 0.0316},
            origin="ours: from an earlier search at full width and PyTorch's initial law; to be searched again",
        ),
        Preset(
            protocol="rotated-digits",
            tier="paper",
            values={"strength": 0.0316},
            origin="tuned: 5 trials of `benchsuite tune`, ACC after the first 3 tasks of seed 1002 on a held-out 10 % of"
            " the training images",
        ),
    )
    space: ClassVar = {"strength": Range(1e-2, 1e2, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.penalty = Quadratic()

    def unsupported_reason(self, recipe: Recipe) -> str | None:
        return no_image_alone(recipe)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self.penalty.importance and self.strength:
            strategy.loss += self.strength * self.penalty(shared_parameters(self.model.backbone))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        experience = strategy.experience
        task = experience.current_experience
        importance = self.sensitivity(task, Batches([experience.images], [task], 32, augmentation=None, dtype=strategy.dtype))
        for name, earlier in self.penalty.importance.items():
            importance[name] = (1 - self.average) * earlier + self.average * importance[name]
        self.penalty = Quadratic()
        self.penalty.add(importance, shared_parameters(self.model.backbone))

    def sensitivity(self, task: int, batches: Batches) -> dict[str, Tensor]:
        """Omega^t: for each shared parameter, by name, a tensor of its shape."""
        total: dict[str, Tensor] = {}
        pairs = ((x, y) for x, y, _ in batches)
        for gradients in per_sample_gradients(self.model, lambda logits, _: logits.square().sum(), pairs, task):
            for name, g in gradients.items():
                total[name] = total[name] + g.abs().sum(0) if name in total else g.abs().sum(0)
        return {name: t / len(batches.labels) for name, t in total.items()}

    def state(self) -> dict[str, Any]:
        return dict(vars(self.penalty))

    def load_state(self, state: dict[str, Any]) -> None:
        vars(self.penalty).update(state)
