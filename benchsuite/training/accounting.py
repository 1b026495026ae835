"""The costs of a run: multiply-accumulates of the served model, bytes of training state, memory of a training step.

Stored bytes are the size of the artifact's file (`benchsuite.method.artifact`).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from avalanche.benchmarks.utils.data import AvalancheDataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from ..nn.bits import TABLES
from .batches import Batches, TaskImages
from .stream import Normalised

Place = tuple[torch.device, int]  # of a storage


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
    return sum(storages(tensors).values())


def storages(tensors: Iterable[Tensor]) -> dict[Place, int]:
    return {(t.device, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() for t in tensors}


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterable[Tensor]:
    """Every tensor in nested containers, in networks and in the attributes of objects, except in data sets."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, type | ModuleType | Dataset | AvalancheDataset):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in list(value.values()):  # another thread may hold it, too
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
    """Bytes of `between_steps`, and of the stored samples that the method declares."""
    return sum(between_steps(strategy)[0].values()) + strategy.method.memory_bytes


def between_steps(strategy: Any) -> tuple[dict[Place, int], dict[Place, int]]:
    """The storages that training holds between two steps, whoever holds them, with their bytes: parameters, buffers, gradients,
    optimiser state, and every other tensor in the process that was made since `run_alone` was opened.

    The second part is not counted: the images and batches, the output and loss of the last step, what observing plugins hold
    alone, and the tables of `nn.bits`, which a process makes once."""
    model, method = strategy.model, strategy.method
    own = [*model.parameters(), *model.buffers(), *tensors_in([dict(strategy.optimizer.state), method, method.guard])]
    alive = made_since()
    strays = [o for o in alive if issubclass(type(o), Tensor) and o.layout is torch.strided and o.device.type != "meta"]
    own += [p.grad for p in own if p.is_leaf and p.grad is not None]
    strays += [t.grad for t in strays if t.is_leaf and t.grad is not None]
    watched = [p for p in strategy.plugins if p is not method and p is not method.guard]
    passing = [t for o in alive if isinstance(o, TaskImages | Batches | Normalised) for t in vars(o).values()]
    passing += [TABLES, strategy.mbatch, strategy.mb_output, strategy.loss, *tensors_in(watched)]
    needed = storages(own)
    left_out = {place: n for place, n in storages(tensors_in(passing)).items() if place not in needed}
    return {place: n for place, n in storages([*own, *strays]).items() if place not in left_out}, left_out


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


class Allocated(TorchDispatchMode):
    """Context that follows the tensors which operations return, from below autograd: bytes alive now and at most.

    `peak` is relative to the start. Scratch space within one operation is not seen, so the numbers are the same for every
    processor and allocator, and for bf16 whether it is computed in bf16 or emulated in fp32 (`nn.bfloat16`)."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        """before: tensors that exist already and may be freed meanwhile."""
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[weakref.ref[Any], int] = {}
        for tensor in before:
            self._follow(tensor)
        self.live = 0

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = weakref.ref(storage, self._freed)
        if reference not in self._known:
            self._known[reference] = storage.nbytes()
            self.live += storage.nbytes()

    def _freed(self, reference: weakref.ref[Any]) -> None:
        self.live -= self._known.pop(reference)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        self.peak = max(self.peak, self.live)
        return out


class StepMemory:
    """Memory of one training step, measured while it is open.

    inputs: bytes that `LayerInputs` counts from `start_of_forward` to `end_of_forward`.
    held: bytes that autograd stores for the backward pass, without parameters and buffers, each storage once.
    peak: the most bytes of tensors alive at any moment beyond those at the start of the step (`Allocated`).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: dict[int, int] = {}
        self._hooked = False
        self.inputs = self.held = self.peak = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage.data_ptr()] = storage.nbytes()
        with _disable_current_modes():  # the tensor itself would hold its own graph, for ever if nothing goes backward through it
            return tensor.detach()

    def open(self, *before: Tensor | None) -> None:
        """before: tensors of the last step that this one replaces, besides gradients."""
        gradients = [p.grad for p in self._model.parameters()]
        self._allocated = Allocated(t for t in [*gradients, *before] if t is not None)
        self._allocated.__enter__()

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
        self._allocated.__exit__(None, None, None)
        self.peak = self._allocated.peak
