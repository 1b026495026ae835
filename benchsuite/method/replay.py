"""Shared by methods that store images of earlier tasks: the budget, and the recipes under which they cannot run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..nn.backbones import has_batchnorm
from ..protocol import Recipe
from .base import Preset

# 1,300 images of 32x32x3 bytes, as many as the 16 MB of float32 images that published rows of A-GEM and ER-RES state
BUDGET = 4.0

FEW_DIGITS = (
    Preset(
        protocol="split-digits", values={"budget": 0.00128}, origin="ours: 20 images of 10 classes; 4 MB would hold all there are"
    ),
    Preset(
        protocol="rotated-digits",
        values={"budget": 0.0064},
        origin="ours: 100 images, a quarter of one task; 4 MB would hold all there are",
    ),
)

AS_MANY_LARGE = Preset(
    protocol="split-miniimagenet",
    values={"budget": 27.6},
    origin="the 1,300 images of published rows, one byte a channel and pixel",
)


def image_bytes(experience: Any) -> int:
    return math.prod(experience.images.pixels.shape[1:])


def images_in(budget: float, stream: Sequence[Any]) -> int:
    """How many images of a stream fit into `budget` MB, whatever their tasks."""
    return int(budget * 1e6) // max(map(image_bytes, stream))


def mixed_batches(recipe: Recipe) -> str | None:
    """Why a method that mixes tasks in a batch cannot run under a recipe."""
    if recipe.batchnorm == "per_task" and has_batchnorm(recipe.backbone):
        return "its batches mix tasks, which leaves too few images of each for batchnorm=per_task; use another policy"
    return None
