"""Modules that compute differently for each task, and functions that install them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

Old = TypeVar("Old", bound=nn.Module)
New = TypeVar("New", bound=nn.Module)


class TaskConditional(nn.Module):
    """A module whose weights or gates depend on the task. `MultiHead` sets the task before each use."""

    def set_task(self, task: int) -> None:
        """Compute with the weights of this task from now on."""
        raise NotImplementedError(f"{type(self).__name__} must say what changes with the task")

    def add_task(self, task: int, seed: int) -> None:
        """Add a new task. Random numbers depend only on `seed` and the task."""


def outermost(module: nn.Module) -> Iterator[TaskConditional]:
    """The task-conditional modules not contained in another one. Each passes the task on to its own parts."""
    if isinstance(module, TaskConditional):
        yield module
        return
    for child in module.children():
        yield from outermost(child)


def replace_modules(network: nn.Module, kind: type[Old], make: Callable[[str, Old], New]) -> dict[str, New]:
    """Replace every module of `kind` inside `network` by make(name, module). Returns the new modules by name."""
    new = {name: make(name, module) for name, module in network.named_modules() if isinstance(module, kind)}
    for name, module in new.items():
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, module)
    return new


def shared_parameters(backbone: nn.Module) -> dict[str, Tensor]:
    """The parameters of a dense backbone that all tasks use, by name, without those of task-conditional modules."""
    own = [f"{name}." for name, module in backbone.named_modules() if isinstance(module, TaskConditional)]
    return {name: p for name, p in backbone.named_parameters() if not name.startswith(tuple(own))}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in evaluation mode; the previous modes are restored at the end."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
