import gc
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from records import COMPLETE, changed, individual, joint, memory, rows, run

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.analysis.rows import RECIPE, configurations, rows_called
from benchsuite.analysis.significance import pairwise_p
from benchsuite.analysis.statistics import per_task, t_interval
from benchsuite.errors import UserError
from benchsuite.protocol import Published
from benchsuite.record.store import read_all, read_usable, write
from benchsuite.source import digests, stale
from benchsuite.training.settings import resolve


def test_t_interval_against_a_known_value():
    mean, half = t_interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2
    assert half == pytest.approx(4.302652729911275 / math.sqrt(3))  # t_{0.975, 2} from printed tables, s = 1
    mean, half = t_interval(np.array([[1.0, 5.0]]))
    assert mean.tolist() == [1, 5]
    assert np.isnan(half).all()
    assert np.isnan(t_interval(np.array([]))).all()


def test_the_board_of_training_memory():
    settings = {"epochs": 10, "epsilon": 0.8}
    runs = [
        run(**memory([4_000_000, 5_000_000], [8_000_000, 7_000_000])),
        run(
            "finetune+hosvd",
            correct=((80, None), (60, 80)),
            settings=settings,
            **memory([1_000_000, 500_000], [6_000_000, 9_000_000], [100_000, 200_000]),
        ),
        run("er+hosvd", correct=((50, None), (50, 50)), settings=settings, **memory([2_000_000] * 2, [2_000_000] * 2, [1] * 2)),
    ]
    older = run("hat", correct=((99, None), (99, 99)), activation_bytes=1)  # its record says nothing of later steps
    board = leaderboard([*runs, older]).training_memory
    assert board["method"].tolist() == ["finetune+hosvd", "finetune", "er+hosvd", "hat"]  # the front first, then by what is held
    assert board["pareto"].tolist() == [True, True, False, False]
    assert np.isnan(rows(board)["hat"]["held"])
    found = rows(board)
    assert found["finetune"]["held"] == 5
    assert [found["finetune+hosvd"][name] for name in ("held", "peak", "formula")] == [1, 9, 0.2]
    assert np.isnan(found["finetune"]["formula"])


def test_no_board_compares_the_seconds_of_separate_runs():
    """They depend on what else the machine did meanwhile."""
    quick, slow = (
        leaderboard([run(), run("finetune+hosvd", seconds={"train": [s, s], "evaluate": [s, s]})]) for s in (1.0, 20.0)
    )
    for kind in ("accuracy", "backward_transfer", "parameter_efficiency", "training_memory"):
        assert getattr(quick, kind).equals(getattr(slow, kind))
    other = leaderboard([run(), run("finetune+hosvd", correct=((90, None), (70, 81)))])
    assert not quick.accuracy.equals(other.accuracy), "control"


AVX2, AVX512 = ({"instructions": f"avx avx2 {more}fma"} for more in ("", "avx512_bf16 avx512bw "))


def test_emulated_bf16_is_noted():
    measured = memory([4_000_000] * 2, [8_000_000] * 2)
    here = run(precision="bf16", environment=AVX512, **measured)
    there = run(seed=2, precision="bf16", environment=AVX2, **measured)

    def noted(other):
        return [note for note in leaderboard([here, other]).footnotes if "emulated" in note]

    assert noted(there) == ["bf16 emulated in fp32 by a CPU without bf16 arithmetic: finetune (seed 2)"]
    assert noted(changed(there, job=changed(there.job, precision="fp32"))) == []  # control
    for native in (True, False):  # a newer record says it itself
        assert bool(noted(changed(there, environment=changed(there.environment, native_bf16=native)))) is not native


def test_rows_whose_memory_was_not_measured_do_not_compete_there():
    def row(method, *accuracies, **changes):
        return [run(method, seed, ((90, None), (90, a)), **changes) for seed, a in enumerate(accuracies, 1)]

    measured = memory([4_000_000] * 2, [8_000_000] * 2)
    a, b, c = row("a", 70, 71, 73, **measured), row("b", 60, 62, 61, **measured), row("c", 85, 88, 87, activation_bytes=1)
    board = leaderboard([*a, *b, *c])
    assert board.training_memory["competes"].tolist() == [True, True, False]
    found = rows(board.training_memory)
    assert np.isnan(found["a"]["accuracy_p"])  # the best here
    assert found["b"]["accuracy_p"] < 0.05
    assert np.isnan(found["c"]["accuracy_p"])
    assert rows(board.accuracy)["a"]["accuracy_p"] < 0.05  # control: there it is not
    assert board.size_notes == ["no measurement of training memory of c, not ranked by it"]
    some = leaderboard([run(**measured), run(seed=2)])
    assert some.size_notes == ["finetune: training memory measured for 1 of 2 seeds"]
    assert leaderboard([run()]).size_notes == ["no measurement of training memory of any row"]


def test_every_statistic_of_two_seeds():
    board = leaderboard(
        [
            run(seed=1),
            run(seed=2, correct=((80, None), (70, 82))),
            individual(1),
            individual(2, size=4_000_000),
            joint(),
        ]
    )
    accuracy, transfer = rows(board.accuracy), rows(board.backward_transfer)
    row = accuracy["finetune"]
    t = 12.706204736432095  # t_{0.975, 1}; the standard error of two numbers is half their distance
    assert (row["accuracy"], row["accuracy_ci"]) == pytest.approx((75.5, t * 0.5))
    assert (row["learning_accuracy"], row["learning_accuracy_ci"]) == pytest.approx((83, t * 2))
    assert (row["forward_gain"], row["forward_gain_ci"]) == pytest.approx((-4, t * 1))
    assert row["n"] == 2
    row = transfer["finetune"]
    assert (row["bwt"], row["bwt_ci"], row["forgetting"]) == pytest.approx((-15, t * 5, 15))
    row = rows(board.parameter_efficiency)["finetune"]
    assert (row["megabytes"], row["megabytes_ci"], row["weights"], row["heads"]) == (1, 0, 0.999, 0.001)
    assert (row["ratio"], row["compression"]) == pytest.approx((0.375, 1 / 0.375))
    assert (row["macs"], row["training_megabytes"]) == (3, 3)
    assert accuracy["individual"]["forward_gain"] == 0
    assert rows(board.parameter_efficiency)["individual"]["ratio"] == 1


def test_accuracy_on_each_task_right_after_learning_and_at_the_end():
    names = ["upright", "90"]
    tasks = [{"name": name, "dataset": "digits", "classes": [0, 1], "train": 10, "test": 100} for name in names]
    runs = [run(seed=s, correct=((90, None), (70 + 2 * s, 80)), tasks=tasks if s == 1 else tasks[::-1]) for s in (1, 2)]
    frame = per_task(configurations([*runs, joint()]))
    first, second, *others = frame.to_dict("records")
    half = 12.706 * 2**0.5 / 2**0.5  # t with one degree of freedom, times s / sqrt(n), s = sqrt(2)
    assert (first["method"], first["task"], first["n"], first["learned"], first["learned_ci"]) == ("finetune", 1, 2, 90, 0)
    assert (first["final"], first["change"], first["final_ci"]) == (73, -17, pytest.approx(half, rel=1e-3))
    assert first["change"] == leaderboard(runs).backward_transfer["bwt"].item()  # of two tasks
    assert (second["task"], second["learned"], second["change"]) == (2, 80, 0)
    assert first["name"] == second["name"] == ""  # each seed has an order of its own
    assert [(row["name"], row["final"], np.isnan(row["learned"])) for row in others] == [
        ("task 0", 95, True),
        ("task 1", 93, True),
    ]


def test_order_of_rows_and_reasons():
    board = leaderboard([run(), individual(), joint()])
    assert board.accuracy["method"].tolist() == ["joint", "individual", "finetune"]
    assert board.backward_transfer["method"].tolist() == ["individual", "finetune", "joint"]
    last = rows(board.backward_transfer)["joint"]
    assert math.isnan(last["bwt"])
    assert last["bwt_note"] == last["forgetting_note"] == "n/a: joint training"
    assert rows(board.accuracy)["joint"]["forward_gain_note"] == "n/a: joint training"

    single = leaderboard([run(correct=((90,),))])
    assert single.backward_transfer["bwt_note"].tolist() == ["n/a: needs at least two tasks"]
    assert single.accuracy["accuracy"].tolist() == single.accuracy["learning_accuracy"].tolist() == [90]


def test_pareto_front():
    small = run("small", correct=((60, None), (60, 60)), size=500_000)
    twin = run("twin", correct=((60, None), (60, 60)), size=500_000)
    worse = run("worse", correct=((60, None), (60, 60)), size=600_000)
    board = leaderboard([worse, run(), small, twin, individual()]).parameter_efficiency
    assert board["method"].tolist() == ["small", "twin", "finetune", "individual", "worse"]
    assert board["pareto"].tolist() == [True, True, True, True, False]


def test_rows_on_other_tasks_or_images_do_not_compete():
    fewer = [run("fewer", seed, correct=((99,),), size=1000) for seed in (1, 2, 3)]
    other = [run("other", correct=((99, None), (99, 99)), size=1000, data=[{**COMPLETE, "digest": "e" * 64}])]
    same = [run("a", seed, ((80, None), (80 - seed, 80))) for seed in (1, 2, 3)]
    same += [run("b", seed, ((70, None), (70 + seed, 70))) for seed in (1, 2, 3)]
    found, alone = leaderboard([*same, *fewer, *other]), leaderboard(same)
    assert found.elsewhere == ["fewer", "other"]
    assert alone.elsewhere == []
    assert rows(found.parameter_efficiency)["a"]["pareto"]
    assert not rows(found.parameter_efficiency)["fewer"]["pareto"]
    assert rows(found.accuracy)["b"]["accuracy_p"] == rows(alone.accuracy)["b"]["accuracy_p"] < 1
    assert np.isnan(rows(found.accuracy)["fewer"]["accuracy_p"])
    # Control: on the same tasks such numbers win.
    board = rows(leaderboard([*same, run("fewer", correct=((99, None), (99, 99)), size=1000)]).parameter_efficiency)
    assert (board["a"]["pareto"], board["fewer"]["pareto"]) == (False, True)
    assert leaderboard([*fewer, run()]).elsewhere == ["fewer"]  # of one row each, more tasks count
    assert leaderboard(fewer).elsewhere == []


def test_settings_are_never_averaged():
    other = run(seed=2, correct=((50, None), (50, 50)), settings={"epochs": 10, "lr": 0.1})
    records = [run(settings={"epochs": 10, "lr": 0.2}), other]
    board = rows(leaderboard(records).accuracy)
    assert {label: (row["accuracy"], row["n"]) for label, row in board.items()} == {
        "finetune [lr=0.2]": (75, 1),
        "finetune [lr=0.1]": (50, 1),
    }
    # Negative control: with the same settings the same counts are averaged, and give another number.
    same = [run(settings={"lr": 0.2}), run(seed=2, correct=other.correct, settings={"lr": 0.2})]
    assert leaderboard(same).accuracy["accuracy"].tolist() == [62.5]


def test_labels_say_what_differs():
    def labels(*records):
        return list(configurations(records))

    assert labels(run(), run(seed=2)) == ["finetune"]
    assert labels(run(), run(precision="bf16")) == ["finetune [precision=bf16]", "finetune [precision=fp32]"]
    assert labels(run(method_source="abc1234def"), run()) == ["finetune [file abc1234]", "finetune [installed]"]
    assert labels(run(settings={"a": 1, "b": 2}), run(settings={"a": 1, "b": 3}), run("x")) == [
        "finetune [b=2]",
        "finetune [b=3]",
        "x",
    ]


def test_of_a_file_one_version_is_ranked():
    def version(source, day, seed=1, method="mine", **changes):
        return run(method, seed, method_source=source, environment={"date": f"2026-01-{day:02}T00:00:00+00:00"}, **changes)

    old, new = [version("a" * 64, 1), version("a" * 64, 2, seed=2)], version("b" * 64, 3, correct=((99, None), (99, 99)))
    board = leaderboard([*old, new, run(), version("a" * 64, 4, method="yours")])
    assert {label: len(runs) for label, runs in board.runs.items()} == {"finetune": 1, "mine": 1, "yours": 1}
    assert rows(board.accuracy)["mine"]["accuracy"] == 99
    (note,) = (note for note in board.footnotes if "version" in note and note.startswith("mine"))
    assert "that ran last (bbbbbbb); left out: aaaaaaa" in note
    # the file says again what it said before
    back = leaderboard([*old, new], files={"mine": "a" * 64, "yours": ""})
    assert rows(back.accuracy)["mine"]["n"] == 2
    assert any("current version of its file (aaaaaaa); left out: bbbbbbb" in note for note in back.footnotes)
    # under a modifier it is the same file
    assert list(leaderboard([*old, version("b" * 64, 3, method="mine+hosvd")]).runs) == ["mine+hosvd"]
    unknown = leaderboard(old, files={"mine": "c" * 64})  # it has not run yet
    assert rows(unknown.accuracy)["mine"]["n"] == 2
    assert any("ran last (aaaaaaa); the current version (ccccccc) has no record" in note for note in unknown.footnotes)
    assert not any("version of its file" in note for note in leaderboard(old).footnotes)


def test_other_tasks_or_images_are_never_averaged():
    whole, other_images = run(), run(seed=2, data=[{**COMPLETE, "digest": "e" * 64}])
    other_tasks = run(seed=3, tasks=[changed(task, name=f"{task.name}0") for task in whole.tasks])
    assert len({r.job.config for r in (whole, other_images, other_tasks)}) == 1
    board = leaderboard([whole, other_images, other_tasks, run(seed=4)])
    assert sorted(board.accuracy["n"]) == [1, 1, 2]
    assert all(re.fullmatch(r"finetune \[data [0-9a-f]{7}\]", label) for label in board.accuracy["method"])
    assert any(note.startswith("tasks differ: digits task 0, digits task 1 (") for note in board.footnotes)

    fewer = run(seed=2, correct=((90,),))
    assert list(configurations([whole, fewer])) == ["finetune [tasks=1]", "finetune [tasks=2]"]
    # A limit that leaves out nothing is still a setting of its own: neither row may replace the other.
    limits = [run(settings={"tasks": limit}) for limit in (None, 2)]
    assert len(configurations(limits)) == 2
    # With a limit each seed takes the first tasks of its own order: those are averaged all the same.
    limited = [
        run(seed=seed, settings={"tasks": 2}, tasks=[changed(t, name=f"{t.name}{seed}") for t in whole.tasks]) for seed in (1, 2)
    ]
    assert len(configurations(limited)) == 1
    # Seeds shuffle the same tasks: those are averaged.
    assert list(configurations([whole, run(seed=2, tasks=whole.tasks[::-1])])) == ["finetune"]


def test_what_cannot_share_a_board_is_refused():
    with pytest.raises(UserError, match=r"split-digits/lite finetune seed 1, configuration [0-9a-f]{12}, of 2026.* and"):
        leaderboard([run(), run(correct=((1, None), (1, 1)))])
    with pytest.raises(UserError, match="several protocols or tiers"):
        leaderboard([run(), run(seed=2, tier="paper")])
    with pytest.raises(UserError, match=r"no finished runs.*benchsuite leaderboard"):
        leaderboard([])


def test_the_individual_run_to_compare_with_has_the_same_seed_recipe_precision_and_images():
    other_images = [{**COMPLETE, "digest": "e" * 64}]
    for stranger in [
        individual(2),
        individual(settings={"epochs": 20}),
        individual(precision="bf16"),
        individual(data=other_images),
    ]:
        board = leaderboard([run(settings={"epochs": 10, "mine": 1}), stranger])
        row = rows(board.accuracy)["finetune"]
        assert math.isnan(row["forward_gain"])
        assert row["forward_gain_note"] == "n/a: no matching run of individual"
        assert math.isnan(rows(board.parameter_efficiency)["finetune"]["compression"])
    several = [individual(settings={"epochs": 20}, size=9_000_000), individual(settings={"epochs": 10})]
    assert rows(leaderboard([run(), *several]).parameter_efficiency)["finetune"]["ratio"] == 0.5


def test_figures_of_another_protocol_say_so_in_their_row():
    figures = [Published(method="HAT", accuracy=77.0, comparable=False), Published(method="CACL", accuracy=86.0)]
    board = leaderboard([run(tier="paper")], figures)
    assert board.accuracy["method"].tolist() == ["CACL (published)", "HAT (published, other protocol)", "finetune"]


def test_fewer_seeds_of_individual_are_stated():
    board = leaderboard([run(), run(seed=2), individual()])
    row = rows(board.accuracy)["finetune"]
    assert (row["n"], row["forward_gain_n"], row["forward_gain"]) == (2, 1, -5)
    assert "finetune: forward gain and size ratio over 1 of 2 seeds; individual has no matching run for the others" in (
        board.footnotes
    )


def test_published_figures_stand_only_beside_complete_paper_runs():
    published = [
        Published(method="CACL", accuracy=86.58, megabytes=8.53, source="its README"),
        Published(method="A-GEM", accuracy=54.38, bwt=-21.99, source="Table 1"),
    ]
    partial = {**COMPLETE, "complete": False, "note": "half of it"}
    for records in [[run()], [run(tier="paper"), run(seed=2, tier="paper", data=[partial])]]:
        board = leaderboard(records, published)
        assert not any("published)" in str(text) for text in [*board.accuracy["method"], *board.footnotes])

    for name in RECIPE:
        changed = [run(tier="paper"), run("joint", tier="paper", origins={name: "command line"})]
        assert not leaderboard(changed, published).accuracy["published"].any()
    own = run(tier="paper", origins={"strength": "command line", "epochs": "the method's paper"})
    assert leaderboard([own], published).accuracy["published"].any(), "methods may have settings and recipes of their own"

    board = leaderboard([run(tier="paper")], published)
    row = rows(board.accuracy)["CACL (published)"]
    assert row["published"]
    assert row["accuracy"] == 86.58
    assert math.isnan(row["n"])
    assert board.backward_transfer["method"].tolist() == ["finetune", "A-GEM (published)"]
    assert board.parameter_efficiency["method"].tolist() == ["finetune", "CACL (published)"]
    said = [
        "nothing to tune: finetune",
        "no measurement of training memory of any row",
        "CACL (published): its README",
        "A-GEM (published): Table 1",
    ]
    assert board.footnotes == said
    for name in ("accuracy", "forward_gain", "n"):
        assert board.accuracy[name].dtype.kind == "f"


def test_only_records_that_belong_in_a_folder_are_read(tmp_path):
    record = run()
    own = tmp_path / record.job.folder
    write(record, own / "record.json")
    assert read_all(tmp_path) == read_all(own.parents[1]) == [record]
    for stray in (own.with_name(f"{own.name}-backup"), own.parents[2] / "paper" / "finetune" / own.name):
        shutil.copytree(own, stray)
        with pytest.raises(UserError, match=f"^{re.escape(str(stray / 'record.json'))}: does not belong in this folder; move it"):
            read_all(tmp_path)
        shutil.rmtree(stray)
    strays = [own.with_name(f"{own.name}-{n}") for n in "ab"]
    for stray in strays:
        shutil.copytree(own, stray)
    (strays[1] / "record.json").write_text("")
    with pytest.raises(UserError, match=f"a/record.json: does not .*; nor can these be ranked: {re.escape(str(strays[1]))}"):
        read_all(tmp_path)


def test_no_two_configurations_share_a_label():
    """Whatever their records say: of two rows with one label, one would disappear."""
    settings = [{"lr": 0.001}, {"lr": "0.001"}, {"own": None}, {"own": "None"}, {"own": 1}, {"own": True}]
    records = [run(settings=one) for one in settings]
    records += [run("finetune [lr=0.001]"), run("finetune [own=1]")]
    records += [run("ewc"), run("ewc (published)")]
    found = configurations(records)
    assert sorted(record.job.config for (record,) in found.values()) == sorted(record.job.config for record in records)
    assert list(found) == list(configurations(records[::-1]))
    board = leaderboard([changed(r, job=changed(r.job, tier="paper")) for r in records], [Published(method="ewc", accuracy=50.0)])
    assert board.accuracy["method"].is_unique
    assert len(board.accuracy) == len(records) + 1


def test_a_board_leaves_out_what_it_cannot_use_by_name(tmp_path):
    for record in (run(seed=1), run(seed=2)):
        write(record, tmp_path / record.job.folder / "record.json")
    bad = tmp_path / run(seed=2).job.folder / "record.json"
    bad.write_text(bad.read_text().replace("Model X", "Model Y"))
    records, refused = read_usable(tmp_path)
    board = leaderboard(records, refused=refused)
    assert list(board.accuracy["n"]) == [1]
    note = f"left out, because their records cannot be used: finetune/{bad.parent.name}"
    assert board.footnotes == [*leaderboard(records).footnotes[:-1], note, leaderboard(records).footnotes[-1]]


def test_footnotes():
    partial = {"name": "notmnist", "digest": "e" * 64, "complete": False, "note": "10 of 459 images"}
    newer = {"versions": {"torch": "2.7.0", "avalanche-lib": "0.6.0", "benchsuite": "0.1.0"}}
    newer |= {"source": {"revision": "abcdef0123", "dirty": True}, "device": "cuda", "device_name": "Model Y"}
    board = leaderboard(
        [
            run(),
            run(
                "cacl",
                data=[COMPLETE, partial],
                environment=newer,
                settings={"epochs": 20, "energy": 0.01},
                origins={"energy": "found on lite"},
                diagnostics={"other_sizes": {"factors": 1_000_000, "kernels": 2_500_000}},
            ),
        ]
    )
    assert board.footnotes == [
        "settings, found on lite: cacl (energy = 0.01)",
        "settings not tuned: cacl; nothing to tune: finetune",
        "settings differ: epochs: 10 (finetune); 20 (cacl)",
        "notmnist: 10 of 459 images; not the published benchmark",
        "images of notmnist differ: eeeeeee (cacl); none (finetune)",
        "devices differ: cpu (Model X) (finetune); cuda (Model Y) (cacl)",
        "torch versions differ: 2.6.0 (finetune); 2.7.0 (cacl)",
        "made from uncommitted code: cacl",
        "stored MB as kernels: cacl 2.500",  # as factors it is as large as the table says
        "no measurement of training memory of any row",
    ]
    assert board.size_notes == board.footnotes[-2:]


def test_rows_that_would_not_come_out_the_same_are_named():
    made = {"method mas": digests()["method mas"]}
    fresh, old, bare = run(made_by=made), run("mas", made_by={"method mas": "0" * 12}), run("ewc")
    notes = leaderboard([fresh, run("mas", 2, made_by=made), old, bare], stale=stale).footnotes
    assert "changed since: method mas: mas" in notes
    assert "made by an earlier version: ewc" in notes
    for control in (leaderboard([fresh, run("mas", 2, made_by=made)], stale=stale), leaderboard([fresh, old, bare])):
        assert not any(note.startswith(("changed since", "made by")) for note in control.footnotes)


def test_provenance():
    line = leaderboard([run(), run(seed=2, environment={"date": "2026-01-04T00:00:00+00:00"})]).provenance
    assert line == (
        "split-digits, tier lite; seeds: 1, 2; tasks: 2; cpu (Model X); fp32; torch 2.6.0, avalanche-lib 0.6.0, "
        "benchsuite 0.1.0; revision abcdef0; 2026-01-02 to 2026-01-04"
    )
    bare = run(environment={"versions": {}, "source": {"revision": "", "dirty": False}})
    words = "cpu (Model X); fp32; torch unknown, avalanche-lib unknown, benchsuite unknown; revision unknown"
    assert words in leaderboard([bare]).provenance


def test_no_torch_is_needed():
    code = (
        "import sys, benchsuite.record.metrics, benchsuite.analysis.leaderboard, benchsuite.report.write\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import benchsuite.report.figures\n"
        "assert not {'torch', 'torchvision', 'avalanche', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_method_has_to_say_of_its_runs_stands_under_the_table():
    runs = [run(seed=seed, diagnostics={"remarks": ["no weight was left free"]}) for seed in (1, 2)]
    notes = leaderboard([*runs, run("other")]).footnotes
    assert notes.count("finetune: no weight was left free") == 1
    assert not any(note.startswith("other: no weight") for note in notes)


def test_remarks_of_several_seeds_that_differ_in_numbers_alone_are_one_range():
    said = (["67.5 % of 10 units", "no weight left in conv2"], ["9 % of 10 units", "no weight left in conv3"], [])
    runs = [run(seed=seed, diagnostics={"remarks": remarks}) for seed, remarks in enumerate(said)]
    notes = [note for note in leaderboard(runs).footnotes if note.startswith("finetune: ")]
    said = ["9 to 67.5 % of 10 units", "no weight left in conv2", "no weight left in conv3"]
    assert notes == [f"finetune: {text}" for text in said]


def test_sizes_and_gains_are_relative_to_individual_networks_of_the_same_width():
    """At a tier of half width every ratio would be missing, and full-width rows set against half-width networks, if the
    reference were the run without a width among its settings."""
    half, full = {"epochs": 10, "width": 0.5}, {"epochs": 10}
    better = ((90, None), (80, 90))
    references = [run("individual", size=4_000_000, settings=full), run("individual", size=1_000_000, settings=half)]
    ours = [run(size=2_000_000, settings=full), run(size=600_000, settings=half, correct=better)]
    matched = run(size=900_000, settings={"epochs": 10, "width": 0.7})
    board = leaderboard([*references, *ours, matched])
    found = rows(board.parameter_efficiency)
    assert {label: row["ratio"] for label, row in found.items() if label != "finetune [width=0.7]"} == {
        "individual": 1,
        "individual [width=0.5]": 1,
        "finetune": 0.5,
        "finetune [width=0.5]": 0.6,
    }
    assert found["finetune [width=0.7]"]["ratio_note"] == "n/a: no matching run of individual"
    gains = {label: row["forward_gain"] for label, row in rows(board.accuracy).items()}
    assert gains["finetune"] == 0
    assert gains["finetune [width=0.5]"] > 0


def test_a_width_of_one_is_no_part_of_a_run():
    plain = resolve("split-digits", "smoke", "finetune", 1)
    assert "width" not in plain.settings
    assert resolve("split-digits", "smoke", "finetune", 1, overrides={"width": 1}) == plain
    assert resolve("split-digits", "smoke", "finetune", 1, overrides={"width": 2}).config != plain.config


def test_the_plain_network_is_the_same_for_all_methods():
    wide = {"epochs": 10, "width": 2.0}
    runs = [run("a", dense_macs=5_000_000), run("b"), run("c", settings=wide)]
    found = rows(leaderboard(runs).parameter_efficiency)
    assert [found[name]["dense_macs"] for name in "ab"] == [5.0, 5.0]
    assert np.isnan(found["c"]["dense_macs"])  # of another width nothing is known


def test_long_fractions_are_cut_short_in_the_notes():
    one = run("a", settings={"epochs": 10, "share": 1 / 3}, origins={"share": "tuned"})
    assert "settings, tuned: a (share = 0.3333)" in leaderboard([one]).footnotes
    alike = [changed(one, job=changed(one.job, method=name)) for name in "bc"]
    assert leaderboard([one, *alike, run("d")]).footnotes[0] == "settings, tuned: a, b, c (share = 0.3333)"  # said once


def test_a_note_says_which_rows_were_tuned():
    search = "tuned: 5 trials of `benchsuite tune`"
    runs = [
        run("finetune"),
        run("ewc", settings={"epochs": 10, "strength": 3.0}, origins={"strength": search}),
        run("er", settings={"epochs": 10, "budget": 4.0}, origins={"sample_size": search}),
        run("er+hosvd", settings={"epochs": 10, "budget": 4.0, "epsilon": 0.8}, origins={"sample_size": search}),
        run("si", settings={"epochs": 10, "strength": 0.1}),
        run("mas", settings={"epochs": 10, "strength": 0.1}, origins={"strength": "ours: a guess"}),
    ]
    notes = leaderboard(runs).footnotes
    tuned = "tuned: er, ewc; tuned without the modifier: er+hosvd; settings not tuned: mas, si; nothing to tune: finetune"
    assert tuned in notes
    assert f"settings, {search}: er, er+hosvd (sample_size as by default); ewc (strength = 3)" in notes


def five(method, *accuracies, size=1_000_000, **changes):
    """One run for each accuracy, of seeds 1, 2, ..."""
    return [run(method, seed, ((a, None), (a, a)), size, **changes) for seed, a in enumerate(accuracies, 1)]


def test_rows_are_compared_with_the_best_by_seed_and_corrected_for_their_number():
    best, bound = five("best", 90, 82, 91, 85, 88), five("bound", 87, 80, 88, 83, 85)
    found = rows(leaderboard([*best, *bound, joint()]).accuracy)
    alone = found["bound"]["accuracy_p"]
    assert alone < 0.05
    assert found["bound"]["accuracy_paired"] == 5
    assert np.isnan([found["best"]["accuracy_p"], found["joint"]["accuracy_p"]]).all()  # the best row; one that does not compete
    assert {label: row["competes"] for label, row in found.items()} == {"best": True, "bound": True, "joint": False}
    # Control: the same accuracies with other seeds' partners.
    shuffled = five("bound", 80, 88, 83, 85, 87)
    assert rows(leaderboard([*best, *shuffled]).accuracy)["bound"]["accuracy_p"] > 0.05
    # With a third method each p is Holm's, over three pairs.
    near = five("near", 89, 84, 90, 83, 89)
    three = rows(leaderboard([*best, *bound, *near]).accuracy)
    every = pairwise_p(np.array([[r.accuracy for r in row] for row in (best, bound, near)]))[0]
    assert [three[name]["accuracy_p"] for name in ("bound", "near")] == pytest.approx(every[1:])
    assert three["bound"]["accuracy_p"] < 0.05 < three["near"]["accuracy_p"]


def test_pairs_with_a_reference_are_corrected_apart():
    accuracies = (90, 82, 91, 85, 88), (87, 81, 88, 83, 85), (86, 80, 87, 83, 84), (88, 81, 88, 84, 87)
    names = ["best", "a", "b", "individual"]
    runs = [r for name, values in zip(names, accuracies, strict=True) for r in five(name, *values)]
    found = rows(leaderboard(runs).accuracy)
    apart = pairwise_p(np.array(accuracies, float), np.arange(4) == 3)[0, 1:]
    assert [found[name]["accuracy_p"] for name in names[1:]] == pytest.approx(apart)
    assert apart != pytest.approx(pairwise_p(np.array(accuracies, float))[0, 1:]), "control: together there are more tests"


def test_readers_choose_the_rows_that_are_compared():
    best, bound, near = five("best", 90, 82, 91, 85, 88), five("bound", 87, 80, 88, 83, 85), five("near", 86, 81, 88, 82, 85)
    every = leaderboard([*best, *bound, *near])
    board = leaderboard([*best, *bound, *near], compare=["near", "bound"])
    assert (every.compared, board.compared) == ([], ["bound", "near"])
    found = rows(board.accuracy)
    alone = rows(leaderboard([*bound, *near]).accuracy)
    assert found["near"]["accuracy_p"] == alone["near"]["accuracy_p"] != rows(every.accuracy)["near"]["accuracy_p"]
    assert np.isnan([found[name]["accuracy_p"] for name in ("best", "bound")]).all(), "not among them; the best of them"
    assert np.isnan(found["best"]["accuracy_paired"])
    assert found["best"]["competes"], "it is ranked all the same"
    with pytest.raises(UserError, match="no row is called 'nera'; did you mean 'near'"):
        leaderboard([*best, *near], compare=["nera"])


def test_only_seeds_in_common_are_compared():
    best = five("best", 90, 82, 91, 85, 88)
    found = rows(leaderboard([*best, *five("two", 70, 60), run("other", 7, ((50, None), (50, 50)))]).accuracy)
    assert [found[name]["accuracy_paired"] for name in ("two", "other")] == [2, 0]
    assert found["two"]["accuracy_p"] > 0
    assert np.isnan(found["other"]["accuracy_p"])
    assert np.isnan(rows(leaderboard([run("a"), run("b")]).accuracy)["a"]["accuracy_p"])  # one seed


def test_sizes_that_no_seed_changes_are_known_without_a_test():
    small, large, same = five("a", 80, 81, 82), five("b", 70, 71, 72, size=1_000_100), five("c", 60, 61, 62)
    found = rows(leaderboard([*small, *large, *same]).parameter_efficiency)
    assert (found["b"]["megabytes_p"], found["c"]["megabytes_p"]) == (0, 1)
    vary = [run("b", seed, size=1_500_000 + 300_000 * seed) for seed in (1, 2, 3)]
    assert 0 < rows(leaderboard([*small, *vary]).parameter_efficiency)["b"]["megabytes_p"] < 1


def test_accuracies_at_matched_size_are_compared_among_themselves():
    runs = [*five("cacl", 80, 84, 83), *five("big", 99, 98, 97, size=9_000_000), *five("er", 79, 84, 82, size=950_000)]
    found = rows(leaderboard(runs, match="cacl").parameter_efficiency)
    assert found["er"]["matched_accuracy_p"] > 0.05
    assert np.isnan([found[name]["matched_accuracy_p"] for name in ("cacl", "big")]).all()


def test_the_garbage_collector_is_left_as_it_was(tmp_path):
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            leaderboard([run(), *read_all(tmp_path)])
            with pytest.raises(UserError):
                leaderboard([])
            assert gc.isenabled() is before
        finally:
            gc.enable()
    assert gc.get_freeze_count() == 0  # what is frozen is not cleared at exit, and some libraries complain of it there


def test_the_bytes_of_a_name_decide_nothing():
    long = run("a_long_name", correct=((90, None), (80, 80)), size=1_000_009)
    board = leaderboard([run("short", size=1_000_000), long, run("larger", correct=((90, None), (50, 50)), size=1_100_000)])
    frame = board.parameter_efficiency
    assert list(frame["method"]) == ["a_long_name", "short", "larger"]
    assert list(frame["pareto"]) == [True, False, False]
    assert list(frame["megabytes"]) == [1.000009, 1.0, 1.1]  # the numbers themselves are whole
    small = leaderboard([run("short", size=1_000_000), run("smaller", size=990_000)]).parameter_efficiency
    assert list(small["method"]) == ["smaller", "short"]  # control: what can be read counts


def test_many_revisions_are_counted_in_the_line_and_named_in_a_note():
    def made(k):
        return run(f"m{k}", environment={"source": {"revision": f"{k}bcdef0123", "dirty": False}})

    assert "revision 0bcdef0, 1bcdef0, 2bcdef0;" in leaderboard([made(k) for k in range(3)]).provenance
    board = leaderboard([made(k) for k in range(4)])
    assert "4 revisions (see the notes);" in board.provenance
    assert any(note.startswith("source revisions differ: 0bcdef0 (m0)") for note in board.footnotes)


def test_most_rows_are_all_others_in_a_note_on_what_differs():
    def differing(n, *more):
        notes = leaderboard(
            [run(f"m{k}", settings={"width": 1.0}) for k in range(n)] + [run("x", settings={"width": 0.5}), *more]
        )
        return [note for note in notes.footnotes if note.startswith("settings differ: width")]

    assert differing(6) == ["settings differ: width: 0.5 (x); 1.0 (all others)"]
    assert differing(5) == ["settings differ: width: 0.5 (x); 1.0 (m0, m1, m2, m3, m4)"]  # control: few are named


def test_a_board_shows_itself_in_a_notebook():
    html = leaderboard([run("<b>own"), run(), individual()])._repr_html_()
    assert html.count("<table") == 4
    assert "<td>finetune</td>" in html
    assert "<b>own" not in html
    assert "&lt;b&gt;own" in html
    assert "NaN" not in html


def test_a_name_means_the_row_of_that_label_or_else_all_rows_of_the_method():
    called = {"er": {"er"}, "er [lr=1]": {"er [lr=1]", "er"}}
    called |= {"hat [a=1]": {"hat [a=1]", "hat"}, "hat [a=2]": {"hat [a=2]", "hat"}}
    assert rows_called("er", called) == ["er"]
    assert rows_called("hat", called) == ["hat [a=1]", "hat [a=2]"]
    assert rows_called("ewc", called) == []
