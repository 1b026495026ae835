"""The costs of a run: multiply-accumulates of the served model, bytes of training state, memory of a training step.

Stored bytes are the size of the artifact's file (`benchsuite.method.artifact`).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.benchmarks.utils.data import AvalancheDataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from ..nn.bits import TABLES
from .batches import Batches, TaskImages
from .stream import Normalised


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
    return sum(_storages(tensors).values())


def _storages(tensors: Iterable[Tensor]) -> dict[tuple[torch.device, int], int]:
    return {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in tensors}


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


_alone = False


@contextmanager
def run_alone() -> Iterator[None]:
    """While open, `made_since` gives what was made since it was opened, and nothing that other code in this process holds.

    The collector is told to ignore everything that is alive now. One run at a time: the global random generators, too, are
    shared by all that runs in a process."""
    global _alone
    if _alone:
        raise RuntimeError("a run cannot start within another one in the same process")
    gc.freeze()
    _alone = True
    try:
        yield
    finally:
        _alone = False
        gc.collect()  # the run is one large cycle; what is unfrozen is old to the collector and stays for long
        gc.unfreeze()


def made_since() -> list[Any]:
    """Every object that was made since `run_alone` was opened and is in use; empty if it is not open."""
    if not _alone:
        return []
    gc.collect()
    return gc.get_objects()


def training_state(strategy: Any) -> int:
    """Bytes that training holds between two steps, whoever holds them: parameters, buffers, gradients, optimiser state, every
    other tensor in the process that was made since `run_alone` was opened, and the stored samples that the method declares.

    Not counted: the images and batches, the output and loss of the last step, what observing plugins hold alone, and the tables
    of `nn.bits`, which a process makes once."""
    model, method = strategy.model, strategy.method
    own = [*model.parameters(), *model.buffers(), *tensors_in([dict(strategy.optimizer.state), method, method.guard])]
    alive = made_since()
    strays = [o for o in alive if issubclass(type(o), Tensor) and o.layout is torch.strided and o.device.type != "meta"]
    own += [p.grad for p in own if p.is_leaf and p.grad is not None]
    strays += [t.grad for t in strays if t.is_leaf and t.grad is not None]
    watched = [p for p in strategy.plugins if p is not method and p is not method.guard]
    passing = [t for o in alive if isinstance(o, TaskImages | Batches | Normalised) for t in vars(o).values()]
    passing += [TABLES, strategy.mbatch, strategy.mb_output, strategy.loss, *tensors_in(watched)]
    left_out = set(_storages(t for t in tensors_in(passing))) - set(_storages(own))
    counted = _storages([*own, *strays])
    return sum(n for place, n in counted.items() if place not in left_out) + method.memory_bytes


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
