"""Modifiers: under any method, less is kept for the backward pass. `cacl+hosvd` names CACL with HOSVD-compressed maps.

A modifier looks at every convolution, linear layer, ReLU and pooling while the network that a method prepared is run, however
deep inside a module the call is made, and puts in its place one that keeps less (`benchsuite.nn.compressed`). The names of
weights and what is stored to serve stay the same. Only training passes are touched: evaluation, consolidation (EWC's Fisher,
say) and teachers run as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..fields import check, setting
from ..randomness import generator
from . import compressed
from .compressed import Filtered, Geometry, Kept, Probed


@dataclass
class Modifier:
    """Base of the modifiers. Fields become settings of the method that is modified."""

    compressed = "last:0"  # see CompressedActivations
    relu = "plain"
    by_input = True  # what is kept depends on the input alone, so that layers which read the same one share it
    seed = 0

    def __post_init__(self) -> None:
        check(self)

    def begin_task(self, model: nn.Module, task: int) -> None:
        """Before the first step of a task, on the network that is about to learn it."""

    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        """What is kept of the input of a layer (counted from 0) for its weight's gradient; None: the input itself.

        geometry: stride, padding, dilation and groups of a convolution, None for a linear layer."""
        return None


@dataclass
class CompressedActivations(Modifier):
    """What keeps activation maps in another form.

    compressed: "all" convolutions and linear layers, or "last:N" of them in the order in which a forward pass comes to them;
    heads that read the same features count as one. Of them, one whose weight does not learn keeps nothing.
    relu: "mask" keeps one bit for each element at a ReLU, two bits for each output of a 2x2 max pooling and nothing at an
    average pooling, with the same result to the bit; "plain" leaves them as they are, and with them most of what was kept.
    """

    compressed: str = "all"
    relu: Literal["mask", "plain"] = "mask"

    def __post_init__(self) -> None:
        super().__post_init__()
        word, _, number = self.compressed.partition(":")
        if self.compressed != "all" and (word != "last" or not number.isdecimal()):
            raise ValueError(f"compressed must be all or last:N, got {self.compressed!r}")


@dataclass
class Decomposition(CompressedActivations):
    """epsilon: the share of a map's energy that each mode keeps. mode_ranks: so many directions of each mode instead, the last
    number standing for all further modes. factors: how singular vectors are computed; "svd" is the plain and slow way."""

    epsilon: float = setting(0.8, above=0, most=1)
    mode_ranks: tuple[int, ...] = setting((), least=1)
    factors: Literal["gram", "svd"] = "gram"

    def modes(self, x: Tensor) -> Sequence[int]:
        """Which modes get a factor."""
        return range(x.dim())

    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        if self.mode_ranks:
            choose = compressed.by_rank([*self.mode_ranks, *[self.mode_ranks[-1]] * x.dim()])
        elif self.epsilon == 1:
            return None  # everything, so there is nothing to compute
        else:
            choose = compressed.by_energy(self.epsilon)
        return compressed.hosvd(x, choose, self.modes(x), exact=self.factors == "svd")


@dataclass
class SVD(Decomposition):
    """Truncated SVD of each map as a matrix with a row for each image (SVD_epsilon of arXiv 2411.06346)."""

    def modes(self, x: Tensor) -> Sequence[int]:
        return [0]


@dataclass
class HOSVD(Decomposition):
    """Truncated higher-order SVD of each map: images, channels, rows, columns (HOSVD_epsilon of arXiv 2411.06346)."""


@dataclass
class GradientFilter(CompressedActivations):
    """Gradient filtering (Yang et al., CVPR 2023): gradients are averaged over r x r patches, inputs summed over them."""

    radius: int = setting(2, least=1)

    by_input = False

    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        if geometry is None or geometry[2] != (1, 1):
            return None  # a linear layer has no pixels; dilated windows overlap no patch evenly
        return Filtered.of(x, weight.shape[2:], geometry, self.radius)


@dataclass
class ASI(CompressedActivations):
    """Activation subspace iteration (Nguyen et al., ICML 2025): fixed ranks, factors refreshed by one power step a batch.

    With each task it begins anew: its first batch sets the ranks, at which HOSVD keeps a share epsilon of each mode's energy;
    or, with activation_mb > 0, for each layer one of the shares 0.4, 0.5, ..., 0.9, chosen together so that the errors
    ||dW - dW'|| of that batch's gradients are smallest in sum and all maps take at most so many MB (1e6 bytes).
    """

    epsilon: float = setting(0.8, above=0, below=1)
    activation_mb: float = setting(0.0, least=0)

    shares = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begin_task(nn.Identity(), -1)

    def begin_task(self, model: nn.Module, task: int) -> None:
        self.task = task
        self.ranks: dict[int, list[int]] = {}
        self.bases: dict[tuple[int, torch.Size], list[Tensor]] = {}
        self.probes: dict[int, list[tuple[float, int, list[int]]]] = {}  # by layer: error, bytes, ranks of each share

    @torch.no_grad()
    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        if self.activation_mb and not self.ranks:
            if layer not in self.probes:
                self.probes[layer] = []
                return Probed(x, self.shares, self.probes[layer])
            if not all(self.probes.values()):  # another pass before the first one's gradients
                return None
            chosen = within(int(self.activation_mb * 1e6), list(self.probes.values()))
            self.ranks = dict(zip(self.probes, chosen, strict=True))
        if layer not in self.ranks:
            first = compressed.hosvd(x, compressed.by_energy(self.epsilon), always=True)
            if first is None:
                return None
            self.ranks[layer] = list(first.core.shape)
        ranks = [min(rank, size) for rank, size in zip(self.ranks[layer], x.shape, strict=True)]
        before = self.bases.get((layer, x.shape)) or [
            torch.randn(size, rank, generator=generator(self.seed, "asi", self.task, layer, mode)).to(x.device)
            for mode, (size, rank) in enumerate(zip(x.shape, ranks, strict=True))
        ]
        bases = [compressed.power_step(x, mode, basis) for mode, basis in enumerate(before)]
        self.bases[layer, x.shape] = bases
        return compressed.decompose(x, bases)


def within(budget: int, layers: list[list[tuple[float, int, list[int]]]]) -> list[list[int]]:
    """For each layer the ranks of one of its (error, bytes, ranks), so that the errors are smallest in sum and the bytes at
    most `budget`; the smallest of each where even they are more. Bytes are rounded up to thousandths of the budget."""
    cells = 1000
    best = np.zeros(cells + 1)  # the smallest error of the layers so far, by how much of the budget they may take
    picks = []
    for options in layers:
        reach: np.ndarray = np.full(cells + 1, np.inf)
        pick: np.ndarray = np.zeros(cells + 1, dtype=int)
        for i, (error, size, _) in enumerate(options):
            cost = -(-size * cells // max(budget, 1))
            if cost <= cells:
                candidate = np.concatenate([np.full(cost, np.inf), best[: cells + 1 - cost] + error])
                pick[candidate < reach], reach = i, np.minimum(reach, candidate)
        best = reach
        picks.append(pick)
    if not np.isfinite(best[cells]):
        return [min(options, key=lambda option: option[1])[2] for options in layers]
    left, chosen = cells, []
    for options, pick in zip(reversed(layers), reversed(picks), strict=True):
        _, size, ranks = options[pick[left]]
        chosen.append(ranks)
        left -= -(-size * cells // max(budget, 1))
    return chosen[::-1]


@dataclass
class Checkpointing(Modifier):
    """Recomputation, the rival that is exact: of `segments` parts of the network all but the last keep their inputs alone and run
    again in the backward pass (Chen et al., arXiv 1604.06174)."""

    segments: int = setting(3, least=1)

    def begin_task(self, model: nn.Module, task: int) -> None:
        for module in model.modules():
            if hasattr(module, "segments"):
                module.segments = self.segments


MODIFIERS: dict[str, type[Modifier]] = {
    "svd": SVD,
    "hosvd": HOSVD,
    "gf": GradientFilter,
    "asi": ASI,
    "checkpointing": Checkpointing,
}
