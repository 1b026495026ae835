"""Runs on Ray: a head and two workers that are processes of their own, one of which is killed; and what a node does by itself."""

import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec import structs

from benchsuite import files
from benchsuite.cli.main import main
from benchsuite.data import cache, sets
from benchsuite.errors import UserError
from benchsuite.execution.grid import run_all
from benchsuite.execution.messages import Failed, Files, Finished
from benchsuite.execution.worker import RunContext
from benchsuite.record import schema, store
from benchsuite.training.events import Event, Note
from benchsuite.training.runner import made_by, run
from benchsuite.training.settings import resolve

TINY = {"tasks": 3, "train_per_class": 24, "test_per_class": 20, "epochs": 2, "batch_size": 16}
WAITS = """
import time
from pathlib import Path

from benchsuite import Method, register


@register
class Waits(Method):
    def before_training_exp(self, strategy, **kwargs):
        while strategy.clock.train_exp_counter and not Path({go!r}).exists():
            time.sleep(0.05)
"""
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'benchsuite[ray]'"
)


def job_of(name="finetune", seed=1, **settings):
    return resolve("split-digits", "smoke", name, seed, overrides=TINY | settings)


def images(n=40, classes=10):
    """A small set that no file holds."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (n, 28, 28, 1), dtype=np.uint8), np.arange(n, dtype=np.int64) % classes
    arrays = cache.Arrays(x, y, x[::-1].copy(), y[::-1].copy())
    return sets.ImageSet(name="mnist", **arrays._asdict(), digest=cache.digest(arrays), complete=True, note="")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCHSUITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def free_port():
    """Not one that the system, or Ray, may give to somebody else a moment later."""
    for port in random.Random(os.getpid()).sample(range(20_000, 32_000), 100):
        with socket.socket() as s, suppress(OSError):
            s.bind(("", port))
            return port
    raise OSError("no free port")


def kill(mark):
    """Kill every process that has this in its environment."""
    for _ in range(3):  # what one of them is just starting is found the next time
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark.encode() in environ.read_bytes() and int(environ.parent.name) != os.getpid():
                    os.kill(int(environ.parent.name), signal.SIGKILL)
        time.sleep(0.1)


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """Starts nodes by name, the head first; all of them are gone at the end, whatever happened."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # whatever the home folder holds
    ray = Path(sys.executable).with_name("ray")
    port, place, marks, started = free_port(), f"/tmp/r{os.getpid()}", {}, []  # Ray's sockets need a short path

    def start(name, *words):
        marks[name] = f"BENCHSUITE_TEST_NODE={os.getpid()}-{name}-"
        key, _, value = marks[name].partition("=")
        own = {
            key: value,
            "BENCHSUITE_CACHE": str(tmp_path / name),
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "3",
            "RAY_raylet_start_wait_time_s": "120",
        }
        common = ["--disable-usage-stats", "--object-store-memory", "80000000", "--node-ip-address", "127.0.0.1", "--block"]
        log = tmp_path / f"{name}.log"
        with log.open("w") as out:
            command = [ray, "start", *words, *common]
            process = subprocess.Popen(command, env=os.environ | own, stdout=out, stderr=out, start_new_session=True)
        started.append(process)
        while "Ray runtime started" not in log.read_text():  # one after another: two that start at once can hinder each other
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        return marks[name]

    try:
        head = ["--head", "--port", str(port), "--num-cpus", "0", "--temp-dir", place, "--include-dashboard", "false"]
        start("head", *head)
        start.address = re.search(r"--address='([^']+)'", (tmp_path / "head.log").read_text())[1]
        yield start
    finally:
        for mark in marks.values():
            kill(mark)
        for process in started:
            process.wait(10)
        shutil.rmtree(place, ignore_errors=True)


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find a node's processes")
def test_a_node_that_is_killed_costs_no_run(nodes, own_cache, own_methods, tmp_path):
    from benchsuite.execution.ray import Cluster

    go = tmp_path / "go"
    (tmp_path / "waits.py").write_text(WAITS.format(go=str(go)))
    own_methods.load_file(tmp_path / "waits.py")
    foreign = {"tasks": 1, "partial_data": True, "train_per_class": 2, "test_per_class": 2, "epochs": 1}
    seed = next(s for s in range(100) if resolve_first(s) == "mnist")
    jobs = [job_of("waits", seed=1), job_of("waits", seed=2)]
    jobs.append(structs.replace(resolve("five-datasets", "smoke", "finetune", seed, overrides=foreign), data="0" * 12))
    results = tmp_path / "results"
    place = RunContext(
        results=results, data_dir=tmp_path / "nowhere", device="cpu", threads=1, user_files=(tmp_path / "waits.py",)
    )
    marks = [nodes(name, "--address", nodes.address, "--num-cpus", "1") for name in ("one", "two")]
    said, killed = [], []

    def killer():
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            if all((results / job.folder / "checkpoint.pt").exists() for job in jobs[:2]):
                killed.append(kill(marks[1]))  # both workers are in the middle of a run
            time.sleep(0.05)
        go.touch()

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        engine = Cluster(nodes.address, place, {"mnist": images()})
        assert run_all(jobs, results=results, engine=engine, report=said.append) == {}
    finally:
        go.touch()
        thread.join()
    assert killed
    lines = [note.text for note in said if isinstance(note, Note)]
    assert [("its process was killed" in line) for line in lines] == [True]
    again = [e for e in said if isinstance(e, Event) and e.epoch == 0 and e.stage > 0]
    assert len(again) == 1  # from its last task
    for job in jobs:
        alone = run(job, results=tmp_path / "alone", images={"mnist": images()})
        assert schema.same_numbers(alone, store.read(results / job.folder / "record.json"))
    assert not list(results.rglob("lock")) + list(results.rglob(".shared*"))
    stored = [tmp_path / name / "arrays" / "mnist" / images().digest[:16] / "train_x.npy" for name in ("one", "two")]
    assert any(path.exists() for path in stored)  # the images came by themselves


def resolve_first(seed):
    from benchsuite.protocol import protocols

    protocol = protocols.get("five-datasets")
    return protocol.tasks[protocol.order(seed)[0]].dataset


def on_node(job, tmp_path, mark, loggers=(), **changed):
    from benchsuite.execution import ray

    place = RunContext(results=tmp_path / "results", data_dir=None, device="cpu", threads=1, loggers=loggers)
    given = {"texts": {}, "images": {}, "made": made_by(job), **changed}
    return list(ray.on_node(job, place, mark=mark, **given))


def driver_of(tmp_path, **attributes):
    """A cluster's end here, without a cluster."""
    from benchsuite.execution.ray import Cluster

    driver = Cluster.__new__(Cluster)
    driver.context = RunContext(results=tmp_path / "results", data_dir=None, device="cpu", threads=1)
    vars(driver).update({"jobs": {}, "locks": {}, "unkept": {}, "recorded": set(), "heard": math.inf, "lost": False} | attributes)
    return driver


def test_without_shared_storage_the_files_come_back(own_cache, tmp_path):
    job = job_of()
    elsewhere = tmp_path / "elsewhere" / "mark"
    *messages, last = on_node(job, tmp_path, elsewhere)
    assert last == Finished()
    assert not (tmp_path / "results").exists()
    sent = [message.contents for message in messages if isinstance(message, Files)]
    assert set(sent[-1]) == {"artifact.safetensors", "record.json"}
    assert json.loads(sent[0]["progress.json"])["stages"] == 3
    driver = driver_of(tmp_path, jobs={"key": job})
    folder = tmp_path / "results" / job.folder
    driver._keep("key", sent[0])
    assert files.is_locked(folder / "lock")
    assert (folder / "progress.json").exists()
    # Killed here, before it has written the record, it asks again, and has it without a training.
    *again, last = on_node(job, tmp_path, elsewhere, recorded={"0" * 64})
    assert (again, last) == ([Files(sent[-1])], Finished())
    driver._keep("key", sent[-1])
    driver._forget("key")
    assert sorted(path.name for path in folder.iterdir()) == ["artifact.safetensors", "record.json"]
    assert schema.same_numbers(store.read(folder / "record.json"), run(job, results=tmp_path / "alone"))
    driver.jobs = {"late": job}
    driver._keep("late", {"record.json": b"of a run that counts no more"})  # what is there stays
    driver._forget("late")
    assert store.read(folder / "record.json").job == job
    assert (own_cache / "runs" / job.folder / "record.json").exists()
    on_node(job_of(tasks=1), tmp_path, elsewhere, recorded=driver.recorded)
    assert not (own_cache / "runs" / job.folder).exists()  # the node has heard that it is on record
    assert (own_cache / "runs" / job_of(tasks=1).folder).exists()  # control


def test_logs_come_back_beside_the_runs(own_cache, tmp_path):
    job = job_of(tasks=1)
    *_, files, last = on_node(job, tmp_path, tmp_path / "elsewhere" / "mark", loggers=("csv",))
    assert last == Finished()
    assert set(files.logs) == {"csv/log.csv"}
    driver = driver_of(tmp_path, jobs={"key": job})
    driver._keep("key", files.contents, files.logs)
    driver._forget("key")
    assert (tmp_path / "results" / "logs" / job.folder / "csv" / "log.csv").read_bytes() == files.logs["csv/log.csv"]
    on_node(job_of(tasks=2), tmp_path, tmp_path / "elsewhere" / "mark", recorded=driver.recorded)
    assert not (own_cache / "runs" / "logs" / job.folder).exists()


def scripted(says):
    """Ray, with one task that says this."""
    return SimpleNamespace(
        wait=lambda keys, **_: (keys, []),
        get=lambda message: message,
        exceptions=SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ZeroDivisionError),
        key=iter(says),
    )


@pytest.mark.parametrize("full", ["record.json", "progress.json", None])
def test_files_that_cannot_be_written_are_that_run_s_failure_alone(full, tmp_path, monkeypatch):
    from benchsuite.execution import ray

    def write(path, data):
        if path.name == full:
            raise UserError("cannot write: No space left on device")
        files.write_atomic(path, data)

    monkeypatch.setattr(ray, "write_atomic", write)
    ray = scripted([Files({"progress.json": b"{}"}), Files({"record.json": b"{}"}), Finished()])
    driver = driver_of(tmp_path, ray=ray, jobs={ray.key: job_of()})
    said = [message for _ in range(3) for _, message in driver.messages([ray.key])]
    failed = f"{job_of()}: cannot write: No space left on device"
    assert said == [Failed(failed) if full == "record.json" else Finished()]  # how far a run is can wait
    assert bool(driver.recorded) == (full != "record.json")
    assert not driver.locks


def test_a_run_for_which_no_node_has_room_is_said(tmp_path):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]

    def said(cpus, gpus=0.0, address="head:6379"):
        return driver_of(tmp_path, ray=SimpleNamespace(nodes=lambda: nodes), cpus=cpus, gpus=gpus, address=address)._too_large()

    assert said(4) == said(4, 0.5) == said(4, address="local") is None  # controls
    assert said(16) == "no node has 16 cores for a run; lower --cpus-per-run, or the runs wait until such a node joins"
    assert "no node has 1 cores and 2 GPUs" in said(1, 2)
    with pytest.raises(UserError, match=r"lower --cpus-per-run$"):
        said(16, address="local")


@pytest.mark.parametrize(
    ("cause", "mode", "said"),
    [
        ("RpcError: Unauthenticated: RPC error: InvalidAuthToken", "token", "it asks for another RAY_AUTH_TOKEN; set RAY"),
        ("AuthenticationError: Authentication token is missing", "disabled", "it asks for a token; set RAY_AUTH_MODE=token"),
        ("timed out", "token", "no Ray cluster answers at 'head:6379' (Failed to connect); start one"),  # control
    ],
)
def test_a_token_that_is_refused_is_told_from_silence(cause, mode, said, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    error = ConnectionError("Failed to connect")
    error.__cause__ = RuntimeError(cause)
    assert said in str(driver_of(tmp_path, address="head:6379")._unreached(error))


def test_a_head_that_no_longer_answers_is_given_up(tmp_path, monkeypatch):
    from benchsuite.execution import ray

    monkeypatch.setattr(ray, "LOST", 0.5)
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        name = f"127.0.0.1:{head.getsockname()[1]}"
        driver = driver_of(tmp_path, head=name, address=name, heard=0.0)
        driver._check_head()
        assert time.monotonic() - driver.heard < 60  # control: it answers
    driver.heard = time.monotonic() - 10
    with pytest.raises(UserError, match=f"the Ray cluster at '{name}' no longer answers"):
        driver._check_head()
    assert driver.lost
    for call in (lambda: driver.slots, lambda: driver.start(job_of())):  # it died a moment ago: a call of Ray's would hang
        driver.heard, driver.lost = time.monotonic(), False
        with pytest.raises(UserError, match="no longer answers"):
            call()
        assert driver.lost


def test_two_user_files_of_one_name_are_two(own_cache, own_methods, tmp_path):
    """Each goes with what stands beside it."""
    text = "from benchsuite import Method, register\nfrom {beside} import S\n\n\n@register\nclass {name}(Method):\n    s = S\n"
    texts = {
        f"/{folder}/own.py": {
            "own.py": text.format(name=name, beside=f"beside_{folder}").encode(),
            f"beside_{folder}.py": f"S = {number}\n".encode(),
        }
        for number, (folder, name) in enumerate((("a", "First"), ("b", "Second")))
    }
    messages = on_node(job_of(), tmp_path, tmp_path / "mark", texts=texts)
    assert messages[-1] == Finished()
    assert [own_methods.get(name).s for name in ("first", "second")] == [0, 1]


def test_with_shared_storage_a_run_works_there(own_cache, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mark").touch()
    *messages, last = on_node(job_of(), tmp_path, tmp_path / "results" / "mark")
    assert last == Finished()
    assert not any(isinstance(message, Files) for message in messages)
    assert (tmp_path / "results" / job_of().folder / "record.json").exists()


def test_a_node_with_other_source_refuses(own_cache, tmp_path):
    job = job_of()
    messages = on_node(job, tmp_path, tmp_path / "mark", made=made_by(job) | {"method finetune": "0" * 12})
    assert "has another method finetune; install the same benchsuite everywhere" in messages[-1].reason


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus-per-run", "0.5"], "name it with --ray"),
        (["--ray", "local", "--jobs", "2"], "--jobs is for this machine"),
        (["--ray", "local", "--gpus-per-run", "-1"], "must not be negative"),
        (["--ray", "local", "--cpus-per-run", "0"], "must be positive"),
        pytest.param(["--ray", "127.0.0.1:1"], "no Ray cluster answers at '127.0.0.1:1'", marks=needs_ray),
        # this machine need not have a GPU for its nodes to
        pytest.param(["--ray", "127.0.0.1:1", "--device", "cuda"], "no Ray cluster answers at '127.0.0.1:1'", marks=needs_ray),
        pytest.param(["--ray", "somewhere"], "HOST:PORT", marks=needs_ray),
    ],
)
def test_options_that_do_not_fit_are_refused(words, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "--tier", "smoke", "--method", "finetune", *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()  # of the file descriptor: Ray writes to that
    assert said in line


def test_without_ray_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    from benchsuite.execution.ray import Cluster

    monkeypatch.setitem(sys.modules, "ray", None)
    place = RunContext(results=tmp_path, data_dir=None, device="cpu", threads=1)
    with pytest.raises(UserError, match=r"pip install 'benchsuite\[ray\]'"):
        Cluster("local", place, {})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("cpu", 1, 1.0, 0.0)),
        (["--cpus-per-run", "3"], ("cpu", 3, 3.0, 0.0)),
        (["--gpus-per-run", "0.125"], ("cuda", 1, 1.0, 0.125)),
        (["--device", "cuda"], ("cuda", 1, 1.0, 1.0)),
    ],
    ids=str,
)
def test_what_a_run_takes_decides_its_device_and_threads(words, expected, own_cache, monkeypatch, tmp_path):
    """auto is no device of a node: what Ray has not given to a run it must not take."""
    from benchsuite.execution import plan

    asked = []

    def asking(address, place, images, *, cpus, gpus):
        asked.append((place.device, place.threads, cpus, gpus, {name: len(i.train_y) for name, i in images.items()}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "Cluster", asking)
    monkeypatch.setattr(plan, "run_all", lambda jobs, **_: {"folder": f"{len(jobs)} runs"})
    assert main(["leaderboard", "--ray", "local", "--tier", "smoke", "--method", "finetune", "--seeds", "1-2", *words]) != 0
    ((*found, images),) = asked
    assert tuple(found) == expected
    assert images["digits"] > 1000


def test_images_travel_to_a_node_once(own_cache, monkeypatch):
    from benchsuite.execution import ray

    fetched, made = [], images()
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda arrays: fetched.append(1) or arrays))
    sent = ray.Sent([tuple(map(np.array, ray._arrays(made)))], made.digest, True, "")
    for _ in range(2):
        assert ray.received("mnist", sent).digest == made.digest
    assert fetched == [1]
    other = replace(made, train_x=255 - made.train_x)
    digest = cache.digest(ray._arrays(other))
    ray.received("mnist", ray.Sent([ray._arrays(other)], digest, True, ""))  # control: others are another set
    assert fetched == [1, 1]
