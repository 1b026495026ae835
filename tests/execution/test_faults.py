"""Faults to survive: what breaks says so in one line, and what was there before is there after it."""

import errno
import json
import os
import resource
import stat
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pytest

from benchsuite import files
from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.method import Method, register
from benchsuite.record import schema
from benchsuite.training import environment
from benchsuite.training.runner import RunFailed, run
from benchsuite.training.settings import resolve

TINY = {"tasks": 2, "train_per_class": 8, "test_per_class": 8, "epochs": 1, "batch_size": 16}
WHERE = ["--protocol", "split-digits", "--tier", "smoke"]
WORDS = [*WHERE, *(word for name, value in TINY.items() for word in ("--set", f"{name}={value}"))]
TRAINING = [
    f"{when}_{what}"
    for what in ("training", "training_exp", "train_dataset_adaptation", "training_epoch", "training_iteration")
    for when in ("before", "after")
] + [f"{when}_{what}" for what in ("forward", "backward", "update") for when in ("before", "after")]
EVALUATION = [
    f"{when}_{what}"
    for what in ("eval", "eval_dataset_adaptation", "eval_exp", "eval_iteration", "eval_forward")
    for when in ("before", "after")
]
VERBS = ["prepare", "artifact", "restore", "diagnostics", "state", "alternatives"]


def job_of(name="finetune", seed=1, **settings):
    return resolve("split-digits", "smoke", name, seed, overrides=TINY | settings)


class Faulty(Method):
    """Raises where it is told to; counts where it was asked."""

    where = ""
    asked: ClassVar = set()


def breaks(name):
    def hook(self, *args, **kwargs):
        Faulty.asked.add(name)
        if name == Faulty.where:
            raise RuntimeError(f"in {name}")
        return plain(self, *args, **kwargs)

    plain = vars(Method)[name].__func__ if isinstance(vars(Method).get(name), classmethod) else getattr(Method, name)
    return classmethod(hook) if isinstance(vars(Method).get(name), classmethod) else hook


for each in [*TRAINING, *EVALUATION, *VERBS]:
    setattr(Faulty, each, breaks(each))


@pytest.fixture
def faulty(own_methods, monkeypatch):
    register(Faulty)
    monkeypatch.setattr(Faulty, "asked", set())
    return monkeypatch


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(job_of(tasks=1), results=tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("where", [*TRAINING, *EVALUATION, *VERBS])
@pytest.mark.slow
def test_a_method_that_raises_in_a_hook_fails_alone(where, faulty, undisturbed, tmp_path):
    faulty.setattr(Faulty, "where", where)
    job = job_of("faulty", tasks=1)
    with pytest.raises(RunFailed, match=f"RuntimeError: in {where}"):
        run(job, results=tmp_path)
    folder = tmp_path / job.folder
    assert f"in {where}" in json.loads((folder / "failure.json").read_text())["traceback"]
    assert {path.name for path in folder.iterdir()} <= {"failure.json", "checkpoint.pt", "artifact.safetensors"}
    faulty.setattr(Faulty, "where", "")
    record = run(job, results=tmp_path)  # mended, it goes on
    assert where in Faulty.asked
    assert record.correct == undisturbed.correct
    assert {path.name for path in folder.iterdir()} == {"record.json", "artifact.safetensors"}


@pytest.mark.parametrize("where", ["__post_init__", "unsupported_reason"])
def test_a_method_that_raises_before_its_run_is_one_line(where, own_methods, monkeypatch, capsys, tmp_path):
    def broken(self, *args):
        raise RuntimeError(f"in {where}")

    register(type("Faulty", (Method,), {where: broken, "__module__": __name__}))
    monkeypatch.chdir(tmp_path)
    assert main(["run", *WORDS, "--method", "faulty"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"faulty: cannot be made: RuntimeError: in {where}" in line
    assert not list(tmp_path.iterdir())


def test_a_method_that_cannot_be_taken_up_again_keeps_its_checkpoint(faulty, tmp_path):
    def stop(event):
        if event.stage == 1:
            raise KeyboardInterrupt

    def broken(self, state):
        raise RuntimeError("in load_state")

    job = job_of("faulty")
    with pytest.raises(KeyboardInterrupt):
        run(job, results=tmp_path, report=stop)
    checkpoint = tmp_path / job.folder / "checkpoint.pt"
    kept = checkpoint.read_bytes()
    with faulty.context() as patch:
        patch.setattr(Faulty, "load_state", broken)
        with pytest.raises(RunFailed, match="RuntimeError: in load_state"):
            run(job, results=tmp_path)
    assert checkpoint.read_bytes() == kept
    assert run(job, results=tmp_path).correct == run(job_of(), results=tmp_path).correct


def test_a_method_that_ends_the_process_has_a_reason_on_record(own_methods, tmp_path):
    class Quits(Method):
        def before_backward(self, strategy, **kwargs):
            raise SystemExit("enough")

    register(Quits)
    with pytest.raises(RunFailed, match="SystemExit: enough"):
        run(job_of("quits"), results=tmp_path)
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=r"leaves.py: cannot be imported: SystemExit: 3"):
        own_methods.load_file(tmp_path / "leaves.py")


def test_a_write_that_is_refused_half_way_leaves_what_was_there(room, tmp_path):
    path = tmp_path / "record.json"
    files.write_atomic(path, "old")
    with room(1000):
        files.write_atomic(path, "x" * 1000)  # control: there is room for this
        with pytest.raises(UserError, match=f"cannot write to {tmp_path}: File too large; choose"):
            files.write_atomic(path, "y" * 1001)
    assert path.read_text() == "x" * 1000
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(("name", "why"), [("folder.csv", "Is a directory"), ("x" * 300, "File name too long")])
def test_a_name_that_a_file_cannot_have_is_named(name, why, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=f"cannot write {tmp_path / name}: {why}; choose another name"):
        files.write_atomic(tmp_path / name, "x")
    assert [file.name for file in tmp_path.iterdir()] == ["folder.csv"]


def test_a_checkpoint_that_is_refused_half_way_costs_the_task_in_training(room, tmp_path):
    job, events = job_of("ewc", tasks=3), []

    def stop(event):
        if (event.stage, event.epoch) == (1, 1):  # the second task has been learnt
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    with room(resource.RLIM_INFINITY), pytest.raises(UserError, match="File too large"):
        run(job, results=tmp_path, report=stop)
    folder = tmp_path / job.folder
    assert (folder / "checkpoint.pt").stat().st_size > 20_000  # that of the first task, whole
    assert not list(folder.glob(".writing*"))
    record = run(job, results=tmp_path, report=events.append)
    assert events[0].stage == 1
    assert schema.same_numbers(record, run(job, results=tmp_path / "undisturbed"))


@pytest.mark.parametrize("file", ["checkpoint.pt", "artifact.safetensors", "record.json", "progress.json"])
def test_a_disk_that_fills_up_costs_one_task_at_most(file, tmp_path, monkeypatch):
    job, replace, calls = job_of("ewc"), os.replace, []

    def full(source, target):
        if Path(target).name == file:
            calls.append(target)
            if len(calls) == (2 if file == "checkpoint.pt" else 1):  # the first task has been stored
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        if file == "progress.json":  # it can wait
            run(job, results=tmp_path)
        else:
            with pytest.raises(UserError, match="No space left on device") as error:
                run(job, results=tmp_path)
            assert "\n" not in str(error.value)
            assert not (tmp_path / job.folder / "record.json").exists()
    assert calls
    assert not list(tmp_path.rglob(".writing*"))
    events = []
    record = run(job, results=tmp_path, report=events.append)
    if file != "progress.json":
        assert events[0].stage == (1 if file == "checkpoint.pt" else 2)  # what was stored is kept
    assert schema.same_numbers(record, run(job, results=tmp_path / "alone"))
    assert {path.name for path in (tmp_path / job.folder).iterdir()} == {"record.json", "artifact.safetensors"}


def test_what_a_kill_left_half_written_is_removed_by_the_next_run(tmp_path):
    job = job_of()
    folder = tmp_path / job.folder
    folder.mkdir(parents=True)
    for name in (".writing.a1", ".writing.b2", "notes.txt"):
        (folder / name).touch()
    run(job, results=tmp_path)
    here = {"record.json", "artifact.safetensors", "notes.txt"}  # the last one, a control, is not ours
    assert {path.name for path in folder.iterdir()} == here
    for name in (".writing.c3", "checkpoint.pt", "progress.json"):  # killed when the record was there already
        (folder / name).touch()
    run(job, results=tmp_path)
    assert {path.name for path in folder.iterdir()} == here


def test_a_file_is_synced_before_it_gets_its_name_and_the_name_after(tmp_path, monkeypatch):
    order, sync, replace = [], os.fsync, os.replace

    def synced(handle):
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def named(source, target):
        order.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    files.write_atomic(tmp_path / "a", "text")
    assert order == ["file", "name", "folder"]


def test_a_clock_that_goes_backwards_changes_no_number(tmp_path, monkeypatch):
    job = job_of("ewc")
    alone = run(job, results=tmp_path / "alone")
    now = [4e9]

    def back():
        now[0] -= 3600
        return now[0]

    def stop(event):
        os.utime(tmp_path / "alone", (now[0], now[0]))
        if event.stage == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "time", back)
    monkeypatch.setattr(environment, "now", lambda: datetime.fromtimestamp(back(), UTC).isoformat(timespec="seconds"))
    with pytest.raises(KeyboardInterrupt):
        run(job, results=tmp_path, report=stop)
    checkpoint = tmp_path / job.folder / "checkpoint.pt"
    os.utime(checkpoint, (5e9, 5e9))  # from the future
    events = []
    record = run(job, results=tmp_path, report=events.append)
    assert events[0].stage == 1
    assert schema.same_numbers(record, alone)
    assert record.environment.date.startswith("2096")  # the clock was the one above
    assert all(seconds >= 0 for seconds in (*record.seconds.train, *record.seconds.evaluate))


def as_nobody(act):
    """What `act()` returns, as text, in a process that must not write where only root may."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(writer, act().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.slow
def test_a_results_folder_that_is_read_only_is_one_line_and_can_be_ranked(capsys):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        results = Path(name)
        run(job_of(), results=results)
        before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
        for path in [*results.rglob("*"), results]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:

            def new():
                try:
                    run(job_of(seed=2), results=results)
                except UserError as error:
                    return str(error)
                return "it was written"

            said = as_nobody(new)
            assert said.startswith(f"cannot write to {results}")
            assert "--results" in said
            assert "\n" not in said
            assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before
            with tempfile.TemporaryDirectory() as output:
                command = ["leaderboard", *WHERE, "--no-run", "--results", name, "--output", output]
                assert main(command) == 0
                assert (Path(output) / "accuracy.md").exists()
            assert main(["status", "--results", name]) == 0
            assert "1 done" in capsys.readouterr().out
        finally:
            for path in [results, *results.rglob("*")]:
                path.chmod(0o755)
