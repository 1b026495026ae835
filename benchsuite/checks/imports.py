"""Results made elsewhere become unverified rows: the matrix is read and held against the protocol."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from pathlib import Path
from typing import Literal

import msgspec

from .. import files
from ..errors import UserError
from ..protocol import protocols
from ..record.imported import ADDRESS, Imported
from ..registry import suggest
from ..training.environment import now

Unit = Literal["percent", "fraction"]


def result_of(
    matrix: Path,
    *,
    unit: Unit,
    protocol: str,
    tier: str,
    method: str,
    seed: int,
    source: str,
    by: str,
    artifact: Path | None = None,
) -> Imported:
    """The result that a CSV file and these words describe. Raises UserError for what does not hold.

    The file has a row for each task learnt and a column for each task tested, both in the order of learning; cells may be empty
    where nothing was measured. A first row that names the tasks gives their order; without it they are in the order that the
    protocol has for the seed. Where there is such a row, a first column with names of rows is skipped."""
    content = _read(matrix)
    names, rows = _cells(matrix, content)
    chosen = protocols.get(protocol)
    order = [task.name for task in chosen.sequence(seed, chosen.recipe(tier))]
    if not names and len(rows) != len(order):
        raise UserError(
            f"{matrix}: has {len(rows)} rows, but {protocol} has {len(order)} tasks",
            "name its tasks in a first row, if it is of fewer",
        )
    values = [[None if cell is None else cell * (100 if unit == "fraction" else 1) for cell in row] for row in rows]
    known = [cell for row in rows for cell in row if cell is not None]
    most = 1 if unit == "fraction" else 100
    if wrong := next((cell for cell in known if not 0 <= cell <= most), None):
        raise UserError(f"{matrix}: {wrong:g} is no accuracy between 0 and {most}", "choose --unit percent or --unit fraction")
    if unit == "percent" and known and max(known) <= 1:
        raise UserError(f"{matrix}: no entry is above 1", "they look like fractions: choose --unit fraction")
    if not re.fullmatch(ADDRESS, source):
        raise UserError(f"{source!r:.200} is no address of a source", "write http(s)://... or doi:...")
    size = None if artifact is None else _read(artifact)
    try:
        result = msgspec.convert(
            {
                "protocol": protocol,
                "tier": tier,
                "method": method,
                "seed": seed,
                "tasks": names or order,
                "accuracy": values,
                "source": source,
                "by": by,
                "date": now(),
                "matrix_sha256": hashlib.sha256(content).hexdigest(),
                "stored_bytes": None if size is None else len(size),
                "artifact_sha256": None if size is None else hashlib.sha256(size).hexdigest(),
            },
            Imported,
        )
    except ValueError as error:
        raise UserError(f"{matrix}: cannot be imported: {error}") from None
    check(result)
    return result


def check(result: Imported) -> None:
    """Raises UserError for a result that does not agree with its protocol, if that is known here."""
    if result.protocol not in protocols.all():
        return
    chosen = protocols.get(result.protocol)
    chosen.recipe(result.tier)
    known = [task.name for task in chosen.tasks]
    for name in result.tasks:
        if name not in known:
            raise UserError(f"{result.protocol} has no task {name!r}", suggest(name, known))


def _read(path: Path) -> bytes:
    try:
        return files.read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _cells(path: Path, content: bytes) -> tuple[list[str], list[list[float | None]]]:
    """The names of the tasks, if the file has them, and its numbers."""
    try:
        lines = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"))) if row]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: is not a CSV file ({error})") from None
    names: list[str] = []
    if lines and (len(lines) == len(lines[0]) + 1 or _is_corner(lines[0])):  # names of tasks may be numbers
        first, *lines = lines
        labelled = len(first) == len(lines) + 1
        names = [cell.strip() for cell in first[labelled:]]
        lines = [line[labelled:] for line in lines]
    if not lines or any(len(line) != len(lines) for line in lines) or (names and len(names) != len(lines)):
        shape = " and ".join(sorted({str(len(line)) for line in lines})) or "no"
        raise UserError(f"{path}: has {len(lines)} rows of {shape} cells", "give a square matrix: a row for each task learnt")
    return names, [[_number(path, t, cell) for cell in line] for t, line in enumerate(lines)]


def _is_corner(row: list[str]) -> bool:
    """Whether a first row names columns, of which the first holds names of rows: there is no accuracy of the first task."""
    try:
        float(row[0] or "nan")
    except ValueError:
        return True
    return not row[0].strip() and any(cell.strip() for cell in row)


def _number(path: Path, row: int, cell: str) -> float | None:
    if cell.strip().lower() in ("", "nan"):
        return None
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{path}: row {row + 1} has {cell!r:.40}, which is no number") from None
