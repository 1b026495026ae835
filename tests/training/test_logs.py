"""Logs of a run: what they hold, where they lie, and how they go on after an interruption."""

import csv
import os
import sys
from pathlib import Path

import pytest

from benchsuite.errors import UserError
from benchsuite.record.store import record_paths
from benchsuite.training import logs
from benchsuite.training.events import Note
from benchsuite.training.runner import run
from benchsuite.training.settings import resolve

TINY = {"tasks": 2, "train_per_class": 24, "test_per_class": 20, "epochs": 2, "batch_size": 16}


def job(**settings):
    return resolve("split-digits", "smoke", "finetune", 1, overrides=TINY | settings)


def rows(results):
    with (results / "logs" / job().folder / "csv" / "log.csv").open(newline="") as file:
        return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]


def told(found, record):
    """What a log must hold of this run."""
    steps = [(step, value) for step, name, value in found if name == "loss/step"]
    assert [step for step, _ in steps] == list(range(1, sum(record.iterations) + 1))
    assert sum(name == "loss/epoch" for _, name, _ in found) == 2 * 2
    accuracies = {}
    for step, name, value in found:
        accuracies.setdefault(name, []).append((step, value))
    ends = [record.iterations[0], sum(record.iterations)]
    first, second = (f"accuracy/{i} {task.name}" for i, task in enumerate(record.tasks, 1))
    assert accuracies[first] == [(ends[0], pytest.approx(record.R[0, 0])), (ends[1], pytest.approx(record.R[1, 0]))]
    assert accuracies[second] == [(ends[1], pytest.approx(record.R[1, 1]))]
    assert accuracies["accuracy/mean"][-1] == (ends[1], pytest.approx(record.accuracy))


def test_losses_and_accuracies_lie_beside_the_runs(tmp_path):
    record = run(job(), results=tmp_path, loggers=["csv"])
    told(rows(tmp_path), record)
    assert list(record_paths(tmp_path)) == [tmp_path / job().folder / "record.json"]
    assert {path.name for path in (tmp_path / job().folder).iterdir()} <= {"record.json", "artifact.safetensors", "lock"}


def test_tensorboard_shows_them(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    record = run(job(), results=tmp_path, loggers=["tensorboard"])
    events = event_accumulator.EventAccumulator(str(tmp_path / "logs" / job().folder / "tensorboard")).Reload()
    found = [(e.step, tag, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
    names = [f"accuracy/{i} {task.name}" for i, task in enumerate(record.tasks, 1)]
    assert set(events.Tags()["scalars"]) == {"loss/step", "loss/epoch", "accuracy/mean", *names}
    told(found, record)


def test_a_resumed_run_goes_on_with_its_log(tmp_path):
    record = run(job(), results=tmp_path / "whole", loggers=["csv"])

    def stop(event):
        if not isinstance(event, Note) and (event.stage, event.epoch) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job(), results=tmp_path, loggers=["csv"], report=stop)
    assert len(rows(tmp_path)) < len(rows(tmp_path / "whole"))
    run(job(), results=tmp_path, loggers=["csv"])
    assert rows(tmp_path) == rows(tmp_path / "whole")
    told(rows(tmp_path), record)


@pytest.mark.parametrize(
    "left", [b"\0\0\0", b"2,lo\xff\xfe", b'2,"' + b"x" * 200_000, b"9" * 5_000 + b",loss/step,1\n", b"\xc2\xb2,a,1\n"]
)
def test_what_a_crash_left_in_a_log_costs_its_last_lines_at_most(left, tmp_path):
    log = tmp_path / "log.csv"
    log.write_bytes(b"step,name,value\n1,loss/step,2.5\n3,loss/step,2.0\n" + left)
    writer = logs.Csv()
    writer.open(tmp_path, job(), 2)
    writer.close()
    assert log.read_text().splitlines() == ["step,name,value", "1,loss/step,2.5"]


def test_a_finished_run_says_that_there_is_nothing_to_log(tmp_path):
    run(job(), results=tmp_path)
    said = []
    run(job(), results=tmp_path, loggers=["csv"], report=said.append)
    assert any("nothing to log" in note.text for note in said if isinstance(note, Note))
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_names_its_package(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=f"needs the package {name}, which is not installed; pip install {name}"):
        logs.check_loggers([name])


def test_an_unknown_logger_is_told_the_nearest():
    with pytest.raises(UserError, match="no logger is called 'tensorbord'; did you mean 'tensorboard'"):
        logs.check_loggers(["tensorbord"])


@pytest.mark.slow
def test_wandb_asks_for_a_login_or_logs_to_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="nobody is logged in; run `wandb login`, or set WANDB_MODE=offline"):
        logs.check_loggers(["wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(job(), results=tmp_path, loggers=["wandb"])
    assert list(Path(tmp_path, "logs", job().folder, "wandb").rglob("*.wandb"))


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        run(job(), results=tmp_path, loggers=["csv"])


def test_a_pipe_in_place_of_a_log_is_not_waited_for(tmp_path):
    log = tmp_path / "log.csv"
    os.mkfifo(log)
    with pytest.raises(OSError, match="Not a regular file"):
        logs.Csv().open(tmp_path, job(), 2)
    writer = logs.Csv()
    writer.open(tmp_path, job(), 0)
    writer.close()
    assert log.read_text().splitlines() == ["step,name,value"]
