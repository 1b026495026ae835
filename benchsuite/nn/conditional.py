"""Modules that compute differently for each task, and how they take the place of plain ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

Old = TypeVar("Old", bound=nn.Module)
New = TypeVar("New", bound=nn.Module)


class TaskConditional(nn.Module):
    """A module whose weights or gates depend on the task. `MultiHead` tells it the task before it is used."""

    def set_task(self, task: int) -> None:
        """Compute with the weights of this task from now on."""
        raise NotImplementedError(f"{type(self).__name__} must say what changes with the task")

    def add_task(self, task: int, seed: int) -> None:
        """Make room for a task that is met for the first time; what is drawn comes from `seed` and the task alone."""


def outermost(module: nn.Module) -> Iterator[TaskConditional]:
    """The task-conditional modules that no other one contains: each tells its own parts what they must know."""
    if isinstance(module, TaskConditional):
        yield module
        return
    for child in module.children():
        yield from outermost(child)


def replace_modules(network: nn.Module, kind: type[Old], make: Callable[[str, Old], New]) -> dict[str, New]:
    """Replace every module of `kind` inside `network` by make(name, module); returns the new ones by name."""
    new = {name: make(name, module) for name, module in network.named_modules() if isinstance(module, kind)}
    for name, module in new.items():
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, module)
    return new


def shared_parameters(backbone: nn.Module) -> dict[str, Tensor]:
    """The parameters of a dense backbone that every task uses, by name: those of task-conditional modules are left out."""
    own = [f"{name}." for name, module in backbone.named_modules() if isinstance(module, TaskConditional)]
    return {name: p for name, p in backbone.named_parameters() if not name.startswith(tuple(own))}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode meanwhile, and then as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
