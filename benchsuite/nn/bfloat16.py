"""Convolutions in bf16 on a CPU without bf16 arithmetic.

PyTorch's kernels take some ten times as long there as those of fp32. Here they are computed in fp32 on the same rounded operands
and the result is rounded, forwards and backwards: what a processor with bf16 products and fp32 sums does, up to the order of the
sums, about as fast as fp32. What is kept for the backward pass stays bf16; the peak of a step holds the fp32 copies of one layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_library: Any = None  # while installed, what PyTorch's dispatcher knows of it


def native() -> bool:
    """Whether this CPU's bf16 convolutions are quick by themselves."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def install() -> None:
    """From now on, in this process, convolutions of bf16 tensors on the CPU are computed this way; all others as ever."""
    global _library
    if _library is None:
        _library = torch.library.Library("aten", "IMPL")
        _library.impl("convolution", _convolution, "CPU")
        _library.impl("convolution_backward", _convolution_backward, "CPU")


def uninstall() -> None:
    global _library
    if _library is not None:
        _library._destroy()
        _library = None


def _convolution(x: Tensor, *args: Any) -> Tensor:
    return _plain(torch.ops.aten.convolution.default, x, *args).to(x.dtype)


def _convolution_backward(g: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
    found = _plain(torch.ops.aten.convolution_backward.default, g, *args)
    return tuple(t if t is None else t.to(g.dtype) for t in found)


def _plain(operation: Any, *args: Any) -> Any:
    """PyTorch's own kernel, which the dispatcher would reach without us, on fp32 copies of bf16 operands."""
    wide = (a.float() if isinstance(a, Tensor) and a.dtype == torch.bfloat16 else a for a in args)
    return operation._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *wide)
