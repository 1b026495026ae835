"""Storage forms: the tensors of an artifact in fewer bits.

fp32 is the artifact as it is. In fp16 every floating tensor is rounded to half precision. In int8, int6 and int4 a tensor of two
and more dimensions is stored as whole numbers with one scale for each unit (the output channel of a kernel, the class of a head,
the component of a factor: a slice along `Method.unit_axes`); in int4, for each group of 64 numbers of a unit, the last one
shorter. With b bits, Q = 2^(b-1) - 1 and M the largest magnitude of a slice, rounded up to fp16,

    step = M / Q in fp32,   q = round(x / step), half to even, between -Q and Q,   x ~ q step,

so that no number is off by more than half a step, and a slice of zeros stays zero. A tensor becomes one string of bytes: its
scales M in fp16, then q + Q with b bits each. Vectors, and slices of a single number, which a scale would make larger, are fp16
in every form but fp32. Integers and booleans (masks, indices, packed codes) stay as they are. A number that is not finite, or
too large for fp16, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import UserError
from ..nn.bits import pack_bits, unpack_bits
from ..record.schema import BITS

GROUP = 64  # numbers that share a scale in int4
LARGEST = torch.finfo(torch.float16).max

Axes = Mapping[str, int | tuple[int, ...]]  # by the last part of a tensor's name: the dimensions of its units, 0 where not named


def encode(tensors: Mapping[str, Tensor], form: str, axes: Axes) -> dict[str, Tensor]:
    """The tensors as a file holds them. Whole-number codes are uint8 and called <name>:<shape>.

    Raises UserError, with the tensor's name, for a number that the form cannot hold."""
    stored = {}
    for name, tensor in tensors.items():
        if ":" in name:
            raise ValueError(f"artifact tensor {name!r} must have no ':' in its name")
        if not tensor.is_floating_point():
            stored[name] = tensor
            continue
        if not (tensor.abs() <= LARGEST).all():
            raise UserError(f"{name} holds numbers that are not finite or above {LARGEST:.0f}, so it cannot be stored in {form}")
        own = _axes_of(name, axes)
        units = _units(tensor.shape, own) if tensor.dim() > 1 else tensor.numel()
        if form == "fp16" or tensor.numel() <= units:
            stored[name] = tensor.detach().to(torch.float16)
        else:
            stored[f"{name}:{'x'.join(map(str, tensor.shape))}"] = _to_codes(tensor.detach(), BITS[form], own)
    return stored


def decode(stored: Mapping[str, Tensor], form: str, axes: Axes) -> dict[str, Tensor]:
    """The tensors that `encode` stored, floating ones in the default precision."""
    tensors, bits = {}, BITS[form]
    for key, tensor in stored.items():
        name, _, shape = key.partition(":")
        if shape:
            tensors[name] = _from_codes(tensor, bits, [int(n) for n in shape.split("x")], _axes_of(name, axes))
        else:
            tensors[name] = tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float16 else tensor
    return tensors


def _axes_of(name: str, axes: Axes) -> tuple[int, ...]:
    found = axes.get(name.rpartition("/")[2].rpartition(".")[2], 0)
    return (found,) if isinstance(found, int) else tuple(found)


def _units(shape: torch.Size | list[int], axes: tuple[int, ...]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _groups(rows: Tensor, bits: int) -> Tensor:
    """Rows (units, numbers) as (scales, numbers that share one), zeros where the last group of a unit is shorter."""
    if bits > 4 or rows.shape[1] <= GROUP:
        return rows
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP)).reshape(-1, GROUP)


def _steps(scales: Tensor, bits: int) -> Tensor:
    return scales.float() / (2 ** (bits - 1) - 1)


def quantised(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales M (n,) in fp16 and whole numbers q (n, numbers) between -Q and Q of rows (n, numbers), one scale for each row."""
    most = 2 ** (bits - 1) - 1
    largest = rows.abs().amax(1)
    scales = largest.to(torch.float16)
    scales = (scales.view(torch.int16) + (scales < largest).short()).view(torch.float16)  # + 1: the next number of fp16
    steps = _steps(scales, bits).to(rows.dtype)[:, None]
    return scales, torch.where(steps > 0, rows / steps, 0).round().clamp(-most, most)


def restored(scales: Tensor, q: Tensor, bits: int) -> Tensor:
    """The rows (n, numbers) that `quantised` rounded, in fp32."""
    return q.float() * _steps(scales, bits)[:, None]


def _to_codes(tensor: Tensor, bits: int, axes: tuple[int, ...]) -> Tensor:
    rows = tensor.movedim(axes, tuple(range(len(axes)))).reshape(_units(tensor.shape, axes), -1)
    scales, q = quantised(_groups(rows, bits), bits)
    q = (q + 2 ** (bits - 1) - 1).to(torch.uint8).view(len(rows), -1)[:, : rows.shape[1]]
    return torch.cat([scales.view(torch.uint8), pack_bits(q, bits)])


def _from_codes(codes: Tensor, bits: int, shape: list[int], axes: tuple[int, ...]) -> Tensor:
    units = _units(shape, axes)
    numbers = math.prod(shape) // units
    shared = min(numbers, GROUP) if bits <= 4 else numbers
    count = units * -(-numbers // shared)
    scales = codes[: 2 * count].clone().view(torch.float16)
    q = unpack_bits(codes[2 * count :], bits, (units, numbers)) - (2 ** (bits - 1) - 1)
    rows = restored(scales, _groups(q, bits), bits).view(units, -1)[:, :numbers].to(torch.get_default_dtype())
    moved = [shape[axis] for axis in axes] + [n for axis, n in enumerate(shape) if axis not in axes]
    return rows.reshape(moved).movedim(tuple(range(len(axes))), axes).contiguous()
