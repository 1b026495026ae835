"""Factors of given kernels against their bounds and planted truths, and the methods that train with them."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from short_runs import make, trained

from benchsuite.errors import UserError
from benchsuite.methods.individual_svd import IndividualSVD
from benchsuite.nn import decompose
from benchsuite.nn.factorised import CPConv2d, SVDConv2d, TuckerConv2d
from benchsuite.training.settings import resolve

KINDS = {
    "svd": (SVDConv2d, decompose.svd, decompose.svd_rank),
    "tucker": (TuckerConv2d, decompose.tucker, decompose.tucker_rank),
    "cp": (CPConv2d, decompose.cp, decompose.cp_rank),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def composed(kind, kernel, rank, **words):
    layer = KINDS[kind][0](torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:])).double())
    layer.set_residual(KINDS[kind][1](kernel, rank, **words))
    return layer.compose(layer.residual, torch.zeros_like(kernel).flatten(1), 0).detach().view_as(kernel)


def tail(matrix, rank):
    return float(torch.linalg.svdvals(matrix)[rank:].square().sum())


def test_full_rank_is_exact_and_less_is_the_best_there_is():
    kernel = normal(6, 5, 3, 2)
    assert torch.allclose(composed("svd", kernel, (6,)), kernel)
    assert torch.allclose(composed("tucker", kernel, (6, 5)), kernel)
    error = float((composed("svd", kernel, (4,)) - kernel).square().sum())
    assert error == pytest.approx(tail(kernel.flatten(1), 4))
    p, q = 4, 3
    modes = [kernel.flatten(1), kernel.transpose(0, 1).flatten(1)]
    sides = [torch.linalg.svd(mode, full_matrices=False).U[:, :n] for mode, n in zip(modes, (p, q), strict=True)]
    once = torch.einsum("xo,oihw,iy->xyhw", sides[0] @ sides[0].T, kernel, sides[1] @ sides[1].T)
    error = float((composed("tucker", kernel, (p, q)) - kernel).square().sum())
    bounds = [tail(mode, n) for mode, n in zip(modes, (p, q), strict=True)]
    assert max(bounds) <= error <= float((once - kernel).square().sum()) + 1e-9 <= sum(bounds) + 1e-9


def test_cp_finds_planted_terms():
    a, b, d, e = (normal(n, 3, seed=n) for n in (8, 7, 3, 2))
    kernel = torch.einsum("or,ir,hr,wr->oihw", a, b, d, e)
    assert (composed("cp", kernel, (3,)) - kernel).norm() < 1e-2 * kernel.norm()
    assert (composed("cp", kernel, (1,)) - kernel).norm() > 0.1 * kernel.norm()  # control
    found = decompose.cp(kernel, (3,))
    assert all(torch.allclose(found[name].norm(dim=0), torch.ones(3, dtype=torch.float64)) for name in "ABDE")
    assert found["weight"].min() >= 0


@pytest.mark.parametrize("shape", [(64, 576), (576, 64)])
@pytest.mark.parametrize("rank", [3, 10])
def test_evbmf_finds_planted_ranks_whatever_the_side_and_the_scale(shape, rank):
    matrix = normal(shape[0], rank, seed=1) @ normal(rank, shape[1], seed=2) + normal(*shape, seed=3)
    for scale in (1.0, 1e-3, 50.0):
        assert decompose.evbmf_rank(scale * matrix) == rank
        assert decompose.evbmf_rank(scale * matrix.T) == rank


def spectra():
    """Matrices without a gap in their singular values r^-1 and r^-2, and one of rank 3 that hardly stands out of its noise."""
    left, right = (torch.linalg.qr(normal(rows, 64, seed=rows)).Q for rows in (64, 576))
    powers = [(left * torch.arange(1, 65, dtype=torch.float64) ** -power) @ right.T for power in (1, 2)]
    return [*powers, 0.4 * normal(64, 3, seed=1) @ normal(3, 576, seed=2) + normal(64, 576, seed=3)]


def test_evbmf_does_not_depend_on_the_scale_where_there_is_no_gap(monkeypatch):
    def ranks():
        return [{decompose.evbmf_rank(scale * matrix) for scale in (1e-4, 1e-2, 1.0, 1e3)} for matrix in spectra()]

    found = ranks()
    assert [len(of_one) for of_one in found] == [1, 1, 1]
    assert found[2] == {3}

    def absolute(function, bounds, method):
        low, high = map(math.exp, bounds)
        result = minimize_scalar(lambda variance: function(math.log(variance)), bounds=(low, high), method=method)
        result.x = math.log(result.x)
        return result

    monkeypatch.setattr(decompose, "minimize_scalar", absolute)  # control: the variance found to within 1e-5, not to a share
    assert [len(of_one) > 1 for of_one in ranks()] == [True, True, False]


def test_evbmf_of_noise_or_nothing_keeps_the_one_that_a_layer_needs():
    assert decompose.evbmf_rank(normal(64, 576)) == 1
    assert decompose.evbmf_rank(torch.zeros(8, 20)) == 1


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95, 1.0])
def test_ranks_by_energy_carry_it_and_no_smaller_ones_do(share):
    kernel = normal(6, 5, 3, 2)
    (rank,) = decompose.svd_rank(kernel, "energy", 0.0, share)
    assert tail(kernel.flatten(1), rank) <= (1 - share) * float(kernel.square().sum()) + 1e-9
    assert tail(kernel.flatten(1), rank - 1) > (1 - share) * float(kernel.square().sum())
    both = decompose.tucker_rank(kernel, "energy", 0.0, share)
    error = (composed("tucker", kernel, both) - kernel).norm() / kernel.norm()
    assert error <= math.sqrt(2 * (1 - share)) + 1e-9


@pytest.mark.slow
def test_the_rank_of_cp_by_energy_is_one_whose_error_is_small_enough():
    a, b, d, e = (normal(n, 4, seed=n) for n in (8, 7, 3, 2))
    kernel = torch.einsum("or,ir,hr,wr->oihw", a, b, d, e)
    (rank,) = decompose.cp_rank(kernel, "energy", 0.0, 0.99)
    error = (composed("cp", kernel, (rank,)) - kernel).norm() / kernel.norm()
    assert error <= math.sqrt(0.01) + 1e-3
    assert rank <= 6
    assert decompose.cp_rank(kernel, "energy", 0.0, 0.5)[0] < rank


@each_kind
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6])
def test_ranks_by_ratio_take_that_share_of_the_dense_numbers(kind, ratio):
    kernel = normal(64, 48, 3, 3)
    cls, _, rank_of = KINDS[kind]
    layer = cls(torch.nn.Conv2d(48, 64, 3))
    rank = rank_of(kernel, "ratio", ratio, 0.0)
    layer.ranks = [rank]
    assert layer.elements(rank) == pytest.approx(ratio * kernel.numel(), rel=0.12)  # a whole number of components


def test_one_side_of_tucker_has_no_more_than_the_other_can_make_use_of():
    kernel = normal(64, 4, 1, 1)
    rank = decompose.tucker_rank(kernel, "ratio", 0.3, 0.0)
    assert rank[0] <= rank[1]
    assert decompose.tucker(kernel, rank)["A"].shape == (64, rank[0])


# Whitening


def windows(count=200, singular=False):
    """(n, 4 * 3 * 3): inputs of a layer, far from white."""
    x = normal(count, 36, seed=5) @ (normal(36, 36, seed=6) * torch.logspace(0, -2, 36, dtype=torch.float64))
    if singular:
        x[:, 20:] = 0
    return x


@pytest.mark.parametrize("singular", [False, True])
def test_whitening_is_best_for_the_outputs(singular, monkeypatch):
    monkeypatch.setattr(decompose.roots, "__defaults__", (1e-9,))  # hardly any shrinkage: the bound is exact
    kernel, x = normal(8, 4, 3, 3), windows(singular=singular)
    covariance = x.T @ x / len(x)
    root = decompose.roots(covariance)[0]

    def error(made):
        return float(((made - kernel).flatten(1) @ x.T).square().sum()) / len(x)

    whitened, plain = error(composed("svd", kernel, (3,), covariance=covariance)), error(composed("svd", kernel, (3,)))
    assert whitened == pytest.approx(tail(kernel.flatten(1) @ root, 3), rel=1e-4)
    assert whitened < 0.9 * plain
    white = composed("svd", kernel, (3,), covariance=torch.eye(36, dtype=torch.float64))
    assert torch.allclose(white, composed("svd", kernel, (3,)), atol=1e-9)


@pytest.mark.parametrize("kind", ["tucker", "cp"])
def test_whitening_by_channels_serves_the_outputs_of_unequal_channels(kind):
    kernel = normal(8, 6, 3, 3)
    scale = torch.tensor([10.0, 5, 1, 0.5, 0.1, 0.01], dtype=torch.float64)
    x = normal(4, 6, 9, 9, seed=4) * scale.view(1, -1, 1, 1)
    rows = x.transpose(0, 1).flatten(1)
    rank = (4, 2) if kind == "tucker" else (6,)

    def error(made):
        return float(torch.nn.functional.conv2d(x, made - kernel).square().sum())

    plain = error(composed(kind, kernel, rank))
    assert error(composed(kind, kernel, rank, covariance=rows @ rows.T / rows.shape[1])) < 0.7 * plain


# CP without a best approximation


def w_state():
    """The tensor of rank 3 and border rank 2, up to a little noise: fits of rank 2 get better for ever while their terms grow and
    cancel."""
    w = torch.zeros(2, 2, 2, 1, dtype=torch.float64)
    w[0, 0, 1] = w[0, 1, 0] = w[1, 0, 0] = 1
    return w + 1e-4 * normal(2, 2, 2, 1)


@pytest.mark.slow
def test_kappa_tells_a_degenerate_fit():
    fits = [decompose.cp_fit(w_state(), 2, 0.0, sweeps) for sweeps in (20, 2000)]
    errors = [float((decompose.compose_cp(fit) - w_state()).norm()) for fit in fits]
    assert errors[1] < errors[0]
    assert decompose.kappa(fits[0], w_state()) < decompose.DEGENERATE < decompose.kappa(fits[1], w_state())
    orthogonal = torch.zeros(3, 3, 3, 1, dtype=torch.float64)
    orthogonal[[0, 1, 2], [0, 1, 2], [0, 1, 2]] = 1
    assert decompose.kappa(decompose.cp_fit(orthogonal, 3, 0.0), orthogonal) == pytest.approx(1, abs=0.01)


def test_a_degenerate_fit_is_made_again_and_at_last_refused(monkeypatch):
    seen = []
    found = decompose.cp(w_state(), (2,), None, seen)
    assert seen[0] > decompose.DEGENERATE >= seen[1] == decompose.kappa(found, w_state())
    assert len(seen) == 2
    monkeypatch.setattr(decompose, "DEGENERATE", 10.0)  # control: a lax bound takes the first fit
    assert decompose.kappa(decompose.cp(w_state(), (2,)), w_state()) == seen[0]
    monkeypatch.setattr(decompose, "DEGENERATE", 0.0)
    with pytest.raises(decompose.DegenerateFit, match="rank 2"):
        decompose.cp(w_state(), (2,), None, seen)
    assert len(seen) == 5


def test_kappa_is_that_of_the_terms_without_the_whitening():
    kernel, mix = normal(8, 6, 3, 3), normal(6, 6, seed=9)
    covariance = mix @ torch.tensor([100, 1, 1, 1, 1, 0.01], dtype=torch.float64).diag() @ mix.T
    whitened = decompose.channels_whitened(kernel, covariance)[0]
    whitened /= whitened.norm()
    assert decompose.kappa(decompose.cp_fit(whitened, 20, 1e-5), whitened) < decompose.DEGENERATE  # control: it looks sound
    seen = []
    found = decompose.cp(kernel, (20,), covariance, seen)
    assert seen[0] > decompose.DEGENERATE >= seen[1] == decompose.kappa(found, kernel)


def test_many_sweeps_are_for_small_kernels(monkeypatch):
    sweeps = []
    whole = decompose.parafac
    monkeypatch.setattr(decompose, "parafac", lambda *args, **words: sweeps.append(words["n_iter_max"]) or whole(*args, **words))
    for inner in (64, 65):
        decompose.cp_fit(normal(128, inner, 2, 2), 1, 1e-5)
    assert sweeps == [200, 50]


# The methods


@pytest.mark.parametrize("method", ["individual-svd", "individual-tucker", "individual-cp"])
@pytest.mark.slow
def test_factors_are_what_is_trained_in_the_recovery_and_what_is_stored(method):
    strategy, stream = make(method=method, epochs=4, recovery=0.5, ratio=0.25)
    for experience in stream.train[:2]:
        strategy.train(experience, eval_streams=[])
    layers = strategy.method.factorised()
    assert len(layers) == 4  # two tasks of two layers; the first convolution stays dense
    dense, stored = 0, 0
    for layer in layers.values():
        dense += layer.rows * layer.columns
        stored += layer.elements(layer.ranks[0])
        assert not layer.residual
    assert stored <= 0.3 * dense
    optimised = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in optimised for n, p in strategy.model.named_parameters() if n.endswith("conv2.weight"))
    assert [len(ranks) for ranks in strategy.method.ranks] == [2, 2]
    made = layers["models.1.conv2"].prefix(0)
    again, _ = trained(method=method, tasks=2, epochs=4, recovery=0.5, ratio=0.25, recovery_rate=1e-12)  # control
    assert not torch.allclose(again.method.factorised()["models.1.conv2"].prefix(0), made)


def test_without_recovery_the_factors_are_those_of_the_dense_kernel(monkeypatch):
    kernels = []
    cut = IndividualSVD.factorise

    def seen(self, name, kernel, rank, covariance):
        kernels.append((kernel.detach().clone(), rank))
        return cut(self, name, kernel, rank, covariance)

    monkeypatch.setattr(IndividualSVD, "factorise", seen)
    strategy, _ = trained(method="individual-svd", epochs=2, recovery=0.0)
    for (kernel, rank), layer in zip(kernels, strategy.method.factorised().values(), strict=True):
        expected = composed("svd", kernel.double(), rank).flatten(1)
        assert torch.allclose(layer.prefix(0).double(), expected, atol=1e-5)


@pytest.mark.slow
def test_a_kernel_without_a_sound_cp_fit_stays_dense_and_is_on_record(monkeypatch):
    def diagnostics():
        return trained(method="individual-cp", epochs=2)[0].method.diagnostics()

    sound = diagnostics()  # control
    assert set(sound["ranks"]) == set(sound["extra"]["kappa"][0]) == {"conv2", "conv3"}
    assert all(fits[-1] <= decompose.DEGENERATE for fits in sound["extra"]["kappa"][0].values())
    monkeypatch.setattr(decompose, "DEGENERATE", 0.0)
    refused = diagnostics()
    assert refused["ranks"] == {}
    assert {name: len(fits) for name, fits in refused["extra"]["kappa"][0].items()} == {"conv2": 3, "conv3": 3}


def test_evbmf_is_refused_for_cp():
    with pytest.raises(UserError, match="rank_by"):
        resolve("split-digits", "smoke", "individual-cp", 1, overrides={"rank_by": "evbmf"})
