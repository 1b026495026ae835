"""`benchsuite status`: every state a run can be in, from what is on disk."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from records import changed
from records import run as run_record

from benchsuite import files
from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.execution.status import boards, duration, lines, ranges, state_of
from benchsuite.record import store
from benchsuite.training.runner import run
from benchsuite.training.settings import resolve

TINY = {"tasks": 2, "train_per_class": 8, "test_per_class": 8, "epochs": 1, "batch_size": 16}
WORDS = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]


def job_of(name="finetune", seed=1):
    return resolve("split-digits", "smoke", name, seed, overrides=TINY)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Done: finetune 1. Interrupted: finetune 3, in its second task. Failed: ewc 1. Stale: mas 1."""
    results = tmp_path_factory.mktemp("ended")
    run(job_of(), results=results)

    def stop(event):
        if event.stage == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job_of(seed=3), results=results, report=stop)
    folder = results / job_of("ewc").folder
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps({"error": "the loss became nan"}))
    record = run(job_of("mas"), results=results)
    other = changed(record, made_by={**record.made_by, "method mas": "0" * 12})
    store.write(other, results / job_of("mas").folder / "record.json")
    return results


@pytest.fixture
def results(ended, tmp_path):
    """A copy of it, in which finetune 2 is running."""
    shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
    state = {"stage": 1, "stages": 2, "epoch": 3, "epochs": 10, "kept": 1, "images_per_second": 1234.5, "seconds_left": 600}
    running = tmp_path / job_of(seed=2).folder
    with files.locked(running / "lock"):
        (running / "progress.json").write_text(json.dumps({**state, "host": "here"}))
        yield tmp_path
    assert not files.is_locked(running / "lock")


def test_the_record_of_a_protocol_that_is_not_named_is_unchecked(tmp_path):
    record = run_record(made_by={"protocol elsewhere": "0" * 12})
    record = changed(record, job=changed(record.job, protocol="elsewhere"))
    path = tmp_path / record.job.folder / "record.json"
    store.write(record, path)
    said = ("unchecked", "the protocol elsewhere is not known here (name its file with --protocol)")
    assert state_of(path.parent) == said
    store.write(changed(record, made_by={}), path)
    assert state_of(path.parent)[0] == "stale"  # control: no file would make it valid


def test_every_state(results):
    (found,) = boards(results).values()
    states = {(run.method, run.seed): run.state for run in found}
    assert states == {
        ("finetune", 1): "done",
        ("finetune", 2): "running",
        ("finetune", 3): "interrupted",
        ("ewc", 1): "failed",
        ("mas", 1): "stale",
    }
    text = "\n".join(lines(boards(results)))
    assert "split-digits/smoke: 1 running, 1 failed, 1 stale, 1 interrupted, 1 done" in text
    assert "task 2 of 2, epoch 3 of 10, 1,234 images/s, 10 min left, last update 0 s ago on here" in text.replace(
        "1 s ago", "0 s ago"
    )
    assert "the loss became nan" in text
    assert "changed since: method mas; `leaderboard` runs it again" in text
    assert "1 of 2 tasks are kept" in text


def test_what_is_missing_is_what_the_board_would_run(results, capsys):
    grid = ["--protocol", "split-digits", "--tier", "smoke", *WORDS, "--method", "finetune", "--method", "si", "--seeds", "1-4"]
    assert main(["status", "--results", str(results), *grid]) == 0
    out = capsys.readouterr().out
    assert "1 running, 1 failed, 1 stale, 1 interrupted, 5 missing, 1 done" in out
    assert "  missing      finetune  seed 4\n" in out
    assert "  missing      si        seed 1-4\n" in out
    assert main(["status", "--results", str(results)]) == 0
    assert "missing" not in capsys.readouterr().out  # control: nobody said what should be there
    assert main(["status", "--results", str(results), "--seeds", "1"]) == 2
    assert main(["status", "--results", str(results / "none")]) == 0
    assert "no runs below" in capsys.readouterr().out


def test_a_clock_that_was_set_back_and_a_kill_show_nothing_as_running(results):
    folder = results / job_of(seed=2).folder
    os.utime(folder / "progress.json", (time.time() + 86400,) * 2)  # updated tomorrow
    assert state_of(folder)[0] == "running"
    assert "last update 0 s ago" in state_of(folder)[1]
    other = results / job_of(seed=3).folder
    (other / "lock").touch()  # of a process that was killed
    os.utime(other / "progress.json", (time.time() + 86400,) * 2)
    assert state_of(other)[0] == "interrupted"
    with files.locked(other / "lock"):
        assert state_of(other)[0] == "running"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"stage": "x"}'])
def test_a_damaged_state_is_no_reason_to_fail(text, results):
    for seed, state in ((2, "running"), (3, "interrupted")):
        (results / job_of(seed=seed).folder / "progress.json").write_text(text)
        assert state_of(results / job_of(seed=seed).folder)[0] == state


def test_what_is_no_number_in_a_state_is_unknown(results):
    folder = results / job_of(seed=2).folder
    state = json.loads((folder / "progress.json").read_text())
    for wrong in ("fast", [1], {}, float("nan"), float("inf")):
        for name, word in (("images_per_second", "images/s"), ("seconds_left", "left")):
            assert word in state_of(folder)[1]  # control
            (folder / "progress.json").write_text(json.dumps({**state, name: wrong}))
            assert state_of(folder)[0] == "running"
            assert state_of(folder)[1].startswith("task 2 of 2, epoch 3 of 10")
            assert word not in state_of(folder)[1]
            (folder / "progress.json").write_text(json.dumps(state))


def test_a_record_that_cannot_be_read_is_said(results):
    path = results / job_of().folder / "record.json"
    path.write_text("")
    state, detail = state_of(path.parent)
    assert state == "unreadable"
    assert "is not a JSON file" in detail


def test_a_record_in_the_folder_of_another_run_is_not_called_done(results):
    own = results / job_of().folder
    shutil.copytree(own, own.with_name(own.name.replace("seed1", "seed9")))
    runs = [run for runs in boards(results).values() for run in runs if run.method == "finetune"]
    state = {run.seed: (run.state, run.detail) for run in runs}
    assert state[1][0] == "done"
    assert state[9][0] == "unreadable"
    assert "does not belong in this folder" in state[9][1]


def test_a_folder_that_cannot_be_read_is_named(results, monkeypatch):
    hidden, scandir = results / job_of().folder.parent, os.scandir

    def refusing(path):
        if Path(path) == hidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=f"{hidden}: cannot be read: Permission denied"):
        boards(results)


def test_what_a_run_left_is_said_in_one_line(results):
    folder = results / job_of("ewc").folder
    (folder / "failure.json").write_text(json.dumps({"error": "the loss\n\x1b[2Jbecame \ud800nan"}))
    assert state_of(folder) == ("failed", "the loss ?[2Jbecame ?nan; `leaderboard` runs it again")


def test_a_run_says_how_far_it_is_and_clears_up(tmp_path, monkeypatch):
    monkeypatch.setattr("benchsuite.training.runner.BEAT", -1.0)
    job, seen = job_of(), []
    path = tmp_path / job.folder / "progress.json"
    run(job, results=tmp_path, report=lambda event: seen.append((state_of(path.parent), json.loads(path.read_text()))))
    assert [state["kept"] for _, state in seen] == [0, 0, 1]
    assert all(words[0] == "running" for words, _ in seen)
    assert seen[0][1]["images_per_second"] is None
    assert seen[1][1]["images_per_second"] > 0
    assert seen[1][1]["seconds_left"] > 0
    assert seen[2][1]["seconds_left"] == 0
    assert not path.exists()


def test_words():
    assert ranges([3, 1, 2, 7, 9, 10]) == "1-3,7,9-10"
    assert [duration(s) for s in (3, 600, 7200)] == ["3 s", "10 min", "2.0 h"]


def test_status_needs_no_torch(tmp_path):
    results = Path(__file__).parents[2] / "results"
    code = (
        f"import sys; from benchsuite.cli.main import main; main(['status', '--results', {str(results)!r}])\n"
        "assert not {'torch', 'avalanche', 'matplotlib'} & set(sys.modules)"
    )
    # Not in the source tree, which would hide the package that is installed.
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "rotated-digits/paper:" in done.stdout
