"""The four boards of one protocol and tier, computed from run records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from ..protocol import Published
from ..record.imported import Imported, rows_of, table_of
from ..record.schema import MB, PARTS, Job, RunRecord
from ..record.served import NOT_MEASURED, ServedSpeeds
from ..record.store import no_collection
from ..text import clean
from .notes import Note, footnotes_of, named, size_notes_of
from .provenance import provenance
from .rows import RECIPE, check_names, configurations, names_of, on_other_data, one_version_each, reference_name, rows_called
from .significance import pairwise_p
from .statistics import fewer_bits, plain_network, points_of, statistics_by_row, summarise, t_interval

BETTER = {  # the better direction of each ranked statistic
    **dict.fromkeys(
        ("accuracy", "anytime_accuracy", "learning_accuracy", "forward_gain", "bwt", "compression", "matched_accuracy"), "max"
    ),
    **dict.fromkeys(("forgetting", "megabytes", "ratio", "added", "macs", "held", "peak"), "min"),
}

SIZES = ("megabytes", "ratio", "compression", "added", "macs", "held", "peak")  # counts: exact if all seeds agree

NEAR = 0.9  # a row is of matched size if it stores at least this share


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Four boards, best row first, of numbers as computed: `benchsuite.report` formats them.

    With a statistic `x` come `x_ci`, the half-width of its 95 % confidence interval over seeds (Student's t; NaN for one seed),
    `x_note`, why it is not applicable, and `x_n`, if it may be known for fewer seeds than the row's `n`. With a ranked statistic
    (`BETTER` says in which direction) come `x_p`, the p-value of "as good as the best row" (`significance.pairwise_p`, Holm's
    correction over all pairs of the rows compared, those with a size reference apart), and `x_paired`, the number of seeds shared
    with the best of these rows. x_p is NaN for that row, for rows not compared and with fewer than two shared seeds, and 0 or 1
    for sizes that are the same for every seed. Only rows that `compete` are ranked: our own runs that learn one task after
    another, on the tasks and images of most rows; `elsewhere` has the labels of rows on other tasks or images.

    accuracy: accuracy, anytime_accuracy and learning_accuracy in per cent, forward_gain in percentage points.
    backward_transfer: bwt and forgetting in percentage points.
    parameter_efficiency: width (of the backbone, a factor on its channels), megabytes (1e6 bytes of the exported file) and
        its parts, ratio to the size reference and its inverse compression, added (megabytes for each task after the first), macs
        (millions for one image as served, mean over tasks), dense_macs (of the plain backbone), served_speed (images per second
        relative to the dense network of the same width, all timed in one run), training_megabytes, accuracy,
        int8_megabytes and int8_accuracy (stored in 8 bits), smallest_form with its megabytes and accuracy (the smallest storage
        form whose mean accuracy is at most `MAY_LOSE` points below the row's), matched_accuracy (where sizes are matched); pareto
        marks the competing rows that, in some storage form, no other such row beats in size without losing accuracy.
    training_memory: megabytes of one training step (`RunRecord.memory`), the largest over tasks: held, peak, formula;
        training_megabytes, what stays between two steps; carried_megabytes, what stays between two tasks; compute, images
        computed relative to fine-tuning; accuracy; pareto as above, with held for the size. A row without held does not compete
        here.
    n_tasks_read, in each of them: whether the method asked how long the sequence is.
    provenance: one line for under every table and figure. footnotes: what a reader must know before comparing rows;
        size_notes: those of them that matter to the last two boards only.
    compared: the rows that are tested against each other, if they were chosen; otherwise empty, and all that compete are.
    forms: megabytes and accuracy of every row in every storage form on record (`statistics.points_of`), the points behind pareto.
    runs: the runs of each row, by its label, in the order of seeds.
    refused: why records beside these cannot be used, by their paths; the footnotes name them.
    unverified: the labels of rows made elsewhere (`record.imported`), which the frames mark as `published`.
    served: the speeds that served_speed is taken from.
    """

    accuracy: pd.DataFrame
    backward_transfer: pd.DataFrame
    parameter_efficiency: pd.DataFrame
    training_memory: pd.DataFrame
    protocol: str
    tier: str
    provenance: str
    footnotes: list[Note]
    size_notes: list[Note]
    elsewhere: list[str]
    compared: list[str]
    forms: pd.DataFrame
    runs: dict[str, list[RunRecord]]
    refused: Mapping[Path, str]
    unverified: list[str]
    served: ServedSpeeds

    def _repr_html_(self) -> str:
        """The four boards in a notebook: statistics with their intervals."""
        parts = [f"<p>{escape(self.provenance)}</p>"]
        for kind in ("accuracy", "backward_transfer", "parameter_efficiency", "training_memory"):
            board = getattr(self, kind).dropna(axis="columns", how="all")
            shown = [
                name
                for name in board
                if not name.endswith(("_p", "_paired", "_note", "_n")) and name not in ("competes", "n_tasks_read")
            ]
            table = board[shown].to_html(index=False, float_format="{:.2f}".format, na_rep="")
            parts.append(f"<h4>{kind.replace('_', ' ')}</h4>{table}")
        return "".join(parts)


@no_collection()
def leaderboard(
    records: Sequence[RunRecord],
    published: Sequence[Published] = (),
    match: str | Job | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
    stale: Callable[[RunRecord], str | None] = lambda record: None,
    compare: Sequence[str] = (),
    refused: Mapping[Path, str] = MappingProxyType({}),
    imported: Sequence[Imported] = (),
    served: ServedSpeeds = NOT_MEASURED,
) -> Leaderboard:
    """Rank the runs of one protocol and tier.

    match: a method (its row with the fewest settings changed from their defaults) or a job (any seed) whose size is to be
    matched: of every other method the largest row that stores at most as much, and at least nine tenths of it, on the same tasks
    and in the same precision, has its accuracy in a column of its own.
    files: method -> digest of its source: the version that is ranked; by default, or if it has no record, the one that ran last.
    stale: why a record's numbers would differ today, None if they would not (`benchsuite.source.stale`); it goes into a note.
    compare: methods or labels of rows, to be tested against each other; by default every row that competes.
    refused: records that cannot be used, by path, with the reason (`store.read_usable`); a footnote names them.
    imported: results made elsewhere. Their rows say so, are never ranked, and are tested only where `compare` names them.
    served: how fast the artifacts are (`record.served`).
    Raises UserError without records, without a record of `match` or a row of `compare`, for several protocols or tiers, or for
    the same run twice.
    """
    if not records:
        raise UserError("no finished runs to rank", "run `benchsuite leaderboard` or `benchsuite run` first")
    if len({(r.job.protocol, r.job.tier) for r in records}) > 1:
        raise UserError("records of several protocols or tiers cannot share a leaderboard", "rank those of one folder at a time")
    records, left_out = one_version_each(records, files)
    tier = records[0].job.tier
    changed = any(r.job.origins.get(name) == "command line" for r in records for name in RECIPE)
    if tier != "paper" or changed or not all(entry.complete and not entry.own for r in records for entry in r.data):
        published = ()
    foreign = rows_of(imported)
    rows = configurations(records, [*foreign, *(f"{p.method} ({_published(p)})" for p in published)])

    samples = statistics_by_row(rows, served)
    reference = reference_name(records)
    dense = {plain_network(r): r.dense_macs for r in records if r.dense_macs is not None}
    ours = {
        label: summarise(label, runs, samples[label], reference) | {"dense_macs": dense.get(plain_network(runs[0]), np.nan) / MB}
        for label, runs in rows.items()
    }
    points = {label: points_of(rows[label], row) for label, row in ours.items()}
    board = pd.DataFrame(
        [row | fewer_bits(points[label]) for label, row in ours.items()]
        + [_unverified(label, results) for label, results in foreign.items()]
        + [
            {
                "method": f"{p.method} ({_published(p)})",
                "published": True,
                "n_tasks_read": False,
                "competes": False,
                "accuracy": p.accuracy,
                "bwt": p.bwt,
                "megabytes": p.megabytes,
            }
            for p in published
        ]
    )
    elsewhere = on_other_data(rows)
    common = next(runs[0].tasks for label, runs in rows.items() if label not in elsewhere)
    board["competes"] &= ~board["method"].isin(elsewhere)
    called = names_of(rows) | {label: {label} for label in foreign}
    check_names(compare, set().union(*called.values()))
    chosen = [label for name in compare for label in rows_called(name, called)]
    board["compared"] = board["competes"] & (board["method"].isin(chosen) | (not compare))
    board["asked"] = board["method"].isin([label for label in chosen if label in foreign])  # unverified, and tested all the same
    board["reference"] = board["method"].isin([label for label, runs in rows.items() if runs[0].size_reference])
    seeds = [[run.job.seed for run in runs] for runs in rows.values()]
    seeds += [[result.seed for result in results] for results in foreign.values()]
    every = [*samples.values(), *map(table_of, foreign.values())]  # in the order of the rows of `board`

    def by_seed(name: str) -> pd.DataFrame:
        return pd.DataFrame(
            {i: pd.Series(values[name].to_numpy(float), seeds[i]) for i, values in enumerate(every) if name in values}
        )

    for name in (name for name in BETTER if name not in ("compression", "matched_accuracy")):
        board[[f"{name}_p", f"{name}_paired"]] = _against_best(name, board, by_seed(name))
    board["compression_p"], board["compression_paired"] = board["ratio_p"], board["ratio_paired"]  # its inverse
    board = board.copy()  # in one piece again

    accuracy = board[~board["published"] | board["accuracy"].notna()]
    transfer = board[~board["published"] | board["bwt"].notna()]
    size_notes = size_notes_of(rows, board)
    notes = [*footnotes_of(rows, board, stale), *left_out]
    if board["served_speed"].notna().any():
        size_notes.append(f"served speed: {served.how}")
    if refused:
        folders = ", ".join(clean("/".join(path.parts[-3:-1])) for path in refused)
        notes.append(f"left out, because their records cannot be used: {folders}")
    measured = board[~board["published"]].copy()
    measured["competes"] &= measured["held"].notna()
    for name in ("accuracy", "peak") if measured["held"].isna().any() else ():
        measured[[f"{name}_p", f"{name}_paired"]] = _against_best(name, measured, by_seed(name))
    blank = dict.fromkeys(("matched_accuracy", "matched_accuracy_p", "matched_accuracy_paired"), np.nan)
    efficiency = board[board["megabytes"].notna()].assign(**blank)
    forms = pd.DataFrame(
        [
            {"method": row["method"], **point, **{name: row[name] for name in ("width", "n", "published", "competes")}}
            for row in efficiency.to_dict("records")
            for point in points.get(row["method"]) or points_of([], row)
        ]
    ).assign(pareto=_pareto)
    efficiency["pareto"] = efficiency["method"].isin(forms.loc[forms["pareto"], "method"])
    if match:
        reference, matched = _matched(efficiency, {label: runs[0] for label, runs in rows.items()}, match)
        efficiency.loc[matched, "matched_accuracy"] = efficiency.loc[matched, "accuracy"]
        efficiency[["matched_accuracy_p", "matched_accuracy_paired"]] = _against_best(
            "matched_accuracy", efficiency, by_seed("accuracy")
        )
        size_notes.append(
            f"matched size: of each method the largest row that stores no more than {named(reference['method'])}"
            f" ({reference['megabytes']:.3f} MB) and at least {NEAR:.0%} of it, on the same tasks and in the same precision"
        )
    origins = [_origin(label, results, [task.name for task in common]) for label, results in foreign.items()]
    origins += [f"{named(f'{p.method} ({_published(p)})')}: {p.source}" for p in published if p.source]
    return Leaderboard(
        accuracy=_select(
            accuracy.sort_values(["accuracy", "method"], ascending=[False, True]),
            "accuracy accuracy_ci anytime_accuracy anytime_accuracy_ci anytime_accuracy_note "
            "learning_accuracy learning_accuracy_ci learning_accuracy_note "
            "forward_gain forward_gain_ci forward_gain_n forward_gain_note",
        ),
        backward_transfer=_select(
            transfer.sort_values(["bwt", "method"], ascending=[False, True]),
            "bwt bwt_ci bwt_note forgetting forgetting_ci forgetting_note",
        ),
        parameter_efficiency=_select(
            _smallest_first(efficiency, "megabytes"),
            f"width megabytes megabytes_ci {' '.join(PARTS)} ratio ratio_ci ratio_n ratio_note compression added added_ci "
            "macs macs_ci dense_macs served_speed served_speed_ci served_speed_n "
            "training_megabytes training_megabytes_ci accuracy accuracy_ci "
            "int8_megabytes int8_megabytes_note int8_accuracy int8_accuracy_note "
            "smallest_megabytes smallest_megabytes_note smallest_form smallest_accuracy matched_accuracy pareto",
        ),
        training_memory=_select(
            _smallest_first(measured.assign(pareto=partial(_pareto, size="held")), "held"),
            "held held_ci held_n peak peak_ci peak_n formula formula_ci formula_n "
            "training_megabytes training_megabytes_ci carried_megabytes carried_megabytes_ci compute compute_ci "
            "accuracy accuracy_ci pareto",
        ),
        protocol=records[0].job.protocol,
        tier=tier,
        provenance=provenance(records),
        footnotes=[*map(Note, [*notes, *size_notes, *origins])],
        size_notes=[*map(Note, size_notes)],
        elsewhere=elsewhere,
        compared=list(board.loc[board["compared"] | board["asked"], "method"]) if compare else [],
        forms=forms,
        runs=rows,
        refused=refused,
        unverified=list(foreign),
        served=served,
    )


def _unverified(label: str, results: Sequence[Imported]) -> dict[str, Any]:
    """The row of results made elsewhere, in the form of published figures but with the intervals over its seeds."""
    row: dict[str, Any] = {"method": label, "published": True, "n_tasks_read": False, "competes": False, "n": len(results)}
    for name, values in table_of(results).items():
        known = values.dropna().to_numpy()
        row[name], row[f"{name}_ci"] = t_interval(known)
        row[f"{name}_note"] = None if len(known) else "n/a: not measured after every task"
    row["megabytes"], row["megabytes_ci"] = row["megabytes"] / MB, row["megabytes_ci"] / MB
    return row


def _origin(label: str, results: Sequence[Imported], here: Sequence[str]) -> str:
    """What a reader must know of results made elsewhere. here: the names of the tasks of most rows."""
    first = results[0]
    words = [
        f"{named(label)}: made elsewhere by {first.by} and stated at {first.source}; this suite has neither run nor checked it",
        f"imported {', '.join(sorted({result.date[:10] for result in results}))}",
        f"seeds {', '.join(str(result.seed) for result in results)}",
        "" if set(first.tasks) == set(here) else f"other tasks than most rows ({len(first.tasks)})",
        "" if first.stored_bytes else "no size is known",
    ]
    return "; ".join(filter(None, words))


def _published(figure: Published) -> str:
    return "published" if figure.comparable else "published, other protocol"


def _against_best(name: str, board: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """For each row of `board` the p-value against the best one and the number of shared seeds (see `Leaderboard`).

    values: one column for each row, by seed; NaN if a row has no run of a seed.
    """
    answer = pd.DataFrame(np.nan, index=board.index, columns=["p", "paired"])
    rivals = board.index[(board["competes"] & board["compared"] | board["asked"]) & board[name].notna()]
    if len(rivals) < 2:
        return answer
    best = getattr(board.loc[rivals, name], f"idx{BETTER[name]}")()
    answer.loc[rivals, "paired"] = (values[rivals].notna().T & values[best].notna()).sum(axis=1)
    exact = values[rivals].nunique().to_numpy() == 1 if name in SIZES else None
    p = pairwise_p(values[rivals].to_numpy().T, board.loc[rivals, "reference"].to_numpy(bool), exact)
    answer.loc[rivals, "p"] = p[rivals.get_loc(best)]
    answer.loc[best] = np.nan
    return answer


def _matched(efficiency: pd.DataFrame, first: dict[str, RunRecord], match: str | Job) -> tuple[Any, list[Any]]:
    """The row whose size is to be matched, and of each method its largest row within reach (`NEAR`), if any."""
    name = match if isinstance(match, str) else match.method
    measured = efficiency[~efficiency["published"]]
    runs = measured["method"].map(first)
    of = runs.map(lambda run: run.job.method)
    own = [i for i in measured.index[of == name] if isinstance(match, str) or runs[i].job.config == match.config]
    if not own:
        raise UserError(f"no finished run of {name}, whose size is to be matched", "run it first")
    plainest = min(own, key=lambda i: (len(runs[i].job.origins), measured.at[i, "method"]))
    reference, target = runs[plainest], measured.at[plainest, "megabytes"]
    alike = runs.map(lambda run: (run.sample, run.job.precision) == (reference.sample, reference.job.precision))
    small = measured[measured["megabytes"].between(NEAR * target, target) & alike & (of != name)]
    chosen = [rows["megabytes"].idxmax() for _, rows in small.groupby(of)]
    return measured.loc[plainest], [*chosen, plainest]


def _pareto(board: pd.DataFrame, size: str = "megabytes") -> pd.Series:
    """Rows that no other row dominates by at most its size (as printed) and at least its accuracy, one of them strictly.

    Only rows that compete take part: joint training would leave no others.
    """
    part = board["competes"] & board[size].notna()
    sizes, accuracy = as_printed(board[size]).where(part), board["accuracy"].where(part).astype(float)
    dominated = [
        ((sizes <= s) & (accuracy >= a) & ((sizes < s) | (accuracy > a))).any() for s, a in zip(sizes, accuracy, strict=True)
    ]
    return part & ~pd.Series(dominated, index=board.index, dtype=bool)


def as_printed(sizes: pd.Series) -> pd.Series:
    """Megabytes to the decimals of the tables, two, or three below 1: the few bytes of a method's name in the header of its
    file must not decide a rank."""
    return sizes.round(2).where(sizes >= 1, sizes.round(3))


def _smallest_first(board: pd.DataFrame, size: str) -> pd.DataFrame:
    """The Pareto front, then the others by size; of equal size the more accurate first."""
    by = [~board["pareto"], as_printed(board[size]), -board["accuracy"].astype(float), board["method"]]
    return board.loc[pd.DataFrame(dict(enumerate(by))).sort_values([*range(len(by))]).index]


def _select(board: pd.DataFrame, columns: str) -> pd.DataFrame:
    ranked = [f"{name}_{part}" for name in columns.split() if name in BETTER for part in ("p", "paired")]
    return board[["method", *columns.split(), *ranked, "n", "n_tasks_read", "published", "competes"]].reset_index(drop=True)
