"""Leaderboards as files: tables (LaTeX, Markdown, CSV, parquet), figures (PDF, PNG), the reproduction ledger, one HTML page."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ..analysis.leaderboard import Leaderboard, leaderboard
from ..analysis.ledger import ledger
from ..analysis.rows import check_names, configurations, names_of, rows_called
from ..analysis.summary import summary
from ..errors import UserError
from ..files import write_atomic
from ..protocol import Published
from ..record import imported as imports
from ..record.served import read_served
from ..record.store import boards_with_records, not_ranked, read_usable
from ..registry import suggest
from ..source import stale
from ..text import clean
from . import figures as drawing
from . import latex, tables
from .columns import TITLES
from .looks import entry_of, labels_of
from .page import informative, page
from .selection import Selection


def write_reports(
    results: Path,
    output: Path,
    published: Mapping[str, Sequence[Published]],
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    *,
    files: Mapping[str, str] = MappingProxyType({}),
) -> list[Path]:
    """Write a report on every protocol and tier of the results folder that has records, or on those selected, each into
    `output`/protocol/tier, and a summary, the ledger of their protocols and the page with all of it into `output`; returns the
    files.

    published: the figures of every known protocol, by its name. The ledger sees all tiers, whichever are reported on.
    files: as for `leaderboard`. Rows are tested against those that the selection compares, or else shows.
    Raises UserError, before anything is written, where a selected protocol, tier or row has no records; and at the end, if there
    are records that cannot be used: the reports are written without them, and name them.
    """
    check_figures(selection.figures or ())
    protocols, tiers = selection.protocols, selection.tiers
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
    called: dict[tuple[str, str], dict[str, set[str]]] = {key: {} for key in shown}  # the names of each row to compare
    if selection.compare or selection.rows:
        for key, runs in shown.items():
            rows = configurations(runs)
            called[key] = {row: {*names, entry_of(rows[row][0]).label} for row, names in names_of(rows).items()}
            if selection.compare:
                called[key] |= {row: {row} for row in imports.rows_of(made_elsewhere[key][0])}
    known = {name for rows in called.values() for names in rows.values() for name in names}
    check_names(selection.compare, known)
    family = selection.compare or [row.name for row in selection.rows]
    boards = {
        key: leaderboard(
            runs,
            published.get(key[0], ()),
            files=files,
            stale=stale,
            compare=list(dict.fromkeys(row for name in family for row in rows_called(name, called[key]))),
            refused=read[key][1] | made_elsewhere[key][1],
            imported=made_elsewhere[key][0],
            served=read_served(results.joinpath(*key)),
        )
        for key, runs in shown.items()
    }
    selection.check_rows(boards.values())
    written = [file for key, board in boards.items() for file in write_report(board, output.joinpath(*key), selection)]
    figures = {name: figures for name, figures in published.items() if not protocols or name in protocols}
    base = Path(os.path.relpath(results, output)).as_posix()
    frame = ledger([run for runs in records.values() for run in runs], figures)
    largest = _largest(boards.values())
    ranked = summary(largest, list(dict.fromkeys(row for board in largest for row in selection.rows_on(board))))
    tabular, floating = latex.summary_table(ranked, largest, selection)
    whole = latex.with_tabular(*reversed(latex.summary_table(ranked, largest, replace(selection, fit="two-column"))))
    captions: dict[str, str] = {}
    drawn: dict[str, bytes] = {}
    if ranked.over == "boards" and "critical_difference" in (selection.figures or drawing.USUAL):
        with drawing.style(selection.font):
            if diagram := drawing.ranks_of(ranked, selection, drawing.shown_in(ranked, largest, selection)):
                captions["critical_difference"] = diagram.caption
                made = "\n".join(board.provenance for board in largest)
                files_of = drawing.render(diagram.figure, diagram.caption, made)
                drawn = {f"critical_difference.{suffix}": content for suffix, content in files_of.items()}
    ledger_tex = latex.ledger_table(frame)
    written += _write(
        output,
        {
            "index.html": page(list(boards.values()), base, selection),
            "summary_tabular.tex": tabular,
            "summary.tex": latex.taking_in(floating, "summary_tabular"),
            "ledger.md": tables.ledger_markdown(frame),
            "ledger.tex": ledger_tex,
            "ledger.csv": tables.csv(frame),
            "ledger.parquet": tables.parquet(frame),
            "report.tex": latex.document(
                "Summary and reproduction ledger", "", [whole], captions, ledger=ledger_tex, fit=selection.fit
            ),
            **drawn,
        },
    )
    if refused:
        raise UserError(f"{output}: written without records that cannot be used: {not_ranked(refused)}")
    return written


def _largest(boards: Collection[Leaderboard]) -> list[Leaderboard]:
    """One board of each protocol, the most informative one, as on the page."""
    largest = {board.protocol: board for board in sorted(boards, key=informative, reverse=True)}
    return [board for board in boards if largest[board.protocol] is board]


def write_report(
    board: Leaderboard,
    folder: Path,
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    figures: bool = True,
) -> list[Path]:
    """Write every table of `board` into `folder`, and its figures if asked for; returns the files. LaTeX shows the rows of the
    selection, and the document has the others in its appendix; the other tables have all rows.

    Figures of an earlier board that are not drawn again are removed. The same records give the same bytes. Raises UserError
    when `folder` cannot be written; everything is rendered before the first file is.
    """
    files: dict[str, bytes | str] = {}
    floats = []
    for kind in TITLES:
        files[f"{kind}.md"] = tables.to_markdown(board, kind)
        files[f"{kind}.csv"] = tables.to_csv(board, kind)
        files[f"{kind}.parquet"] = tables.parquet(tables.numbers(board, kind))
        if (not selection.boards or kind in selection.boards) and len(selection.frame(board, kind)):
            tabular, floating = latex.board_table(board, kind, selection)
            files[f"{kind}_tabular.tex"] = tabular
            files[f"{kind}.tex"] = latex.taking_in(floating, f"{kind}_tabular")
            floats.append(latex.in_document(board, kind, selection))
    if len(board.forms) > len(board.parameter_efficiency):
        files["storage_forms.csv"] = tables.csv(board.forms.assign(protocol=board.protocol, tier=board.tier))
    captions, drawn = _draw(board, selection) if figures else ({}, {})
    files |= drawn

    title, notes = f"{board.protocol}, tier {board.tier}", tables.notes_of(board)
    labels = labels_of(board) | {name: row.label for name, row in selection.rows_on(board).items()}
    files["leaderboard.md"] = "\n".join(
        [
            f"# {tables.markdown_text(title)}\n",
            *(tables.to_markdown(board, kind, footnotes=False) for kind in TITLES),
            *(["## Notes\n\n" + "".join(f"- {note}\n" for note in map(tables.markdown_text, notes))] if notes else []),
            *(["## Figures\n"] if captions else []),
            *(f"[![{name}]({name}.png)]({name}.pdf)\n\n{tables.markdown_text(caption)}\n" for name, caption in captions.items()),
        ]
    )
    appendix = []
    kinds = [kind for kind in TITLES if not selection.boards or kind in selection.boards]
    columns = {name for kind in kinds for name in selection.columns_of(kind)}
    if others := selection.others_on(board):
        chosen = replace(selection, columns={"accuracy": APPENDIX})
        tabular, floating = latex.board_table(board, "accuracy", chosen, others, "two-column")
        appendix = [latex.with_tabular(floating, tabular)]
        columns |= {*APPENDIX}
    said = [note.calling(labels) for note in tables.notes_of(board, columns)]
    files["report.tex"] = latex.document(title, board.provenance, floats, captions, appendix, said, fit=selection.fit)
    written = _write(folder, files)
    old = [f"{name}.{suffix}" for name in drawing.FIGURES for suffix in ("pdf", "png")]
    old += [f"{kind}{end}.tex" for kind in TITLES for end in ("", "_tabular")]
    for path in (folder / name for name in old if name not in files):
        with suppress(OSError):  # not there, or another command is at the same folder
            path.unlink()
    return written


APPENDIX = ("accuracy", "bwt", "megabytes", "int8_megabytes", "int8_accuracy", "held")


def compile_document(source: Path) -> str | None:
    """Make the PDF of a document beside it; why there is none, otherwise."""
    if not shutil.which("pdflatex"):
        return "no pdflatex on this machine"
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "-output-directory"]
    fixed = {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}  # the same records give the same bytes
    with tempfile.TemporaryDirectory() as made:
        for _ in range(4):  # the columns of a longtable settle in several
            try:
                done = subprocess.run(
                    [*command, made, source.name],
                    cwd=source.parent,
                    env=os.environ | fixed,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=300,
                )
            except subprocess.TimeoutExpired:
                return "pdflatex did not end within 300 s"
            if done.returncode:
                lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("!")]
                return clean(f"pdflatex failed: {lines[0] if lines else 'no message'}")
            if b"Rerun" not in done.stdout:
                break
        write_atomic(source.with_suffix(".pdf"), Path(made, source.stem).with_suffix(".pdf").read_bytes())
    return None


def check_figures(names: Collection[str]) -> None:
    """Raises UserError for a figure that cannot be drawn."""
    for name in names:
        if name not in drawing.FIGURES:
            raise UserError(f"no figure is called {name!r}", suggest(name, drawing.FIGURES))


def _draw(board: Leaderboard, selection: Selection) -> tuple[dict[str, str], dict[str, bytes]]:
    """The captions of the figures that are selected and that these records allow, by name, and their files."""
    captions: dict[str, str] = {}
    files: dict[str, bytes] = {}
    shown, left = len(selection.rows_on(board)), len(selection.others_on(board))
    some = f" {shown} of {shown + left} rows." if left and not selection.rows else ""
    with drawing.style(selection.font):
        for name in drawing.USUAL if selection.figures is None else selection.figures:
            if drawn := drawing.FIGURES[name](board, selection):
                captions[name] = f"{drawn.caption}{some}"
                rendered = drawing.render(drawn.figure, drawn.caption, board.provenance)
                files |= {f"{name}.{suffix}": content for suffix, content in rendered.items()}
    return captions, files


def _write(folder: Path, files: Mapping[str, bytes | str]) -> list[Path]:
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]
