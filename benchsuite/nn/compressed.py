"""Layers that keep less for their backward pass: compressed activation maps, and exact book-keeping for ReLU and pooling.

A convolution or linear layer keeps its input X for one thing alone, the gradient of its weight; dL/dX needs the weight only.
Here X is kept as a Tucker decomposition with orthonormal factors, one for each mode that is compressed,

    X ~ S x_0 U_0 x_1 U_1 ...,   U_n the leading left singular vectors of the unfolding X_(n),   S = X x_0 U_0^T x_1 U_1^T ...

and dL/dW is computed from the factors without putting X together again (Nguyen et al., arXiv 2411.06346, there HOSVD). What goes
forward, and what goes back to earlier layers, is exact. Only mode 0 compressed is the truncated SVD of X_(0). The rank of a mode
is the smallest whose squared singular values sum to a share epsilon of all.

Singular vectors come from the Gram matrix X_(n) X_(n)^T, summed and decomposed in float64: the same subspaces, down to directions
that hold 1e-7 of the energy of a float32 map, at a fraction of the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIECE = 4096  # columns
Geometry = tuple[Any, Any, Any, int]  # stride, padding, dilation, groups
# How many of the singular directions of a mode to keep, from their energies (squared singular values) in descending order
Choice = Callable[[int, Tensor], int]


@dataclass(frozen=True)
class Decomposed:
    """A map as core x_0 factors[0] x_1 factors[1] ...; None stands for a mode that is left as it is.

    core: (K_0, K_1, ...), with K_n the size of mode n where it has no factor. factors[n]: (M_n, K_n), orthonormal columns.
    """

    core: Tensor
    factors: tuple[Tensor | None, ...]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.core, *(u for u in self.factors if u is not None)]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def map(self) -> Tensor:
        """The whole map."""
        return expand(self.core, dict(enumerate(self.factors)))

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """The convolution of x, with this in its place for the backward pass."""
        return CompressedConv2d.apply(x, weight, bias, geometry, self)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return CompressedLinear.apply(x, weight, bias, self)


class Kept(Protocol):
    """What a layer keeps of its input, and the layer that keeps it."""

    @property
    def nbytes(self) -> int: ...

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor: ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


def by_energy(epsilon: float) -> Choice:
    """The fewest directions that hold a share epsilon of the energy; all for epsilon >= 1, one of a map that is zero."""

    def choose(mode: int, energies: Tensor) -> int:
        if epsilon >= 1:
            return len(energies)
        total = energies.sum()
        if not total > 0:
            return 1
        share = energies.cumsum(0) / total
        return min(int(torch.searchsorted(share, epsilon)) + 1, len(energies))

    return choose


def by_rank(ranks: Sequence[int]) -> Choice:
    """ranks[mode] directions, or as many as there are."""
    return lambda mode, energies: max(1, min(ranks[mode], len(energies)))


def gram(x: Tensor, mode: int) -> Tensor:
    """X_(mode) X_(mode)^T (M, M) in float64: a sum of products over `PIECE` columns each, in the map's type, float32 at least."""
    x, size = x.float() if x.element_size() < 4 else x, x.shape[mode]
    rows = x.reshape(-1, size).T if mode == x.dim() - 1 else x.movedim(mode, 0).reshape(size, -1)
    total = torch.zeros(size, size, dtype=torch.float64, device=x.device)
    for part in rows.split(PIECE, 1):
        total += part @ part.T
    return total


def leading(x: Tensor, mode: int, choose: Choice, exact: bool = False) -> Tensor | None:
    """The leading left singular vectors (M, K) of X_(mode) in float64; None for a map that holds infinities or NaN.

    exact: by a singular value decomposition of the unfolding, which is slow, in place of the Gram matrix.
    """
    size = x.shape[mode]
    others = x.numel() // size
    if exact:
        rows = x.movedim(mode, 0).reshape(size, others)
        if not rows.isfinite().all():
            return None
        u, s, _ = torch.linalg.svd(rows.float() if rows.element_size() < 4 else rows, full_matrices=False)
        return u[:, : choose(mode, s.double().square())].double()
    if size <= others:
        vectors, energies = eigen(gram(x, mode))
        return None if vectors is None else vectors[:, : choose(mode, energies)]
    rows = x.movedim(mode, 0).reshape(size, others).double()
    vectors, energies = eigen(rows.T @ rows)
    # X V spans what the left vectors span; its columns shrink with the singular values, and QR makes them orthonormal
    return None if vectors is None else torch.linalg.qr(rows @ vectors[:, : choose(mode, energies)]).Q


def eigen(symmetric: Tensor) -> tuple[Tensor | None, Tensor]:
    """Eigenvectors and eigenvalues of a positive semi-definite float64 matrix, the largest first; (None, ...) where it holds
    infinities or NaN."""
    trace = symmetric.diagonal().sum()
    if not trace.isfinite():
        return None, symmetric
    scaled = symmetric / trace if trace > 0 else symmetric
    try:
        values, vectors = torch.linalg.eigh(scaled)
    except torch.linalg.LinAlgError:  # divide and conquer may fail where many eigenvalues are equal
        vectors, values, _ = torch.linalg.svd(scaled)
        return vectors, values * trace
    return vectors.flip(1), values.flip(0).clamp_min(0) * trace


def project(x: Tensor, factors: dict[int, Tensor]) -> Tensor:
    """x x_n U_n^T for every mode n of `factors`, what shrinks it most first."""
    for mode, u in sorted(factors.items(), key=lambda item: item[1].shape[1] / item[1].shape[0]):
        x = torch.tensordot(u.to(x.dtype), x, ([0], [mode])).movedim(0, mode)
    return x


def expand(core: Tensor, factors: dict[int, Tensor | None]) -> Tensor:
    """core x_n U_n for every mode n of `factors`."""
    for mode, u in factors.items():
        if u is not None:
            core = torch.tensordot(u, core, ([1], [mode])).movedim(0, mode)
    return core


@torch.no_grad()
def decompose(x: Tensor, factors: Sequence[Tensor | None], always: bool = False) -> Decomposed | None:
    """The map on these factors; None where it would take no less memory than the map itself, unless `always`.

    Computed in float32 at least, kept in the map's own type."""
    used = {mode: u for mode, u in enumerate(factors) if u is not None}
    size = 1
    for mode, length in enumerate(x.shape):
        size *= used[mode].shape[1] if mode in used else length
    if not always and size + sum(u.numel() for u in used.values()) >= x.numel():
        return None
    core = project(x.float() if x.element_size() < 4 else x, used).to(x.dtype).contiguous()
    kept = {mode: u.to(x.dtype, copy=True, memory_format=torch.contiguous_format) for mode, u in used.items()}  # no view
    return Decomposed(core, tuple(kept.get(mode) for mode in range(x.dim())))


@torch.no_grad()
def hosvd(
    x: Tensor, choose: Choice, modes: Sequence[int] | None = None, *, exact: bool = False, always: bool = False
) -> Decomposed | None:
    """Higher-order SVD of a map (M_0, M_1, ...): a factor for each of `modes` (all), every one from the map itself.

    None where it would take no less memory than the map (unless `always`) and for a map with infinities or NaN."""
    factors: list[Tensor | None] = [None] * x.dim()
    for mode in range(x.dim()) if modes is None else modes:
        factors[mode] = leading(x, mode, choose, exact)
        if factors[mode] is None:
            return None
    return decompose(x, factors, always)


def power_step(x: Tensor, mode: int, basis: Tensor) -> Tensor:
    """Orthonormal columns (M, K) after one step of subspace iteration on X_(mode) X_(mode)^T from `basis` (M, K)."""
    wide = x.float() if x.element_size() < 4 else x
    rest = [m for m in range(x.dim()) if m != mode]
    inner = torch.tensordot(basis.to(wide.dtype), wide, ([0], [mode]))  # (K, the other modes)
    return torch.linalg.qr(torch.tensordot(wide, inner, (rest, list(range(1, x.dim()))))).Q


def conv_weight_gradient(kept: Decomposed, g: Tensor, size: Sequence[int], geometry: Geometry) -> Tensor:
    """dL/dW (O, C/groups, kh, kw) of a convolution whose input was kept as `kept`; g: dL/dY (B, O, H', W').

    With Z_1 = g x_0 U_0^T and Z_3 = S x_2 U_2 x_3 U_3, a weight gradient with K_0 "images" and K_1 "channels" gives Z_4, and
    dL/dW = Z_4 U_1^T over the channels of each group.
    """
    stride, padding, dilation, groups = geometry
    batch, channels, *space = kept.factors
    if batch is not None:
        g = project(g, {0: batch})
    x = expand(kept.core, {2: space[0], 3: space[1]})
    out, inner, kh, kw = size
    if channels is None:
        return torch.nn.grad.conv2d_weight(x, size, g, stride, padding, dilation, groups)
    z = torch.nn.grad.conv2d_weight(x, (out, x.shape[1], kh, kw), g, stride, padding, dilation)
    u = channels.view(groups, inner, -1)
    return torch.einsum("gokij,gck->gocij", z.view(groups, out // groups, -1, kh, kw), u).reshape(size)


def linear_weight_gradient(kept: Decomposed, g: Tensor) -> Tensor:
    """dL/dW (O, I) of a linear layer whose input (..., I) was kept as `kept`; g: dL/dY (..., O)."""
    *leads, last = kept.factors
    g = project(g, {mode: u for mode, u in enumerate(leads) if u is not None})
    product = g.flatten(0, -2).T @ kept.core.flatten(0, -2)
    return product if last is None else product @ last.T


class CompressedConv2d(torch.autograd.Function):
    """conv2d that keeps `kept` in place of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, kept: Decomposed) -> Tensor:
        ctx.geometry, ctx.size = geometry, x.shape
        ctx.places = [u is not None for u in kept.factors]
        ctx.save_for_backward(weight, *kept.tensors)
        stride, padding, dilation, groups = geometry
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, kept = _kept(ctx)
        x = torch.nn.grad.conv2d_input(ctx.size, weight, g, *ctx.geometry) if ctx.needs_input_grad[0] else None
        w = conv_weight_gradient(kept, g, weight.shape, ctx.geometry) if ctx.needs_input_grad[1] else None
        return x, w, g.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None, None


class CompressedLinear(torch.autograd.Function):
    """linear that keeps `kept` in place of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Decomposed) -> Tensor:
        ctx.places = [u is not None for u in kept.factors]
        ctx.save_for_backward(weight, *kept.tensors)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, kept = _kept(ctx)
        x = g @ weight if ctx.needs_input_grad[0] else None
        w = linear_weight_gradient(kept, g) if ctx.needs_input_grad[1] else None
        return x, w, g.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None, None


def _kept(ctx: Any) -> tuple[Tensor, Decomposed]:
    weight, core, *rest = ctx.saved_tensors
    factors = iter(rest)
    return weight, Decomposed(core, tuple(next(factors) if there else None for there in ctx.places))


@dataclass(frozen=True)
class Filtered:
    """What gradient filtering (Yang et al., CVPR 2023) keeps of a convolution's input: its sums over patches, (B, C, p, q).

    A patch belongs to radius x radius outputs, at most all of them; the map is padded with zeros, or cropped, alike on both
    sides. A stride makes its window larger than the pixels that its outputs read, so the sums are divided by the stride's area.
    """

    sums: Tensor
    radius: int

    @staticmethod
    def of(x: Tensor, kernel: Sequence[int], geometry: Geometry, radius: int) -> Filtered:
        """kernel: (kh, kw)."""
        sizes = list(zip(x.shape[2:], kernel, *geometry[:3], strict=True))
        outputs = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
        radius, stride, pads = min(radius, max(outputs)), geometry[0], []
        for n, s, out in reversed(list(zip(x.shape[2:], stride, outputs, strict=True))):
            missing = -(-out // radius) * radius * s - n
            pads += [missing // 2, missing - missing // 2]
        window = (radius * stride[0], radius * stride[1])
        return Filtered(F.avg_pool2d(F.pad(x, pads), window) * radius**2, radius)

    @property
    def nbytes(self) -> int:
        return self.sums.numel() * self.sums.element_size()

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return FilteredConv2d.apply(x, weight, bias, geometry, self)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError("a linear layer has no patches")


class FilteredConv2d(torch.autograd.Function):
    """conv2d whose gradients are filtered: dL/dY is averaged over r x r patches to g (B, O, p, q), X summed over them to S, and

        dL/dW[o, c] = sum_{b, patch} g[b, o] S[b, c] at every tap;   dL/dX = W^T g all over each patch, W summed over its taps

    the second divided by the area of a stride, as a pixel meets so many fewer taps.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, kept: Filtered) -> Tensor:
        ctx.geometry, ctx.size, ctx.radius, ctx.kernel = geometry, x.shape, kept.radius, weight.shape
        ctx.save_for_backward(kept.sums, weight.sum((2, 3)))
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        sums, weight = ctx.saved_tensors
        (sh, sw), _, _, groups = ctx.geometry
        b, r = len(g), ctx.radius
        mean = F.avg_pool2d(g, r, ceil_mode=True, count_include_pad=False)
        p, q = mean.shape[2:]
        by_group = mean.view(b, groups, -1, p, q)
        w = torch.einsum("bgopq,bgcpq->goc", by_group, sums.view(b, groups, -1, p, q)).reshape(weight.shape)
        x = None
        if ctx.needs_input_grad[0]:
            back = torch.einsum("goc,bgopq->bgcpq", weight.view(groups, -1, weight.shape[1]), by_group).flatten(1, 2) / (sh * sw)
            whole = back.repeat_interleave(r * sh, 2).repeat_interleave(r * sw, 3)
            pads: list[int] = []
            for length, full in ((ctx.size[3], whole.shape[3]), (ctx.size[2], whole.shape[2])):
                before = (full - length) // 2  # what was put on, or taken off, in front
                pads += [-before, length - full + before]
            x = F.pad(whole, pads)
        w = w[:, :, None, None].expand(ctx.kernel)
        return x, w, g.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None, None


@dataclass(frozen=True)
class Probed:
    """The input itself; the backward pass writes to `found`, for each share, what HOSVD at that share would do:
    (||dW - dW'||_F, in sum over the layers that read the input, bytes, ranks)."""

    x: Tensor
    shares: Sequence[float]
    found: list[tuple[float, int, list[int]]]

    @property
    def nbytes(self) -> int:
        return self.x.numel() * self.x.element_size()

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return _Probe.apply(F.conv2d(x, weight.detach(), bias, *geometry), x, weight, self, geometry)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _Probe.apply(F.linear(x, weight.detach(), bias), x, weight, self, None)


class _Probe(torch.autograd.Function):
    """The identity on y, which gives the weight its exact gradient and looks at the compressed ones."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, probe: Probed, geometry: Geometry | None) -> Tensor:
        ctx.probe, ctx.geometry = probe, geometry
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(y)  # y itself goes on: a view of it could not be rectified in place
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors

        def gradient(kept: Decomposed) -> Tensor:
            if ctx.geometry is None:
                return linear_weight_gradient(kept, g)
            return conv_weight_gradient(kept, g, weight.shape, ctx.geometry)

        exact = gradient(Decomposed(x, (None,) * x.dim()))
        found, before = ctx.probe.found, list(ctx.probe.found)
        found.clear()
        for i, share in enumerate(ctx.probe.shares):
            kept = hosvd(x, by_energy(share), always=True)
            if kept is not None:
                error = float((gradient(kept) - exact).float().norm()) + (before[i][0] if before else 0)
                found.append((error, kept.nbytes, list(kept.core.shape)))
        return g, None, exact, None, None


# Eight bytes of 0 or 1 become the bits of one by a multiplication: byte i is shifted to bit i of the highest byte.
_BITS = sum(1 << (56 - 7 * i) for i in range(8))
_PAIRS = sum(1 << (24 - 6 * i) for i in range(4))  # and four numbers below 4


def pack(values: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2^bits, bits 1 or 2, in uint8 or bool of any shape, as bytes without gaps."""
    flat = values.reshape(-1).view(torch.uint8)
    if missing := -len(flat) % (8 // bits):
        flat = F.pad(flat, (0, missing))
    if bits == 1:
        return ((flat.view(torch.int64) * _BITS) >> 56).to(torch.uint8)
    return ((flat.view(torch.int32) * _PAIRS) >> 24).to(torch.uint8)


@cache
def _table(kind: int | str, device: torch.device) -> Tensor:
    """(256,) of eight bytes as one int64 each: what a packed byte unfolds to.

    kind "bits": its eight bits. kind 0 or 1: which pixels of the upper (0) or lower (1) row of a 2 x 2 window each of its four
    numbers below 4 names, two pixels for each number."""
    byte = torch.arange(256, device=device)[:, None]
    if kind == "bits":
        unfolded = (byte >> torch.arange(8, device=device)) & 1
    else:
        numbers = (byte >> torch.arange(0, 8, 2, device=device)) & 3
        unfolded = (numbers[:, :, None] == 2 * int(kind) + torch.arange(2, device=device)).flatten(1)
    return unfolded.to(torch.uint8).view(torch.int64).squeeze(1)


def unfold(packed: Tensor, kind: int | str, shape: Sequence[int]) -> Tensor:
    """uint8 0 or 1 of that shape from packed bytes, see `_table`."""
    flat = _table(kind, packed.device).index_select(0, packed.int()).view(torch.uint8)
    return flat[: math.prod(shape)].view(*shape)


def masked(g: Tensor, mask: Tensor) -> Tensor:
    """g where the mask is 1, else 0; several times as fast as torch.where."""
    return torch.ops.aten.threshold_backward(g, mask.to(g.dtype), 0)


class MaskedReLU(torch.autograd.Function):
    """ReLU that keeps one bit for each element in place of its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        y = torch.relu_(x) if inplace else torch.relu(x)
        # In the order in which it lies in memory, so that gradients lie as the plain one's do and later sums are rounded alike
        ctx.last = not y.is_contiguous() and y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)
        flat = y.permute(0, 2, 3, 1) if ctx.last else y
        ctx.size = flat.shape
        ctx.save_for_backward(pack(flat.bool(), 1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (packed,) = ctx.saved_tensors
        mask = unfold(packed, "bits", ctx.size)
        return masked(g, mask.permute(0, 3, 1, 2) if ctx.last else mask), None


class CodedMaxPool2d(torch.autograd.Function):
    """2 x 2 max pooling with stride 2 that keeps two bits for each output: which of its inputs it was, the first of equals."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.size = x.shape
        a, b, c, d = CodedMaxPool2d.corners(x)
        above, below = torch.maximum(a, b), torch.maximum(c, d)
        y, lower = torch.maximum(above, below), below > above
        right = (lower & (d > c)) | (~lower & (b > a))
        ctx.out = y.shape
        ctx.save_for_backward(pack(lower.view(torch.uint8) * 2 + right.view(torch.uint8), 2))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (packed,) = ctx.saved_tensors
        b, c, p, q = ctx.out
        x = g.new_zeros(ctx.size)
        doubled = g.unsqueeze(4).expand(b, c, p, q, 2).reshape(b, c, p, 2 * q)
        for row in (0, 1):
            x[:, :, row : 2 * p : 2, : 2 * q] = masked(doubled, unfold(packed, row, doubled.shape))
        return x

    @staticmethod
    def corners(x: Tensor) -> list[Tensor]:
        """The four pixels of every window, row by row: (B, C, H // 2, W // 2) each."""
        p, q = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        return [x[:, :, i:p:2, j:q:2] for i in (0, 1) for j in (0, 1)]


class SizedAvgPool2d(torch.autograd.Function):
    """2-d average pooling that keeps the size of its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Any, stride: Any) -> Tensor:
        ctx.size, ctx.kernel, ctx.stride = x.shape, kernel, stride
        return F.avg_pool2d(x, kernel, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        pair = [[n, n] if isinstance(n, int) else list(n) for n in (ctx.kernel, ctx.stride)]
        shape = g.new_empty(()).expand(ctx.size)  # only its size is read
        return torch.ops.aten.avg_pool2d_backward(g, shape, *pair, [0, 0], False, True, None), None, None
