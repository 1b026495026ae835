"""What a run costs: multiply-accumulates of the served model, bytes of training state, bytes of kept activations.

Stored bytes are not here: they are the size of the artifact's file (`benchsuite.artifact`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from avalanche.benchmarks.utils.data import AvalancheDataset
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def macs(model: nn.Module, image: tuple[int, int, int], task: int) -> int:
    """Multiply-accumulates of one image of shape (C, H, W) through a served model; half of what FlopCounterMode counts."""
    x = torch.zeros(2, *image)  # two, as batch statistics of one image may not exist
    model(x, task)  # the first call may compose a task's kernels, which serving does once and not for each image
    with FlopCounterMode(display=False) as counter:
        model(x, task)
    return counter.get_total_flops() // 4


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors, each storage once."""
    storages = {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterable[Tensor]:
    """Every tensor in nested containers, in networks and in the attributes of objects; data sets are left out."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, type | Dataset | AvalancheDataset):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item, seen)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value), seen)


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer, methods: Any) -> int:
    """Bytes that training holds between two steps: parameters, buffers, gradients, optimiser state, the methods' own and the
    samples that they store."""
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    tensors = [*parameters, *model.buffers(), *gradients, *tensors_in(dict(optimizer.state)), *tensors_in(methods)]
    return bytes_of(tensors) + sum(method.memory_bytes for method in methods)


class KeptActivations:
    """While open, adds up what autograd keeps for the backward pass, parameters aside: `bytes` at the end."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._kept: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def open(self) -> None:
        self._hooks.__enter__()

    def close(self) -> int:
        self._hooks.__exit__(None, None, None)
        return sum(self._kept.values())
