"""From run records to rows: which runs may be averaged, and how rows are labelled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..errors import UserError
from ..fields import neutral_values
from ..protocol import Recipe
from ..record.schema import FORMS, NATIVE, RunRecord
from ..registry import suggest

RECIPE = [f.name for f in fields(Recipe)]
NEUTRAL = neutral_values(Recipe)
PHRASES = ("file", "data", "configuration")  # traits that read without their name


def configurations(records: Iterable[RunRecord], taken: Iterable[str] = ()) -> dict[str, list[RunRecord]]:
    """The runs that may be averaged, by the label of their row: labels in alphabetical order, runs in the order of seeds.

    Runs on other tasks or images are another configuration, whatever their settings. The label is the method's name; if a method
    has several configurations, the settings that differ between them follow, without those at their neutral value, which are not
    on record. No two configurations share a label, whatever their records say: those that would, and those with a label that is
    `taken`, are told apart by their digests. Raises UserError if a configuration has a seed twice.
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

    found: list[tuple[str, tuple[str, str], list[RunRecord]]] = []
    for method, configs in groups.items():
        traits = {key: _traits(next(iter(runs.values()))) for key, runs in configs.items()}
        names = dict.fromkeys(name for trait in traits.values() for name in trait)
        differ = [name for name in names if len({repr(trait.get(name)) for trait in traits.values()}) > 1]
        for last in ("configuration", "data"):  # digests tell a reader little: only if nothing else distinguishes all rows
            rest = [name for name in differ if name != last]
            if len({repr([trait.get(name) for name in rest]) for trait in traits.values()}) == len(traits):
                differ = rest
        for key, runs in configs.items():
            own = traits[key]
            parts = [own[name] if name in PHRASES else f"{name}={own[name]}" for name in differ if name in own]
            label = f"{method} [{', '.join(parts)}]" if parts else method
            found.append((label, key, [runs[seed] for seed in sorted(runs)]))
    several = {label for label, n in Counter([*taken, *(label for label, *_ in found)]).items() if n > 1}
    labels: dict[str, list[RunRecord]] = {}
    for label, (config, sample), group in sorted(found, key=lambda row: row[:2]):
        while label in several or label in labels:
            label += f" [configuration {config}, data {sample[:12]}]"
        labels[label] = group
    return dict(sorted(labels.items()))


def _traits(record: RunRecord) -> dict[str, Any]:
    """What distinguishes configurations of one method."""
    source = record.job.method_source
    return {
        **record.job.settings,
        "tasks": len(record.tasks),  # the setting says "all", or more than there were images for
        "precision": record.job.precision,
        "file": f"file {source[:7]}" if source else "installed",
        "data": f"data {record.sample[:7]}",
        "configuration": f"configuration {record.job.config[:7]}",
    }


def series(label: str) -> str:
    """A row's label without its width: rows of the same series are one method at several widths."""
    return re.sub(r" \[\]$", "", re.sub(r"(?<=\[)width=[\d.]+(, )?|, width=[\d.]+", "", label))


def names_of(rows: Mapping[str, list[RunRecord]]) -> dict[str, set[str]]:
    """What a reader may call each row, by its label: the label or the method."""
    return {label: {label, runs[0].job.method} for label, runs in rows.items()}


def rows_called(name: str, called: Mapping[str, set[str]]) -> list[str]:
    """The rows that a name means: the row with that label, or else every row that may be called so (`names_of`)."""
    return [name] if name in called else [label for label, names in called.items() if name in names]


def check_names(names: Iterable[str], known: Collection[str]) -> None:
    """Raises UserError for a name that no row has."""
    for name in names:
        if name not in known:
            raise UserError(f"no row is called {name!r}", suggest(name, known))


def common_forms(runs: Sequence[RunRecord]) -> list[str]:
    """The storage forms that all runs of a row have on record, the plain file first."""
    return [form for form in (*NATIVE, *FORMS) if runs and all(form in run.forms for run in runs)]


def setting_of(name: str, run: RunRecord) -> Any:
    """The value of a setting; None where the record has none and the recipe knows no neutral one."""
    return run.job.settings.get(name, NEUTRAL.get(name))


def reference_name(records: Iterable[RunRecord]) -> str:
    """The methods that sizes and forward gain are measured against, in words."""
    return ", ".join(sorted({r.job.method for r in records if r.size_reference})) or "a size reference"


def _versioned(record: RunRecord) -> str:
    """What a version of a source belongs to: a method, or a method with a plugin from a file or a module."""
    return record.job.method if ":" in record.job.method else record.job.base


def one_version_each(records: Sequence[RunRecord], files: Mapping[str, str]) -> tuple[list[RunRecord], list[str]]:
    """Of each user-defined method the records of one version, that of `files` or the one that ran last; notes on the others."""
    versions: dict[str, dict[str, str]] = {}  # when each version of a file ran last
    for record in records:
        if source := record.job.method_source:
            dates = versions.setdefault(_versioned(record), {})
            dates[source] = max(dates.get(source, ""), record.environment.date)
    chosen, notes = {}, []
    for name, dates in versions.items():
        now = files.get(name, "")
        chosen[name] = now if now in dates else max(dates, key=lambda source: (dates[source], source))
        others = sorted(source[:7] for source in dates if source != chosen[name])
        words = [
            f"left out: {', '.join(others)} (to rank both, register one under another name)" if others else "",
            f"the current version ({now[:7]}) has no record" if now and now not in dates else "",
        ]
        if any(words):
            which = "the current version of its file" if now in dates else "the version of its file that ran last"
            notes.append("; ".join(filter(None, [f"{name}: {which} ({chosen[name][:7]})", *words])))
    kept = [record for record in records if record.job.method_source in ("", chosen.get(_versioned(record)))]
    return kept, notes


def on_other_data(rows: dict[str, list[RunRecord]]) -> list[str]:
    """The rows on other tasks or images than most rows; of equally many, those on more tasks are the majority."""
    first = {label: runs[0] for label, runs in rows.items()}
    counts = Counter(run.sample for run in first.values())
    common = max(first.values(), key=lambda run: (counts[run.sample], len(run.tasks), run.sample)).sample
    return [label for label, run in first.items() if run.sample != common]
