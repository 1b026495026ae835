"""Records as files: written whole, read with every check."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from .. import files
from ..errors import UserError
from ..fields import field_types, misfit
from ..files import digest, write_atomic
from ..protocol import Recipe
from ..text import clean
from .schema import SCHEMA, Job, RunRecord

RECORD = "record.json"  # the name of every record; those of the other files of a run are in `folder`

RECIPE = field_types(Recipe)

DECODER = msgspec.json.Decoder()  # twice as fast as `json`


def to_json(record: RunRecord) -> str:
    """The record as it is written. Raises ValueError, naming the key, for what could not be read back."""
    content = {"schema": SCHEMA, **msgspec.to_builtins(record)}
    for name, value in content.items():
        _plain(value)
        try:
            digest(value)
        except ValueError:
            raise ValueError(f"{name} of the record contains NaN or infinity, which JSON cannot store") from None
    msgspec.convert({name: value for name, value in content.items() if name != "schema"}, RunRecord)
    return json.dumps({**content, "digest": digest(content)}, indent=1) + "\n"


def write(record: RunRecord, path: Path) -> None:
    """Write the record atomically."""
    write_atomic(path, to_json(record))


def read(path: Path) -> RunRecord:
    """Read and check a record. Raises UserError, naming the file, when it is not one or was changed since it was written."""
    try:
        text = files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: is not there", "name the folder of one run, PROTOCOL/TIER/METHOD/...-seedN") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", "make it readable, or move it away") from None
    try:
        content = DECODER.decode(text)
    except (ValueError, RecursionError):
        raise _not_json(path, text) from None
    if not isinstance(content, dict) or "schema" not in content:
        raise UserError(f"{path}: is not a run record", "move it out of the results folder")
    schema = content["schema"]
    if schema != SCHEMA or type(schema) is not int:
        raise UserError(
            f"{path}: has record schema {schema!r:.40}, this version reads {SCHEMA}",
            "read it with the version that wrote it, or move it away and run again",
        )
    claimed = content.pop("digest", None)
    try:
        if claimed != digest(content):
            raise UserError(
                f"{path}: was changed after it was written (its digest does not fit)", "restore it or delete it and run again"
            )
        del content["schema"]
        plain = _plain(content)
        record = msgspec.convert(plain, RunRecord)
        if any(plain["job"][name] != content["job"][name] for name in content["job"] if name != "origins"):
            raise ValueError("its job has control characters")  # they are part of what identifies it
        if wrong := misfit(record.job.settings, RECIPE):
            raise ValueError(f"the setting {wrong}")
        return record
    except (ValueError, RecursionError) as error:
        what = clean(str(error)) if isinstance(error, ValueError) else "nested too deeply"
        raise UserError(f"{path}: is not a valid run record ({what})", "delete it and run again") from None


def _plain(value: Any) -> Any:
    """A value from JSON with its text in one line (`clean`). Raises ValueError for a whole number beyond 64 bits."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {clean(name): _plain(item) for name, item in value.items()}
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("a number is too large")
    return value


def _not_json(path: Path, text: bytes) -> UserError:
    try:
        content = json.loads(text)  # Python's own reader accepts NaN, infinity, numbers beyond every float and half characters
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return UserError(f"{path}: contains half of a character (a lone surrogate)", "restore it or delete it and run again")
    except (ValueError, RecursionError):
        return UserError(f"{path}: is not a JSON file", "delete it and run again")
    return UserError(f"{path}: contains NaN, infinity or a number too large", "restore it or delete it and run again")


def read_of(job: Job, path: Path) -> RunRecord:
    """The record of this job. Raises UserError where the file holds another run's."""
    record = read(path)
    if replace(record.job, origins=job.origins) != job:
        raise UserError(f"{path}: holds the record of another run ({record.job})", "move it away and run again")
    return record


@contextmanager
def no_collection() -> Iterator[None]:
    """Without the garbage collector: records have no cycles, but thousands of lists, through which it would go each time."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def read_all(folder: Path) -> list[RunRecord]:
    """Every record below `folder`, in the order of their paths.

    Raises UserError for one that cannot be used (`read_usable`), and names all others of that kind too."""
    records, refused = read_usable(folder)
    if refused:
        raise UserError(not_ranked(refused))
    return records


def read_usable(folder: Path) -> tuple[list[RunRecord], dict[Path, str]]:
    """Every record below `folder`, in the order of their paths, and why others cannot be used: they are damaged, were changed, or
    were copied or moved there. Raises UserError where a folder cannot be read."""
    records, refused = [], {}
    with no_collection():
        for path in files.named_below(folder, RECORD):
            try:
                records.append(read_in_place(path))
            except UserError as error:
                refused[path] = str(error)
    return records, refused


def not_ranked(refused: Mapping[Path, str]) -> str:
    """Which records cannot be ranked, in one line: the reason of the first, and the names of the others."""
    first, *others = refused
    return refused[first] + (f"; nor can these be ranked: {', '.join(map(str, others))}" if others else "")


def record_paths(results: Path) -> list[Path]:
    """The records in a results folder, PROTOCOL/TIER/METHOD/RUN. Raises UserError where a folder cannot be read."""
    return [run / RECORD for run in files.folders_below(results, 4) if RECORD in files.listed(run)[1]]


def boards_with_records(results: Path) -> set[tuple[str, str]]:
    """Protocol and tier of every record in a results folder."""
    return {(path.parts[-5], path.parts[-4]) for path in record_paths(results)}


def read_board(results: Path, protocol: str, tier: str) -> tuple[list[RunRecord], dict[Path, str]]:
    """The records of a protocol and tier, and why others cannot be used, as `read_usable`.

    Raises UserError if none can, and if there are some of other boards alone, and names those."""
    folder = results / protocol / tier
    records, refused = read_usable(folder)
    if refused and not records:
        raise UserError(not_ranked(refused))
    if not records and (there := boards_with_records(results)):
        found = ", ".join(f"--protocol {name} --tier {tier}" for name, tier in sorted(there))
        raise UserError(f"{folder}: has no finished runs", f"there are some of {found}")
    return records, refused


def read_in_place(path: Path) -> RunRecord:
    """Read a record. Raises UserError for one that was copied or moved to this folder, too."""
    record = read(path)
    own = record.job.folder / RECORD
    if path.absolute().parts[-len(own.parts) :] != own.parts:
        raise UserError(f"{path}: does not belong in this folder", f"move it to {own} in a results folder, or away")
    return record
