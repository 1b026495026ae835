"""A-GEM: averaged gradient episodic memory (Chaudhry et al., arXiv 1812.00420), Avalanche's `AGEMPlugin` under a budget.

With g the gradient of a step and g_ref that of a batch of stored images of earlier tasks, each under its own head,

    g <- g - (g . g_ref / g_ref . g_ref) g_ref    where g . g_ref < 0,

over all parameters, heads included (as in Avalanche; a head without a gradient counts as zero and stays as it is).
Images are stored as they are, one byte a channel and pixel, the same number for each task; they count as training state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from avalanche.training.plugins import AGEMPlugin

from benchsuite.method import Choice, Method, register
from benchsuite.methods.er import BUDGET, FEW_DIGITS, images_in, mixed_batches
from benchsuite.protocol import Recipe
from benchsuite.randomness import seeded


@register
@dataclass
class AGEM(Method):
    """A-GEM: a step never goes against the gradient on stored images of earlier tasks."""

    budget: float = BUDGET  # MB (10^6 bytes) of stored images, T equal shares
    sample_size: int = 64  # stored images behind each step's reference gradient

    settings: ClassVar = (FEW_DIGITS,)
    space: ClassVar = {"sample_size": Choice((64, 128, 256))}

    def __post_init__(self) -> None:
        if self.budget <= 0:
            raise ValueError(f"budget must be positive, got {self.budget}")
        if self.sample_size < 1:
            raise ValueError(f"sample_size must be at least 1, got {self.sample_size}")

    def unfit(self, recipe: Recipe) -> str:
        return mixed_batches(recipe)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The memory depends on the seed and the earlier tasks alone, so it is filled anew for each task."""
        experience = strategy.experience
        share = max(1, images_in(self.budget, experience.images) // self.n_tasks)
        # A reference batch has one image of each earlier task at least.
        self.plugin = AGEMPlugin(share, max(self.sample_size, experience.current_experience))
        for earlier in experience.origin_stream[: experience.current_experience]:
            with seeded(self.seed, "memory", earlier.current_experience):
                self.plugin.update_memory(earlier.dataset)
        self.memory_bytes = sum(map(len, self.plugin.buffers)) * math.prod(experience.images.pixels.shape[1:])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.plugin.before_training_iteration(strategy, **kwargs)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.plugin.after_backward(strategy, **kwargs)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        del self.plugin

    def facts(self) -> dict[str, Any]:
        return {"memory_bytes": self.memory_bytes}
