"""EWC against closed forms (E1 to E7 of the baselines' invariants) and against Avalanche's at batch size 1."""

import pytest
import torch
from avalanche.training.plugins import EWCPlugin
from short_runs import make, trained, weights
from torch import nn

from benchsuite.method.base import RunInfo
from benchsuite.methods.ewc import EWC
from benchsuite.nn.conditional import shared_parameters
from benchsuite.nn.importance import Quadratic, per_sample_gradients
from benchsuite.nn.multihead import MultiHead
from benchsuite.protocol import Recipe
from benchsuite.training.batches import Batches


class Linear(nn.Linear):
    """A backbone that is the whole classifier: logits = W x, seen through a head that is the identity."""

    features = 3

    def forward(self, x):
        return super().forward(x.flatten(1))


def classifier(seed=0):
    torch.manual_seed(seed)
    model = MultiHead(Linear(4, 3), classes=[3])
    model.add_task(0)
    with torch.no_grad():
        model.heads["0"].weight.copy_(torch.eye(3))
        model.heads["0"].bias.zero_()
    return model.double()


def samples(n=40, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 2, 2, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)


def run_of(seed):
    return RunInfo(seed=seed, recipe=Recipe(backbone="digits", epochs=1), n_tasks=1)


def fisher(model, x, y, kind, batch=7):
    method = EWC(fisher=kind)
    method.run, method.model = run_of(0), model
    batches = [[x[i : i + batch], y[i : i + batch], None] for i in range(0, len(x), batch)]
    return method.information(0, batches)


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_fisher_of_a_linear_softmax_is_the_closed_form_whatever_the_batch(batch):
    model, (x, y) = classifier(), samples()
    p = model(x, 0).softmax(1).detach()
    flat = x.flatten(1)
    exact = torch.einsum("nd,nc->cd", flat**2, p * (1 - p)) / len(x)
    label = torch.nn.functional.one_hot(y, 3)
    empirical = torch.einsum("nd,nc->cd", flat**2, (label - p) ** 2) / len(x)
    assert torch.allclose(fisher(model, x, y, "exact", batch)["weight"], exact, atol=1e-12)
    assert torch.allclose(fisher(model, x, y, "empirical", batch)["weight"], empirical, atol=1e-12)
    assert not torch.allclose(exact, empirical, rtol=0.05)  # control: the two differ


def test_one_drawn_class_for_each_image_estimates_the_exact_fisher():
    model, (x, y) = classifier(), samples(4000)
    exact, drawn = (fisher(model, x, y, kind, 500)["weight"] for kind in ("exact", "sample"))
    empirical = fisher(model, x, y, "empirical", 500)["weight"]
    assert (drawn - exact).abs().max() < 0.1 * exact.max()
    assert (empirical - exact).abs().max() > 0.1 * exact.max()  # control: random labels say something else


def test_at_batch_size_one_it_is_avalanches_empirical_fisher():
    theirs = EWCPlugin(ewc_lambda=1.0, keep_importance_data=True)
    strategy, stream = trained(theirs, dropout=0.0, epochs=1)
    importances = {}
    for size in (1, 8):
        strategy.model.train()
        importances[size] = theirs.compute_importances(
            strategy.model, strategy._criterion, strategy.optimizer, stream.train[0].dataset.eval(), "cpu", size, 0
        )
    method = EWC(fisher="empirical")
    method.run, method.model = run_of(1), strategy.model
    ours = method.information(0, Batches([stream.train[0].images], [0], 5, augmentation=None))
    assert ours
    for name, mine in ours.items():
        assert torch.allclose(mine, importances[1][f"backbone.{name}"].data, rtol=1e-3, atol=1e-8)
        # control: the mean gradient of a batch, squared, is something else
        assert not torch.allclose(mine, importances[8][f"backbone.{name}"].data, rtol=0.2, atol=1e-8)


def test_the_fisher_pass_leaves_the_network_as_it_was():
    strategy, stream = trained(method="ewc", backbone="resnet18", width=0.25, epochs=1)
    model = strategy.model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    strategy.method.information(0, Batches([stream.train[0].images], [0], 16, augmentation=None))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(module.training for module in model.modules())
    for p, g in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None) == (g is None)
        assert g is None or torch.equal(p.grad, g)


def test_many_quadratics_are_one():
    g = torch.Generator().manual_seed(0)
    draw = lambda: {"w": torch.randn(5, 4, generator=g, dtype=torch.float64)}  # noqa: E731
    terms = [({"w": draw()["w"].abs()}, draw()) for _ in range(4)]
    terms[1][0]["w"][0] = 0  # no importance at all in places
    folded, theta = Quadratic(), draw()["w"].requires_grad_()
    for term in terms:
        folded.add(*term)
    plain = sum((f["w"] * (theta - a["w"]).square()).sum() for f, a in terms)
    value = folded({"w": theta})
    assert torch.allclose(value + folded.rest, plain, rtol=1e-12)
    assert torch.allclose(*torch.autograd.grad(value, theta), *torch.autograd.grad(plain, theta), rtol=1e-9)
    assert sum(t.numel() for t in [*folded.importance.values(), *folded.anchor.values()]) == 2 * theta.numel()
    last = Quadratic()  # control: the newest term alone is not the sum
    last.add(*terms[-1])
    assert not torch.allclose(last({"w": theta}), plain, rtol=0.1)


def test_the_minimum_after_a_second_quadratic_task_is_the_closed_form():
    """E1: 0.5 a (theta - b)^2 + lambda / 2 F (theta - theta*)^2 has its minimum at (a b + lambda F theta*) / (a + lambda F)."""
    a, b, f, star = (
        torch.tensor(v, dtype=torch.float64) for v in ([1.0, 2.0, 0.5], [3.0, -1.0, 2.0], [0.5, 0.0, 4.0], [0.0, 1.0, -2.0])
    )
    strength, penalty = 0.7, Quadratic()
    penalty.add({"w": f}, {"w": star})
    theta = star.clone().requires_grad_()
    for _ in range(2000):
        loss = (0.5 * a * (theta - b) ** 2).sum() + strength / 2 * penalty({"w": theta})
        (gradient,) = torch.autograd.grad(loss, theta)
        theta = (theta - 0.1 * gradient).detach().requires_grad_()
    assert torch.allclose(theta, (a * b + strength * f * star) / (a + strength * f), atol=1e-4)
    assert not torch.allclose(theta, b, atol=1e-2)  # control: not what the second task alone wants


def test_online_with_gamma_one_sums_the_fishers_and_with_zero_forgets_them():
    runs = {}
    for mode, decay in (("separate", 1.0), ("online", 1.0), ("online", 0.0)):
        strategy, stream = make(method="ewc", mode=mode, decay=decay, strength=0.0, fisher="exact", epochs=1)
        single = []
        for t, experience in enumerate(stream.train[:2]):
            strategy.train(experience, eval_streams=[])
            batches = Batches([experience.images], [t], 32, augmentation=None)
            single.append(strategy.method.information(t, batches))
            if t == 0:
                first = {n: v.clone() for n, v in strategy.method.penalty.importance.items()}
        runs[mode, decay] = first, strategy.method.penalty.importance, single
    for first, _, single in runs.values():
        assert all(torch.equal(first[name], single[0][name]) for name in single[0])
    (_, summed, single), (_, online, _), (_, newest, _) = runs.values()
    for name in summed:
        both = single[0][name] + single[1][name]
        assert torch.allclose(summed[name], both)
        assert torch.allclose(online[name], both)
        assert torch.allclose(newest[name], single[1][name])
        assert not torch.allclose(newest[name], both, rtol=0.01)


def test_the_penalty_is_zero_at_the_anchor_and_knows_no_head():
    strategy, _ = trained(method="ewc", epochs=1)
    penalty, parameters = strategy.method.penalty, shared_parameters(strategy.model.backbone)
    value = penalty(parameters)
    assert value == 0
    assert all(not g.any() for g in torch.autograd.grad(value, list(parameters.values())))
    assert penalty.importance.keys() == dict(strategy.model.backbone.named_parameters()).keys()
    with torch.no_grad():  # control: away from it, it is not
        strategy.model.backbone.conv1.weight.add_(0.1)
    assert penalty(parameters) > 0


def test_strength_zero_is_fine_tuning():
    plain = weights(trained(tasks=2)[0].model.backbone)
    assert torch.equal(weights(trained(method="ewc", tasks=2, strength=0.0)[0].model.backbone), plain)
    first = weights(trained(tasks=1)[0].model.backbone)
    assert torch.equal(weights(trained(method="ewc", tasks=1, strength=1e6)[0].model.backbone), first)


def test_a_huge_strength_leaves_the_network_nearly_where_it_was():
    """E5, over 90 steps, every weight as important as any other: it comes g / lambda far, not lr g a step."""

    def moved(strength):
        strategy, stream = trained(method="ewc", strength=strength, optimizer="sgd", lr=0.01, epochs=30)
        for importance in strategy.method.penalty.importance.values():
            importance.fill_(1.0)
        before = weights(strategy.model.backbone)
        strategy.train(stream.train[1], eval_streams=[])
        return (weights(strategy.model.backbone) - before).norm().item()

    assert moved(100.0) < 0.03 * moved(0.0)


def test_state_and_cost_do_not_grow_with_the_number_of_tasks():
    sizes = []
    strategy, stream = make(method="ewc", epochs=1)
    for experience in stream.train:
        strategy.train(experience, eval_streams=[])
        penalty = strategy.method.penalty
        sizes.append(sum(t.numel() for t in [*penalty.importance.values(), *penalty.anchor.values()]))
    assert sizes == [2 * sum(p.numel() for p in strategy.model.backbone.parameters())] * 5


def test_per_sample_gradients_are_those_of_each_image_alone():
    strategy, stream = trained(epochs=1)
    model = strategy.model.eval()
    x, y, _ = next(iter(Batches([stream.train[0].images], [0], 5, augmentation=None)))
    loss = lambda logits, target: nn.functional.cross_entropy(logits[None], target[None])  # noqa: E731
    (ours,) = per_sample_gradients(model, loss, iter([(x, y)]), 0)
    for i in range(len(x)):
        names, parameters = zip(*shared_parameters(model.backbone).items(), strict=True)
        alone = torch.autograd.grad(loss(model(x[i : i + 1], 0)[0], y[i]), parameters)
        for name, g in zip(names, alone, strict=True):
            assert torch.allclose(ours[name][i], g, atol=1e-6)
