"""Individual networks, each compressed before its last epochs: CP decomposition of every kernel, then a short recovery training.

As `individual_svd`, with W ~ sum_r w_r a_r o b_r o d_r o e_r by alternating least squares with an L2 penalty (arXiv 1412.6553).
A best CP approximation need not exist: terms may grow without bound and cancel. The record holds kappa = sum_r w_r^2 / ||W||^2 of
every fit. A fit with kappa above 6 is rejected and repeated with a stronger penalty; if none is accepted, the kernel stays dense.
There is no EVBMF for CP ranks. rank_by="energy" takes the smallest rank with a relative error of at most sqrt(1 - energy), found
by bisection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from benchsuite.method import Preset, register
from benchsuite.nn import decompose
from benchsuite.nn.factorised import CPConv2d, Factors, Rank

from .individual_svd import IndividualSVD


@register
@dataclass
class IndividualCP(IndividualSVD):
    """Individual-CP: compresses each individual network to CP terms after training, with a short recovery."""

    name: ClassVar = "individual-cp"
    label = "Individual-CP"
    marker = "<"
    settings: ClassVar = (
        Preset(
            protocol="rotated-digits",
            tier="paper",
            values={"recovery": 0.2, "recovery_rate": 0.1, "whiten": True},
            origin="tuned: 5 trials of `benchsuite tune`, ACC after the first 3 tasks of seed 1002 on a held-out 10 % of"
            " the training images",
        ),
    )
    layer: ClassVar = CPConv2d
    unit_axes: ClassVar = CPConv2d.grows
    size_is_learnt = True  # a kernel without an accepted fit stays dense

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_by == "evbmf":
            raise ValueError("rank_by: there is no EVBMF of a CP rank; use ratio or energy")
        # kappa of every fit, for each task, by layer; the last fit is kept, or all are rejected
        self.kappa: list[dict[str, list[float]]] = []

    def rank(self, kernel: Tensor) -> Rank:
        return decompose.cp_rank(kernel, self.rank_by, self.ratio, self.energy)

    def factorise(self, name: str, kernel: Tensor, rank: Rank, covariance: Tensor | None) -> Factors:
        return decompose.cp(kernel, rank, covariance, self.kappa[-1].setdefault(name, []))

    def compress(self, strategy: Any) -> None:
        self.kappa.append({})
        super().compress(strategy)

    def inputs(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return x.transpose(0, 1).flatten(1).T

    def diagnostics(self) -> dict[str, Any]:
        found = super().diagnostics()
        return {**found, "extra": {**found["extra"], "kappa": self.kappa}}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "kappa": self.kappa}
