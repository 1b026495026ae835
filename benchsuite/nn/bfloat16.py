"""Convolutions in bf16 on a CPU without bf16 arithmetic.

PyTorch's bf16 kernels are about ten times slower there than its fp32 kernels. Here forward and backward convolutions are computed
in fp32 on the rounded operands, and the result is rounded: the same as on a processor with bf16 products and fp32 sums, up to the
order of summation, and about as fast as fp32. Tensors kept for the backward pass stay bf16. The measured
peak memory of a step leaves the fp32 copies out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_library: Any = None  # PyTorch's registration, while installed


def native() -> bool:
    """Whether this CPU has fast bf16 convolutions."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def install() -> None:
    """Compute convolutions of bf16 CPU tensors this way in this process; all others are unchanged."""
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
    """PyTorch's own kernel on fp32 copies of bf16 operands."""
    wide = (a.float() if isinstance(a, Tensor) and a.dtype == torch.bfloat16 else a for a in args)
    return operation._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *wide)
