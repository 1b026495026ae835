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
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from ..analysis.leaderboard import Leaderboard, leaderboard
from ..analysis.rows import configurations, series
from ..analysis.statistics import per_task
from ..analysis.summary import summary
from ..errors import UserError
from ..protocol import TIERS
from ..record.schema import FORMS, MB, NATIVE, RunRecord
from ..record.served import ServedSpeeds
from ..record.store import RECORD
from . import tables
from .columns import COLUMNS, RANK, TITLES, Column
from .latex import LATEX, latex_heading
from .looks import Look, entry_of, labels_of, looks_of
from .selection import Selection

SELECTED = "selected"  # a further family of the rows of a selection
MODIFIED = "compressed activations"  # a further family of `method+modifier`
PER_TASK = {"learned": "accuracy", "final": "accuracy", "change": "bwt"}  # what each column of `per_task` is of a single task
AS_LEFT = (  # columns that speak of the file that a run left, and of no other storage form
    *("weights", "heads", "masks", "other", "ratio", "compression", "added", "matched_accuracy", "pareto"),
    *("int8_megabytes", "int8_accuracy", "smallest_megabytes", "served_speed"),
)
IN_SUMMARY = ("accuracy", "bwt", "megabytes", "int8_megabytes")
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
    {"kind": "tasks", "title": "Accuracy on each task", "file": "accuracy_on_each_task"},
]


def page(boards: Sequence[Leaderboard], base: str = ".", selection: Selection = Selection()) -> str:  # noqa: B008 (frozen)
    """The page with every board. Rows are filtered by family; one under a modifier is also in "compressed activations".

    It opens on the first board by `informative`, below a summary of the first board of each protocol if there are several.
    base: the results folder as seen from the page: links lead to base/<job folder>/record.json.
    selection: its rows have its labels and are a family of their own, "selected", which the page opens with.
    The same boards give the same text. Raises UserError without boards, and for two of one protocol and tier.
    """
    if not boards:
        raise UserError("no finished runs to show", "run `benchsuite leaderboard` or `benchsuite run` first")
    names = [f"{board.protocol}, tier {board.tier}" for board in boards]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two boards of {twice[0]}", "rank their records together, or write a page for each")
    boards = sorted(boards, key=informative)
    columns = [column for kind in TITLES for column in COLUMNS[kind]]
    shown = [_board(board, base, selection) for board in boards]
    data = {
        "titles": {**TITLES, "tasks": "Accuracy on each task"},
        "headings": {column.name: column.heading for column in columns},
        "hidden": sorted({column.name for column in columns if not column.screen}),
        "as_left": AS_LEFT,
        "opens_with": [SELECTED] if selection.rows else [],
        "latex": {chr(code): text for code, text in LATEX.items()},
        "figures": FIGURES,
        "boards": shown,
        "summary": _summary(boards, shown),
    }
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for name in ("style", "script"):  # the page's content security policy allows these two only
        found = re.search(f"<{name}>(.*?)</{name}>", html, re.DOTALL)
        assert found is not None
        sha = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        html = html.replace(f"{{{{{name}}}}}", f"'sha256-{sha}'", 1)
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return html.replace("{{data}}", text.replace("<", r"\u003c"))  # no text of a record may close the element that it is in


def informative(board: Leaderboard) -> tuple[Any, ...]:
    """Sorts boards, the most informative first: complete data, then the largest tier, the most seeds, the most rows."""
    runs = list(board.runs.values())
    complete = all(entry.complete for group in runs for run in group for entry in run.data)
    tier = list(TIERS).index(board.tier) if board.tier in TIERS else len(TIERS)
    return not complete, tier, -max(map(len, runs)), -len(runs), board.protocol, board.tier


def _board(board: Leaderboard, base: str, selection: Selection) -> dict[str, Any]:
    own = _of_each_run([run for runs in board.runs.values() for run in runs], board.served)
    frames = {kind: getattr(board, kind) for kind in TITLES}
    published = {
        label: bool(p) for frame in frames.values() for label, p in zip(frame["method"], frame["published"], strict=True)
    }
    looks, names = looks_of(board), labels_of(board)
    selected = selection.rows_on(board) if selection.rows else {}
    names |= {label: row.label for label, row in selected.items()}
    rows = []
    for label, is_published in published.items():
        group = board.runs.get(label, [])
        families = _families(group[0]) if group else ["unverified" if label in board.unverified else "published"]
        style = "published" if is_published else "reference" if families == ["reference"] else ""
        rows.append(
            {
                "label": label,
                "name": names[label],
                "series": series(label),
                "published": is_published,
                "families": families + [SELECTED] * (label in selected),
                "style": "ours" if label in selected and selected[label].ours else style,
                "look": _look(looks[label]),
                "settings": _settings(group[0]) if group else "",
                "runs": [_run(run, own[run.job.folder], base) for run in group],
            }
        )
    index = {label: i for i, label in enumerate(published)}
    return {
        "protocol": board.protocol,
        "tier": board.tier,
        "provenance": board.provenance,
        "notes": [
            {"text": note.calling(names), "rows": sorted(index[label] for label in note.rows & index.keys())}
            for note in tables.notes_of(board)
        ],
        "rows": rows,
        "captions": {kind: tables.caption(board, kind, labels=names) for kind in frames} | {"tasks": _says_of_tasks(board)},
        "tables": {kind: _table(board, kind, index, rows) for kind in frames},
        "tasks": _tasks(board, index, rows),
        "forms": _forms(board, index),
    }


def _says_of_tasks(board: Leaderboard) -> str:
    seeds = sorted({len(runs) for runs in board.runs.values()})
    text = f"Accuracy on each task on {board.protocol}, tier {board.tier}: "
    text += "one seed, so no intervals. " if seeds == [1] else f"mean ± {tables.confidence_interval(seeds)}. "
    text += "Tasks in the order of learning, which may be another one for each seed. Right after a task was learned and after the"
    return f"{text} last task in per cent, their difference in points."


def _summary(boards: Sequence[Leaderboard], shown: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The most informative board of each protocol side by side; None for a single protocol. boards: the most informative first.
    shown: the same as on the page."""
    first: dict[str, int] = {}
    for i, board in enumerate(boards):
        first.setdefault(board.protocol, i)
    places = {f"{boards[i].protocol}/{boards[i].tier}": i for i in first.values()}
    if len(places) < 2:
        return None
    made = summary([boards[i] for i in places.values()])
    index = {name: i for i, name in enumerate(made.ranks["method"])}
    of: list[dict[str, Any]] = [{"on": {}} for _ in index]
    ranks = made.ranks.rename(columns={"rank_note": "average_rank_note"}).assign(competes=True)
    cells, marks = _cells(ranks, RANK, list(index.values()))
    found = [(_column(RANK) | {"group": "All"} | marks, cells)]
    known = {column.name: column for kind in TITLES for column in COLUMNS[kind]}
    for key, place in places.items():
        frame = made.results[made.results["board"] == key]
        rows = {row["label"]: i for i, row in enumerate(shown[place]["rows"])}
        for name, label in zip(frame["method"], frame["row"], strict=True):
            said = of[index[name]]
            said["on"][place] = rows[label]
            if "label" not in said:
                row = shown[place]["rows"][rows[label]]
                said |= {part: row[part] for part in ("series", "published", "families", "style", "look")}
                said |= {"label": name, "name": row["name"].removesuffix(label[len(name) :]) if label.startswith(name) else name}
        for column in (known[name] for name in IN_SUMMARY):
            cells, marks = _cells(frame, column, [index[name] for name in frame["method"]])
            entry = {"name": f"{column.name}_{place}", "statistic": column.name, "board": place}
            entry |= {"group": f"{boards[place].protocol}, tier {boards[place].tier}"}
            found.append((_column(column) | entry | marks, cells))
    rows_of = [{"row": i, "cells": [cells.get(i, [None, "–"]) for _, cells in found]} for i in index.values()]
    ranked = int(made.ranks["average_rank"].notna().sum())
    caption = (
        f"The most informative board of each protocol. Average rank: by accuracy, 1 is the best, over the {ranked} rows that are"
        " ranked on every one of these boards; ties share the mean of their ranks. Rows that lack a board have none."
    )
    said = {"title": f"Summary over {len(places)} protocols", "caption": " ".join([caption, *made.notes]), "of": of}
    framed = _framed([column for column, _ in found], rows_of, of)
    for cells in (framed["columns"], *(row["cells"] for row in rows_of)):  # no room for families
        cells.pop()
    return said | framed


def _look(look: Look) -> list[str]:
    return [look.colour, look.marker, look.fill, look.line]


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
    """In words, with where the values come from; those that are nobody's choice first."""
    chosen: dict[str, list[str]] = {"": []}
    for name, value in run.job.settings.items():
        words = f"{name} = {value:.6g}" if isinstance(value, float) else f"{name} = {value}"
        chosen.setdefault(run.job.origins.get(name, ""), []).append(words)
    return "; ".join(
        f"{', '.join(words)} ({origin})" if origin else ", ".join(words) for origin, words in chosen.items() if words
    )


def _run(run: RunRecord, values: dict[str, str], base: str) -> dict[str, Any]:
    environment = run.environment
    for form, stored in run.forms.items():
        right = [correct / task.test for correct, task in zip(stored.correct, run.tasks, strict=True)]
        point = {"megabytes": stored.sizes.total / MB, "accuracy": 100 * sum(right) / len(right)}
        values |= {f"{column.name} {form}": tables.cell_text(point, column) for column in _size_and_accuracy()}
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
    entries = []
    for column in columns:
        marked = {
            mark: [index[label] for i, label in enumerate(frame["method"]) if marks.get((i, column.heading)) == mark]
            for mark in ("best", "second")
        }
        entries.append(_column(column) | {"interval": f"{column.name}_ci" in frame} | marked)
    curves = _curves(board) if kind == "parameter_efficiency" else {}
    found = []
    for row, text in zip(frame.to_dict("records"), texts.to_dict("records"), strict=True):
        cells = [[_number(row[c.name]), text[c.heading], _number(row.get(f"{c.name}_ci"))] for c in columns]
        found.append({"row": index[row["method"]], "cells": cells, **curves.get(row["method"], {})})
    told = [index[label] for label, read in zip(frame["method"], frame["n_tasks_read"], strict=True) if read]
    return _framed(entries, found, rows, told)


def _framed(
    columns: list[dict[str, Any]], rows: list[dict[str, Any]], of: Sequence[Mapping[str, Any]], told: Sequence[int] = ()
) -> dict[str, Any]:
    """A table with the columns that every one has, the method's first and its family's last. told: rows that know the number of
    tasks in advance."""
    for row in rows:
        said = of[row["row"]]
        families = ", ".join(family for family in said["families"] if family != SELECTED)
        mark = f" {tables.TOLD}" if row["row"] in told else ""
        row["cells"] = [[said["label"], said["name"] + mark], *row["cells"], [families, families]]
    first, last = ({"name": name, "heading": name.capitalize(), "text": True} for name in ("method", "family"))
    return {"columns": [first, *columns, last], "rows": rows}


def _column(column: Column) -> dict[str, Any]:
    latex = latex_heading(column.heading)
    return {"name": column.name, "heading": column.heading, "latex": latex, "direction": column.best}


def _cells(frame: pd.DataFrame, column: Column, index: Sequence[int]) -> tuple[dict[int, list[Any]], dict[str, list[int]]]:
    """The cells of a column by the index of their row, and which of those that compete are best and second best."""
    frame = frame.reset_index(drop=True)
    (column,) = tables.fitted([replace(column, optional=False)], frame)
    texts = [tables.cell_text(row, column) for row in frame.to_dict("records")]
    half = frame.get(f"{column.name}_ci", pd.Series(None, frame.index))
    cells = [[_number(value), text, _number(ci)] for value, text, ci in zip(frame[column.name], texts, half, strict=True)]
    marks = tables.best_of(frame, [column])
    marked = {mark: [index[i] for (i, _), found in marks.items() if found == mark] for mark in ("best", "second")}
    return dict(zip(index, cells, strict=True)), marked


def _size_and_accuracy() -> list[Column]:
    return [column for column in COLUMNS["parameter_efficiency"] if column.name in ("megabytes", "accuracy")]


def _forms(board: Leaderboard, index: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """What the columns of size and accuracy are in each storage form on record, by form and column."""
    found: dict[str, dict[str, Any]] = {}
    for form in (*NATIVE, *FORMS):
        frame = board.forms[board.forms["form"] == form]
        for column in _size_and_accuracy() if len(frame) else ():
            cells, marks = _cells(frame, column, [index[label] for label in frame["method"]])
            named = replace(column, heading=f"{column.heading}, {form}")
            found.setdefault(form, {})[column.name] = {**_column(named), **marks, "cells": cells}
    return found


def _tasks(board: Leaderboard, index: Mapping[str, int], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The accuracy on each task, a column each: right after learning, after the last task, and the difference."""
    frame = per_task(board.runs).merge(board.accuracy[["method", "competes", "learning_accuracy_note"]], on="method")
    order = [label for label in board.accuracy["method"] if label in board.runs]
    found = {}
    for moment, name in PER_TASK.items():
        columns, cells = [], []
        for number, tasks in frame.groupby("task"):
            names = set(tasks["name"])
            column = Column(f"Task {number}" + (f": {names.pop()}" if len(names) == 1 and "" not in names else ""), name, 2)
            note = {} if moment == "final" else {f"{name}_note": tasks["learning_accuracy_note"]}
            values = tasks.assign(**{name: tasks[moment], f"{name}_ci": tasks[f"{moment}_ci"], **note})
            by_row, marks = _cells(values, column, [index[label] for label in tasks["method"]])
            columns.append(_column(column) | {"name": f"task_{number}", "interval": True} | marks)
            cells.append(by_row)
        entries = [{"row": index[label], "cells": [by_row.get(index[label], [None, "–"]) for by_row in cells]} for label in order]
        found[moment] = _framed(columns, entries, rows)
    return found


def _curves(board: Leaderboard) -> dict[str, dict[str, Any]]:
    """Of each row its storage forms, the file that its runs left first: the name, megabytes, accuracy, and whether it is on the
    Pareto front of all forms."""
    found: dict[str, dict[str, Any]] = {}
    for point in board.forms.to_dict("records"):
        entry = [point["form"], _number(point["megabytes"]), _number(point["accuracy"]), bool(point["pareto"])]
        found.setdefault(point["method"], {"curve": []})["curve"].append(entry)
    return found


def _number(value: Any) -> Any:
    """For JSON, which has no NaN."""
    if value is None or pd.isna(value):
        return None
    if isinstance(value, bool):
        return value
    return int(value) if float(value).is_integer() else float(value)
