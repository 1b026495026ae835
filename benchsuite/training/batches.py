"""Batches of uint8 images that lie on the device, augmented and normalised there one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn.images import normalise, pad_images
from ..randomness import generator


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskImages:
    """The images of one task on the training device.

    pixels: uint8 (N, H, W, C), already padded to the network's size. labels: int64 (N,) in 0..K-1.
    mean, std: per channel, in units of pixel / 255. Three of them with C = 1 turn grey images into RGB ones.
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random crop after zero padding of `padding` pixels, and a horizontal flip with probability 1/2 if `flip`."""

    padding: int = 0
    flip: bool = False


@dataclass(frozen=True, eq=False)
class Draws:
    """The random choices of one epoch over M images, in the order of the batches.

    index: (M,) the image. top, left: (M,) offset of the crop, uniform on 0..2 padding. flip: (M,) bool, applied before the crop;
    the crop is uniform, so the order does not change the distribution."""

    index: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor


class Batches:
    """Mini-batches [x, y, t] over one task, or over several tasks mixed.

    x: float (B, C, H, W), channels-last, normalised. y: int64 (B,). t: int64 (B,), the task of each image.
    Each pass is an epoch with its own generators, derived from (seed, stage, epoch): every image once, in random order. If tasks
    of different sizes are mixed, each contributes equally many images and the smaller ones repeat theirs. With augmentation None
    the images are unchanged and in order, for evaluation. A single last image joins the batch before it, because batch
    normalisation cannot normalise one image alone.
    """

    def __init__(
        self,
        tasks: Sequence[TaskImages],
        positions: Sequence[int],
        batch_size: int,
        *,
        augmentation: Augmentation | None,
        seed: int = 0,
        stage: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.tasks, self.positions, self.batch_size, self.dtype = tasks, positions, batch_size, dtype
        self.augmentation, self.seed, self.stage, self.epoch = augmentation, seed, stage, 0
        self.device = tasks[0].labels.device
        self.sizes = [len(task.labels) for task in tasks]
        channels = max(len(task.mean) for task in tasks)
        grow = augmentation.padding if augmentation else 0
        pixels = [pad_images(task.pixels, grow) for task in tasks]
        if len(tasks) > 1:
            pixels = [p.expand(*p.shape[:3], channels) for p in pixels]
        self.pixels = torch.cat(pixels) if len(pixels) > 1 else pixels[0]
        self.labels = torch.cat([task.labels for task in tasks])
        self.of = torch.repeat_interleave(torch.tensor(positions), torch.tensor(self.sizes)).to(self.device)
        self.known = torch.tensor(positions, device=self.device)
        self.shape = (tasks[0].pixels.shape[1], tasks[0].pixels.shape[2])
        if augmentation and augmentation.flip:
            self.pixels = torch.stack([self.pixels, self.pixels.flip(2)])  # [original, mirrored]: a flip selects the source
        self.mean, self.std = (
            torch.tensor([getattr(task, name) for task in tasks], dtype=dtype, device=self.device) for name in ("mean", "std")
        )

    def __len__(self) -> int:
        return len(self._rows())

    def _rows(self) -> list[slice]:
        """The positions of the batches in an epoch."""
        count = self._images()
        starts = list(range(0, count, self.batch_size))
        if len(starts) > 1 and starts[-1] == count - 1:
            starts.pop()
        return [slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]

    def _images(self) -> int:
        total = sum(self.sizes)
        return total if self.augmentation is None else total // len(self.sizes) * len(self.sizes)

    def draws(self, epoch: int) -> Draws:
        """The random choices of one epoch, drawn on the CPU so that they are the same for every device."""
        assert self.augmentation is not None
        order = generator(self.seed, "batches", self.stage, epoch)
        share = self._images() // len(self.sizes)
        parts, start = [], 0
        for size in self.sizes:
            rounds = [torch.randperm(size, generator=order) for _ in range(-(-share // size))]
            parts.append(torch.cat(rounds)[:share] + start)
            start += size
        index = torch.cat(parts)
        if len(parts) > 1:
            index = index[torch.randperm(len(index), generator=order)]
        how = generator(self.seed, "augmentation", self.stage, epoch)
        offsets = torch.randint(2 * self.augmentation.padding + 1, (2, len(index)), generator=how)
        flip = torch.randint(2, (len(index),), generator=how).bool() & self.augmentation.flip
        return Draws(index, offsets[0], offsets[1], flip)

    def __iter__(self) -> Iterator[list[Tensor]]:
        if self.augmentation is None:
            for rows in self._rows():
                yield self._batch(self.pixels[rows], rows)
            return
        draws = self.draws(self.epoch)
        self.epoch += 1
        index, top, left, flip = (d.to(self.device, non_blocking=True) for d in (draws.index, draws.top, draws.left, draws.flip))
        windows = self._windows()
        for rows in self._rows():
            which = index[rows]
            place = (top[rows], left[rows], which) if self.augmentation.padding else (which,)
            yield self._batch(windows[(flip[rows].long(), *place) if self.augmentation.flip else place], which)

    def _windows(self) -> Tensor:
        """A view of every crop of every image, without a copy: ([2 flips,] [tops, lefts,] N, H, W, C)."""
        assert self.augmentation is not None
        if not self.augmentation.padding:
            return self.pixels
        crops = 2 * self.augmentation.padding + 1
        *lead, n, _, _, c = self.pixels.shape
        *outer, image, row, column, channel = self.pixels.stride()
        return self.pixels.as_strided(
            (*lead, crops, crops, n, *self.shape, c), (*outer, row, column, image, row, column, channel)
        )

    def _batch(self, pixels: Tensor, rows: Tensor | slice) -> list[Tensor]:
        of = self.of[rows]
        if len(self.tasks) == 1:
            mean, std = self.mean[0], self.std[0]
        else:
            which = torch.searchsorted(self.known, of)
            mean, std = self.mean[which][:, None, None], self.std[which][:, None, None]
        return [normalise(pixels, mean, std, self.dtype), self.labels[rows], of]
