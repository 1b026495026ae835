"""The reproduction ledger: every published figure that the protocols hold, beside our own runs, with a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..protocol import Published
from ..record.schema import RunRecord
from .rows import configurations
from .statistics import t_interval

TOLERANCE = {"accuracy": "1.5 points", "bwt": "1.5 points", "megabytes": "15 %"}

COLUMNS = [
    *("protocol", "published", "source", "measure", "value"),
    *("ours", "tier", "precision", "n", "mean", "ci", "verdict", "reason"),
]

ROUNDING = 0.005  # figures are printed with two decimals

WITHIN = {1: "one run within", 2: "two runs within"}  # too few seeds to call it reproduced

VERDICTS = ("not reproduced", "undecided", "reproduced", *WITHIN.values(), "no run yet", "not comparable")

RULE = (
    "A figure is reproduced if our mean over at least three seeds differs from it by at most 1.5 points (sizes: 15 %); with fewer"
    " seeds, one run or two are within. Otherwise it is undecided if it lies inside the 95 % confidence interval over our seeds"
    " (Student's t), and not reproduced if it lies outside or if there is only one seed. Only `paper` runs on complete data with"
    " unchanged settings are compared, and only with figures measured under the same protocol."
)


def ledger(records: Iterable[RunRecord], published: Mapping[str, Sequence[Published]]) -> pd.DataFrame:
    """One row for each published figure and each of our configurations of that method; one more if none of them can be compared.

    records: of any protocols and tiers. published: the figures of each protocol, by its name.
    Columns: protocol, published (the method's name in its source), source, measure (accuracy in per cent, bwt in points,
    megabytes), value, ours (the row's label, None without a run), tier, precision, n, mean, ci (half-width of the 95 % interval;
    NaN for one seed), verdict (one of `VERDICTS`), reason.
    """
    runs: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for record in records:
        runs.setdefault((record.job.protocol, record.job.method), {}).setdefault(record.job.tier, []).append(record)
    rows = []
    for protocol, figures in published.items():
        for figure in figures:
            tiers = runs.get((protocol, figure.ours), {}) if figure.ours else {}
            ours = [row for tier in sorted(tiers, key=_paper_first) for row in configurations(tiers[tier]).items()]
            judged = [group for _, group in ours if not _why_not(figure, group)]
            for measure in TOLERANCE:
                if (value := getattr(figure, measure)) is None:
                    continue
                row = {"protocol": protocol, "published": figure.method, "source": figure.source, "measure": measure}
                row["value"] = value
                rows += [{**row, **_compared(figure, measure, label, group)} for label, group in ours]
                if not (ours if not figure.comparable else judged):
                    rows.append({**row, **_nothing(figure)})
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(("value", "n", "mean", "ci"), float))


def summary(frame: pd.DataFrame) -> list[str]:
    """What is reproduced and what is not: one line for each verdict that occurs.

    A figure with several rows counts once, by the first of its verdicts in the order of `VERDICTS`: a contradiction is never
    hidden by another run."""
    said: dict[str, dict[str, list[str]]] = {verdict: {} for verdict in VERDICTS}
    for (protocol, method, measure), group in frame.groupby(["protocol", "published", "measure"], sort=False):
        strongest = next(verdict for verdict in VERDICTS if (group["verdict"] == verdict).any())
        said[strongest].setdefault(f"{method} on {protocol}", []).append(NAMES[str(measure)])
    total = sum(len(measures) for which in said.values() for measures in which.values())
    words = {"no run yet": "no run to compare with", "not comparable": "not comparable, measured under other protocols"}
    return [
        f"{words.get(verdict, verdict)}: {sum(map(len, which.values()))} of {total} figures ("
        + "; ".join(f"{who}: {', '.join(measures)}" for who, measures in which.items())
        + ")"
        for verdict, which in said.items()
        if which
    ]


NAMES = {"accuracy": "accuracy", "bwt": "BWT", "megabytes": "MB"}


def _paper_first(tier: str) -> tuple[bool, str]:
    return tier != "paper", tier


def _nothing(figure: Published) -> dict[str, object]:
    if not figure.comparable:
        verdict, reason = "not comparable", "measured under another protocol"
    else:
        verdict = "no run yet"
        reason = "no `paper` run with the published settings" if figure.ours else "no such method here"
    return {
        "ours": None,
        "tier": None,
        "precision": None,
        "n": 0,
        "mean": np.nan,
        "ci": np.nan,
        "verdict": verdict,
        "reason": reason,
    }


def _compared(figure: Published, measure: str, label: str, runs: list[RunRecord]) -> dict[str, object]:
    values = np.array([_measured(run, measure) for run in runs], dtype=float)
    mean, half = t_interval(values)
    verdict, reason = "not comparable", _why_not(figure, runs)
    if not reason:
        verdict, reason = _verdict(getattr(figure, measure), measure, float(mean), float(half), len(runs))
    job = runs[0].job
    row = {"ours": label, "tier": job.tier, "precision": job.precision, "n": len(runs), "mean": mean, "ci": half}
    return {**row, "verdict": verdict, "reason": reason}


def _measured(run: RunRecord, measure: str) -> float:
    return float(getattr(run, measure))


def _why_not(figure: Published, runs: list[RunRecord]) -> str | None:
    """Why these runs cannot be compared with the figure; None if they can."""
    job = runs[0].job
    # Runs of one configuration have the same settings, wherever their values came from.
    changed = min((sorted(name for name, origin in r.job.origins.items() if origin == "command line") for r in runs), key=len)
    reasons = [
        "" if figure.comparable else "measured under another protocol",
        "" if job.tier == "paper" else f"tier {job.tier}",
        f"settings changed: {', '.join(changed)}" if changed else "",
        "user-defined method" if job.method_source else "",
        "" if all(entry.complete for r in runs for entry in r.data) else "incomplete images",
    ]
    return "; ".join(filter(None, reasons)) or None


def _verdict(published: float, measure: str, mean: float, half: float, n: int) -> tuple[str, str]:
    off = abs(mean - published)
    near = off <= ROUNDING + (0.15 * published if measure == "megabytes" else 1.5)
    unit = "MB" if measure == "megabytes" else "points"
    if np.isnan(mean):
        return "not comparable", "not measured after every task"
    words = f"off by {off:.2f} {unit}, {'within' if near else 'beyond'} {TOLERANCE[measure]}"
    within = WITHIN.get(n, "reproduced")
    if np.isnan(half):
        return (within if near else "not reproduced"), f"one seed, {words}"
    inside = off <= half + ROUNDING
    words += f", {'inside' if inside else 'outside'} our interval of ± {half:.2f}"
    if near:
        return within, words
    return ("undecided", f"{words}: more seeds are needed") if inside else ("not reproduced", words)
