"""Freezing entries of trainable parameters."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from .normalisation import FirstTaskBatchNorm


class FrozenGuard(SupervisedPlugin):
    """Keeps the values of frozen entries bit for bit, whatever the optimiser does.

    A zero gradient does not freeze a weight: momentum, weight decay and Adam's moments still change it. So the guard also
    restores the frozen values after every step. Every run has one guard, which acts after the method's own hooks. It
    freezes the heads of finished tasks for methods that forget nothing, and the normalisation that belongs to the first task
    for all methods. Buffers need no guard, because no optimiser changes them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.frozen: dict[str, tuple[Tensor, Tensor]] = {}  # by parameter: (True where frozen, the frozen values)

    @torch.no_grad()
    def freeze(self, name: str, where: Tensor | None = None) -> None:
        """Freeze parameter `name` at its present values where `where` is True; the others are free. None freezes all of it: it
        then gets no gradient at all, and the optimiser skips it."""
        parameter = self.model.get_parameter(name)
        self.frozen.pop(name, None)
        parameter.requires_grad_(where is not None)
        if where is None:
            parameter.grad = None
        elif where.any():
            self.frozen[name] = (where.expand_as(parameter).clone(), parameter.detach().clone())

    @torch.no_grad()
    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        for name, (where, _) in self.frozen.items():
            gradient = self.model.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(where, 0)

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        for name, (where, kept) in self.frozen.items():
            parameter = self.model.get_parameter(name)
            torch.where(where, kept, parameter, out=parameter)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, FirstTaskBatchNorm):
                self.freeze(f"{name}.norm.weight")
                self.freeze(f"{name}.norm.bias")
        if strategy.method.forgetting == "none":
            for task in strategy.experience.task_labels:
                for name, _ in self.model.heads[str(task)].named_parameters():
                    self.freeze(f"heads.{task}.{name}")

    def state(self) -> dict[str, Tensor | None]:
        """Where each parameter is frozen, None for everywhere. The values are the network's own."""
        return {name: None if where.all() else where for name, (where, _) in self.frozen.items()}

    def load_state(self, state: dict[str, Tensor | None]) -> None:
        """Freeze these entries at the network's present values."""
        for name, where in state.items():
            everywhere = torch.ones((), dtype=torch.bool, device=self.model.get_parameter(name).device)
            self.freeze(name, everywhere if where is None else where)
