"""Equal sizes: what a method stores is known before it is trained, and the width that comes closest is found."""

import csv

import pytest
from records import changed, rows
from records import run as record

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.execution.match import matching_width, stored_bytes
from benchsuite.method import methods
from benchsuite.training.runner import run
from benchsuite.training.settings import method_of, resolve

TINY = {"train_per_class": 8, "test_per_class": 8, "epochs": 1, "batch_size": 16}
KNOWN = [name for name in methods.all() if not method_of(name, {}).size_is_learnt]


def job_of(name, **settings):
    return resolve("split-digits", "smoke", name, 1, overrides={**TINY, **settings})


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.slow
def test_the_computed_size_is_the_one_that_a_run_ends_with(name, tmp_path):
    quick = {"calibration_batches": 5} if name == "lance" else {}
    for settings in ({"tasks": 2, **quick}, {"width": 0.5, "tasks": 3, **quick}):
        assert stored_bytes(job_of(name, **settings)) == run(job_of(name, **settings), results=tmp_path).stored_bytes


@pytest.mark.slow
def test_methods_whose_size_is_learnt_say_so(tmp_path):
    learnt = set(methods.all()) - set(KNOWN)
    assert learnt == {"cacl", "cacl-cp", "cacl-tucker", "cacl-kronecker", "delta-svd", "individual-cp"}
    job = job_of("cacl", energy_drop=0.3, sparsity_weight=100.0, train_per_class=60, epochs=8)
    assert stored_bytes(job) != run(job, results=tmp_path).stored_bytes


@pytest.mark.parametrize("name", ["individual-svd", "individual-tucker"])
@pytest.mark.slow
def test_ranks_by_ratio_follow_from_shapes_and_others_do_not(name, tmp_path):
    for rule, learnt in (("ratio", False), ("energy", True), ("evbmf", True)):
        assert method_of(name, {"rank_by": rule}).size_is_learnt is learnt
    for settings in ({"ratio": 0.5, "recovery": 0.5, "epochs": 2}, {"whiten": True}):
        job = job_of(name, tasks=2, **settings)
        assert stored_bytes(job) == run(job, results=tmp_path).stored_bytes
    job = job_of(name, tasks=2, rank_by="energy", energy=0.5, train_per_class=60, epochs=8, init="default")  # control
    assert stored_bytes(job) != run(job, results=tmp_path).stored_bytes


@pytest.mark.parametrize("target", [20_000, 60_000, 120_000])
@pytest.mark.slow
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
    assert any(
        "no more than cacl (1.000 MB) and at least 90% of it" in note for note in leaderboard(runs, match="cacl").footnotes
    )
    assert not leaderboard(runs).parameter_efficiency["matched_accuracy"].notna().any()
    with pytest.raises(UserError, match="no finished run of ewc"):
        leaderboard(runs, match="ewc")


def matched(runs, match):
    board = leaderboard(runs, match=match).parameter_efficiency
    return set(board.loc[board["matched_accuracy"].notna(), "method"])


def test_the_configuration_that_was_asked_for_is_matched_among_rows_like_it():
    three, both = ((90, None, None), (70, 80, None), (70, 70, 80)), {"epochs": 10, "width": 1.3}
    plain, other = record("cacl", size=1_000_000), record("cacl", size=500_000, settings={"epochs": 5}, origins={"epochs": "me"})
    runs = [plain, other, record("finetune", size=490_000), record("finetune", size=990_000, settings=both)]
    assert matched(runs, "cacl") == matched(runs, plain.job) == {"cacl [epochs=10]", "finetune [width=1.3]"}
    assert matched(runs, other.job) == matched(runs, changed(other.job, seed=7)) == {"cacl [epochs=5]", "finetune"}
    alone = {"cacl [epochs=5]"}
    for unlike in (record("hat", size=490_000, correct=three, macs=[1] * 3), record("hat", size=490_000, precision="bf16")):
        assert matched([plain, other, unlike], other.job) == alone
    assert matched([plain, other, record("hat", size=490_000)], other.job) == {*alone, "hat"}  # control
    with pytest.raises(UserError, match="no finished run of cacl"):
        leaderboard(runs, match=changed(other.job, precision="bf16"))


def test_bytes_added_by_each_task_are_the_mean_growth():
    stored = [{"weights": 500, "heads": 100, "masks": 0, "other": 0}, {"weights": 700, "heads": 200, "masks": 0, "other": 0}]
    one = changed(record("cacl"), stored=stored)
    assert rows(leaderboard([one]).parameter_efficiency)["cacl"]["added"] == pytest.approx(300 / 1e6)


@pytest.mark.slow
def test_the_board_of_matched_sizes_is_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [w for name, value in {**TINY, "tasks": 2}.items() for w in ("--set", f"{name}={value}")]
    where = ["--protocol", "split-digits", "--tier", "smoke"]
    command = ["leaderboard", *where, "--seeds", "1", "--jobs", "1", *words, "--match-size", "cacl"]
    # all tasks: the plainest, and not to be matched
    assert main(["run", *where, *words[:-2], "--method", "cacl"]) == 0
    capsys.readouterr()
    assert main([*command, "--set", "energy_drop=0.01", "--method", "finetune", "--method", "individual"]) == 0
    said = capsys.readouterr()
    with open("runs/split-digits/smoke/leaderboard/parameter_efficiency.csv") as file:
        rows = list(csv.DictReader(file))
    (target,) = (row for row in rows if "energy_drop=0.01" in row["method"])
    (larger,) = (row for row in rows if "cacl" in row["method"] and row is not target)
    assert float(larger["megabytes"]) > float(target["megabytes"])
    assert not larger["matched_accuracy"]
    for name in ("finetune", "individual"):
        own = [row for row in rows if row["method"].partition(" ")[0] == name]
        (plain,) = (row for row in own if row["width"] == "1.0")
        (wide,) = (row for row in own if row["matched_accuracy"])
        assert float(plain["width"]) == 1
        assert not plain["matched_accuracy"]
        assert wide["matched_accuracy"] == wide["accuracy"]
        assert 0.9 * float(target["megabytes"]) < float(wide["megabytes"]) <= float(target["megabytes"])
        stored, whole = float(wide["megabytes"]), float(target["megabytes"])
        assert f"{name}: width {float(wide['width']):g}, {stored:.3f} of {whole:.3f} MB" in said.err
    assert all(float(row["ratio"]) > 0 for row in rows if row is not larger)
    assert "matched size: of each method the largest row that stores no more than" in " ".join(said.out.split())
    assert main([*command, "--set", "width=2"]) == 2
    assert "leave width out" in capsys.readouterr().err
