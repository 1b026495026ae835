"""Per-sample gradients, and the quadratic penalty that importance-based methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from ..protocol import Recipe
from .backbones import has_batchnorm
from .conditional import evaluating, shared_parameters
from .multihead import MultiHead

Loss = Callable[[Tensor, Tensor], Tensor]


def per_sample_gradients(
    model: MultiHead, loss: Loss, batches: Iterator[tuple[Tensor, Tensor]], task: int
) -> Iterator[dict[str, Tensor]]:
    """Gradients of loss(logits (K,), target) for each sample alone, with respect to the shared parameters of the backbone.

    batches: (x (B, C, H, W), targets (B, ...)). Yields {name: (B, *shape)} batch by batch. The network is in evaluation mode
    (no dropout, fixed normalisation) during the computation. Its gradients, buffers and mode are left unchanged.
    """
    names = shared_parameters(model.backbone)
    own = {f"backbone.{name}": p.detach() for name, p in names.items()}

    def of_one(parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return loss(functional_call(model, parameters, (x[None], task))[0], target)

    each = vmap(grad(of_one), in_dims=(None, 0, 0))
    with evaluating(model):
        for x, target in batches:
            gradients = each(own, x, target)
            yield {name: gradients[f"backbone.{name}"] for name in names}


def no_image_alone(recipe: Recipe) -> str | None:
    """Why a method that uses per-image gradients cannot run under a recipe."""
    if recipe.batchnorm == "batch_stats" and has_batchnorm(recipe.backbone):
        return (
            "it looks at one image at a time, and batchnorm=batch_stats has statistics of whole batches only; use another policy"
        )
    return None


class Quadratic:
    """sum_k sum_i A_k,i (theta_i - a_k,i)^2 over any number of terms k, stored as one quadratic and a number.

    Adding a term merges it: A = A' + A_k, anchor = a' + A_k / A (a_k - a'), rest += A' A_k / A (a_k - a')^2. Neither cost nor
    memory grows with the number of terms. The anchor of a single term is bit-identical to that term's own.
    """

    def __init__(self) -> None:
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.rest = 0.0  # independent of theta; only the value needs it

    @torch.no_grad()
    def add(self, importance: dict[str, Tensor], anchor: dict[str, Tensor]) -> None:
        for name, new in importance.items():
            here = anchor[name].detach()
            if name not in self.importance:
                self.importance[name], self.anchor[name] = new.clone(), here.clone()
                continue
            old, total = self.importance[name], self.importance[name] + new
            share = torch.where(total > 0, new / total.clamp_min(torch.finfo(total.dtype).tiny), torch.ones_like(total))
            step = here - self.anchor[name]
            self.rest += float((old.double() * share.double() * step.double().square()).sum())
            self.anchor[name] = torch.where(share == 1, here, self.anchor[name] + share * step)
            self.importance[name] = total

    def __call__(self, parameters: dict[str, Tensor]) -> Tensor:
        """The value without `rest`, differentiable in the parameters."""
        return torch.stack(
            [(self.importance[n] * (parameters[n] - self.anchor[n]).square()).sum() for n in self.importance]
        ).sum()
