"""Leaderboards and the ledger as Markdown, CSV, parquet and on the screen: written, not computed.

Best and second best are decided by the printed numbers: rows that print the same number share bold or underline. Rows that are
not ranked (joint training, other tasks or images, published figures, unverified results, no memory measurement on the board of
training memory) have neither.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..analysis.leaderboard import SIZES, Leaderboard
from ..analysis.ledger import NAMES, RULE, summary
from ..analysis.notes import Note
from ..analysis.significance import ALPHA
from ..text import markdown_text
from .columns import COLUMNS, ORDER, TITLES, Column, decimals, meanings

DAGGER = "†"
ERRORS = (
    f"Of {DAGGER}: in simulations with a size reference the chance of any error in a column was at most 5.5 % with normal noise;"
    " with skewed noise and rows that vary unequally it was up to 12 % at five seeds and 20 % at ten."
)

TOLD = "‡"  # after the name of a method that knows how many tasks will come
ABOUT_SIZES = ("parameter_efficiency", "training_memory")
OF_COLUMN = {"served speed: ": "served_speed", "training MB ": "training_megabytes", "stored MB as ": "megabytes"}  # of notes
TEXTS = ("Method", "Published", "Figure", "Ours", "Verdict", "Reason")  # columns of text, aligned left


def numbers(board: Leaderboard, kind: str) -> pd.DataFrame:
    """One board (`kind` is a key of TITLES), unformatted, in full precision; each row has its provenance."""
    return getattr(board, kind).assign(protocol=board.protocol, tier=board.tier, provenance=board.provenance)


def to_csv(board: Leaderboard, kind: str) -> str:
    return csv(numbers(board, kind))


def csv(frame: pd.DataFrame) -> str:
    texts = {str(name): column.map(csv_cell) for name, column in frame.items() if not pd.api.types.is_numeric_dtype(column)}
    return frame.assign(**texts).to_csv(index=False, lineterminator="\n")


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; numbers, such as -3.2, stay as they are."""
    formula = isinstance(value, str) and re.match(r"[=@]|[+-](?!\d*\.?\d*(e[+-]?\d+)?$)", value)
    return f"'{value}" if formula else value


def parquet(frame: pd.DataFrame) -> bytes:
    """The same numbers, typed (`pandas.read_parquet`)."""
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()


def caption(
    board: Leaderboard,
    kind: str,
    frame: pd.DataFrame | None = None,
    columns: Sequence[Column] | None = None,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """What the numbers and marks of one table mean: n, intervals, columns, which rows are not ranked, the test.

    frame, columns: the rows and columns that the table has (default: all of the board). labels: what it calls the rows.
    """
    ordered = frame is None
    frame = getattr(board, kind) if frame is None else frame
    columns = shown(board, kind) if columns is None else columns
    rivals = frame[frame["competes"]]
    n = sorted(int(n) for n in frame["n"].dropna().unique())
    text = f"{TITLES[kind]} on {board.protocol}, tier {board.tier}: "
    if n and n[-1] > 1:
        text += f"mean ± {confidence_interval(n)} over n = {span(n)} seeds. "
    else:
        text += "one seed, so no intervals or tests. " if n else "figures from elsewhere. "
    text += f"{meanings(columns)} "
    text += f"{ORDER[kind]} " if ordered and kind in ORDER else ""

    def named(rows: Iterable[str]) -> str:
        return ", ".join(labels.get(row, row) for row in rows)

    others = [row for row in board.elsewhere if row in set(frame["method"])]
    unranked = frame[~frame["competes"] & ~frame["method"].isin(others)]
    unverified = unranked["method"].isin(board.unverified)
    blank = unranked["held"].isna() if kind == "training_memory" else pd.Series(False, index=unranked.index)
    reasons = [
        words
        for applies, words in (
            ((~unranked["published"] & ~blank).any(), "joint training"),
            ((unranked["published"] & ~unverified).any(), "published figures"),
            (unverified.any(), f"results made elsewhere that nobody has verified ({named(unranked['method'][unverified])})"),
            (bool(others), f"rows on other tasks or images ({named(others)})"),
            (blank.any(), "rows without a memory measurement"),
        )
        if applies
    ]
    text += f"Not ranked: {'; '.join(reasons)}. " if reasons else ""
    if frame["n_tasks_read"].any():
        text += f"{TOLD} knows the number of tasks in advance. "
    if len(rivals) < 2:
        return text.strip()
    text += f"Bold: best; underlined: second best{', by the printed numbers' if ordered else ''}. "

    compared: dict[int, dict[str, None]] = {}  # rows by the number of seeds that they share with the best
    for column in columns:
        for row in rivals[rivals[f"{column.name}_paired"].notna()].to_dict("records") if column.tested else ():
            compared.setdefault(int(row[f"{column.name}_paired"]), {})[row["method"]] = None
    tested = sorted(n for n in compared if n > 1)
    few = dict.fromkeys(row for n in compared if n < 2 for row in compared[n])
    if tested:
        family = int(getattr(board, kind)["competes"].sum())
        pairs = "these rows" if board.compared or family == len(rivals) else f"the {family} ranked rows of the whole board"
        text += (
            f"{DAGGER} not significantly different from the best{_of(board.compared, rivals, named)} (p > {ALPHA}), which does"
            f" not mean equal: moderated t-test of differences paired by seed, {span(tested)} shared seeds, Holm's correction"
            f" over all pairs of {pairs} (those with a reference apart). "
        )
    if few and n[-1] > 1:
        text += "No difference can be tested without two seeds shared with the best"
        text += f": {named(few)}." if tested else "."
    return text.strip()


def _of(compared: Sequence[str], rivals: pd.DataFrame, named: Callable[[Iterable[str]], str]) -> str:
    """Of which rows a row is the best, where it is not all that are ranked."""
    if not compared:
        return ""
    return " of the rows shown" if {*rivals["method"]} <= {*compared} else f" of {named(compared)}"


def notes_of(board: Leaderboard, columns: Collection[str] | None = None) -> list[Note]:
    """What stands below the tables of a board, once. columns: the statistics that the tables show (default: all)."""
    tests = [(kind, column) for kind in TITLES for column in shown(board, kind) if column.tested]
    tested = any((getattr(board, kind)[f"{column.name}_paired"] > 1).any() for kind, column in tests)
    notes = [
        note
        for note in board.footnotes
        if columns is None or all(name in columns for start, name in OF_COLUMN.items() if note.startswith(start))
    ]
    return [*notes, *([Note(ERRORS)] if tested else [])]


def to_markdown(board: Leaderboard, kind: str, footnotes: bool = True) -> str:
    """One board as a Markdown table, with its caption and provenance below."""
    wrap = {"best": "**{}**", "second": "<ins>{}</ins>"}
    cells, reasons = _without_reasons(_marked(board, kind, wrap, markdown_text))
    listed = [note for note in notes_of(board) if kind in ABOUT_SIZES or note not in board.size_notes] if footnotes else []
    notes = "".join(f"- {note}\n" for note in [*reasons, *map(markdown_text, listed)])
    return (
        f"## {TITLES[kind]}\n\n{_markdown(cells)}\n{markdown_text(caption(board, kind))}\n\n{markdown_text(board.provenance)}\n"
        + (f"\n{notes}" if notes else "")
    )


def _without_reasons(cells: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The cells with a bare "n/a", and each reason, too long for a cell, with its rows."""
    reasons: dict[str, list[str]] = {}
    for _, row in cells.iterrows():
        for text in dict.fromkeys(text for text in row.iloc[1:] if text.startswith("n/a: ")):
            reasons.setdefault(text, []).append(row.iloc[0])
    notes = [f"{reason} ({', '.join(rows)})" for reason, rows in reasons.items()]
    return cells.map(lambda text: "n/a" if text in reasons else text), notes


def print_boards(board: Leaderboard, console: Console) -> None:
    """The four boards on the screen, each with its caption, then provenance and footnotes."""
    every: dict[str, None] = {}
    seen = {kind: [column for column in shown(board, kind) if column.screen] for kind in TITLES}
    for kind, title in TITLES.items():
        cells, reasons = _without_reasons(cell_texts(board, kind, narrow=True))
        every |= dict.fromkeys(reasons)
        marks = best_and_second(board, kind)
        # Text, not str: rich would read the brackets of a label as markup.
        table = Table(
            title=Text(title),
            caption=Text(caption(board, kind, columns=seen[kind])),
            title_justify="left",
            caption_justify="left",
        )
        for position, heading in enumerate(cells.columns):
            # a name may be folded, never cut short, but must leave room for the other columns
            wide = None if position else min(24, console.width // 4, max(map(len, cells["Method"])))
            table.add_column(Text(heading), justify="right" if position else "left", overflow="fold", width=wide)
        styles = {"best": "bold", "second": "underline"}
        for i, row in cells.iterrows():
            table.add_row(*(Text(text, styles.get(marks.get((i, heading), ""), "")) for heading, text in row.items()))
        console.print(table, crop=False)
    columns = {column.name for kind in TITLES for column in seen[kind]}
    for note in (board.provenance, *every, *notes_of(board, columns=columns)):
        console.print(Text(f"- {note}"))


def ledger_markdown(frame: pd.DataFrame) -> str:
    """The ledger as Markdown: a summary of what is reproduced, then every figure, then the sources."""
    cells = ledger_cells(frame).map(markdown_text)
    sources = "".join(f"- {markdown_text(text)}\n" for text in ledger_sources(frame))
    said = "".join(f"- {markdown_text(line)}\n" for line in summary(frame))
    return f"# Reproduction ledger\n\n{said}\n{_markdown(cells)}\n{RULE}\n\nSources:\n\n{sources}"


def shown(board: Leaderboard, kind: str) -> list[Column]:
    return fitted(COLUMNS[kind], getattr(board, kind))


def fitted(columns: Iterable[Column], frame: pd.DataFrame) -> list[Column]:
    """The columns that have anything to show of these rows, with their decimals; the first accuracy is the one that is tested."""
    kept = [column for column in columns if not column.optional or frame[column.name].notna().any()]
    tested = next((column.name for column in kept if column.best and column.name not in SIZES), "")
    sizes = {column.name: decimals(frame[column.name].dropna()) for column in kept if column.digits is None}
    return [replace(column, places=sizes.get(column.name), tested=column.name == tested) for column in kept]


def confidence_interval(seeds: Collection[int]) -> str:
    return f"95 % confidence interval (Student's t{'; with two seeds 12.7 standard errors' if 2 in seeds else ''})"


def span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _markdown(cells: pd.DataFrame) -> str:
    rule = ["---" if heading in TEXTS else "---:" for heading in cells.columns]
    lines = [" | ".join(row) for row in [list(cells.columns), rule, *cells.to_numpy().tolist()]]
    return "".join(f"| {line} |\n" for line in lines)


def _marked(
    board: Leaderboard, kind: str, wrap: dict[str, str], escape: Callable[[str], str], narrow: bool = False
) -> pd.DataFrame:
    """The cells as text, best and second best wrapped."""
    cells, marks = cell_texts(board, kind, narrow).map(escape), best_and_second(board, kind)
    for (i, heading), mark in marks.items():
        if heading in cells:
            cells.loc[i, heading] = wrap[mark].format(cells.loc[i, heading])
    return cells


def best_and_second(board: Leaderboard, kind: str) -> dict[tuple[int, str], str]:
    """ "best" or "second", by row and heading: among the ranked rows, by the printed number."""
    return best_of(getattr(board, kind), shown(board, kind))


def best_of(frame: pd.DataFrame, columns: Iterable[Column]) -> dict[tuple[int, str], str]:
    """The same of these rows, by their index, and columns."""
    marks: dict[tuple[int, str], str] = {}
    for column in columns:
        rivals = frame[frame["competes"] & frame[column.name].notna()] if column.best else frame[:0]
        if len(rivals) < 2:
            continue
        printed = rivals[column.name].map(lambda value, column=column: float(number(value, column)))
        order = sorted(set(printed), reverse=column.best == "max")
        for place, value in zip(("best", "second"), order, strict=False):
            marks |= dict.fromkeys([(i, column.heading) for i in printed.index[printed == value]], place)
    return marks


def cell_texts(board: Leaderboard, kind: str, narrow: bool = False) -> pd.DataFrame:
    """The board as text, with headings as column names."""
    frame, marks = getattr(board, kind), best_and_second(board, kind)
    columns = [column for column in shown(board, kind) if column.screen or not narrow]
    rows = list(enumerate(frame.to_dict("records")))
    cells = {c.heading: [cell_text(row, c, best=marks.get((i, c.heading)) == "best") for i, row in rows] for c in columns}
    names = [f"{row['method']} {TOLD}" if row["n_tasks_read"] else str(row["method"]) for _, row in rows]
    return pd.DataFrame({"Method": names, **cells}, dtype=object)


def cell_text(row: dict, column: Column, best: bool = False) -> str:
    value, interval = row[column.name], row.get(f"{column.name}_ci")
    if isinstance(value, bool):
        return "yes" if value else ""
    if pd.isna(value):
        note = row.get(f"{column.name}_note")
        return note if isinstance(note, str) else "–"
    least = 10.0 ** -_digits(value, column)
    text = f"<{least:g}" if column.digits is None and 0 < value < least / 2 else number(value, column)
    mark = f" {row[column.word]}" if column.word else ""
    mark += f" {DAGGER}" if column.tested and not best and row.get(f"{column.name}_p", 0) > ALPHA else ""
    if interval is None or pd.isna(interval) or (column.digits is None and round(interval, _digits(value, column)) == 0):
        return text + mark  # a size that is the same for every seed needs no interval
    return f"{text} ± {interval:.{_digits(value, column)}f}{mark}"


def number(value: float, column: Column) -> str:
    return "0" if column.digits is None and value == 0 else f"{value:z.{_digits(value, column)}f}"


def _digits(value: float, column: Column) -> int:
    known = column.digits if column.digits is not None else column.places
    return decimals([value]) if known is None else known


def ledger_cells(frame: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for row in frame.to_dict("records"):
        interval = "" if pd.isna(row["ci"]) else f" ± {row['ci']:.2f}"
        there = row["n"] > 0
        rows.append(
            {
                "Published": f"{row['published']}, {row['protocol']}",
                "Figure": NAMES[row["measure"]],
                "Value": f"{row['value']:.2f}",
                "Ours": f"{row['ours']}, {row['tier']}, {row['precision']}" if there else "–",
                "Mean": f"{row['mean']:z.2f}{interval}" if there and pd.notna(row["mean"]) else "–",
                "n": f"{row['n']:.0f}",
                "Verdict": row["verdict"],
                "Reason": row["reason"],
            }
        )
    columns = ["Published", "Figure", "Value", "Ours", "Mean", "n", "Verdict", "Reason"]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def ledger_sources(frame: pd.DataFrame) -> list[str]:
    groups: dict[str, dict[str, None]] = {}
    for row in frame.to_dict("records"):
        groups.setdefault(row["source"], {})[f"{row['published']} on {row['protocol']}"] = None
    return [f"{', '.join(who)}: {source}" for source, who in groups.items() if source]
