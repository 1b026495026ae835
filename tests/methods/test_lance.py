"""LANCE: its gradient, and what it protects (invariant 20); Transfer, which keeps nothing for layers that do not learn."""

import math
from functools import cache

import pytest
import torch
from avalanche.core import SupervisedPlugin
from short_runs import make, trained
from torch import nn
from torch.nn import functional as F

from benchsuite.errors import UserError
from benchsuite.methods import lance
from benchsuite.methods.lance import LANCE, Projected, Projection, more, outside
from benchsuite.training.settings import resolve
from benchsuite.training.watch import Watch

GEOMETRY = ((2, 1), (1, 0), (1, 1), 1)


def orthonormal(rows, columns, seed):
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q


def example():
    source = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 8, 7, dtype=torch.float64, generator=source, requires_grad=True)
    weight = torch.randn(4, 3, 3, 2, dtype=torch.float64, generator=source, requires_grad=True)
    windows = F.conv2d(x, weight, None, *GEOMETRY)[0, 0].numel()
    return x, weight, windows


def gradients(x, weight, projection):
    y = Projected.of(x.detach(), weight.shape, GEOMETRY, projection).conv2d(x, weight, None, GEOMETRY)
    assert torch.equal(y, F.conv2d(x, weight, None, *GEOMETRY))
    g = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(y, (x, weight), g), g


def test_with_whole_bases_the_gradient_is_exact_and_with_fewer_that_of_the_projected_input():
    x, weight, windows = example()
    exact = torch.autograd.grad(F.conv2d(x, weight, None, *GEOMETRY), (x, weight), gradients(x, weight, whole(5, 18, windows))[1])
    for found, expected in zip(gradients(x, weight, whole(5, 18, windows))[0], exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    few = Projection(orthonormal(5, 2, 2), orthonormal(18, 4, 3), orthonormal(windows, 3, 4))
    (dx, dw), g = gradients(x, weight, few)
    unfolded = F.unfold(x.detach(), (3, 2), 1, (1, 0), (2, 1))
    for mode, u in enumerate((few.batch, few.inputs, few.windows)):
        unfolded = torch.tensordot(u @ u.T, unfolded, ([1], [mode])).movedim(0, mode)
    torch.testing.assert_close(dw.flatten(1), torch.einsum("bol,bcl->oc", g.flatten(2), unfolded), rtol=1e-10, atol=1e-10)
    assert torch.equal(dx, exact[0])
    assert not torch.allclose(dw, exact[1])  # control


def whole(*sizes):
    return Projection(*(orthonormal(n, n, n) for n in sizes))


def test_a_batch_of_another_size_is_kept_whole_along_its_images():
    x, weight, windows = example()
    projection = Projection(orthonormal(9, 2, 2), orthonormal(18, 4, 3), orthonormal(windows, windows, 4))
    assert Projected.of(x.detach(), weight.shape, GEOMETRY, projection).core.shape[0] == 5
    (_, dw), _ = gradients(x, weight, projection)
    assert torch.linalg.matrix_rank(dw.flatten(1)) <= 4


def test_gradients_are_orthogonal_to_what_is_protected():
    x, weight, windows = example()
    m = orthonormal(18, 5, 7)
    covariance = torch.randn(18, 18, dtype=torch.float64)
    u = more(covariance @ covariance.T, m, 0.9)
    assert torch.allclose(u.T @ u, torch.eye(u.shape[1], dtype=torch.float64), atol=1e-12)
    (_, dw), _ = gradients(x, weight, Projection(orthonormal(5, 2, 2), u, orthonormal(windows, 3, 4)))
    assert (dw.flatten(1) @ m).abs().max() < 1e-12
    (_, other), _ = gradients(x, weight, Projection(orthonormal(5, 2, 2), orthonormal(18, 6, 8), orthonormal(windows, 3, 4)))
    assert (other.flatten(1) @ m).abs().max() > 0.1  # control


def test_as_few_directions_are_added_as_hold_the_share():
    covariance = torch.diag(torch.tensor([50.0, 30, 10, 6, 3, 1], dtype=torch.float64))
    m = torch.eye(6, dtype=torch.float64)[:, 1:2]
    assert outside(covariance, m)[1] == pytest.approx(0.3)
    assert [more(covariance, m, share).shape[1] for share in (0.2, 0.3, 0.31, 0.8, 0.81, 0.96, 2.0)] == [0, 0, 1, 1, 2, 3, 5]


class Protected(SupervisedPlugin):
    """M and the weights before and after each task."""

    def __init__(self):
        super().__init__()
        self.tasks = []

    def look(self, method):
        return {name: (m.clone(), method.weight(name).detach().clone()) for name, m in method.protected.items()}

    def before_training_epoch(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs == 0:
            self.tasks.append([self.look(strategy.method)])

    def after_training_exp(self, strategy, **kwargs):
        self.tasks[-1].append(self.look(strategy.method))


OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "adamw and decay": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd and momentum": {"optimizer": "sgd", "momentum": 0.9},
}


@cache
def learnt(optimizer):
    """Before and after each of three tasks: {layer: (M, weight)}."""
    seen = Protected()
    trained(seen, method="lance", tasks=3, dtype=torch.float64, calibration_batches=5, **OPTIMIZERS[optimizer])
    return seen.tasks


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_moves_what_earlier_tasks_need(optimizer):
    for before, after in learnt(optimizer)[1:]:
        for name, (m, start) in before.items():
            moved = (after[name][1] - start).flatten(1)
            assert m.shape[1]
            assert (moved @ m).abs().max() < 1e-10 * max(1.0, float(moved.abs().max()))
            assert moved.any() or m.shape[1] == len(m)


@pytest.mark.parametrize(("optimizer", "leaks"), [("sgd", False), ("adamw and decay", True)])
def test_without_the_projection_of_steps_only_plain_sgd_keeps_to_the_gradients_space(optimizer, leaks, monkeypatch):
    monkeypatch.setattr(LANCE, "after_update", lambda *_, **__: None)
    seen = Protected()
    trained(seen, method="lance", tasks=2, dtype=torch.float64, calibration_batches=5, **OPTIMIZERS[optimizer])
    before, after = seen.tasks[1]
    found = max(float(((after[name][1] - start).flatten(1) @ m).abs().max()) for name, (m, start) in before.items())
    assert (found > 1e-4) is leaks


def test_what_is_protected_grows_and_stays_orthonormal():
    tasks = learnt("sgd")
    for (before, after), later in zip(tasks, [*[task[0] for task in tasks[1:]], None], strict=True):
        for name, (m, _) in after.items():
            assert torch.allclose(m.T @ m, torch.eye(m.shape[1], dtype=torch.float64), atol=1e-10)
            assert torch.equal(m[:, : before[name][0].shape[1]], before[name][0])
            assert later is None or torch.equal(later[name][0], m)
    assert any(tasks[1][1][name][0].shape[1] > m.shape[1] for name, (m, _) in tasks[0][1].items())


def test_inputs_of_the_protected_span_get_the_same_answer_as_before():
    tasks = learnt("sgd")
    before, after = tasks[2]
    for name, (m, start) in before.items():
        inside = m @ torch.randn(m.shape[1], 3, dtype=torch.float64)
        assert torch.allclose(start.flatten(1) @ inside, after[name][1].flatten(1) @ inside, atol=1e-10)
    name = "conv3"
    anywhere = torch.randn(len(before[name][0]), 3, dtype=torch.float64)  # control
    assert not torch.allclose(before[name][1].flatten(1) @ anywhere, after[name][1].flatten(1) @ anywhere, atol=1e-4)


def test_a_step_holds_the_cores_in_place_of_the_maps():
    watch, plain = Watch(), Watch()
    strategy, _ = trained(watch, method="lance")
    trained(plain, method="finetune")
    cores = 4 * sum(math.prod(ranks) for ranks in strategy.method.ranks[0].values())
    heads = 4 * 16 * 64  # the input of the one linear layer stays as it is
    assert watch.memory["formula"] == watch.memory["formula_mean"] == cores + heads
    assert cores < watch.memory["held"] < plain.memory["held"] / 2


def test_a_convolution_of_groups_is_refused_by_name(monkeypatch):
    model = make()[0].model
    method = LANCE()
    method.prepare(model)  # control
    model.backbone.conv2 = nn.Conv2d(16, 32, 3, groups=4)
    with pytest.raises(UserError, match=r"^lance: conv2 is a convolution of groups, .*; use another backbone$"):
        method.prepare(model)


def test_a_layer_of_which_everything_is_protected_is_fixed(monkeypatch):
    monkeypatch.setattr(lance, "FEW", 0)
    strategy, stream = trained(method="lance", threshold=1.0, threshold_rise=0.0)
    full = [name for name, m in strategy.method.protected.items() if m.shape[1] == len(m)]
    strategy.train(stream.train[1], eval_streams=[])
    assert full
    for name in full:
        assert not strategy.method.weight(name).requires_grad


@pytest.mark.parametrize("settings", [{"epsilon": 0}, {"threshold": 1.5}, {"threshold_rise": 0.5}, {"calibration_batches": 0}])
def test_impossible_settings_are_refused_by_name(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        resolve("split-digits", "smoke", "lance", 1, overrides=settings)


@pytest.mark.parametrize("last", [0, 1, 2, 99])
def test_transfer_learns_its_last_layers_alone_after_the_first_task(last):
    strategy, stream = trained(method="transfer", last=last)
    before = {name: p.detach().clone() for name, p in strategy.model.backbone.named_parameters()}
    strategy.train(stream.train[1], eval_streams=[])
    moved = {name.split(".")[0] for name, p in strategy.model.backbone.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(["conv1", "conv2", "conv3"][max(0, 3 - last) :])
