"""Boards, their summary and the ledger in LaTeX: bare tabulars, floats around them, a document.

A tabular needs the package `booktabs`, and `siunitx` only where a selection asks for it. Its columns are fitted to the width of a
text column by the widths of letters, so that nothing is overfull in any class.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import pandas as pd

from ..analysis.leaderboard import Leaderboard
from ..analysis.ledger import RULE
from ..analysis.ledger import summary as ledger_summary
from ..analysis.summary import Summary
from ..text import clean
from .columns import ACCURACY, COLUMNS, RANK, TITLES, Column, meanings
from .looks import labels_of
from .selection import Selection
from .tables import (
    DAGGER,
    TEXTS,
    TOLD,
    best_of,
    caption,
    cell_text,
    confidence_interval,
    fitted,
    ledger_cells,
    ledger_sources,
    span,
)

# points: of article, which is narrower than NeurIPS and IEEE; half a line of `document`
ROOM = {"column": 229.0, "page": 345.0, "two-column": 469.0, "half": 246.0}
TYPES = (("small", 0.925, 6), ("footnotesize", 0.85, 6), ("footnotesize", 0.85, 4))  # size, share of 10 pt, half a gap in points
TINY = ("scriptsize", 0.8, 3)  # where nothing else helps
DROPPED = (  # what is left out first, where a table is too wide and the selection names no columns
    *("n", "pareto", "formula", "compute", "smallest_megabytes", "ratio", "matched_accuracy", "carried_megabytes"),
    *("forward_gain", "int8_accuracy", "peak", "int8_megabytes", "forgetting"),
)
LEFT_OUT = "% left out for want of room"
LEDGER_WIDTHS = {  # the columns between them are as wide in any class: what is left of a wider line is the last one's
    "Published": r"0.15\linewidth",
    "Ours": r"0.12\linewidth",
    "Verdict": r"0.125\linewidth",
    "Reason": r"\dimexpr0.59\linewidth-146pt\relax",
}

LETTERS = {  # widths in Computer Modern at 10 pt; Times is narrower
    **dict.fromkeys("ijl.,:;'! |I", 3.4),
    **dict.fromkeys("()[]-frst/", 4.0),
    **dict.fromkeys("cez", 4.5),
    **dict.fromkeys("0123456789", 5.0),
    **dict.fromkeys("agokqvxyJ", 5.3),
    **dict.fromkeys("bdhnpuSLZ", 6.2),
    **dict.fromkeys("ABCEFPRTDGHKNOQUVXY+=<>±–&", 7.85),
    **dict.fromkeys("mwM%WΔ@", 10.3),
    **dict.fromkeys("†‡", 4.5),
}


@dataclass(frozen=True)
class Printed:
    """A column in LaTeX. width: of its widest cell or line of the heading, in points at 10 pt. spec: r, l or S[...]. piece: the
    width of the widest part of a cell that cannot be broken."""

    name: str
    heading: str
    cells: list[str]
    width: float
    spec: str = "r"
    piece: float = 0


@dataclass(frozen=True)
class LatexTable:
    """tabular: the bare `tabular`. size, gap: the type and the half gap in points at which it fits `room` points, of which it
    takes `width`. star: whether it must span both columns. left_out: the columns for which there was no room."""

    tabular: str
    size: str
    gap: int
    room: float
    width: float
    star: bool
    columns: list[str]
    left_out: list[str]


def letters(text: str) -> float:
    """At least the width of plain text, in points at 10 pt."""
    return sum(LETTERS.get(c, 7.85) for c in text)


def board_table(
    board: Leaderboard, kind: str, selection: Selection, rows: Sequence[str] | None = None, fit: str = ""
) -> tuple[str, str]:
    """One board: the bare tabular, and the float with its caption that takes it in. rows, fit: in place of the selection's."""
    everything, shown = _with_all(board, kind), selection.rows_on(board)
    order = list(selection.frame(board, kind)["method"] if rows is None else rows)
    frame = everything[everything["method"].isin(order)].sort_values("method", key=lambda names: names.map(order.index))
    labels = labels_of(board) | {label: row.label for label, row in shown.items()}
    chosen = selection.columns.get(kind)
    known = {column.name: column for every in COLUMNS.values() for column in every} | {c.name: c for c in COLUMNS[kind]}
    columns = [known[name] for name in selection.columns_of(kind)]
    if not chosen:  # the caption says a common n, and a mark that no row has says nothing
        plain = {"n": frame["n"].nunique() <= 1, "pareto": not frame["pareto"].any()}
        columns = [column for column in columns if not plain.get(column.name)]
    columns = [_with_digits(column, selection.digits.get(column.name)) for column in fitted(columns, frame)]
    marks = best_of(frame if selection.rows else everything, columns)
    if rows is not None and selection.rows:  # the best of the rows shown stands in another table
        marks = {}
    records = frame.to_dict("records")
    ours = [label in shown and shown[label].ours for label in frame["method"]]
    names = _names([(labels[row["method"]], bool(row["n_tasks_read"])) for row in records], ours)
    printed, reasons = [], dict[str, list[str]]()
    for column in columns:
        texts = [
            cell_text(row, column, best=marks.get((i, column.heading)) == "best")
            for i, row in zip(frame.index, records, strict=True)
        ]
        for row, text in zip(records, texts, strict=True):
            if text.startswith("n/a: "):
                reasons.setdefault(text, []).append(labels[row["method"]])
        printed.append(_printed(column, texts, [marks.get((i, column.heading), "") for i in frame.index], selection.siunitx))
    table = _fit(names, printed, ours, fit or selection.fit, () if chosen else DROPPED)
    kept = [column for column in columns if column.name in table.columns]
    said = caption(board, kind, frame, kept, labels)
    said = said.replace("; underlined: second best", "") if selection.siunitx else said  # S columns underline nothing
    said += "".join(f" {reason} ({', '.join(dict.fromkeys(who))})." for reason, who in reasons.items())
    if rows is not None:  # they stand below the tables of the selection
        said = f"The other rows on {board.protocol}, tier {board.tier}. Columns"
        said += (
            " and intervals are those of the tables above; the best are not marked."
            if selection.rows
            else ", intervals and marks are those of the tables above."
        )
    place = f"{board.protocol}-{board.tier}{'-others' if rows else ''}"
    return _files(table, said, f"{kind.replace('_', '-')}-{place}", board.provenance)


def file_name(kind: str) -> str:
    """Of the bare tabular of a board or of the summary."""
    return f"{kind}_tabular"


def _with_all(board: Leaderboard, kind: str) -> pd.DataFrame:
    """A board, with the columns of the three others."""
    frame = getattr(board, kind)
    for other in (getattr(board, name) for name in TITLES if name != kind):
        frame = frame.merge(other[["method", *(name for name in other if name not in frame)]], on="method", how="left")
    return frame


def _with_digits(column: Column, digits: int | None) -> Column:
    if digits is None:
        return column
    return replace(column, places=digits) if column.digits is None else replace(column, digits=digits)


def _names(rows: Sequence[tuple[str, bool]], ours: Sequence[bool], heading: str = "Method") -> Printed:
    """The first column. rows: the label of each, and whether it knows the number of tasks in advance."""
    cells = [latex_text(label) + (latex_text(TOLD) if told else "") for label, told in rows]
    cells = [rf"\textbf{{{cell}}}" if own else cell for cell, own in zip(cells, ours, strict=True)]
    width = max(letters(label) * (1.15 if own else 1) + 4.5 * told for (label, told), own in zip(rows, ours, strict=True))
    piece = max(letters(part) * 1.15 for label, _ in rows for part in re.split(r"(?<=[ _=-])", label)) + 4.5
    return Printed("method", heading, cells, max(width, letters(heading)), "l", piece)


def _printed(column: Column, texts: Sequence[str], marks: Sequence[str], siunitx: bool = False) -> Printed:
    """A column of numbers. Their points are aligned: all have the same decimals, and the room of the widest interval."""
    parts = [re.fullmatch(r"(<?-?[\d.]+)(?: ± ([\d.]+))?((?: [^ †]+)?)( †)?", text) for text in texts]
    numeric = [part for part in parts if part]
    spread = max((part[2] for part in numeric if part[2]), key=len, default="")
    spread = spread if any(float(part[2] or 0) for part in numeric) else ""  # where all seeds agree in all rows
    daggers, signed = any(part[4] for part in numeric), any(part[1].startswith("-") for part in numeric)
    after = max((part[3] for part in numeric), key=len, default="")
    cells, widest = [], 0.0
    for text, part, mark in zip(texts, parts, marks, strict=True):
        if part is None:
            word = {"yes": r"$\bullet$", "": ""}.get(text, latex_text("n/a" if text.startswith("n/a") else text))
            cells.append((f"{{{word}}}" if siunitx else rf"\multicolumn{{1}}{{c}}{{{word}}}") if word else "")
            widest = max(widest, letters("n/a"))
            continue
        value, interval, word, dagger = part[1], (part[2] or "") if spread else "", part[3], bool(part[4])
        widest = max(widest, letters(value.replace("-", "±")) * (1.15 if mark == "best" else 1))
        if siunitx:
            number = f"{value} +- {interval}" if interval else value
            number = number if value[0] != "<" else f"{{{latex_text(value)}}}"
            tail = (r"$^\dagger$" if dagger else "") + latex_text(word)
            cells.append((r"\bfseries " if mark == "best" else "") + number + (f" {{{tail}}}" if tail else ""))
            continue
        number = latex_text(value)
        number = {"best": rf"\textbf{{{number}}}", "second": rf"\underline{{\smash{{{number}}}}}"}.get(mark, number)
        if interval:
            number += rf"$\pm${interval}"
            pad = "0" * (len(spread) - len(interval))
        else:
            pad = rf"$\pm${spread}" if spread else ""
        number += r"$^\dagger$" if dagger else ""
        pad += r"$^\dagger$" if daggers and not dagger else ""
        cells.append(number + (rf"\phantom{{{pad}}}" if pad else "") + latex_text(word))
    widest += letters(f"±{spread}") + (5 if siunitx else 0) if spread else 0
    widest += 4.5 * daggers + letters(after)
    heading = latex_heading(column.heading, widest)
    lines = max(_split(column.heading), key=letters) if r"\\" in heading else column.heading
    spec = "r"
    if siunitx:
        whole = max((len(part[1].lstrip("<-").partition(".")[0]) for part in numeric), default=1)
        decimals = max((len(part[1].partition(".")[2]) for part in numeric), default=0)
        error = len(spread.partition(".")[0]) + decimals if spread else 0
        options = f"table-format={'-' * signed}{whole}.{decimals}" + (
            f"({error}), separate-uncertainty, table-align-uncertainty=false" if error else ""
        )
        tail = (r"$^\dagger$" if daggers else "") + after
        spec = f"S[{options}, detect-weight{f', table-space-text-post={{{tail}}}' if tail else ''}]"
        heading = f"{{{heading}}}"
    return Printed(column.name, heading, cells, max(widest, letters(lines)), spec)


def _fit(
    names: Printed,
    columns: list[Printed],
    ours: Sequence[bool],
    fit: str,
    dropped: Sequence[str],
    groups: Sequence[tuple[str, Collection[str]]] = (),
) -> LatexTable:
    """The table as it fits: in the largest type; else with long names in several lines; else without columns of `dropped`; else
    in tiny type, across two columns, or without its last columns."""
    room, star = ROOM[fit], fit == "two-column"
    sets = [columns]
    for name in dropped:
        rest = [column for column in sets[-1] if column.name.split()[-1] != name]
        if 0 < len(rest) < len(sets[-1]):
            sets.append(rest)
    types = (*TYPES, TINY) if fit == "half" else TYPES
    tries = [(chosen, kind, room, star, broken) for chosen in sets for broken in (False, True) for kind in types]
    if not dropped and fit in ("column", "half"):
        tries += [(columns, kind, ROOM["two-column"], True, broken) for broken in (False, True) for kind in TYPES]
    *_, (_, _, room, star, _) = tries
    tries += [(sets[-1][:n], TINY, room, star, True) for n in range(len(sets[-1]), 0, -1)]
    for chosen, (size, share, gap), there, wide, broken in tries:
        first = names
        if broken and (line := max(there / 3, share * names.piece + 1)) < share * names.width:
            cells = [r"\raggedright " + re.sub(r"\\_|=", r"\g<0>\\allowbreak{}", cell) for cell in names.cells]
            first = replace(names, spec=rf"p{{{line:.0f}pt}}", cells=cells, width=(line + 1) / share)
        width = share * sum(column.width for column in (first, *chosen)) + 2 * gap * (len(chosen) + any(ours))
        for text, members in groups:
            below = [column.width for column in chosen if column.name in members]
            width += max(0, share * (letters(text) - sum(below)) - 2 * gap * (len(below) - 1)) if below else 0
        table = _built(first, chosen, columns, ours, size, gap, there, width, wide, groups)
        if width <= there:
            break
    return table


def _built(
    names: Printed,
    chosen: Sequence[Printed],
    columns: Sequence[Printed],
    ours: Sequence[bool],
    size: str,
    gap: int,
    room: float,
    width: float,
    star: bool,
    groups: Sequence[tuple[str, Collection[str]]],
) -> LatexTable:
    end = r" \tabularnewline"  # \raggedright makes \\ a line within its cell
    head = [" & ".join(column.heading for column in (names, *chosen)) + end]
    if groups:
        above, rules, place = [], "", 2
        for text, members in groups:
            n = sum(column.name in members for column in chosen)
            if n:
                above.append(rf"\multicolumn{{{n}}}{{c}}{{{latex_text(text)}}}" if text else rf"\multicolumn{{{n}}}{{c}}{{}}")
                rules += rf"\cmidrule(lr){{{place}-{place + n - 1}}}" if text else ""
                place += n
        head = [" & ".join(["", *above]) + end, rules, *head]
    edge = "" if any(ours) else "@{}"  # shade ends where the rules do
    shade = r"\ifdefined\rowcolor\rowcolor[gray]{0.92}\fi "
    lines = [
        rf"\begin{{tabular}}{{{edge}{''.join(column.spec for column in (names, *chosen))}{edge}}}",
        r"\toprule",
        *head,
        r"\midrule",
        *(
            shade * own + " & ".join(cells) + end
            for own, *cells in zip(ours, *(column.cells for column in (names, *chosen)), strict=True)
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    kept = [column.name for column in chosen]
    left_out = [column.name for column in columns if column.name not in kept]
    return LatexTable("\n".join(filter(None, lines)) + "\n", size, gap, room, width, star, kept, left_out)


def _files(table: LatexTable, said: str, label: str, provenance: str) -> tuple[str, str]:
    """The bare tabular and the float, each with comments on how to use it and where its numbers come from."""
    label = re.sub(r"[^\w:+.-]", "-", f"tab:{label}", flags=re.ASCII)
    environment = "table*" if table.star else "table"
    comments = [
        f"% {clean(provenance)}",
        f"% needs booktabs{', siunitx' if 'S[' in table.tabular else ''}; a row of ours is shaded where colortbl is loaded",
        rf"% fits {table.room:.0f} pt in \{table.size} with \tabcolsep of {table.gap} pt",
        *([f"{LEFT_OUT}: {', '.join(table.left_out)}"] if table.left_out else []),
    ]
    head = "\n".join(comments) + "\n"
    floating = [
        rf"\begin{{{environment}}}[tbp]",
        r"\centering\setlength{\abovecaptionskip}{0pt}\setlength{\belowcaptionskip}{4pt}",
        rf"\caption{{{latex_text(said)}}}",
        rf"\label{{{label}}}",
        rf"\{table.size}\setlength{{\tabcolsep}}{{{table.gap}pt}}",
        "{{TABULAR}}",
        rf"\end{{{environment}}}",
    ]
    return head + table.tabular, head + "\n".join(floating) + "\n"


def summary_table(found: Summary, boards: Sequence[Leaderboard], selection: Selection) -> tuple[str, str]:
    """The summary of several boards, or of one, with average ranks: the bare tabular and the float."""
    keys = {f"{board.protocol}/{board.tier}": board for board in boards}
    order, labels, own = list(found.ranks["method"]), dict[str, str](), set[str]()
    for row in found.results.to_dict("records"):
        board = keys[row["board"]]
        shown = selection.rows_on(board).get(row["row"])
        labels.setdefault(row["method"], shown.label if shown else labels_of(board)[row["row"]])
        own |= {row["method"]} if shown and shown.ours else set()
    if selection.rows:  # in their order on the first board that has them
        given = dict.fromkeys(
            name
            for key, board in keys.items()
            for label in selection.rows_on(board)
            for name in found.results[(found.results["board"] == key) & (found.results["row"] == label)]["method"]
        )
        order = [*given, *(name for name in order if name not in given)]
    ours = [name in own for name in order]
    names = _names([(labels[name], False) for name in order], ours)
    asked = selection.columns.get("summary", tuple(SUMMARY))
    columns, groups = [], []
    for key, board in keys.items():
        frame = found.results[found.results["board"] == key].set_index("method").reindex(order)
        frame = frame.assign(competes=frame["competes"].eq(True)).reset_index()
        if len(keys) > 1:  # their intervals are in the tables of each protocol
            frame = frame.drop(columns=[name for name in frame if name.endswith("_ci")])
        here = [_with_digits(column, selection.digits.get(column.name)) for name, column in SUMMARY.items() if name in asked]
        here = [replace(column, tested=False) for column in fitted(here, frame)]
        marks = best_of(frame, here)
        for column in here:
            texts = [
                cell_text(row, column, best=marks.get((i, column.heading)) == "best")
                for i, row in enumerate(frame.to_dict("records"))
            ]
            printed = _printed(column, texts, [marks.get((i, column.heading), "") for i in range(len(order))], selection.siunitx)
            columns.append(replace(printed, name=f"{key} {column.name}"))
        groups.append((f"{board.protocol} ({board.tier})", [f"{key} {column.name}" for column in here]))
    fit = "two-column" if selection.fit == "column" and len(keys) > 1 else selection.fit
    ranks = found.ranks.set_index("method").reindex(order).reset_index()
    texts = [cell_text(row, RANK).partition(":")[0] for row in ranks.to_dict("records")]
    marks = best_of(ranks.assign(competes=True), [RANK])
    columns.append(_printed(RANK, texts, [marks.get((i, RANK.heading), "") for i in ranks.index], selection.siunitx))
    table = _fit(names, columns, ours, fit, ("int8_megabytes", "bwt", "megabytes"), [*groups, ("", [RANK.name])])
    kept = {name.split()[-1] for name in table.columns}
    n = sorted(int(n) for n in found.results["n"].dropna().unique())
    places = ", ".join(keys) if len(keys) > 1 else next(iter(keys)).replace("/", ", tier ")
    said = f"Summary of {places}: "
    if n != [1]:
        said += (
            f"mean over n = {span(n)} seeds. " if len(keys) > 1 else f"mean ± {confidence_interval(n)} over n = {span(n)} seeds. "
        )
    else:
        said += "one seed. "
    said += meanings([column for name, column in SUMMARY.items() if name in kept])
    among = "the rows shown that are ranked" + (f" on all {len(keys)} boards" if len(keys) > 1 else "")
    said += f" Average rank: by accuracy among {among}, over {found.over}, 1 being the best; ties share a rank. Bold: best"
    said += "." if selection.siunitx else "; underlined: second best."
    provenance = " | ".join(board.provenance for board in boards)
    return _files(table, said, "summary", provenance)


SUMMARY = {
    "accuracy": replace(ACCURACY, heading="Acc. (%)"),
    "bwt": replace(next(c for c in COLUMNS["backward_transfer"] if c.name == "bwt"), heading="BWT (pp)"),
    "megabytes": replace(next(c for c in COLUMNS["parameter_efficiency"] if c.name == "megabytes"), heading="Size (MB)"),
    "int8_megabytes": Column("8-bit (MB)", "int8_megabytes", optional=True, says="size of the same networks, stored in 8 bits"),
}


def ledger_table(frame: pd.DataFrame) -> str:
    """The reproduction ledger as a `longtable`, which may go on over several pages, and notes below it."""
    cells = ledger_cells(frame).map(latex_text)
    widths = {heading: rf">{{\raggedright}}p{{{wide}}}" for heading, wide in LEDGER_WIDTHS.items()}
    kinds = [widths.get(heading, "l" if heading in TEXTS else "r") for heading in cells.columns]
    head = " & ".join(map(latex_text, cells.columns)) + r" \tabularnewline"
    lines = [
        "% needs array, booktabs and longtable",
        r"\begingroup\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{longtable}}{{@{{}}{''.join(kinds)}@{{}}}}",
        rf"\caption{{Reproduction ledger. {latex_text(RULE)}}}\label{{tab:ledger}}\tabularnewline",
        rf"\toprule {head} \midrule \endfirsthead",
        rf"\toprule {head} \midrule \endhead",
        *(" & ".join(row) + r" \tabularnewline" for row in cells.to_numpy().tolist()),
        r"\bottomrule",
        r"\end{longtable}",
        *(rf"\noindent {latex_text(note)}\par" for note in [*ledger_summary(frame), *ledger_sources(frame)]),
        r"\endgroup",
    ]
    return "\n".join(lines) + "\n"


def document(
    title: str,
    provenance: str,
    tables: Sequence[str],
    figures: Mapping[str, str] = MappingProxyType({}),
    appendix: Sequence[str] = (),
    notes: Sequence[str] = (),
    *,
    ledger: str = "",
    fit: str = "page",
) -> str:
    """A document that compiles by itself: tables, then the figures beside it with their captions, what is in the appendix, and
    the notes last. Nothing floats, so that no page is left half empty.

    tables, appendix, ledger: LaTeX. figures: the caption of each, by the name of its file. Tables that fit a column stand two in
    a row. fit: the selection's, for which the figures were drawn: those of a column stand two in a row, too, and those of a page
    have their captions beside them."""

    def drawn(name: str) -> str:
        graph, caption = f"\\includegraphics{{{{{name}}}.pdf}}", f"\\captionof{{figure}}{{{latex_text(figures[name])}}}"
        if fit != "page":
            return rf"\centering{graph}{caption}"
        return (
            f"\\begin{{minipage}}[t]{{0.69\\linewidth}}\\vspace{{0pt}}{graph}\\end{{minipage}}\\hfill"
            f"\\begin{{minipage}}[t]{{0.29\\linewidth}}\\vspace{{0pt}}\\captionsetup{{skip=0pt}}{caption}\\end{{minipage}}"
        )

    def in_rows(parts: Sequence[str], halves: Collection[str]) -> list[str]:
        rows: list[list[str]] = []
        for part in parts:
            if part in halves and rows and len(rows[-1]) == 1 and rows[-1][0] in halves:
                rows[-1].append(part)
            else:
                rows.append([part])
        rows = [_alike(row) for row in rows]
        box = "\\noindent\\begin{{minipage}}[t]{{{}\\linewidth}}\\vspace{{0pt}}{}\\end{{minipage}}"
        return [
            "\\hfill\n".join(box.format(0.49 if len(row) == 2 else 1, part) for part in row) + "\\par\\medskip" for row in rows
        ]

    graphs = [drawn(name) for name in figures]
    narrow = [table for table in tables if r"\begin{table*}" not in table]
    listed = "".join(f"\\item {latex_text(note)}\n" for note in notes)
    parts = [
        *([rf"\noindent{{\footnotesize {latex_text(provenance)}\par}}\medskip"] if provenance else []),
        *in_rows(tables, narrow),
        *in_rows(graphs, graphs if fit == "column" else ()),
        ledger,
        *([r"\subsection*{Appendix: the other rows}", *in_rows(appendix, ())] if appendix else []),
        *(
            [
                r"\begin{multicols}{2}[\subsection*{Notes}]\scriptsize\raggedright\begin{itemize}\setlength{\itemsep}{0pt}\setlength{\parskip}{0pt}",
                listed + r"\end{itemize}\end{multicols}",
            ]
            if notes
            else []
        ),
    ]
    body = "\n".join(parts)
    return (
        "\\documentclass{article}\n\\usepackage{array,booktabs,caption,colortbl,graphicx,longtable,multicol}\n"
        + ("\\usepackage{siunitx}\n" if any("S[" in table for table in (*tables, *appendix)) else "")
        + "\\usepackage[margin=1.6cm]{geometry}\n\\captionsetup{font=scriptsize}\n\\sloppy\\raggedbottom\n"
        "\\renewcommand{\\labelitemi}{$\\bullet$}\n"
        + "".join(f"\\renewenvironment{{{name}}}[1][]{{\\captionsetup{{type=table}}}}{{\\par}}\n" for name in ("table", "table*"))
        + f"\\begin{{document}}\n\\begin{{center}}\\Large {latex_text(title)}\\end{{center}}\n{body}\n\\end{{document}}\n"
    )


def _alike(tables: Sequence[str]) -> list[str]:
    """Floats that stand side by side, in the smaller of their types: at most footnotesize, or few tables share a page."""
    types = [rf"\{size}\setlength{{\tabcolsep}}{{{gap}pt}}" for size, _, gap in (*TYPES, TINY)]
    used = max([1, *(i for i, words in enumerate(types) if any(words in table for table in tables))])
    return [re.sub("|".join(map(re.escape, types)), lambda _: types[used], table) for table in tables]


def in_document(board: Leaderboard, kind: str, selection: Selection) -> str:
    """One board as it stands in `document`: half as wide as the page if it fits with all its columns."""
    for fit in ("half", "two-column"):
        tabular, floating = board_table(board, kind, selection, fit=fit)
        if LEFT_OUT not in tabular and r"\begin{table*}" not in floating:
            break
    return with_tabular(floating, tabular)


def taking_in(floating: str, name: str) -> str:
    """The float that takes in the tabular of a file beside it, whichever folder the document is in."""
    beside = r"\ifdefined\CurrentFilePath\ifx\CurrentFilePath\empty\else\CurrentFilePath/\fi\fi"
    return floating.replace("{{TABULAR}}", rf"\input{{{beside} {name}}}")


def with_tabular(floating: str, tabular: str) -> str:
    """The float with the tabular in it."""
    return floating.replace("{{TABULAR}}", tabular.rstrip("\n"))


LATEX = str.maketrans(
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
        **dict.fromkeys("«»", "''"),  # these, and the next four letters, are not in the fonts that LaTeX uses by default
        **dict.fromkeys("ÐÞðþ", "?"),
        DAGGER: r"$^\dagger$",
        TOLD: r"$^\ddagger$",
    }
)


def latex_text(text: str) -> str:
    minus = "$-$" if text[:1] == "-" and text[1:2].isdigit() else ""
    plain = text[1 if minus else 0 :].translate(LATEX)
    plain = re.sub(r"^[\[*]", r"{\g<0>}", plain)  # after \\ and \item it would be an argument
    return minus + "".join(c if ord(c) < 256 else "?" for c in plain)  # pdflatex stops at what its fonts lack


def latex_heading(heading: str, width: float = 0) -> str:
    """A heading in LaTeX, in two lines if it is wider than the cells below it. width: theirs, in points at 10 pt."""
    if letters(heading) <= max(width, 36) or " " not in heading:
        return latex_text(heading)
    above, below = map(latex_text, _split(heading))
    return rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{above}\\{below}\end{{tabular}}"


def _split(heading: str) -> tuple[str, str]:
    """A heading in two lines as even as possible."""
    words = heading.split(" ")
    halves = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return min(halves, key=lambda lines: max(map(letters, lines)))
