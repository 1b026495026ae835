"""PackNet against its invariants (P1 to P9 of the baselines' specification)."""

import math
from itertools import pairwise

import pytest
import torch
from avalanche.core import SupervisedPlugin
from short_runs import make, trained
from torch import nn

from benchsuite.methods.packnet import kept_of
from benchsuite.nn.backbones import BACKBONES
from benchsuite.nn.bits import pack_bits, unpack_bits

LAYERS = ("conv1", "conv2", "conv3")


class Pruning(SupervisedPlugin):
    """Weights and owners right before and after each pruning."""

    def __init__(self):
        super().__init__()
        self.pairs = []

    def before_training_exp(self, strategy, **kwargs):
        method = strategy.method
        if not hasattr(method, "_plain_prune"):
            prune = method._plain_prune = method._prune

            def watched():
                before = self.look(method)
                prune()
                self.pairs.append((before, self.look(method)))

            method._prune = watched

    @staticmethod
    def look(method):
        return {n: (layer.weight.detach().clone(), layer.owner.clone()) for n, layer in method.layers.items()}


def test_pruning_keeps_exactly_the_largest_of_the_newest_and_touches_nothing_else():
    pruning = Pruning()
    trained(pruning, method="packnet", tasks=5, schedule="constant", prune=0.6)
    assert len(pruning.pairs) == 5
    for t, (before, after) in enumerate(pruning.pairs, 1):
        for name in LAYERS:
            (weight, owner), (left, owned) = before[name], after[name]
            candidates = owner == t
            kept = owned == t
            n = int(candidates.sum())
            assert int(kept.sum()) == (n if t == 5 else n - round(0.6 * n))
            assert not (kept & ~candidates).any()
            if t < 5:
                assert weight[kept].abs().min() >= weight[candidates & ~kept].abs().max()
            assert torch.equal(left[kept], weight[kept])
            assert not left[candidates & ~kept].any()
            assert torch.equal(owned[~candidates], owner[~candidates])
            assert torch.equal(left[~candidates], weight[~candidates])


def test_every_weight_has_one_owner_and_what_serves_a_task_serves_the_next():
    strategy, _ = trained(method="packnet", tasks=3)
    for layer in strategy.method.layers.values():
        assert int(layer.owner.max()) <= 3
        masks = [layer.visible(t) for t in range(3)]
        assert all((later | now).equal(later) for now, later in pairwise(masks))
        assert not masks[0].equal(masks[1])  # control: they do differ


@pytest.mark.parametrize("n_tasks", [3, 5, 20])
def test_equal_shares_are_equal(n_tasks):
    for n in (64, 1728, 36864):
        free, owned = n, []
        for task in range(n_tasks):
            owned.append(kept_of(free, "equal", 0.6, task, n_tasks))
            free -= owned[-1]
        assert free == 0
        assert max(abs(kept - n / n_tasks) for kept in owned) <= 1
    constant = [kept_of(round(36864 * 0.5**t), "constant", 0.5, t, n_tasks) for t in range(n_tasks - 1)]
    assert max(constant) > 1.9 * min(constant)  # control: the constant schedule's shares are not


def test_a_layer_gives_at_least_one_weight_and_never_more_than_it_has():
    assert [kept_of(free, "equal", 0.6, 0, 20) for free in (0, 1, 3)] == [0, 1, 1]
    assert [kept_of(free, "constant", 0.99, 0, 20) for free in (0, 1, 3)] == [0, 1, 1]
    assert kept_of(10, "constant", 0.0, 0, 20) == 10


def test_free_weights_do_not_reach_any_task_that_was_learnt():
    strategy, _ = trained(method="packnet", tasks=2)
    model = strategy.model.eval()
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = [model(x, t).detach() for t in (0, 1)]
    for layer in strategy.method.layers.values():
        free = layer.owner == 0
        assert free.any()
        layer.weight.data[free] = torch.randn(int(free.sum()))
    assert all(torch.equal(model(x, t), logits) for t, logits in enumerate(before))
    layer.weight.data[layer.owner == 1] += 1.0  # control: an owned one does
    assert not torch.equal(model(x, 0), before[0])


def test_when_nothing_is_free_the_head_still_learns_and_it_is_said():
    strategy, stream = trained(method="packnet", tasks=1, schedule="constant", prune=0.0)
    kept = {name: layer.weight.detach().clone() for name, layer in strategy.method.layers.items()}
    strategy.train(stream.train[1], eval_streams=[])
    assert strategy.method.exhausted == [1]
    assert all(torch.equal(layer.weight, kept[name]) for name, layer in strategy.method.layers.items())
    assert torch.isfinite(strategy.loss)
    fresh, _ = make(method="packnet", tasks=2, schedule="constant", prune=0.0)
    fresh.model.add_task(1)
    assert not torch.equal(fresh.model.heads["1"].weight, strategy.model.heads["1"].weight)
    roomy, _ = trained(method="packnet", tasks=2)  # control
    assert roomy.method.exhausted == []


def test_a_task_of_one_epoch_is_pruned_all_the_same():
    strategy, _ = trained(method="packnet", tasks=1, epochs=1)
    shares = strategy.method.diagnostics()["extra"]["share_of_weights"]
    assert shares["of_each_task"][0] == pytest.approx(1 / 5, abs=0.01)
    assert shares["free"] == pytest.approx(4 / 5, abs=0.01)


@pytest.mark.parametrize("stop", [0, 3, None])
def test_a_training_that_is_stopped_early_is_pruned_all_the_same(stop):
    """P8: before the epoch of pruning (4 of 6 are dense), and after it; None: not stopped."""

    class Stop(SupervisedPlugin):
        epochs = 0

        def after_training_epoch(self, strategy, **kwargs):
            self.epochs += 1
            if strategy.clock.train_exp_epochs == stop:
                strategy.stop_training()

    plugin = Stop()
    strategy, _ = trained(plugin, method="packnet", tasks=1, epochs=6)
    assert plugin.epochs == (6 if stop is None else stop + 1)
    assert strategy.method.diagnostics()["extra"]["share_of_weights"]["of_each_task"][0] == pytest.approx(1 / 5, abs=0.01)


def test_the_retraining_runs_at_a_tenth_of_the_rate_on_the_survivors_alone():
    class Rates(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.seen = []

        def before_training_iteration(self, strategy, **kwargs):
            layer = strategy.method.layers["conv2"]
            self.seen.append((strategy.clock.train_exp_epochs, strategy.optimizer.param_groups[0]["lr"]))
            if strategy.method.pruned:
                assert not layer.weight[layer.owner == 0].any()

    rates = Rates()
    trained(rates, method="packnet", tasks=1, epochs=9, milestones=(6,), lr=0.01)
    by_epoch = dict(rates.seen)
    expected = [0.01] * 4 + [0.001] * 2 + [0.001] * 3  # the milestone moves from 6 of 9 to 4 of the dense 6
    assert [by_epoch[e] for e in range(9)] == pytest.approx(expected)


@pytest.mark.parametrize("reset", [True, False])
def test_the_retraining_starts_with_a_fresh_optimiser_unless_the_recipe_keeps_it(reset):
    class Moments(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.count = {}

        def before_forward(self, strategy, **kwargs):
            known = sum(bool(state) for state in strategy.optimizer.state.values())
            self.count.setdefault(strategy.clock.train_exp_epochs, known)  # at the first step of each epoch

    moments = Moments()
    trained(moments, method="packnet", tasks=1, epochs=3, reset_optimizer=reset)
    assert moments.count[0] == 0
    assert moments.count[1] > 0  # control: within the dense phase it is kept
    assert (moments.count[2] == 0) is reset


@pytest.mark.parametrize("redraw", [True, False])
def test_freed_weights_start_from_a_draw_or_from_zero(redraw):
    class Start(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            layer = strategy.method.layers["conv2"]
            newest = layer.weight.detach()[layer.owner == len(layer.tasks)]
            self.bound, self.largest = math.sqrt(6 / layer.weight[0].numel()), newest.abs().max().item()

    start = Start()
    trained(start, method="packnet", tasks=2, redraw=redraw)
    assert 0.9 * start.bound < start.largest <= start.bound if redraw else start.largest == 0


def test_biases_belong_to_their_task():
    strategy, _ = trained(method="packnet", tasks=2)
    layer = strategy.method.layers["conv1"]
    assert set(layer.biases) == {"0", "1"}
    assert not torch.equal(layer.biases["0"], layer.biases["1"])
    shared, _ = trained(method="packnet", tasks=2, biases="first_task")
    assert set(shared.method.layers["conv1"].biases) == {"0"}
    assert not shared.method.layers["conv1"].biases["0"].requires_grad


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_packing_bits_is_lossless_and_leaves_no_gap(bits):
    values = torch.randint(2**bits, (7, 5, 3), generator=torch.Generator().manual_seed(bits))
    packed = pack_bits(values, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(values.numel() * bits / 8)
    assert torch.equal(unpack_bits(packed, bits, values.shape), values)
    assert len(pack_bits(torch.zeros(0, 4), bits)) == 0


def test_the_size_is_the_closed_form_on_the_network_of_cacl():
    """390,848 weights, 20 heads of 1,024 -> 5, an owner of 5 bits a weight: 2.22 MB, and 51,200 bytes of biases by task."""
    from benchsuite.method import methods
    from benchsuite.method.base import RunInfo
    from benchsuite.nn.multihead import MultiHead
    from benchsuite.protocol import Recipe

    sizes = {}
    for biases in ("per_task", "first_task"):
        method = methods.get("packnet")(biases=biases)
        run = RunInfo(seed=1, recipe=Recipe(backbone="cacl", epochs=1), n_tasks=20)
        method.begin(run, MultiHead.build("cacl", image=(3, 32, 32), classes=[5] * 20))
        for t in range(20):
            method.model.add_task(t)
        sizes[biases] = method.artifact().sizes()
    for s in sizes.values():
        assert s["weights"] == 4 * 390_848
        assert s["heads"] == 4 * 20 * 5_125
        assert s["masks"] == math.ceil(390_848 * 5 / 8)
    header = sizes["first_task"]["other"] - 4 * 640
    assert round((sum(sizes["first_task"].values()) - header) / 1e6, 2) == 2.22
    assert sizes["per_task"]["other"] - sizes["first_task"]["other"] > 4 * 640 * 19


def test_tasks_may_come_under_any_label():
    """Owners count the order of learning, whatever the tasks are called."""
    strategy, stream = make(method="packnet", tasks=3, epochs=1)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = {}
    for t in (2, 0, 1):
        strategy.train(stream.train[t], eval_streams=[])
        strategy.model.eval()
        with torch.no_grad():
            logits[t] = strategy.model(x, t)
            assert all(torch.equal(strategy.model(x, other), seen) for other, seen in logits.items())
    assert strategy.method.layers["conv1"].tasks == [2, 0, 1]


def test_layers_without_bias_and_grouped_ones_are_packed_too():
    from benchsuite.methods.packnet import PackedConv2d

    layer = PackedConv2d(nn.Conv2d(8, 8, 3, groups=8, bias=False), "depthwise", per_task_bias=True)
    layer.add_task(0, 1)
    layer.tasks.append(0)
    layer.owner[:4] = 1
    layer.set_task(0)
    layer.eval()
    out = layer(torch.randn(2, 8, 6, 6))
    assert out[:, :4].abs().min() > 0
    assert not out[:, 4:].any()


def test_a_network_of_depthwise_convolutions_forgets_nothing(monkeypatch):
    def separable(image, dropout, width=1.0):
        depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        network = nn.Sequential(nn.Conv2d(image[0], 8, 3), nn.ReLU(), depthwise, nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Flatten())
        network.features = 16 * (image[1] - 4) * (image[2] - 4)
        return network

    monkeypatch.setitem(BACKBONES, "separable", separable)
    strategy, stream = make(method="packnet", backbone="separable", lr=0.01, optimizer="adamw", weight_decay=0.1)
    x, logits = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), []
    depthwise = strategy.method.layers["2"]
    for experience in stream.train[:3]:
        before = depthwise.weight.detach().clone()
        strategy.train(experience, eval_streams=[])
        with torch.no_grad():
            logits.append(strategy.model.eval()(x, 0))
        assert not torch.equal(depthwise.weight, before)  # control: every task learns in it
    assert all(torch.equal(later, logits[0]) for later in logits)
    assert [int((depthwise.owner == t).sum()) for t in (1, 2, 3)] == [14, 14, 15]  # 72 / 5, 58 / 4, 44 / 3
