"""Storage forms on a board: 8 bits, the smallest form that loses little, the Pareto front of all forms, and a note."""

import numpy as np
import pytest
from records import individual, rows, run

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.report import tables


def forms(*counts, size=1_000_000, changed=0):
    """Five forms of two tasks; each is half as large as the one before."""
    names = ("fp32", "fp16", "int8", "int6", "int4") if len(counts) > 1 else ("native",)
    return {
        name: {
            "sizes": {"weights": size // 2**i - 1000, "heads": 1000, "masks": 0, "other": 0},
            "correct": list(c),
            "changed": changed * i,
        }
        for i, (name, c) in enumerate(zip(names, counts, strict=True))
    }


LITTLE = ((70, 80), (70, 80), (70, 79), (69, 79), (60, 60))  # 75, 75, 74.5, 74, 60 %


def test_a_row_in_8_bits_and_its_smallest_form_that_loses_at_most_half_a_point():
    better = ((70, 80), (70, 80), (70, 80), (70, 80), (71, 80))
    board = leaderboard([run(seed=1, forms=forms(*LITTLE)), run(seed=2, forms=forms(*better)), individual(forms=forms(*LITTLE))])
    row = rows(board.parameter_efficiency)["finetune"]
    assert (row["int8_megabytes"], row["int8_accuracy"]) == (0.25, 74.75)
    assert (row["smallest_form"], row["smallest_megabytes"], row["smallest_accuracy"]) == ("int6", 0.125, 74.5)  # of both seeds
    (eight,) = board.forms[(board.forms["method"] == "finetune") & (board.forms["form"] == "int8")].to_dict("records")
    assert (eight["megabytes"], eight["accuracy"], eight["megabytes_ci"]) == (0.25, 74.75, 0)
    assert eight["accuracy_ci"] > 0
    alone = rows(leaderboard([run(forms=forms(*LITTLE))]).parameter_efficiency)["finetune"]
    assert alone["smallest_form"] == "int8"  # control: the first seed alone loses a point in 6 bits
    text = tables.to_markdown(board, "parameter_efficiency")
    assert "| 8-bit size (MB) | 8-bit accuracy (%) | Smallest (MB) |" in text
    assert "0.125 int6" in text
    assert "8-bit size and 8-bit accuracy: of the same networks, stored in 8 bits. Smallest: the smallest storage form" in text


def test_a_row_without_forms_says_so_and_a_board_without_any_has_no_such_columns():
    board = leaderboard([run(forms=forms(*LITTLE)), individual(), run("own", forms=forms((70, 80)))])
    found = rows(board.parameter_efficiency)
    assert np.isnan(found["individual"]["int8_megabytes"])
    assert (found["own"]["smallest_form"], found["own"]["smallest_megabytes"]) == ("native", 1.0)
    text = tables.to_markdown(board, "parameter_efficiency")
    assert "n/a: no storage forms on record (individual)" in text
    assert "n/a: stores codes of its own (own)" in text
    some = [run(seed=1, forms=forms(*LITTLE)), run(seed=2)]  # of a row, all seeds or none
    for records in ([run(), individual()], some):
        board = leaderboard(records)
        assert "8-bit" not in tables.to_markdown(board, "parameter_efficiency")
        assert board.forms["form"].tolist() == [""] * len(board.parameter_efficiency)


def test_the_pareto_front_is_that_of_all_forms():
    """b is larger and less accurate in fp32, but a row on the front in 8 bits."""
    same = ((70, 80),) * 5
    b = run("b", correct=((90, None), (70, 78)), size=1_200_000, forms=forms(*((70, 78),) * 5, size=1_200_000))
    board = leaderboard([run("a"), b])
    assert rows(board.parameter_efficiency)["b"]["pareto"]
    assert board.forms[board.forms["pareto"]][["method", "form"]].to_numpy().tolist() == [["a", ""], ["b", "int4"]]
    both = leaderboard([run("a", forms=forms(*same)), b])  # control: a in 4 bits leaves nothing to b
    assert not rows(both.parameter_efficiency)["b"]["pareto"]


@pytest.mark.parametrize(("last", "said"), [((90, 80), True), ((70, 80), False)])
def test_rows_that_forget_nothing_say_how_many_answers_change(last, said):
    notes = leaderboard([run("a", correct=((90, None), last), forms=forms(*LITTLE, changed=3))]).size_notes
    words = (
        "of 200 test images so many are answered differently in fewer bits (mean over seeds; rows whose accuracies never changed "
        "after learning): a (fp16 3, int8 6, int6 9, int4 12)"
    )
    assert (words in notes) is said
    assert not any("answered differently" in note for note in leaderboard([run("a", correct=((90, None), last))]).size_notes)
