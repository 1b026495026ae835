"""Equal sizes: the largest backbone width at which a method stores no more than another one.

What most methods store depends on their network and the number of tasks, not on what is learnt, so it can be computed: the
method trains on the whole sequence with one random image per class, and its artifact is measured. A method whose size is a
result of training says so (`size_is_learnt`) and is compared at the widths that have records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from msgspec import structs

from ..protocol import protocols
from ..record.schema import Job
from ..training.assemble import assemble, with_header
from ..training.batches import Augmentation, TaskImages
from ..training.settings import recipe_of
from ..training.stream import TaskStream, stream_of

STEP = 0.01  # widths are multiples of this

WIDEST = 16.0


def stored_bytes(job: Job) -> int:
    """The size of the exported file after the last task, for a method whose size is not learnt."""
    protocol, recipe = protocols.get(job.protocol), recipe_of(job.settings)
    channels, height, width = protocol.image
    some = (0.5,) * channels  # in place of what is computed from the images: only its length counts
    tasks = [replace(t, mean=t.mean or some, std=t.std or some) for t in protocol.sequence(job.seed, recipe)]
    source = torch.Generator().manual_seed(0)
    parts = [
        TaskImages(
            pixels=torch.randint(256, (len(t.classes), height, width, channels), generator=source, dtype=torch.uint8),
            labels=torch.arange(len(t.classes)),
            mean=t.mean,
            std=t.std,
        )
        for t in tasks
    ]
    stream: TaskStream = stream_of(tasks, parts, parts, Augmentation(), [])
    quick = structs.replace(job, settings={**job.settings, "epochs": 1, "milestones": [], "lr_schedule": "milestones"})
    strategy = assemble(quick, stream)
    for experience in [stream.joint()] if strategy.method.trains_jointly else stream.train:
        strategy.train(experience, eval_streams=[])
    return sum(with_header(strategy.method.artifact(), job, tasks).sizes().values())


def matching_width(job_at: Callable[[float], Job], target: float) -> float | None:
    """The largest width at which the method stores at most `target` bytes; None if it stores more at any width.

    job_at: the job at a width. Sizes grow with the width, so the width is found by bisection.
    """

    def fits(steps: int) -> bool:
        return stored_bytes(job_at(round(steps * STEP, 2))) <= target

    low, high = 0, round(1 / STEP)
    while fits(high) and high < WIDEST / STEP:  # measuring wide networks takes long: try none wider than necessary
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return round(low * STEP, 2) or None
