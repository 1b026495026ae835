"""Factorisations of a given kernel: truncated SVD, Tucker-2 (tensorly's `partial_tucker`) and CP (`parafac`), with their ranks.

Kernels are (O, I, kh, kw). Everything but the sweeps of CP is computed in float64. With a covariance S of the layer's inputs the
factors minimise the error of its outputs: W S^1/2 is decomposed, and S^-1/2 is absorbed into the factors (SVD-LLM, arXiv
2403.07378, with the symmetric root, which also exists if S is singular).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import tensorly
import torch
from scipy.optimize import minimize_scalar
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn
from torch.nn import functional as F

from .compressed import by_energy
from .factorised import Factors, Rank

RankRule = Literal["ratio", "energy", "evbmf"]
# A CP fit with a kappa above this is rejected, because its terms cancel each other. Good fits of trained kernels have 2.4 to 5.9
# on split-cifar100 at lite; fits of a tensor without a best approximation have 6.3 and more after 200 sweeps.
DEGENERATE = 6.0
SMALL = 2**15  # up to this many numbers in a kernel, many sweeps of CP are cheap


class DegenerateFit(ValueError):
    """CP terms of large norm that cancel each other; unfit for further training."""


def windows(conv: Any, x: Tensor) -> Tensor:
    """The unfolded windows (n, I kh kw) of a convolution's input."""
    return F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride).transpose(1, 2).flatten(0, 1)


@contextmanager
def second_moments(layers: Mapping[str, nn.Module], rows: Callable[[Any, Tensor], Tensor]) -> Iterator[dict[str, Tensor]]:
    """Context that gives, at its end, the second moment (features, features) of what every layer has read in it, by name.
    rows: (n, features) of a layer's input."""
    found: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(conv: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
            read = rows(conv, given[0]).double()
            found[name] = found[name] + read.T @ read if name in found else read.T @ read
            counts[name] = counts.get(name, 0) + len(read)

        return hook

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    for name, count in counts.items():
        found[name] /= count


def kept_energy(matrix: Tensor, share: float) -> int:
    """The fewest leading singular values that carry `share` of the squared norm; at least 1, all for share >= 1."""
    energy = torch.linalg.svdvals(matrix.double()).square()
    return by_energy(share)(0, energy)


def evbmf_rank(matrix: Tensor) -> int:
    """Rank by the global analytic solution of empirical variational Bayes matrix factorisation with estimated noise
    (Nakajima et al., JMLR 14, 2013; as rank selection: Kim et al., arXiv 1511.06530); at least 1."""
    rows, columns = sorted(matrix.shape)
    s = torch.linalg.svdvals(matrix.double()).cpu().numpy()
    alpha = rows / columns
    tau_bar = 2.5129 * math.sqrt(alpha)
    edge = (1 + tau_bar) * (1 + alpha / tau_bar)
    total = float((s**2).sum())
    if total == 0:
        return 1

    def tau(x: np.ndarray) -> np.ndarray:
        return 0.5 * (x - (1 + alpha) + np.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha))

    def free_energy(log_variance: float) -> float:
        x = s**2 / (columns * math.exp(log_variance))
        large, small = x[x > edge], x[x <= edge]
        t = tau(large)
        value = np.sum(large - t) + np.sum(np.log((t + 1) / large)) + alpha * np.sum(np.log(t / alpha + 1))
        return float(value + np.sum(small - np.log(np.maximum(small, np.finfo(float).tiny))))

    h = min(math.ceil(rows / (1 + alpha)) - 1, rows - 1)
    low = max(s[h] ** 2 / (columns * edge), float(np.mean(s[h:] ** 2)) / columns)
    high = total / (rows * columns)
    low = min(max(low, high * 1e-12), high * (1 - 1e-9))
    # on a logarithmic scale: the search has an absolute tolerance, and the scale of the matrix must not matter
    found = minimize_scalar(free_energy, bounds=(math.log(low), math.log(high)), method="bounded").x
    return max(1, int((s > math.sqrt(columns * math.exp(found) * edge)).sum()))


def roots(covariance: Tensor, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """(S^1/2, S^-1/2) of the covariance shrunk towards a multiple of the identity: S <- (1 - ridge) S + ridge tr(S) / n I."""
    n = len(covariance)
    shrunk = (1 - ridge) * covariance.double()
    shrunk.diagonal().add_(ridge * float(covariance.double().trace()) / n or 1.0)
    values, vectors = torch.linalg.eigh(shrunk)
    return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T


def svd_rank(kernel: Tensor, rule: RankRule, ratio: float, energy: float) -> Rank:
    matrix = kernel.flatten(1)
    rows, columns = matrix.shape
    if rule == "energy":
        rank = kept_energy(matrix, energy)
    elif rule == "evbmf":
        rank = evbmf_rank(matrix)
    else:
        rank = int(ratio * rows * columns / (rows + columns + 1))
    return (min(max(rank, 1), rows, columns),)


def svd(kernel: Tensor, rank: Rank, covariance: Tensor | None = None) -> Factors:
    """covariance: (I kh kw, I kh kw), of the unfolded input."""
    matrix = kernel.detach().double().flatten(1)
    root, inverse = (None, None) if covariance is None else roots(covariance)
    u, s, v = torch.linalg.svd(matrix if root is None else matrix @ root, full_matrices=False)
    r = rank[0]
    return {"N": u[:, :r], "sigma": s[:r], "C": v[:r] if inverse is None else v[:r] @ inverse}


def tucker_rank(kernel: Tensor, rule: RankRule, ratio: float, energy: float) -> Rank:
    out, inner = kernel.shape[:2]
    if rule == "ratio":  # the same share c on both sides: c^2 O I k^2 + c (O^2 + I^2) = ratio O I k^2
        dense = kernel.numel()
        b = out**2 + inner**2
        c = (-b + math.sqrt(b**2 + 4 * dense * ratio * dense)) / (2 * dense)
        ranks = [int(c * out), int(c * inner)]
    else:
        choose: Callable[[Tensor], int] = evbmf_rank if rule == "evbmf" else lambda m: kept_energy(m, energy)
        ranks = [choose(kernel.flatten(1)), choose(kernel.transpose(0, 1).flatten(1))]
    p, q = min(max(ranks[0], 1), out), min(max(ranks[1], 1), inner)
    windows = kernel[0, 0].numel()
    return min(p, q * windows), min(q, p * windows)  # the rank of one side is at most that of the other times the windows


def tucker(kernel: Tensor, rank: Rank, covariance: Tensor | None = None) -> Factors:
    """covariance: (I, I), of the input's channels."""
    whitened, inverse = channels_whitened(kernel, covariance)
    with tensorly.backend_context("pytorch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (core, (a, b)), _ = partial_tucker(whitened, rank=list(rank), modes=[0, 1], init="svd", n_iter_max=100)
    return {"A": a, "B": b if inverse is None else inverse @ b, "core": core.reshape(-1, *kernel.shape[2:])}


def cp_rank(kernel: Tensor, rule: RankRule, ratio: float, energy: float) -> Rank:
    """By energy: the smallest rank with a relative error of at most sqrt(1 - energy), by bisection over fits."""
    if rule == "evbmf":
        raise ValueError("there is no EVBMF of a CP rank; use rank_by=ratio or rank_by=energy")
    most = kernel.numel() // (sum(kernel.shape) + 1)
    if rule == "ratio":
        return (max(round(ratio * kernel.numel() / (sum(kernel.shape) + 1)), 1),)
    low, high, norm = 0, max(most, 1), float(kernel.double().norm())
    while high - low > 1:
        middle = (low + high) // 2
        error = float((compose_cp(cp_fit(kernel.detach(), middle, 1e-5)) - kernel).norm()) / (norm or 1.0)
        low, high = (low, middle) if error <= math.sqrt(1 - energy) else (middle, high)
    return (high,)


def cp_fit(kernel: Tensor, rank: int, penalty: float, sweeps: int | None = None) -> Factors:
    """Alternating least squares with an L2 penalty; unit-norm factors, non-negative weights. Starts from singular vectors, or at
    random if these lead to a singular system. sweeps: 200 by default, 50 on large kernels."""
    sweeps = sweeps or (200 if kernel.numel() <= SMALL else 50)

    def fit(start: str) -> tuple[Tensor, list[Tensor]]:
        return parafac(
            kernel, rank, n_iter_max=sweeps, init=start, l2_reg=penalty, normalize_factors=True, random_state=0, tol=1e-9
        )

    with tensorly.backend_context("pytorch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if a mode is shorter than the rank, its singular vectors are padded at random
        try:
            weight, (a, b, d, e) = fit("svd")
        except torch.linalg.LinAlgError:
            weight, (a, b, d, e) = fit("random")
    return {"A": a * weight.sign(), "B": b, "D": d, "E": e, "weight": weight.abs()}


def compose_cp(factors: Factors) -> Tensor:
    return torch.einsum("or,ir,hr,wr->oihw", factors["A"] * factors["weight"], factors["B"], factors["D"], factors["E"])


def kappa(factors: Factors, kernel: Tensor) -> float:
    """sum_r w_r^2 / ||W||^2: 1 for orthogonal terms, far above 1 if terms cancel (Phan et al., arXiv 2008.05441)."""
    return float(factors["weight"].square().sum() / kernel.double().square().sum().clamp_min(torch.finfo(torch.float64).tiny))


def cp(kernel: Tensor, rank: Rank, covariance: Tensor | None = None, kappas: list[float] | None = None) -> Factors:
    """covariance: (I, I), of the input's channels. A degenerate fit is repeated with a stronger penalty; raises
    DegenerateFit if none helps. kappas: a list to which the kappa of every fit is appended."""
    whitened, inverse = channels_whitened(kernel, covariance)
    scale = float(whitened.norm()) or 1.0
    for penalty in (1e-5, 1e-3, 1e-1):
        fit = cp_fit((whitened / scale).to(kernel.dtype), rank[0], penalty)  # the slow part
        factors = {name: factor.double() for name, factor in fit.items()}
        factors["weight"] = factors["weight"] * scale
        if inverse is not None:
            b = inverse @ factors["B"]
            norms = b.norm(dim=0)
            factors |= {"B": b / norms.clamp_min(torch.finfo(torch.float64).tiny), "weight": factors["weight"] * norms}
        found = kappa(factors, kernel)
        if kappas is not None:
            kappas.append(found)
        if found <= DEGENERATE:
            return factors
    raise DegenerateFit(f"a CP fit of rank {rank[0]} to a kernel {tuple(kernel.shape)} is degenerate; use a lower rank")


def channels_whitened(kernel: Tensor, covariance: Tensor | None) -> tuple[Tensor, Tensor | None]:
    double = kernel.detach().double()
    if covariance is None:
        return double, None
    root, inverse = roots(covariance)
    return torch.einsum("oihw,ij->ojhw", double, root), inverse
