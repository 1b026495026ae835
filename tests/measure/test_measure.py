"""The scripts that measure: they run, and what they print is what the runs say."""

import re
import runpy
import shutil
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from short_runs import TINY, make, quick_fits

from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.measure import ablations, activations, bench, cacl_lite, initialisation, precision, race, records, serving
from benchsuite.method.registered import methods
from benchsuite.record.store import read_all
from benchsuite.training.settings import resolve

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["cacl", "cacl-tucker"])
def test_the_search_for_cacls_settings_prunes_more_at_a_higher_energy_drop_and_continues(method, monkeypatch, capsys, tmp_path):
    words = f"--method {method} --protocol split-digits --tier smoke --tasks 2 --set epochs=2 --set prune_at=0.5"
    search = ["cacl_lite", *words.split(), "--output", str(tmp_path / "lines"), "--energy-drops"]
    monkeypatch.setattr(sys, "argv", [*search, "1e-5", "0.3"])
    cacl_lite.main()
    first = capsys.readouterr().out.splitlines()
    found = [re.findall(r"([\d.]+) > ([\d.]+) > ([\d.]+) % at ([\d.]+)", line) for line in first]
    assert [len(tasks) for tasks in found] == [2, 2]
    assert all(float(many[3]) > float(few[3]) for many, few in zip(*found, strict=True))
    assert any(before != after for tasks in found for before, after, *_ in tasks)
    assert any(after != end for tasks in found for _, after, end, _ in tasks)
    monkeypatch.setattr(cacl_lite, "learn", lambda *_: "nothing is learnt again")
    monkeypatch.setattr(sys, "argv", [*search, "0.3", "1e-5", "0.1"])
    cacl_lite.main()
    third = f"{method}, fp32, seed 4, 2 tasks, energy_drop=0.1, epochs=2, prune_at=0.5: nothing is learnt again"
    assert capsys.readouterr().out.splitlines() == [*reversed(first), third]


def test_every_candidate_for_cacls_settings_is_another_run():
    jobs = {resolve("split-cifar100", "lite", "cacl", 4, overrides=settings).config for settings in cacl_lite.CANDIDATES}
    assert len(jobs) == len(cacl_lite.CANDIDATES)


def test_the_precision_table_pairs_the_seeds(monkeypatch, capsys, tmp_path):
    words = f"--protocol split-digits --tier smoke --tasks 2 --seeds 1 2 --results {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["precision", *words.split()])
    precision.main()
    out = capsys.readouterr().out
    assert len(re.findall(r"bf16: ACC", out)) == len(re.findall(r"fp32: ACC", out)) == 2
    assert "n = 2" in out


def test_each_ablation_changes_one_thing_and_has_the_references_of_its_own_tasks(monkeypatch, capsys, tmp_path):
    of = {name: [change for change in ablations.CHANGES if change[0] == name] for name, _ in ablations.CHANGES}
    chosen = [*of["defaults"], of["budget"][0], of["budget"][-1], of["no recovery"][0]]
    monkeypatch.setattr(ablations, "CHANGES", chosen)
    words = "--protocol split-digits --tier smoke --tasks 2"
    words += f" --results {tmp_path}/runs --references {tmp_path}/full --output {tmp_path}"
    for more in ([], ["--set", "lr=0.1"]):  # the second is no reference: it has another setting
        assert main(f"run --protocol split-digits --tier smoke --method finetune --results {tmp_path}/full".split() + more) == 0
    monkeypatch.setattr(sys, "argv", ["ablations", *words.split()])
    capsys.readouterr()
    ablations.main()
    frame = pd.read_csv(tmp_path / "ablations.csv")
    assert list(frame["factor"]) == ["defaults", "budget", "budget", "no recovery"]
    assert frame["bytes"][1] < frame["bytes"][0] < frame["bytes"][2]
    (reference,) = [line for line in capsys.readouterr().out.splitlines() if "fine-tuning" in line]
    (finetune,) = [r for r in read_all(tmp_path / "full") if "lr" not in r.job.origins or r.job.origins["lr"] != "command line"]
    assert f"{finetune.R.diagonal()[:2].mean():.2f}" in reference
    assert (tmp_path / "ablations.pdf").stat().st_size > 1000

    largest, base = (
        next(r for r in read_all(tmp_path / "runs") if r.stored_bytes == frame["bytes"][row]).job.folder for row in (2, 0)
    )
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--no-run"])
    shutil.rmtree(tmp_path / "runs" / largest)  # not finished
    ablations.main()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "ablations.csv"), frame.drop(2).reset_index(drop=True))
    shutil.rmtree(tmp_path / "runs" / base)
    with pytest.raises(UserError, match="the run of the defaults is missing; leave out --no-run"):
        ablations.main()


def test_the_initialisation_table_has_both_laws(monkeypatch, capsys, tmp_path):
    words = f"--protocol split-digits --tier smoke --tasks 2 --methods finetune --results {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["initialisation", *words.split()])
    initialisation.main()
    default, he = (line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:])
    assert (default[1].strip(), he[1].strip()) == ("default", "he")
    assert default[2:] != he[2:]


def benched(tmp_path, *words):
    """The rows of `benchsuite bench`, by what they are of and relative to."""
    quick = [word for name, n in {**TINY, "epochs": 1}.items() for word in ("--set", f"{name}={n}")]
    small = ["--rounds", "1", "--steps", "1", *quick, "--output", str(tmp_path)]
    assert main(["bench", *words, *small]) == 0
    return pd.read_csv(tmp_path / "bench.csv").set_index(["what", "relative_to"])


@pytest.mark.parametrize(("base", "chosen"), [("finetune", []), ("cacl", ["--methods", "ewc", "individual-svd"])])
def test_the_bench_has_every_method_early_and_late(base, chosen, tmp_path, capsys, monkeypatch):
    quick_fits(monkeypatch)
    rows = benched(tmp_path, "--sections", "methods", "--tasks", "2", "3", "--relative-to", base, *chosen)["ratio"]
    names = ("ewc", "individual-svd", "individual-svd second phase", "cacl")
    for name in names if chosen else (*names, "finetune", "packnet", "hat", "delta-svd second phase"):
        assert {(f"{name}, task 2", f"{base}, task 2"), (f"{name}, task 3", f"{name}, task 2")} < set(rows.index)
    assert (rows > 0).all()
    assert rows[f"{base}, task 3", f"{base}, task 3"] == 1


@pytest.mark.parametrize("second", [True, False])
def test_the_bench_times_a_second_phase_after_its_beginning(second, monkeypatch):
    cuts = []
    monkeypatch.setattr(methods.get("delta-svd"), "cut", lambda self, strategy: cuts.append(strategy.clock.train_exp_epochs))
    bench.Bench(overrides=TINY).ours("delta-svd", second=second, task=2)()
    assert cuts == ([1] if second else [])


def test_the_bench_says_where_a_step_goes_and_what_other_settings_change(tmp_path, capsys):
    sections = ["loop", "evaluation", "data", "settings", "profile"]
    rows = benched(tmp_path, "--sections", *sections, "--skip", "compiled", "processes")
    assert list(dict.fromkeys(rows["section"])) == sections
    naive, bare, own = "Avalanche's Naive, fp32", "bare loop", "benchsuite"
    assert {(naive, bare), (own, bare), (own, naive), (f"{own} without metrics", bare)} < set(rows.index)
    same = [(what, other) for what, other in rows.index if what == other]
    assert len(same) == 4  # of each section whose contenders race
    assert (rows.loc[same, "ratio"] == 1).all()
    shares = rows[rows["section"] == "profile"]["ratio"]
    assert (rows.loc["convolutions, operations per second", "ratio"] > 0).all()
    shares = shares.xs("one step", level=1)
    assert shares.sum() == pytest.approx(1)
    assert shares["convolutions"] > 0
    errors = rows[rows["section"] == "settings"].droplevel(1)
    assert not errors.loc["plain", ["gradient_error", "update_error"]].any()  # the same again is the same to the bit
    assert errors["update_error"]["unfused optimiser"] < 1e-5
    assert errors["gradient_error"]["contiguous layout (NCHW)"] < 1e-5  # the layout of our batches changes nothing but speed
    assert errors["gradient_error"]["bf16"] > 1e-4  # control: another arithmetic is seen
    printed, written = capsys.readouterr().out, (tmp_path / "bench.md").read_text()
    assert "largest share of a step: " in printed
    assert "load average (one minute) before and after:" in written
    assert written.split("\n\n", 1)[1] in printed


def test_the_bench_refuses_what_it_does_not_know(capsys):
    for words, said in (
        (["--sections", "lop"], "no section is called 'lop'; did you mean 'loop'?"),
        (["--tasks", "2", "9"], "tasks must lie in 1..5, got 2 and 9"),
        (["--rounds", "0"], "rounds and steps must be at least 1"),
        (["--methods", "cac"], "no method is called 'cac'"),
        (["--set", "epochs"], "--set takes name=value"),
    ):
        assert main(["bench", *words]) == 2
        err = capsys.readouterr().err.splitlines()
        assert said in err[-1]


def test_a_step_in_a_process_of_its_own_and_the_end_of_that_process(capsys):
    processes = bench.Processes(bench.Bench(overrides={"batch_size": 16}), 1, 1)
    processes()
    processes.close()
    assert processes.processes[0].exitcode == 0


def test_a_process_on_each_core_is_timed_for_each_image(monkeypatch):
    """Two processes that make a step in 6 s make one in 3 s; one on both cores needs 4 s, and Avalanche's loop 9 s."""

    class Named:
        closed = 0

        def __init__(self, bench, count, threads):
            self.count = count

        def close(self):
            Named.closed += 1

    def race(contenders, rounds, steps):
        together, apart, naive = contenders
        assert (contenders[together].count, contenders[apart].count) == (1, 2)
        return {together: [4.0], apart: [6.0], naive: [9.0]}

    for name, fake in (("cores", lambda: 2), ("Processes", Named), ("race", race), ("paused", lambda *_: None)):
        monkeypatch.setattr(bench, name, fake)
    one, other = bench.Bench(steps=1).processes()
    assert (one["ratio"], other["ratio"], other["seconds"]) == (0.75, 1 / 3, 3.0)
    assert one["update_error"] < 1e-5  # numbers of threads, too, are only another order of sums
    assert Named.closed == 2


def test_an_error_in_a_paused_training_is_raised_where_its_step_is_asked_for():
    strategy, stream = make()
    step = race.paused(strategy, stream.train[0])
    step()
    strategy.method.before_forward = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        step()


@pytest.mark.parametrize(("alone", "clock"), [(True, "process_time"), (False, "perf_counter")])
def test_a_race_takes_turns_and_leaves_the_first_round_out(alone, clock, monkeypatch):
    now, turns = [0.0], []
    monkeypatch.setattr(race, "alone", lambda: alone)
    monkeypatch.setattr(race, "time", SimpleNamespace(**{clock: lambda: now[0]}))  # the other clock is not read

    def contender(name, *seconds):
        left = iter(seconds)

        def step():
            turns.append(name)
            now[0] += next(left)

        return step

    contenders = {"a": contender("a", 9, 9, 1, 2, 3, 4), "b": contender("b", 9, 9, 5, 5, 6, 6)}
    assert race.race(contenders, 2, 2) == {"a": [3, 7], "b": [10, 12]}
    assert "".join(turns) == "aabb" * 3


def test_a_ratio_is_taken_within_rounds():
    seconds = {"slow": [2.0, 20.0, 3.0], "fast": [1.0, 10.0, 1.0]}  # in the second round the machine had other work
    assert race.ratio(seconds, "slow", "fast") == (2.0, 2.0, 3.0)


def test_the_table_of_served_models_has_every_form_beside_the_dense_network(monkeypatch, capsys, tmp_path):
    words = ["--protocol", "split-digits", "--tier", "smoke", "--set", "tasks=2", "--set", "epochs=1", "--seed", "1"]
    files = [tmp_path / f"{name}.safetensors" for name in ("finetune", "cacl-cp")]
    for file in files:
        assert main(["run", *words, "--method", file.stem, "--results", str(tmp_path)]) == 0
        assert main(["export", *map(str, tmp_path.rglob(f"{file.stem}/*/record.json")), "--output", str(file)]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["serving", *map(str, files), "--batches", "1", "3", "--rounds", "1", "--steps", "1"])
    serving.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:-3] for row in rows] == [["dense"], ["finetune", "served"], *(["cacl-cp", form] for form in serving.FORMS)]
    assert rows[0][-2:] == ["1.000", "1.000"]
    macs = {tuple(row[:-3]): float(row[-3]) for row in rows}
    assert macs["cacl-cp", "composed"] == macs["dense",] == macs["finetune", "served"]
    assert macs["cacl-cp", "served"] <= min(macs["cacl-cp", "composed"], macs["cacl-cp", "chain"])
    assert macs["cacl-cp", "chain"] != macs["cacl-cp", "composed"]

    board = tmp_path / "split-digits" / "smoke"  # the same artifacts, for its column
    taken = iter([[8.0, 6.0], [2.0, 3.0]])  # of cacl-cp and finetune

    def race(contenders, rounds, steps):
        for step in contenders.values():
            step()
        return {"dense": [2.0, 3.0], "served": next(taken)}

    monkeypatch.setattr(serving, "race", race)
    assert main(["bench", "--served", str(board), "--batch", "3"]) == 0
    assert "times as fast as dense" in capsys.readouterr().out
    table = pd.read_csv(board / "served.csv").set_index("method")
    assert table["speed"].to_dict() == {"finetune": 1, "cacl-cp": 0.375}
    assert table.loc["cacl-cp", ["lowest", "highest"]].tolist() == [0.25, 0.5]
    assert table["how"].iloc[0].startswith("3 images at once, fp32, ")
    ranked = ["leaderboard", "--no-run", "--protocol", "split-digits", "--tier", "smoke", "--results", str(tmp_path)]
    assert main([*ranked, "--no-figures"]) == 0
    shown = (board / "leaderboard" / "parameter_efficiency.md").read_text()
    assert "| Served speed (x dense) |" in shown
    assert "- served speed: 3 images at once" in shown
    capsys.readouterr()
    taken = iter([[8.0, 6.0]])
    next(tmp_path.rglob("finetune/*/artifact.safetensors")).write_bytes(b"another")
    assert main(["bench", "--served", str(board)]) == 0
    assert "n/a: " in capsys.readouterr().out
    assert pd.read_csv(board / "served.csv")["method"].tolist() == ["cacl-cp"]
    for wrong, said in ((tmp_path, "is not the folder of a board"), (board / "finetune", "is not the folder of a board")):
        assert main(["bench", "--served", str(wrong)]) == 2
        assert said in capsys.readouterr().err


def test_the_table_of_activations_has_every_variant_beside_the_unmodified_step(monkeypatch, capsys, tmp_path):
    words = f"--protocol split-digits --epochs 1 --batches 2 --rounds 1 --steps 1 --output {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["activations", *words.split()])
    activations.main()
    frame = pd.read_csv(tmp_path / "activations.csv").set_index("variant")
    assert list(frame.index) == list(activations.VARIANTS)
    plain = frame.loc["unmodified"]
    assert (plain["held_ratio"], plain["error"], plain["time"]) == (1, 0, 1)
    exact = frame[frame.index.str.startswith("exact") | frame.index.isin(["hosvd 1", "svd 1"])]
    assert (exact["error"] < 1e-6).all()
    assert (exact["held"] < plain["held"]).all()
    hosvd = frame.loc[[f"hosvd {e:g}" for e in activations.EPSILONS]]
    assert (hosvd["held"] >= hosvd["formula"]).all()
    assert 0 < hosvd["error"]["hosvd 0.95"] < hosvd["error"]["hosvd 0.5"] < 1
    assert frame["held"]["hosvd 0.8, plain ReLU"] > 2 * frame["held"]["hosvd 0.8"]
    assert frame["error"]["hosvd 0.8, factors by SVD"] == pytest.approx(frame["error"]["hosvd 0.8"], rel=1e-3)
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".csv", ".pdf", ".png"}
    assert "| hosvd 0.8 |" in (tmp_path / "activations.md").read_text()


def test_some_activations_alone_take_turns_with_the_unmodified_step(monkeypatch, capsys, tmp_path):
    words = f"--protocol split-digits --epochs 1 --batches 1 --rounds 2 --steps 1 --output {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["activations", *words.split(), "--variants", "hosvd 0.8"])
    activations.main()
    frame = pd.read_csv(tmp_path / "activations.csv").set_index("variant")
    assert list(frame.index) == ["unmodified", "hosvd 0.8"]
    row = frame.loc["hosvd 0.8"]
    assert 0 < row["lowest"] <= row["time"] <= row["highest"]
    said = f"{row['time']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
    assert said in (tmp_path / "activations.md").read_text()


def test_what_the_user_can_mend_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCHSUITE_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for words, expected in (([], "cifar-100-python"), (["--set", "batch_size"], "--set takes name=value")):
        monkeypatch.setattr(sys, "argv", ["precision", "--data-dir", str(tmp_path), *words])
        with pytest.raises(SystemExit) as end, pytest.warns(RuntimeWarning, match="found in sys.modules"):
            runpy.run_module("benchsuite.measure.precision", run_name="__main__")
        said = end.value.code  # a text: Python prints it on standard error, and the code is 1
        assert said.startswith("benchsuite: error: ")
        assert len(said.splitlines()) == 1
        assert expected in said


def test_records_are_made_up_and_ranked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["records", "--records", "60"])
    records.main()
    said = capsys.readouterr().out
    assert said.startswith("60 records, 2 rows")
    assert re.search(r"both +[0-9.]+ s \([0-9.]+ CPU s\), peak [0-9]+ MB", said)
