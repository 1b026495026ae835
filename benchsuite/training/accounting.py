"""The costs of a run: multiply-accumulates of the served model, bytes of training state, memory of a training step.

Stored bytes are the size of the artifact's file (`benchsuite.method.artifact`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from avalanche.benchmarks.utils.data import AvalancheDataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def macs(model: nn.Module, image: tuple[int, int, int], task: int) -> int:
    """Multiply-accumulates of one image of shape (C, H, W) through a served model; half of what FlopCounterMode counts."""
    x = torch.zeros(2, *image)  # two images: batch statistics of a single one may not exist
    model(x, task)  # the first call may compose a task's kernels, which serving does once and not per image
    with FlopCounterMode(display=False) as counter:
        model(x, task)
    return counter.get_total_flops() // 4


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors, counting each storage once."""
    storages = {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterable[Tensor]:
    """Every tensor in nested containers, in networks and in the attributes of objects, except in data sets."""
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
    """Bytes that training holds between two steps: parameters, buffers, gradients, optimiser state, and the state and stored
    samples of the method."""
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    tensors = [*parameters, *model.buffers(), *gradients, *tensors_in(dict(optimizer.state)), *tensors_in(methods)]
    return bytes_of(tensors) + sum(method.memory_bytes for method in methods)


class LayerInputs(TorchFunctionMode):
    """Context that sums the bytes of the inputs of convolutions and linear layers with trained weights, each tensor once: the
    "activation memory" of an unmodified network (arXiv 2411.06346)."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._read: list[tuple[weakref.ref[Tensor], int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.conv2d, F.linear) and torch.is_grad_enabled():
            x, weight = _operands(*args, **(kwargs or {}))
            known = any(version == x._version and read() is x for read, version in self._read)
            if weight.requires_grad and not known:
                self._read.append((weakref.ref(x), x._version))
                kind = x.device.type
                size = torch.get_autocast_dtype(kind).itemsize if torch.is_autocast_enabled(kind) else x.element_size()
                self.bytes += x.numel() * size
        return func(*args, **(kwargs or {}))


def _operands(input: Tensor, weight: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
    return input, weight


class StepMemory:
    """Memory of one training step, measured while it is open.

    inputs: bytes that `LayerInputs` counts from `start_of_forward` to `end_of_forward`.
    held: bytes that autograd stores for the backward pass, without parameters and buffers, each storage once.
    peak: the largest number of allocated bytes at any moment, minus those at the start of the step: tensors on the CPU, or the
        allocations of CUDA's allocator.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device
        self._kept: dict[int, int] = {}
        self._hooked = False
        self.inputs = self.held = self.peak = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def open(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        else:
            self._profile = torch.autograd.profiler.profile(profile_memory=True)
            self._profile.__enter__()

    def start_of_forward(self) -> None:
        self._hooks, self._layers = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor), LayerInputs()
        self._hooks.__enter__()
        self._layers.__enter__()
        self._hooked = True

    def end_of_forward(self) -> None:
        """Everything that the backward pass needs has been stored."""
        if self._hooked:
            self._layers.__exit__(None, None, None)
            self._hooks.__exit__(None, None, None)
            self.inputs = self._layers.bytes
            own = {t.untyped_storage().data_ptr() for t in [*self._model.parameters(), *self._model.buffers()]}
            self._hooked, self.held = False, sum(n for place, n in self._kept.items() if place not in own)

    def close(self) -> None:
        self.end_of_forward()
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device) - self._start
            return
        self._profile.__exit__(None, None, None)
        events = [e for e in self._profile.kineto_results.events() if e.name() == "[memory]"]
        live = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            live += event.nbytes()
            self.peak = max(self.peak, live)
