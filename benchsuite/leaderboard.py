"""From run records to four leaderboards: accuracy, backward transfer, parameter efficiency, training memory.

A row is one configuration: a method with all its settings and its precision. Runs are averaged over seeds only, never
across settings. Every number of a table or a figure is computed here or in `benchsuite.metrics`; nothing imports torch,
so that anybody can recompute a board in seconds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # quantile of Student's t; scipy.stats has it too, but takes long to import

from . import metrics
from .errors import UserError
from .records import PARTS, Job, RunRecord, digest, no_collection
from .significance import bootstrap_p, holm
from .source import stale

REFERENCE = "individual"  # one separate model per task: what forward gain and size ratio are measured against
VERSIONS = ("torch", "avalanche-lib", "benchsuite")
MB = 1e6
BETTER = {  # which end of a ranked statistic is the better one
    **dict.fromkeys(("accuracy", "learning_accuracy", "forward_gain", "bwt", "compression", "matched_accuracy"), "max"),
    **dict.fromkeys(("forgetting", "megabytes", "ratio", "added", "macs", "held", "peak"), "min"),
}
SIZES = ("megabytes", "ratio", "compression", "added", "macs", "held", "peak")  # counted: known where seeds do not change them
NUMBER = r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])(?!\.\d)"  # that stands by itself: not the 2 of conv2, no version
NEAR = 0.9  # a row is of matched size from this share of the size on
# The fields of `protocol.Recipe`, spelled out since that module imports this one. Whoever changes one of them on the command
# line no longer runs what the published figures were measured on.
RECIPE = [
    "backbone", "width", "epochs", "milestones", "lr", "batch_size", "optimizer", "momentum", "weight_decay", "reset_optimizer",
    "dropout", "batchnorm", "tasks", "train_per_class", "test_per_class", "holdout", "partial_data",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure from a paper. It is shown only beside runs of the `paper` tier on complete data, the recipe unchanged.

    accuracy: ACC in per cent; bwt: backward transfer in percentage points; megabytes: decimal; None where not printed.
    ours: the registered method that it is a figure of, with the protocol's recipe and its own defaults; "" for none.
    comparable: False where it was measured under another protocol: no run here can reproduce it or fail to.
    """

    method: str
    ours: str = ""
    comparable: bool = True
    accuracy: float | None = None
    bwt: float | None = None
    megabytes: float | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Four boards, best row first, of numbers as computed: `benchsuite.report` formats them.

    Beside a statistic `x` stand `x_ci`, half the width of its 95 % interval over seeds (Student's t; NaN for one seed),
    `x_note`, why it is not applicable, and `x_n` where it may rest on fewer seeds than the row's `n`. Beside a ranked one
    (`BETTER` says which end is the better) stand `x_p`, the p-value of "as good as the best row", by `significance.bootstrap_p`,
    corrected by Holm's method over all rows compared with it, and `x_paired`, on how many seeds that both rows have it rests.
    x_p is NaN for the best row and with fewer than two seeds in common; of sizes that are the same for every
    seed it is 0 or 1. Only rows that `compete` are compared: measured ones that learn task after task, on the tasks and images
    that most rows have; `elsewhere` has the labels of those on others.

    accuracy: accuracy and learning_accuracy in per cent, forward_gain in percentage points.
    backward_transfer: bwt and forgetting in percentage points.
    parameter_efficiency: width (of the backbone, a factor on its channels), megabytes (1e6 bytes of the exported file) and
        its parts, ratio to `individual` and its inverse compression, added (megabytes for each task after the first), macs
        (millions for one image as served, mean over tasks), dense_macs (of the plain backbone), training_megabytes, accuracy,
        matched_accuracy (where sizes are matched); pareto marks the competing rows that no other such row beats in size
        without losing accuracy.
    training_memory: step_seconds, wall clock per training step, the median over tasks, of the runs on one kind of machine, if
        half of all are and their records say so; megabytes of one training step as `RunRecord.memory` has them, the largest
        over tasks: held, peak (not where a CPU computed bf16 in fp32), formula; step_time relative to the unmodified method,
        from the wall clock of both trainings where they ran on the same kind of machine; training_megabytes, what is there
        between two steps; accuracy; pareto as above, with held for the size. A row without held does not compete here.
    provenance: one line; it belongs under every table and figure. footnotes: what a reader must know before comparing rows;
        size_notes: those of them that matter to the last two boards alone.
    runs: those behind each row, by its label, in the order of seeds. timed: those of them that step_seconds are of.
    """

    accuracy: pd.DataFrame
    backward_transfer: pd.DataFrame
    parameter_efficiency: pd.DataFrame
    training_memory: pd.DataFrame
    protocol: str
    tier: str
    provenance: str
    footnotes: list[str]
    size_notes: list[str]
    elsewhere: list[str]
    runs: dict[str, list[RunRecord]]
    timed: list[RunRecord]


@no_collection()
def leaderboard(
    records: Sequence[RunRecord],
    published: Sequence[Published] = (),
    match: str | Job = "",
    files: Mapping[str, str] = MappingProxyType({}),
) -> Leaderboard:
    """Rank the runs of one protocol and tier.

    match: a job, of which the seed does not matter, or a method, which stands for its row with the fewest settings changed from
    their defaults; of every other method the row on the same tasks and in the same precision whose size comes closest to that
    from below, by at most a tenth, is marked, and its accuracy stands in a column of its own.
    files: method -> SHA-256 of its file: that version of it is ranked; without, or where it has no record, the one that ran last.
    Raises UserError without records, without any of `match`, or when they mix protocols or tiers or hold the same run twice.
    """
    if not records:
        raise UserError("no finished runs to rank; run `benchsuite leaderboard` or `benchsuite run` first")
    if len({(r.job.protocol, r.job.tier) for r in records}) > 1:
        raise UserError("records of several protocols or tiers cannot share a leaderboard; rank those of one folder at a time")
    records, left_out = _versions(records, files)
    rows = configurations(records)
    tier = records[0].job.tier
    changed = any(r.job.origins.get(name) == "command line" for r in records for name in RECIPE)
    if tier != "paper" or changed or not all(entry["complete"] for r in records for entry in r.data):
        published = ()

    references, plain = _by(_pair, (r for r in records if _may_be_reference(r))), _by(_pair_of_method, records)
    machines = Counter(map(_machine, records))
    half = [kind for kind, n in machines.items() if kind and 2 * n >= len(records)]
    most = max(half, default=None)
    samples = {
        label: pd.DataFrame([_statistics(run, _reference(run, references), _unmodified(run, plain), most) for run in runs])
        for label, runs in rows.items()
    }
    dense = {_network(r): r.facts["dense_macs"] for r in records if "dense_macs" in r.facts}  # not all records have it
    board = pd.DataFrame(
        [
            _row(label, runs, samples[label]) | {"dense_macs": dense.get(_network(runs[0]), np.nan) / MB}
            for label, runs in rows.items()
        ]
        + [
            {
                "method": f"{p.method} ({_published(p)})",
                "published": True,
                "competes": False,
                "accuracy": p.accuracy,
                "bwt": p.bwt,
                "megabytes": p.megabytes,
            }
            for p in published
        ]
    )
    elsewhere = _elsewhere(rows)
    board["competes"] &= ~board["method"].isin(elsewhere)
    seeds = [[run.job.seed for run in runs] for runs in rows.values()]

    def by_seed(name: str) -> pd.DataFrame:
        return pd.DataFrame({i: pd.Series(samples[label][name].to_numpy(float), seeds[i]) for i, label in enumerate(rows)})

    for name in (name for name in BETTER if name not in ("compression", "matched_accuracy")):
        board[[f"{name}_p", f"{name}_paired"]] = _against_best(name, board, by_seed(name))
    board["compression_p"], board["compression_paired"] = board["ratio_p"], board["ratio_paired"]  # its inverse
    board = board.copy()  # in one piece again

    accuracy = board[~board["published"] | board["accuracy"].notna()]
    transfer = board[~board["published"] | board["bwt"].notna()]
    size_notes = _size_notes(rows, board)
    notes = [*_footnotes(rows, board), *left_out]
    measured = board[~board["published"]].copy()
    measured["competes"] &= measured["held"].notna()
    for name in ("accuracy", "peak") if measured["held"].isna().any() else ():
        measured[[f"{name}_p", f"{name}_paired"]] = _against_best(name, measured, by_seed(name))
    blank = dict.fromkeys(("matched_accuracy", "matched_accuracy_p", "matched_accuracy_paired"), np.nan)
    efficiency = board[board["megabytes"].notna()].assign(pareto=_pareto, **blank)
    if match:
        reference, chosen = _matched(efficiency, {label: runs[0] for label, runs in rows.items()}, match)
        efficiency.loc[chosen, "matched_accuracy"] = efficiency.loc[chosen, "accuracy"]
        efficiency[["matched_accuracy_p", "matched_accuracy_paired"]] = _against_best(
            "matched_accuracy", efficiency, by_seed("accuracy")
        )
        size_notes.append(
            f"matched size: between {NEAR:.0%} and all of the {reference['megabytes']:.3f} MB of {reference['method']}; of each"
            " method the row that comes closest, on the same tasks and in the same precision"
        )
    if measured["step_time"].notna().any():
        size_notes.append("step time: from the wall clock of trainings, on machines that may have had other work meanwhile")
    return Leaderboard(
        accuracy=_select(
            accuracy.sort_values(["accuracy", "method"], ascending=[False, True]),
            "accuracy accuracy_ci learning_accuracy learning_accuracy_ci learning_accuracy_note "
            "forward_gain forward_gain_ci forward_gain_n forward_gain_note",
        ),
        backward_transfer=_select(
            transfer.sort_values(["bwt", "method"], ascending=[False, True]),
            "bwt bwt_ci bwt_note forgetting forgetting_ci forgetting_note",
        ),
        parameter_efficiency=_select(
            _smallest_first(efficiency, "megabytes"),
            f"width megabytes megabytes_ci {' '.join(PARTS)} ratio ratio_ci ratio_n ratio_note compression added added_ci "
            "macs macs_ci dense_macs training_megabytes training_megabytes_ci accuracy accuracy_ci matched_accuracy pareto",
        ),
        training_memory=_select(
            _smallest_first(measured.assign(pareto=partial(_pareto, size="held")), "held"),
            "held held_ci held_n peak peak_ci peak_n formula formula_ci formula_n step_time step_time_ci step_time_n "
            "step_seconds step_seconds_ci step_seconds_n "
            "training_megabytes training_megabytes_ci "
            "accuracy accuracy_ci pareto",
        ),
        protocol=records[0].job.protocol,
        tier=tier,
        provenance=provenance(records),
        footnotes=[*notes, *size_notes, *(f"{p.method} ({_published(p)}): {p.source}" for p in published if p.source)],
        size_notes=size_notes,
        elsewhere=elsewhere,
        runs=rows,
        timed=[run for runs in rows.values() for run in runs if _machine(run) == most],
    )


def _published(figure: Published) -> str:
    return "published" if figure.comparable else "published, other protocol"


def configurations(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """The runs that may be averaged, by the label of their row: labels in alphabetical order, runs in that of seeds.

    Runs on other tasks or images are another configuration, whatever their settings. The label is the method's name; where
    a method has several configurations, followed by what differs between them. Raises UserError when a configuration holds
    a seed twice.
    """
    groups: dict[str, dict[tuple[str, str], dict[int, RunRecord]]] = {}
    for record in records:
        runs = groups.setdefault(record.job.method, {}).setdefault((record.job.config, record.sample), {})
        twin = runs.setdefault(record.job.seed, record)
        if twin is not record:
            dates = " and ".join(r.environment.get("date", "unknown date") for r in (twin, record))
            raise UserError(f"two records of {record.job}, configuration {record.job.config}, of {dates}; move one of them away")

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
            parts = [traits[key][name] if name in PHRASES else f"{name}={traits[key].get(name)}" for name in differ]
            label = f"{method} [{', '.join(parts)}]" if parts else method
            labels[label] = [runs[seed] for seed in sorted(runs)]
    return dict(sorted(labels.items()))


def _versions(records: Sequence[RunRecord], files: Mapping[str, str]) -> tuple[list[RunRecord], list[str]]:
    """Of each method in a file the records of one version, that of `files` or the one that ran last; and what is left out."""
    versions: dict[str, dict[str, str]] = {}  # when each version of a file ran last
    for record in records:
        if source := record.job.method_source:
            dates = versions.setdefault(record.job.base, {})
            dates[source] = max(dates.get(source, ""), str(record.environment.get("date", "")))
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


PHRASES = ("file", "data", "configuration")  # traits that read without their name


def _traits(record: RunRecord) -> dict[str, Any]:
    """What tells configurations of one method apart."""
    source = record.job.method_source
    return {
        "width": 1.0,
        **record.job.settings,
        "tasks": len(record.tasks),  # the setting says "all", or more than there were images for
        "precision": record.job.precision,
        "file": f"file {source[:7]}" if source else "installed",
        "data": f"data {record.sample[:7]}",
        "configuration": f"configuration {record.job.config[:7]}",
    }


def _row(label: str, runs: list[RunRecord], values: pd.DataFrame) -> dict[str, Any]:
    """One row with every statistic of every board. values: those of each run."""
    first = runs[0]
    at_once = any(row[i] is None for i, row in enumerate(first.correct))
    row: dict[str, Any] = {"method": label, "published": False, "competes": not at_once}
    row |= {"n": len(runs), "width": first.job.settings.get("width", 1.0)}
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
        row[f"{name}_note"] = None if row[f"{name}_n"] else _why_not(name, first)
    return row


def _against_best(name: str, board: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """For each row of `board` the p-value against the best one, and how many seeds it rests on, as `Leaderboard` describes.

    values: of each run, one column for each row, by seed; NaN where a row has no run of a seed.
    """
    answer = pd.DataFrame(np.nan, index=board.index, columns=["p", "paired"])
    rivals = board.index[board["competes"] & board[name].notna()]
    if len(rivals) < 2:
        return answer
    best = getattr(board.loc[rivals, name], f"idx{BETTER[name]}")()
    others = rivals.drop(best)
    # Rounded: where only the last bits differ, as sums in another order do, there is no difference.
    differences = values[others].rsub(values[best], axis=0).round(9)
    answer.loc[others, "paired"] = differences.notna().sum()
    if name in SIZES:
        fixed = values[rivals].nunique() == 1
        known = [i for i in others if fixed[i] and fixed[best]]
        answer.loc[known, "p"] = (differences[known].abs().max() == 0).astype(float)
        others = others.drop(known)

    tested = others[answer.loc[others, "paired"] >= 2]
    p = pd.Series(np.nan, index=tested)
    for _, group in differences[tested].notna().T.groupby(list(differences.index)):  # rows with the same seeds
        p[group.index] = bootstrap_p(differences[group.index].dropna().to_numpy())
    answer.loc[tested, "p"] = holm(p.to_numpy())
    return answer


def _statistics(
    run: RunRecord, reference: RunRecord | None, unmodified: RunRecord | None, timed: tuple[str, ...] | None
) -> dict[str, float]:
    """The statistics of one run; sizes in bytes, MACs as counted. timed: the kind of machine whose seconds count."""
    R = metrics.accuracy_matrix(run)
    stored = run.stored[-1]
    assert stored is not None, "a finished run has an artifact"
    return {
        "accuracy": metrics.average_accuracy(R),
        "learning_accuracy": metrics.learning_accuracy(R),
        "forward_gain": metrics.forward_gain(R, metrics.accuracy_matrix(reference)) if reference else np.nan,
        "bwt": metrics.backward_transfer(R),
        "forgetting": metrics.forgetting(R),
        "megabytes": run.stored_bytes,
        **stored,
        "ratio": run.stored_bytes / reference.stored_bytes if reference else np.nan,
        "added": _added(run),
        "macs": float(np.mean(run.macs)),
        "training_megabytes": run.training_state_bytes,
        **{name: max(run.memory.get(name) or [], default=np.nan) for name in ("held", "peak", "formula")},
        **({"peak": np.nan} if _emulated(run) else {}),
        "step_seconds": _step_seconds(run) if _machine(run) == timed else np.nan,
        "step_time": _step_seconds(run) / _step_seconds(unmodified) if unmodified else np.nan,
    }


def _step_seconds(run: RunRecord) -> float:
    """Wall clock per training step: the median over tasks, as other work may have slowed some of them; NaN where it is 0."""
    return float(np.median([seconds / n for seconds, n in zip(run.seconds["train"], run.iterations, strict=True) if n])) or np.nan


def _machine(run: RunRecord) -> tuple[str, ...]:
    """The kind of machine that a run was made on, and with which torch; empty where an older record says too little of it."""
    if "instructions" not in run.environment:
        return ()
    names = ("device", "device_name", "threads", "instructions")
    return (*(str(run.environment.get(name, "unknown")) for name in names), _version("torch", run))


def _emulated(run: RunRecord) -> bool:
    """Whether its bf16 convolutions were computed in fp32 (`benchsuite.nn.bfloat16`), whose copies are in the peak of a step."""
    words = run.environment.get("instructions", "").split()  # of records that do not say it themselves
    guess = "avx2" not in words or any(word.startswith(("avx512", "amx")) for word in words)
    return run.job.precision == "bf16" and not run.environment.get("native_bf16", guess)


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
    machine, which both records must name, with as many threads and the same torch. records: by `_pair_of_method`."""
    if run.job.base == run.job.method:
        return None

    def agree(other: RunRecord) -> bool:
        return (
            other.job.method_source == run.job.method_source
            and all(run.job.settings.get(name) == value for name, value in other.job.settings.items())
            and other.sample == run.sample
            and _machine(other) == _machine(run) != ()
        )

    return next((other for other in records.get((run.job.base, *_pair(run)), []) if agree(other)), None)


def _added(run: RunRecord) -> float:
    """Bytes that each task after the first adds, on the mean."""
    first, last = run.stored[0], run.stored[-1]
    if first is None or last is None or len(run.tasks) == 1:
        return np.nan
    return (sum(last.values()) - sum(first.values())) / (len(run.tasks) - 1)


def _matched(efficiency: pd.DataFrame, first: dict[str, RunRecord], match: str | Job) -> tuple[Any, list[Any]]:
    """The row whose size is to be matched, and of each method the one that comes closest to it from below, if any comes near."""
    name = match if isinstance(match, str) else match.method
    measured = efficiency[~efficiency["published"]]
    runs = measured["method"].map(first)
    of = runs.map(lambda run: run.job.method)
    own = [i for i in measured.index[of == name] if isinstance(match, str) or runs[i].job.config == match.config]
    if not own:
        raise UserError(f"no finished run of {name}, whose size is to be matched; run it first")
    plainest = min(own, key=lambda i: (len(runs[i].job.origins), measured.at[i, "method"]))
    reference, target = runs[plainest], measured.at[plainest, "megabytes"]
    alike = runs.map(lambda run: (run.sample, run.job.precision) == (reference.sample, reference.job.precision))
    small = measured[measured["megabytes"].between(NEAR * target, target) & alike & (of != name)]
    chosen = [rows["megabytes"].idxmax() for _, rows in small.groupby(of)]
    return measured.loc[plainest], [*chosen, plainest]


def _may_be_reference(run: RunRecord) -> bool:
    return run.job.method == REFERENCE and "width" not in run.job.settings


def _reference(run: RunRecord, references: dict[Any, list[RunRecord]]) -> RunRecord | None:
    """The run of `individual` to compare with: same seed, precision, tasks and images, same value of every setting that
    both have (the recipe), networks of the protocol's own width. Of several, the one with the fewest settings changed from
    their defaults. references: by `_pair`."""

    def agree(other: RunRecord) -> bool:
        common = run.job.settings.keys() & other.job.settings.keys()
        return (
            run.tasks == other.tasks
            and [entry["digest"] for entry in run.data] == [entry["digest"] for entry in other.data]
            and all(run.job.settings[name] == other.job.settings[name] for name in common)
        )

    if _may_be_reference(run):
        return run
    matches = [other for other in references.get(_pair(run), []) if agree(other)]
    return min(matches, key=lambda r: (r.job.method_source, len(r.job.origins), r.job.config), default=None)


def _why_not(name: str, run: RunRecord) -> str:
    if name == "ratio":
        return f"n/a: no matching run of {REFERENCE}"
    if len(run.tasks) == 1:
        return "n/a: needs at least two tasks"
    if any(row[i] is None for i, row in enumerate(run.correct)):
        return "n/a: trains all tasks at once"
    return f"n/a: no matching run of {REFERENCE}" if name == "forward_gain" else "n/a: not measured after every task"


def _elsewhere(rows: dict[str, list[RunRecord]]) -> list[str]:
    """The rows on other tasks or images than most rows are on; of as many, those on more tasks count."""
    first = {label: runs[0] for label, runs in rows.items()}
    counts = Counter(run.sample for run in first.values())
    common = max(first.values(), key=lambda run: (counts[run.sample], len(run.tasks), run.sample)).sample
    return [label for label, run in first.items() if run.sample != common]


def _pareto(board: pd.DataFrame, size: str = "megabytes") -> pd.Series:
    """Rows that no other row dominates: at most its size, as printed, and at least its accuracy, one of them strictly.

    Only rows that compete take part: a reference that sees all tasks at once would leave no one else.
    """
    part = board["competes"] & board[size].notna()
    sizes, accuracy = as_printed(board[size]).where(part), board["accuracy"].where(part).astype(float)
    dominated = [
        ((sizes <= s) & (accuracy >= a) & ((sizes < s) | (accuracy > a))).any() for s, a in zip(sizes, accuracy, strict=True)
    ]
    return part & ~pd.Series(dominated, index=board.index, dtype=bool)


def as_printed(sizes: pd.Series) -> pd.Series:
    """Megabytes to the decimals of the tables, two, or three below 1: the few bytes of a method's name, in the header
    of its file, decide nothing."""
    return sizes.round(2).where(sizes >= 1, sizes.round(3))


def _smallest_first(board: pd.DataFrame, size: str) -> pd.DataFrame:
    """The Pareto front, then the others; of one size the more accurate first."""
    by = [~board["pareto"], as_printed(board[size]), -board["accuracy"].astype(float), board["method"]]
    return board.loc[pd.DataFrame(dict(enumerate(by))).sort_values([*range(len(by))]).index]


def _select(board: pd.DataFrame, columns: str) -> pd.DataFrame:
    ranked = [f"{name}_{part}" for name in columns.split() if name in BETTER for part in ("p", "paired")]
    return board[["method", *columns.split(), *ranked, "n", "published", "competes"]].reset_index(drop=True)


def _version(library: str, run: RunRecord) -> str:
    return str(run.environment.get("versions", {}).get(library, "unknown"))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _network(run: RunRecord) -> tuple[Any, Any]:
    """What decides the plain network, within a protocol."""
    return run.job.settings.get("backbone"), run.job.settings.get("width", 1.0)


def _setting(name: str, run: RunRecord) -> Any:
    return run.job.settings[name]


def _images(name: str, run: RunRecord) -> str:
    return next((entry["digest"][:7] for entry in run.data if entry["name"] == name), "none")


def _device(run: RunRecord) -> str:
    return f"{run.environment.get('device', 'unknown')} ({run.environment.get('device_name', 'unknown')})"


def _revision(run: RunRecord) -> str:
    return str(run.environment.get("source", {}).get("revision") or "unknown")[:7]


def provenance(records: Sequence[RunRecord]) -> str:
    """One line: what was run, where, by which versions and when."""

    def every(get: Callable[[RunRecord], Any]) -> str:
        return ", ".join(map(str, sorted({get(r) for r in records})))

    dates = sorted({str(r.environment.get("date", "unknown"))[:10] for r in records})
    incomplete = sorted({entry["name"] for r in records for entry in r.data if not entry["complete"]})
    revisions = {_revision(r) for r in records}
    return "; ".join(
        [
            f"{records[0].job.protocol}, tier {records[0].job.tier}",
            f"seeds: {every(lambda r: r.job.seed)}",
            f"tasks: {every(lambda r: len(r.tasks))}",
            every(_device),
            every(lambda r: r.job.precision),
            ", ".join(f"{library} {every(partial(_version, library))}" for library in VERSIONS),
            f"revision {every(_revision)}" if len(revisions) <= 3 else f"{len(revisions)} revisions (see the notes)",
            dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
            *([f"not the published benchmark: incomplete images of {', '.join(incomplete)}"] if incomplete else []),
        ]
    )


def _footnotes(rows: dict[str, list[RunRecord]], board: pd.DataFrame) -> list[str]:
    """What a reader must know before comparing two rows."""
    records = [run for runs in rows.values() for run in runs]

    def differing(title: str, get: Callable[[RunRecord], Any]) -> list[str]:
        """One note that says which rows have which value, if there is more than one."""
        who: dict[str, dict[str, None]] = {}
        for label, runs in rows.items():
            for run in runs:
                who.setdefault(str(get(run)), {})[label] = None
        if len(who) == 1:
            return []
        return [f"{title}: " + "; ".join(f"{value} ({', '.join(labels)})" for value, labels in sorted(who.items()))]

    same: dict[str, list[str]] = {}  # the rows of each note
    for label, runs in rows.items():
        origins: dict[str, dict[str, None]] = {}  # what was chosen, by where it comes from
        for run in runs:
            for name, origin in run.job.origins.items():
                origins.setdefault(origin, {})[f"{name} = {_short(run.job.settings.get(name))}"] = None
        if origins:
            text = "; ".join(f"{', '.join(chosen)} ({origin})" for origin, chosen in origins.items())
            same.setdefault(text, []).append(label)
    notes = [f"{', '.join(labels)}: {text}" for text, labels in same.items()]
    recipe = [name for name in records[0].job.settings if all(name in r.job.settings for r in records)]
    for name in recipe:
        notes += differing(f"runs with different settings: {name}", partial(_setting, name))
    notes += differing("runs with different settings: precision", lambda r: r.job.precision)

    notes += differing("runs on different tasks", lambda r: ", ".join(r.task_names))

    images = {entry["name"]: None for r in records for entry in r.data}
    for name in images:
        entries = [entry for r in records for entry in r.data if entry["name"] == name]
        for note in dict.fromkeys((entry["note"], entry["complete"]) for entry in entries):
            text = "; ".join(filter(None, [note[0], "" if note[1] else "not the published benchmark"]))
            notes += [f"{name}: {text}"] if text else []
        notes += differing(f"runs on different images of {name}", partial(_images, name))

    notes += differing("runs on different devices", _device)
    for library in VERSIONS:
        notes += differing(f"runs with different versions of {library}", partial(_version, library))
    notes += differing("runs of different source revisions", _revision)
    seeds = {label: [str(run.job.seed) for run in runs if _emulated(run)] for label, runs in rows.items()}
    if emulated := [f"{label} (seed {', '.join(found)})" for label, found in seeds.items() if found]:
        words = "bf16 computed in fp32, on a CPU without bf16 arithmetic; no peak of a step, as fp32 copies would be in it"
        notes.append(f"{words}: {', '.join(emulated)}")
    dirty = [label for label, runs in rows.items() if any(r.environment.get("source", {}).get("dirty") for r in runs)]
    if dirty:
        notes.append(f"from an uncommitted revision: {', '.join(dirty)}")
    codes = {label: {digest(run.environment.get("code", {})): run for run in runs} for label, runs in rows.items()}
    if old := [label for label, runs in codes.items() if any(map(stale, runs.values()))]:  # one look for all of the same code
        notes.append(f"made by other source of method or protocol than is here now: {', '.join(old)}")

    for label, runs in rows.items():
        notes += [f"{label}: {remark}" for remark in ranged(r for run in runs for r in run.facts.get("remarks", []))]
    for row in board[~board["published"]].to_dict("records"):
        if 0 < row["ratio_n"] < row["n"]:
            notes.append(
                f"{row['method']}: forward gain and ratio over {row['ratio_n']:.0f} of {row['n']:.0f} seeds, "
                f"{REFERENCE} has no matching run of the others"
            )
    return notes


def _size_notes(rows: dict[str, list[RunRecord]], board: pd.DataFrame) -> list[str]:
    """What stored sizes and memory are beside the numbers of the boards."""
    notes = []
    for label, runs in rows.items():
        sizes: dict[str, list[int]] = {}
        for run in runs:
            for name, size in run.facts.get("other_sizes", {}).items():
                sizes.setdefault(name, []).append(size)
        here = f"{np.mean([run.stored_bytes for run in runs]) / MB:.3f}"
        said = {name: f"{np.mean(s) / MB:.3f}" for name, s in sizes.items()}
        if others := [f"{size} MB as {name}" for name, size in said.items() if size != here]:
            notes.append(f"{label}: {', '.join(others)}")
        if stored := [run.facts["memory_bytes"] for run in runs if "memory_bytes" in run.facts]:
            notes.append(f"{label}: training MB includes {np.mean(stored) / MB:.3f} MB of stored images")
    measured = board.loc[~board["published"]].set_index("method")
    if (absent := measured["held"].isna()).any():
        which = (
            "for any row" if absent.all() else f"for {', '.join(measured.index[absent])}; on its board only the others compete"
        )
        notes.append(f"memory of a step was not measured {which}")
    for label, row in measured.iterrows():
        if 0 < row["held_n"] < row["n"]:
            notes.append(
                f"{label}: memory of a step over {row['held_n']:.0f} of {row['n']:.0f} seeds, the others were not measured"
            )
    return notes


def ranged(remarks: Iterable[str]) -> list[str]:
    """One line for remarks that differ in their numbers alone, from the lowest to the highest of each: those of several seeds."""
    alike: dict[str, list[list[str]]] = {}
    for remark in remarks:
        alike.setdefault(re.sub(NUMBER, "#", remark), []).append(re.split(f"({NUMBER})", remark))
    lines = []
    for group in alike.values():
        parts = [sorted(set(column), key=float) if i % 2 else column for i, column in enumerate(zip(*group, strict=True))]
        lines.append("".join(p[0] if p[0] == p[-1] else f"{p[0]} to {p[-1]}" for p in parts))
    return lines
