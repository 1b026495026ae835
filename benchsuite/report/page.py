"""Leaderboards as one self-contained HTML page: no network, no other file, only links to the records behind it.

`page.html` is the page without its data, which is inserted as JSON. The script there sorts, filters and draws. Every number comes
as computed, with the text that `tables` makes of it, so that numbers are formatted in one place only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from ..analysis.leaderboard import Leaderboard, leaderboard
from ..analysis.rows import configurations, series
from ..errors import UserError
from ..record.schema import RunRecord
from ..record.served import ServedSpeeds
from ..record.store import RECORD
from . import tables
from .columns import COLUMNS, TITLES
from .latex import LATEX, latex_heading
from .looks import entry_of, looks_of

MODIFIED = "compressed activations"  # a further family of `method+modifier`
FIGURES = [
    {
        "kind": "parameter_efficiency",
        "x": "megabytes",
        "heading": "stored for all tasks (MB)",
        "title": "Accuracy against size",
        "file": "accuracy_vs_size",
    },
    {
        "kind": "training_memory",
        "x": "held",
        "heading": "held for the backward pass (MB)",
        "title": "Accuracy against training memory",
        "file": "accuracy_vs_memory",
    },
]


def page(boards: Sequence[Leaderboard], base: str = ".") -> str:
    """The page with every board. Rows are filtered by family; one under a modifier is also in "compressed activations".

    base: the results folder as seen from the page: links lead to base/<job folder>/record.json.
    The same boards give the same text. Raises UserError without boards, and for two of one protocol and tier.
    """
    if not boards:
        raise UserError("no finished runs to show", "run `benchsuite leaderboard` or `benchsuite run` first")
    names = [f"{board.protocol}, tier {board.tier}" for board in boards]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two boards of {twice[0]}", "rank their records together, or write a page for each")
    columns = [column for kind in TITLES for column in COLUMNS[kind]]
    data = {
        "titles": TITLES,
        "headings": {column.name: column.heading for column in columns},
        "hidden": sorted({column.name for column in columns if not column.screen}),
        "latex": {chr(code): text for code, text in LATEX.items()},
        "figures": FIGURES,
        "boards": [_board(board, base) for board in boards],
    }
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for name in ("style", "script"):  # the page's content security policy allows these two only
        found = re.search(f"<{name}>(.*?)</{name}>", html, re.DOTALL)
        assert found is not None
        sha = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        html = html.replace(f"{{{{{name}}}}}", f"'sha256-{sha}'", 1)
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return html.replace("{{data}}", text.replace("<", r"\u003c"))  # no text of a record may close the element that it is in


def _board(board: Leaderboard, base: str) -> dict[str, Any]:
    own = _of_each_run([run for runs in board.runs.values() for run in runs], board.served)
    frames = {kind: getattr(board, kind) for kind in TITLES}
    published = {
        label: bool(p) for frame in frames.values() for label, p in zip(frame["method"], frame["published"], strict=True)
    }
    points = board.parameter_efficiency.dropna(subset=["accuracy", "megabytes"])
    drawn = sorted({(published[label], series(label)) for label in points["method"]})
    order = {name: i for i, (_, name) in enumerate(drawn)}
    looks = looks_of(board)
    rows = []
    for label, is_published in published.items():
        group, name = board.runs.get(label, []), series(label)
        place = order.get(name)
        rows.append(
            {
                "label": label,
                "series": name,
                "published": is_published,
                "families": _families(group[0]) if group else ["unverified" if label in board.unverified else "published"],
                "order": place,
                "look": None if place is None else [looks[label].colour, looks[label].marker, looks[label].fill],
                "settings": _settings(group[0]) if group else "",
                "runs": [_run(run, own[run.job.folder], base) for run in group],
            }
        )
    index = {label: i for i, label in enumerate(published)}
    return {
        "protocol": board.protocol,
        "tier": board.tier,
        "provenance": board.provenance,
        "notes": tables.notes_of(board),
        "rows": rows,
        "captions": {kind: tables.caption(board, kind) for kind in frames},
        "tables": {kind: _table(board, kind, index, rows) for kind in frames},
    }


def _of_each_run(records: Sequence[RunRecord], served: ServedSpeeds) -> dict[Path, dict[str, str]]:
    """What a board would show for each run alone: texts by column, by the run's folder.

    A board of one seed is enough, since a run is compared only with runs of its own seed."""
    texts: dict[Path, dict[str, str]] = {}
    for seed in sorted({record.job.seed for record in records}):
        same = [record for record in records if record.job.seed == seed]
        board = leaderboard(same, served=served)
        folders = {label: run.job.folder for label, (run,) in configurations(same).items()}
        for kind in TITLES:
            for row in getattr(board, kind).to_dict("records"):
                found = texts.setdefault(folders[row["method"]], {})
                for column in tables.shown(board, kind):
                    if column.name not in ("n", "pareto", "matched_accuracy"):  # of a row among others, not of a run
                        found[column.name] = tables.cell_text(row, column)
    return texts


def _families(run: RunRecord) -> list[str]:
    return [entry_of(run).family, *([MODIFIED] if run.job.base != run.job.method else [])]


def _settings(run: RunRecord) -> str:
    return ", ".join(
        f"{name} = {value:.6g}" if isinstance(value, float) else f"{name} = {value}" for name, value in run.job.settings.items()
    )


def _run(run: RunRecord, values: dict[str, str], base: str) -> dict[str, Any]:
    environment = run.environment
    return {
        "seed": run.job.seed,
        "record": f"{quote(os.fsencode(base))}/{quote(run.job.folder.as_posix())}/{RECORD}",
        "date": environment.date[:10],
        "device": f"{environment.hardware}, {run.job.precision}",
        "versions": ", ".join(f"{name} {version}" for name, version in environment.versions.items()) or "unknown",
        "revision": str(environment.source),
        "values": values,
    }


def _table(board: Leaderboard, kind: str, index: Mapping[str, int], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One board: columns, and rows of cells, each [value, text, half-width of its interval]."""
    frame = getattr(board, kind)
    texts, columns, marks = tables.cell_texts(board, kind), tables.shown(board, kind), tables.best_and_second(board, kind)
    entries = [{"name": "method", "heading": "Method", "text": True, "best": [], "second": []}]
    for column in columns:
        marked = {
            mark: [index[label] for i, label in enumerate(frame["method"]) if marks.get((i, column.heading)) == mark]
            for mark in ("best", "second")
        }
        entries.append(
            {
                "name": column.name,
                "heading": column.heading,
                "latex": latex_heading(column.heading),
                "text": False,
                "direction": column.best,
                "interval": f"{column.name}_ci" in frame,
                **marked,
            }
        )
    entries.append({"name": "family", "heading": "Family", "text": True, "best": [], "second": []})
    curves = _curves(board) if kind == "parameter_efficiency" else {}
    found = []
    for row, text in zip(frame.to_dict("records"), texts.to_dict("records"), strict=True):
        cells = [[_number(row[c.name]), text[c.heading], _number(row.get(f"{c.name}_ci"))] for c in columns]
        label, families = row["method"], ", ".join(rows[index[row["method"]]]["families"])
        cells = [[label, text["Method"]], *cells, [families, families]]
        found.append({"row": index[label], "cells": cells, **curves.get(label, {})})
    return {"columns": entries, "rows": found}


def _curves(board: Leaderboard) -> dict[str, dict[str, Any]]:
    """Of each row: whether the file that its runs left is on the front of all storage forms, and the other forms, each with its
    megabytes, its accuracy and whether it is on the front."""
    found: dict[str, dict[str, Any]] = {}
    for point in board.forms.to_dict("records"):
        if point["method"] not in found:
            found[point["method"]] = {"front": bool(point["pareto"]), "forms": []}
        else:
            entry = [point["form"], _number(point["megabytes"]), _number(point["accuracy"]), bool(point["pareto"])]
            found[point["method"]]["forms"].append(entry)
    return found


def _number(value: Any) -> Any:
    """For JSON, which has no NaN."""
    if value is None or pd.isna(value):
        return None
    if isinstance(value, bool):
        return value
    return int(value) if float(value).is_integer() else float(value)
