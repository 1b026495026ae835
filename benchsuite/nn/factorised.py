"""Convolutions with factorised kernels, in banks that grow from task to task.

With O output channels, I input channels and a kh x kw window, the kernel W (O, I, kh, kw) is

    SVDConv2d     sum_r  N_r |sigma_r| C_r               N (O, R), C (R, I kh kw): the matrix of the flattened kernel
    CPConv2d      sum_r  |w_r| a_r o b_r o d_r o e_r     unit-norm a (O), b (I), d (kh), e (kw)
    TuckerConv2d  sum_pq G_pq a_p o b_q                  a (O), b (I), core entries G_pq (kh, kw): Tucker-2
    KroneckerConv2d  sum_r |w_r| A_r (x) B_r             unit-norm A (o1, i1), B (o2, i2, kh, kw)

Each can be computed by composing the kernel (one convolution) or as a chain of small convolutions.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import Law
from .conditional import TaskConditional

Factors = dict[str, Tensor]
Rank = tuple[int, ...]  # one number per growing mode


def break_even_rank(out_channels: int, columns: int) -> int:
    """floor(O I k^2 / (O + I k^2)): the largest rank whose factors are no larger than the dense kernel (CACL section 2.3)."""
    return out_channels * columns // (out_channels + columns)


class FactorisedConv2d(TaskConditional):
    """Base of the factorisations: a bank of fixed factors, trainable factors beside it, and a kernel for each task.

    The bank holds the factors of finished tasks as buffers, so no optimiser can change them. Task t uses its first ranks[t].
    While a task is learnt, `residual_<factor>` are its trainable factors. The kernel is summed task by task,
    M_t = M_{t-1} + (what t added), so training starts from exactly the kernel of the earlier tasks, and M_i stays bit-identical.

    grows: {factor: the dimension along which later tasks append to it}. modes: how many numbers a rank has. scale: with
    one mode, the factor that holds one number per component.
    gain: the variance of the kernel that `fresh` draws, times its fan-in I kh kw; 2 in He's law.
    form: how a finished task is computed: "composed" (one convolution), "chain" (its factors one after the other) or
    "cheaper" (the one with fewer multiply-accumulates for the image).
    """

    grows: ClassVar[dict[str, int]]
    modes: ClassVar[int] = 1
    scale: ClassVar[str] = "weight"
    gain: ClassVar[float] = 2.0
    form: Literal["composed", "chain", "cheaper"] = "composed"
    _kernel: Tensor

    def __init__(self, conv: nn.Conv2d, *, bias: bool = False) -> None:
        """bias: keep the convolution's bias as a parameter. No bank protects it."""
        super().__init__()
        if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError("a factorised convolution needs groups=1 and zero padding given in pixels")
        self.shape: tuple[int, int, int, int] = tuple(conv.weight.shape)
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.rows, self.columns = self.shape[0], math.prod(self.shape[1:])
        self.bias = nn.Parameter(conv.bias.detach().clone()) if bias and conv.bias is not None else None
        self.ranks: list[Rank] = []
        for name, empty in self.fresh((0,) * self.modes, torch.Generator()).items():
            self.register_buffer(name, empty.to(conv.weight))
            self.register_parameter(f"residual_{name}", None)
        self._task = -1
        # of the task that was set last: its kernel, or the kernels of its chain
        self.register_buffer("_kernel", torch.empty(0, device=conv.weight.device), persistent=False)
        self._links: tuple[Tensor, ...] = ()

    # Each factorisation defines these

    def fresh(self, pool: Rank, source: torch.Generator) -> Factors:
        """`pool` trainable components for the next task, initialised from `source`."""
        raise NotImplementedError

    def compose(self, added: Factors, onto: Tensor, task: int) -> Tensor:
        """onto (O, I kh kw) plus the kernel of the factors `added` by task `task`."""
        raise NotImplementedError

    def strengths(self) -> list[Tensor]:
        """For each mode, the strength of each trainable component. Its square is an energy."""
        return [self.residual[self.scale].detach()]

    def energy(self) -> float:
        """The energy of the bank, by the same measure."""
        return float(getattr(self, self.scale).double().square().sum())

    def selected(self, *keep: Tensor) -> Factors:
        """The trainable components `keep` (ascending indices for each mode)."""
        return {name: factor.index_select(self.grows[name], keep[0]) for name, factor in self.residual.items()}

    def normalised(self, factors: Factors) -> Factors:
        """The factors in the form in which the bank holds them."""
        return factors

    def whole(self) -> Rank:
        """The rank of a bank that one task filled, from its shapes."""
        leading = list(self.grows.items())[: self.modes]
        return tuple(getattr(self, name).shape[dim] for name, dim in leading)

    def extent(self, name: str, rank: Rank) -> int:
        """The length of the factor `name`, along its growing dimension, in a bank of that rank."""
        return rank[0]

    def links(self, task: int) -> tuple[Tensor, ...]:
        """The small kernels of a finished task."""
        raise NotImplementedError

    def chain(self, x: Tensor, *links: Tensor) -> Tensor:
        """The convolution as a chain of these kernels."""
        raise NotImplementedError

    def elements(self, rank: Rank) -> int:
        """Numbers in the factors of a kernel of that rank, without the bias."""
        raise NotImplementedError

    def chain_macs(self, rank: Rank, inner: int, outer: int, rows: int) -> int:
        """Multiply-accumulates of `chain`. inner, outer: pixels of the input and the output; rows: pixels after the vertical
        convolution of a CP chain, with all columns of the input."""
        raise NotImplementedError

    # Shared by all factorisations

    @property
    def residual(self) -> Factors:
        """The trainable factors; empty between tasks."""
        found = {name: getattr(self, f"residual_{name}") for name in self.grows}
        return {name: factor for name, factor in found.items() if factor is not None}

    @property
    def pool(self) -> Rank:
        """The number of trainable components."""
        leading = list(self.residual.items())[: self.modes]
        return tuple(factor.shape[self.grows[name]] for name, factor in leading) or (0,) * self.modes

    def absorb(self) -> None:
        """Bring the trainable factors to the form in which squares of `strengths` are energies of the kernel, which stays the
        same."""

    def set_residual(self, factors: Factors) -> None:
        for name, factor in factors.items():
            setattr(self, f"residual_{name}", nn.Parameter(factor.detach().to(getattr(self, name))))
        self._task = -1

    def draw_residual(self, pool: Rank, source: torch.Generator, share: float = 1.0, init: Law = "default") -> None:
        """Initialise components for the next task.

        init="default": with the variance that `fresh` gives their kernel; "he": with 2 / (I kh kw), as dense kernels have it.
        share: of that variance.
        """
        factors = self.fresh(pool, source)
        share *= 2 / self.gain if init == "he" else 1.0
        self.set_residual({**factors, self.scale: math.sqrt(share) * factors[self.scale]})

    def prune(self, *keep: Tensor) -> None:
        """Drop the trainable components but `keep` (ascending indices for each mode), which become new parameters."""
        self.set_residual(self.selected(*keep))

    @torch.no_grad()
    def consolidate(self, *keep: Tensor) -> None:
        """End a task: append its components `keep` (ascending indices for each mode) to the bank and drop the rest."""
        kept = self.normalised(self.selected(*keep))
        rank = tuple(n + len(new) for n, new in zip(self.before(len(self.ranks)), keep, strict=True))
        for name, dim in self.grows.items():
            setattr(self, name, torch.cat([getattr(self, name), kept[name].detach()], dim))
            setattr(self, f"residual_{name}", None)
        self.ranks.append(rank)
        self._task = -1

    def before(self, task: int) -> Rank:
        """The rank of the bank when task `task` began."""
        return self.ranks[task - 1] if task else (0,) * self.modes

    def added(self, task: int) -> Factors:
        """The factors that a finished task added to the bank.

        They are copies, so neither the length of the bank nor its address can change how a product is rounded."""
        parts = {}
        for name, dim in self.grows.items():
            start, end = self.extent(name, self.before(task)), self.extent(name, self.ranks[task])
            parts[name] = getattr(self, name).narrow(dim, start, end - start).clone(memory_format=torch.contiguous_format)
        return parts

    @torch.no_grad()
    def prefix(self, task: int) -> Tensor:
        """The kernel of a finished task, (O, I kh kw); 0 for task -1."""
        kernel = torch.zeros(self.rows, self.columns, device=self._kernel.device, dtype=next(self.buffers()).dtype)
        with torch.autocast(kernel.device.type, enabled=False):
            for t in range(task + 1):
                if self.ranks[t] != self.before(t):
                    kernel = self.compose(self.added(t), kernel, t)
        return kernel

    def upto(self, name: str, task: int) -> Tensor:
        """The part of a factor that a finished task uses."""
        return getattr(self, name).narrow(self.grows[name], 0, self.extent(name, self.ranks[task]))

    def set_task(self, task: int) -> None:
        if task != self._task:
            self._task, self._kernel, self._links = task, self._kernel.new_empty(0), ()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._links = ()  # buffers and parameters move to the device, these would not
        return super()._apply(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        finished = self._task < len(self.ranks)
        if finished and (self.form == "chain" or (self.form == "cheaper" and self._chain_is_cheaper(x))):
            self._links = self._links or self.links(self._task)
            return self.chain(x, *self._links)
        if not self._kernel.numel():
            self._kernel = self.prefix(min(self._task, len(self.ranks) - 1))
        kernel, residual = self._kernel, self.residual
        if residual and not finished:
            with torch.autocast(x.device.type, enabled=False):
                kernel = self.compose(residual, kernel, len(self.ranks))
        return F.conv2d(x, kernel.view(self.shape), self.bias, self.stride, self.padding, self.dilation)

    def _chain_is_cheaper(self, x: Tensor) -> bool:
        inner, outer, rows = self.pixels(tuple(x.shape[2:]))
        return self.chain_macs(self.ranks[self._task], inner, outer, rows) < self.rows * self.columns * outer

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Pixels of an image (H, W): at the input, at the output, and after the vertical half of a separable window."""
        out = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(size, self.padding, self.dilation, self.shape[2:], self.stride, strict=True)
        ]
        return size[0] * size[1], out[0] * out[1], out[0] * size[1]

    def get_extra_state(self) -> dict[str, list[Rank]]:
        return {"ranks": self.ranks}

    def set_extra_state(self, state: dict[str, list[Rank]]) -> None:
        self.ranks, self._task = [tuple(rank) for rank in state["ranks"]], -1


def normal(*shape: int, std: float, source: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(0, std, generator=source)


class SVDConv2d(FactorisedConv2d):
    """Kernel reshape(N diag|sigma| C) (CACL section 2, channel decomposition): N (O, R), sigma (R,), C (R, I kh kw)."""

    grows: ClassVar = {"N": 1, "sigma": 0, "C": 0}
    scale: ClassVar = "sigma"
    gain: ClassVar = 4.0  # N and C have He's law each
    N: Tensor
    sigma: Tensor
    C: Tensor

    def fresh(self, pool: Rank, source: torch.Generator) -> Factors:
        """N ~ N(0, 2 / pool), C ~ N(0, 2 / (I kh kw)), sigma ~ N(0, 1) (CACL sections 2.4 and 5.7)."""
        return {
            "N": normal(self.rows, pool[0], std=math.sqrt(2 / max(pool[0], 1)), source=source),
            "sigma": normal(pool[0], std=1.0, source=source),
            "C": normal(pool[0], self.columns, std=math.sqrt(2 / self.columns), source=source),
        }

    def compose(self, added: Factors, onto: Tensor, task: int) -> Tensor:
        return torch.addmm(onto, added["N"] * added["sigma"].abs(), added["C"])

    @torch.no_grad()
    def absorb(self) -> None:
        """Make the trainable components the singular ones of their kernel, which stays the same: N and C become orthonormal,
        sigma its singular values."""
        n, sigma, c = (factor.detach().double() for factor in self.residual.values())
        (n, left), (c, right) = torch.linalg.qr(n * sigma.abs()), torch.linalg.qr(c.T)
        u, sigma, v = torch.linalg.svd(left @ right.T, full_matrices=False)
        self.set_residual({"N": n @ u, "sigma": sigma, "C": v @ c.T})

    def links(self, task: int) -> tuple[Tensor, ...]:
        outer = self.upto("N", task) * self.upto("sigma", task).abs()
        return self.upto("C", task).reshape(-1, *self.shape[1:]), outer[:, :, None, None]

    def chain(self, x: Tensor, *links: Tensor) -> Tensor:
        """The components' windows, (R, I, kh, kw), then 1x1 to O channels."""
        windows, outer = links
        return F.conv2d(F.conv2d(x, windows, None, self.stride, self.padding, self.dilation), outer, self.bias)

    def elements(self, rank: Rank) -> int:
        return rank[0] * (self.rows + self.columns + 1)

    def chain_macs(self, rank: Rank, inner: int, outer: int, rows: int) -> int:
        return rank[0] * (self.rows + self.columns) * outer


class CPConv2d(FactorisedConv2d):
    """Kernel sum_r |weight_r| a_r o b_r o d_r o e_r of unit-norm factors: A (O, R), B (I, R), D (kh, R), E (kw, R).

    The trainable factors may have any norm. They are normalised on use, so that the weight alone carries a term's energy.
    """

    grows: ClassVar = {"A": 1, "B": 1, "D": 1, "E": 1, "weight": 0}
    A: Tensor
    B: Tensor
    D: Tensor
    E: Tensor
    weight: Tensor

    def fresh(self, pool: Rank, source: torch.Generator) -> Factors:
        """Directions drawn evenly; weights so that together the terms have the variance 2 / (I kh kw) of Kaiming's law."""
        drawn = {
            name: F.normalize(normal(size, pool[0], std=1.0, source=source), dim=0)
            for name, size in zip("ABDE", self.shape, strict=True)
        }
        return {**drawn, "weight": normal(pool[0], std=math.sqrt(2 * self.rows / max(pool[0], 1)), source=source)}

    def compose(self, added: Factors, onto: Tensor, task: int) -> Tensor:
        a, b, d, e = (F.normalize(added[name], dim=0) for name in "ABDE")
        terms = torch.einsum("ir,hr,wr->rihw", b, d, e).reshape(-1, self.columns)
        return torch.addmm(onto, a * added["weight"].abs(), terms)

    def normalised(self, factors: Factors) -> Factors:
        return {**factors, **{name: F.normalize(factors[name], dim=0) for name in "ABDE"}}

    def links(self, task: int) -> tuple[Tensor, ...]:
        a, b, d, e = (F.normalize(self.upto(name, task), dim=0) for name in "ABDE")
        outer = a * self.upto("weight", task).abs()
        return b.T[:, :, None, None], d.T[:, None, :, None], e.T[:, None, None, :], outer[:, :, None, None]

    def chain(self, x: Tensor, *links: Tensor) -> Tensor:
        """1x1 to R channels, a vertical and a horizontal window per channel, 1x1 to O channels."""
        inner, vertical, horizontal, outer = links
        (s, t), (p, q), (v, w), rank = self.stride, self.padding, self.dilation, len(inner)
        x = F.conv2d(x, inner)
        x = F.conv2d(x, vertical, None, (s, 1), (p, 0), (v, 1), groups=rank)
        x = F.conv2d(x, horizontal, None, (1, t), (0, q), (1, w), groups=rank)
        return F.conv2d(x, outer, self.bias)

    def elements(self, rank: Rank) -> int:
        return rank[0] * (sum(self.shape) + 1)

    def chain_macs(self, rank: Rank, inner: int, outer: int, rows: int) -> int:
        o, i, kh, kw = self.shape
        return rank[0] * (i * inner + kh * rows + kw * outer + o * outer)


class TuckerConv2d(FactorisedConv2d):
    """Tucker-2: kernel sum_pq core_pq a_p o b_q, with A (O, P), B (I, Q) and a core of P x Q windows (kh, kw).

    A rank is (P, Q). Task t appends columns to A and B, and windows for its new columns to the core:

    core="nested"   also between new and old columns: (old, new), (new, old), (new, new); new tasks reuse old columns
    core="block"    (new, new) alone: a sum of one Tucker block per task

    `core` (windows, kh, kw) holds them task by task in that order, each block row by row.
    """

    grows: ClassVar = {"A": 1, "B": 1, "core": 0}
    modes: ClassVar = 2
    scale: ClassVar = "core"
    nested = True
    A: Tensor
    B: Tensor
    core: Tensor

    def __init__(self, conv: nn.Conv2d, *, bias: bool = False, core: Literal["nested", "block"] = "nested") -> None:
        super().__init__(conv, bias=bias)
        self.nested = core == "nested"

    def fresh(self, pool: Rank, source: torch.Generator) -> Factors:
        """Columns of about unit norm; windows so that together they have the variance 2 / (I kh kw) of Kaiming's law."""
        (o, i, kh, kw), (p, q), before = self.shape, pool, self.before(len(self.ranks))
        windows = p * q + (before[0] * q + p * before[1] if self.nested else 0)
        return {
            "A": normal(o, p, std=1 / math.sqrt(o), source=source),
            "B": normal(i, q, std=1 / math.sqrt(i), source=source),
            "core": normal(windows, kh, kw, std=math.sqrt(2 * o / (max(windows, 1) * kh * kw)), source=source),
        }

    def blocks(self, core: Tensor, before: Rank, p: int, q: int) -> tuple[Tensor, Tensor, Tensor]:
        """The windows of p new rows and q new columns beside `before` old ones: (old, new), (new, old), (new, new)."""
        old_p, old_q = before if self.nested else (0, 0)
        sizes = ((old_p, q), (p, old_q), (p, q))
        parts = core.split([a * b for a, b in sizes])
        on, no, nn = (part.view(*size, *self.shape[2:]) for part, size in zip(parts, sizes, strict=True))
        return on, no, nn

    def compose(self, added: Factors, onto: Tensor, task: int) -> Tensor:
        before = self.before(task)
        on, no, nn = self.blocks(added["core"], before, added["A"].shape[1], added["B"].shape[1])
        old_a, old_b = self.A[:, : len(on)].contiguous(), self.B[:, : no.shape[1]].contiguous()

        def product(a: Tensor, core: Tensor, b: Tensor) -> Tensor:
            return torch.einsum("op,pqhw,iq->oihw", a, core, b).reshape(self.rows, self.columns)

        kernel = onto + product(added["A"], nn, added["B"])
        if on.numel():
            kernel = kernel + product(old_a, on, added["B"])
        if no.numel():
            kernel = kernel + product(added["A"], no, old_b)
        return kernel

    @torch.no_grad()
    def absorb(self) -> None:
        """Make the trainable columns orthonormal and rotate them to the principal axes of their windows. The windows absorb the
        change, so the kernel stays the same."""
        a, b, core = (factor.detach().double() for factor in self.residual.values())
        before = self.before(len(self.ranks))
        on, no, nn = self.blocks(core, before, a.shape[1], b.shape[1])
        (a, left), (b, right) = torch.linalg.qr(a), torch.linalg.qr(b)
        no, nn = (torch.einsum("xp,pqhw->xqhw", left, block) for block in (no, nn))
        on, nn = (torch.einsum("yq,pqhw->pyhw", right, block) for block in (on, nn))
        turn = torch.linalg.svd(torch.cat([no, nn], 1).flatten(1), full_matrices=False).U
        a, no, nn = a @ turn, torch.einsum("px,pqhw->xqhw", turn, no), torch.einsum("px,pqhw->xqhw", turn, nn)
        turn = torch.linalg.svd(torch.cat([on, nn], 0).transpose(0, 1).flatten(1), full_matrices=False).U
        b, on, nn = b @ turn, torch.einsum("qy,pqhw->pyhw", turn, on), torch.einsum("qy,pqhw->pyhw", turn, nn)
        self.set_residual({"A": a, "B": b, "core": torch.cat([block.flatten(0, 1) for block in (on, no, nn)])})

    def strengths(self) -> list[Tensor]:
        """Norms of the windows of each new row and column. They are norms of the kernel once the columns are orthonormal."""
        return [norms.detach() for norms in self.slice_norms()]

    def energy(self) -> float:
        return float(self.core.double().square().sum())

    def slice_norms(self) -> tuple[Tensor, Tensor]:
        """The same norms, (P,) and (Q,), differentiable."""
        a, b, core = self.residual.values()
        on, no, nn = self.blocks(core, self.before(len(self.ranks)), a.shape[1], b.shape[1])
        rows = torch.cat([no, nn], 1).square().sum((1, 2, 3))
        columns = torch.cat([on, nn], 0).square().sum((0, 2, 3))
        return rows.sqrt(), columns.sqrt()

    def selected(self, *keep: Tensor) -> Factors:
        """The rows keep[0] and columns keep[1]. Without old ones, a task that keeps no row or no column adds nothing."""
        a, b, core = self.residual.values()
        on, no, nn = self.blocks(core, self.before(len(self.ranks)), a.shape[1], b.shape[1])
        rows, columns = keep
        kept = [on[:, columns], no[rows], nn[rows][:, columns]]
        return {"A": a[:, rows], "B": b[:, columns], "core": torch.cat([block.flatten(0, 1) for block in kept])}

    def extent(self, name: str, rank: Rank) -> int:
        if name != "core":
            return rank["AB".index(name)]
        if self.nested:
            return rank[0] * rank[1]
        ends = [(0, 0), *self.ranks]
        steps = [(b[0] - a[0]) * (b[1] - a[1]) for a, b in zip(ends, self.ranks, strict=False)]
        return sum(steps[: ends.index(rank)])

    def whole_core(self, task: int) -> Tensor:
        """The core (P, Q, kh, kw) of a finished task, zero where there is no window."""
        core = self.core.new_zeros(*self.ranks[task], *self.shape[2:])
        for t in range(task + 1):
            (p, q), (end_p, end_q) = self.before(t), self.ranks[t]
            on, no, nn = self.blocks(self.added(t)["core"], (p, q), end_p - p, end_q - q)
            core[p:end_p, q:end_q] = nn
            if self.nested:
                core[:p, q:end_q], core[p:end_p, :q] = on, no
        return core

    def links(self, task: int) -> tuple[Tensor, ...]:
        return self.upto("B", task).T[:, :, None, None], self.whole_core(task), self.upto("A", task)[:, :, None, None]

    def chain(self, x: Tensor, *links: Tensor) -> Tensor:
        """1x1 to Q channels, the core's windows to P, 1x1 to O channels."""
        inner, core, outer = links
        x = F.conv2d(F.conv2d(x, inner), core, None, self.stride, self.padding, self.dilation)
        return F.conv2d(x, outer, self.bias)

    def elements(self, rank: Rank) -> int:
        return self.rows * rank[0] + self.shape[1] * rank[1] + self.extent("core", rank) * math.prod(self.shape[2:])

    def chain_macs(self, rank: Rank, inner: int, outer: int, rows: int) -> int:
        (o, i, kh, kw), (p, q) = self.shape, rank
        return i * q * inner + p * q * kh * kw * outer + o * p * outer


class KroneckerConv2d(FactorisedConv2d):
    """Kernel sum_r |weight_r| A_r (x) B_r with A (R, o1, i1) and B (R, o2, i2, kh, kw) of unit norm, O = o1 o2, I = i1 i2.

    (o1, i1) are the divisors of O and I for which the sizes of A_r and B_r are closest (Hameed et al., AAAI 2022).
    """

    grows: ClassVar = {"A": 0, "B": 0, "weight": 0}
    A: Tensor
    B: Tensor
    weight: Tensor

    def __init__(self, conv: nn.Conv2d, *, bias: bool = False) -> None:
        o, i, kh, kw = conv.weight.shape
        pairs = [(a, b) for a in range(1, o + 1) for b in range(1, i + 1) if o % a == 0 and i % b == 0]
        self.outer = min(pairs, key=lambda p: abs(math.log(p[0] * p[1]) - math.log(o // p[0] * (i // p[1]) * kh * kw)))
        self.inner = (o // self.outer[0], i // self.outer[1], kh, kw)
        super().__init__(conv, bias=bias)

    def fresh(self, pool: Rank, source: torch.Generator) -> Factors:
        """Directions drawn evenly; weights so that together the terms have the variance 2 / (I kh kw) of Kaiming's law."""
        drawn = {name: normal(pool[0], *shape, std=1.0, source=source) for name, shape in (("A", self.outer), ("B", self.inner))}
        weight = normal(pool[0], std=math.sqrt(2 * self.rows / max(pool[0], 1)), source=source)
        return {**{name: unit(factor) for name, factor in drawn.items()}, "weight": weight}

    def compose(self, added: Factors, onto: Tensor, task: int) -> Tensor:
        a = unit(added["A"]) * added["weight"].abs()[:, None, None]
        return onto + torch.einsum("rab,rcdhw->acbdhw", a, unit(added["B"])).reshape(self.rows, self.columns)

    def normalised(self, factors: Factors) -> Factors:
        return {**factors, "A": unit(factors["A"]), "B": unit(factors["B"])}

    def links(self, task: int) -> tuple[Tensor, ...]:
        return unit(self.upto("A", task)) * self.upto("weight", task).abs()[:, None, None], unit(self.upto("B", task))

    def chain(self, x: Tensor, *links: Tensor) -> Tensor:
        """R o2 windows of B on each of i1 groups of channels, then mixed by A."""
        a, b = links
        folded = x.reshape(-1, self.inner[1], *x.shape[2:])
        y = F.conv2d(folded, b.flatten(0, 1), None, self.stride, self.padding, self.dilation)
        y = y.view(x.shape[0], self.outer[1], len(a), self.inner[0], *y.shape[2:])
        out = torch.einsum("nirchw,rai->nachw", y, a).flatten(1, 2)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)

    def elements(self, rank: Rank) -> int:
        return rank[0] * (math.prod(self.outer) + math.prod(self.inner) + 1)

    def chain_macs(self, rank: Rank, inner: int, outer: int, rows: int) -> int:
        return rank[0] * outer * (self.outer[1] * math.prod(self.inner) + math.prod(self.outer) * self.inner[0])


def unit(factor: Tensor) -> Tensor:
    """Each entry along the first dimension divided by its norm."""
    return F.normalize(factor.flatten(1), dim=1).view_as(factor)


class KernelBank(TaskConditional):
    """The same convolution with composed kernels (D, O, I, kh, kw); index[t] is the kernel of task t."""

    def __init__(self, conv: nn.Conv2d, kernels: Tensor, index: list[int]) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.register_buffer("kernels", kernels)
        self.index, self._task = index, 0

    def set_task(self, task: int) -> None:
        self._task = task

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernels[self.index[self._task]], None, self.stride, self.padding, self.dilation)
