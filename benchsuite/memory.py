"""What methods that store images of earlier tasks have in common: the budget, and where they cannot run."""

from __future__ import annotations

import math
from typing import Any

from .method import Declared
from .nn.backbones import has_batchnorm
from .protocol import Recipe

# 1,300 images of 32x32x3 bytes: what the 16 MB of float32 images hold that published rows of A-GEM and ER-RES state
BUDGET = 4.0
FEW_DIGITS = Declared(
    protocol="split-digits", values={"budget": 0.00128}, origin="ours: 20 images, two of each class; 4 MB would hold them all"
)


def images_in(budget: float, images: Any) -> int:
    """How many of a task's images fit into `budget` MB."""
    return int(budget * 1e6) // math.prod(images.pixels.shape[1:])


def mixed_batches(recipe: Recipe) -> str:
    """Why a method whose batches mix tasks cannot run under a recipe."""
    if recipe.batchnorm == "per_task" and has_batchnorm(recipe.backbone):
        return "its batches mix tasks, which leaves too few images of each for batchnorm=per_task; use another policy"
    return ""
