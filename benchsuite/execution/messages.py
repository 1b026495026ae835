"""What a board and its engine report: `Begun`, `Event`s while runs train, an `Ending` for each run, `Done` if it has a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..record.schema import Job
from ..training.events import Event


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A board needs `of` runs and starts `runs` of them, `slots` at once; None on a cluster, where nodes come and go."""

    runs: int
    of: int
    slots: int | None = None


@dataclass(frozen=True)
class Done:
    """The run has its record, where the board looks for it."""

    job: Job


@dataclass(frozen=True)
class Finished:
    """The run has a record."""


@dataclass(frozen=True)
class Failed:
    """The run failed, or could not start. reason: one line that names the job."""

    reason: str


@dataclass(frozen=True)
class Killed:
    """The process ended before it could report how the run ended."""


@dataclass(frozen=True)
class Files:
    """Files of a run's folder, by name, and of its logs, sent from a node that cannot see the results folder to the process that
    can."""

    contents: Mapping[str, bytes]
    logs: Mapping[str, bytes] = field(default_factory=dict)


Ending = Finished | Failed | Killed
Message = Event | Ending
