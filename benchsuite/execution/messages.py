"""What a board and its engine say: `Begun`, then `Event`s while runs train, and last how each of them ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..training.events import Event


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A board starts `runs` runs `of` those it needs, `slots` at once; None where nodes come and go."""

    runs: int
    of: int
    slots: int | None = None


@dataclass(frozen=True)
class Finished:
    """The run has a record."""


@dataclass(frozen=True)
class Failed:
    """The run broke, or could not start. reason: in one line that names the job."""

    reason: str


@dataclass(frozen=True)
class Killed:
    """The process ended before it could say how the run ended."""


@dataclass(frozen=True)
class Files:
    """Files of a run's folder, by name: from a node that cannot see the results folder to the process that can."""

    contents: Mapping[str, bytes]


Ending = Finished | Failed | Killed
Message = Event | Ending
