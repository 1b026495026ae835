"""Individual networks, each compressed before its last epochs: Tucker-2 form of every kernel, then a short recovery training.

As `individual_svd`, with W ~ sum_pq core_pq a_p o b_q by higher-order orthogonal iteration (arXiv 1511.06530). rank_by="ratio"
keeps the same share of channels on both sides; "energy" and "evbmf" use the unfoldings along output and input
channels. `whiten` uses the second moment of the input's channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from benchsuite.method import Preset, register
from benchsuite.nn import decompose
from benchsuite.nn.factorised import Factors, Rank, TuckerConv2d

from .individual_svd import IndividualSVD


@register
@dataclass
class IndividualTucker(IndividualSVD):
    """Individual-Tucker: compresses each individual network to Tucker-2 factors after training, with a short recovery."""

    name: ClassVar = "individual-tucker"
    label = "Individual-Tucker"
    marker = ">"
    settings: ClassVar = (
        Preset(
            protocol="rotated-digits",
            tier="paper",
            values={"recovery": 0.2, "recovery_rate": 0.1, "whiten": True},
            origin="tuned: 5 trials of `benchsuite tune`, ACC after the first 3 tasks of seed 1002 on a held-out 10 % of"
            " the training images",
        ),
    )
    layer: ClassVar = TuckerConv2d
    unit_axes: ClassVar = TuckerConv2d.grows

    def rank(self, kernel: Tensor) -> Rank:
        return decompose.tucker_rank(kernel, self.rank_by, self.ratio, self.energy)

    def factorise(self, name: str, kernel: Tensor, rank: Rank, covariance: Tensor | None) -> Factors:
        return decompose.tucker(kernel, rank, covariance)

    def inputs(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(1).T
