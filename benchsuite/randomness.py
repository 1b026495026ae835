"""One integer seed, from which each purpose gets an independent generator. No global generator is used.

Purposes: "init" (per task and layer), "batches", "augmentation", "dropout", "holdout", "individual", "method". A protocol has
its own for the order of tasks. A generator is created at the start of what it serves (a task, an epoch), so nothing depends on
earlier random numbers: evaluation cannot shift them, and a resumed run draws the same numbers as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose."""
    return int.from_bytes(hashlib.sha256(repr((seed, *purpose)).encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))


GLOBALS: dict[str, Callable[[int], object]] = {
    "Python's": random.seed,
    "NumPy's": lambda value: np.random.seed(value % 2**32),  # noqa: NPY002
    "PyTorch's": torch.manual_seed,
}

_other: set[str] = set()


def seed_globals(seed: int, *purpose: object) -> None:
    """Seed the global generators. This package never uses them, but plugins of others may."""
    _seed_globals(derive(seed, "global", *purpose), _other)


def _seed_globals(value: int, other: Collection[str] = ()) -> None:
    for name, seed in GLOBALS.items():
        seed(value + (name in other))


@contextmanager
def other_globals(names: Iterable[str]) -> Iterator[None]:
    """Context in which `seed_globals` seeds these of `GLOBALS` with another value. Only what draws from them notices."""
    _other.update(names)
    try:
        yield
    finally:
        _other.clear()


@contextmanager
def globals_kept() -> Iterator[None]:
    """Context after which the global generators, those of GPUs in use included, are where they were."""
    cuda = torch.cuda.is_initialized()
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    gpus = torch.cuda.get_rng_state_all() if cuda else []
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
        if cuda:
            torch.cuda.set_rng_state_all(gpus)


@contextmanager
def seeded(seed: int, *purpose: object) -> Iterator[None]:
    """Context in which the global generators are seeded for `purpose`; afterwards their state is restored."""
    with globals_kept():
        _seed_globals(derive(seed, "global", *purpose))
        yield
