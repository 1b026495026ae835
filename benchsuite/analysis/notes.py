"""What a reader must know before comparing two rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from ..protocol import unused
from ..record.schema import MB, RunRecord
from .provenance import VERSIONS, emulates_bf16, library_version
from .rows import NEUTRAL, RECIPE, common_forms, reference_name, setting_of

NUMBER = r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])(?!\.\d)"  # a number of its own: not the 2 of conv2, not a version

MANY = 5  # more rows than this that share a value are "all others"
START, END = "\x02", "\x03"  # around the label of a row while a note is written; no label holds them
AT_CHANCE = "cannot be told from chance right after learning (binomial test, 1 %)"  # a statement on so many test images


def named(label: str) -> str:
    """A row, as `Note` finds it in a text."""
    return f"{START}{label}{END}"


class Note(str):
    """A note that knows which rows it names, so that a table can call them otherwise.

    parts: the text between the rows and, every second one, the label of a row."""

    parts: tuple[str, ...]

    def __new__(cls, text: str) -> Note:
        parts = re.split(f"[{START}{END}]", text)
        note = super().__new__(cls, "".join(parts))
        note.parts = tuple(parts)
        return note

    @property
    def rows(self) -> frozenset[str]:
        return frozenset(self.parts[1::2])

    def calling(self, labels: Mapping[str, str]) -> str:
        """The text, with these names for rows. Rows that are not in `labels` keep theirs."""
        return "".join(labels.get(part, part) if i % 2 else part for i, part in enumerate(self.parts))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _in_words(name: str, run: RunRecord) -> str | None:
    """A setting; None where the run's schedule has no use for it."""
    value = setting_of(name, run)
    if name in unused(setting_of("lr_schedule", run)):
        return None
    return "not set" if value is None and name in NEUTRAL else str(value)


def _images(name: str, run: RunRecord) -> str:
    return next((entry.digest[:7] for entry in run.data if entry.name == name), "none")


def footnotes_of(rows: dict[str, list[RunRecord]], board: pd.DataFrame, stale: Callable[[RunRecord], str | None]) -> list[str]:
    """What a reader must know before comparing two rows, with each row as `named` gives it.

    stale: why a record's numbers would not come out the same today."""
    rows = {named(label): runs for label, runs in rows.items()}
    records = [run for runs in rows.values() for run in runs]

    def differing(title: str, get: Callable[[RunRecord], str | None]) -> list[str]:
        """One note on which rows have which value, if there is more than one. None is no value."""
        who: dict[str, dict[str, None]] = {}
        for label, runs in rows.items():
            for value in map(get, runs):
                if value is not None:
                    who.setdefault(value, {})[label] = None
        if len(who) < 2:
            return []
        groups = {value: ", ".join(labels) for value, labels in sorted(who.items())}
        most = max(who, key=lambda value: len(who[value]))
        others = {label for value, labels in who.items() if value != most for label in labels}
        if len(who[most]) > MANY and who[most].keys() == rows.keys() - others:
            groups[most] = "all others"
        return [f"{title}: " + "; ".join(f"{value} ({labels})" for value, labels in groups.items())]

    chosen: dict[str, dict[str, dict[str, None]]] = {}  # settings in words, by where they come from and by row
    for label, runs in rows.items():
        for run in runs:
            for name, origin in run.job.origins.items():
                there = name in run.job.settings
                words = f"{name} = {_short(run.job.settings[name])}" if there else f"{name} as by default"
                chosen.setdefault(origin, {}).setdefault(label, {})[words] = None
    notes = []
    for origin, of_rows in chosen.items():
        alike: dict[str, list[str]] = {}
        for label, settings in of_rows.items():
            alike.setdefault(", ".join(settings), []).append(label)
        notes.append(
            f"settings, {origin}: " + "; ".join(f"{', '.join(labels)} ({settings})" for settings, labels in alike.items())
        )
    notes += _tuning_notes(rows)
    for name in dict.fromkeys(name for r in records for name in r.job.settings):
        if name in NEUTRAL or all(name in r.job.settings for r in records):  # of other settings it is not known
            notes += differing(f"settings differ: {name}", partial(_in_words, name))
    notes += differing("settings differ: precision", lambda r: r.job.precision)

    notes += _recipe_notes(rows)
    notes += _learning_notes(rows)
    notes += differing("tasks differ", lambda r: ", ".join(r.task_names))

    images = {entry.name: None for r in records for entry in r.data}
    for name in images:
        entries = [entry for r in records for entry in r.data if entry.name == name]
        for note in dict.fromkeys((entry.note, entry.complete) for entry in entries):
            text = "; ".join(filter(None, [note[0], "" if note[1] else "not the published benchmark"]))
            notes += [f"{name}: {text}"] if text else []
        notes += differing(f"images of {name} differ", partial(_images, name))

    notes += differing("devices differ", lambda r: r.environment.hardware)
    for library in VERSIONS:
        notes += differing(f"{library} versions differ", partial(library_version, library))
    notes += differing("source revisions differ", lambda r: r.environment.source.short)
    seeds = {label: [str(run.job.seed) for run in runs if emulates_bf16(run)] for label, runs in rows.items()}
    if emulated := [f"{label} (seed {', '.join(found)})" for label, found in seeds.items() if found]:
        notes.append(f"bf16 emulated in fp32 by a CPU without bf16 arithmetic: {', '.join(emulated)}")
    dirty = [label for label, runs in rows.items() if any(r.environment.source.dirty for r in runs)]
    if dirty:
        notes.append(f"made from uncommitted code: {', '.join(dirty)}")
    old: dict[str, dict[str, None]] = {}
    for label, runs in rows.items():
        for reason in filter(None, map(stale, runs)):
            old.setdefault(reason, {})[label] = None
    notes += [f"{reason}: {', '.join(labels)}" for reason, labels in old.items()]

    for label, runs in rows.items():
        notes += [f"{label}: {remark}" for remark in ranged(r for run in runs for r in run.diagnostics.remarks)]
    for row in board[~board["published"]].to_dict("records"):
        if 0 < row["ratio_n"] < row["n"]:
            notes.append(
                f"{named(row['method'])}: forward gain and size ratio over {row['ratio_n']:.0f} of {row['n']:.0f} seeds; "
                f"{reference_name(records)} has no matching run for the others"
            )
    return notes


def at_chance(run: RunRecord) -> list[str]:
    """The tasks on which accuracy right after learning (at the end, for joint training) cannot be told from chance: at most the
    99 % point of how many images a guess of one of the task's classes gets right, which is binomially distributed."""
    rows = run.correct if len(run.iterations) == len(run.tasks) else run.correct[-1:] * len(run.tasks)
    found = []
    for i, task in enumerate(run.tasks):
        right, classes = rows[i][i], len(task.classes)
        if classes > 1 and right is not None and right <= binom.ppf(0.99, task.test, 1 / classes):
            found.append(task.name)
    return found


def _learning_notes(rows: dict[str, list[RunRecord]]) -> list[str]:
    """Which accuracies say nothing: of tasks with one class, and such as guessing gives."""
    single = dict.fromkeys(task.name for runs in rows.values() for run in runs for task in run.tasks if len(task.classes) == 1)
    words = []
    for label, runs in rows.items():
        if failed := sum(len(at_chance(run)) for run in runs):
            words.append(f"{label} ({failed} of {sum(len(run.tasks) for run in runs)} tasks)")
    notes = [f"100 % on tasks of one class ({', '.join(single)}) says nothing of a method"] if single else []
    return notes + ([f"{AT_CHANCE}: {', '.join(words)}"] if words else [])


def _recipe_notes(rows: dict[str, list[RunRecord]]) -> list[str]:
    """Rows whose seeds share what otherwise differs between them, and rows whose tasks may have ended early."""
    notes = []
    for name, what in (("order_seed", "order of tasks and classes"), ("init_seed", "initial weights")):
        labels = [label for label, runs in rows.items() if len(runs) > 1 and name in runs[0].job.settings]
        if labels:
            notes.append(f"all seeds share the {what} ({name}), so intervals do not cover others: {', '.join(labels)}")
    for label, runs in rows.items():
        if kept := [epoch for run in runs for epoch in run.kept_epochs]:
            most, span = runs[0].job.settings["epochs"], " to ".join(map(str, sorted({min(kept), max(kept)})))
            notes.append(
                f"{label}: kept the state of epoch {span}, of at most {most} a task; its compute is relative to all of them"
            )
    return notes


def _tuning_notes(rows: dict[str, list[RunRecord]]) -> list[str]:
    """Which rows were tuned, which were not, and which have nothing to tune. Where the values of a search come from says with
    which budget (`execution.tune.Study.origin`). A row under a modifier has the values that were found without it."""
    kinds = ("tuned", "tuned without the modifier", "settings not tuned", "nothing to tune")
    groups: dict[str, list[str]] = {kind: [] for kind in kinds}
    for label, runs in rows.items():
        job = runs[0].job
        if any(origin.startswith("tuned: ") for origin in job.origins.values()):
            groups["tuned without the modifier" if job.base != job.method else "tuned"].append(label)
        else:
            groups["settings not tuned" if job.settings.keys() - set(RECIPE) else "nothing to tune"].append(label)
    return ["; ".join(f"{words}: {', '.join(labels)}" for words, labels in groups.items() if labels)]


def size_notes_of(rows: dict[str, list[RunRecord]], board: pd.DataFrame) -> list[str]:
    """What a reader must know about stored sizes and memory, with each row as `named` gives it."""
    rows = {named(label): runs for label, runs in rows.items()}
    notes = []
    counted: dict[str, list[str]] = {}  # rows and their MB, by the way of counting
    images: list[str] = []
    for label, runs in rows.items():
        sizes: dict[str, list[int]] = {}
        for run in runs:
            for name, size in run.diagnostics.other_sizes.items():
                sizes.setdefault(name, []).append(size)
        here = f"{np.mean([run.stored_bytes for run in runs]) / MB:.3f}"
        said = {name: f"{np.mean(s) / MB:.3f}" for name, s in sizes.items()}
        for name, mb in said.items():
            if mb != here:
                counted.setdefault(name, []).append(f"{label} {mb}")
        if stored := [run.memory_bytes for run in runs if run.memory_bytes]:
            images.append(f"{label} {np.mean(stored) / MB:.3f}")
    notes += [f"stored MB as {name}: {', '.join(of_rows)}" for name, of_rows in counted.items()]
    notes += [f"training MB includes stored images, in MB: {', '.join(images)}"] if images else []
    changed: dict[str, list[str]] = {}  # rows, by the number of test images
    for label, runs in rows.items():
        if words := _changed_answers(runs):
            images_tested = np.mean([sum(task.test for task in run.tasks) for run in runs])
            changed.setdefault(f"{images_tested:.6g}", []).append(f"{label} ({words})")
    for tested, of_rows in changed.items():
        notes.append(
            f"of {tested} test images so many are answered differently in fewer bits (mean over seeds; rows whose accuracies "
            f"never changed after learning): {', '.join(of_rows)}"
        )
    measured = board.loc[~board["published"]].set_index("method").rename(named)
    if (absent := measured["held"].isna()).any():
        which = "of any row" if absent.all() else f"of {', '.join(measured.index[absent])}, not ranked by it"
        notes.append(f"no measurement of training memory {which}")
    for label, row in measured.iterrows():
        if 0 < row["held_n"] < row["n"]:
            notes.append(f"{label}: training memory measured for {row['held_n']:.0f} of {row['n']:.0f} seeds")
    return notes


def _changed_answers(runs: list[RunRecord]) -> str:
    """For how many test images a row predicts another class in each storage form; "" if for none, or if its accuracy on any task
    changed after it had learnt it."""
    lasting = all(set(column) <= {last, None} for run in runs for *column, last in zip(*run.correct, strict=True))
    if not lasting or any(row[i] is None for run in runs for i, row in enumerate(run.correct)):
        return ""
    means = {form: float(np.mean([run.forms[form].changed for run in runs])) for form in common_forms(runs)}
    words = {form: f"{mean:.1f}".removesuffix(".0") if mean >= 0.05 else "<0.1" for form, mean in means.items() if mean}
    return ", ".join(f"{form} {many}" for form, many in words.items())


def ranged(remarks: Iterable[str]) -> list[str]:
    """One line for remarks of several seeds that differ only in their numbers, with the range of each number."""
    alike: dict[str, list[list[str]]] = {}
    for remark in remarks:
        alike.setdefault(re.sub(NUMBER, "#", remark), []).append(re.split(f"({NUMBER})", remark))
    lines = []
    for group in alike.values():
        parts = [sorted(set(column), key=float) if i % 2 else column for i, column in enumerate(zip(*group, strict=True))]
        lines.append("".join(p[0] if p[0] == p[-1] else f"{p[0]} to {p[-1]}" for p in parts))
    return lines
