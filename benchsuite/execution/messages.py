"""What an engine says of its runs: `Event`s while they train, and last how each of them ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..training.events import Event


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
