"""From uint8 images to network inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..protocol import Orientation


def pad_images(pixels: Tensor, pad: int) -> Tensor:
    """A zero border of `pad` pixels around images (N, H, W, C)."""
    return F.pad(pixels, (0, 0, pad, pad, pad, pad)) if pad else pixels


def lay_out(pixels: Tensor, pad: int, orientation: Orientation) -> Tensor:
    """Images (N, H, W, C) with a zero border of `pad` pixels, then turned counterclockwise, or with rows and columns swapped.
    These operations are exact."""
    pixels = pad_images(pixels, pad)
    if orientation == "transposed":
        return pixels.transpose(1, 2).contiguous()
    return pixels if orientation == "upright" else pixels.rot90(int(orientation) // 90, (1, 2)).contiguous()


def normalise(
    pixels: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """(pixel / 255 - mean) / std as (N, C, H, W) in channels-last memory; mean and std: (C,) or, per image, (N, 1, 1, C).
    dtype: the default one if not given."""
    offset, scale = offset_and_scale(mean, std, dtype, pixels.device)
    return torch.addcmul(offset, pixels.to(scale.dtype), scale).permute(0, 3, 1, 2)


def offset_and_scale(
    mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor, dtype: torch.dtype | None = None, device: Any = None
) -> tuple[Tensor, Tensor]:
    """a and b, of the shape of mean and std, with a + b pixel = (pixel / 255 - mean) / std."""
    dtype = dtype or torch.get_default_dtype()
    scale = 1 / (255 * torch.as_tensor(std, dtype=dtype, device=device))
    return -torch.as_tensor(mean, dtype=dtype, device=device) * 255 * scale, scale
