"""A leaderboard as files: tables in Markdown, CSV and LaTeX, figures in PDF and PNG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..leaderboard import Leaderboard, configurations
from ..records import RunRecord, digest, write_atomic
from . import tables


def write_report(board: Leaderboard, records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write every table and figure of `board`, made of `records`, into `folder`; returns the files.

    The same records give the same bytes. Raises UserError when `folder` cannot be written; everything is rendered before
    the first file is.
    """
    from . import figures  # matplotlib takes a second to import: whoever wants a table on the screen need not wait

    runs = configurations(records)
    files: dict[str, bytes | str] = {}
    for kind in tables.TITLES:
        files[f"{kind}.md"] = tables.to_markdown(board, kind)
        files[f"{kind}.csv"] = tables.to_csv(board, kind)
        files[f"{kind}.tex"] = tables.to_latex(board, kind)

    drawings = {
        "accuracy_vs_size": figures.accuracy_vs_size(board),
        "accuracy_after_each_task": figures.accuracy_after_each_task(runs, board.provenance),
    }
    if board.training_memory["held"].notna().any():
        drawings["accuracy_vs_memory"] = figures.accuracy_vs_memory(board)
    for label, group in runs.items():
        name = re.sub(r"[^\w.+=-]+", "-", label).strip("-")
        if len(name) > 100:  # a file's name has its limits
            name = f"{name[:80]}-{digest(label)[:8]}"
        drawings[f"accuracy_matrix_{name}"] = figures.accuracy_matrix(label, group, board.provenance)
    for name, drawing in drawings.items():
        files |= {f"{name}.{suffix}": content for suffix, content in figures.render(drawing).items()}

    files["leaderboard.md"] = "\n".join(
        [
            f"# {board.protocol}, tier {board.tier}\n",
            *(tables.to_markdown(board, kind, footnotes=False) for kind in tables.TITLES),
            *(["## Notes\n\n" + "".join(f"- {note}\n" for note in board.footnotes)] if board.footnotes else []),
            "## Figures\n",
            *(f"[![{name}]({name}.png)]({name}.pdf)\n" for name in drawings),
        ]
    )
    for name, content in files.items():
        write_atomic(folder / name, content)
    for old in folder.glob("accuracy_matrix_*"):  # of rows that are no longer there, or are called otherwise now
        if old.name not in files and old.suffix in (".pdf", ".png"):
            old.unlink()
    return [folder / name for name in files]
