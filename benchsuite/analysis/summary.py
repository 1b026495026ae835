"""Several boards in one table: results of the same configuration side by side, average ranks, and which rows differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import UserError
from ..record.schema import RunRecord
from .leaderboard import Leaderboard
from .rows import RECIPE, check_names
from .significance import ALPHA, pairwise_p

SHOWN = (
    *("n", "published", "competes", "accuracy", "accuracy_ci", "bwt", "bwt_ci", "bwt_note", "megabytes", "megabytes_ci"),
    *("int8_megabytes", "int8_megabytes_note", "int8_accuracy", "int8_accuracy_note"),
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What several boards say of the same configurations: one method with the same modifier and the same settings changed on the
    command line. Settings that a method's author or a search chose for a protocol may differ, and so may recipe and precision.

    results: one row for each configuration (`method`) and board (`board`, PROTOCOL/TIER): the numbers of the boards, for 8 bits
        too, with `row`, its label on that board, and `rank` by accuracy among the rows that are ranked here (see `ranks`).
    ranks: one row for each configuration, the best first: `average_rank` over `blocks`, 1 for the highest accuracy, ties sharing
        the mean of their ranks (Demsar 2006, JMLR 7); `rank_note` says why it has none. Rows missing in a block have none, and
        they take no place from others, so that every average is over the same blocks and the same rivals.
    blocks: what is averaged over: boards or, for one board, seeds. A seed's runs share task order, initial weights and batches
        and are independent of other seeds'; the tasks of a run are not independent, since one network learns them in turn.
        Seeds of several boards are no blocks, since seeds of one protocol say nothing of another protocol.
    over: "boards" or "seeds".
    p: for each pair of ranked rows the p-value of "the same mean accuracy" (`significance.pairwise_p` over blocks: moderated
        paired t, Holm's correction over all pairs, those with a size reference apart). Accuracies are tested and not ranks,
        because a difference of average ranks depends on which other rows there are (Benavoli et al. 2016, JMLR 17).
    groups: for a critical-difference diagram: sets of ranked rows, best first, as large as possible, in which no pair differs
        (p > 0.05). Two ranked rows share a group if and only if they cannot be told apart; a row that lies between them by its
        rank may still differ from one of them. Empty with fewer than two blocks, where nothing can be tested.
    notes: what a reader must know besides.
    """

    results: pd.DataFrame
    ranks: pd.DataFrame
    blocks: list[str]
    over: str
    p: pd.DataFrame
    groups: list[list[str]]
    notes: list[str]


def summary(boards: Sequence[Leaderboard], rows: Sequence[str] = ()) -> Summary:
    """Summarise boards of different protocols (two tiers of one protocol would count it twice, so leave one out).

    rows: the configurations to rank and show, by the name of the configuration or method, or by a label on a board; default: all.
    Raises UserError without a board, for the same board twice, and for a name that no row has.
    """
    named = {f"{board.protocol}/{board.tier}": board for board in boards}
    if not boards or len(named) < len(boards):
        raise UserError("a summary needs boards of different protocols or tiers", "give each of them once")
    called = {key: _configurations(board) for key, board in named.items()}
    known: dict[str, set[str]] = {}  # what a reader may call each configuration; a method's name stands for all of its own,
    labels: dict[str, set[str]] = {}  # unless one of them is called just so
    for key, board in named.items():
        for row, name in called[key].items():
            labels.setdefault(name, {name}).add(row)
            known.setdefault(name, {name}).update({row, *(run.job.method for run in board.runs.get(row, ()))})
    check_names(rows, set().union(*known.values()))
    exact = set().union(*labels.values()) & set(rows)
    chosen = {name for name in known if not rows or labels[name] & exact or known[name] & (set(rows) - exact)}

    results = pd.concat([_results(board, key, called[key]) for key, board in named.items()], ignore_index=True)
    results = results[results["method"].isin(chosen)].reset_index(drop=True)
    there = results.pivot(index="method", columns="board", values="accuracy").reindex(columns=list(named))
    ranked = results[results["competes"]].pivot(index="method", columns="board", values="accuracy").reindex_like(there)
    reasons = {
        name: f"no runs on {', '.join(there.columns[there.loc[name].isna()])}"
        if there.loc[name].isna().any()
        else f"not ranked on {', '.join(ranked.columns[ranked.loc[name].isna()])}"
        for name in ranked.index[ranked.isna().any(axis=1)]
    }
    values, over = ranked.dropna(), "boards"
    if len(boards) == 1:
        values, missing = _by_seed(boards[0], dict(zip(results["method"], results["row"], strict=True)), list(values.index))
        over, reasons = "seeds", reasons | missing
    values = values.round(9)  # sums in another order differ in their last bits, which is no difference
    average = values.rank(ascending=False).mean(axis=1).sort_values(kind="stable")
    order = list(average.index)
    references = {called[key][row] for key, board in named.items() for row, runs in board.runs.items() if runs[0].size_reference}
    p = pd.DataFrame(pairwise_p(values.loc[order].to_numpy(), average.index.isin(references)), order, order)
    unranked = sorted(chosen - set(order), key=lambda name: (-there.loc[name].mean(), name))
    places = results["method"].isin(order)
    results["rank"] = results[places].groupby("board")["accuracy"].transform(lambda a: a.round(9).rank(ascending=False))
    return Summary(
        results=results,
        ranks=pd.DataFrame(
            {
                "method": [*order, *unranked],
                "average_rank": [*average, *(np.nan for _ in unranked)],
                "rank_note": [*(None for _ in order), *(f"n/a: {reasons[name]}" for name in unranked)],
            }
        ),
        blocks=[str(block) for block in values.columns],
        over=over,
        p=p,
        groups=_groups(p) if len(values.columns) > 1 else [],
        notes=_notes(named, called, chosen),
    )


def _configurations(board: Leaderboard) -> dict[str, str]:
    """The name of each row's configuration, comparable between boards: the method, with the settings changed on the command
    line. What all rows of a board change in their recipe is no part of it. Rows of one board that would share a name keep their
    labels."""

    def changed(run: RunRecord) -> dict[str, str]:
        return {
            name: f"{name}={run.job.settings.get(name)}" for name, o in sorted(run.job.origins.items()) if o == "command line"
        }

    every = [changed(runs[0]) for runs in board.runs.values()]
    common = {(name, value) for name, value in every[0].items() if name in RECIPE and all(c.get(name) == value for c in every)}
    names = {}
    for row in board.accuracy["method"]:
        if row not in board.runs:  # published, or made elsewhere
            names[row] = row
            continue
        run = board.runs[row][0]
        parts = [value for name, value in changed(run).items() if (name, value) not in common]
        names[row] = f"{run.job.method} [{', '.join(parts)}]" if parts else run.job.method
    several = {name for name, n in Counter(names.values()).items() if n > 1}
    return {row: row if name in several else name for row, name in names.items()}


def _results(board: Leaderboard, key: str, names: dict[str, str]) -> pd.DataFrame:
    frame = board.accuracy[["method"]]
    for part in (board.accuracy, board.backward_transfer, board.parameter_efficiency):
        new = [name for name in part if name == "method" or (name in SHOWN and name not in frame)]
        frame = frame.merge(part[new], on="method", how="left")
    described = {"board": key, "protocol": board.protocol, "tier": board.tier, "row": frame["method"]}
    return frame.assign(**described, method=frame["method"].map(names))[["method", *described, *SHOWN]]


def _by_seed(board: Leaderboard, rows: dict[str, str], ranked: list[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Accuracy of each ranked row (named as in `rows`) and seed, of the seeds that most rows have; why rows are left out."""
    found = {name: {run.job.seed: run.accuracy for run in board.runs[rows[name]]} for name in ranked}
    sets = Counter(frozenset(seeds) for seeds in found.values())
    common = max(sets, key=lambda seeds: (sets[seeds], len(seeds), sorted(seeds)), default=frozenset[int]())
    lacking = {name: sorted(common - seeds.keys()) for name, seeds in found.items()}
    whole = {name: {seed: found[name][seed] for seed in sorted(common)} for name, seeds in lacking.items() if not seeds}
    frame = pd.DataFrame.from_dict(whole, orient="index", columns=sorted(common))
    return frame, {name: f"no run of seed {', '.join(map(str, seeds))}" for name, seeds in lacking.items() if seeds}


def _groups(p: pd.DataFrame) -> list[list[str]]:
    """The largest sets, of two rows or more, in which no pair differs: the maximal cliques (Bron and Kerbosch 1973)."""
    same = p.to_numpy() > ALPHA
    beside = [set(np.flatnonzero(row)) - {i} for i, row in enumerate(same)]
    cliques: list[list[int]] = []

    def grow(clique: set[int], candidates: set[int], seen: set[int]) -> None:
        if not candidates and not seen:
            cliques.append(sorted(clique))
            return
        pivot = max(candidates | seen, key=lambda i: len(beside[i] & candidates))
        for i in sorted(candidates - beside[pivot]):
            grow(clique | {i}, candidates & beside[i], seen & beside[i])
            candidates, seen = candidates - {i}, seen | {i}

    grow(set(), set(range(len(p))), set())
    return [[p.index[i] for i in clique] for clique in sorted(cliques) if len(clique) > 1]


def _notes(named: dict[str, Leaderboard], called: dict[str, dict[str, str]], chosen: set[str]) -> list[str]:
    """Methods from files whose source is another one on another board."""
    versions: dict[str, dict[str, list[str]]] = {}
    for key, board in named.items():
        for row, runs in board.runs.items():
            source = f"file {runs[0].job.method_source[:7]}" if runs[0].job.method_source else "installed"
            versions.setdefault(called[key][row], {}).setdefault(source, []).append(key)
    several = {name: found for name, found in sorted(versions.items()) if len(found) > 1 and name in chosen}
    said = {name: [f"{source} on {', '.join(keys)}" for source, keys in found.items()] for name, found in several.items()}
    return [f"{name}: not one version: {'; '.join(parts)}" for name, parts in said.items()]
