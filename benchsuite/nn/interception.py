"""Lets a modifier act on the layers of a network while a training pass runs through it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import compressed
from .compressed import Decomposed, Geometry, Kept
from .conditional import evaluating
from .modifiers import Modifier
from .multihead import MultiHead


class Read(NamedTuple):
    """What a layer has read and stored in a pass."""

    map: weakref.ref[Tensor]
    version: int  # of the activations, which may be changed in place later
    shape: torch.Size  # as the layer read it, possibly padded
    layer: int
    linear: bool
    learns: bool
    counted: bool  # in the formula
    kept: Kept | None


class Interception(TorchFunctionMode):
    """Lets a modifier act on the layers of a network in its training passes."""

    def __init__(self, modifier: Modifier, model: MultiHead) -> None:
        super().__init__()
        self.modifier = modifier
        self.bytes = 0  # the paper's formula: stored inputs of the compressed layers, summed until reset
        self._first: int | None = 0 if modifier.compressed == "all" else None  # of the compressed layers
        self._inside = self._counting = False
        self._reads: list[Read] = []  # in this pass
        self._layers = 0
        model.register_forward_pre_hook(self._enter, with_kwargs=True)
        model.register_forward_hook(self._leave, always_call=True)

    def begin_task(self, model: nn.Module, task: int) -> None:
        self._first = 0 if self.modifier.compressed == "all" else None
        self.modifier.begin_task(model, task)

    def _enter(self, model: nn.Module, given: Any, named: Any) -> None:
        if self._inside or not (model.training and torch.is_grad_enabled()):
            return
        if self._first is None:
            last = int(self.modifier.compressed.partition(":")[2])
            self._first = max(0, self._count(model, given, named) - last) if last else sys.maxsize
        self._inside, self._layers, self._reads = True, 0, []
        self.__enter__()

    def _leave(self, model: nn.Module, given: Any, out: Any) -> None:
        if self._inside and not self._counting:
            self.__exit__(None, None, None)
            self._inside, self._reads = False, []

    def _count(self, model: nn.Module, given: Any, named: Any) -> int:
        """The number of layers in a forward pass, counted by a pass that changes nothing."""
        self._inside = self._counting = True
        self._layers, self._reads = 0, []
        try:
            with evaluating(model), torch.no_grad(), self:
                model(*given, **named)
        finally:
            self._inside = self._counting = False
        return self._layers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None or not (self._counting or torch.is_grad_enabled()):
            return func(*args, **(kwargs or {}))
        return handler(self, partial(func, *args, **(kwargs or {})), *args, **(kwargs or {}))

    def _kept(self, given: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        """What to store of x, which comes from a layer's input `given`. Linear layers with the same input (heads) are one."""
        now, linear = given._version, geometry is None
        reads = [read for read in self._reads if read.version == now and read.map() is given]
        heads = [read.layer for read in reads if read.linear and linear]
        layer = heads[0] if heads else self._layers
        self._layers += not heads
        alike = [read for read in reads if read.learns and read.shape == x.shape]
        shared = [read for read in alike if self.modifier.by_input or (read.linear and linear)]
        compressed, learns = not self._counting and self._first is not None and layer >= self._first, weight.requires_grad
        kept: Kept | None = None
        if not learns:
            if compressed and not linear:  # a plain convolution would still store its input
                kept = Decomposed(x.new_empty(0), ())
        elif shared:
            kept = shared[0].kept
        elif compressed:
            with torch.autocast(x.device.type, enabled=False):  # stored tensors may be bfloat16, their decomposition is not
                kept = self.modifier.keep(x.detach(), layer, weight.detach(), geometry)
        counted = learns and compressed
        if counted and not any(read.counted for read in shared):
            self.bytes += x.numel() * x.element_size() if kept is None else kept.nbytes
        self._reads.append(Read(weakref.ref(given), now, x.shape, layer, linear, learns, counted, kept))
        return kept

    def conv2d(
        self,
        plain: Callable[[], Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if input.dim() != 4:
            return plain()
        stride, dilation = pair(stride), pair(dilation)
        x, weight, bias = lowered(input, weight, bias)
        if isinstance(padding, str):
            spare = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if any(n % 2 for n in spare):
                x, spare = F.pad(x, [n for m in reversed(spare) for n in (m // 2, m - m // 2)]), [0, 0]
            padding = [n // 2 for n in spare]
        geometry = (stride, pair(padding), dilation, groups)
        kept = self._kept(input, x, weight, geometry)
        return plain() if kept is None else kept.conv2d(x, weight, bias, geometry)

    def linear(self, plain: Callable[[], Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if input.dim() < 2:
            return plain()
        x, weight, bias = lowered(input, weight, bias)
        kept = self._kept(input, x, weight, None)
        return plain() if kept is None else kept.linear(x, weight, bias)

    def relu_(self, plain: Callable[[], Tensor], input: Tensor, inplace: bool = False) -> Tensor:
        return compressed.MaskedReLU.apply(input, inplace) if self._exact(input) else plain()

    def relu_in_place(self, plain: Callable[[], Tensor], input: Tensor) -> Tensor:
        return self.relu_(plain, input, inplace=True)

    def max_pool2d(
        self,
        plain: Callable[[], Tensor],
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        usual = [pair(kernel_size), pair(stride or kernel_size), pair(padding), pair(dilation)] == [
            (2, 2),
            (2, 2),
            (0, 0),
            (1, 1),
        ]
        if not usual or ceil_mode or return_indices or input.dim() != 4 or not self._exact(input):
            return plain()
        return compressed.CodedMaxPool2d.apply(input)

    def avg_pool2d(
        self,
        plain: Callable[[], Tensor],
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        if pair(padding) != (0, 0) or ceil_mode or divisor_override or input.dim() != 4 or not self._exact(input):
            return plain()
        return compressed.SizedAvgPool2d.apply(input, pair(kernel_size), pair(stride or kernel_size))

    def _exact(self, x: Tensor) -> bool:
        return self.modifier.relu == "mask" and not self._counting and x.requires_grad


_HANDLERS: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: Interception.conv2d,
    F.linear: Interception.linear,
    F.relu: Interception.relu_,
    torch.relu: Interception.relu_,
    Tensor.relu: Interception.relu_,
    torch.relu_: Interception.relu_in_place,
    Tensor.relu_: Interception.relu_in_place,
    F.max_pool2d: Interception.max_pool2d,
    F.avg_pool2d: Interception.avg_pool2d,
}


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) if len(value) == 2 else (value[0], value[0])


def lowered(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as by autocast: a layer that computes in bfloat16 stores bfloat16."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
