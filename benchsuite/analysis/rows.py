"""From run records to rows: which runs may be averaged, and the statistics of each row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from msgspec.structs import asdict
from scipy.special import stdtrit

from ..errors import UserError
from ..fields import neutral_values
from ..protocol import Recipe
from ..record import metrics
from ..record.schema import MB, PARTS, RunRecord
from .provenance import _emulated, _machine

RECIPE = [f.name for f in fields(Recipe)]
NEUTRAL = neutral_values(Recipe)


def configurations(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """The runs that may be averaged, by the label of their row: labels in alphabetical order, runs in that of seeds.

    Runs on other tasks or images are another configuration, whatever their settings. The label is the method's name; where
    a method has several configurations, followed by the settings that differ between them, each only where it is on record:
    one at its neutral value is not. Raises UserError when a configuration holds a seed twice.
    """
    groups: dict[str, dict[tuple[str, str], dict[int, RunRecord]]] = {}
    for record in records:
        runs = groups.setdefault(record.job.method, {}).setdefault((record.job.config, record.sample), {})
        twin = runs.setdefault(record.job.seed, record)
        if twin is not record:
            dates = " and ".join(r.environment.date for r in (twin, record))
            raise UserError(
                f"two records of {record.job}, configuration {record.job.config}, of {dates}", "move one of them away"
            )

    labels = {}
    for method, configs in groups.items():
        traits = {key: _traits(next(iter(runs.values()))) for key, runs in configs.items()}
        names = dict.fromkeys(name for trait in traits.values() for name in trait)
        differ = [name for name in names if len({repr(trait.get(name)) for trait in traits.values()}) > 1]
        for last in ("configuration", "data"):  # digests tell a reader little: only where nothing else tells all rows apart
            rest = [name for name in differ if name != last]
            if len({repr([trait.get(name) for name in rest]) for trait in traits.values()}) == len(traits):
                differ = rest
        for key, runs in configs.items():
            own = traits[key]
            parts = [own[name] if name in PHRASES else f"{name}={own[name]}" for name in differ if name in own]
            label = f"{method} [{', '.join(parts)}]" if parts else method
            labels[label] = [runs[seed] for seed in sorted(runs)]
    return dict(sorted(labels.items()))


def _versions(records: Sequence[RunRecord], files: Mapping[str, str]) -> tuple[list[RunRecord], list[str]]:
    """Of each method in a file the records of one version, that of `files` or the one that ran last; and what is left out."""
    versions: dict[str, dict[str, str]] = {}  # when each version of a file ran last
    for record in records:
        if source := record.job.method_source:
            dates = versions.setdefault(record.job.base, {})
            dates[source] = max(dates.get(source, ""), record.environment.date)
    chosen, notes = {}, []
    for name, dates in versions.items():
        now = files.get(name, "")
        chosen[name] = now if now in dates else max(dates, key=lambda source: (dates[source], source))
        others = sorted(source[:7] for source in dates if source != chosen[name])
        words = [
            f"left out: {', '.join(others)}; a version that registers another name is ranked beside it" if others else "",
            f"the one that is here ({now[:7]}) has no record" if now and now not in dates else "",
        ]
        if any(words):
            which = "is here" if now in dates else "ran last"
            notes.append("; ".join(filter(None, [f"{name}: the version of its file that {which} ({chosen[name][:7]})", *words])))
    kept = [record for record in records if record.job.method_source in ("", chosen.get(record.job.base))]
    return kept, notes


def series(label: str) -> str:
    """A row's label without the width of its networks: rows with the same one are a method at several widths."""
    return re.sub(r" \[\]$", "", re.sub(r"(?<=\[)width=[\d.]+(, )?|, width=[\d.]+", "", label))


def t_interval(values: np.ndarray) -> tuple[Any, Any]:
    """Mean over the first axis (n seeds) and half the width of its 95 % interval, t_{0.975, n-1} s / sqrt(n).

    The half-width is NaN for one seed, both are for none.
    """
    n = len(values)
    mean = values.mean(axis=0) if n else np.full(values.shape[1:], np.nan)[()]
    if n < 2:
        return mean, np.full_like(mean, np.nan)[()]
    return mean, stdtrit(n - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(n)


def setting_of(name: str, run: RunRecord) -> Any:
    """The value of a setting; None where the record has none and the recipe knows no neutral one."""
    return run.job.settings.get(name, NEUTRAL.get(name))


PHRASES = ("file", "data", "configuration")  # traits that read without their name


def _traits(record: RunRecord) -> dict[str, Any]:
    """What tells configurations of one method apart."""
    source = record.job.method_source
    return {
        **record.job.settings,
        "tasks": len(record.tasks),  # the setting says "all", or more than there were images for
        "precision": record.job.precision,
        "file": f"file {source[:7]}" if source else "installed",
        "data": f"data {record.sample[:7]}",
        "configuration": f"configuration {record.job.config[:7]}",
    }


def _row(label: str, runs: list[RunRecord], values: pd.DataFrame, reference: str) -> dict[str, Any]:
    """One row with every statistic of every board. values: those of each run. reference: the size reference, in words."""
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
    for name in ("megabytes", *PARTS, "added", "macs", "training_megabytes", "held", "peak", "formula"):
        row[name], row[f"{name}_ci"] = row[name] / MB, row[f"{name}_ci"] / MB
    row["compression"] = 1 / row["ratio"]
    for name in ("learning_accuracy", "forward_gain", "bwt", "forgetting", "ratio"):
        row[f"{name}_note"] = None if row[f"{name}_n"] else _why_not(name, first, reference)
    return row


def _statistics(
    run: RunRecord, reference: RunRecord | None, unmodified: RunRecord | None, timed: tuple[str, ...] | None
) -> dict[str, float]:
    """The statistics of one run; sizes in bytes, MACs as counted. timed: the kind of machine whose seconds count."""
    R = run.R
    return {
        "accuracy": metrics.average_accuracy(R),
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
        **{name: max(getattr(run.memory, name), default=np.nan) for name in ("held", "peak", "formula")},
        **({"peak": np.nan} if _emulated(run) else {}),
        "step_seconds": _step_seconds(run) if _machine(run) == timed else np.nan,
        "step_time": _step_seconds(run) / _step_seconds(unmodified) if unmodified else np.nan,
    }


def _step_seconds(run: RunRecord) -> float:
    """Wall clock per training step: the median over tasks, as other work may have slowed some of them; NaN where it is 0."""
    return float(np.median([seconds / n for seconds, n in zip(run.seconds.train, run.iterations, strict=True) if n])) or np.nan


def _by(key: Callable[[RunRecord], Any], records: Iterable[RunRecord]) -> dict[Any, list[RunRecord]]:
    """The records by what they must share with another one to be compared with it at all: one look-up for each, not one scan."""
    groups: dict[Any, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _pair(run: RunRecord) -> tuple[Any, ...]:
    return run.job.seed, run.job.precision


def _pair_of_method(run: RunRecord) -> tuple[Any, ...]:
    return run.job.method, *_pair(run)


def _unmodified(run: RunRecord, records: dict[Any, list[RunRecord]]) -> RunRecord | None:
    """The run of the same method without its modifier: same seed, precision, tasks, images and settings, on the same kind of
    machine, which both records must name, with as many threads and the same torch. Settings of the run that the other one lacks
    are the modifier's, or the other is at their neutral value: of several, the one with the most settings in common.
    records: by `_pair_of_method`."""
    if run.job.base == run.job.method:
        return None

    def agree(other: RunRecord) -> bool:
        return (
            other.job.method_source == run.job.method_source
            and all(run.job.settings.get(name) == value for name, value in other.job.settings.items())
            and all(setting_of(name, run) == setting_of(name, other) for name in NEUTRAL)
            and other.sample == run.sample
            and _machine(other) == _machine(run) != ()
        )

    matches = [other for other in records.get((run.job.base, *_pair(run)), []) if agree(other)]
    return max(matches, key=lambda other: len(other.job.settings), default=None)


def _added(run: RunRecord) -> float:
    """Bytes that each task after the first adds, on the mean."""
    first, last = run.stored[0], run.stored[-1]
    if first is None or last is None or len(run.tasks) == 1:
        return np.nan
    return (last.total - first.total) / (len(run.tasks) - 1)


def _may_be_reference(run: RunRecord) -> bool:
    return run.size_reference and "width" not in run.job.settings


def _reference(run: RunRecord, references: dict[Any, list[RunRecord]]) -> RunRecord | None:
    """The run of the size reference to compare with: same seed, precision, tasks and images, same value of every setting that
    both have, or for which the recipe has a neutral value, except that the reference has the protocol's own width. Of several,
    the one with the fewest settings changed from their defaults. references: by `_pair`."""

    def agree(other: RunRecord) -> bool:
        common = run.job.settings.keys() & other.job.settings.keys() | NEUTRAL.keys() - {"width"}
        return (
            run.tasks == other.tasks
            and [entry.digest for entry in run.data] == [entry.digest for entry in other.data]
            and all(setting_of(name, run) == setting_of(name, other) for name in common)
        )

    if _may_be_reference(run):
        return run
    matches = [other for other in references.get(_pair(run), []) if agree(other)]
    return min(matches, key=lambda r: (r.job.method_source, len(r.job.origins), r.job.config), default=None)


def reference_of(records: Iterable[RunRecord]) -> str:
    """The methods that sizes and forward gain are measured against, in words."""
    return ", ".join(sorted({r.job.method for r in records if r.size_reference})) or "a size reference"


def _why_not(name: str, run: RunRecord, reference: str) -> str:
    if name == "ratio":
        return f"n/a: no matching run of {reference}"
    if len(run.tasks) == 1:
        return "n/a: needs at least two tasks"
    if any(row[i] is None for i, row in enumerate(run.correct)):
        return "n/a: joint training"
    return f"n/a: no matching run of {reference}" if name == "forward_gain" else "n/a: not measured after every task"


def _elsewhere(rows: dict[str, list[RunRecord]]) -> list[str]:
    """The rows on other tasks or images than most rows are on; of as many, those on more tasks count."""
    first = {label: runs[0] for label, runs in rows.items()}
    counts = Counter(run.sample for run in first.values())
    common = max(first.values(), key=lambda run: (counts[run.sample], len(run.tasks), run.sample)).sample
    return [label for label, run in first.items() if run.sample != common]


def _network(run: RunRecord) -> tuple[Any, Any]:
    """What decides the plain network, within a protocol."""
    return setting_of("backbone", run), setting_of("width", run)
