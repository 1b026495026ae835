"""Small whole numbers packed into bytes without gaps, the lowest bits first. Fast enough for every training step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# One multiplication packs eight bytes of 0 or 1 into the bits of one byte: it shifts byte i to bit i of the highest byte.
_BITS = sum(1 << (56 - 7 * i) for i in range(8))
_PAIRS = sum(1 << (24 - 6 * i) for i in range(4))  # the same for four numbers below 4

TABLES: dict[tuple[int | str, torch.device], Tensor] = {}  # for the whole process, see `_table`


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack whole numbers below 2^bits, of any shape, into ceil(numel * bits / 8) bytes."""
    flat = values.reshape(-1)
    if bits == 8:
        return flat.to(torch.uint8, copy=True)
    if bits > 2:
        flat = flat.long() if bits > 8 else flat.to(torch.uint8)
        flat = (flat[:, None] >> torch.arange(bits, device=flat.device, dtype=flat.dtype)).bitwise_and_(1).flatten()
        bits = 1
    flat = flat.view(torch.uint8) if flat.element_size() == 1 else flat.to(torch.uint8)
    if missing := -len(flat) % (8 // bits):
        flat = F.pad(flat, (0, missing))
    if bits == 1:
        return ((flat.view(torch.int64) * _BITS) >> 56).to(torch.uint8)
    return ((flat.view(torch.int32) * _PAIRS) >> 24).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Unpack the result of `pack_bits` to int64 numbers of that shape."""
    if bits == 8:
        return packed.long().view(*shape)
    stream = unfold(packed, "bits", (math.prod(shape), bits))
    stream = stream.long() if bits > 8 else stream
    return (stream << torch.arange(bits, device=packed.device, dtype=stream.dtype)).sum(1).view(*shape)


def unfold(packed: Tensor, kind: int | str, shape: Sequence[int]) -> Tensor:
    """Unpack to uint8 0 or 1 of that shape, see `_table`."""
    if (kind, packed.device) not in TABLES:
        TABLES[kind, packed.device] = _table(kind, packed.device)
    flat = TABLES[kind, packed.device].index_select(0, packed.int()).view(torch.uint8)
    return flat[: math.prod(shape)].view(*shape)


def _table(kind: int | str, device: torch.device) -> Tensor:
    """Table (256,) of what each packed byte unpacks to: eight bytes as one int64.

    kind "bits": its eight bits. kind 0 or 1: for each of its four numbers below 4, a one-hot row of two pixels, the upper (0) or
    lower (1) row of a 2 x 2 window."""
    byte = torch.arange(256, device=device)[:, None]
    if kind == "bits":
        unfolded = (byte >> torch.arange(8, device=device)) & 1
    else:
        numbers = (byte >> torch.arange(0, 8, 2, device=device)) & 3
        unfolded = (numbers[:, :, None] == 2 * int(kind) + torch.arange(2, device=device)).flatten(1)
    return unfolded.to(torch.uint8).view(torch.int64).squeeze(1)
