"""CACL and its variants: what is grown, pruned, fixed and served is the same frame, whatever the factorisation."""

import itertools

import pytest
import torch
from short_runs import make, trained

from benchsuite.checks.contract import IMAGES
from benchsuite.methods.cacl import next_pool
from benchsuite.nn.images import normalise

each_variant = pytest.mark.parametrize(
    ("method", "settings"),
    [("cacl", {}), ("cacl-cp", {}), ("cacl-kronecker", {}), ("cacl-tucker", {}), ("cacl-tucker", {"core": "block"})],
)
T = 3


@pytest.fixture
def images():
    return normalise(IMAGES, (0.3,), (0.4,))


def accuracies(strategy, stream, tasks):
    """How many test images each task gets right, asked in that order."""
    counts = {}
    for task in tasks:
        images = stream.test[task].images
        with torch.no_grad():
            logits = strategy.model.eval()(normalise(images.pixels, images.mean, images.std), task)
        counts[task] = int((logits.argmax(1) == images.labels).sum())
    return counts


@each_variant
def test_what_tasks_add_is_what_is_stored(method, settings):
    strategy, _ = trained(method=method, tasks=T, energy_drop=0.2, **settings)
    model, total = strategy.method, 0
    for layer in model.layers.values():
        table = [(0,) * layer.modes, *layer.ranks]
        assert all(a <= b for before, after in itertools.pairwise(table) for a, b in zip(before, after, strict=True))
        assert table[1] != table[-1]
        added = [sum(t.numel() for t in layer.added(task).values()) for task in range(T)]
        assert sum(added) == layer.elements(layer.ranks[-1]) == sum(getattr(layer, name).numel() for name in layer.grows)
        total += sum(added)
    sizes = model.artifact().sizes()
    assert sizes["weights"] == 4 * total
    assert sizes["heads"] == 4 * sum(p.numel() for p in model.model.heads.parameters())
    assert sizes["masks"] == 4 * T * sum(layer.modes for layer in model.layers.values())


@each_variant
def test_ranks_follow_the_energy_that_may_be_dropped(method, settings):
    """Ranks are compared after the first task: later ones of two runs do not start from the same network. In those all is kept
    where nothing may be dropped, and something wherever there is something to keep."""
    kept = {}
    for drop in (0.0, 0.3, 1 - 1e-12):
        model = trained(method=method, tasks=T, energy_drop=drop, sparsity_weight=0.0, epochs=1, **settings)[0].method
        kept[drop] = [rank for layer in model.layers.values() for rank in layer.ranks[0]]
        for name, layer in model.layers.items():
            for task, pool in enumerate(model.pools[name][:T]):
                new = [b - a for a, b in zip(layer.before(task), layer.ranks[task], strict=True)]
                least = pool if drop == 0 else [min(p, 1) for p in pool]
                assert all(low <= n <= p for low, n, p in zip(least, new, pool, strict=True))
    assert all(a >= b >= c >= 1 for a, b, c in zip(*kept.values(), strict=True))
    assert sum(kept[0.3]) < sum(kept[0.0])
    assert sum(kept[1 - 1e-12]) < sum(kept[0.3])


@each_variant
def test_the_accuracy_after_pruning_is_that_of_the_stored_prefix(method, settings):
    strategy, stream = make(method=method, energy_drop=0.5, **settings)
    after, unpruned = [], []
    prune = strategy.method.after_training_exp

    def watch(*args, **kwargs):
        task = len(after)
        unpruned.append(accuracies(strategy, stream, [task])[task])
        prune(*args, **kwargs)

    strategy.method.after_training_exp = watch
    for task in range(T):
        strategy.train(stream.train[task], eval_streams=[])
        after.append(accuracies(strategy, stream, [task])[task])
    served = type(strategy.method).restore(strategy.method.artifact())
    for task in range(T):
        images = stream.test[task].images
        with torch.no_grad():
            logits = served(normalise(images.pixels, images.mean, images.std), task)
        assert int((logits.argmax(1) == images.labels).sum()) == after[task]
    assert after != unpruned  # control: half of the energy is not nothing


@each_variant
def test_each_task_is_served_with_its_own_prefix_in_any_order(method, settings, images):
    model = trained(method=method, tasks=T, energy_drop=0.1, **settings)[0].model.eval()
    with torch.no_grad():
        forth = [model(images, t) for t in range(T)]
        back = [model(images, t) for t in reversed(range(T))][::-1]
        assert all(torch.equal(a, b) for a, b in zip(forth, back, strict=True))
        last = model.embed(images, T - 1)  # control: another task's prefix gives other scores
        assert not torch.allclose(model.heads["0"](last), forth[0])


def test_pools_of_an_eighth_do_not_depend_on_what_was_kept():
    assert [next_pool("eighth", earlier, free, 16) for earlier, free in (([], 0), ([5], 3), ([9, 90], 16))] == [2, 2, 2]
    assert next_pool("eighth", [], 0, 3) == 1
