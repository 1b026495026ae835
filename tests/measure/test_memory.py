"""Counted memory is what the allocator gave out, and what the record says."""

import pytest
import torch

from benchsuite.measure.memory import compare
from benchsuite.method import Method, register


class Hides(Method):
    """Fine-tuning that keeps a tensor where nobody looks."""

    def before_training_exp(self, strategy, **kwargs):
        kept = torch.ones(1000)
        self.model.backbone.register_forward_pre_hook(lambda *_: kept.sum() and None)


@pytest.mark.parametrize("method", ["cacl", "er", "ewc", "hides"])
@pytest.mark.slow
def test_counted_bytes_are_the_allocators(method, own_methods, tmp_path, monkeypatch):
    register(Hides)
    training, allocated, carried, loaded, record = compare(method, torch.device("cpu"), tmp_path)
    assert training == allocated > 0
    assert carried == loaded > 0
    assert training + record.memory_bytes == record.training_state_bytes, "in the run itself, which counts stored images, too"
    assert (record.memory_bytes > 0) is (method == "er")
    if method in ("cacl", "hides"):  # control: what is reached from the network, the optimiser and the method is less
        monkeypatch.setattr("benchsuite.training.accounting.gc.get_objects", list)
        assert compare(method, torch.device("cpu"), tmp_path / "less")[0] < training
