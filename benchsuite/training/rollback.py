"""Back to an earlier moment of a training."""

from __future__ import annotations

from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

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
    """What these objects hold at this moment: attributes, containers, tensors and generators, however deep, images aside.

    A network's `state_dict` is not enough: a method keeps masks, gates and sums in attributes.
    """

    def __init__(self, *roots: Any) -> None:
        self._held: list[tuple[Any, Any]] = []  # containers with a copy of their items
        self._storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._generators: list[tuple[torch.Generator, Tensor]] = []
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
            return ()
        if isinstance(item, torch.Generator):
            self._generators.append((item, item.get_state()))
            return ()
        if isinstance(item, tuple | frozenset):
            return item
        if isinstance(item, dict):
            self._held.append((item, dict(item)))
            return [*item.keys(), *item.values()]
        if isinstance(item, list | set):
            self._held.append((item, type(item)(item) if type(item) in (list, set) else list(item)))
            return list(item)
        return [vars(item)] if hasattr(item, "__dict__") else ()

    def restore(self) -> None:
        for item, before in self._held:
            item.clear()
            item.extend(before) if isinstance(item, list) else item.update(before)
        for storage, before in self._storages.values():
            storage.copy_(before)
        for generator, state in self._generators:
            generator.set_state(state)
