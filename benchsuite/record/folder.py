"""The files of one run in its folder."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from msgspec import structs

from ..errors import UserError
from ..files import write_atomic
from .schema import SCHEMA, Job, RunRecord

IN_HAND = "is running in another process; waiting for it"


def failure(folder: Path) -> str | None:
    """Why the last run in this folder failed; None if it did not."""
    try:
        return str(json.loads((folder / "failure.json").read_text())["error"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "its failure.json cannot be read"


def write_failure(job: Job, folder: Path, reason: str, trace: str = "") -> None:
    """Put on record why a run failed. A folder that cannot be written any more is no reason to hide the failure itself."""
    content = {
        "schema": SCHEMA,
        "job": structs.asdict(job),
        "error": reason,
        "traceback": trace,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with suppress(UserError):
        write_atomic(folder / "failure.json", json.dumps(content, indent=1) + "\n")


def set_aside(folder: Path) -> Path:
    """Give the files of a run that no longer counts other names in its folder, the record last. Returns the record's."""
    number = next(n for n in count(1) if not (folder / f"record.stale-{n}.json").exists())
    for name in ("artifact.safetensors", "record.json"):
        stem, _, ending = name.rpartition(".")
        with suppress(FileNotFoundError):
            os.replace(folder / name, folder / f"{stem}.stale-{number}.{ending}")
    return folder / f"record.stale-{number}.json"


def artifact_of(record: RunRecord, folder: Path) -> bytes:
    """The exported artifact beside the record. Raises UserError where it is not there or not the one that the record is of."""
    path = folder / "artifact.safetensors"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: is not there", "the same run in another results folder (--results) makes it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) != record.stored_bytes:
        raise UserError(f"{path}: has {len(content)} bytes, its record says {record.stored_bytes}", "delete both and run again")
    if record.artifact_sha256 and hashlib.sha256(content).hexdigest() != record.artifact_sha256:
        raise UserError(f"{path}: is not the file that its record describes", "delete both and run again")
    return content
