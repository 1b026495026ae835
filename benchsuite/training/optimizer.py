"""The optimiser of a recipe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..protocol import Recipe


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    # A method may create its first parameters with its first task.
    return optimizer_of(recipe, list(model.parameters()) or [nn.Parameter(torch.zeros(()))])


def optimizer_of(recipe: Recipe, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The recipe's optimiser, in PyTorch's fused form if that is safe."""
    if recipe.optimizer == "sgd":
        # With momentum the fused form fails if some parameters have had no gradient yet (the heads of later tasks).
        fused = True if recipe.momentum == 0 else None  # None: PyTorch's default
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
