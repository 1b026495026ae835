"""ER: experience replay (Chaudhry et al., arXiv 1902.10486), Avalanche's `ReplayPlugin` under a budget of bytes.

From the second task on, every step trains on a batch of the task and a batch of stored images of earlier tasks, each image
under the head of its own task: L = mean CE over both. The memory holds equally many random images of every task so far.
Images are stored as uint8, one byte per channel and pixel. They count as training state, because prediction needs none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import ExperienceBalancedBuffer

from benchsuite.fields import setting
from benchsuite.method import Choice, Method, Preset, register
from benchsuite.method.replay import AS_MANY_LARGE, BUDGET, FEW_DIGITS, image_bytes, images_in, mixed_batches
from benchsuite.protocol import Recipe
from benchsuite.randomness import seeded


@register
@dataclass
class ER(Method):
    """ER: also trains every step on stored images of earlier tasks."""

    budget: float = setting(BUDGET, above=0)  # MB (10^6 bytes) of stored images
    sample_size: int | None = setting(
        None, least=1, most=10**6, neutral=None
    )  # stored images in each batch; None: as many as new ones

    label = "ER"
    family = "replay"
    marker = "o"
    trains_old_heads = True
    settings: ClassVar = (
        *FEW_DIGITS,
        AS_MANY_LARGE,
        Preset(
            protocol="split-cifar100",
            tier="lite",
            values={"sample_size": 32},
            origin="tuned: 5 trials of `benchsuite tune` with precision=bf16, ACC after the first 3 tasks of seed 1002"
            " on a held-out 10 % of the training images",
        ),
        Preset(
            protocol="rotated-digits",
            tier="paper",
            values={"sample_size": None},
            origin="tuned: 5 trials of `benchsuite tune`, ACC after the first 3 tasks of seed 1002 on a held-out 10 % of"
            " the training images",
        ),
    )
    space: ClassVar = {"sample_size": Choice((None, 32, 128))}  # the budget is the same for all replay methods

    def unsupported_reason(self, recipe: Recipe) -> str | None:
        return mixed_batches(recipe)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Refill the memory. It depends only on the seed and the earlier tasks."""
        experience = strategy.experience
        size = images_in(self.budget, experience.origin_stream)
        memory, earlier = ExperienceBalancedBuffer(size), experience.origin_stream[: experience.current_experience]
        for one in earlier:
            with seeded(self.seed, "memory", one.current_experience):
                memory.post_adapt(strategy, one)
        stored = [len(group.buffer) for group in memory.buffer_groups.values()]
        self.memory_bytes = sum(n * image_bytes(one) for n, one in zip(stored, earlier, strict=True))
        # From the second task on Avalanche's own hook installs a loader over both.
        ReplayPlugin(mem_size=size, batch_size_mem=self.sample_size, storage_policy=memory).before_training_exp(strategy)
