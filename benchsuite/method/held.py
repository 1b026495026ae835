"""What an Avalanche plugin holds, in the forms that a checkpoint can store, and back.

Tensors, numbers, text and containers of them are stored as they are. Stored samples are data sets: of each image the task and the
position among its training images are kept. A copy of the network is stored as its weights. An object is stored by its attributes
if a new plugin has one of the same class in the same place, or if it is of one of Avalanche's few kinds (`KINDS`). A checkpoint
names no other class, so reading one runs no code.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data import AvalancheDataset
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training import storage_policy
from avalanche.training.utils import ParamData
from torch import Tensor, nn

from .replay import image_bytes

KINDS = {
    kind.__name__: kind
    for kind in (
        ParamData,
        storage_policy.ReservoirSamplingBuffer,
        storage_policy.ExperienceBalancedBuffer,
        storage_policy.ClassBalancedBuffer,
    )
}
FUNCTIONS: dict[str, Any] = {"zeros": torch.zeros, "ones": torch.ones}  # that `ParamData` fills itself with


def pack(name: str, value: Any, fresh: Any, network: nn.Module, stream: Sequence[Any]) -> Any:
    """`value` as a checkpoint can store it. Raises TypeError with its name for what none can.

    fresh: what a new plugin has in this place. network, stream: of the run."""
    inside = lambda what, part, new: pack(f"{name}{what}", part, new, network, stream)  # noqa: E731
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (bool, int, float, str, type(None)):
        return value
    if value is network:
        return ("itself",)
    if isinstance(value, nn.Module) and type(value) is type(network):
        weights, known = value.state_dict(), network.state_dict()
        if {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in known.items()}:
            frozen = [k for k, p in value.named_parameters() if not p.requires_grad]
            draws = {place: g.get_state().numpy().tobytes().hex() for place, g in _generators(value).items()}
            return ("copy", weights, value.training, frozen, draws)
    if isinstance(value, AvalancheDataset):
        places = list(_places(value, stream))
        if None in places:
            raise TypeError(f"{name} holds images of its own, which no checkpoint can hold")
        return ("images", places)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return ("array", torch.from_numpy(value.copy()))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Size | torch.device):
        return (type(value).__name__, [*value] if isinstance(value, torch.Size) else str(value))
    if type(value) in (list, tuple, set):
        others: Any = fresh if isinstance(fresh, list | tuple) else ()
        parts = [inside(f"[{i}]", part, others[i] if i < len(others) else None) for i, part in enumerate(value)]
        return (type(value).__name__, parts)
    if isinstance(value, dict) and type(value) in (dict, OrderedDict, type(fresh)):
        others = fresh if isinstance(fresh, dict) else {}
        return ("dict", [(inside(" key", k, None), inside(f"[{k!r}]", v, others.get(k))) for k, v in value.items()])
    if value is fresh or any(value is function for function in FUNCTIONS.values()):
        return ("same", getattr(value, "__name__", ""))  # a function, a logger: a new plugin has the same one
    if hasattr(value, "__dict__") and (type(value) is type(fresh) or type(value) is KINDS.get(type(value).__name__)):
        return ("object", type(value).__name__, {k: inside(f".{k}", v, getattr(fresh, k, None)) for k, v in vars(value).items()})
    raise TypeError(f"{name} is a {type(value).__name__}, which no checkpoint can hold")


def unpack(packed: Any, fresh: Any, network: nn.Module, stream: Sequence[Any]) -> Any:
    """What `pack` stored."""
    if not isinstance(packed, tuple):
        return packed
    kind, *content = packed
    if kind == "itself":
        return network
    if kind == "copy":
        weights, training, frozen, draws = content
        other = copy.deepcopy(network).train(training)
        other.zero_grad(set_to_none=True)  # a copy has its gradients, too
        other.load_state_dict(weights)
        for name, parameter in other.named_parameters():
            parameter.requires_grad_(name not in frozen)
        for place, generator in _generators(other).items():
            generator.set_state(torch.frombuffer(bytearray.fromhex(draws[place]), dtype=torch.uint8))
        return other
    if kind == "images":
        return _dataset(content[0], stream)
    if kind == "array":
        return content[0].numpy()
    if kind in ("Size", "device"):
        return torch.Size(content[0]) if kind == "Size" else torch.device(content[0])
    if kind in ("list", "tuple", "set"):
        others: Any = fresh if isinstance(fresh, list | tuple) else ()
        parts = [unpack(part, others[i] if i < len(others) else None, network, stream) for i, part in enumerate(content[0])]
        return {"list": list, "tuple": tuple, "set": set}[kind](parts)
    if kind == "dict":
        others = fresh if isinstance(fresh, dict) else {}
        pairs = [(unpack(k, None, network, stream), v) for k, v in content[0]]
        made = {k: unpack(v, others.get(k), network, stream) for k, v in pairs}
        if isinstance(fresh, dict):  # perhaps one with a default
            fresh.clear()
            fresh.update(made)
            return fresh
        return made
    if kind == "same":
        return FUNCTIONS[content[0]] if fresh is None else fresh
    name, parts = content
    made = fresh if type(fresh).__name__ == name else KINDS[name].__new__(KINDS[name])
    for key, part in parts.items():
        setattr(made, key, unpack(part, getattr(made, key, None), network, stream))
    return made


def _generators(network: nn.Module) -> dict[str, torch.Generator]:
    """The random generators of its modules, as dropout has one, by module and attribute."""
    holders = network.named_modules()
    return {f"{m}.{k}": v for m, module in holders for k, v in vars(module).items() if isinstance(v, torch.Generator)}


def stored_bytes(value: Any, stream: Sequence[Any]) -> int:
    """Bytes of the samples in every data set that a plugin holds, one byte a channel and pixel, each image once."""
    largest, places, elsewhere = max(map(image_bytes, stream)), set(), 0
    for dataset in _datasets_in(value, set()):
        for place in _places(dataset, stream):
            if place is None:
                elsewhere += largest
            else:
                places.add(place)
    return elsewhere + sum(image_bytes(stream[task]) for task, _ in places)


def _datasets_in(value: Any, seen: set[int]) -> Iterator[AvalancheDataset]:
    """The data sets in containers and in the attributes of objects, except in networks."""
    if id(value) in seen or isinstance(value, type | ModuleType | nn.Module | Tensor):
        return
    seen.add(id(value))
    if isinstance(value, AvalancheDataset):
        yield value
    elif isinstance(value, dict):
        for item in list(value.values()):
            yield from _datasets_in(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _datasets_in(item, seen)
    elif hasattr(value, "__dict__"):
        yield from _datasets_in(vars(value), seen)


def _places(dataset: Any, stream: Sequence[Any]) -> Iterator[tuple[int, int] | None]:
    """For each sample its task and its position among the task's training images; None where it comes from elsewhere."""
    tasks = {id(experience.images): task for task, experience in enumerate(stream)}
    for i in range(len(dataset)):
        data: Any = dataset
        while parts := getattr(data := getattr(data, "_flat_data", data), "_datasets", None):
            i = i if data._indices is None else int(data._indices[i])
            for data in parts:
                if i < len(data):
                    break
                i -= len(data)
        task = tasks.get(id(getattr(data, "images", None)))
        yield None if task is None else (task, i)


def _dataset(places: Sequence[tuple[int, int]], stream: Sequence[Any]) -> Any:
    tasks = sorted({task for task, _ in places})
    starts, total = {}, 0
    for task in tasks:
        starts[task], total = total, total + len(stream[task].dataset)
    if not places:
        return concat_datasets([])
    return concat_datasets([stream[task].dataset for task in tasks]).subset([starts[task] + i for task, i in places])
