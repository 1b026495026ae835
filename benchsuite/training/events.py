"""What a run reports while it is under way. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..record.schema import Job


@dataclass(frozen=True, kw_only=True)
class Event:
    """Progress: `epoch` of `epochs` of stage `stage` of `stages` has ended; epoch 0 is the start of a run, or of a resumed one.

    images_per_second, seconds_left: estimated from what this process has trained so far, evaluation included; None before that.
    note: a line for the user.
    """

    job: Job
    stage: int
    stages: int
    epoch: int
    epochs: int
    loss: float = float("nan")
    images_per_second: float | None = None
    seconds_left: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Note:
    """A line for the user."""

    text: str
