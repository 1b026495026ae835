"""EWC: elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796), separate and online (Schwarz et al., 1805.06370).

After task t, with theta*_t its final weights and p the network's distribution over its classes, the diagonal Fisher

    F^t_i = 1/N sum_n E_y[ (d log p(y | x_n, t) / d theta_i)^2 ],   one gradient for each image, squared, then averaged,

is computed on the training images without augmentation. While a later task is learnt:

    separate:  L = CE_t + lambda/2 sum_{k<t} sum_i F^k_i (theta_i - theta*_k,i)^2
    online:    L = CE_t + lambda/2 sum_i Fbar_i (theta_i - theta*_{t-1},i)^2,   Fbar_t = gamma Fbar_{t-1} + F^t.

fisher: "sample" draws y ~ p once for each image (unbiased), "exact" sums over all classes weighted by p, "empirical" takes
the label. The sum of the separate form is stored as one quadratic, so nothing grows with the number of tasks. The penalty
covers the parameters that all tasks share. It leaves out heads, because no later task trains them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchsuite.fields import setting
from benchsuite.method import Method, Preset, Range, register
from benchsuite.nn.conditional import shared_parameters
from benchsuite.nn.importance import Quadratic, no_image_alone, per_sample_gradients
from benchsuite.protocol import Recipe
from benchsuite.training.batches import Batches


@register
@dataclass
class EWC(Method):
    """EWC: penalises changes of weights in proportion to their Fisher information for earlier tasks."""

    strength: float = setting(5000.0, least=0)  # lambda; the value in HAT's comparison, from a grid of 500 to 50,000
    mode: Literal["separate", "online"] = "separate"
    fisher: Literal["sample", "exact", "empirical"] = "sample"
    decay: float = setting(1.0, least=0, most=1)  # gamma, online form only

    label = "EWC"
    family = "regularisation"
    marker = "s"
    settings: ClassVar = (
        Preset(
            protocol="split-cifar100",
            tier="lite",
            values={"strength": 100.0},
            origin="tuned: 5 trials of `benchsuite tune` with precision=bf16, ACC after the first 3 tasks of seed 1002"
            " on a held-out 10 % of the training images",
        ),
        Preset(
            protocol="rotated-digits",
            tier="paper",
            values={"strength": 31.6},
            origin="tuned: 5 trials of `benchsuite tune`, ACC after the first 3 tasks of seed 1002 on a held-out 10 % of"
            " the training images",
        ),
    )
    space: ClassVar = {"strength": Range(1e1, 1e5, log=True)}  # a search from 100 on took the smallest value that it tried

    def __post_init__(self) -> None:
        super().__post_init__()
        self.penalty = Quadratic()

    def unsupported_reason(self, recipe: Recipe) -> str | None:
        return no_image_alone(recipe)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self.penalty.importance and self.strength:
            strategy.loss += self.strength / 2 * self.penalty(shared_parameters(self.model.backbone))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        experience = strategy.experience
        task = experience.current_experience
        importance = self.information(task, Batches([experience.images], [task], 32, augmentation=None, dtype=strategy.dtype))
        if self.mode == "online":
            for name, earlier in self.penalty.importance.items():
                importance[name] += self.decay * earlier
            self.penalty = Quadratic()
        self.penalty.add(importance, shared_parameters(self.model.backbone))

    def information(self, task: int, batches: Batches) -> dict[str, Tensor]:
        """F^t over all images of `batches`: for each shared parameter, by name, a tensor of its shape."""
        total: dict[str, Tensor] = {}
        count = 0
        draw = self.generator("fisher", task)

        def targets() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal count
            for x, y, _ in batches:
                count += len(x)
                if self.fisher == "empirical":
                    yield x, F.one_hot(y, self.model.classes[task]).to(x)
                    continue
                with torch.no_grad():
                    p = self.model(x, task).softmax(1)
                if self.fisher == "sample":
                    y = torch.multinomial(p.cpu(), 1, generator=draw).squeeze(1).to(p.device)
                    yield x, F.one_hot(y, p.shape[1]).to(x)
                else:
                    for c in range(p.shape[1]):  # sqrt(p_c) log p_c, squared below
                        yield x, F.one_hot(torch.full_like(y, c), p.shape[1]).to(x) * p.sqrt()

        def weighted(logits: Tensor, weight: Tensor) -> Tensor:
            return (weight * logits.log_softmax(0)).sum()

        for gradients in per_sample_gradients(self.model, weighted, targets(), task):
            for name, g in gradients.items():
                square = g.square().sum(0)
                total[name] = total[name] + square if name in total else square
        return {name: t / count for name, t in total.items()}

    def state(self) -> dict[str, Any]:
        return dict(vars(self.penalty))

    def load_state(self, state: dict[str, Any]) -> None:
        vars(self.penalty).update(state)
