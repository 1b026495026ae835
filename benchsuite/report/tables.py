"""Leaderboards as Markdown, CSV, LaTeX (booktabs) and on the screen. Nothing is computed here, only written."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..leaderboard import Leaderboard


@dataclass(frozen=True)
class Column:
    """How a statistic is printed.

    digits: decimals; None for two, three below 1 (sizes and ratios span orders of magnitude).
    best: "max" or "min" where one end is better: bold in LaTeX.
    optional: left out where no row has it.
    screen: whether it is among the columns shown on the screen, which is narrower than a page.
    """

    heading: str
    name: str
    digits: int | None = None
    best: str = ""
    screen: bool = True
    optional: bool = False


TITLES = {
    "accuracy": "Accuracy",
    "backward_transfer": "Backward transfer",
    "parameter_efficiency": "Parameter efficiency",
    "training_memory": "Training memory",
}
COLUMNS = {
    "accuracy": [
        Column("Accuracy (%)", "accuracy", 2, "max"),
        Column("Learning accuracy (%)", "learning_accuracy", 2, "max"),
        Column("Forward gain", "forward_gain", 2, "max"),
        Column("n", "n", 0),
    ],
    "backward_transfer": [
        Column("Backward transfer", "bwt", 2, "max"),
        Column("Forgetting", "forgetting", 2, "min"),
        Column("n", "n", 0),
    ],
    "parameter_efficiency": [
        Column("MB", "megabytes", None, "min"),
        Column("Weights (MB)", "weights", screen=False),
        Column("Heads (MB)", "heads", screen=False),
        Column("Masks (MB)", "masks", screen=False),
        Column("Other (MB)", "other", screen=False),
        Column("Size / individual", "ratio", None, "min"),
        Column("Compression", "compression", None, "max", screen=False),  # the inverse of the column before
        Column("MB / task", "added", None, "min", screen=False),
        Column("MACs (M)", "macs", None, "min"),
        Column("Dense MACs (M)", "dense_macs", None, screen=False),
        Column("Training MB", "training_megabytes", screen=False),
        Column("Accuracy (%)", "accuracy", 2, "max"),
        Column("At matched size (%)", "matched_accuracy", 2, "max", optional=True),
        Column("Pareto", "pareto"),
        Column("n", "n", 0),
    ],
    "training_memory": [
        Column("Held (MB)", "held", None, "min"),
        Column("Peak (MB)", "peak", None, "min"),
        Column("Formula (MB)", "formula", None, optional=True),  # what a paper counts: never without the other two
        Column("Step time / unmodified", "step_time", 2, optional=True),
        Column("Training MB", "training_megabytes", screen=False),
        Column("Accuracy (%)", "accuracy", 2, "max"),
        Column("Pareto", "pareto"),
        Column("n", "n", 0),
    ],
}


def to_csv(board: Leaderboard, kind: str) -> str:
    """The numbers of one board (`kind` is a key of TITLES), unformatted, in full precision; each row says where it is from."""
    frame = getattr(board, kind).assign(protocol=board.protocol, tier=board.tier, provenance=board.provenance)
    return frame.to_csv(index=False, lineterminator="\n")


def to_markdown(board: Leaderboard, kind: str, footnotes: bool = True) -> str:
    """One board as a Markdown table, with its provenance below."""
    cells = _cells(board, kind).map(lambda text: text.replace("|", r"\|"))
    rule = ["---", *["---:"] * (len(cells.columns) - 1)]
    lines = [" | ".join(row) for row in [list(cells.columns), rule, *cells.to_numpy().tolist()]]
    notes = "".join(f"- {note}\n" for note in board.footnotes) if footnotes else ""
    table = "".join(f"| {line} |\n" for line in lines)
    return f"## {TITLES[kind]}\n\n{table}\n{board.provenance}\n" + (f"\n{notes}" if notes else "")


def to_latex(board: Leaderboard, kind: str) -> str:
    """One board as a LaTeX table for the `booktabs` package; the best value of a column is bold, notes stand below."""
    frame, cells = getattr(board, kind), _cells(board, kind)
    bold = pd.DataFrame("", index=cells.index, columns=cells.columns)
    for column in shown(board, kind):
        if column.best:
            best = cells.loc[frame[column.name] == frame[column.name].agg(column.best), column.heading]
            bold.loc[cells[column.heading].isin(best), column.heading] = "textbf: --rwrap"
    style = cells.style.format(_latex).format_index(_latex, axis="columns").hide(axis="index")
    table = style.apply(lambda _: bold, axis=None).to_latex(
        hrules=True,
        position_float="centering",
        column_format="l" + "r" * (len(cells.columns) - 1),
        caption=f"{TITLES[kind]} on {_latex(board.protocol)}, tier {_latex(board.tier)}.",
        label=f"tab:{kind.replace('_', '-')}-{board.protocol}-{board.tier}",
    )
    notes = "".join(f"\n\\par\\footnotesize {_latex(note)}" for note in [board.provenance, *board.footnotes])
    return table.replace("\n\\end{table}", f"{notes}\n\\end{{table}}")


def print_boards(board: Leaderboard, console: Console) -> None:
    """The four boards on the screen, each with its provenance, then the footnotes."""
    for kind, title in TITLES.items():
        cells = _cells(board, kind, screen=True)
        # Text, not str: rich would read the brackets of a label as markup.
        table = Table(title=Text(title), caption=Text(board.provenance), title_justify="left", caption_justify="left")
        for position, heading in enumerate(cells.columns):
            # a name may be folded, never cut short; on a narrow screen the other columns need their room too
            wide = 0 if position else min(24, console.width // 6, max(map(len, cells["Method"])))
            table.add_column(Text(heading), justify="right" if position else "left", overflow="fold", min_width=wide)
        for row in cells.to_numpy():
            table.add_row(*map(Text, row))
        console.print(table, crop=False)
    for note in board.footnotes:
        console.print(Text(f"- {note}"))


def shown(board: Leaderboard, kind: str) -> list[Column]:
    frame = getattr(board, kind)
    return [column for column in COLUMNS[kind] if not column.optional or frame[column.name].notna().any()]


def _cells(board: Leaderboard, kind: str, screen: bool = False) -> pd.DataFrame:
    """The board as it is read: text only, headings as column names."""
    frame = getattr(board, kind)
    columns = [column for column in shown(board, kind) if column.screen or not screen]
    cells = {column.heading: [_cell(row, column) for row in frame.to_dict("records")] for column in columns}
    return pd.DataFrame({"Method": frame["method"].astype(str), **cells}, dtype=object)


def _cell(row: dict, column: Column) -> str:
    value, interval = row[column.name], row.get(f"{column.name}_ci")
    if isinstance(value, bool):
        return "yes" if value else ""
    if pd.isna(value):
        note = row.get(f"{column.name}_note")
        return note if isinstance(note, str) else "–"
    if column.digits is None and value == 0:
        return "0"
    digits = column.digits if column.digits is not None else 2 if value >= 1 else 3
    text = f"{value:z.{digits}f}"
    if interval is None or pd.isna(interval) or (column.digits is None and round(interval, digits) == 0):
        return text  # a size that is the same for every seed needs no interval
    return f"{text} ± {interval:.{digits}f}"


_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "–": "--",
        "`": r"\textasciigrave{}",
        "<": "$<$",
        ">": "$>$",
    }
)


def _latex(text: str) -> str:
    return text.translate(_LATEX)
