"""The statistics of a run and of a row of runs, and which runs are compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from msgspec.structs import asdict
from scipy.special import stdtrit

from ..record import metrics
from ..record.schema import MB, NATIVE, PARTS, RunRecord
from ..record.served import ServedSpeeds
from .rows import NEUTRAL, common_forms, setting_of

MAY_LOSE = 0.5  # points of mean accuracy that the smallest storage form of a row may lose


def summarise(label: str, runs: list[RunRecord], values: pd.DataFrame, reference: str) -> dict[str, Any]:
    """One row with every statistic of every board. values: those of each run. reference: the name of the size reference."""
    first = runs[0]
    at_once = any(row[i] is None for i, row in enumerate(first.correct))
    row: dict[str, Any] = {"method": label, "published": False, "competes": not at_once}
    row |= {"n": len(runs), "width": setting_of("width", first)}
    for name, column in values.items():
        known = column.to_numpy(dtype=float)
        known = known[~np.isnan(known)]
        row[name], row[f"{name}_ci"] = t_interval(known)
        row[f"{name}_n"] = len(known)
    # Scaled last: the mean of equal byte counts is exact, so that equal sizes stay equal.
    for name in ("megabytes", *PARTS, "added", "macs", "training_megabytes", "carried_megabytes", "held", "peak", "formula"):
        row[name], row[f"{name}_ci"] = row[name] / MB, row[f"{name}_ci"] / MB
    row["compression"] = 1 / row["ratio"]
    row["n_tasks_read"] = any(run.n_tasks_read for run in runs)
    for name in ("anytime_accuracy", "learning_accuracy", "forward_gain", "bwt", "forgetting", "ratio"):
        row[f"{name}_note"] = None if row[f"{name}_n"] else _why_not(name, first, reference)
    return row


def points_of(runs: list[RunRecord], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Megabytes and accuracy of a row in each storage form that all its runs have, with their intervals. The first is the file
    that the run left, with the row's own numbers; its form is "" where the runs have none on record."""
    own = {name: row[name] for name in ("megabytes", "megabytes_ci", "accuracy", "accuracy_ci")}
    forms = common_forms(runs)
    points = [{"form": forms[0] if forms else "", **own}]
    for form in forms[1:]:
        bytes_of = t_interval(np.array([run.forms[form].sizes.total for run in runs], dtype=float))
        right = [np.mean([c / t.test for c, t in zip(run.forms[form].correct, run.tasks, strict=True)]) for run in runs]
        accuracy = t_interval(100 * np.array(right))
        sizes = {"megabytes": bytes_of[0] / MB, "megabytes_ci": bytes_of[1] / MB}
        points.append({"form": form, **sizes, "accuracy": accuracy[0], "accuracy_ci": accuracy[1]})
    return points


def per_task(rows: Mapping[str, list[RunRecord]]) -> pd.DataFrame:
    """The accuracy on each task: one row for each row of runs (`method`) and `task`, counted from 1 in each seed's own order.

    learned: in per cent, right after the task was learned; final: after the last task; change: final minus learned, in points,
    whose mean over all tasks but the last is backward transfer. Means over seeds with half-widths `x_ci` as everywhere, NaN where
    not measured. name: of the task, if it is the same for all seeds, else "".
    """
    found = []
    for label, runs in rows.items():
        R = np.stack([run.R for run in runs])  # seeds x T x T
        learned, final = R.diagonal(axis1=1, axis2=2), R[:, -1]
        learned = np.where(np.isnan(learned).any(), np.nan, learned)  # trained at once: no task was learned before another
        values = {"learned": t_interval(learned), "final": t_interval(final), "change": t_interval(final - learned)}
        for i in range(R.shape[1]):
            names = {run.tasks[i].name for run in runs}
            row = {"method": label, "task": i + 1, "name": names.pop() if len(names) == 1 else "", "n": len(runs)}
            for name, (mean, half) in values.items():
                row |= {name: mean[i], f"{name}_ci": half[i]}
            found.append(row)
    return pd.DataFrame(found)


def fewer_bits(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row in 8 bits, and in the smallest form that loses at most `MAY_LOSE` points. points: the result of `points_of`."""
    names = ("megabytes", "accuracy")  # their intervals are in `Leaderboard.forms`: a table has no room for them
    eight = next((point for point in points if point["form"] == "int8"), dict.fromkeys(names, np.nan))
    kept = [point for point in points if point["form"] and point["accuracy"] >= points[0]["accuracy"] - MAY_LOSE - 1e-9]
    smallest = min(kept, key=lambda point: point["megabytes"], default=dict.fromkeys((*names, "form"), np.nan))
    first = points[0]["form"]
    reason = "n/a: stores codes of its own" if first in NATIVE else "n/a: its numbers do not fit, see the notes"
    reason = reason if first else "n/a: no storage forms on record"
    return {
        **{f"int8_{name}": eight[name] for name in names},
        **{f"smallest_{name}": smallest[name] for name in (*names, "form")},
        **{f"int8_{name}_note": reason for name in names},
        "smallest_megabytes_note": reason,
    }


def t_interval(values: np.ndarray) -> tuple[Any, Any]:
    """Mean over the first axis (n seeds) and the half-width of its 95 % interval, t_{0.975, n-1} s / sqrt(n).

    The half-width is NaN for one seed; both are NaN for none.
    """
    n = len(values)
    mean = values.mean(axis=0) if n else np.full(values.shape[1:], np.nan)[()]
    if n < 2:
        return mean, np.full_like(mean, np.nan)[()]
    return mean, stdtrit(n - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(n)


def _why_not(name: str, run: RunRecord, reference: str) -> str:
    if name == "ratio":
        return f"n/a: no matching run of {reference}"
    if len(run.tasks) == 1:
        return "n/a: needs at least two tasks"
    if any(row[i] is None for i, row in enumerate(run.correct)):
        return "n/a: joint training"
    return f"n/a: no matching run of {reference}" if name == "forward_gain" else "n/a: not measured after every task"


def statistics_by_row(rows: Mapping[str, list[RunRecord]], served: ServedSpeeds) -> dict[str, pd.DataFrame]:
    """The statistics of every run, one after another, by the label of its row. served: of their artifacts."""
    references = group_by(pairing, (run for runs in rows.values() for run in runs if run.size_reference))
    return {
        label: pd.DataFrame(
            [statistics_of(run, reference_run(run, references)) | {"served_speed": served.of(run)} for run in runs]
        )
        for label, runs in rows.items()
    }


def statistics_of(run: RunRecord, reference: RunRecord | None) -> dict[str, float]:
    """The statistics of one run; sizes in bytes, MACs as counted."""
    R = run.R
    return {
        "accuracy": metrics.average_accuracy(R),
        "anytime_accuracy": metrics.anytime_accuracy(R),
        "learning_accuracy": metrics.learning_accuracy(R),
        "forward_gain": metrics.forward_gain(R, reference.R) if reference else np.nan,
        "bwt": metrics.backward_transfer(R),
        "forgetting": metrics.forgetting(R),
        "megabytes": run.stored_bytes,
        **asdict(run.final_sizes),
        "ratio": run.stored_bytes / reference.stored_bytes if reference else np.nan,
        "added": _added(run),
        "macs": float(np.mean(run.macs)),
        "training_megabytes": run.training_state_bytes,
        "carried_megabytes": np.nan if run.carried_bytes is None else run.carried_bytes,
        "compute": _compute(run),
        **{name: max(getattr(run.memory, name), default=np.nan) for name in ("held", "peak", "formula")},
    }


def _compute(run: RunRecord) -> float:
    """Computed images relative to plain fine-tuning, which computes every image of every epoch forward and backward. A backward
    pass counts as two forward passes."""
    epochs = run.job.settings.get("epochs")
    if run.forward_images is None or run.backward_images is None or not epochs:
        return np.nan
    return (run.forward_images + 2 * run.backward_images) / (3 * epochs * sum(task.train for task in run.tasks))


def _added(run: RunRecord) -> float:
    """Mean bytes that each task after the first adds."""
    first, last = run.stored[0], run.stored[-1]
    if first is None or last is None or len(run.tasks) == 1:
        return np.nan
    return (last.total - first.total) / (len(run.tasks) - 1)


def plain_network(run: RunRecord) -> tuple[Any, Any]:
    """What determines the plain network, within a protocol."""
    return setting_of("backbone", run), setting_of("width", run)


def group_by(key: Callable[[RunRecord], Any], records: Iterable[RunRecord]) -> dict[Any, list[RunRecord]]:
    """Records by what they must share to be compared at all, so that each is looked up and not searched for."""
    groups: dict[Any, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def pairing(run: RunRecord) -> tuple[Any, ...]:
    return run.job.seed, run.job.precision


def reference_run(run: RunRecord, references: dict[Any, list[RunRecord]]) -> RunRecord | None:
    """The run of the size reference to compare with: same seed, precision, tasks and images, same value of every setting that
    both have or that has a neutral value, and so the same width. Of several, the one with the fewest settings changed from their
    defaults. references: by `pairing`."""

    def agree(other: RunRecord) -> bool:
        common = run.job.settings.keys() & other.job.settings.keys() | NEUTRAL.keys()
        return (
            run.tasks == other.tasks
            and [entry.digest for entry in run.data] == [entry.digest for entry in other.data]
            and all(setting_of(name, run) == setting_of(name, other) for name in common)
        )

    if run.size_reference:
        return run
    matches = [other for other in references.get(pairing(run), []) if agree(other)]
    return min(matches, key=lambda r: (r.job.method_source, len(r.job.origins), r.job.config), default=None)
