"""Leaderboards as files: tables (LaTeX, Markdown, CSV, parquet), figures (PDF, PNG), the reproduction ledger, one HTML page."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from ..analysis.leaderboard import Leaderboard, leaderboard
from ..analysis.ledger import ledger
from ..analysis.provenance import provenance
from ..errors import UserError
from ..files import digest, write_atomic
from ..protocol import Published
from ..record.store import read_all
from ..registry import suggest
from . import tables


def write_reports(
    results: Path,
    output: Path,
    published: Mapping[str, Sequence[Published]],
    *,
    protocols: Collection[str] = (),
    tiers: Collection[str] = (),
    families: Mapping[str, str] | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
) -> list[Path]:
    """Write a report on every protocol and tier of the results folder that has records, or on those named, each into
    `output`/protocol/tier, and the ledger of their protocols and the page with all of it into `output`; returns the files.

    published: the figures of every known protocol, by its name. The ledger sees all tiers, whichever are reported on.
    families: method -> `Method.family`, by which the page filters. files: as for `leaderboard`.
    Raises UserError, before anything is written, where a record cannot be trusted or a named protocol or tier has none.
    """
    found = {path.parents[2].relative_to(results).parts for path in results.glob("*/*/*/*/record.json")}
    for words, there, given in (("protocol", {p for p, _ in found}, protocols), ("tier", {t for _, t in found}, tiers)):
        for name in given:
            if name not in there and not (words == "protocol" and name in published):
                raise UserError(
                    f"{results}: has no records of a {words} {name!r}", f"{suggest(name, there) if there else 'run it first'}"
                )
    if not found:
        raise UserError(f"{results}: has no records", "run `benchsuite leaderboard` first, or name the folder with --results")
    records = {key: read_all(results.joinpath(*key)) for key in sorted(found) if not protocols or key[0] in protocols}
    boards = {
        key: leaderboard(runs, published.get(key[0], ()), files=files)
        for key, runs in records.items()
        if not tiers or key[1] in tiers
    }
    if not boards:
        raise UserError(f"{results}: has no records of {', '.join(protocols)} in tier {', '.join(tiers)}", "run it first")
    written = [file for key, board in boards.items() for file in write_report(board, output.joinpath(*key))]

    from .page import page  # it needs matplotlib, as below

    figures = {name: figures for name, figures in published.items() if not protocols or name in protocols}
    base = Path(os.path.relpath(results, output)).as_posix()
    frame = ledger([run for runs in records.values() for run in runs], figures)
    return written + _write(
        output,
        {
            "index.html": page(list(boards.values()), families, base),
            "ledger.md": tables.ledger_markdown(frame),
            "ledger.tex": tables.ledger_latex(frame),
            "ledger.csv": tables.csv(frame),
            "ledger.parquet": tables.parquet(frame),
            "report.tex": tables.latex_document("Reproduction ledger", ["ledger"], [], []),
        },
    )


def write_report(board: Leaderboard, folder: Path) -> list[Path]:
    """Write every table and figure of `board` into `folder`; returns the files.

    The same records give the same bytes. Raises UserError when `folder` cannot be written; everything is rendered before
    the first file is.
    """
    from . import figures  # matplotlib takes a second to import: whoever wants a table on the screen need not wait

    runs = board.runs
    files: dict[str, bytes | str] = {}
    for kind in tables.TITLES:
        files[f"{kind}.md"] = tables.to_markdown(board, kind)
        files[f"{kind}.csv"] = tables.to_csv(board, kind)
        files[f"{kind}.parquet"] = tables.parquet(tables.numbers(board, kind))
        files[f"{kind}.tex"] = tables.to_latex(board, kind)

    where = f"on {board.protocol}, tier {board.tier}"
    seeds = [len(group) for group in runs.values()]
    bars = _averaged(seeds, "bars")
    ends = "bands and bars" if len(runs) <= figures.FEW else "bars at the last task"
    over = f"{where}, each seed in its own order; {_averaged(seeds, ends)}."
    front = f"{where}; {bars}; dashed: Pareto front of the rows that compete"
    front += f", without {', '.join(board.elsewhere)}, on other tasks or images." if board.elsewhere else "."
    drawings = {
        "accuracy_vs_size": (figures.accuracy_vs_size(board), f"Accuracy against stored size {front}"),
        "accuracy_after_each_task": (figures.accuracy_after_each_task(runs, board.provenance), f"Accuracy over tasks {over}"),
        "forgetting_after_each_task": (
            figures.forgetting_after_each_task(runs, board.provenance),
            f"Forgetting over tasks {over}",
        ),
        "stored_after_each_task": (figures.stored_after_each_task(runs, board.provenance), f"Stored size over tasks {over}"),
    }
    if board.timed:
        timed = _averaged([int(n) for n in board.training_memory["step_seconds_n"] if n > 0], "bars")
        words = f"Wall clock per training step, median over tasks, {where}, on one kind of machine; {timed}."
        drawings["step_time"] = (figures.step_time(board), words)
    if board.training_memory["held"].notna().any():
        drawings["accuracy_vs_memory"] = (figures.accuracy_vs_memory(board), f"Accuracy against memory for training {front}")
    for label, group in runs.items():
        name = re.sub(r"[^\w.+=-]+", "-", label).strip("-")
        if len(name) > 100:  # a file's name has its limits
            name = f"{name[:80]}-{digest(label)[:8]}"
        n = len(group)
        made = provenance(group)
        ranks = figures.rank_growth(label, group, made)
        drawings[f"rank_growth_{name}"] = (
            ranks,
            f"Components of each layer over tasks: {label} {where}; {_averaged([n], 'bands')}.",
        )
        if all(row[0] is None for row in group[0].correct[:-1]) and len(group[0].correct) > 1:
            continue  # all tasks at once: the matrix is its last row
        matrix = figures.accuracy_matrix(label, group, made)
        words = f"Accuracy on the k-th task of each seed's own order after learning t tasks: {label} {where}; {_averaged([n])}."
        drawings[f"accuracy_matrix_{name}"] = (matrix, words)
    shown = [(name, words) for name, (drawing, words) in drawings.items() if drawing]
    for name, (drawing, _) in drawings.items():
        if drawing:
            files |= {f"{name}.{suffix}": content for suffix, content in figures.render(drawing).items()}

    files["leaderboard.md"] = "\n".join(
        [
            f"# {board.protocol}, tier {board.tier}\n",
            *(tables.to_markdown(board, kind, footnotes=False) for kind in tables.TITLES),
            *(["## Notes\n\n" + "".join(f"- {note}\n" for note in board.footnotes)] if board.footnotes else []),
            "## Figures\n",
            *(f"[![{name}]({name}.png)]({name}.pdf)\n\n{words}\n" for name, words in shown),
        ]
    )
    title = f"{board.protocol}, tier {board.tier}"
    files["report.tex"] = tables.latex_document(title, list(tables.TITLES), shown, board.footnotes)
    written = _write(folder, files)
    maybe = ("accuracy_matrix_*", "rank_growth_*", "step_time.*", "accuracy_vs_memory.*", "forgetting_after_each_task.*")
    for old in (path for pattern in maybe for path in folder.glob(pattern)):  # no longer drawn
        if old.name not in files and old.suffix in (".pdf", ".png"):
            with suppress(OSError):  # another command may be at the same folder
                old.unlink()
    return written


def _averaged(counts: Collection[int], marks: str = "") -> str:
    """What is drawn of rows of so many seeds each. marks: what shows their intervals."""
    if max(counts) == 1:
        return "one seed, so no intervals" if marks else "one seed"
    mean = f"mean over n = {tables.span(sorted({*counts}))} seeds"
    wide = ", of two as wide as 12.7 standard errors" if 2 in counts else ""
    return f"{mean}; {marks}: 95 % intervals (Student's t){wide}" if marks else mean


def _write(folder: Path, files: Mapping[str, bytes | str]) -> list[Path]:
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]
