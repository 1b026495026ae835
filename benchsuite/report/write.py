"""Leaderboards as files: tables (LaTeX, Markdown, CSV, parquet), figures (PDF, PNG), the reproduction ledger, one HTML page."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..analysis.leaderboard import Leaderboard, leaderboard
from ..analysis.ledger import ledger
from ..analysis.rows import check_names, configurations, names_of
from ..errors import UserError
from ..files import write_atomic
from ..protocol import Published
from ..record import imported as imports
from ..record.served import read_served
from ..record.store import boards_with_records, not_ranked, read_usable
from ..registry import suggest
from ..source import stale
from . import figures as drawing
from . import tables
from .columns import TITLES
from .page import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_reports(
    results: Path,
    output: Path,
    published: Mapping[str, Sequence[Published]],
    *,
    protocols: Collection[str] = (),
    tiers: Collection[str] = (),
    files: Mapping[str, str] = MappingProxyType({}),
    compare: Sequence[str] = (),
) -> list[Path]:
    """Write a report on every protocol and tier of the results folder that has records, or on those named, each into
    `output`/protocol/tier, and the ledger of their protocols and the page with all of it into `output`; returns the files.

    published: the figures of every known protocol, by its name. The ledger sees all tiers, whichever are reported on.
    files, compare: as for `leaderboard`.
    Raises UserError, before anything is written, where a named protocol or tier has no records; and at the end, if there are
    records that cannot be used: the reports are written without them, and name them.
    """
    found = boards_with_records(results)
    for words, there, given in (("protocol", {p for p, _ in found}, protocols), ("tier", {t for _, t in found}, tiers)):
        for name in given:
            if name not in there and not (words == "protocol" and name in published):
                raise UserError(
                    f"{results}: has no records of a {words} {name!r}", f"{suggest(name, there) if there else 'run it first'}"
                )
    if not found:
        raise UserError(f"{results}: has no records", "run `benchsuite leaderboard` first, or name the folder with --results")
    read = {key: read_usable(results.joinpath(*key)) for key in sorted(found) if not protocols or key[0] in protocols}
    made_elsewhere = {key: imports.read_board(results.joinpath(*key)) for key in read}
    both = [*read.values(), *made_elsewhere.values()]
    refused = {path: reason for _, unusable in both for path, reason in unusable.items()}
    records = {key: runs for key, (runs, _) in read.items() if runs}
    if refused and not records:
        raise UserError(not_ranked(refused))
    shown = {key: runs for key, runs in records.items() if not tiers or key[1] in tiers}
    if not shown:
        raise UserError(f"{results}: has no records of {', '.join(protocols)} in tier {', '.join(tiers)}", "run it first")
    named: dict[tuple[str, str], set[str]] = {}
    if compare:
        named = {
            key: set(imports.rows_of(made_elsewhere[key][0])).union(*names_of(configurations(runs)).values())
            for key, runs in shown.items()
        }
        check_names(compare, set().union(*named.values()))
    boards = {
        key: leaderboard(
            runs,
            published.get(key[0], ()),
            files=files,
            stale=stale,
            compare=[name for name in compare if name in named[key]],
            refused=read[key][1] | made_elsewhere[key][1],
            imported=made_elsewhere[key][0],
            served=read_served(results.joinpath(*key)),
        )
        for key, runs in shown.items()
    }
    written = [file for key, board in boards.items() for file in write_report(board, output.joinpath(*key))]
    figures = {name: figures for name, figures in published.items() if not protocols or name in protocols}
    base = Path(os.path.relpath(results, output)).as_posix()
    frame = ledger([run for runs in records.values() for run in runs], figures)
    written += _write(
        output,
        {
            "index.html": page(list(boards.values()), base),
            "ledger.md": tables.ledger_markdown(frame),
            "ledger.tex": tables.ledger_latex(frame),
            "ledger.csv": tables.csv(frame),
            "ledger.parquet": tables.parquet(frame),
            "report.tex": tables.latex_document("Reproduction ledger", ["ledger"], {}, []),
        },
    )
    if refused:
        raise UserError(f"{output}: written without records that cannot be used: {not_ranked(refused)}")
    return written


def write_report(board: Leaderboard, folder: Path, figures: bool = True) -> list[Path]:
    """Write every table of `board` into `folder`, and its figures if asked for; returns the files.

    Figures of an earlier board that are not drawn again are removed. The same records give the same bytes. Raises UserError
    when `folder` cannot be written; everything is rendered before the first file is.
    """
    files: dict[str, bytes | str] = {}
    for kind in TITLES:
        files[f"{kind}.md"] = tables.to_markdown(board, kind)
        files[f"{kind}.csv"] = tables.to_csv(board, kind)
        files[f"{kind}.parquet"] = tables.parquet(tables.numbers(board, kind))
        files[f"{kind}.tex"] = tables.to_latex(board, kind)
    if len(board.forms) > len(board.parameter_efficiency):
        files["storage_forms.csv"] = tables.csv(board.forms.assign(protocol=board.protocol, tier=board.tier))
    captions: dict[str, str] = {}
    if figures:
        with drawing.plain_text():
            for name, (figure, caption) in _draw(board).items():
                captions[name] = caption
                files |= {f"{name}.{suffix}": content for suffix, content in drawing.render(figure).items()}

    title, notes = f"{board.protocol}, tier {board.tier}", tables.notes_of(board)
    files["leaderboard.md"] = "\n".join(
        [
            f"# {tables.markdown_text(title)}\n",
            *(tables.to_markdown(board, kind, footnotes=False) for kind in TITLES),
            *(["## Notes\n\n" + "".join(f"- {note}\n" for note in map(tables.markdown_text, notes))] if notes else []),
            *(["## Figures\n"] if captions else []),
            *(f"[![{name}]({name}.png)]({name}.pdf)\n\n{tables.markdown_text(caption)}\n" for name, caption in captions.items()),
        ]
    )
    files["report.tex"] = tables.latex_document(title, list(TITLES), captions, notes, wide=drawing.SMALL_MULTIPLES)
    written = _write(folder, files)
    for old in (folder / f"{name}.{suffix}" for name in FIGURES for suffix in ("pdf", "png")):
        if old.name not in files:
            with suppress(OSError):  # not there, or another command is at the same folder
                old.unlink()
    return written


FIGURES = (
    *("accuracy_vs_size", "accuracy_vs_memory", "accuracy_after_each_task", "forgetting_after_each_task"),
    *("stored_after_each_task", "accuracy_matrices", "rank_growth"),
)


def _draw(board: Leaderboard) -> dict[str, tuple[Figure, str]]:
    """Every figure that these records allow, with its caption, by the name of its file."""
    runs, made = board.runs, board.provenance
    where = f"on {board.protocol}, tier {board.tier}"
    seeds = [len(group) for group in runs.values()]
    front = f"{where}; {_averaged(seeds, 'bars')}; dashed: Pareto front of the ranked rows"
    front += f", without {', '.join(board.elsewhere)} (other tasks or images)." if board.elsewhere else "."
    several = len(board.forms) > len(board.parameter_efficiency)
    curves = " A line joins the storage forms of a row: fp32 (large), fp16, int8, int6, int4." if several else ""
    over = f"{where}, each seed in its own order; "
    over += f"{_averaged(seeds, 'bands and bars' if len(runs) <= drawing.FEW else 'bars at the last task')}."
    ranks = _averaged(seeds, "bands")
    drawn = (
        (drawing.accuracy_vs_size(board), f"Accuracy against stored size {front}{curves}"),
        (drawing.accuracy_vs_memory(board), f"Accuracy against training memory {front}"),
        (drawing.accuracy_after_each_task(runs, made), f"Mean accuracy on the tasks learned so far {over}"),
        (drawing.forgetting_after_each_task(runs, made), f"Mean forgetting of the tasks learned so far {over}"),
        (drawing.stored_after_each_task(runs, made), f"Stored size over tasks {over}"),
        (
            drawing.accuracy_matrices(runs, made),
            f"Accuracy matrices {where}: accuracy on task k of each seed's order after t tasks; {_averaged(seeds)}.",
        ),
        (drawing.rank_growth(runs, made), f"Components of each layer over tasks {where}; {ranks}."),
    )
    return {name: (figure, caption) for name, (figure, caption) in zip(FIGURES, drawn, strict=True) if figure}


def _averaged(counts: Collection[int], marks: str = "") -> str:
    """How rows of so many seeds each are averaged. marks: what shows their intervals."""
    if max(counts, default=1) == 1:
        return "one seed, so no intervals" if marks else "one seed"
    mean = f"mean over n = {tables.span(sorted({*counts}))} seeds"
    return f"{mean}; {marks}: {tables.confidence_interval(counts)}" if marks else mean


def _write(folder: Path, files: Mapping[str, bytes | str]) -> list[Path]:
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]
