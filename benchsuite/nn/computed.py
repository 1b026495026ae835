"""Images that networks compute, counted where a backbone is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_open: Images | None = None  # what counts now


class Images:
    """Images computed while `counting` is open: forward, those that went through a backbone; backward, those whose features
    passed a gradient on to it, once for each backward pass.

    Under `torch.func` the images of all lanes count. What a backward pass computes again (activation checkpointing) does not.
    """

    def __init__(self) -> None:
        self.forward = self.backward = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        with _counted_by(self):
            yield

    def see(self, features: Tensor) -> None:
        """Count the pass that gave these features (B, F)."""
        each = features.shape[1:].numel()
        self.forward += _elements(features) // each

        def passed(gradient: Tensor) -> None:
            self.backward += _elements(gradient) // each

        if features.requires_grad:
            features.register_hook(passed)


@contextmanager
def uncounted() -> Iterator[None]:
    """What is computed while this is open belongs to nobody's count: evaluations, measurements."""
    with _counted_by(None):
        yield


@contextmanager
def _counted_by(images: Images | None) -> Iterator[None]:
    global _open
    before, _open = _open, images
    try:
        yield
    finally:
        _open = before


def observe(backbone: nn.Module) -> RemovableHandle:
    """Count the calls of a backbone from now on, and of its copies. Returns the handle that ends it."""
    return backbone.register_forward_hook(_called)


def _called(backbone: nn.Module, given: Any, features: Any) -> None:
    if _open is not None and isinstance(features, Tensor):
        _open.see(features)


def _elements(x: Tensor) -> int:
    """Of a tensor with all the lanes that `torch.func.vmap` hides."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.numel()
