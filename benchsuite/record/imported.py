"""Results made elsewhere: accuracy matrices that this suite did not measure.

They are no records and lie in files of another name, so that nothing can take one for a run. Boards show them as unverified rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import pandas as pd

from .. import files
from ..errors import UserError
from ..files import digest
from . import metrics
from .schema import Count, Part, Positive, check_folder_name

IMPORTED = "imported.json"
SCHEMA = 1
REMEDY = "import it again with `benchsuite import`, or move it away"

PerCent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
ADDRESS = r"\A(https?://|doi:)\S+\Z"
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class Imported(Part, frozen=True, dict=True):
    """The result of one seed of a method, as somebody states it.

    tasks: their names in the order of learning. accuracy: T x T in per cent, as the accuracy matrix of a record; None where it
    was not measured. source: an address (http, https or doi) where it is stated. by: who made it. date: when it was imported.
    matrix_sha256: of the file that it was read from. stored_bytes, artifact_sha256: of the file that serves all tasks, if given.
    """

    protocol: str
    tier: str
    method: str
    seed: Count
    tasks: Annotated[list[str], msgspec.Meta(min_length=1)]
    accuracy: list[list[PerCent | None]]
    source: Annotated[Text, msgspec.Meta(pattern=ADDRESS)]
    by: Text
    date: Text
    matrix_sha256: Digest
    stored_bytes: Positive | None = None
    artifact_sha256: Digest | None = None

    def __post_init__(self) -> None:
        for name in ("protocol", "tier", "method"):
            check_folder_name(name, getattr(self, name))
        for text in (self.by, self.source, self.date, *self.tasks):
            if not text.isprintable():
                raise ValueError(f"{text!r:.120} has characters that cannot be shown")
        n = len(self.tasks)
        if len(set(self.tasks)) != n:
            raise ValueError("a task is named twice")
        if [len(row) for row in self.accuracy] != [n] * n:
            raise ValueError(f"the matrix must have {n} rows of {n} entries, one for each task")
        if None in self.accuracy[-1]:
            raise ValueError("every task must have been tested after the last one")
        for t, row in enumerate(self.accuracy[:-1]):
            if None in row[: t + 1] and row != [None] * n:
                raise ValueError(f"row {t + 1} has no accuracy of one of the first {t + 1} tasks")
        if (self.stored_bytes is None) != (self.artifact_sha256 is None):
            raise ValueError("a size comes with the digest of its file")

    @cached_property
    def R(self) -> np.ndarray:
        """The accuracy matrix (T x T, per cent), NaN where it was not measured."""
        return np.array(self.accuracy, dtype=float)

    @property
    def config(self) -> str:
        """Twelve hexadecimal digits: results that may be averaged share them."""
        names = ("protocol", "tier", "method", "source", "by")
        return digest([*(getattr(self, name) for name in names), sorted(self.tasks)])[:12]

    @property
    def folder(self) -> Path:
        """Where it lies, below the results folder. The name depends on the content, so that no other result takes its place."""
        content = {name: value for name, value in msgspec.to_builtins(self).items() if name != "date"}
        return Path(self.protocol, self.tier, self.method, f"imported-{digest(content)[:12]}")

    def statistics(self) -> dict[str, float]:
        """What a board shows of it: per cent and points; bytes for its size."""
        return {
            "accuracy": metrics.average_accuracy(self.R),
            "anytime_accuracy": metrics.anytime_accuracy(self.R),
            "learning_accuracy": metrics.learning_accuracy(self.R),
            "bwt": metrics.backward_transfer(self.R),
            "forgetting": metrics.forgetting(self.R),
            "megabytes": np.nan if self.stored_bytes is None else float(self.stored_bytes),
        }


def rows_of(results: Iterable[Imported]) -> dict[str, list[Imported]]:
    """The results that may be averaged, by the label of their row, which says that they are unverified.

    Raises UserError for two results of one seed."""
    groups: dict[str, dict[str, list[Imported]]] = {}
    for result in results:
        groups.setdefault(result.method, {}).setdefault(result.config, []).append(result)
    rows = {}
    for method, configs in groups.items():
        for config, group in configs.items():
            seeds = [result.seed for result in group]
            if len(set(seeds)) < len(seeds):
                twice = ", ".join(str(result.folder) for result in group if seeds.count(result.seed) > 1)
                raise UserError(f"imported twice with the same seed: {twice}", "move one of them away")
            label = f"{method} (unverified)" if len(configs) == 1 else f"{method} (unverified, {config})"
            rows[label] = sorted(group, key=lambda result: result.seed)
    return dict(sorted(rows.items()))


def table_of(group: Iterable[Imported]) -> pd.DataFrame:
    """The statistics of each result of a row, one after another."""
    return pd.DataFrame([result.statistics() for result in group])


def write(result: Imported, results: Path) -> bool:
    """Put a result into a results folder. False if it is there already. Raises UserError for another one in its place."""
    path = results / result.folder / IMPORTED
    if path.exists():
        read(path)
        return False
    for other in files.named_below(path.parents[1], IMPORTED) if path.parents[1].exists() else ():
        if _identity(read(other)) == _identity(result):
            raise UserError(f"{other}: is another result of this method, source and seed", "move it away first")
    content = {"schema": SCHEMA, **msgspec.to_builtins(result)}
    files.write_atomic(path, json.dumps({**content, "digest": digest(content)}, indent=1) + "\n")
    return True


def _identity(result: Imported) -> tuple[str, str, int]:
    return result.method, result.config, result.seed


def read(path: Path) -> Imported:
    """Read and check a result. Raises UserError, naming the file, when it is not one or was changed since it was imported."""
    try:
        content = msgspec.json.decode(files.read(path))
        schema = content.pop("schema", None) if isinstance(content, dict) else None
        if schema != SCHEMA or type(schema) is not int:
            raise UserError(f"{path}: is no imported result of this version", REMEDY)
        if content.pop("digest", None) != digest({"schema": SCHEMA, **content}):
            raise UserError(f"{path}: was changed after it was imported (its digest does not fit)", REMEDY)
        return msgspec.convert(content, Imported)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", REMEDY) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not a valid imported result ({error})", REMEDY) from None


def read_board(folder: Path) -> tuple[list[Imported], dict[Path, str]]:
    """The imported results of a protocol and tier, and why others cannot be used. folder: that of the board."""
    found: dict[Path, Imported] = {}
    refused: dict[Path, str] = {}
    for path in files.named_below(folder, IMPORTED):
        try:
            result = read(path)
            if path.absolute().parts[-5:] != (*result.folder.parts, IMPORTED):
                raise UserError(f"{path}: does not belong in this folder", f"move it to {result.folder / IMPORTED}, or away")
            found[path] = result
        except UserError as error:
            refused[path] = str(error)
    times = Counter(map(_identity, found.values()))
    twins = [path for path, result in found.items() if times[_identity(result)] > 1]
    refused |= dict.fromkeys(twins, "there are several results of this method, source and seed; move all but one away")
    return [result for path, result in found.items() if path not in refused], refused
