"""CACL's settings for short schedules: steps of sigma, exact singular vectors, pruning before the end of a task."""

from types import SimpleNamespace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from short_runs import make, trained

from benchsuite.fields import field_types, neutral_values
from benchsuite.method.registered import methods
from benchsuite.methods.cacl import CACL, next_pool
from benchsuite.training.settings import resolve

OFF = {"fresh_share": 1.0, "sigma_rate": 1.0, "exact_vectors": "never", "prune_at": 1.0}
variants = pytest.mark.parametrize("method", ["cacl", "cacl-cp", "cacl-kronecker", "cacl-tucker"])


class Steps(SupervisedPlugin):
    """By epoch: how far each parameter moved in the first step, and its gradient."""

    def __init__(self):
        super().__init__()
        self.moved, self.gradients = {}, {}

    def before_update(self, strategy, **kwargs):
        self.start = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}

    def after_update(self, strategy, **kwargs):
        if (epoch := strategy.clock.train_exp_epochs) not in self.moved:
            own = dict(strategy.model.named_parameters())
            self.moved[epoch] = {name: p.detach() - self.start[name] for name, p in own.items()}
            self.gradients[epoch] = {name: p.grad.clone() for name, p in own.items() if p.grad is not None}


def steps(method="cacl", **settings):
    seen = Steps()
    trained(seen, method=method, dtype=torch.float64, **settings)
    return seen


@pytest.mark.parametrize("optimizer", [{"optimizer": "sgd"}, {"optimizer": "adam"}, {"optimizer": "adamw", "weight_decay": 0.1}])
def test_the_sigma_rate_multiplies_the_step_of_sigma_and_no_other(optimizer):
    plain, fast = (steps(epochs=1, sigma_rate=rate, **optimizer).moved[0] for rate in (1.0, 20.0))
    sigmas = {name for name in plain if name.endswith("residual_sigma")}
    assert len(sigmas) == 3
    for name, moved in plain.items():
        rate = 20 if name in sigmas else 1
        assert torch.allclose(fast[name], rate * moved, rtol=1e-8, atol=1e-13), name
        if name in sigmas:
            assert moved.any()
            assert not torch.allclose(fast[name], moved)  # control


@pytest.mark.parametrize(("method", "scale"), [("cacl", "sigma"), ("cacl-cp", "weight")])
def test_the_sigma_rate_is_off_after_pruning(method, scale):
    seen = steps(method, epochs=2, optimizer="sgd", lr=0.01, sigma_rate=20.0, prune_at=0.5)
    for epoch, rate in ((0, 20), (1, 1)):
        for name, gradient in seen.gradients[epoch].items():
            if name.endswith(f"residual_{scale}"):
                assert gradient.any()
                assert torch.allclose(seen.moved[epoch][name], -0.01 * rate * gradient, rtol=1e-8, atol=1e-13)


class Epochs(SupervisedPlugin):
    """What the optimiser, the layers and the penalties hold when an epoch begins."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_training_epoch(self, strategy, **kwargs):
        method = strategy.method
        (group,) = strategy.optimizer.param_groups
        pools = {name: layer.pool for name, layer in method.layers.items()}
        residual = [p for layer in method.layers.values() for p in layer.residual.values()]
        gradients = torch.autograd.grad(sum(penalty() for penalty in method._penalties), residual, allow_unused=True)
        self.seen.append(
            SimpleNamespace(
                pools=pools,
                rate=group["lr"],
                states=len(strategy.optimizer.state),
                learns={id(p) for p in group["params"]} == {id(p) for p in strategy.model.parameters()},
                penalised=all(g is not None for g in gradients),
                scales=[layer.residual[layer.scale].detach().clone() for layer in method.layers.values()],
                pruned=method.pruned,
            )
        )


@variants
def test_a_task_is_pruned_at_its_share_of_the_epochs_and_trained_on(method):
    seen = Epochs()
    settings = {"method": method, "epochs": 4, "milestones": (2,), "prune_at": 0.6, "energy_drop": 0.3, "train_per_class": 16}
    strategy, stream = trained(seen, **settings)
    before, after, last = seen.seen[1:4]
    assert [e.pruned for e in seen.seen] == [False, False, True, True]
    assert before.pools == seen.seen[0].pools
    assert before.pools != after.pools == last.pools
    assert all(new <= old for name, rank in after.pools.items() for new, old in zip(rank, before.pools[name], strict=True))
    assert after.rate == pytest.approx(before.rate / 10)  # the recipe's schedule goes on
    assert (before.states > 0, after.states) == (True, 0)
    assert before.learns
    assert after.learns
    assert after.penalised  # the new parameters, not those that were dropped
    assert not any(torch.equal(a, b) for a, b in zip(after.scales, last.scales, strict=True))
    own = strategy.method
    for name, layer in own.layers.items():
        assert layer.ranks == [after.pools[name]]
        first, second = own.pools[name]
        free = [old - kept for old, kept in zip(first, after.pools[name], strict=True)]
        assert second == tuple(next_pool(own.growth, [], f, r0) for f, r0 in zip(free, first, strict=True))
        if own.growth != "eighth":
            assert any(free)  # control: nothing is left of the pool after pruning
    bank = {(name, part): getattr(layer, part).clone() for name, layer in own.layers.items() for part in layer.grows}
    strategy.train(stream.train[1], eval_streams=[])
    for (name, part), old in bank.items():
        layer = own.layers[name]
        assert torch.equal(getattr(layer, part).narrow(layer.grows[part], 0, old.shape[layer.grows[part]]), old)


@pytest.mark.parametrize(
    ("share", "epochs", "at"), [(0.6, 10, 6), (0.6, 2, 1), (0.01, 3, 1), (1.0, 10, None), (0.97, 10, None), (0.5, 1, None)]
)
def test_the_epoch_at_which_a_task_is_pruned(share, epochs, at):
    method, found = CACL(prune_at=share), []
    method.run, method.layers = SimpleNamespace(recipe=SimpleNamespace(epochs=epochs)), {}
    for epoch in range(epochs):
        clock = SimpleNamespace(train_exp_epochs=epoch)
        method.before_training_epoch(SimpleNamespace(clock=clock, make_optimizer=lambda epoch=epoch, **_: found.append(epoch)))
    assert found == ([] if at is None else [at])


@pytest.mark.parametrize("when", ["never", "first", "pruning", "both"])
def test_singular_vectors_are_exact_where_they_are_said_to_be(when):
    strategy, stream = make(method="cacl", exact_vectors=when, energy_drop=0.2, epochs=1, dtype=torch.float64)
    exact, begin = [], strategy.method._begin

    def orthonormal(rows):
        return all(torch.allclose(c @ c.T, torch.eye(len(c), dtype=c.dtype), atol=1e-9) for c in rows)

    def watched():
        begin()
        exact.append(orthonormal(layer.residual["C"].detach() for layer in strategy.method.layers.values()))

    strategy.method._begin = watched
    for experience in stream.train[:2]:
        strategy.train(experience, eval_streams=[])
    exact.append(orthonormal(layer.added(task)["C"] for layer in strategy.method.layers.values() for task in range(2)))
    assert exact == [when in ("first", "both"), False, when in ("pruning", "both")]


@variants
def test_settings_that_are_off_are_no_part_of_a_run(method):
    known = resolve("split-digits", "smoke", method, 1)
    off = {"sigma_rate": 1.0} if method != "cacl-tucker" else {}
    off |= {"prune_at": 1.0, **(OFF if method == "cacl" else {})}
    assert resolve("split-digits", "smoke", method, 1, overrides=off).folder == known.folder
    assert resolve("split-digits", "smoke", method, 1, overrides={"prune_at": 0.5}).folder != known.folder


@variants
@pytest.mark.parametrize("protocol", ["split-cifar100", "split-miniimagenet", "five-datasets"])
def test_only_lite_turns_on_the_settings_for_short_schedules(method, protocol):
    own = {name: off for name, off in OFF.items() if name in field_types(methods.get(method))}
    neutral = neutral_values(methods.get(method))

    def at(tier):
        return {name: resolve(protocol, tier, method, 1).settings.get(name, neutral.get(name)) for name in own}

    assert at("paper") == at("smoke") == own | ({} if method == "cacl" else {"fresh_share": 0.1})  # their default
    assert at("lite") == {
        name: {"fresh_share": 0.2, "sigma_rate": 20.0, "exact_vectors": "both", "prune_at": 0.3}[name] for name in own
    }
