"""Records as files: written whole, read with every check."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec.structs import replace

from ..errors import UserError
from ..files import digest, write_atomic
from .schema import SCHEMA, Job, RunRecord

if TYPE_CHECKING:
    import pandas as pd

RECORD = "record.json"  # the name of every record; those of the other files of a run are in `folder`

DECODER = msgspec.json.Decoder()  # twice as fast as `json`


def to_json(record: RunRecord) -> str:
    """The record as it is written. Raises ValueError, naming the key, for what could not be read back."""
    content = {"schema": SCHEMA, **msgspec.to_builtins(record)}
    for name, value in content.items():
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
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: is not there", "name the folder of one run, PROTOCOL/TIER/METHOD/...-seedN") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", "make it readable, or move it away") from None
    try:
        content = DECODER.decode(text)
    except (ValueError, RecursionError):
        raise _not_json(path, text) from None
    if not isinstance(content, dict) or "schema" not in content:
        raise UserError(f"{path}: is not a run record", "move it out of the results folder")
    if content["schema"] != SCHEMA:
        raise UserError(
            f"{path}: has record schema {content['schema']!r}, this version reads {SCHEMA}",
            "read it with the version that wrote it, or move it away and run again",
        )
    claimed = content.pop("digest", None)
    if claimed != digest(content):
        raise UserError(
            f"{path}: was changed after it was written (its digest does not fit)", "restore it or delete it and run again"
        )
    del content["schema"]
    try:
        return msgspec.convert(content, RunRecord)
    except ValueError as error:
        raise UserError(f"{path}: is not a valid run record ({error})", "delete it and run again") from None


def _not_json(path: Path, text: bytes) -> UserError:
    try:
        json.loads(text)  # Python's own reader accepts NaN, infinity and numbers beyond every float
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

    Raises UserError for one that cannot be trusted, or was copied or moved there, and names all others of that kind too."""
    found = (os.path.join(place, RECORD) for place, _, files in os.walk(folder) if RECORD in files)
    paths = [Path(path) for path in sorted(found, key=lambda path: path.split(os.sep))]
    records, refused = [], {}
    with no_collection():
        for path in paths:
            try:
                records.append(_in_its_place(path))
            except UserError as error:
                refused[path] = str(error)
    if refused:
        first, *others = refused
        more = f"; nor can these be ranked: {', '.join(map(str, others))}" if others else ""
        raise UserError(f"{refused[first]}{more}")
    return records


def record_paths(results: Path) -> Iterator[Path]:
    """The records in a results folder, PROTOCOL/TIER/METHOD/RUN."""
    return results.glob(f"*/*/*/*/{RECORD}")


def boards_with_records(results: Path) -> set[tuple[str, str]]:
    """Protocol and tier of every record in a results folder."""
    return {(path.parts[-5], path.parts[-4]) for path in record_paths(results)}


def read_board(results: Path, protocol: str, tier: str) -> list[RunRecord]:
    """The records of a protocol and tier. Raises UserError if there are some of other boards alone, and names those."""
    folder = results / protocol / tier
    records = read_all(folder)
    if not records and (there := boards_with_records(results)):
        found = ", ".join(f"--protocol {name} --tier {tier}" for name, tier in sorted(there))
        raise UserError(f"{folder}: has no finished runs", f"there are some of {found}")
    return records


def records(folder: str | Path) -> pd.DataFrame:
    """All records below a folder as one table: a row for each run, each number of tasks learnt and each task measured then.

    after: how many tasks had been learnt. position, task, dataset: the task tested, by its place in the order of learning, and by
    name. accuracy: in per cent. The other columns describe the run as a whole: final_accuracy, bwt and forgetting as in
    `RunRecord`, megabytes of its artifact, configuration (`Job.config`: runs that may be averaged share it) and path.
    """
    import pandas as pd

    found = read_all(Path(folder))
    runs = pd.DataFrame([_described(record) for record in found], columns=list(RUN_COLUMNS))
    tables = []
    for record in found:
        R = record.R
        after, position = np.nonzero(~np.isnan(R))
        tasks = [record.tasks[i] for i in position]
        columns = {"task": [task.name for task in tasks], "dataset": [task.dataset for task in tasks]}
        tables.append(pd.DataFrame({"after": after + 1, "position": position + 1, **columns, "accuracy": R[after, position]}))
    if not tables:
        return runs.reindex(columns=[*RUN_COLUMNS, "after", "position", "task", "dataset", "accuracy"])
    repeated = runs.loc[runs.index.repeat([len(table) for table in tables])].reset_index(drop=True)
    return pd.concat([repeated, pd.concat(tables, ignore_index=True)], axis=1)


JOB_COLUMNS = ("protocol", "tier", "method", "seed", "precision")
RUN_COLUMNS = (*JOB_COLUMNS, "configuration", "final_accuracy", "bwt", "forgetting", "megabytes", "device", "date", "path")


def _described(record: RunRecord) -> dict[str, Any]:
    return {name: getattr(record.job, name) for name in JOB_COLUMNS} | {
        "configuration": record.job.config,
        "final_accuracy": record.accuracy,
        "bwt": record.bwt,
        "forgetting": record.forgetting,
        "megabytes": record.megabytes,
        "device": record.environment.device_name,
        "date": record.environment.date,
        "path": str(record.job.folder),
    }


def _in_its_place(path: Path) -> RunRecord:
    record = read(path)
    own = record.job.folder / RECORD
    if path.absolute().parts[-len(own.parts) :] != own.parts:
        raise UserError(f"{path}: does not belong in this folder", f"move it to {own} in a results folder, or away")
    return record
