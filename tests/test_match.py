"""Equal sizes: what a method stores is known before it is trained, and the width that comes closest is found."""

import csv
from dataclasses import replace

import pytest
from test_leaderboard import rows
from test_leaderboard import run as record

from benchsuite.cli import main
from benchsuite.errors import UserError
from benchsuite.leaderboard import leaderboard
from benchsuite.match import matching_width, stored_bytes
from benchsuite.method import methods
from benchsuite.runner import run
from benchsuite.settings import resolve

TINY = {"train_per_class": 8, "test_per_class": 8, "epochs": 1, "batch_size": 16}
KNOWN = [name for name, cls in methods.all().items() if not cls.size_is_learnt]


def job_of(name, **settings):
    return resolve("split-digits", "smoke", name, 1, overrides={**TINY, **settings})


@pytest.mark.parametrize("name", KNOWN)
def test_the_computed_size_is_the_one_that_a_run_ends_with(name, tmp_path):
    for settings in ({}, {"width": 0.5, "tasks": 3}):
        assert stored_bytes(job_of(name, **settings)) == run(job_of(name, **settings), results=tmp_path).stored_bytes


def test_methods_whose_size_is_learnt_say_so(tmp_path):
    learnt = set(methods.all()) - set(KNOWN)
    assert learnt == {"cacl", "cacl-cp", "cacl-tucker", "cacl-kronecker", "individual-svd", "individual-tucker", "individual-cp"}
    job = job_of("cacl", energy_drop=0.3, sparsity_weight=100.0, train_per_class=60, epochs=8)
    assert stored_bytes(job) != run(job, results=tmp_path).stored_bytes


@pytest.mark.parametrize("target", [20_000, 60_000, 120_000])
def test_the_width_is_the_widest_that_fits(target):
    def at(width):
        return job_of("finetune", width=width)

    width = matching_width(at, target)
    assert stored_bytes(at(width)) <= target < stored_bytes(at(round(width + 0.01, 2)))
    assert matching_width(at, 100) is None


def test_the_row_closest_from_below_is_matched():
    runs = [
        record("cacl", size=1_000_000, correct=((90, None), (90, 80))),
        record("finetune", size=500_000, settings={"epochs": 10, "width": 0.7}),
        record("finetune", size=900_000, settings={"epochs": 10, "width": 1.3}, correct=((80, None), (70, 80))),
        record("finetune", size=1_000_001, settings={"epochs": 10, "width": 1.5}),
        record("joint", size=2_000_000),
        record("hat", size=899_000),  # too far below to be compared at one size
    ]
    found = rows(leaderboard(runs, match="cacl").parameter_efficiency)
    assert {label: row["matched_accuracy"] for label, row in found.items() if row["matched_accuracy"] > 0} == {
        "cacl": 85,
        "finetune [width=1.3]": 75,
    }
    assert any("90% and all of the 1.000 MB of cacl" in note for note in leaderboard(runs, match="cacl").footnotes)
    assert not leaderboard(runs).parameter_efficiency["matched_accuracy"].notna().any()
    with pytest.raises(UserError, match="no finished run of ewc"):
        leaderboard(runs, match="ewc")


def test_bytes_added_by_each_task_are_the_mean_growth():
    stored = [{"weights": 500, "heads": 100, "masks": 0, "other": 0}, {"weights": 700, "heads": 200, "masks": 0, "other": 0}]
    one = replace(record("cacl"), stored=stored)
    assert rows(leaderboard([one]).parameter_efficiency)["cacl"]["added"] == pytest.approx(300 / 1e6)


def test_the_board_of_matched_sizes_is_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [w for name, value in TINY.items() for w in ("--set", f"{name}={value}")]
    command = ["leaderboard", "--tier", "smoke", "--seeds", "1", "--workers", "1", *words, "--match-size", "cacl"]
    assert main([*command, "--method", "finetune", "--method", "cacl", "--method", "individual"]) == 0
    with open("runs/split-digits/smoke/leaderboard/parameter_efficiency.csv") as file:
        board = {row["method"]: row for row in csv.DictReader(file)}
    assert set(board) == {"cacl", "finetune", "individual"}
    target = float(board["cacl"]["megabytes"])
    for name in ("finetune", "individual"):
        assert 0.9 * target < float(board[name]["megabytes"]) <= target
        assert board[name]["matched_accuracy"] == board[name]["accuracy"]
    assert "matched size: between 90% and all of the" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--set", "width=2"]) == 2
    assert "leave width out" in capsys.readouterr().err
