"""The folder of a run: the names of its files, written here alone, and what is done with them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import msgspec

from .. import files
from ..errors import UserError
from ..text import clean
from . import store
from .schema import SCHEMA, Job, Part, RunRecord
from .store import RECORD

ARTIFACT, CHECKPOINT, PROGRESS, FAILURE, LOCK = (
    "artifact.safetensors",
    "checkpoint.pt",
    "progress.json",
    "failure.json",
    "lock",
)

EVERY_RECORD = "record*.json"  # those set aside, too

PREDICTIONS = "predictions.safetensors"  # on request

IN_HAND = "is running in another process; waiting for it"


class Progress(Part, frozen=True):
    """How far a run is: `epoch` of `epochs` of stage `stage` of `stages` has ended, and `kept` stages are in its checkpoint."""

    stage: int
    stages: int
    epoch: int
    epochs: int
    kept: int
    images_per_second: float | None = None
    seconds_left: float | None = None
    host: str = "?"
    date: str = ""


@dataclass(frozen=True)
class RunFolder:
    """record.json: the result, written last. artifact.safetensors: the network as it is served. predictions.safetensors: its
    answers to the test images, on request.

    While a run is under way: lock, checkpoint.pt after each task, and progress.json, for `benchsuite status`. After a failure:
    failure.json, until a later run succeeds. A record whose code has changed keeps its files under names with `.stale-N`.
    """

    path: Path

    @property
    def record(self) -> Path:
        return self.path / RECORD

    @property
    def artifact(self) -> Path:
        return self.path / ARTIFACT

    @property
    def predictions(self) -> Path:
        return self.path / PREDICTIONS

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def progress(self) -> Path:
        return self.path / PROGRESS

    @property
    def failure(self) -> Path:
        return self.path / FAILURE

    @property
    def lock(self) -> Path:
        return self.path / LOCK

    def locked(self, wait: bool = True) -> AbstractContextManager[None]:
        """Hold the run's lock; see `files.locked`."""
        return files.locked(self.lock, wait)

    @contextmanager
    def gone_if_empty(self) -> Iterator[None]:
        """A run that cannot begin leaves no folder behind."""
        try:
            yield
        finally:
            with suppress(OSError):  # at the first folder that holds something
                for folder in (self.path, *list(self.path.parents)[:3]):  # of the run, the method, the tier and the protocol
                    folder.rmdir()

    def is_locked(self) -> bool:
        return files.is_locked(self.lock)

    def read(self) -> RunRecord:
        return store.read(self.record)

    def read_of(self, job: Job) -> RunRecord:
        """The record of this job. Raises UserError where the file holds another run's."""
        return store.read_of(job, self.record)

    def write(self, record: RunRecord) -> None:
        store.write(record, self.record)

    def read_artifact(self, record: RunRecord) -> bytes:
        """The exported artifact. Raises UserError where it is not there or not the one that the record describes."""
        path = self.artifact
        try:
            content = files.read(path)
        except FileNotFoundError:
            raise UserError(f"{path}: is not there", "the same run in another results folder (--results) makes it") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        if len(content) != record.stored_bytes:
            raise UserError(
                f"{path}: has {len(content)} bytes, its record says {record.stored_bytes}", "delete both and run again"
            )
        if record.artifact_sha256 and hashlib.sha256(content).hexdigest() != record.artifact_sha256:
            raise UserError(f"{path}: is not the file that its record describes", "delete both and run again")
        return content

    def read_failure(self) -> str | None:
        """Why the last run in this folder failed; None if it did not."""
        try:
            return clean(str(json.loads(files.read(self.failure))["error"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return f"its {FAILURE} cannot be read"

    def write_failure(self, job: Job, reason: str, trace: str = "") -> None:
        """Put on record why a run failed. A folder that can no longer be written is no reason to hide the failure itself."""
        content = {
            "schema": SCHEMA,
            "job": msgspec.to_builtins(job),
            "error": reason,
            "traceback": trace,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with suppress(UserError):
            files.write_atomic(self.failure, json.dumps(content, indent=1) + "\n")

    def read_progress(self) -> Progress | None:
        """What the run last wrote of itself; None if that is not there or not whole. A speed that is no number is unknown."""
        try:
            content = json.loads(files.read(self.progress))
            for name in ("images_per_second", "seconds_left"):
                value = content.get(name)
                content[name] = value if isinstance(value, int | float) and math.isfinite(value) else None
            return msgspec.convert(content, Progress)
        except (OSError, ValueError, AttributeError, OverflowError, RecursionError):
            return None

    def write_progress(self, progress: Progress) -> None:
        """That this fails is no reason for a run to fail."""
        with suppress(UserError):
            files.write_atomic(self.progress, msgspec.json.encode(progress) + b"\n")

    def set_aside(self) -> Path:
        """Give the files of a run that no longer counts other names, the record last. Returns the record's."""
        number = next(n for n in count(1) if not (self.path / _stale(RECORD, n)).exists())
        for name in (ARTIFACT, PREDICTIONS, RECORD):
            with suppress(FileNotFoundError):
                os.replace(self.path / name, self.path / _stale(name, number))
        return self.path / _stale(RECORD, number)

    def set_checkpoint_aside(self) -> Path:
        """Give a checkpoint that no longer counts another name, and return it."""
        return self.checkpoint.replace(self.path / "checkpoint.stale.pt")

    def tidy(self) -> None:
        """Remove what a record makes superfluous; a kill after the record was written may have left it."""
        for leftover in (self.failure, self.checkpoint, self.progress):
            leftover.unlink(missing_ok=True)

    def clear_unfinished(self) -> None:
        """Remove files that a killed process was writing."""
        for half in self.path.glob(f"{files.WRITING}*"):
            half.unlink(missing_ok=True)


def _stale(name: str, number: int) -> str:
    stem, _, ending = name.rpartition(".")
    return f"{stem}.stale-{number}.{ending}"
