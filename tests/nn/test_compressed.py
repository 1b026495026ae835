"""Layers that keep less for their backward pass, each against the plain layer and against what it says of itself."""

import itertools
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchsuite.nn import compressed
from benchsuite.nn.compressed import (
    CodedMaxPool2d,
    Decomposed,
    Filtered,
    MaskedReLU,
    SizedAvgPool2d,
    by_energy,
    by_rank,
    decompose,
    gram,
    hosvd,
    leading,
    power_step,
)
from benchsuite.nn.interception import Interception
from benchsuite.nn.modifiers import ASI, HOSVD, SVD, GradientFilter, Modifier, within
from benchsuite.training.accounting import StepMemory

PLAIN = ((1, 1), (0, 0), (1, 1), 1)  # stride, padding, dilation, groups
PADDED = ((1, 1), (1, 1), (1, 1), 1)
SHARES = (0.3, 0.5, 0.8, 0.95, 1.0)
MODES = {"svd": [0], "hosvd": [0, 1, 2, 3], "channels": [1], "space": [2, 3]}
each_set = pytest.mark.parametrize("modes", MODES.values(), ids=MODES)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(shape, ranks, seed=0):
    """A map of exactly these multilinear ranks."""
    x = noise(*ranks, seed=seed)
    for mode, size in enumerate(shape):
        x = torch.tensordot(noise(size, ranks[mode], seed=seed + mode + 1), x, ([1], [mode])).movedim(0, mode)
    return x


def maps(*shape, seed=0):
    """Rectified, with a spectrum that falls in every mode."""
    x = noise(*shape, seed=seed)
    for mode, size in enumerate(shape):
        basis = torch.linalg.qr(noise(size, size, seed=seed + 10 + mode)).Q * 0.6 ** torch.arange(size)
        x = torch.tensordot(basis, x, ([1], [mode])).movedim(0, mode)
    return F.relu(x)


def unfolding(x, mode):
    return x.movedim(mode, 0).flatten(1)


def energies(x, mode):
    return torch.linalg.svdvals(unfolding(x, mode)).square()


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


def gradients(layer, *tensors, seed=9):
    """What a layer gives, and its gradients, for a random gradient from above."""
    inputs = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = layer(*inputs)
    return [y, *torch.autograd.grad(y, [t for t in inputs if t is not None], noise(*y.shape, seed=seed).to(y.dtype))]


def same(got, expected, tolerance=1e-10):
    return all(relative(a, b) < tolerance for a, b in zip(got, expected, strict=True))


def both(kept, x, weight, bias, geometry):
    """Output and gradients of the layer that keeps `kept`, and of the plain one."""
    return (
        gradients(lambda x, w, b=None: kept.conv2d(x, w, b, geometry), x, weight, bias),
        gradients(lambda x, w, b=None: F.conv2d(x, w, b, *geometry), x, weight, bias),
    )


class Half(nn.Module):
    """Two readers of one map."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        return self.a(x).flatten(1).sum(1) + self.b(x).flatten(1).sum(1)


@contextmanager
def memory(*modules):
    measured = StepMemory(nn.ModuleList(modules))
    measured.open()
    measured.start_of_forward()
    try:
        yield measured
    finally:
        measured.close()


def test_the_peak_is_the_most_that_is_there_at_once():
    for free_first, expected in ((True, 3_000_000), (False, 4_000_000)):  # control: the first is held on to
        with memory() as measured:
            first = torch.empty(1_000_000, dtype=torch.uint8)
            second = torch.empty(1_000_000, dtype=torch.uint8)
            if free_first:
                del first
            third = torch.empty(2_000_000, dtype=torch.uint8)
        assert measured.peak == expected
        del second, third
    assert measured.held == 0
    layer = nn.Linear(500, 500, bias=False)
    layer.weight.grad = torch.zeros(500, 500)
    with memory(layer) as measured:  # what the step frees makes room
        layer.weight.grad = None
        view = torch.empty(500, 500).add_(1).T
    assert measured.peak == 0
    assert view.shape == (500, 500)


# 1 to 4: what a compressed layer gives forwards and backwards


@pytest.mark.parametrize("share", SHARES)
@each_set
def test_what_goes_forward_is_the_plain_layers_to_the_bit(modes, share):
    x, w, b = maps(3, 4, 9, 8), noise(6, 2, 3, 3), noise(6)
    geometry = ((2, 1), (1, 0), (1, 2), 2)
    kept = hosvd(x, by_energy(share), modes, always=True)
    assert torch.equal(kept.conv2d(x, w, b, geometry), F.conv2d(x, w, b, *geometry))
    assert not torch.equal(F.conv2d(kept.map(), w, b, *geometry), F.conv2d(x, w, b, *geometry))  # control: of what is kept
    x, w = maps(3, 4, 5), noise(7, 5)
    kept = hosvd(x, by_energy(share), range(3), always=True)
    assert torch.equal(kept.linear(x, w, b := noise(7)), F.linear(x, w, b))
    assert not torch.equal(F.linear(kept.map(), w, b), F.linear(x, w, b))  # control


@pytest.mark.parametrize("share", SHARES)
@each_set
def test_what_goes_back_to_earlier_layers_and_to_the_bias_is_exact(modes, share):
    x, w, b = maps(3, 4, 9, 8), noise(6, 2, 3, 3), noise(6)
    geometry = ((2, 1), (1, 0), (1, 2), 2)
    kept = hosvd(x, by_energy(share), modes, always=True)
    (_, dx, _, db), (_, exact, _, exact_b) = both(kept, x, w, b, geometry)
    assert torch.equal(dx, exact)
    assert torch.allclose(db, exact_b, rtol=1e-12)
    (_, dx, _, _), (_, exact, _, _) = both(Filtered.of(x, (3, 3), PLAIN, 2), x, noise(6, 4, 3, 3), b, PLAIN)
    assert relative(dx, exact) > 0.1  # control: gradient filtering changes it


@pytest.mark.parametrize(("kernel", "groups"), list(itertools.product([1, 3, 5], [1, 2, 4])))
def test_everything_kept_gives_the_exact_gradient_of_the_weight(kernel, groups):
    x, w = maps(2, 4, 11, 10), noise(8, 4 // groups, kernel, kernel)
    kept = hosvd(x, by_energy(1.0), always=True)
    half = hosvd(x, by_energy(0.5), always=True)
    single = hosvd(x.float(), by_energy(1.0), always=True)
    for stride, dilation, padding, bias in itertools.product([1, 2], [1, 2], [(0, 0), (2, 1)], [None, noise(8)]):
        geometry = ((stride, stride), padding, (dilation, dilation), groups)
        got, exact = both(kept, x, w, bias, geometry)
        assert same(got, exact)
        assert same(both(single, x.float(), w.float(), bias if bias is None else bias.float(), geometry)[0], exact, 1e-4)
        assert not same(both(half, x, w, bias, geometry)[0], exact, 1e-3)  # control


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5), (3, 4, 2, 5)], ids=str)
def test_everything_kept_gives_the_exact_gradient_of_a_linear_layer(shape):
    x, w = maps(*shape), noise(7, 5)
    for bias in (None, noise(7)):
        exact = gradients(F.linear, x, w, bias)
        for share, holds in ((1.0, True), (0.5, False)):  # the second is the control
            kept = hosvd(x, by_energy(share), always=True)
            assert same(gradients(lambda x, w, b=None, kept=kept: kept.linear(x, w, b), x, w, bias), exact) is holds


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("share", [0.35, 0.62, 0.9])
@each_set
def test_the_gradient_of_the_weight_is_that_of_the_map_put_together(modes, share, groups):
    x, w = maps(3, 4, 9, 8), noise(8, 4 // groups, 3, 2)
    geometry = ((2, 1), (1, 2), (1, 2), groups)
    kept = hosvd(x, by_energy(share), modes, always=True)
    (y, _, dw), (_, _, exact) = both(kept, x, w, None, geometry)
    g = noise(*y.shape, seed=9)
    assert relative(dw, torch.nn.grad.conv2d_weight(kept.map(), w.shape, g, *geometry)) < 1e-12
    assert relative(dw, exact) > 1e-3  # control: not that of the map itself


# 5 to 10: ranks, errors, bounds, degenerate maps


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95, 0.999])
def test_a_mode_keeps_the_fewest_directions_that_carry_the_share(share):
    x = maps(5, 6, 7, 8)
    kept = hosvd(x, by_energy(share), always=True)
    for mode, rank in enumerate(kept.core.shape):
        e = energies(x, mode).cumsum(0) / energies(x, mode).sum()

        def fits(k, e=e):
            return k <= len(e) and e[k - 1] >= share and (k == 1 or e[k - 2] < share)

        assert fits(rank)
        assert not fits(rank + 1)  # controls
        assert rank == 1 or not fits(rank - 1)


def test_a_share_that_is_met_exactly_is_met():
    exact = torch.tensor([0.5, 0.25, 0.25])  # sums without rounding
    assert [by_energy(share)(0, exact) for share in (0.5, 0.75, 0.76, 1.0, 2.0)] == [1, 2, 3, 3, 3]
    assert by_energy(0.8)(0, torch.tensor([0.5, 0.3, 0.2])) == 2
    assert by_energy(0.8 + 1e-12)(0, torch.tensor([0.5, 0.3, 0.2])) == 3  # control: nothing is in single precision
    assert by_energy(0.5)(0, torch.zeros(3)) == 1
    assert by_energy(1.0)(0, torch.zeros(3)) == 3
    assert [by_rank((2, 9, 0))(mode, exact) for mode in range(3)] == [2, 3, 1]


@pytest.mark.parametrize("modes", [[0], [0, 1, 2, 3]], ids=["svd", "hosvd"])
def test_a_larger_share_never_keeps_less_or_errs_more(modes):
    x, shares = maps(5, 6, 7, 8), [0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0]
    kept = [hosvd(x, by_energy(share), modes, always=True) for share in shares]
    errors = [relative(k.map(), x) for k in kept]
    for a, b in itertools.pairwise(kept):
        assert all(m <= n for m, n in zip(a.core.shape, b.core.shape, strict=True))
        assert a.nbytes <= b.nbytes
    assert all(a >= b - 1e-14 for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-12
    assert errors[0] > 0.3  # control: there was something to lose
    assert kept[0].nbytes < kept[-1].nbytes / 2


def weight_error(share, seed, modes=None):
    """||dW - dW'||, the bound on it, ||dW||."""
    x, w = maps(6, 5, 8, 8, seed=seed), noise(7, 5, 3, 3, seed=seed + 50)
    kept = hosvd(x, by_energy(share), modes, always=True)
    (y, _, dw), (_, _, exact) = both(kept, x, w, None, PADDED)
    bound = math.sqrt(9) * (kept.map() - x).norm() * noise(*y.shape, seed=9).norm()
    return float((dw - exact).norm()), float(bound), float(exact.norm())


@pytest.mark.parametrize("modes", [[0], [0, 1, 2, 3]], ids=["svd", "hosvd"])
def test_gradient_errors_are_bounded_by_the_maps_and_fall_on_average(modes):
    means = []
    for share in (0.5, 0.8, 0.95, 1.0):
        found = [weight_error(share, seed, modes) for seed in range(20)]
        assert all(error <= bound + 1e-9 for error, bound, _ in found)
        means.append(sum(error / size for error, _, size in found) / len(found))
    assert all(a > b for a, b in itertools.pairwise(means))
    coarse, fine = weight_error(0.5, 0, modes), weight_error(0.9999, 0, modes)
    assert coarse[0] > fine[1]  # control: the bound of a better map is too small for a worse one


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("modes", [[0], [0, 1, 2, 3]], ids=["svd", "hosvd"])
def test_the_error_is_at_most_what_the_modes_leave_out(modes, share):
    for seed in range(5):
        x = maps(5, 6, 7, 8, seed=seed)
        kept, size = hosvd(x, by_energy(share), modes, always=True), float(x.square().sum())
        tails = sum(float(energies(x, mode)[kept.core.shape[mode] :].sum()) for mode in modes)
        error = float((kept.map() - x).square().sum())
        assert error <= tails * (1 + 1e-12)
        assert tails <= len(modes) * (1 - share) * size
        assert float((-kept.map() - x).square().sum()) > tails  # control: another map breaks the bound


@each_set
def test_factors_are_orthonormal_and_the_core_has_the_maps_norm(modes):
    x = maps(5, 6, 7, 8)
    kept = hosvd(x, by_energy(0.8), modes, always=True)
    for mode, u in enumerate(kept.factors):
        assert (u is None) is (mode not in modes)
        assert u is None or (u.T @ u - torch.eye(u.shape[1])).abs().max() < 1e-12
    assert float(kept.core.square().sum()) == pytest.approx(float(kept.map().square().sum()), rel=1e-12)
    stretched = Decomposed(kept.core, tuple(None if u is None else 1.1 * u for u in kept.factors))
    assert float(stretched.map().square().sum()) > 1.2 * float(kept.core.square().sum())  # control


@pytest.mark.parametrize("exact", [False, True])
def test_planted_ranks_are_found_and_lose_nothing(exact):
    x = planted((6, 7, 8, 9), (2, 3, 4, 2))
    kept = hosvd(x, by_energy(1 - 1e-10), exact=exact)
    assert kept.core.shape == (2, 3, 4, 2)
    assert relative(kept.map(), x) < 1e-7
    full = hosvd(x + 0.1 * noise(*x.shape), by_energy(1 - 1e-10), exact=exact, always=True)
    assert full.core.shape == (6, 7, 8, 9)  # control: noise has no rank


KEEPERS = {"svd": SVD(), "hosvd": HOSVD(), "hosvd-svd": HOSVD(factors="svd"), "gf": GradientFilter(), "asi": ASI()}
ODD = {
    "zero": torch.zeros(3, 4, 6, 6),
    "one image": maps(1, 4, 6, 6),
    "constant": torch.ones(3, 4, 6, 6),
    "one pixel": maps(3, 4, 1, 1),
    "one channel": maps(3, 1, 6, 6),
    "one number": torch.ones(1, 1, 1, 1),
    "tall": maps(40, 2, 2, 2),
}


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.parametrize("x", ODD.values(), ids=ODD)
def test_degenerate_maps_give_finite_gradients(x, name):
    x, modifier = x.double(), KEEPERS[name]
    modifier.begin_task(None, 0)
    conv = nn.Conv2d(x.shape[1], 4, 3, padding=1)
    Interception(modifier, conv)
    for _ in range(3):
        conv.zero_grad()
        y = conv(x)
        y.sum().backward()
        assert conv.weight.grad.isfinite().all()
    assert torch.equal(y, F.conv2d(x, conv.weight, conv.bias, padding=1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("exact", [False, True])
def test_a_map_with_nan_or_infinity_is_kept_as_it_is(bad, exact):
    for shape in ((3, 4, 6, 6), (40, 2, 2, 2)):
        x = maps(*shape)
        assert hosvd(x, by_energy(0.5), exact=exact) is not None  # control
        x[1, 1, 0, 0] = bad
        assert hosvd(x, by_energy(0.5), exact=exact) is None
        assert leading(x, 0, by_energy(0.5), exact) is None


# 11 to 13, 17: bytes


def test_bytes_that_autograd_holds_are_those_of_the_formula():
    x, conv, linear = maps(6, 5, 8, 9), nn.Conv2d(5, 4, 3), nn.Linear(9, 3)
    for choose in (by_energy(0.7), by_rank((2, 3, 4, 5))):
        kept = hosvd(x, choose)
        k, m = kept.core.shape, x.shape
        formula = 8 * (math.prod(k) + sum(a * b for a, b in zip(k, m, strict=True)))
        assert kept.nbytes == formula < x.nbytes
        for run in (
            lambda kept=kept: kept.conv2d(x, conv.weight, conv.bias, PLAIN),
            lambda kept=kept: kept.linear(x, linear.weight, None),
        ):
            with memory(conv, linear) as step:
                run()
            assert step.held == formula
    with memory(conv) as step:
        conv(x)
    assert step.held == x.nbytes  # the plain layer keeps its input: the control


@pytest.mark.parametrize("radius", [1, 2, 3, 8])
def test_gradient_filtering_holds_its_sums_and_the_weight_summed_over_taps(radius):
    x, conv = maps(6, 5, 8, 9), nn.Conv2d(5, 4, 3, padding=(1, 0))
    geometry = ((1, 1), (1, 0), (1, 1), 1)
    kept = Filtered.of(x, (3, 3), geometry, radius)
    assert kept.nbytes == 8 * 6 * 5 * math.ceil(8 / radius) * math.ceil(7 / radius)
    with memory(conv) as step:
        kept.conv2d(x, conv.weight, conv.bias, geometry)
    assert step.held == kept.nbytes + 8 * 4 * 5
    assert kept.nbytes != Filtered.of(x, (3, 3), geometry, radius + 1).nbytes or radius == 8  # control


@pytest.mark.parametrize("shape", [(3, 4, 6, 6), (2, 2, 2, 2), (1, 5, 1, 1)], ids=str)
def test_never_more_than_the_map_itself_is_kept(shape):
    x = noise(*shape)
    assert hosvd(x, by_energy(0.9999)) is None
    assert hosvd(x, by_energy(0.9999), always=True).nbytes > x.nbytes  # control
    for modifier in (SVD(epsilon=0.9999), HOSVD(epsilon=0.9999), ASI(epsilon=0.9999)):
        conv = nn.Conv2d(shape[1], 4, 3, padding=1)
        compression = Interception(modifier, conv)
        with memory(conv) as step:
            conv(x)
        assert step.held == compression.bytes == x.nbytes


@pytest.mark.parametrize("silent", ["eval", "no_grad"])
def test_nothing_is_kept_where_nothing_learns(silent):
    calls, conv, x = [], nn.Conv2d(4, 4, 3), maps(3, 4, 9, 8)
    modifier = HOSVD()
    modifier.keep = lambda *given: calls.append(given) or HOSVD.keep(modifier, *given)
    compression = Interception(modifier, conv)
    with torch.set_grad_enabled(silent != "no_grad"), memory(conv) as step:
        conv.train(silent != "eval")(x)
    assert calls == []
    assert compression.bytes == 0
    assert step.held == {"eval": x.nbytes, "no_grad": 0}[silent]  # in evaluation what the plain layer keeps
    conv.train()(x)
    assert len(calls) == 1  # control


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 5, 3), nn.Linear(8, 5)], ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_layer_keeps_nothing_and_passes_the_exact_gradient_back(layer, frozen):
    layer.double().zero_grad()
    layer.weight.requires_grad_(not frozen)
    x = maps(3, 4, 9, 8).requires_grad_()
    exact = torch.autograd.grad(layer(x).square().sum(), (x, layer.bias))
    net = nn.Sequential(layer)
    compression = Interception(HOSVD(), net)
    with memory(net) as step:
        y = net(x)
    assert same(torch.autograd.grad(y.square().sum(), (x, layer.bias)), exact, 1e-12)
    assert (compression.bytes == 0) is frozen  # False is the control
    assert step.held == compression.bytes


def test_the_papers_activation_memory_of_mobilenetv2():
    """The inputs of its last two convolutions, 320 and 960 channels of 7 x 7 pixels, for 128 images: 30.63, 10.00, 0.63 MiB."""
    inputs = [torch.zeros(128, channels, 7, 7, dtype=torch.float32) for channels in (320, 960)]
    layers = [nn.Conv2d(channels, 1, 1, dtype=torch.float32) for channels in (320, 960)]
    with memory(*layers) as step:
        outputs = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    assert len(outputs) == 2
    assert step.held / 2**20 == 30.625
    found = {}
    for radius in (2, 4, 7):
        modifier = GradientFilter(radius=radius)
        kept = [modifier.keep(x, 0, layer.weight, PLAIN) for x, layer in zip(inputs, layers, strict=True)]
        found[radius] = sum(k.nbytes for k in kept) / 2**20
    assert (found[2], found[7]) == (10.0, 0.625)
    assert found[4] == 2.5  # control: the radius decides


# 14 to 16: twins, gradcheck, unusual uses


@pytest.mark.parametrize("shape", [(5, 6, 7, 8), (30, 4, 2, 3), (40, 9)], ids=str)
def test_gram_and_singular_value_factors_span_the_same(shape):
    x, other = maps(*shape), maps(*shape, seed=5)
    for mode, rank in itertools.product(range(len(shape)), (1, 2)):
        fast, slow = (leading(x, mode, by_rank([rank] * 4), exact) for exact in (False, True))
        assert (slow - fast @ (fast.T @ slow)).norm() < 1e-6  # the sine of the largest principal angle
        strange = leading(other, mode, by_rank([rank] * 4))
        assert rank == shape[mode] or (slow - strange @ (strange.T @ slow)).norm() > 1e-2  # control
    ranks = [
        hosvd(x, by_energy(share), exact=exact, always=True).core.shape for share in (0.5, 0.9, 0.99) for exact in (False, True)
    ]
    assert ranks[::2] == ranks[1::2]
    assert len(set(ranks)) > 1  # control


def test_the_gram_matrix_is_summed_over_pieces(monkeypatch):
    x = maps(5, 6, 7, 8)
    for mode in range(4):
        whole = unfolding(x, mode) @ unfolding(x, mode).T
        for piece in (1, 50, 4096):
            monkeypatch.setattr(compressed, "PIECE", piece)
            assert relative(gram(x, mode), whole) < 1e-13
        assert relative(gram(x[:, :5], mode), unfolding(x[:, :5], mode) @ unfolding(x[:, :5], mode).T) < 1e-13
        assert mode == 1 or relative(gram(x[:, :5], mode), whole) > 1e-6  # control


@pytest.mark.parametrize("mode", range(4))
def test_the_gram_matrix_of_a_map_in_single_precision_is_as_exact_as_its_products(mode):
    x = maps(64, 8, 64, 64).float() + 1
    rows = unfolding(x, mode)
    exact = rows.double() @ rows.double().T
    assert gram(x, mode).dtype == torch.float64
    assert relative(gram(x, mode), exact) < 3e-7
    assert relative(gram(x.bfloat16(), mode), exact) > 1e-5  # control


def test_the_gradient_of_the_input_passes_gradcheck():
    x, w = maps(2, 4, 5, 4).requires_grad_(), noise(4, 2, 3, 3)
    geometry = ((2, 1), (1, 1), (1, 1), 2)
    kept = hosvd(x, by_energy(0.5), always=True)
    assert torch.autograd.gradcheck(lambda x: kept.conv2d(x, w, None, geometry), x)
    flat = hosvd(x, by_energy(0.5), always=True)
    assert torch.autograd.gradcheck(lambda x: flat.linear(x, noise(3, 4), None), x)
    filtered = Filtered.of(x.detach(), (3, 3), geometry, 2)
    assert not torch.autograd.gradcheck(lambda x: filtered.conv2d(x, w, None, geometry), x, raise_exception=False)  # control


@pytest.mark.parametrize("modifier", [SVD(epsilon=1 - 1e-12), HOSVD(epsilon=1 - 1e-12), ASI(epsilon=1 - 1e-12)], ids=repr)
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
def test_any_layout_and_a_module_that_is_used_twice(layout, modifier):
    x = planted((6, 4, 8, 8), (2, 2, 2, 2))
    x = {
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "sliced": lambda: planted((12, 4, 16, 8), (2, 2, 2, 2))[::2, :, ::2],
        "transposed": lambda: x.transpose(2, 3),
        "expanded": lambda: x[:1].expand(6, 4, 8, 8),
    }[layout]()
    assert layout == "expanded" or not x.is_contiguous()
    plain, conv = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    conv.load_state_dict(plain.state_dict())
    one, two = nn.Sequential(plain, plain), nn.Sequential(conv, conv)
    modifier.begin_task(None, 0)
    compression = Interception(modifier, two)
    exact, got = one(x), two(x)
    assert torch.equal(exact, got)
    exact.square().sum().backward()
    got.square().sum().backward()
    assert relative(conv.weight.grad, plain.weight.grad) < 1e-5
    assert relative(conv.weight.grad, plain.weight.grad / 2) > 0.1  # control: both uses count
    assert compression.bytes < 2 * x.numel() * 8


@pytest.mark.parametrize("modifier", [SVD(), HOSVD(), GradientFilter(), ASI()], ids=lambda m: type(m).__name__)
def test_under_autocast_what_is_kept_is_in_bfloat16(modifier):
    conv = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float32)
    x = maps(6, 4, 8, 8).float()
    kept, keep = [], modifier.keep
    modifier.begin_task(None, 0)
    modifier.keep = lambda *given: kept.append(keep(*given)) or kept[-1]
    Interception(modifier, conv)
    for enabled in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled), memory(conv) as step:
            y = conv(x)
        y.float().sum().backward()
        tensors = [kept[-1].sums] if isinstance(modifier, GradientFilter) else kept[-1].tensors
        assert {t.dtype for t in (y, *tensors)} == {torch.bfloat16 if enabled else torch.float32}  # False is the control
        assert step.held >= kept[-1].nbytes
        assert conv.weight.grad.dtype == torch.float32
        assert conv.weight.grad.isfinite().all()
    assert kept[0].nbytes * 2 == kept[1].nbytes or not isinstance(modifier, GradientFilter)


# 18, 19: gradient filtering, subspace iteration


def test_gradient_filtering_of_single_pixels_is_exact_for_kernels_of_one():
    x, b = maps(3, 4, 7, 8), noise(6)
    geometry = (*PLAIN[:3], 2)
    for kernel, radius, holds in ((1, 1, True), (1, 2, False), (3, 1, False)):  # the last two are the controls
        kept = Filtered.of(x, (kernel, kernel), geometry, radius)
        assert same(*both(kept, x, noise(6, 2, kernel, kernel), b, geometry)) is holds


def test_a_radius_above_the_outputs_is_that_of_all_of_them():
    x, w = noise(3, 2, 6, 5), noise(4, 2, 3, 3)
    (_, dx, dw), _ = both(Filtered.of(x, (3, 3), PLAIN, 6), x, w, None, PLAIN)
    huge = Filtered.of(x, (3, 3), PLAIN, 10**5)  # which padded to a patch of its own would not fit into memory
    (_, far_dx, far_dw), _ = both(huge, x, w, None, PLAIN)
    assert torch.equal(dx, far_dx)
    assert torch.equal(dw, far_dw)
    (_, near_dx, _), _ = both(Filtered.of(x, (3, 3), PLAIN, 3), x, w, None, PLAIN)
    assert not torch.allclose(dx, near_dx)  # control


@pytest.mark.parametrize(("radius", "stride"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_a_constant_gradient_goes_back_exactly_inside_and_taps_are_alike(radius, stride):
    x, w = maps(3, 4, 12, 12).requires_grad_(), noise(6, 4, 3, 3).requires_grad_()
    geometry = ((stride, stride), (1, 1), (1, 1), 1)
    y = Filtered.of(x.detach(), (3, 3), geometry, radius).conv2d(x, w, None, geometry)
    constant = noise(6)[None, :, None, None].expand(y.shape)
    dx, dw = torch.autograd.grad(y, (x, w), constant)
    exact = torch.autograd.grad(F.conv2d(x, w, None, *geometry), x, constant)[0]
    inside = slice(3, -3)
    if stride == 1:
        assert relative(dx[:, :, inside, inside], exact[:, :, inside, inside]) < 1e-12
    else:  # a pixel meets a quarter of the taps: right on average
        assert relative(dx[:, :, inside, inside].mean((2, 3)), exact[:, :, inside, inside].mean((2, 3))) < 1e-12
    assert relative(dx, exact) > 1e-3  # control: at the border it is not exact
    assert all(torch.equal(dw[:, :, i, j], dw[:, :, 0, 0]) for i in range(3) for j in range(3))
    assert not torch.equal(exact[:, :, 0, 0], exact[:, :, 1, 1])


def test_gradient_filtering_by_hand():
    """4 x 4 pixels, kernel 1, radius 2: dW is the sum over patches of mean gradient times sum of the input."""
    x, w = noise(1, 1, 4, 4), noise(1, 1, 1, 1)
    (y, dx, dw), _ = both(Filtered.of(x, (1, 1), PLAIN, 2), x, w, None, PLAIN)
    g = noise(*y.shape, seed=9)[0, 0]
    patches = [(slice(i, i + 2), slice(j, j + 2)) for i in (0, 2) for j in (0, 2)]
    assert float(dw) == pytest.approx(float(sum(g[p].mean() * x[0, 0][p].sum() for p in patches)))
    for p in patches:
        assert torch.allclose(dx[0, 0][p], (g[p].mean() * w[0, 0]).expand(2, 2))
    assert float(dw) != pytest.approx(float((g * x[0, 0]).sum()), rel=1e-3)  # control


def test_subspace_iteration_at_the_true_subspace_is_exact():
    x, w = planted((6, 4, 8, 8), (2, 3, 2, 4)), noise(5, 4, 3, 3)
    true = [leading(x, mode, by_rank((2, 3, 2, 4))) for mode in range(4)]
    for basis, holds in ((true, True), ([noise(*u.shape, seed=3) for u in true], True), ([u[:, :1] for u in true], False)):
        kept = decompose(x, [power_step(x, mode, u) for mode, u in enumerate(basis)], always=True)
        got, exact = both(kept, x, w, None, PADDED)  # a random start reaches a subspace of the full rank in one step
        assert same(got, exact, 1e-8) is holds  # too low a rank is the control
    raw = decompose(x, [torch.linalg.qr(noise(*u.shape, seed=3)).Q for u in true], always=True)
    assert not same(*both(raw, x, w, None, PADDED), 1e-2)  # control: without a step a random start does not


def test_subspace_iteration_on_one_map_converges_geometrically():
    """Each step shrinks the tangent of the largest angle by the ratio of the first energy left out to the last one kept."""
    x, rank = maps(8, 9, 7, 6), 2
    for mode in range(4):
        u, s, _ = torch.linalg.svd(unfolding(x, mode), full_matrices=False)
        ratio, basis, tangents = float((s[rank] / s[rank - 1]) ** 2), noise(x.shape[mode], rank, seed=3), []
        for _ in range(10):
            basis = power_step(x, mode, basis)
            assert (basis.T @ basis - torch.eye(rank)).abs().max() < 1e-12
            inside = u.T @ basis
            tangents.append(float(torch.linalg.matrix_norm(inside[rank:] @ inside[:rank].inverse(), 2)))
        assert all(b <= 1.001 * ratio * a + 1e-12 for a, b in itertools.pairwise(tangents))
        assert any(b > 0.1 * ratio * a for a, b in itertools.pairwise(tangents))  # controls: no faster, and not there at once
        assert tangents[0] > 1e-6


def test_asi_takes_the_ranks_of_its_first_batch_and_its_factors_to_the_next():
    modifier = ASI(epsilon=0.7)
    modifier.begin_task(None, 0)
    batches = [maps(6, 4, 8, 8, seed=seed) for seed in (0, 0, 0, 0, 7)]
    kept = [modifier.keep(x, 0, noise(4, 4, 3, 3), PADDED) for x in batches]
    first = hosvd(batches[0], by_energy(0.7), always=True)
    assert {k.core.shape for k in kept} == {first.core.shape}
    errors = [relative(k.map(), batches[0]) for k in kept[:4]]
    assert errors[3] < errors[0]
    assert errors[3] == pytest.approx(relative(first.map(), batches[0]), rel=0.05)
    last = modifier.keep(batches[0][:3], 0, noise(4, 4, 3, 3), PADDED)
    assert last.core.shape == (min(3, first.core.shape[0]), *first.core.shape[1:])  # a smaller batch has factors of its own
    modifier.begin_task(None, 0)
    assert torch.equal(modifier.keep(batches[0], 0, noise(4, 4, 3, 3), PADDED).core, kept[0].core)
    modifier.begin_task(None, 1)
    assert not torch.equal(modifier.keep(batches[0], 0, noise(4, 4, 3, 3), PADDED).core, kept[0].core)  # control: another draw


def brute_force(budget, layers):
    """The smallest sum of errors of any choice that fits, bytes rounded up to thousandths; None where none fits."""
    fitting = [
        sum(error for error, *_ in choice)
        for choice in itertools.product(*layers)
        if sum(math.ceil(size * 1000 / budget) for _, size, _ in choice) <= 1000
    ]
    return min(fitting, default=None)


@pytest.mark.parametrize("seed", range(30))
def test_the_choice_under_a_budget_is_the_best_there_is(seed):
    rng = np.random.default_rng(seed)
    layers = [
        [(float(rng.random()), int(rng.integers(1, 3000)), [layer, option]) for option in range(rng.integers(1, 7))]
        for layer in range(rng.integers(1, 5))
    ]
    for budget in (1, 800, 2500, 5000, 20_000):
        ranks, best = within(budget, layers), brute_force(budget, layers)
        chosen = [options[option] for options, (_, option) in zip(layers, ranks, strict=True)]
        assert [layer for layer, _ in ranks] == list(range(len(layers)))
        if best is None:
            assert [size for _, size, _ in chosen] == [min(size for _, size, _ in options) for options in layers]
        else:
            assert sum(error for error, *_ in chosen) == pytest.approx(best)
            assert sum(size for _, size, _ in chosen) <= budget
    assert best == pytest.approx(sum(min(error for error, *_ in options) for options in layers))
    assert brute_force(1, layers) is None or best != brute_force(1, layers)  # control: the budget decides


def test_layers_are_probed_for_what_hosvd_would_do_to_their_gradients():
    torch.manual_seed(0)
    x, net = maps(6, 4, 8, 8), nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(180, 3))
    modifier = ASI(activation_mb=0.003)
    compression = Interception(modifier, net)
    given = []
    net[0].register_forward_hook(lambda module, _, out: out.register_hook(given.append) and None)
    net(x).square().sum().backward()
    (g,) = given
    probes = modifier.probes
    assert [len(found) for found in probes.values()] == [6, 6]
    exact = torch.nn.grad.conv2d_weight(x, (5, 4, 3, 3), g)
    assert relative(net[0].weight.grad, exact) < 1e-12  # the first batch's gradients are exact
    for (error, size, ranks), share in zip(probes[0], ASI.shares, strict=True):
        kept = hosvd(x, by_energy(share), always=True)
        assert (size, ranks) == (kept.nbytes, list(kept.core.shape))
        assert error == pytest.approx(float((torch.nn.grad.conv2d_weight(kept.map(), (5, 4, 3, 3), g) - exact).norm()), rel=1e-5)
    assert probes[0][0][0] > 2 * probes[0][-1][0]  # control: shares differ
    compression.bytes = 0
    net(x)
    assert list(modifier.ranks.values()) == within(3000, list(probes.values()))
    assert 0 < compression.bytes <= 3000
    assert x.nbytes > 3000  # control: the budget is less than the maps


def test_layers_on_one_map_are_probed_as_one():
    x, w = maps(6, 4, 8, 8), [noise(5, 4, 3, 3), noise(5, 4, 1, 1)]
    alone = []
    for weight in w:
        modifier = ASI(activation_mb=1.0)
        conv = nn.Conv2d(4, 5, weight.shape[2:], bias=False)
        conv.weight = nn.Parameter(weight)
        Interception(modifier, conv)
        conv(x).flatten(1).sum(1).sum().backward()
        alone.append([error for error, *_ in modifier.probes[0]])
    modifier, net = ASI(activation_mb=1.0), Half(nn.Conv2d(4, 5, 3, bias=False), nn.Conv2d(4, 5, 1, bias=False))
    net.a.weight, net.b.weight = (nn.Parameter(weight) for weight in w)
    Interception(modifier, net)
    net(x).sum().backward()
    assert list(modifier.probes) == [0]
    assert [error for error, *_ in modifier.probes[0]] == pytest.approx([a + b for a, b in zip(*alone, strict=True)])
    assert min(alone[1]) > 0  # control: the second one counts


# Exact book-keeping of ReLU and pooling


EXACT = {
    "relu": (F.relu, lambda x: MaskedReLU.apply(x, False)),
    "max": (lambda x: F.max_pool2d(x, 2), CodedMaxPool2d.apply),
    "avg": (lambda x: F.avg_pool2d(x, 2), lambda x: SizedAvgPool2d.apply(x, (2, 2), (2, 2))),
    "avg-wide": (lambda x: F.avg_pool2d(x, (3, 2), (1, 2)), lambda x: SizedAvgPool2d.apply(x, (3, 2), (1, 2))),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 8, 8), (1, 3, 7, 9), (2, 1, 3, 3)], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_relu_and_pooling_are_the_plain_ones_to_the_bit_and_keep_less(name, shape, dtype):
    plain, ours = EXACT[name]
    ties = (2 * noise(*shape)).round().to(dtype)  # zeros for ReLU, equals for pooling
    for x in (noise(*shape).to(dtype), ties, torch.zeros(shape, dtype=dtype), -ties.abs() - 1):
        for layout in (torch.contiguous_format, torch.channels_last):
            y, dx = gradients(ours, x.to(memory_format=layout))
            exact, exact_dx = gradients(plain, x.to(memory_format=layout))
            assert torch.equal(y, exact)
            assert torch.equal(dx, exact_dx)
            assert name != "relu" or dx.stride() == exact_dx.stride()  # or later sums would be rounded otherwise
    x = noise(*shape).to(dtype).requires_grad_()
    held = []
    for op in (plain, ours):
        with memory() as step:
            y = op(x)
        held.append(step.held)
    bits = {"relu": y.numel(), "max": 2 * y.numel()}.get(name, 0)
    assert held[1] == math.ceil(bits / 8) < held[0]
    assert not torch.equal(gradients(ours, x)[1], gradients(plain, x)[1].roll(1, 3))  # control


def test_relu_in_place_is_the_plain_one_and_writes_where_it_reads():
    def net(relu):
        def run(x):
            y = x * 2
            z = relu(y)
            assert z.data_ptr() == y.data_ptr()
            return z.exp()

        return run

    x = noise(3, 5, 7)
    plain, ours = (gradients(net(relu), x) for relu in (torch.relu_, lambda y: MaskedReLU.apply(y, True)))
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace"):  # control: it says so to autograd
        gradients(lambda x: (lambda y: y + MaskedReLU.apply(y, True))(x.exp()), x)


def test_relu_passes_gradients_on_at_a_nan_as_the_plain_one():
    x = torch.tensor([math.nan, 1.0, -1.0, 0.0, -0.0, math.inf, -math.inf])
    plain, ours = gradients(F.relu, x), gradients(EXACT["relu"][1], x)
    assert torch.equal(plain[1], ours[1])
    assert torch.equal(plain[0].nan_to_num(7.0), ours[0].nan_to_num(7.0))
    assert ours[1].count_nonzero() == 3  # control: it does stop some


@pytest.mark.parametrize("exact", [True, False])
def test_a_network_with_exact_book_keeping_alone_has_the_plain_ones_gradients(exact):
    """All settings under which the exact forms stand in, and some under which they must not."""
    torch.manual_seed(0)
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, padding=1)]
    means = [nn.AvgPool2d(2), nn.AvgPool2d(2, padding=1), nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(2, divisor_override=3)]
    for pool, mean, inplace in itertools.product(pools, means, [True, False]):
        net = nn.Sequential(nn.Conv2d(4, 5, 3), pool, nn.ReLU(inplace=inplace), nn.Conv2d(5, 5, 3, padding=1), nn.ReLU(), mean)
        x = maps(3, 4, 11, 11)
        y = net(x)
        y.exp().sum().backward()
        plain = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        modifier = Modifier()
        modifier.relu = "mask"
        Interception(modifier, net)
        if not exact:  # control
            net[2].register_forward_hook(lambda module, _, out: out * 1.001)
        net(x).exp().sum().backward()
        assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), plain, strict=True)) is exact
