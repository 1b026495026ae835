"""The one way in which entries of a trainable parameter are frozen."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from .normalisation import FirstTaskBatchNorm


class FrozenGuard(SupervisedPlugin):
    """Entries that keep their values bit for bit, whatever the optimiser does.

    A zero gradient does not freeze: momentum, weight decay and Adam's moments move a weight all the same. So the guard also
    writes the kept values back after every step. Every run has one, which acts after the method's own hooks; the heads of
    finished tasks are frozen through it for methods that forget nothing, and normalisation that belongs to the first task for
    all. What is no parameter needs no guard: no optimiser sees a buffer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.frozen: dict[str, tuple[Tensor, Tensor]] = {}  # parameter name: (True where frozen, the values to keep)

    @torch.no_grad()
    def freeze(self, name: str, where: Tensor | None = None) -> None:
        """From now on parameter `name` keeps its present values where `where` is True, and is free elsewhere. None: everywhere;
        then it gets no gradient at all, and leaves the optimiser's work."""
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

    def state(self) -> dict[str, tuple[Tensor, Tensor]]:
        return dict(self.frozen)

    def load_state(self, state: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.frozen = dict(state)
