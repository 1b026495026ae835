"""Factorised convolutions: every form against the dense kernel, against tensorly, and against what they say of themselves."""

import itertools
import math

import pytest
import tensorly
import torch
from short_runs import make
from tensorly.cp_tensor import cp_to_tensor
from tensorly.tenalg import kronecker, multi_mode_dot
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchsuite.methods.cacl import energy_select
from benchsuite.methods.cacl_cp import CACLCP, TermOrthogonality, gram
from benchsuite.methods.cacl_kronecker import CACLKronecker
from benchsuite.nn.factorised import CPConv2d, KroneckerConv2d, SVDConv2d, TuckerConv2d

tensorly.set_backend("pytorch")

LAYERS = {
    "svd": (SVDConv2d, {}, [(5,), (3,), (0,), (4,)]),
    "cp": (CPConv2d, {}, [(7,), (4,), (0,), (9,)]),
    "kronecker": (KroneckerConv2d, {}, [(4,), (3,), (0,), (5,)]),
    "tucker": (TuckerConv2d, {"core": "nested"}, [(4, 3), (2, 1), (0, 0), (0, 2), (1, 0)]),
    "tucker-block": (TuckerConv2d, {"core": "block"}, [(4, 3), (2, 1), (0, 0), (2, 2)]),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(kind, bias=True, **geometry):
    """A layer that has learnt nothing yet; 8 channels to 6."""
    cls, words, _ = LAYERS[kind]
    torch.manual_seed(0)
    return cls(nn.Conv2d(8, 6, geometry.pop("kernel", 3), **geometry), bias=bias, **words)


def grown(kind, **geometry):
    """The same after as many tasks as there are pools, each of which keeps everything."""
    layer, source = made(kind, **geometry), torch.Generator().manual_seed(1)
    for pool in LAYERS[kind][2]:
        layer.draw_residual(pool, source)
        layer.consolidate(*(torch.arange(n) for n in pool))
    return layer


def images(size=(11, 9)):
    return torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(2))


@each_layer
@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": (2, 1)},
        {"kernel": (3, 2), "stride": (1, 2), "padding": (0, 1)},
    ],
    ids=str,
)
def test_both_forms_are_the_convolution_with_the_composed_kernel(kind, geometry):
    layer, x = grown(kind, **geometry), images()
    where = (layer.stride, layer.padding, layer.dilation)
    for task in range(len(layer.ranks)):
        dense = F.conv2d(x, layer.prefix(task).view(layer.shape), layer.bias, *where)
        layer.set_task(task)
        for form in ("composed", "chain", "cheaper"):
            layer.form = form
            assert torch.allclose(layer(x), dense, rtol=1e-10, atol=1e-10), form
    assert not torch.allclose(dense, F.conv2d(x, layer.prefix(0).view(layer.shape), layer.bias, *where))  # control


@each_layer
def test_kernels_are_what_tensorly_makes_of_the_factors(kind):
    layer = grown(kind)
    for task in range(len(layer.ranks)):
        part = {name: layer.upto(name, task) for name in layer.grows}
        if kind == "svd":
            kernel = multi_mode_dot(torch.diag(part["sigma"].abs()), [part["N"], part["C"].T], [0, 1]).view(layer.shape)
        elif kind == "kronecker":
            products = [
                torch.stack([kronecker([a, b[:, :, h, w]]) for h, w in itertools.product(*map(range, layer.shape[2:]))], -1)
                for a, b in zip(part["A"] * part["weight"].abs()[:, None, None], part["B"], strict=True)
            ]
            kernel = sum(products).view(layer.shape)
        elif kind == "cp":
            kernel = cp_to_tensor((part["weight"].abs(), [part[name] for name in "ABDE"]))
        else:
            kernel = multi_mode_dot(layer.whole_core(task), [part["A"], part["B"]], [0, 1])
        assert torch.allclose(layer.prefix(task).view(layer.shape), kernel, rtol=1e-10, atol=1e-12)


@each_layer
@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1}, {"kernel": (3, 2), "padding": (0, 1)}], ids=str)
def test_elements_and_multiply_accumulates_are_the_counted_ones(kind, geometry):
    layer, x = grown(kind, **geometry), images()
    last = len(layer.ranks) - 1
    assert layer.elements(layer.ranks[last]) == sum(getattr(layer, name).numel() for name in layer.grows)
    for task in range(last + 1):
        layer.set_task(task)
        layer.form = "chain"
        with FlopCounterMode(display=False) as counter:
            layer(x)
        inner, outer, rows = layer.pixels((11, 9))
        assert counter.get_total_flops() == 2 * len(x) * layer.chain_macs(layer.ranks[task], inner, outer, rows)


def test_the_cheaper_form_is_the_one_that_is_run():
    def flops(layer, form):
        layer.form = form
        layer(images())  # a kernel is composed once
        with FlopCounterMode(display=False) as counter:
            layer(images())
        return counter.get_total_flops()

    for kind in LAYERS:
        layer = grown(kind)
        for task in range(len(layer.ranks)):
            layer.set_task(task)
            both = [flops(layer, "composed"), flops(layer, "chain")]
            assert flops(layer, "cheaper") == min(both)
    svd = grown("svd")
    svd.set_task(0)
    assert flops(svd, "chain") != flops(svd, "composed")  # control


@each_layer
def test_what_tasks_add_is_all_there_is_and_earlier_kernels_keep_their_bits(kind):
    layer, source = made(kind), torch.Generator().manual_seed(1)
    kernels, elements = [], [0]
    for pool in LAYERS[kind][2]:
        layer.draw_residual(pool, source)
        new = sum(factor.numel() for factor in layer.residual.values())
        layer.consolidate(*(torch.arange(n) for n in pool))
        kernels.append(layer.prefix(len(layer.ranks) - 1))
        elements.append(layer.elements(layer.ranks[-1]))
        assert elements[-1] - elements[-2] == new
        assert all(torch.equal(layer.prefix(t), kernel) for t, kernel in enumerate(kernels))
    assert all(all(a <= b for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(layer.ranks))
    assert not torch.equal(kernels[0], kernels[-1])  # control: later tasks did change the kernel
    getattr(layer, next(iter(layer.grows)))[0, 0] += 1e-9
    assert not torch.equal(layer.prefix(0), kernels[0])  # control: the bank is what they come from


@each_layer
def test_training_starts_from_the_kernel_of_the_task_before(kind):
    layer, x = grown(kind), images()
    last = len(layer.ranks) - 1
    layer.set_task(last)
    before = layer(x)
    layer.draw_residual(tuple(2 for _ in range(layer.modes)), torch.Generator().manual_seed(5))
    layer.set_task(last + 1)
    assert not torch.allclose(layer(x), before)
    with torch.no_grad():
        for name in ("sigma", "weight", "core"):
            if name in layer.grows:
                layer.residual[name].zero_()
    assert torch.equal(layer(x), before)


@each_layer
def test_fresh_components_make_a_kernel_of_the_law_they_state(kind):
    cls, words, _ = LAYERS[kind]
    layer = cls(nn.Conv2d(16, 24, 3), **words)
    pool = (16, 12) if layer.modes == 2 else (40,)
    official = 4 if kind == "svd" else 2  # 4 / fan-in for SVD, as the official code
    for init, law in (("default", official), ("he", 2)):
        for share in (1.0, 0.1):
            source, energy = torch.Generator().manual_seed(0), []
            for _ in range(200):
                layer.draw_residual(pool, source, share, init)
                kernel = layer.compose(layer.residual, torch.zeros(layer.rows, layer.columns), 0)
                energy.append(float(kernel.detach().square().mean()) * layer.columns)
            assert sum(energy) / 200 == pytest.approx(share * law, rel=0.05)


@pytest.mark.parametrize(
    ("name", "share", "settings"),
    [
        *(("cacl", 1.0, {}), ("cacl-cp", 0.1, {}), ("cacl-tucker", 0.1, {}), ("cacl-kronecker", 0.1, {})),
        *((name, 0.4, {"fresh_share": 0.4}) for name in ("cacl", "cacl-cp", "cacl-tucker", "cacl-kronecker")),
    ],
)
def test_later_tasks_start_with_their_share_of_the_first_ones_variance(name, share, settings):
    torch.set_default_dtype(torch.float32)
    method = make(method=name, width=4.0, growth="fixed", **settings)[0].method
    layer, found = max(method.layers.values(), key=lambda layer: layer.columns), []
    for _ in range(2):
        method.before_train_dataset_adaptation(None)
        found.append(float(layer.residual[layer.scale].detach().square().mean()))
        for other in method.layers.values():
            other.consolidate(*(torch.arange(0) for _ in range(layer.modes)))
        method.pools = {name: [*pools, pools[0]] for name, pools in method.pools.items()}
    assert found[1] / found[0] == pytest.approx(share, rel=0.25)


@each_layer
def test_factors_get_the_gradient_of_the_dense_kernel_projected_on_them(kind):
    layer, x = grown(kind), images()
    task = len(layer.ranks)
    layer.draw_residual(tuple(2 for _ in range(layer.modes)), torch.Generator().manual_seed(5))
    layer.set_task(task)
    layer(x).square().sum().backward()

    def dense_gradient(onto):
        kernel = layer.compose(layer.residual, onto, task).detach().view(layer.shape).requires_grad_()
        F.conv2d(x, kernel, layer.bias).square().sum().backward()
        return kernel.grad

    expected = projected(kind, layer, dense_gradient(layer.prefix(task - 1)))
    control = projected(kind, layer, dense_gradient(torch.zeros(layer.rows, layer.columns)))  # of another kernel
    assert set(expected) == set(layer.grows)
    for name, gradient in expected.items():
        assert torch.allclose(layer.residual[name].grad, gradient, rtol=1e-9, atol=1e-9), name
        assert not torch.allclose(layer.residual[name].grad, control[name], rtol=1e-3)


def projected(kind, layer, dense):
    """The gradient of every trainable factor from that of the kernel."""
    part = {name: factor.detach() for name, factor in layer.residual.items()}
    if kind == "svd":
        n, s, c = part.values()
        flat = dense.flatten(1)
        return {
            "N": flat @ c.T * s.abs(),
            "sigma": s.sign() * torch.einsum("or,oj,rj->r", n, flat, c),
            "C": (n * s.abs()).T @ flat,
        }
    if kind in ("cp", "kronecker"):  # factors are of unit norm when they are drawn; normalisation takes the part along them
        if kind == "cp":
            letters, whole = {"A": "or", "B": "ir", "D": "hr", "E": "wr"}, dense
        else:
            letters = {"A": "rac", "B": "rbdhw"}
            whole = dense.view(layer.outer[0], layer.inner[0], layer.outer[1], *layer.inner[1:])
        axes, w, found = "oihw" if kind == "cp" else "abcdhw", part["weight"], {}
        for name, own in letters.items():
            others = [other for other in letters if other != name]
            words = ",".join([axes, *(letters[other] for other in others)])
            along = torch.einsum(f"{words}->{own}", whole, *(part[other] for other in others))
            sums = [dim for dim, letter in enumerate(own) if letter != "r"]
            inside = (part[name] * along).sum(sums, keepdim=True)
            found[name] = w.abs().view_as(inside) * (along - part[name] * inside)
        return {**found, "weight": w.sign() * inside.flatten()}
    a, b = part["A"], part["B"]
    on, no, nn_ = layer.blocks(part["core"], layer.ranks[-1], 2, 2)
    old_a, old_b = layer.A[:, : len(on)], layer.B[:, : no.shape[1]]  # none in blocks
    pieces = [torch.einsum("oihw,op,iq->pqhw", dense, *sides) for sides in ((old_a, b), (a, old_b), (a, b))]
    return {
        "core": torch.cat([piece.flatten(0, 1) for piece in pieces]),
        "A": torch.einsum("oihw,pqhw,iq->op", dense, torch.cat([no, nn_], 1), torch.cat([old_b, b], 1)),
        "B": torch.einsum("oihw,pqhw,op->iq", dense, torch.cat([on, nn_], 0), torch.cat([old_a, a], 1)),
    }


# CP: terms of unit norm, and their Gram matrix


def terms(layer, count=6):
    layer.draw_residual((count,), torch.Generator().manual_seed(3))
    return {name: factor.detach() for name, factor in layer.residual.items()}


def factors(part):
    return {name: part[name] for name in "ABDE"}


def penalty_on(fixed, seed=0):
    return TermOrthogonality(fixed, torch.Generator().manual_seed(seed))


TERMS = {  # the layer, and its terms spelt out
    CACLCP: ("cp", lambda part: torch.einsum("or,ir,hr,wr->roihw", *(part[name] for name in "ABDE"))),
    CACLKronecker: ("kronecker", lambda part: torch.einsum("rac,rbdhw->rabcdhw", part["A"], part["B"])),
}


@pytest.mark.parametrize("method", TERMS)
def test_the_columns_of_a_method_have_the_gram_matrix_of_its_terms(method):
    kind, spelt_out = TERMS[method]
    part = terms(made(kind), 13)
    columns, explicit = method.columns(None, part), spelt_out(part).flatten(1)
    whole = explicit @ explicit.T
    assert torch.allclose(gram(columns, columns), whole, atol=1e-12)
    mixed = {name: factor[:, torch.arange(13).roll(i)] for i, (name, factor) in enumerate(columns.items())}
    assert not torch.allclose(gram(mixed, mixed), whole, atol=1e-3)  # control: factors of different terms
    old, free = ({name: factor[:, where] for name, factor in columns.items()} for where in (slice(9), slice(9, None)))
    fast, draws = penalty_on(old), 2000
    values = torch.stack([fast(free) for _ in range(draws)])
    expected = float((whole - torch.eye(13)).square().mean())
    assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std()) / math.sqrt(draws))


def test_gamma_is_the_gram_matrix_of_the_terms_and_gives_the_energy():
    part = terms(made("cp"))
    explicit = torch.einsum("or,ir,hr,wr->roihw", *(part[name] for name in "ABDE")).flatten(1)
    gamma = gram(factors(part), factors(part))
    assert torch.allclose(gamma, explicit @ explicit.T, atol=1e-12)
    weight = part["weight"].abs()
    energy = (weight @ explicit).square().sum()
    assert weight @ gamma @ weight == pytest.approx(float(energy))
    assert weight.square().sum() != pytest.approx(float(energy))  # control: terms that are not orthogonal


def test_the_norm_of_a_factor_changes_neither_kernel_nor_penalty():
    layer = made("cp")
    part = terms(layer)
    other = {**part, "A": part["A"] * 3, "B": part["B"] / 5, "E": part["E"] * torch.rand(6).add(0.1)}
    zero = torch.zeros(layer.rows, layer.columns)
    kernel, value = layer.compose(part, zero, 0), penalty_on({k: v[:, :0] for k, v in part.items() if k in "ABDE"})
    assert torch.allclose(layer.compose(other, zero, 0), kernel, atol=1e-12)
    assert value(other) == pytest.approx(float(value(part)))
    assert not torch.allclose(layer.compose({**part, "weight": part["weight"] * 3}, zero, 0), kernel)  # control


@pytest.mark.parametrize("fixed", [0, 3])
def test_the_penalty_on_terms_equals_the_plain_form_in_value_and_gradient(fixed):
    part = terms(made("cp"), 7)
    old = {name: part[name][:, :fixed] for name in "ABDE"}
    free = {name: (2.5 * part[name][:, fixed:]).requires_grad_() for name in "ABDE"}
    every = {name: torch.cat([old[name], F.normalize(free[name], dim=0)], 1) for name in "ABDE"}
    plain = (gram(every, every) - torch.eye(7)).square().mean()
    fast = penalty_on(old)(free)
    assert fast.item() == pytest.approx(plain.item())
    expected = torch.autograd.grad(plain, list(free.values()))
    for one, other in zip(torch.autograd.grad(fast, list(free.values())), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_the_mean_over_draws_of_fixed_terms_is_the_whole_penalty():
    part, draws = terms(made("cp"), 13), 2000
    old, free = ({name: part[name][:, where] for name in "ABDE"} for where in (slice(9), slice(9, None)))
    fast, every = penalty_on(old), factors(part)
    whole = float((gram(every, every) - torch.eye(13)).square().mean())
    values = torch.stack([fast(free) for _ in range(draws)])
    error = float(values.std()) / math.sqrt(draws)
    assert error > 0
    assert float(values.mean()) == pytest.approx(whole, abs=4 * error)
    scaled = 2 * gram(old, free).square().sum() / 13**2
    assert float(values.mean() - scaled * (1 - 4 / 9)) != pytest.approx(whole, abs=4 * error)  # control: four of nine, unscaled
    again = penalty_on(old)
    assert [again(free) for _ in range(3)] == list(values[:3])  # a seed fixes all draws
    assert penalty_on(old, 1)(free) != values[0]


def test_the_mean_over_all_draws_is_the_whole_penalty_and_its_gradient(monkeypatch):
    part = terms(made("cp"), 13)
    old = {name: part[name][:, :9] for name in "ABDE"}
    free = {name: part[name][:, 9:].clone().requires_grad_() for name in "ABDE"}
    draws = list(itertools.combinations(range(9), 4))

    def with_gradient(penalty):
        value = penalty(free)
        return value.detach(), torch.autograd.grad(value, list(free.values()))

    def mean(draws):
        penalty = penalty_on(old)
        total, totals = 0.0, [torch.zeros_like(factor) for factor in free.values()]
        for draw in draws:
            monkeypatch.setattr(torch, "randperm", lambda n, draw=draw, **_: torch.tensor([*draw, *set(range(n)) - set(draw)]))
            value, gradients = with_gradient(penalty)
            total, totals = total + value, [t + g for t, g in zip(totals, gradients, strict=True)]
        return total / len(draws), [t / len(draws) for t in totals]

    def whole(part):
        every = {name: torch.cat([old[name], F.normalize(part[name], dim=0)], 1) for name in "ABDE"}
        return (gram(every, every) - torch.eye(13)).square().mean()

    (value, gradients), (expected, exact) = mean(draws), with_gradient(whole)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(gradients, exact, strict=True))
    value, gradients = mean(draws[1:100])  # control: some draws are missing
    assert float(value) != pytest.approx(float(expected), rel=1e-6)
    assert not any(torch.allclose(one, other, rtol=1e-6) for one, other in zip(gradients, exact, strict=True))


def test_the_penalty_on_terms_costs_the_same_whatever_the_bank():
    def flops(bank, penalty=None):
        part = terms(made("cp"), bank + 5)
        old, free = ({name: part[name][:, where] for name in "ABDE"} for where in (slice(bank), slice(bank, None)))
        fast = penalty_on(old)
        with FlopCounterMode(display=False) as counter:
            fast(free) if penalty is None else penalty(old, free)
        return counter.get_total_flops()

    assert flops(5) == flops(10) == flops(80) > 0
    assert flops(80, gram) > 7 * flops(10, gram)  # control: all fixed terms


# SVD: exact singular vectors, and keeping by true singular values


@pytest.mark.parametrize("pool", [5, 0, 9])  # the kernel has 6 rows
def test_exact_singular_vectors_leave_the_kernel_and_make_the_energy_rule_exact(pool):
    layer, zero = grown("svd"), torch.zeros(6, 72)
    task = len(layer.ranks)
    layer.draw_residual((pool,), torch.Generator().manual_seed(4))
    kernel = layer.compose(layer.residual, zero, task).detach()

    def error(kept):
        """The share of the kernel's energy that is lost if only these components stay."""
        part = {name: factor.detach() for name, factor in layer.selected(kept).items()}
        return float((layer.compose(part, zero, task) - kernel).square().sum() / kernel.square().sum())

    raw = energy_select(layer.strengths()[0], 0.2)
    layer.absorb()
    n, sigma, c = (factor.detach() for factor in layer.residual.values())
    assert layer.pool == (min(pool, 6),)
    assert torch.allclose(layer.compose(layer.residual, zero, task), kernel, rtol=1e-10, atol=1e-10)
    assert torch.allclose(n.T @ n, torch.eye(n.shape[1]), atol=1e-10)
    assert torch.allclose(c @ c.T, torch.eye(len(c)), atol=1e-10)
    assert torch.allclose(sigma, torch.linalg.svdvals(kernel)[: len(sigma)], atol=1e-10)
    if pool:
        keep = energy_select(layer.strengths()[0], 0.2)
        assert 0 < error(keep) <= 0.2 < error(keep[:-1])
        assert len(raw) > len(keep)  # control: by the sigma that were drawn, more stay than a fifth of the energy asks for


# Tucker: absorbing what columns carry, and keeping by mode


@pytest.mark.parametrize("kind", ["tucker", "tucker-block"])
@pytest.mark.parametrize("pool", [(4, 3), (1, 5), (9, 2), (0, 2)])
def test_absorbing_leaves_the_kernel_and_makes_norms_energies(kind, pool):
    """The norms of a nested core's later tasks are no energies: windows between new and old columns belong to a row and a column
    both, and old columns need not be orthogonal to new ones. There they only come in order."""
    for layer in (made(kind), grown(kind)):
        task = len(layer.ranks)
        layer.draw_residual(pool, torch.Generator().manual_seed(4))
        before = layer.compose(layer.residual, torch.zeros(layer.rows, layer.columns), task).detach()
        layer.absorb()
        after = layer.compose(layer.residual, torch.zeros(layer.rows, layer.columns), task).detach()
        assert torch.allclose(before, after, rtol=1e-10, atol=1e-10)
        for name in "AB":
            factor = layer.residual[name].detach()
            assert torch.allclose(factor.T @ factor, torch.eye(factor.shape[1]), atol=1e-10)
        for norms in layer.strengths() if min(pool) else ():
            assert torch.allclose(norms, norms.sort(descending=True).values)
            energies = norms.square().sum() == pytest.approx(float(after.square().sum()))
            assert energies == (not task or kind == "tucker-block")


def test_without_absorbing_norms_are_no_energies():
    layer = made("tucker")
    layer.draw_residual((4, 3), torch.Generator().manual_seed(4))
    kernel = layer.compose(layer.residual, torch.zeros(layer.rows, layer.columns), 0).detach()
    assert layer.strengths()[0].square().sum() != pytest.approx(float(kernel.square().sum()), rel=0.01)


@pytest.mark.parametrize("drop", [0.0, 0.05, 0.3, 0.7])
@pytest.mark.parametrize("make", [lambda: made("tucker"), lambda: made("tucker-block"), lambda: grown("tucker-block")])
def test_keeping_a_share_of_the_energy_in_each_mode_bounds_the_error(make, drop):
    """Of what a task adds, where norms are energies: not in the later tasks of a nested core, as said above."""
    layer = make()
    task, zero = len(layer.ranks), torch.zeros(layer.rows, layer.columns)
    layer.draw_residual((6, 8), torch.Generator().manual_seed(4))
    whole = layer.compose(layer.residual, zero, task).detach()
    layer.absorb()
    layer.consolidate(*(energy_select(norms, drop) for norms in layer.strengths()))
    error = float((layer.compose(layer.added(task), zero, task) - whole).norm() / whole.norm())
    assert error <= math.sqrt(2 * drop) + 1e-9
    assert (drop > 0) == (error > 1e-6)


def test_as_many_kronecker_products_as_the_smaller_side_has_numbers_make_any_kernel():
    """Invariant 25: by a singular value decomposition of the kernel with its indices rearranged; one fewer does not."""
    conv = nn.Conv2d(6, 8, 3)
    layer = KroneckerConv2d(conv)
    a, b = layer.outer
    parts = conv.weight.detach().view(a, layer.inner[0], b, *layer.inner[1:]).permute(0, 2, 1, 3, 4, 5)
    u, s, v = torch.linalg.svd(parts.reshape(a * b, -1), full_matrices=False)
    for rank, exact in ((len(s), True), (len(s) - 1, False)):
        factors = {"A": u.T[:rank].reshape(-1, a, b), "B": v[:rank].reshape(-1, *layer.inner), "weight": s[:rank]}
        layer.set_residual(factors)
        made = layer.compose(layer.residual, torch.zeros_like(conv.weight).flatten(1), 0)
        assert torch.allclose(made, conv.weight.flatten(1), atol=1e-12) is exact
