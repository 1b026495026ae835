import os
import resource
import warnings
from contextlib import contextmanager

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # before torch looks: what is the same to the bit is so on the CPU

import pytest
import torch

with warnings.catch_warnings():  # Avalanche imports solvers that warn of one another; the tests' own warnings are errors
    warnings.simplefilter("ignore")
    import avalanche.training.templates  # noqa: F401

from benchsuite.method import methods
from benchsuite.training.batches import TaskImages


@pytest.hookimpl(tryfirst=True)  # the plugin reads the marks at its own turn
def pytest_collection_modifyitems(items):
    """What shares fixtures runs in one process: a file's tests, and of the contract's every other method's."""
    names = list(methods.all())
    for item in items:
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        half = f"-{names.index(name) % 2}" if item.path.name == "test_contract.py" and name in names else ""
        item.add_marker(pytest.mark.xdist_group(item.path.name + half))


torch.set_num_threads(1)  # the same in every process of a test; the networks are too small to share out


@pytest.fixture
def colour_task():
    """96 random 32x32 colour images of 5 classes, normalised as CIFAR-100."""

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
    monkeypatch.setattr(methods, "_known", dict(methods.all()))
    monkeypatch.setattr(methods, "_origins", dict(methods._origins))
    monkeypatch.setattr(methods, "_sources", dict(methods._sources))
    monkeypatch.setattr(methods, "_files", {})
    monkeypatch.setattr(methods, "_modified", {})
    return methods
