"""Back to an earlier moment of a training."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data import AvalancheDataset
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor
from torch.utils.data import Dataset

from .batches import Batches, TaskImages

FIXED = (
    *(type, FunctionType, BuiltinFunctionType, MethodType, ModuleType),
    *(SupervisedTemplate, Dataset, AvalancheDataset, TaskImages, Batches),
)


class Rollback:
    """What these objects hold at this moment: attributes, containers, tensors, arrays and generators, however deep, images and
    iterators aside.

    A network's `state_dict` is not enough: a method keeps masks, gates and sums in attributes, and its plugin anything.
    """

    def __init__(self, *roots: Any) -> None:
        self._held: list[tuple[Any, Any]] = []  # containers with a copy of their items
        self._storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._data: list[tuple[Tensor, Tensor]] = []
        self._states: list[tuple[Callable[[Any], Any], Any]] = []
        seen: dict[int, Any] = {}  # kept alive here, so that no id is given away twice
        waiting = list(roots)
        while waiting:
            item = waiting.pop()
            if id(item) in seen or isinstance(item, FIXED):
                continue
            seen[id(item)] = item
            waiting += self._keep(item)

    def _keep(self, item: Any) -> Iterable[Any]:
        """Copy one object. Returns what it refers to."""
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            if storage.nbytes() and item.device.type != "meta" and storage.data_ptr() not in self._storages:
                self._storages[storage.data_ptr()] = storage, storage.clone()
            self._data.append((item, item.detach()))
            return ()
        if isinstance(item, np.ndarray):
            if item.flags.writeable:
                self._states.append((partial(np.copyto, item), item.copy()))
            return item.ravel().tolist() if item.dtype.hasobject else ()
        if isinstance(item, torch.Generator | np.random.RandomState):
            self._states.append((item.set_state, item.get_state()))
            return ()
        if isinstance(item, random.Random):
            self._states.append((item.setstate, item.getstate()))
        if isinstance(item, np.random.Generator):
            item = item.bit_generator
        if isinstance(item, np.random.BitGenerator):
            self._states.append((partial(setattr, item, "state"), item.state))
            return ()
        if isinstance(item, tuple | frozenset):
            return item
        if isinstance(item, dict):
            self._held.append((item, dict(item)))
            return [*item.keys(), *item.values()]
        if isinstance(item, list | set | deque):
            self._held.append((item, type(item)(item) if type(item) in (list, set) else list(item)))
            return list(item)
        slots = [(name,) if isinstance(name := getattr(cls, "__slots__", ()), str) else name for cls in type(item).__mro__]
        found = {name: getattr(item, name) for names in slots for name in names if name[:2] != "__" and hasattr(item, name)}
        self._states += [(partial(_set, item, name), value) for name, value in found.items()]
        return [*found.values(), *([vars(item)] if hasattr(item, "__dict__") else ())]

    def restore(self) -> None:
        for item, before in self._held:
            item.clear()
            item.extend(before) if isinstance(item, list | deque) else item.update(before)
        for tensor, data in self._data:
            if (tensor.data_ptr(), tensor.shape) != (data.data_ptr(), data.shape):
                tensor.data = data
        for storage, before in self._storages.values():
            storage.copy_(before)
        for back, state in self._states:
            back(state)


def _set(item: Any, name: str, value: Any) -> None:
    if getattr(item, name, None) is not value:
        setattr(item, name, value)
