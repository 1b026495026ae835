"""CACL-Kronecker: CACL with kernels that are sums of Kronecker products (arXiv 2009.01956; Hameed et al., AAAI 2022).

Every kernel is sum_r |w_r| A_r (x) B_r with unit-norm A_r (o1, i1) and B_r (o2, i2, kh, kw). The loss and the
rules for comparing, keeping and fixing terms are those of `cacl_cp`. Gamma is the Gram matrix of these terms: Gamma_rs =
<A_r, A_s> <B_r, B_s>.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from benchsuite.method import Preset, register
from benchsuite.nn.factorised import FactorisedConv2d, KroneckerConv2d, Rank

from .cacl import CACL, VARIANTS_ORIGIN, at_lite, on_digits
from .cacl_cp import CACLCP


@register
@dataclass
class CACLKronecker(CACLCP):
    """CACL-Kronecker: grows and prunes a bank of Kronecker products for each convolution, task by task."""

    name: ClassVar = "cacl-kronecker"
    label = "CACL-Kronecker"
    marker = "D"
    unit_axes: ClassVar = {**KroneckerConv2d.grows, "kernels": (0, 1)}
    settings: ClassVar[tuple[Preset, ...]] = (
        CACL.settings[0],
        *at_lite(VARIANTS_ORIGIN, energy_drop=0.1, sigma_rate=20.0),
        on_digits(0.005),
        CACLCP.settings[-1],  # its own search chose the same values
    )

    @classmethod
    def layer(cls, conv: nn.Conv2d, header: dict[str, Any]) -> FactorisedConv2d:
        return KroneckerConv2d(conv)

    def first_pool(self, layer: Any) -> Rank:
        """The largest rank whose factors are no larger than the dense kernel, at most the rank that can represent any kernel."""
        a, b = layer.elements((1,)), layer.rows * layer.columns
        return (max(1, min(b // a, min(layer.outer[0] * layer.outer[1], b // (layer.outer[0] * layer.outer[1])))),)

    def columns(self, factors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: factor.flatten(1).T for name, factor in factors.items() if name != "weight"}
