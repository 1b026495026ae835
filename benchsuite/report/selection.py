"""What a report shows and how: a selection, written in Python, read from a TOML file, or chosen sensibly."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_type_hints

import pandas as pd

from ..analysis.leaderboard import Leaderboard
from ..analysis.rows import names_of, rows_called
from ..errors import UserError
from ..fields import convert
from ..files import read
from ..record.schema import RunRecord
from ..registry import suggest
from .columns import COLUMNS, TITLES
from .looks import entry_of, labels_of

MOST = 12  # rows that are shown without a selection: more fill a page and crowd a figure
STATISTICS = tuple(dict.fromkeys(column.name for columns in COLUMNS.values() for column in columns))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row to show. name: its label on the board, or its method, which stands for all rows of that method. label: what readers
    see in its place. ours: whether it is marked as the authors' own."""

    name: str
    label: str = ""
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a report shows. What is empty is chosen sensibly.

    protocols, tiers: those with records. rows: in the order of every table; by default `default_rows`, the best first.
    compare: methods or rows that are tested against each other; by default those of `rows`, or else all that are ranked.
    boards: the tables to write. columns: the statistics of a board, in order, of this board or of another, or of the summary.
    digits: decimals of a statistic.
    fit: what a table must fit: a column of a two-column paper, its full width, or the line of a one-column paper.
    font: of the figures. siunitx: numbers in `S` columns. figures: their names; None for the usual ones.

    Raises UserError for a board, a statistic or a number of digits that cannot be.
    """

    protocols: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    compare: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    digits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    fit: Literal["column", "two-column", "page"] = "page"
    font: Literal["serif", "sans"] = "serif"
    siunitx: bool = False
    figures: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        asked = [name for names in self.columns.values() for name in names]
        known = (
            ("board", (*self.boards, *self.columns), (*TITLES, "summary")),
            ("column", (*asked, *self.digits), STATISTICS),
        )
        for what, names, there in known:
            for name in names:
                if name not in there:
                    raise UserError(f"no {what} is called {name!r}", suggest(name, there))
        for name, digits in self.digits.items():
            if not 0 <= digits <= 6:
                raise UserError(f"digits of {name} must be 0 to 6, got {digits}")
        for what, chosen in (("row", [row.name for row in self.rows]), *((f"column of {b}", c) for b, c in self.columns.items())):
            if twice := [name for i, name in enumerate(chosen) if name in chosen[:i]]:
                raise UserError(f"{what} {twice[0]!r} is named twice", "name it once")

    def rows_on(self, board: Leaderboard) -> dict[str, Row]:
        """The rows to show of a board, in order, by their labels on it; each with the label that readers see."""
        called, labels = _called(board), labels_of(board)
        if not self.rows:
            return {label: Row(name=label, label=labels[label]) for label in default_rows(board)}
        found: dict[str, Row] = {}
        for row in self.rows:
            for label in rows_called(row.name, called):
                shown = row.label + label.removeprefix(row.name) if row.label else labels[label]
                found.setdefault(label, Row(name=label, label=shown, ours=row.ours))
        return found

    def others_on(self, board: Leaderboard) -> list[str]:
        """The labels of the rows of a board that are not shown."""
        shown = self.rows_on(board)
        return [label for label in _called(board) if label not in shown]

    def frame(self, board: Leaderboard, kind: str) -> pd.DataFrame:
        """The rows to show of one of the four boards: in the order of the selection, or the best first where it names none."""
        shown, frame = list(self.rows_on(board)), getattr(board, kind)
        frame = frame[frame["method"].isin(shown)]
        return frame.sort_values("method", key=lambda names: names.map(shown.index)) if self.rows else frame

    def columns_of(self, kind: str) -> tuple[str, ...]:
        """The statistics that LaTeX may show of one of the four boards."""
        return self.columns.get(kind) or tuple(column.name for column in COLUMNS[kind] if column.screen)

    def check_rows(self, boards: Iterable[Leaderboard]) -> None:
        """Raises UserError for a row that none of the boards has."""
        known = {name for board in boards for names in _called(board).values() for name in names}
        for row in self.rows:
            if row.name not in known:
                raise UserError(f"no row is called {row.name!r}", suggest(row.name, known))


EXAMPLE = Path(__file__).with_name("paper.toml")  # a selection to start from, with comments


def read_selection(path: Path) -> Selection:
    """The selection in a TOML file: its keys are the fields of `Selection`, a row is a name or a table of the fields of `Row`.

    Raises UserError, with the name of the file, for a file that cannot be read, an unknown key, and a value that cannot be."""
    try:
        return _selection(tomllib.loads(read(path).decode()))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "`benchsuite report --example paper.toml` writes one to start from") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", "name a file that you may read") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read as TOML: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error.problem}", error.remedy) from None


def _selection(values: Mapping[str, Any]) -> Selection:
    kinds = _known(values, Selection)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name == "rows":
            if not isinstance(value, list):
                raise UserError(f"rows must be a list, got {value!r}", 'write rows = ["er", {name = "mine", ours = true}]')
            given[name] = tuple(map(_row, value))
        elif name in ("columns", "digits"):
            if not isinstance(value, dict):
                raise UserError(f"{name} must be a table, got {value!r}", f"write it below [{name}]")
            kind = int if name == "digits" else tuple[str, ...]
            given[name] = {key: convert(f"{name}.{key}", item, kind) for key, item in value.items()}
        else:
            given[name] = convert(name, value, kinds[name])
    return Selection(**given)


def _row(value: Any) -> Row:
    if isinstance(value, str):
        return Row(name=value)
    if not isinstance(value, dict) or "name" not in value:
        raise UserError(f"a row must be a name, or a table with one, got {value!r}", 'write "er" or {name = "er", label = "ER"}')
    kinds = _known(value, Row)
    return Row(**{name: convert(f"{name} of row {value['name']!r}", item, kinds[name]) for name, item in value.items()})


def _known(values: Mapping[str, Any], owner: type) -> dict[str, Any]:
    """The types of the fields of `owner`. Raises UserError for a key that is none of them."""
    names = [f.name for f in fields(owner)]
    for name in values:
        if name not in names:
            raise UserError(f"unknown key {name!r}", suggest(name, names))
    return get_type_hints(owner)


def _called(board: Leaderboard) -> dict[str, set[str]]:
    """What each row of a board may be called, by its label, in the order of the board of accuracy."""
    names, printed = names_of(board.runs), labels_of(board)
    labels = dict.fromkeys(label for kind in TITLES for label in getattr(board, kind)["method"])
    return {label: {printed[label], *names.get(label, {label})} for label in labels}


def default_rows(board: Leaderboard) -> list[str]:
    """The labels of at most `MOST` rows, the most accurate first: methods from a file of the user's and imported results, however
    many; the references; then the best of each family, the second best of each, and so on. Of a method the row with the fewest
    changed settings stands for the others, which come last with published figures."""
    labels = list(_called(board))
    if len(labels) <= MOST:
        return labels
    own = [
        label for label in labels if label in board.unverified or any(run.job.method_source for run in board.runs.get(label, ()))
    ]
    plain: dict[str, str] = {}  # method -> the row that stands for it
    for label in sorted(board.runs, key=lambda label: _changes(board.runs[label][0])):
        plain.setdefault(board.runs[label][0].job.base, label)
    by_family = defaultdict(list)
    for label in labels:
        if label in plain.values():
            by_family[entry_of(board.runs[label][0]).family].append(label)
    turns = {label: turn for family, rows in by_family.items() for turn, label in enumerate(rows) if family != "reference"}
    turns |= dict.fromkeys(by_family["reference"], -1)
    order = sorted(labels, key=lambda label: (label not in own, turns.get(label, len(labels)), labels.index(label)))
    return sorted(order[: max(MOST, len(own))], key=labels.index)


def _changes(run: RunRecord) -> tuple[bool, int, str]:
    """How far a configuration is from its method as it is: under a modifier, with how many settings changed."""
    return "+" in run.job.method, len(run.job.origins), run.job.config
