"""Leaderboards and the ledger as LaTeX (booktabs), Markdown, CSV, parquet and on the screen: written, not computed.

Best and second are decided by what is printed: rows whose numbers read alike share bold or underline, whatever digits were cut
off, and the interval does not matter. Rows that do not compete (all tasks at once, other tasks, published ones, on the board of
training memory those without it) have neither.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..analysis.leaderboard import BETTER, SIZES, Leaderboard
from ..analysis.ledger import NAMES, RULE, summary
from ..analysis.significance import ALPHA


@dataclass(frozen=True)
class Column:
    """How a statistic is printed.

    digits: decimals; None for two, three below 1 (sizes and ratios span orders of magnitude).
    optional: left out where no row has it.
    screen: whether it is among the columns of the screen and of LaTeX, which are narrow.
    """

    heading: str
    name: str
    digits: int | None = None
    screen: bool = True
    optional: bool = False

    @property
    def best(self) -> str:
        """ "max" or "min" where one end is better, else ""."""
        return BETTER.get(self.name, "")


TITLES = {
    "accuracy": "Accuracy",
    "backward_transfer": "Backward transfer",
    "parameter_efficiency": "Parameter efficiency",
    "training_memory": "Training memory",
}
COLUMNS = {
    "accuracy": [
        Column("Accuracy (%)", "accuracy", 2),
        Column("Learning accuracy (%)", "learning_accuracy", 2),
        Column("Forward gain", "forward_gain", 2),
        Column("n", "n", 0),
    ],
    "backward_transfer": [
        Column("Backward transfer", "bwt", 2),
        Column("Forgetting", "forgetting", 2),
        Column("n", "n", 0),
    ],
    "parameter_efficiency": [
        Column("MB", "megabytes"),
        Column("Weights (MB)", "weights", screen=False),
        Column("Heads (MB)", "heads", screen=False),
        Column("Masks (MB)", "masks", screen=False),
        Column("Other (MB)", "other", screen=False),
        Column("Size / individual", "ratio"),
        Column("Compression", "compression", screen=False),  # the inverse of the column before
        Column("MB / task", "added", screen=False),
        Column("MACs (M)", "macs"),
        Column("Dense MACs (M)", "dense_macs", screen=False),
        Column("Training MB", "training_megabytes", screen=False),
        Column("Accuracy (%)", "accuracy", 2),
        Column("At matched size (%)", "matched_accuracy", 2, optional=True),
        Column("Pareto", "pareto"),
        Column("n", "n", 0),
    ],
    "training_memory": [
        Column("Held (MB)", "held"),
        Column("Peak (MB)", "peak"),
        Column("Formula (MB)", "formula", optional=True),  # what a paper counts: never without the other two
        Column("Step time ratio", "step_time", 2, optional=True),
        Column("Training MB", "training_megabytes", screen=False),
        Column("Accuracy (%)", "accuracy", 2),
        Column("Pareto", "pareto"),
        Column("n", "n", 0),
    ],
}
SAYS = {  # what the columns are, and the order of rows where it is not that of the first column
    "accuracy": (
        "Accuracy: mean over the tasks after the last one; learning accuracy: of each task when it had been learnt; forward gain:"
        " the latter from the second task on, less that of a network of its own."
    ),
    "backward_transfer": (
        "Backward transfer: mean change in accuracy of the tasks but the last since each was learnt; forgetting: mean fall"
        " from the best accuracy that each had."
    ),
    "parameter_efficiency": (
        "MB: of the file that serves all tasks; individual: a network for each task; Pareto: none that competes is as small and"
        " as accurate: these first, then by size."
    ),
    "training_memory": (
        "Memory of a training step: held for its backward pass, the most allocated, and what papers count; Pareto: none that"
        " competes holds as little and is as accurate: these first, then by what is held."
    ),
}
DAGGER = "†"
ABOUT_SIZES = ("parameter_efficiency", "training_memory")
TEXTS = ("Method", "Published", "Figure", "Ours", "Verdict", "Reason")  # columns of words, not of numbers
ARTICLE = 345  # points: the width of a line
TYPES = (("footnotesize", 4.3, 6), ("footnotesize", 4.3, 3), ("scriptsize", 4.0, 3))  # a character, half a gap: in points
LEDGER_WIDTHS = {"Published": 0.15, "Ours": 0.12, "Verdict": 0.1, "Reason": 0.19}  # shares of a line


def numbers(board: Leaderboard, kind: str) -> pd.DataFrame:
    """One board (`kind` is a key of TITLES), unformatted, in full precision; each row says where it is from."""
    return getattr(board, kind).assign(protocol=board.protocol, tier=board.tier, provenance=board.provenance)


def to_csv(board: Leaderboard, kind: str) -> str:
    return csv(numbers(board, kind))


def csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n")


def parquet(frame: pd.DataFrame) -> bytes:
    """The same numbers for other tools (`pandas.read_parquet`): typed, no parsing."""
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()


def caption(board: Leaderboard, kind: str) -> str:
    """What a reader must know of the marks of one table: n, the interval, the test and what it can tell."""
    frame = getattr(board, kind)
    statistics = [c.name for c in shown(board, kind) if c.best and c.name not in SIZES]
    rivals = frame[frame["competes"]]
    n = sorted(int(n) for n in frame["n"].dropna().unique())
    text = f"{TITLES[kind]} on {board.protocol}, tier {board.tier}; "
    if n[-1] == 1:
        text += "one seed, so no intervals or tests. "
    else:
        text += f"mean ± 95 % interval (Student's t) over n = {span(n)} seeds"
        text += ", of two as wide as 12.7 standard errors. " if 2 in n else ". "
    text += f"{SAYS[kind]} "
    if others := [row for row in board.elsewhere if row in set(frame["method"])]:
        text += f"Not compared: {', '.join(others)}, on other tasks or images. "
    if len(rivals) < 2:
        return text.strip()
    text += "Best in bold, second underlined, by the numbers as printed"
    absent = frame[~frame["competes"] & ~frame["method"].isin(others)]
    blank = absent["held"].isna() if kind == "training_memory" else pd.Series(False, index=absent.index)
    out = [
        words
        for there, words in (
            (~absent["published"] & ~blank, "trained on all tasks at once"),
            (blank, "whose memory was not measured"),
            (absent["published"], "published"),
        )
        if there.any()
    ]
    text += f"; rows {' or '.join(out)} do not compete. " if out else ". "

    compared: dict[int, dict[str, None]] = {}  # rows, by how many seeds they share with the best
    for name in statistics:
        for row in rivals[rivals[f"{name}_paired"].notna()].to_dict("records"):
            compared.setdefault(int(row[f"{name}_paired"]), {})[row["method"]] = None
    tested = sorted(n for n in compared if n > 1)
    few = dict.fromkeys(row for n in compared if n < 2 for row in compared[n])
    if tested:
        text += (
            f"{DAGGER} not distinguishable from the best (p > {ALPHA}), which does not mean equal to it: smoothed studentised"
            f" bootstrap of the differences paired by seed, {span(tested)} seeds in common, Holm's correction over the methods"
            " compared. "
        )
    if few and n[-1] > 1:
        text += "Without two seeds in common with the best nothing can be said of differences"
        text += f": so of {', '.join(few)}." if tested else ", so nothing is marked as not distinguishable."
    return text.strip()


def to_markdown(board: Leaderboard, kind: str, footnotes: bool = True) -> str:
    """One board as a Markdown table, with its caption and provenance below."""
    wrap = {"best": "**{}**", "second": "<ins>{}</ins>"}
    cells, reasons = _without_reasons(_marked(board, kind, wrap, lambda text: text.replace("|", r"\|")))
    listed = [note for note in board.footnotes if kind in ABOUT_SIZES or note not in board.size_notes] if footnotes else []
    notes = "".join(f"- {note}\n" for note in [*reasons, *listed])
    return f"## {TITLES[kind]}\n\n{_markdown(cells)}\n{caption(board, kind)}\n\n{board.provenance}\n" + (
        f"\n{notes}" if notes else ""
    )


def to_latex(board: Leaderboard, kind: str) -> str:
    """One board as a LaTeX table for the `booktabs` package, ready for `\\input`; provenance stands below."""
    wrap = {"best": r"\textbf{{{}}}", "second": r"\underline{{\smash{{{}}}}}"}  # the line below the digits, not below the dagger
    cells, notes = _without_reasons(_marked(board, kind, wrap, _latex, narrow=True))
    # numbers stay below one another, and narrow
    cells = cells.map(lambda text: text.replace(r" $^\dagger$", r"\rlap{\,$^\dagger$}").replace(r" $\pm$ ", r"$\pm$"))
    label = f"tab:{kind.replace('_', '-')}-{board.protocol}-{board.tier}"
    return _booktabs(cells, _latex(caption(board, kind)), label, [*notes, _latex(board.provenance)])


def _without_reasons(cells: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The cells with a bare "n/a", and each reason, which is too long for a cell, with the rows that it is of."""
    reasons: dict[str, list[str]] = {}
    for _, row in cells.iterrows():
        for text in dict.fromkeys(text for text in row.iloc[1:] if text.startswith("n/a: ")):
            reasons.setdefault(text, []).append(row.iloc[0])
    notes = [f"{reason} ({', '.join(rows)})" for reason, rows in reasons.items()]
    return cells.map(lambda text: "n/a" if text in reasons else text), notes


def latex_document(
    title: str, tables: Sequence[str], figures: Mapping[str, str], notes: Sequence[str], wide: Collection[str] = ()
) -> str:
    """A document that compiles by itself and shows files beside it, by name: tables, then figures with their captions, two in a
    row, those that are `wide` in rows of their own."""
    tabular = [f"\\input{{{name}}}" for name in tables]

    def drawn(name: str, share: str) -> str:
        return (
            f"\\begin{{minipage}}[t]{{{share}\\linewidth}}\\vspace{{0pt}}\\centering\\includegraphics{{{{{name}}}.pdf}}"
            f"\\captionof{{figure}}{{{_latex(figures[name])}}}\\end{{minipage}}"
        )

    halves = [drawn(name, "0.49") for name in figures if name not in wide]
    pairs = ["\\hfill\n".join(halves[i : i + 2]) for i in range(0, len(halves), 2)]
    rows = [row + "\\par\\bigskip" for row in [*pairs, *(drawn(name, "") for name in figures if name in wide)]]
    listed = "".join(f"\\item {_latex(note)}\n" for note in notes)
    listed = (
        f"\\section*{{Notes}}\n\\renewcommand{{\\labelitemi}}{{$\\bullet$}}\\begin{{itemize}}\\small\n{listed}\\end{{itemize}}\n"
        "\\clearpage\n"
        if notes
        else ""
    )
    body = "\n".join([*tabular, "\\clearpage\\small\\setlength{\\parindent}{0pt}", *rows])
    title = _latex(title)
    return (
        "\\documentclass{article}\n\\usepackage{booktabs,caption,graphicx}\n"
        "\\usepackage[margin=2cm]{geometry}\n\\sloppy\n"
        f"\\title{{{title}}}\n\\date{{}}\n\\begin{{document}}\n\\maketitle\n{listed}{body}\n\\end{{document}}\n"
    )


def print_boards(board: Leaderboard, console: Console) -> None:
    """The four boards on the screen, each with its caption, then provenance and footnotes."""
    every: dict[str, None] = {}
    for kind, title in TITLES.items():
        cells, reasons = _without_reasons(_cells(board, kind, narrow=True))
        every |= dict.fromkeys(reasons)
        marks = _marks(board, kind)
        # Text, not str: rich would read the brackets of a label as markup.
        table = Table(title=Text(title), caption=Text(caption(board, kind)), title_justify="left", caption_justify="left")
        for position, heading in enumerate(cells.columns):
            # a name may be folded, never cut short; on a narrow screen the other columns need their room too
            wide = None if position else min(24, console.width // 4, max(map(len, cells["Method"])))
            table.add_column(Text(heading), justify="right" if position else "left", overflow="fold", width=wide)
        styles = {"best": "bold", "second": "underline"}
        for i, row in cells.iterrows():
            table.add_row(*(Text(text, styles.get(marks.get((i, heading), ""), "")) for heading, text in row.items()))
        console.print(table, crop=False)
    for note in (board.provenance, *every, *board.footnotes):
        console.print(Text(f"- {note}"))


def ledger_markdown(frame: pd.DataFrame) -> str:
    """The ledger as Markdown: what is and is not reproduced in words, then figure by figure, then the sources."""
    cells = _ledger_cells(frame).map(lambda text: text.replace("|", r"\|"))
    sources = "".join(f"- {text}\n" for text in _sources(frame))
    said = "".join(f"- {line}\n" for line in summary(frame))
    return f"# Reproduction ledger\n\n{said}\n{_markdown(cells)}\n{RULE}\n\nSources:\n\n{sources}"


def ledger_latex(frame: pd.DataFrame) -> str:
    """The same as a LaTeX table for `booktabs`."""
    cells = _ledger_cells(frame).map(_latex)
    notes = [_latex(text) for text in [*summary(frame), *_sources(frame)]]
    return _booktabs(cells, f"Reproduction ledger. {_latex(RULE)}", "tab:ledger", notes, wide=LEDGER_WIDTHS)


def shown(board: Leaderboard, kind: str) -> list[Column]:
    frame = getattr(board, kind)
    return [column for column in COLUMNS[kind] if not column.optional or frame[column.name].notna().any()]


def span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _markdown(cells: pd.DataFrame) -> str:
    rule = ["---" if heading in TEXTS else "---:" for heading in cells.columns]
    lines = [" | ".join(row) for row in [list(cells.columns), rule, *cells.to_numpy().tolist()]]
    return "".join(f"| {line} |\n" for line in lines)


def _booktabs(
    cells: pd.DataFrame, caption: str, label: str, notes: Sequence[str], wide: Mapping[str, float] | None = None
) -> str:
    """A table of cells that are LaTeX already. wide: columns of text that is broken into lines, with their shares of the line;
    by default the first one, where the table does not fit the column of an article in one of `TYPES`."""
    if wide is None:
        wide = {} if _type(cells, {}) else {"Method": 0.3}
    size, _, gap = _type(cells, wide) or TYPES[-1]
    kinds = [
        rf"p{{{wide[heading]}\linewidth}}" if heading in wide else ("l" if heading in TEXTS else "r") for heading in cells.columns
    ]
    cells = cells.assign(**{heading: r"\raggedright " + cells[heading] for heading in wide})
    end = r" \tabularnewline" if wide else r" \\"  # \raggedright makes \\ a line within its cell
    lines = [
        r"\begin{table}[htbp]\setlength{\abovecaptionskip}{0pt}\setlength{\belowcaptionskip}{4pt}",
        rf"\centering\{size}\setlength{{\tabcolsep}}{{{gap}pt}}",
        rf"\caption{{{caption}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{''.join(kinds)}}}",
        r"\toprule",
        " & ".join(latex_heading(heading) for heading in cells.columns) + end,
        r"\midrule",
        *(" & ".join(row) + end for row in cells.to_numpy().tolist()),
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\smallskip"] if notes else []),
        *(rf"\par\raggedright\footnotesize {note}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _type(cells: pd.DataFrame, wide: Mapping[str, float]) -> tuple[str, float, int] | None:
    """The largest of `TYPES` in which a table fits the column of an article, by the characters of its longest cells."""
    characters = 0
    for heading in (heading for heading in cells.columns if heading not in wide):
        lines = [*latex_heading(heading).removeprefix(r"\shortstack[r]").split(r"\\"), *cells[heading]]
        plain = (re.sub(r"\\rlap\{.*?\}|\\[a-z]+|[\\{}$]", "", line.replace(r"\pm", "pm")) for line in lines)
        characters += max(map(len, plain))
    room = ARTICLE * (1 - sum(wide.values()))
    return next((t for t in TYPES if characters * t[1] + 2 * t[2] * len(cells.columns) <= room), None)


def latex_heading(heading: str) -> str:
    """A heading in LaTeX, in two lines where it is long: tables must fit the columns of an article."""
    words = [_latex(word) for word in heading.split(" ")]
    if len(heading) < 8 or len(words) == 1:
        return " ".join(words)
    above, below = min(
        ((" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))), key=lambda lines: max(map(len, lines))
    )
    return rf"\shortstack[r]{{{above}\\{below}}}"


def _marked(
    board: Leaderboard, kind: str, wrap: dict[str, str], escape: Callable[[str], str], narrow: bool = False
) -> pd.DataFrame:
    """The cells as they are read, best and second wrapped."""
    cells, marks = _cells(board, kind, narrow).map(escape), _marks(board, kind)
    for (i, heading), mark in marks.items():
        if heading in cells:
            cells.loc[i, heading] = wrap[mark].format(cells.loc[i, heading])
    return cells


def _marks(board: Leaderboard, kind: str) -> dict[tuple[int, str], str]:
    """ "best" or "second", by row and heading: among those that compete, by the printed number."""
    frame = getattr(board, kind)
    marks: dict[tuple[int, str], str] = {}
    for column in shown(board, kind):
        rivals = frame[frame["competes"] & frame[column.name].notna()] if column.best else frame[:0]
        if len(rivals) < 2:
            continue
        printed = rivals[column.name].map(lambda value, column=column: float(_number(value, column)))
        order = sorted(set(printed), reverse=column.best == "max")
        for place, value in zip(("best", "second"), order, strict=False):
            marks |= dict.fromkeys([(i, column.heading) for i in printed.index[printed == value]], place)
    return marks


def _cells(board: Leaderboard, kind: str, narrow: bool = False) -> pd.DataFrame:
    """The board as it is read: text only, headings as column names."""
    frame, marks = getattr(board, kind), _marks(board, kind)
    columns = [column for column in shown(board, kind) if column.screen or not narrow]
    rows = list(enumerate(frame.to_dict("records")))
    cells = {c.heading: [_cell(row, c, best=marks.get((i, c.heading)) == "best") for i, row in rows] for c in columns}
    return pd.DataFrame({"Method": frame["method"].astype(str), **cells}, dtype=object)


def _cell(row: dict, column: Column, best: bool = False) -> str:
    value, interval = row[column.name], row.get(f"{column.name}_ci")
    if isinstance(value, bool):
        return "yes" if value else ""
    if pd.isna(value):
        note = row.get(f"{column.name}_note")
        return note if isinstance(note, str) else "–"
    text = "<0.001" if column.digits is None and 0 < value < 0.0005 else _number(value, column)
    mark = f" {DAGGER}" if not best and row.get(f"{column.name}_p", 0) > ALPHA else ""
    if interval is None or pd.isna(interval) or (column.digits is None and round(interval, _digits(value, column)) == 0):
        return text + mark  # a size that is the same for every seed needs no interval
    return f"{text} ± {interval:.{_digits(value, column)}f}{mark}"


def _number(value: float, column: Column) -> str:
    return "0" if column.digits is None and value == 0 else f"{value:z.{_digits(value, column)}f}"


def _digits(value: float, column: Column) -> int:
    return column.digits if column.digits is not None else 2 if value >= 1 else 3


def _ledger_cells(frame: pd.DataFrame) -> pd.DataFrame:
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


def _sources(frame: pd.DataFrame) -> list[str]:
    groups: dict[str, dict[str, None]] = {}
    for row in frame.to_dict("records"):
        groups.setdefault(row["source"], {})[f"{row['published']} on {row['protocol']}"] = None
    return [f"{', '.join(who)}: {source}" for source, who in groups.items() if source]


_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "–": "--",
        "`": "'",  # a grave of its own would be a bitmap in many installations
        "|": r"\textbar{}",
        '"': "''",
        "<": "$<$",
        ">": "$>$",
        DAGGER: r"$^\dagger$",
    }
)


def _latex(text: str) -> str:
    minus = "$-$" if text[:1] == "-" and text[1:2].isdigit() else ""
    plain = text[1 if minus else 0 :].translate(_LATEX)
    return minus + "".join(c if ord(c) < 256 else "?" for c in plain)  # pdflatex stops at what its fonts lack
