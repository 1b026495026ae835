"""HAT against its invariants (H1 to H10 of the baselines' specification)."""

import math

import pytest
import torch
from avalanche.core import SupervisedPlugin
from short_runs import make, trained

from benchsuite.execution.tune import study
from benchsuite.method.artifact import Artifact
from benchsuite.method.base import RunInfo
from benchsuite.methods.hat import HAT, Gate, compensate, hard
from benchsuite.nn.bits import pack_bits
from benchsuite.nn.guard import FrozenGuard
from benchsuite.nn.multihead import MultiHead
from benchsuite.protocol import Recipe

FAST = {"method": "hat", "lr": 0.01, "embedding_rate": 20.0}


def test_usage_only_grows_and_stays_below_one():
    strategy, _ = trained(tasks=3, **FAST)
    for key in ("units", "weights"):
        values = [usage[key] for usage in strategy.method.usage]
        assert values == sorted(values)
        assert 0 < values[0] < values[-1] <= 1


class Slopes(SupervisedPlugin):
    """s at each step, the largest |e| after it."""

    def __init__(self):
        super().__init__()
        self.slopes, self.largest = [], 0.0

    def before_forward(self, strategy, **kwargs):
        self.slopes.append(next(iter(strategy.method.gates.values())).slope)

    def after_training_iteration(self, strategy, **kwargs):
        self.largest = max(self.largest, *(g.embedding.abs().max().item() for g in strategy.method.gates.values()))


def test_the_slope_is_annealed_within_each_epoch_and_embeddings_stay_within_six():
    slopes = Slopes()
    trained(slopes, tasks=1, **FAST | {"embedding_rate": 1000.0})
    assert slopes.slopes[:3] == pytest.approx([1 / 400, (400 + 1 / 400) / 2, 400])
    assert slopes.slopes[3:] == slopes.slopes[:3]
    assert slopes.largest == 6.0


class Starts(SupervisedPlugin):
    """Embeddings at the start of each task, and the slope of each step."""

    def __init__(self):
        super().__init__()
        self.drawn, self.slopes = [], set()

    def before_training_epoch(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs == 0:
            self.drawn.append(torch.cat([gate.embedding.detach().clone() for gate in strategy.method.gates.values()]))

    def before_forward(self, strategy, **kwargs):
        self.slopes |= {gate.slope for gate in strategy.method.gates.values()}


def test_embeddings_can_start_open_and_gates_steep():
    normal, uniform = Starts(), Starts()
    trained(normal, tasks=2, **FAST)
    trained(uniform, tasks=2, start="uniform", anneal=False, **FAST)
    for drawn in uniform.drawn:
        assert 0 <= drawn.min() < 0.2 < 1.8 < drawn.max() <= 2
        assert drawn.mean() == pytest.approx(1, abs=4 * (1 / 3 / len(drawn)) ** 0.5)
    assert not torch.equal(*uniform.drawn), "each task has its own draw"
    assert uniform.slopes == {400.0}
    assert all(drawn.min() < 0 and drawn.max() > 2 for drawn in normal.drawn), "control: the paper's law is another"
    assert min(normal.slopes) == 1 / 400, "control: the slope is annealed by default"


def test_five_trials_see_every_start_with_and_without_annealing():
    made = study("split-digits", "lite", "hat", 5)
    seen = {(values["start"], values["anneal"]) for values in [made.start, *made.spread()]}
    assert seen == {(start, anneal) for start in ("normal", "uniform") for anneal in (True, False)}
    assert {"start", "anneal"}.isdisjoint(made.job({}, 1002).settings), "neutral values leave earlier records valid"


def test_the_masks_of_finished_tasks_never_change():
    strategy, stream = make(**FAST)
    kept = []
    for experience in stream.train[:3]:
        strategy.train(experience, eval_streams=[])
        kept.append({name: gate.masks.clone() for name, gate in strategy.method.gates.items()})
        assert all(gate.embedding is None for gate in strategy.method.gates.values())
    for done, earlier in enumerate(kept, start=1):
        assert all(torch.equal(kept[-1][name][:done], masks) for name, masks in earlier.items())
    assert any(not torch.equal(masks[0], masks[1]) for masks in kept[-1].values())  # control: tasks do differ


@pytest.mark.parametrize("slope", [1 / 400, 0.1, 1.0, 7.0])
def test_the_compensated_gradient_does_not_depend_on_the_slope(slope):
    """H3, in double precision where |s e| < 15: s_max sigmoid'(e) dL/da."""
    e = torch.linspace(-2, 2, 21, dtype=torch.float64, requires_grad=True)
    upstream = torch.linspace(-1, 1, 21, dtype=torch.float64)
    (torch.sigmoid(slope * e) * upstream).sum().backward()
    a = torch.sigmoid(e.detach())
    expected = 400 * a * (1 - a) * upstream
    assert torch.allclose(compensate(e.grad, e.detach(), slope, 400.0), expected, rtol=1e-9)
    assert not torch.allclose(e.grad, expected, rtol=0.1)  # control: the plain gradient does


class Embeddings(SupervisedPlugin):
    """At each step: the slope, and for each gate the embedding, its gradient before and after the method's own change of it."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def before_backward(self, strategy, **kwargs):
        self.e = {name: gate.embedding for name, gate in strategy.method.gates.items()}
        plain = torch.autograd.grad(strategy.loss, list(self.e.values()), retain_graph=True)
        self.plain = dict(zip(self.e, plain, strict=True))

    def after_backward(self, strategy, **kwargs):
        for name, gate in strategy.method.gates.items():
            self.steps.append((gate.slope, self.e[name].detach().clone(), self.plain[name], gate.embedding.grad.clone()))


def test_each_step_of_the_embeddings_takes_the_compensated_gradient():
    seen = Embeddings()
    trained(seen, tasks=2, dtype=torch.float64, s_max=20.0, **FAST)
    changed = 0
    for s, e, plain, stepped in seen.steps:
        expected = plain * 20.0 * (torch.cosh((s * e).clamp(-50, 50)) + 1) / (s * (torch.cosh(e) + 1))
        assert torch.allclose(stepped, expected, rtol=1e-9)
        changed += not torch.allclose(stepped, plain, rtol=0.1, atol=1e-12)
    assert changed > len(seen.steps) / 2  # control


def test_a_step_never_divides_by_nothing():
    e = torch.tensor([-6.0, 6.0, 0.0])
    assert torch.isfinite(compensate(torch.ones(3), e, 400.0, 400.0)).all()


class Gradients(SupervisedPlugin):
    """Gradients of protected entries, after the guard."""

    def __init__(self):
        super().__init__()
        self.largest, self.free = 0.0, 0.0

    def after_backward(self, strategy, **kwargs):
        for name, (where, _) in strategy.method.guard.frozen.items():
            gradient = strategy.model.get_parameter(name).grad
            self.largest = max(self.largest, gradient[where].abs().max().item())
            self.free = max(self.free, gradient[~where].abs().max().item() if (~where).any() else 0.0)


@pytest.mark.parametrize("guarded", [True, False])
def test_gradients_of_protected_entries_are_exactly_zero_and_the_guard_makes_them_so(guarded, monkeypatch):
    """While a task is learnt its gates are soft: without the guard it would pull at the weights of others."""
    if not guarded:
        monkeypatch.setattr(FrozenGuard, "after_backward", lambda *_, **__: None)
    gradients = Gradients()
    strategy, _ = trained(gradients, tasks=3, **FAST)
    assert strategy.method.guard.frozen
    assert (gradients.largest == 0) is guarded
    assert gradients.free > 0


def test_what_is_protected_is_what_two_used_units_need():
    strategy, _ = trained(tasks=2, **FAST)
    gates, guard = strategy.method.gates, strategy.method.guard
    one, two = gates["units1"].used(), gates["units2"].used()
    where = guard.frozen["backbone.conv2.weight"][0]
    assert torch.equal(where[:, :, 0, 0], two[:, None] & one[None, :])
    assert torch.equal(guard.frozen["backbone.conv1.weight"][0][:, 0, 0, 0], one)
    assert torch.equal(guard.frozen["backbone.conv2.bias"][0], two)


def regulariser(used, embeddings, slope=1.0):
    """R of the method's loss, from its own hook."""
    method = HAT(sparsity=1.0)
    method.gates = {}
    for i, (mask, e) in enumerate(zip(used, embeddings, strict=True)):
        gate = Gate(len(e))
        gate.masks, gate.tasks, gate.embedding, gate.slope = mask[None], [0], e, slope
        gate.set_task(1)
        method.gates[str(i)] = gate
    method._free = {n: (~g.used()).float() for n, g in method.gates.items()}
    method._room = float(sum(f.sum() for f in method._free.values()))
    method._optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)

    class Loss:
        loss = torch.zeros(())

    method.before_backward(Loss)
    return float(Loss.loss)


def test_the_sparsity_term():
    none, full = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    e = [torch.tensor([1.0, -1.0, 2.0, 0.0]), torch.tensor([0.5, 0.5, -3.0, 1.0])]
    a = torch.sigmoid(torch.cat(e))
    assert regulariser([none, none], e) == pytest.approx(a.mean().item())  # first task: the mean gate
    half = torch.tensor([True, True, False, False])
    free = torch.cat([~half, ~half]).float()
    assert regulariser([half, half], e) == pytest.approx(((a * free).sum() / free.sum()).item())
    only_used = [torch.tensor([1.0, 1.0, -1e3, -1e3])] * 2
    assert regulariser([half, half], only_used) == 0
    assert regulariser([full, full], e) == 0  # nothing is left: no division by zero


class Sparsity(SupervisedPlugin):
    """What is added to the loss at each step, and c R by the formula."""

    def __init__(self):
        super().__init__()
        self.steps = []

    @torch.no_grad()
    def before_backward(self, strategy, **kwargs):
        method, taken, room = strategy.method, 0.0, 0.0
        for gate in method.gates.values():
            free = 1 - gate.masks.any(0).double()
            taken += (torch.sigmoid(gate.slope * gate.embedding) * free).sum().item()
            room += free.sum().item()
        added = (strategy.loss - strategy.criterion()).item()
        self.steps.append((strategy.experience.current_experience, added, method.sparsity * taken / room))


@pytest.mark.parametrize("sparsity", [0.3, 1.7])
def test_the_sparsity_term_enters_the_loss_times_c(sparsity):
    seen = Sparsity()
    trained(seen, tasks=3, dtype=torch.float64, epochs=1, sparsity=sparsity, **FAST)
    assert {task for task, _, _ in seen.steps} == {0, 1, 2}
    for _, added, formula in seen.steps:
        assert added == pytest.approx(formula, rel=1e-9)
        assert formula > 0.01  # control


def test_masks_take_a_bit_for_each_unit_and_task():
    strategy, _ = trained(tasks=3, **FAST)
    artifact = strategy.method.artifact()
    units = [16, 32, 64]
    assert artifact.sizes()["masks"] == sum(math.ceil(3 * n / 8) for n in units)
    served = HAT.restore(Artifact(dict(artifact.tensors), artifact.header))
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    strategy.model.eval()
    for t in range(3):
        live = strategy.model(x, t)
        assert torch.allclose(served(x, t), live, atol=1e-5)
    wrong = dict(artifact.tensors)
    flipped = ~strategy.method.gates["units3"].masks
    wrong["masks/units3"] = pack_bits(flipped, 1)
    assert not torch.allclose(HAT.restore(Artifact(wrong, artifact.header))(x, 0), strategy.model(x, 0), atol=1e-3)


def test_a_task_is_served_by_a_smaller_network():
    from benchsuite.training.accounting import macs

    strategy, _ = trained(tasks=2, **FAST)
    artifact = strategy.method.artifact()
    served = HAT.restore(artifact)
    masks = {name: gate.masks for name, gate in strategy.method.gates.items()}
    for t in range(2):
        one, two, three = (int(masks[f"units{i}"][t].sum()) for i in (1, 2, 3))
        expected = 36 * 9 * one + 16 * 9 * one * two + 4 * two * three + three * 2
        assert macs(served, (1, 8, 8), t) == expected
    dense = macs(trained(tasks=1)[0].model.eval(), (1, 8, 8), 0)
    assert macs(served, (1, 8, 8), 0) < dense


def test_what_a_task_does_not_use_does_not_reach_it():
    strategy, _ = trained(tasks=1, **FAST)
    model = strategy.model.eval()
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = model(x, 0).detach()
    one, two = (strategy.method.gates[f"units{i}"].masks[0] for i in (1, 2))
    assert not one.all()
    assert not two.all()
    with torch.no_grad():
        model.backbone.conv2.weight[:, ~one] += 1.0  # from unused units
        model.backbone.conv2.weight[~two] += 1.0  # to unused units
    assert torch.equal(model(x, 0), before)
    with torch.no_grad():
        model.backbone.conv2.weight[two.nonzero()[0], one.nonzero()[0]] += 1.0  # control
    assert not torch.equal(model(x, 0), before)


def test_a_full_network_goes_on_without_a_nan():
    strategy, stream = trained(tasks=1, **FAST)
    for gate in strategy.method.gates.values():
        gate.masks = torch.ones_like(gate.masks)
    for name, where in strategy.method._protected():
        strategy.method.guard.freeze(name, where)
    kept = strategy.model.backbone.conv2.weight.detach().clone()
    strategy.train(stream.train[1], eval_streams=[])
    assert torch.isfinite(strategy.loss)
    assert torch.equal(strategy.model.backbone.conv2.weight, kept)
    assert strategy.method.usage[-1]["units"] == 1


def run_of(n_tasks):
    return RunInfo(seed=1, recipe=Recipe(backbone="cacl", epochs=1), n_tasks=n_tasks)


def test_a_channel_owns_its_places_in_the_flat_features():
    """H10: of one channel of the last layer, exactly H * W columns of a served head are kept."""
    method = HAT()
    method.begin(run_of(1), MultiHead.build("cacl", image=(3, 32, 32), classes=[5]))
    method.model.add_task(0)
    for gate in method.gates.values():
        gate.masks, gate.tasks = torch.ones(1, gate.units, dtype=torch.bool), [0]
    method.gates["units5"].masks[0] = False
    method.gates["units5"].masks[0, 3] = True
    served = HAT.restore(method.artifact())
    assert torch.equal(served.heads["0"].weight, method.model.heads["0"].weight[:, 12:16])  # 2 x 2 places
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(served(x, 0), method.model.eval()(x, 0), atol=1e-5)


def test_the_size_is_the_closed_form_on_the_network_of_cacl():
    """Backbone with biases once, 20 heads, 20 x 640 bits: 1.98 MB."""
    method = HAT()
    method.begin(run_of(20), MultiHead.build("cacl", image=(3, 32, 32), classes=[5] * 20))
    for t in range(20):
        method.model.add_task(t)
        for gate in method.gates.values():
            gate.masks, gate.tasks = torch.cat([gate.masks, torch.ones(1, gate.units, dtype=torch.bool)]), [*gate.tasks, t]
    sizes = method.artifact().sizes()
    assert sizes["masks"] == 20 * 640 // 8
    assert sizes["weights"] == 4 * (390_848 + 640)
    assert sizes["heads"] == 4 * 20 * 5_125
    assert round((sum(sizes.values()) - sizes["other"]) / 1e6, 2) == 1.98


def test_a_layer_is_never_left_without_a_unit():
    assert hard(torch.tensor([-3.0, -1.0, -2.0])).tolist() == [False, True, False]
    assert hard(torch.tensor([-3.0, 1.0, 2.0])).tolist() == [False, True, True]


def test_embeddings_do_not_decay_and_their_rate_follows_the_schedule():
    rates = []

    class Rates(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            group = strategy.method._optimizer.param_groups[0]
            rates.append((group["lr"], group["weight_decay"]))

    strategy, stream = make(
        Rates(), method="hat", lr=0.01, epochs=3, milestones=(2,), optimizer="adamw", weight_decay=0.1, embedding_rate=5.0
    )
    strategy.train(stream.train[0], eval_streams=[])
    assert [rate for rate, _ in rates] == pytest.approx([0.05, 0.05, 0.005])
    assert {decay for _, decay in rates} == {0.0}


def test_the_hardening_gap_is_reported():
    strategy, _ = trained(tasks=2, **FAST)
    assert len(strategy.method.diagnostics()["extra"]["hardening_gap"]) == 2
    assert all(-100 <= gap <= 100 for gap in strategy.method.hardening_gap)
