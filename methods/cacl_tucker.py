"""CACL-Tucker: CACL with Tucker-2 kernels that grow in both modes (arXiv 2009.01956 with the form of 1511.06530).

Every kernel (O, I, kh, kw) is sum_pq core_pq a_p o b_q. Task t appends columns to A and B, and windows for them to the
core (`core="nested"`: also between new and old columns; "block": between new columns only). Earlier tasks are served by the
leading parts. With s^A_p = ||core_p.|| and s^B_q = ||core_.q||, the norms of the new rows and columns of windows, the loss is

    L = CE + lambda_s sum_l [hoyer(s^A) + hoyer(s^B)] + lambda_o sum_l [q(A) + q(B)]    (q as in CACL, fixed columns included).

When a task is pruned its columns are made orthonormal (QR) and rotated to the principal axes of their windows. The windows absorb
the change, so the kernel stays the same. Then the fewest rows and the fewest columns that hold a share 1 - e of the new windows'
energy are kept. Norms of windows replace explicit gates, because the core could absorb the scale of a gate. The first task's pool
is half of the channels on either side, that of every later task an eighth of it: with windows between new and old columns a few
columns suffice, and the core grows with the square of their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from benchsuite.fields import setting
from benchsuite.method import Choice, Preset, register
from benchsuite.nn.factorised import FactorisedConv2d, Rank, TuckerConv2d

from .cacl import CACL, VARIANTS_ORIGIN, Growth, Orthogonality, at_lite, on_digits, sparsity


@register
@dataclass
class CACLTucker(CACL):
    """CACL-Tucker: grows and prunes Tucker-2 factors for each convolution in both modes, task by task."""

    core: Literal["nested", "block"] = "nested"
    growth: Growth = "eighth"  # a core between all columns grows with the square of their number
    fresh_share: float = setting(0.1, above=0)
    sigma_rate: ClassVar = 1.0  # type: ignore[misc]  # there is no sigma
    exact_vectors: ClassVar = "pruning"  # type: ignore[misc]  # always, see above

    name: ClassVar = "cacl-tucker"
    label = "CACL-Tucker"
    marker = "^"
    unit_axes: ClassVar = {**TuckerConv2d.grows, "kernels": (0, 1)}
    counted: ClassVar = "factors and heads alone"
    settings: ClassVar[tuple[Preset, ...]] = (
        *at_lite(VARIANTS_ORIGIN, energy_drop=0.02),
        on_digits(0.02),
        Preset(
            protocol="rotated-digits",
            tier="paper",
            values={"sparsity_weight": 0.0949, "fresh_share": 0.2, "prune_at": 0.3, "orthogonality_weight": 0.72},
            origin="tuned: 5 trials of `benchsuite tune`, ACC after the first 3 tasks of seed 1002 on a held-out 10 % of"
            " the training images",
        ),
    )
    space: ClassVar = {
        **{name: space for name, space in CACL.space.items() if name != "sigma_rate"},
        "fresh_share": Choice((0.2, 0.1, 0.5)),
    }

    @classmethod
    def layer(cls, conv: nn.Conv2d, header: dict[str, Any]) -> FactorisedConv2d:
        return TuckerConv2d(conv, core=header["core"])

    def describe(self) -> dict[str, Any]:
        return {"core": self.core}

    def first_pool(self, layer: Any) -> Rank:
        """Half of the channels on either side, rounded up."""
        return math.ceil(layer.shape[0] / 2), math.ceil(layer.shape[1] / 2)

    def penalty(self, name: str, layer: Any) -> Callable[[], Tensor]:
        fixed = slice(None) if self.penalty_scope == "all" else slice(0)
        q_a = Orthogonality(layer.A.T[fixed], layer.pool[0])
        q_b = Orthogonality(layer.B.T[fixed], layer.pool[1])

        def value() -> Tensor:
            sparse = sum(sparsity(self.sparsity_kind, norms) for norms in layer.slice_norms())
            orthogonality = q_a(layer.residual_A.T) + q_b(layer.residual_B.T)
            return self.orthogonality_weight * orthogonality + self.sparsity_weight * sparse

        return value
