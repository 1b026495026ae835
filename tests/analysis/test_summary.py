"""Boards side by side: which rows are the same configuration, their average ranks and groups."""

from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from records import changed, individual, joint, run
from scipy import stats

from benchsuite.analysis import summary as module
from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.analysis.significance import holm, moderated_t
from benchsuite.analysis.summary import summary
from benchsuite.errors import UserError


def on(protocol, records, **options):
    return leaderboard([changed(r, job=changed(r.job, protocol=protocol)) for r in records], **options)


def ending(method, accuracy, seed=1, **changes):
    """A run whose final accuracy is `accuracy` per cent."""
    return run(method, seed, ((90, None), (accuracy, accuracy)), **changes)


def ranks(found):
    return {row["method"]: row["average_rank"] for row in found.ranks.dropna(subset="average_rank").to_dict("records")}


def test_average_ranks_over_boards_by_hand():
    first = on("a", [ending("ewc", 80), ending("er", 70), ending("hat", 70), ending("lwf", 60), joint()])
    second = on("b", [ending("ewc", 50), ending("er", 60), ending("hat", 40), joint(), ending("si", 99)])
    found = summary([first, second])
    # a: ewc 1, er and hat share 2 and 3; b: er 1, ewc 2, hat 3. lwf and si take no place.
    assert ranks(found) == {"ewc": 1.5, "er": 1.75, "hat": 2.75}
    assert list(ranks(found)) == ["ewc", "er", "hat"]
    assert (found.blocks, found.over) == (["a/lite", "b/lite"], "boards")
    notes = found.ranks.set_index("method")["rank_note"].dropna().to_dict()
    assert notes == {
        "joint": "n/a: not ranked on a/lite, b/lite",
        "lwf": "n/a: no runs on b/lite",
        "si": "n/a: no runs on a/lite",
    }
    own = found.results.set_index(["method", "board"])["rank"]
    assert own["er", "a/lite"] == 2.5
    assert own["er", "b/lite"] == 1
    assert own[["joint", "lwf", "si"]].isna().all()
    alone = summary([first, second], rows=["er", "hat", "si"])  # ranks are among the rows that are there
    assert ranks(alone) == {"er": 1.25, "hat": 1.75}
    assert set(alone.results["method"]) == {"er", "hat", "si"}


def test_the_table_has_the_numbers_of_each_board():
    boards = [on("a", [run(size=2_000_000), individual()]), on("b", [run(correct=((80, None), (50, 60)))])]
    found = summary(boards).results
    assert found["board"].tolist() == ["a/lite", "a/lite", "b/lite"]
    row = found[(found["method"] == "finetune") & (found["board"] == "a/lite")].iloc[0]
    assert (row["accuracy"], row["bwt"], row["megabytes"], row["n"]) == (75, -20, 2, 1)
    assert np.isnan(row["int8_megabytes"])
    assert row["int8_megabytes_note"] == "n/a: no storage forms on record"
    assert found[found["board"] == "b/lite"].iloc[0]["accuracy"] == 55


def test_rows_are_matched_by_method_modifier_and_what_was_changed_by_hand():
    def narrow(**settings):
        return ending("er", 60, settings={"epochs": 10, "width": 0.5, **settings}, origins={"width": "command line"})

    tuned = ending("ewc", 50, settings={"epochs": 10, "strength": 3.0}, origins={"strength": "tuned: 5 trials"})
    other = ending("ewc", 50, settings={"epochs": 5, "strength": 7.0}, origins={"strength": "tuned: 5 trials"})
    first = on("a", [ending("er", 70), ending("er+hosvd", 40), narrow(), tuned])
    second = on("b", [ending("er+hosvd", 30), narrow(), other])
    assert list(ranks(summary([first, second]))) == ["er [width=0.5]", "ewc", "er+hosvd"]
    # what all rows of a board have in common is its recipe
    third = on("c", [ending(m, 50, settings={"epochs": 3}, origins={"epochs": "command line"}) for m in ("er", "ewc")])
    assert set(ranks(summary([first, third]))) == {"er", "ewc"}
    fourth = on("c", [ending("er", 50, settings={"epochs": 3}, origins={"epochs": "command line"}), ending("ewc", 50)])
    assert set(ranks(summary([first, fourth]))) == {"ewc"}, "control: only some rows have it"


def test_rows_of_one_board_that_share_a_name_keep_their_labels():
    twice = on("a", [ending("er", 70), ending("er", 60, precision="bf16"), ending("ewc", 50)])
    assert {*summary([twice]).results["method"]} == {"er [precision=fp32]", "er [precision=bf16]", "ewc"}


def test_one_board_is_ranked_over_its_seeds():
    accuracies = {"ewc": (80, 60, 70), "er": (70, 65, 60), "hat": (60, 55, 60)}
    records = [ending(name, a, seed) for name, row in accuracies.items() for seed, a in enumerate(row, 1)]
    found = summary([on("a", [*records, ending("ewc", 1, 4), ending("lwf", 99, 1)])])
    assert ranks(found) == pytest.approx({"ewc": 4 / 3, "er": (2 + 1 + 2.5) / 3, "hat": (3 + 3 + 2.5) / 3})
    assert (found.blocks, found.over) == (["1", "2", "3"], "seeds")
    notes = found.ranks.set_index("method")["rank_note"].dropna().to_dict()
    assert notes == {"lwf": "n/a: no run of seed 2, 3"}
    values = np.array([*accuracies.values()], float)
    pairs = list(combinations(range(3), 2))
    expected = holm(moderated_t(np.array([values[i] - values[j] for i, j in pairs]), 3))
    assert [found.p.iloc[i, j] for i, j in pairs] == pytest.approx(expected)


def test_groups_hold_the_pairs_that_cannot_be_told_apart():
    draw = np.random.default_rng(1)
    levels = {"a": 80, "b": 79, "c": 70, "d": 69.5, "e": 40}
    records = [
        ending(name, 0, seed, tasks=[{"name": f"task {i}", "test": 10_000} for i in range(2)])
        for name in levels
        for seed in range(1, 6)
    ]
    noise = {(name, seed): draw.normal() for name in levels for seed in range(1, 6)}
    records = [
        changed(r, correct=[[0, None], [round(100 * (levels[r.job.method] + noise[r.job.method, r.job.seed]))] * 2])
        for r in records
    ]
    found = summary([on("x", records)])
    assert found.groups == [["a", "b"], ["c", "d"]]
    for one, other in combinations(levels, 2):
        together = any({one, other} <= set(group) for group in found.groups)
        assert together == (found.p.loc[one, other] > 0.05)


def test_two_rows_over_boards_give_the_paired_t_test():
    ours, theirs = (70, 60, 80, 75), (65, 59, 71, 72)
    boards = [on(f"p{i}", [ending("er", a), ending("ewc", b)]) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    found = summary(boards)
    assert found.p.loc["er", "ewc"] == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_all_the_largest_sets_without_a_difference(seed):
    """By brute force, on relations that need not follow the order of ranks."""
    draw = np.random.default_rng(seed)
    upper = np.triu(draw.random((7, 7)) < 0.5, 1)
    p = pd.DataFrame(np.where(upper | upper.T | np.eye(7, dtype=bool), 0.5, 0.01), list("abcdefg"), list("abcdefg"))

    def alike(group):
        return all(p.loc[i, j] > 0.05 for i, j in combinations(group, 2))

    sets = [set(group) for n in range(2, 8) for group in combinations(p.index, n) if alike(group)]
    largest = [group for group in sets if not any(group < other for other in sets)]
    found = module._groups(p)
    assert sorted(map(sorted, found)) == sorted(map(sorted, largest))
    assert all(a < b for a, b in pairwise(found)), "in the order of the rows"


def test_one_block_tests_nothing():
    found = summary([on("a", [ending("er", 70), ending("ewc", 50)])])
    assert ranks(found) == {"er": 1, "ewc": 2}
    assert found.groups == []
    assert found.p.isna().all(axis=None)


def test_boards_without_a_ranked_row_in_common():
    found = summary([on("a", [ending("er", 70)]), on("b", [ending("ewc", 50)])])
    assert found.ranks["average_rank"].isna().all()
    assert (found.groups, len(found.results)) == ([], 2)
    assert summary([on("a", [joint()])]).ranks["rank_note"].tolist() == ["n/a: not ranked on a/lite"]


def test_other_versions_of_a_file_are_noted():
    one, other = (ending("mine", 50, method_source=digit * 64) for digit in "ab")
    assert summary([on("a", [one]), on("b", [other])]).notes == [
        "mine: not one version: file aaaaaaa on a/lite; file bbbbbbb on b/lite"
    ]
    assert summary([on("a", [one]), on("b", [one])]).notes == []  # control


@pytest.mark.parametrize("boards", [[], [1, 1]])
def test_the_boards_must_be_different_ones(boards):
    made = on("a", [run()])
    with pytest.raises(UserError, match="different protocols"):
        summary([made for _ in boards])


def test_a_row_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no row is called 'ers'"):
        summary([on("a", [ending("er", 70)])], rows=["ers"])
