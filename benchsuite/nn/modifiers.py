"""Modifiers: they reduce what any method stores for the backward pass. `cacl+hosvd` is CACL with HOSVD-compressed activations.

While the network prepared by a method runs, a modifier intercepts every convolution, linear layer, ReLU and pooling, however deep
inside a module the call is made, and replaces it by one that stores less (`benchsuite.nn.compressed`). Parameter names and the
artifact stay the same. Only training passes are modified; evaluation, consolidation (EWC's Fisher, for example) and teachers are
not.
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
    """Base of the modifiers. Its fields become settings of the modified method."""

    compressed = "last:0"  # see CompressedActivations
    relu = "plain"
    by_input = True  # what is stored depends on the input alone, so that layers with the same input share it
    seed = 0

    def __post_init__(self) -> None:
        check(self)

    def begin_task(self, model: nn.Module, task: int) -> None:
        """Called before the first step of a task, with the network that learns it."""

    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        """What to store of the input of a layer (counted from 0) for its weight gradient; None: the input itself.

        geometry: stride, padding, dilation and groups of a convolution, None for a linear layer."""
        return None


@dataclass
class CompressedActivations(Modifier):
    """Base of the modifiers that store activations in another form.

    compressed: "all" convolutions and linear layers, or the "last:N" of them in the order of a forward pass. Heads that read the
    same features count as one. A layer whose weight is not trained stores nothing.
    relu: "mask" stores one bit per element at a ReLU, two bits per output of a 2x2 max pooling and nothing at an average pooling,
    with bit-identical results. "plain" leaves these layers, and most of what is stored, unchanged.
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
    """epsilon: the share of the energy that each mode keeps. mode_ranks: fixed ranks in place of epsilon, one per mode; the last
    number stands for all further modes. factors: how singular vectors are computed; "svd" is the slow reference."""

    epsilon: float = setting(0.8, above=0, most=1)
    mode_ranks: tuple[int, ...] = setting((), least=1)
    factors: Literal["gram", "svd"] = "gram"

    def modes(self, x: Tensor) -> Sequence[int]:
        """The modes that get a factor."""
        return range(x.dim())

    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        if self.mode_ranks:
            choose = compressed.by_rank([*self.mode_ranks, *[self.mode_ranks[-1]] * x.dim()])
        elif self.epsilon == 1:
            return None  # all energy: nothing to compress
        else:
            choose = compressed.by_energy(self.epsilon)
        return compressed.hosvd(x, choose, self.modes(x), exact=self.factors == "svd")


@dataclass
class SVD(Decomposition):
    """SVD: stores a truncated SVD of the activations as a matrix with one row per image (SVD_epsilon of arXiv 2411.06346)."""

    def modes(self, x: Tensor) -> Sequence[int]:
        return [0]


@dataclass
class HOSVD(Decomposition):
    """HOSVD: stores a truncated higher-order SVD of the activations in all modes (HOSVD_epsilon of arXiv 2411.06346)."""


@dataclass
class GradientFilter(CompressedActivations):
    """Gradient filtering: averages gradients and sums inputs over r x r patches (Yang et al., CVPR 2023)."""

    radius: int = setting(2, least=1)

    by_input = False

    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        if geometry is None or geometry[2] != (1, 1):
            return None  # a linear layer has no pixels; dilated windows do not overlap patches evenly
        return Filtered.of(x, weight.shape[2:], geometry, self.radius)


@dataclass
class ASI(CompressedActivations):
    """ASI: stores activations at fixed ranks, with factors updated by one power step per batch (Nguyen et al., ICML 2025).

    The first batch of each task sets the ranks at which HOSVD keeps a share epsilon of each mode's energy. With activation_mb > 0
    each layer gets one of the shares 0.4, 0.5, ..., 0.9 in place of epsilon, chosen so that the sum of the errors ||dW - dW'|| of
    that batch's gradients is smallest while all stored activations take at most so many MB (1e6 bytes).
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
        self.probes: dict[int, list[tuple[float, int, list[int]]]] = {}  # by layer: (error, bytes, ranks) for each share

    @torch.no_grad()
    def keep(self, x: Tensor, layer: int, weight: Tensor, geometry: Geometry | None) -> Kept | None:
        if self.activation_mb and not self.ranks:
            if layer not in self.probes:
                self.probes[layer] = []
                return Probed(x, self.shares, self.probes[layer])
            if not all(self.probes.values()):  # a second forward pass before the first backward pass
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
    """For each layer the ranks of one of its options (error, bytes, ranks): the choice with the smallest sum of errors whose
    bytes are at most `budget`. If none fits, the smallest option of each. Bytes are rounded up to thousandths of the budget."""
    cells = 1000
    best = np.zeros(cells + 1)  # the smallest error of the layers so far, by the part of the budget that they may use
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
class Bits(Modifier):
    """Bits: keeps one bit for each element of a ReLU, two for each output of a max pooling, with bit-identical results.

    Convolutions and linear layers keep their inputs. Every compressing modifier with relu="mask" gets these savings too.
    """

    relu = "mask"


@dataclass
class Checkpointing(Modifier):
    """Activation checkpointing, the exact baseline: recomputes activations in the backward pass (Chen et al., arXiv 1604.06174).

    The network is split into `segments` parts; all but the last store only their inputs.
    """

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
    "bits": Bits,
    "checkpointing": Checkpointing,
}
