"""What tests of every room share. It imports no torch: boards, reports, records and data are tested without."""

import os
import resource
import runpy
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from multiprocessing import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import forked

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # before torch looks: what is the same to the bit is so on the CPU


METHODS = {path.stem.replace("_", "-") for path in Path(__file__).parents[1].joinpath("methods").glob("[a-z]*.py")}
NONE = SimpleNamespace(params={})  # of a test without parameters
QUICK = {"finetune", "er", "hat", "cacl"}  # shared network, stored images, masks, factors


@pytest.hookimpl(tryfirst=True)  # the plugin reads the marks at its own turn
def pytest_collection_modifyitems(items):
    """The tests of a file share fixtures, and run in one process. What starts Chromium, Ray or pip is slow. So is what a rule
    says of most methods, where it is tested for many of them."""
    cases: dict[Any, list[Any]] = {}
    for item in items:
        cases.setdefault((item.path, getattr(item, "originalname", item.name)), []).append(item)
    for alike in cases.values():
        names = [{v for v in getattr(i, "callspec", NONE).params.values() if isinstance(v, str)} & METHODS for i in alike]
        if len(set().union(*names)) > 2 * len(QUICK):
            for item, own in zip(alike, names, strict=True):
                if own and not own & QUICK:
                    item.add_marker(pytest.mark.slow)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.name))
        if {"chromium", "nodes", "wheel"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # the same in every process of a test; the networks are too small to share out
    if runner := sys.modules.get("benchsuite.training.runner"):
        runner.source_revision = cache(runner.source_revision)  # it asks git


@pytest.fixture(autouse=True)
def few_forms(request, monkeypatch):
    """Runs are tested from the plain file alone in folders where no test asks about storage forms. On Ray's nodes, which are
    processes of their own, they have all forms."""
    if (
        "nodes" not in request.fixturenames
        and request.path.parent.name in ("methods", "nn", "execution", "measure")
        and (base := sys.modules.get("benchsuite.method.base"))
    ):
        monkeypatch.setattr(base.Method, "forms", ("fp32",))


@pytest.fixture
def colour_task():
    """96 random 32x32 colour images of 5 classes, normalised as CIFAR-100."""
    import torch

    from benchsuite.training.batches import TaskImages

    def make(seed=0, n=96, classes=5, size=32, channels=3):
        g = torch.Generator().manual_seed(seed)
        return TaskImages(
            pixels=torch.randint(256, (n, size, size, channels), generator=g, dtype=torch.uint8),
            labels=torch.randint(classes, (n,), generator=g),
            mean=(0.507, 0.487, 0.441)[:channels],
            std=(0.267, 0.256, 0.276)[:channels],
        )

    return make


@pytest.fixture
def room():
    """While it lasts the system refuses to write a file beyond so many bytes, as it does where a disk is full."""

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def own_methods(monkeypatch):
    """The registered methods; what a test registers is forgotten after it."""
    from benchsuite.method import methods

    monkeypatch.setattr(methods, "_known", dict(methods.all()))
    monkeypatch.setattr(methods, "_origins", dict(methods._origins))
    monkeypatch.setattr(methods, "_sources", dict(methods._sources))
    monkeypatch.setattr(methods, "files", {})
    monkeypatch.setattr(methods, "_modified", {})
    monkeypatch.setattr(methods, "_plugins", {})
    return methods


@pytest.fixture
def forked_serving(monkeypatch):
    """Artifacts are served by a fork of this process, not by a new one, as in the tests of the built-in methods."""
    from benchsuite.checks import contract

    def run(command, cwd, **_):
        with tempfile.TemporaryFile("w+") as errors:

            def serve():
                os.dup2(errors.fileno(), 2)
                os.chdir(cwd)
                runpy.run_module(command[-1], run_name="__main__")

            status = os.waitpid(forked(serve, [errors.fileno()]), 0)[1]
            errors.seek(0)
            return SimpleNamespace(returncode=os.waitstatus_to_exitcode(status), stderr=errors.read())

    monkeypatch.setattr(contract, "subprocess", SimpleNamespace(run=run))


@pytest.fixture(scope="session", autouse=True)
def forked_server():
    """The server that forks the processes of runs is itself a fork of this process. Tests of whole commands start a new one."""
    start = util.spawnv_passfds

    def fork(path, words, files):
        if "multiprocessing.forkserver" not in words[-1]:
            return start(path, words, files)
        return forked(lambda: exec(words[-1], {}), files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "spawnv_passfds", fork)
        yield
