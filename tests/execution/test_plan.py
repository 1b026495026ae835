"""A board from Python: which runs it needs, which are missing, running them, ranking them."""

import subprocess
import sys

import pytest

import benchsuite
from benchsuite.data import datasets
from benchsuite.errors import UserError
from benchsuite.execution import plan as plans
from benchsuite.execution.messages import Begun
from benchsuite.method import Method, register
from benchsuite.protocol import protocols
from benchsuite.record.folder import RunFolder
from benchsuite.training.events import Note
from benchsuite.training.runner import run

TINY = {"tasks": 2, "train_per_class": 8, "test_per_class": 8, "epochs": 1, "batch_size": 16}
OWN = "from benchsuite import Method, register\n\n\n@register\nclass Own(Method):\n    pass\n"
SCRIPT = f"""
import benchsuite
print("the script is run")
plan = benchsuite.plan("split-digits", tier="smoke", methods=["finetune", "own.py"], seeds=[1, 2], settings={TINY})
print(len(plan.missing()), "of", len(plan.jobs))
print(plan.run(jobs=2), len(plan.missing()))
print(*sorted(plan.leaderboard().accuracy["method"]))
"""


def small(tmp_path, methods, **words):
    words = {"seeds": [1, 2], "settings": TINY, **words}
    return benchsuite.plan("split-digits", tier="smoke", methods=methods, results=tmp_path, **words)


@pytest.fixture
def engines(monkeypatch):
    """What would be run, in place of running it: (jobs, engine) each time."""
    asked = []
    monkeypatch.setattr(plans, "run_all", lambda jobs, *, engine, **_: asked.append((jobs, engine)) or {})
    return asked


@pytest.mark.slow
def test_a_script_without_a_guard_plans_runs_and_ranks(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    first, before, after, methods = done.stdout.splitlines()  # once each: no process of a run imports the script
    assert (first, before, after) == ("the script is run", "4 of 4", "{} 0")
    assert [word for word in methods.split() if word in ("finetune", "own")] == ["finetune", "own"]
    assert len(list(tmp_path.rglob("record.json"))) == 4


def test_what_is_finished_is_not_run_again(engines, tmp_path):
    plan, said = small(tmp_path, ["finetune", "ewc"]), []
    assert [(job.method, job.seed) for job in plan.jobs] == [("finetune", 1), ("ewc", 1), ("finetune", 2), ("ewc", 2)]
    assert sorted(map(str, plan.missing())) == sorted(map(str, plan.jobs))
    run(plan.jobs[1], results=tmp_path)
    left = [job for job in plan.jobs if job != plan.jobs[1]]
    assert sorted(map(str, plan.missing())) == sorted(map(str, left))
    assert plan.run(jobs=2, report=said.append) == {}
    ((jobs, engine),) = engines
    assert sorted(map(str, jobs)) == sorted(map(str, left))
    assert engine.slots == 2
    assert said == [Begun(runs=3, of=4, slots=2)]
    engines.clear()
    done, said = small(tmp_path, ["ewc"], seeds=[1]), []
    assert done.missing() == []
    assert done.run(report=said.append) == {}
    assert (engines, said) == ([], [])
    assert len(done.leaderboard().accuracy) == 1


def test_loggers_are_checked_at_once_and_reach_every_run(engines, tmp_path):
    with pytest.raises(UserError, match="no logger is called 'papyrus'"):
        small(tmp_path, ["finetune"], loggers=["papyrus"])
    small(tmp_path, ["finetune"], loggers=["csv"]).run(jobs=1)
    assert engines[0][1].context.loggers == ("csv",)


def test_a_method_that_cannot_run_like_this_is_named_with_the_reason(tmp_path):
    plan = small(tmp_path, ["finetune", "lwf"], settings={**TINY, "backbone": "resnet18"})
    assert {job.method for job in plan.jobs} == {"finetune"}
    assert list(plan.not_applicable) == ["lwf"]
    assert plan.not_applicable["lwf"].startswith("lwf cannot run like this: ")
    assert small(tmp_path, ["finetune", "lwf"]).not_applicable == {}  # control


def test_each_method_takes_the_settings_that_it_has(tmp_path):
    plan = small(tmp_path, ["finetune", "ewc"], seeds=[1], settings={**TINY, "strength": 3.0})
    finetune, ewc = plan.jobs
    assert ewc.settings["strength"] == 3.0
    assert "strength" not in finetune.settings
    with pytest.raises(UserError, match="'strenght' is not a setting of finetune, ewc; did you mean 'strength'"):
        small(tmp_path, ["finetune", "ewc"], settings={"strenght": 3})


def test_a_method_of_this_session_is_refused_before_anything_runs(engines, own_methods, tmp_path):
    register(type("Mine", (Method,), {"__module__": "__main__"}))
    register(type("Theirs", (Method,), {"__module__": "somebody"}))
    with pytest.raises(UserError, match=r"mine is defined in this session.*; put it in a file"):
        small(tmp_path, ["finetune", "mine"]).run()
    assert engines == []
    assert small(tmp_path, ["finetune", "theirs"]).run() == {}  # control
    assert len(engines) == 1


def test_a_board_of_failed_runs_alone_says_why(tmp_path):
    plan = small(tmp_path, ["finetune"], seeds=[1])
    with pytest.raises(UserError, match="no finished runs to rank"):  # control: nothing was tried
        plan.leaderboard()
    (job,) = plan.jobs
    RunFolder(tmp_path / job.folder).write_failure(job, "the disk is full")
    with pytest.raises(UserError, match="no run is finished, and 1 failed, the first with: the disk is full"):
        plan.leaderboard()


@pytest.mark.parametrize(("where", "name"), [(protocols, "split-digits"), (datasets, "digits")])
def test_what_else_is_of_this_session_is_refused_too(engines, where, name, tmp_path, monkeypatch):
    where.all()
    monkeypatch.setattr(where, "_origins", {**where._origins, name: "__main__"})
    with pytest.raises(UserError, match=f"^{name} is defined in this session"):
        small(tmp_path, ["finetune"]).run()
    assert engines == []


def test_sizes_are_matched_once_the_reference_has_a_record(engines, tmp_path):
    plan, said = small(tmp_path, ["finetune", "joint"], seeds=[1], match_size="individual"), []
    assert [job.method for job in plan.jobs] == ["finetune", "joint", "individual"]
    assert plan.matched() == ()
    run(plan.reference, results=tmp_path)
    wide = plan.matched(said.append)
    assert [job.method for job in wide] == ["finetune", "individual", "joint"], "and the reference at their width"
    assert all(job.settings["width"] > 1 for job in wide)
    assert all(isinstance(note, Note) for note in said)
    plan.run()
    assert [sorted(job.method for job in jobs) for jobs, _ in engines] == [
        ["finetune", "joint"],
        ["finetune", "individual", "joint"],
    ]
    with pytest.raises(UserError, match="leave width out"):
        small(tmp_path, ["finetune"], settings={"width": 2}, match_size="joint")
