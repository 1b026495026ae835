"""Layers that store less for their backward pass: compressed activations, and compact exact forms of ReLU and pooling.

A convolution or linear layer stores its input X only for the gradient of its weight; dL/dX needs the weight alone. Here X is
stored as a Tucker decomposition with orthonormal factors, one for each compressed mode,

    X ~ S x_0 U_0 x_1 U_1 ...,   U_n the leading left singular vectors of the unfolding X_(n),   S = X x_0 U_0^T x_1 U_1^T ...

and dL/dW is computed from the factors without reconstructing X (Nguyen et al., arXiv 2411.06346, where it is called HOSVD). The
outputs, and the gradients passed to earlier layers, are exact. With mode 0 alone compressed this is the truncated SVD of X_(0).
The rank of a mode is the smallest whose squared singular values sum to a share epsilon of all.

Singular vectors come from the Gram matrix X_(n) X_(n)^T, summed and decomposed in float64. This gives the same subspaces, down to
directions with 1e-7 of the energy of a float32 tensor, at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .bits import pack_bits, unfold

PIECE = 4096  # columns
Geometry = tuple[Any, Any, Any, int]  # stride, padding, dilation, groups
# The number of singular directions of a mode to keep, from their energies (squared singular values) in descending order
Choice = Callable[[int, Tensor], int]


@dataclass(frozen=True)
class Decomposed:
    """Activations as core x_0 factors[0] x_1 factors[1] ...; None stands for an uncompressed mode.

    core: (K_0, K_1, ...), with K_n the size of mode n if it has no factor. factors[n]: (M_n, K_n), orthonormal columns.
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
        """The reconstructed activations."""
        return expand(self.core, dict(enumerate(self.factors)))

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """The convolution of x, which stores this in place of x for the backward pass."""
        return CompressedConv2d.apply(x, weight, bias, geometry, self)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return CompressedLinear.apply(x, weight, bias, self)


class Kept(Protocol):
    """What a layer stores of its input, and the layer itself."""

    @property
    def nbytes(self) -> int: ...

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor: ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


def by_energy(epsilon: float) -> Choice:
    """The fewest directions that hold a share epsilon of the energy; all for epsilon >= 1, one if X is zero."""

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
    """ranks[mode] directions, or all if there are fewer."""
    return lambda mode, energies: max(1, min(ranks[mode], len(energies)))


def gram(x: Tensor, mode: int) -> Tensor:
    """X_(mode) X_(mode)^T (M, M) in float64: a sum of products over `PIECE` columns each, in X's dtype, at least float32."""
    x, size = x.float() if x.element_size() < 4 else x, x.shape[mode]
    rows = x.reshape(-1, size).T if mode == x.dim() - 1 else x.movedim(mode, 0).reshape(size, -1)
    total = torch.zeros(size, size, dtype=torch.float64, device=x.device)
    for part in rows.split(PIECE, 1):
        total += part @ part.T
    return total


def leading(x: Tensor, mode: int, choose: Choice, exact: bool = False) -> Tensor | None:
    """The leading left singular vectors (M, K) of X_(mode) in float64; None if X holds infinities or NaN.

    exact: use a singular value decomposition of the unfolding, which is slow, in place of the Gram matrix.
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
    # X V spans the left singular vectors; its columns scale with the singular values, and QR makes them orthonormal
    return None if vectors is None else torch.linalg.qr(rows @ vectors[:, : choose(mode, energies)]).Q


def eigen(symmetric: Tensor) -> tuple[Tensor | None, Tensor]:
    """Eigenvectors and eigenvalues of a positive semi-definite float64 matrix, in descending order; (None, ...) if it holds
    infinities or NaN."""
    trace = symmetric.diagonal().sum()
    if not trace.isfinite():
        return None, symmetric
    scaled = symmetric / trace if trace > 0 else symmetric
    try:
        values, vectors = torch.linalg.eigh(scaled)
    except torch.linalg.LinAlgError:  # divide and conquer may fail if many eigenvalues are equal
        vectors, values, _ = torch.linalg.svd(scaled)
        return vectors, values * trace
    return vectors.flip(1), values.flip(0).clamp_min(0) * trace


def project(x: Tensor, factors: dict[int, Tensor]) -> Tensor:
    """x x_n U_n^T for every mode n of `factors`; the mode that shrinks x most comes first."""
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
    """The decomposition of x on these factors; None if it takes no less memory than x, unless `always`.

    Computed in at least float32, stored in x's dtype."""
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
    """Higher-order SVD of x (M_0, M_1, ...): a factor for each of `modes` (default: all), each computed from x itself.

    None if it takes no less memory than x (unless `always`), or if x holds infinities or NaN."""
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
    """dL/dW (O, C/groups, kh, kw) of a convolution whose input was stored as `kept`; g: dL/dY (B, O, H', W').

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
    """dL/dW (O, I) of a linear layer whose input (..., I) was stored as `kept`; g: dL/dY (..., O)."""
    *leads, last = kept.factors
    g = project(g, {mode: u for mode, u in enumerate(leads) if u is not None})
    product = g.flatten(0, -2).T @ kept.core.flatten(0, -2)
    return product if last is None else product @ last.T


class CompressedConv2d(torch.autograd.Function):
    """conv2d that stores `kept` in place of its input."""

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
    """linear that stores `kept` in place of its input."""

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
    """What gradient filtering (Yang et al., CVPR 2023) stores of a convolution's input: sums over patches, (B, C, p, q).

    A patch belongs to radius x radius outputs, at most all of them. The input is padded with zeros, or cropped, equally on both
    sides. With a stride a patch covers more pixels than its outputs read, so the sums are divided by the area of the stride.
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
    """conv2d with filtered gradients: g (B, O, p, q) is dL/dY averaged over r x r patches, S is X summed over them, and

        dL/dW[o, c] = sum_{b, patch} g[b, o] S[b, c] at every tap;   dL/dX = W^T g all over each patch, W summed over its taps

    the second is divided by the area of the stride, because a pixel meets that many fewer taps.
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
                before = (full - length) // 2  # padding (or cropping) before the first element
                pads += [-before, length - full + before]
            x = F.pad(whole, pads)
        w = w[:, :, None, None].expand(ctx.kernel)
        return x, w, g.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None, None


@dataclass(frozen=True)
class Probed:
    """Stores the input itself. The backward pass adds to `found`, for each share, the result of HOSVD at that share:
    (||dW - dW'||_F, summed over the layers that read the input, bytes, ranks)."""

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
    """The identity on y. It gives the weight its exact gradient and evaluates the compressed ones."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, probe: Probed, geometry: Geometry | None) -> Tensor:
        ctx.probe, ctx.geometry = probe, geometry
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(y)  # return y itself: a view of it could not be rectified in place
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


def masked(g: Tensor, mask: Tensor) -> Tensor:
    """g where the mask is 1, else 0; several times faster than torch.where."""
    return torch.ops.aten.threshold_backward(g, mask.to(g.dtype), 0)


class MaskedReLU(torch.autograd.Function):
    """ReLU that stores one bit per element in place of its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        y = torch.relu_(x) if inplace else torch.relu(x)
        # In memory order, so that gradients have the same layout as with plain ReLU and later sums are rounded alike
        ctx.last = not y.is_contiguous() and y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)
        flat = y.permute(0, 2, 3, 1) if ctx.last else y
        ctx.size = flat.shape
        ctx.save_for_backward(pack_bits(flat.bool(), 1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (packed,) = ctx.saved_tensors
        mask = unfold(packed, "bits", ctx.size)
        return masked(g, mask.permute(0, 3, 1, 2) if ctx.last else mask), None


class CodedMaxPool2d(torch.autograd.Function):
    """2 x 2 max pooling with stride 2 that stores two bits per output: the index of its maximum, the first of equals."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.size = x.shape
        a, b, c, d = CodedMaxPool2d.corners(x)
        above, below = torch.maximum(a, b), torch.maximum(c, d)
        y, lower = torch.maximum(above, below), below > above
        right = (lower & (d > c)) | (~lower & (b > a))
        ctx.out = y.shape
        ctx.save_for_backward(pack_bits(lower.view(torch.uint8) * 2 + right.view(torch.uint8), 2))
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
    """2-d average pooling that stores only the size of its input."""

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
