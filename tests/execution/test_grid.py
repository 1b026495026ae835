"""Many runs: in which order, in how many processes, and what becomes of them when some are killed."""

import json
import os
import runpy
import signal
import sys
import time
from argparse import ArgumentTypeError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from msgspec import structs
from processes import forked
from records import run as leaderboard_run

from benchsuite import files
from benchsuite.cli.arguments import seeds
from benchsuite.execution.grid import missing, run_all
from benchsuite.execution.local import Local
from benchsuite.execution.messages import Done, Failed, Finished, Killed
from benchsuite.execution.worker import RunContext
from benchsuite.record import schema, store
from benchsuite.record.folder import RunFolder
from benchsuite.record.schema import Job
from benchsuite.source import digests
from benchsuite.training.device import cores
from benchsuite.training.events import Event, Note
from benchsuite.training.settings import resolve

CURRENT = {"optimizer adam": digests()["optimizer adam"]}  # what makes a record one of this version

# A leaderboard whose one worker never gets beyond its start.
COMMAND = """
import signal
from pathlib import Path

from benchsuite.cli import main
from benchsuite.execution.grid import run_all
from benchsuite.execution.local import Local
from benchsuite.execution.plan import Plan
from benchsuite.execution.worker import RunContext
from benchsuite.record.schema import Job

job = Job(protocol="split-digits", tier="smoke", method="slow", seed=1, precision="fp32", settings={})
place = RunContext(results=Path("runs"), data_dir=None, device="cpu", threads=1, user_files=(Path("slow.py"),))
Plan.run = lambda *_, **__: run_all([job], results=place.results, engine=Local(1, place))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
raise SystemExit(main.main(["leaderboard", "--tier", "smoke"]))
"""
SLOW = """
import os
import signal
import time
from pathlib import Path

Path("new").write_text(f"{os.getpid()} {signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())}")
Path("new").rename("worker")
time.sleep(300)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = f"/proc/{pid}/stat"  # a process that nobody has buried yet is dead all the same
    try:
        return Path(stat).read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc").exists()


def ended(process, seconds):
    """The exit code of a child process that ends within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "new"), [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, False), (signal.SIGKILL, -9, True)]
)
def test_no_worker_outlives_its_command(number, code, new, tmp_path, monkeypatch):
    """One command is a new process, with a new server; the others are forks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "command.py").write_text(COMMAND)
    (tmp_path / "benchsuite.py").touch()  # where the command is typed something of this name may lie
    reader, writer = os.pipe()

    def typed():
        os.setpgid(0, 0)
        os.dup2(writer, 2)
        runpy.run_path("bin/command.py", run_name="__main__")

    if new:
        errors = [(os.POSIX_SPAWN_DUP2, writer, 2)]
        words = [sys.executable, "bin/command.py"]
        command = os.posix_spawn(sys.executable, words, os.environ, file_actions=errors, setpgroup=0)
    else:
        command = forked(typed, [writer])
    os.close(writer)
    running = True
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "worker").exists() and time.monotonic() < deadline:
            assert alive(command), os.read(reader, 10000).decode()
            time.sleep(0.05)
        worker, deaf = (tmp_path / "worker").read_text().split()
        worker = int(worker)
        assert deaf == "True"  # to Ctrl-C, which a terminal sends to every process of the command
        if number == signal.SIGINT:
            os.killpg(command, number)
        else:
            os.kill(command, number)
        found = ended(command, 10)
        running = found is None
        assert found == code
        deadline = time.monotonic() + 2
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(worker)
        with open(reader, closefd=False) as file:
            err = file.read()  # its end comes only when every process that holds it has gone
        assert "Traceback" not in err
        if number != signal.SIGKILL:  # after which Python's own resource tracker clears up, and says so
            assert err == "benchsuite: interrupted; finished tasks are kept, the same command resumes\n"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command, signal.SIGKILL)
        if running:
            os.waitpid(command, 0)
        os.close(reader)


def test_only_the_cores_that_may_be_used_count(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert cores() == 2


class Scripted:
    """An engine whose runs do as they are told: `script` names, by method, what their processes come to one after another."""

    remark = None

    def __init__(self, slots, script):
        self.slots, self.script = slots, {name: list(ends) for name, ends in script.items()}
        self.started, self.most = [], 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def start(self, job):
        self.started.append(job.method)
        return len(self.started) - 1

    def messages(self, keys):
        self.most = max(self.most, len(keys))
        key = min(keys)
        yield key, self.script[self.started[key]].pop(0)


def named(method, seed=1, **settings):
    return Job(protocol="p", tier="t", method=method, seed=seed, precision="fp32", settings=settings)


def test_a_killed_run_is_tried_twice_more_and_the_others_go_on(tmp_path):
    script = {
        "once": [Killed(), Finished()],
        "twice": [Killed(), Killed(), Finished()],
        "thrice": [Killed()] * 3,
        "bad": [Failed("bad: why")],
        "good": [Finished()],
    }
    engine, said = Scripted(2, script), []
    errors = run_all([named(name) for name in script], results=tmp_path, engine=engine, report=said.append)
    assert engine.most == 2
    assert engine.started[:3] == ["once", "twice", "once"]  # at once
    assert engine.started[-2:] == ["twice", "thrice"]  # the last time when there is room
    assert {name: engine.started.count(name) for name in script} == {"once": 2, "twice": 3, "thrice": 3, "bad": 1, "good": 1}
    assert [error.partition(" (")[0] for error in errors.values()] == [
        "bad: why",
        "p/t thrice seed 1: its process was killed 3 times",
    ]
    assert sorted(line.job.method for line in said if isinstance(line, Done)) == ["good", "once", "twice"]
    assert sum(isinstance(line, Note) for line in said) == 1 + 2 + 2
    known = {name: RunFolder(tmp_path / named(name).folder).read_failure() for name in script}  # as `status` shows it
    assert known["bad"] == "bad: why"
    assert known["thrice"].startswith("its process was killed 3 times")
    assert not any(known[name] for name in ("once", "twice", "good"))  # control


def test_a_failure_that_the_run_has_put_on_record_itself_stays(tmp_path):
    broke, other = named("broke"), named("other")
    for job in (broke, other):
        RunFolder(tmp_path / job.folder).write_failure(job, "ValueError: why", "the traceback")
    script = {
        "broke": [Failed(f"{broke}: ValueError: why; see failure.json")],
        "other": [Failed(f"{other}: No space left on device")],
    }
    assert len(run_all([broke, other], results=tmp_path, engine=Scripted(1, script))) == 2
    there = {job.method: json.loads((tmp_path / job.folder / "failure.json").read_text()) for job in (broke, other)}
    assert there["broke"]["traceback"] == "the traceback"
    assert there["other"]["error"] == "No space left on device"  # control: what is known of it is of an earlier try


def test_a_record_that_cannot_be_read_stops_no_other_run(tmp_path):
    jobs, said = [measured_record("a", seed, 5, tmp_path) for seed in (1, 2, 3)], []
    assert not missing(jobs, tmp_path, said.append) + said  # control
    new = structs.replace(jobs[0], seed=4)
    first, second = (tmp_path / job.folder / "record.json" for job in jobs[:2])
    first.write_text("")
    second.write_bytes((tmp_path / jobs[2].folder / "record.json").read_bytes())
    left = missing([*jobs, new], tmp_path, said.append)
    assert sorted(job.seed for job in left) == [1, 2, 4]
    assert all(line.startswith("not run: ") for line in said)
    assert f"{first}: is not a JSON file" in said[0]
    assert "move it away and run again" in said[1]
    engine = Scripted(1, {"a": [Finished()]})
    errors = run_all(left, results=tmp_path, engine=engine)
    assert engine.started == ["a"]
    assert sorted(errors) == sorted(str(job.folder) for job in jobs[:2])
    assert first.read_text() == ""
    assert {path.name for path in first.parent.iterdir()} == {"record.json"}


def test_what_another_command_has_in_hand_comes_later(tmp_path):
    jobs = [named("a"), named("b"), named("c")]
    engine, said = Scripted(1, {name: [Finished()] for name in "abc"}), []
    with files.locked(tmp_path / jobs[0].folder / "lock"):
        assert run_all(jobs, results=tmp_path, engine=engine, report=said.append) == {}
    assert engine.started == ["b", "c", "a"]
    assert said[2] == Note("p/t a seed 1: is running in another process; waiting for it")
    assert [line.job for line in said if isinstance(line, Done)] == [jobs[1], jobs[2], jobs[0]]
    assert not files.is_locked(tmp_path / jobs[0].folder / "lock")


def measured_record(method, seed, seconds, results, **settings):
    seconds = {"train": [seconds, 0.0], "evaluate": [1.0, 1.0]}
    record = leaderboard_run(method, seed=seed, settings=settings, seconds=seconds, made_by=CURRENT)
    store.write(record, results / record.job.folder / "record.json")
    return record.job


def test_the_longest_come_first_and_the_unknown_before_all(tmp_path):
    known = {name: measured_record(name, 1, s, tmp_path) for name, s in (("short", 5), ("long", 500), ("middle", 50))}
    measured_record("middle", 1, 5000, tmp_path, lr=1)  # another configuration of it: only where nothing better is known
    more = [structs.replace(known[name], seed=2) for name in ("short", "middle", "long")]
    other = structs.replace(known["short"], settings={"lr": 2}, seed=1)
    new = structs.replace(known["short"], method="new")
    left = missing([*known.values(), *more, other, new], tmp_path)
    assert [(job.method, job.seed) for job in left] == [("new", 1), ("long", 2), ("middle", 2), ("short", 2), ("short", 1)]
    assert left[-1] == other


def test_what_failed_is_shown_with_its_reason_and_tried_again(tmp_path):
    job, said = named("a"), []
    folder = tmp_path / job.folder
    folder.mkdir(parents=True)
    for text, reason in ((json.dumps({"error": "the loss became nan"}), "the loss became nan"), ("", "cannot be read")):
        (folder / "failure.json").write_text(text)
        assert missing([job], tmp_path, said.append) == [job]
        assert reason in said[-1]
    (folder / "failure.json").unlink()
    assert missing([job], tmp_path, said.append) == [job]
    assert len(said) == 2  # control


@pytest.mark.parametrize(
    ("text", "found"), [("1-5", [1, 2, 3, 4, 5]), ("1,2,5", [1, 2, 5]), ("1-3,7", [1, 2, 3, 7]), ("2,1-2", [2, 1])]
)
def test_seeds_are_numbers_and_ranges(text, found):
    assert seeds(text) == found


@pytest.mark.parametrize("text", ["", "1-", "-1", "5-1", "1..5", "a", "1-2-3", "0-99999999"])
def test_other_seeds_are_refused(text):
    with pytest.raises(ArgumentTypeError, match="seeds"):
        seeds(text)


def tiny(method, seed, **settings):
    tiny = {"tasks": 3, "train_per_class": 16, "test_per_class": 8, "epochs": 2, "batch_size": 16}
    return resolve("split-digits", "smoke", method, seed, overrides=tiny | settings)


# Each process of its runs is killed when it comes for the first time to one of these moments, where there is a folder of kills.
KILLED = """
import os
import signal
from pathlib import Path

from benchsuite import register
from benchsuite.methods.cacl import CACL

KILLS = Path({kills!r})
REPLACE = os.replace


@register
class Doomed(CACL):
    def once(self, moment):
        mark = KILLS / f"{{self.seed}} {{moment}}"
        mine = moment.startswith("after") is (self.seed == 2)  # each moment meets one of the two runs
        if KILLS.exists() and mine and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def prepare(self, model):
        def replace(source, target):
            file = Path(target).name
            if watched := file in ("checkpoint.pt", "artifact.safetensors", "record.json"):
                self.once(f"before {{file}} {{self.task}}")
            REPLACE(source, target)
            if watched:
                self.once(f"after {{file}} {{self.task}}")

        os.replace, self.task = replace, None
        self.once("start")
        return super().prepare(model)

    def before_training_exp(self, strategy, **kwargs):
        self.task = strategy.experience.current_experience
        super().before_training_exp(strategy, **kwargs)

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == 3:
            self.once(f"training {{self.task}}")
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_changes_no_number(tmp_path, own_methods):
    """Of two processes at once: before its first task, in each training, before and after each file is in place."""
    kills, method = tmp_path / "kills", tmp_path / "doomed.py"
    method.write_text(KILLED.format(kills=str(kills)))
    own_methods.load_file(method)
    jobs = [tiny("doomed", seed, tasks=2) for seed in (1, 2)]
    context = RunContext(results=tmp_path / "killed", data_dir=None, device="cpu", threads=1, user_files=(method,))
    undisturbed = replace(context, results=tmp_path / "alone")
    assert run_all(jobs, results=undisturbed.results, engine=Local(2, undisturbed)) == {}
    kills.mkdir()
    said = []
    while missing(jobs, context.results):  # what was killed three times waits for the next command
        run_all(missing(jobs, context.results), results=context.results, engine=Local(2, context), report=said.append)
        assert len(said) < 1000
    assert run_all(jobs, results=context.results, engine=Local(2, context)) == {}  # it tidies up after a kill at the end
    moments = {"start", *(f"training {t}" for t in range(2)), "before record.json None", "after record.json None"}
    moments |= {f"{when} checkpoint.pt {t}" for when in ("before", "after") for t in range(2)}
    met = {mark.name for mark in kills.iterdir()}
    assert {f"{1 + moment.startswith('after')} {moment}" for moment in moments} <= met
    assert (
        sum(isinstance(line, Note) for line in said) >= 6
    )  # control: they met runs, each of which may be killed twice and go on in the same command
    assert {event.stage for event in said if isinstance(event, Event) and event.epoch == 0} == {0, 1, 2}
    for job in jobs:
        folder = context.results / job.folder
        assert sorted(path.name for path in folder.iterdir()) == ["artifact.safetensors", "record.json"]
        expected = store.read(undisturbed.results / job.folder / "record.json")
        assert schema.same_numbers(store.read(folder / "record.json"), expected)
        artifacts = [(r / job.folder / "artifact.safetensors").read_bytes() for r in (context.results, undisturbed.results)]
        assert artifacts[0] == artifacts[1]


@pytest.mark.slow
def test_two_boards_on_one_folder_train_each_run_once(tmp_path):
    jobs = [tiny(method, seed, tasks=2) for method in ("finetune", "ewc") for seed in (1, 2)]
    place = RunContext(results=tmp_path, data_dir=None, device="cpu", threads=1)
    said, errors = [], []
    boards = [
        Thread(target=lambda: errors.append(run_all(jobs, results=tmp_path, engine=Local(1, place), report=said.append)))
        for _ in range(2)
    ]
    for board in boards:
        board.start()
    for board in boards:
        board.join()
    assert errors == [{}, {}]
    assert not missing(jobs, tmp_path)
    starts = [str(event.job.folder) for event in said if isinstance(event, Event) and event.epoch == 0]
    assert sorted(starts) == sorted(str(job.folder) for job in jobs)


@pytest.mark.slow
def test_where_nothing_can_be_forked_processes_are_spawned(tmp_path, monkeypatch):
    """As for a GPU: what has seen one cannot be forked."""
    import multiprocessing

    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    engine = Local(1, RunContext(results=tmp_path, data_dir=None, device="cpu", threads=1))
    assert engine.processing.get_start_method() == "spawn"
    job = tiny("finetune", 1, tasks=1)
    assert run_all([job], results=tmp_path, engine=engine) == {}
    assert (tmp_path / job.folder / "record.json").exists()
