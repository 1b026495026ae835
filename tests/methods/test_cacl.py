"""CACL against the vectors of its specification: exact numbers, replayed rank tables, published sizes to the byte."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchsuite.methods.cacl import CACL, Orthogonality, energy_select, next_pool, sparsity
from benchsuite.nn.factorised import SVDConv2d, break_even_rank
from benchsuite.nn.multihead import MultiHead
from benchsuite.protocol import protocols

TABLES = json.loads((Path(__file__).parent / "cacl_rank_tables.json").read_text())
LAYERS = {"conv1": (64, 27), "conv2": (64, 576), "conv3": (128, 576), "conv4": (128, 1152), "conv5": (256, 512)}
R0 = [18, 57, 104, 115, 170]


@pytest.mark.parametrize(("drop", "kept"), [(3e-5, [0, 3, 4]), (0.01, [0, 3])])
def test_energy_select(drop, kept):
    assert energy_select(torch.tensor([3, -0.01, 0, 4, 0.2]), drop).tolist() == kept


def test_energy_select_edges():
    assert energy_select(torch.empty(0), 3e-5).tolist() == []  # an empty pool: the official code divides 0 by 0
    assert energy_select(torch.zeros(3), 3e-5).tolist() == []
    assert energy_select(torch.tensor([1.0, 2.0, -2.0]), 0.5).tolist() == [1, 2]  # a tie with the smallest kept one
    assert energy_select(torch.tensor([1.0, 2.0]), 0.0).tolist() == [0, 1]
    assert energy_select(torch.tensor([1e-8, 1.0]), 1e-9).tolist() == [1]  # float64: the official float32 loop runs off the end
    assert energy_select(torch.tensor([1.0]), 0.1, fixed_energy=9.0).tolist() == []  # official option prev_sing keeps all here
    assert energy_select(torch.tensor([1.0, 0.1]), 0.01, fixed_energy=9.0).tolist() == [0]


def test_sparsity_vectors():
    sigma = torch.tensor([3.0, -4.0])
    assert sparsity("hoyer", sigma).item() == pytest.approx(0.4)
    assert sparsity("hoyer_square", sigma).item() == pytest.approx(0.96)
    assert sparsity("l1", sigma).item() == 7
    zero = torch.zeros(3, requires_grad=True)
    for kind in ("hoyer", "hoyer_square", "l1"):
        value = sparsity(kind, zero)
        assert value.item() == 0
        assert torch.autograd.grad(value, zero)[0].tolist() == [0, 0, 0]


def q(x):
    """The penalty as it is written: mean squared entry of the smaller Gram matrix minus the identity."""
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    return (gram - torch.eye(len(gram), dtype=x.dtype)).square().mean()


def test_orthogonality_vector():
    assert Orthogonality(torch.empty(0, 3), 3)(2 * torch.eye(3)).item() == pytest.approx(3)


@pytest.mark.parametrize(("fixed", "free", "columns"), [(0, 4, 7), (5, 4, 20), (5, 4, 9), (5, 4, 8), (9, 3, 6), (0, 9, 4)])
def test_orthogonality_equals_the_plain_form_in_value_and_gradient(fixed, free, columns):
    g = torch.Generator().manual_seed(0)
    bank = torch.randn(fixed, columns, generator=g, dtype=torch.float64)
    x = torch.randn(free, columns, generator=g, dtype=torch.float64, requires_grad=True)
    plain = q(torch.cat([bank, x]))
    (expected,) = torch.autograd.grad(plain, x)
    fast = Orthogonality(bank, free)(x)
    (gradient,) = torch.autograd.grad(fast, x)
    assert fast.item() == pytest.approx(plain.item(), rel=1e-12)
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-12)


def test_break_even_ranks():
    assert [break_even_rank(*shape) for shape in LAYERS.values()] == R0 == TABLES["initial_rank"]


@pytest.mark.parametrize("name", [k for k in TABLES if "lambda_s" in k])
def test_replay_of_the_released_rank_tables(name):
    """The growth rule on the stored K_t gives the stored allocated ranks, and no task keeps more than its pool."""
    growth = "initial_rank" if "five" in name else "mean_cumulative"
    table = TABLES[name]["cumulative_ranks"]
    allocated, fits = replay(table, growth)
    assert fits
    if "final_allocated" in TABLES[name]:
        assert allocated == TABLES[name]["final_allocated"]
    # controls: another rule allocates other ranks, or leaves a task less than it kept
    assert replay(table, "fixed") != (allocated, True)
    if name.endswith("0.4"):  # where the pools have not all come to their full size
        assert replay(table, "initial_rank")[0] != allocated


def replay(table, growth):
    """Ranks allocated in the end if each task keeps what the table says, and whether no task keeps more than its pool."""
    allocated, fits = [], True
    for layer, r0 in enumerate(R0):
        pool, earlier = r0, []
        for t, ranks in enumerate(table):
            kept = ranks[layer] - (table[t - 1][layer] if t else 0)
            fits &= 1 <= kept <= pool
            pool = next_pool(growth, earlier, pool - kept, r0)
            earlier.append(ranks[layer])
        allocated.append(earlier[-1] + pool)
    return allocated, fits


@pytest.mark.parametrize(
    ("name", "first", "later"),
    [
        ("split-cifar100 lambda_s=0.1", [9, 22, 30, 27, 22], [9.1, 26.2, 27.2, 30.0, 35.3]),
        ("split-cifar100 lambda_s=0.4", [5, 11, 12, 11, 8], [5.0, 11.7, 5.9, 8.4, 5.1]),
        ("split-miniimagenet lambda_s=0.1", [6, 17, 23, 24, 35], [6.9, 21.3, 20.9, 20.5, 33.2]),
        ("split-miniimagenet lambda_s=0.4", [4, 5, 9, 11, 13], [3.3, 6.8, 4.1, 2.7, 7.3]),
    ],
)
def test_the_released_tables_are_the_ones_that_are_described(name, first, later):
    table = np.array(TABLES[name]["cumulative_ranks"])
    assert table[0].tolist() == first
    assert ((table[-1] - table[0]) / (len(table) - 1)).round(1).tolist() == later


@pytest.mark.parametrize(
    ("image", "classes", "tasks", "without_biases", "with_biases"),
    [
        ((3, 32, 32), 5, 20, 31.678, 31.729),
        ((3, 84, 84), 5, 20, 37.822, 37.873),
        ((3, 32, 32), 10, 5, 8.022, 8.035),
    ],
)
def test_individual_networks_have_the_size_that_ratios_refer_to(image, classes, tasks, without_biases, with_biases):
    """MB of T dense networks, as the official code counts them and with the biases of convolutions (CACL section 9)."""
    model = MultiHead.build("cacl", image=image, classes=[classes])
    model.add_task(0)
    own = dict(model.named_parameters())
    every = 4 * tasks * sum(p.numel() for p in own.values())
    biases = 4 * tasks * sum(p.numel() for n, p in own.items() if n.startswith("backbone") and n.endswith("bias"))
    assert round((every - biases) / 1e6, 3) == without_biases
    assert round(every / 1e6, 3) == with_biases


def test_growth_vectors():
    conv3 = [ranks[2] for ranks in TABLES["split-cifar100 lambda_s=0.4"]["cumulative_ranks"]]
    assert sum(conv3[:19]) / 19 == pytest.approx(67.316, abs=1e-3)
    assert next_pool("mean_cumulative", conv3[:19], 58, 104) == 67
    assert conv3[19] + 67 == 192
    free = [r - k for r, k in zip(R0, [2, 2, 6, 4, 8], strict=True)]
    assert free == [16, 55, 98, 111, 162]
    assert [next_pool("initial_rank", [], f, r) for f, r in zip(free, R0, strict=True)] == free  # never after the first task
    assert [next_pool("initial_rank", [2], f, r) for f, r in zip(free, R0, strict=True)] == R0
    assert next_pool("fixed", [5], 0, 18) == 0


@pytest.mark.parametrize(
    ("protocol", "table", "size", "with_ids"),
    [
        ("split-cifar100", "split-cifar100 lambda_s=0.1", 8_534_664, 8_535_064),
        ("split-cifar100", "split-cifar100 lambda_s=0.4", 2_598_460, 2_598_860),
        ("split-miniimagenet", "split-miniimagenet lambda_s=0.1", 13_032_944, 13_033_344),
        ("split-miniimagenet", "split-miniimagenet lambda_s=0.4", 7_954_236, 7_954_636),
        ("five-datasets", "five-datasets lambda_s=0.1", 1_489_104, 1_489_204),
    ],
)
def test_published_sizes_to_the_byte(protocol, table, size, with_ids):
    """The artifact of a network with the released ranks: weights and heads, then with one int32 for each task and layer."""
    chosen = protocols.get(protocol)
    ranks = TABLES[table]["cumulative_ranks"]
    model = MultiHead.build("cacl", image=chosen.image, classes=[len(t.classes) for t in chosen.tasks])
    for t in range(len(ranks)):
        model.add_task(t)
    method = CACL()
    method.model = method.prepare(model)
    for i, layer in enumerate(method.layers.values()):
        layer.ranks = [(row[i],) for row in ranks]
        k = layer.ranks[-1][0]
        layer.N, layer.sigma, layer.C = torch.zeros(layer.rows, k), torch.zeros(k), torch.zeros(k, layer.columns)
    artifact = method.artifact()
    sizes = artifact.sizes()
    assert sizes["weights"] + sizes["heads"] == size
    assert sizes["weights"] + sizes["heads"] + sizes["masks"] == with_ids
    assert sum(sizes.values()) == len(artifact.to_bytes())


def test_initial_law_of_the_components():
    layer = SVDConv2d(nn.Conv2d(64, 128, 3))
    layer.draw_residual((50,), torch.Generator().manual_seed(0))
    assert layer.residual_N.std().item() == pytest.approx((2 / 50) ** 0.5, rel=0.03)
    assert layer.residual_C.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.03)
    assert layer.residual_sigma.std().item() == pytest.approx(1, rel=0.3)


def test_kernel_is_the_product_of_all_components_and_prefixes_are_nested():
    layer = SVDConv2d(nn.Conv2d(3, 8, 3))
    g = torch.Generator().manual_seed(1)
    for kept in ([0, 2], [], [1, 3, 4]):
        layer.draw_residual((5,), g)
        layer.consolidate(torch.tensor(kept, dtype=torch.long))
    assert layer.ranks == [(2,), (2,), (5,)]
    for t, (k,) in enumerate(layer.ranks):
        plain = layer.N[:, :k] @ torch.diag(layer.sigma[:k].abs()) @ layer.C[:k]
        assert torch.allclose(layer.prefix(t), plain, atol=1e-6)
    assert torch.equal(layer.prefix(0), layer.prefix(1))  # a task that kept nothing shares its predecessor's kernel


def test_kernels_are_composed_in_fp32_under_bf16():
    layer = SVDConv2d(nn.Conv2d(3, 8, 3))
    layer.draw_residual((5,), torch.Generator().manual_seed(1))
    layer.consolidate(torch.arange(5))
    plain = layer.prefix(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.prefix(0), plain)
        product = layer.N * layer.sigma.abs() @ layer.C  # control: autocast would have rounded it
    assert not torch.allclose(product.float(), plain, rtol=1e-4)


def test_a_zero_sigma_gets_a_zero_gradient_not_nan():
    layer = SVDConv2d(nn.Conv2d(3, 8, 3))
    layer.draw_residual((4,), torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.residual_sigma[1] = 0
    layer.set_task(0)
    layer(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    assert layer.residual_sigma.grad[1] == 0
    assert torch.isfinite(layer.residual_sigma.grad).all()
