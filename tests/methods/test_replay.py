"""ER and A-GEM: what the memory holds, where its images go, and the projection (R1, R2, A1, A2 of the invariants)."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin
from short_runs import make, trained

from benchsuite.errors import UserError
from benchsuite.methods import er
from benchsuite.training.settings import resolve

IMAGE = 64  # bytes of an 8x8 grey image


class Tasks(SupervisedPlugin):
    """How many images of each task are in each batch: [(task at hand, {task: images})]."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_forward(self, strategy, **kwargs):
        self.seen.append((strategy.experience.current_experience, Counter(strategy.mb_task_id.tolist())))


def test_the_memory_of_er_keeps_to_its_budget_in_balance(monkeypatch):
    stored, tasks = [], Tasks()
    monkeypatch.setattr(er, "ReplayPlugin", lambda **k: stored.append(k["storage_policy"].buffer) or ReplayPlugin(**k))
    strategy, _ = trained(tasks, method="er", tasks=3, budget=21 * IMAGE / 1e6)
    assert strategy.method.memory_bytes == 21 * IMAGE
    assert [Counter(sample[-1] for sample in buffer) for buffer in stored] == [{}, {0: 21}, {0: 11, 1: 10}]
    later = Counter()
    for t, seen in tasks.seen:
        assert set(seen) <= set(range(t + 1))
        later += seen if t == 2 else Counter()
    assert min(later[0], later[1]) > 0
    assert later[2] == 2 * 48  # every image of the task at hand, in both epochs


def test_a_budget_below_one_image_stores_nothing():
    tasks = Tasks()
    strategy, _ = trained(tasks, method="er", tasks=2, budget=10 / 1e6)
    assert strategy.method.memory_bytes == 0
    assert all(set(seen) == {t} for t, seen in tasks.seen)


def test_old_heads_learn_from_stored_images_and_only_from_them():
    for budget, moves in ((20 * IMAGE / 1e6, True), (1 / 1e6, False)):
        strategy, stream = trained(method="er", tasks=1, budget=budget)
        old = strategy.model.heads["0"].weight.detach().clone()
        strategy.train(stream.train[1], eval_streams=[])
        assert torch.equal(strategy.model.heads["0"].weight, old) is not moves


class Projection(SupervisedPlugin):
    """g . g_ref before and after the projection of each step. It stands on both sides of the method."""

    def __init__(self):
        super().__init__()
        self.before, self.dots = None, []

    @staticmethod
    def gradient(strategy):
        return torch.cat([p.grad.flatten() for p in strategy.model.backbone.parameters()])

    def after_backward(self, strategy, **kwargs):
        plugin = strategy.method.plugin
        if plugin.buffers:
            g = self.gradient(strategy)
            self.dots.append((self.before, g, plugin.reference_gradients[: len(g)]))  # the backbone comes first


def test_the_projected_gradient_never_goes_against_the_reference():
    after = Projection()
    strategy, stream = make(after, method="agem", epochs=4, lr=0.01, dropout=0.0)

    class Before(SupervisedPlugin):
        def after_backward(self, strategy, **kwargs):
            after.before = Projection.gradient(strategy)

    strategy.plugins.insert(0, Before())
    for experience in stream.train:
        strategy.train(experience, eval_streams=[])
    against = 0
    for before, g, reference in after.dots:
        assert g @ reference >= -1e-6
        if before @ reference >= 0:
            assert torch.equal(before, g)
        else:
            against += 1
            assert not torch.equal(before, g)
    assert 0 < against < len(after.dots)  # both cases came up


def test_a_sample_smaller_than_the_number_of_tasks_still_works():
    sizes = []

    class Sizes(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            if strategy.method.plugin.buffers:
                batch = next(iter(strategy.method.plugin.buffer_dataloader))
                sizes.append(Counter(batch[-1].tolist()))

    trained(Sizes(), method="agem", tasks=3, sample_size=1)
    assert sizes == [{0: 1}, {0: 1, 1: 1}]


@pytest.mark.parametrize("method", ["er", "agem"])
@pytest.mark.parametrize("colour", [(1, 1, 3), (3, 3, 1)])
def test_the_budget_holds_whatever_the_images_of_later_tasks_are_like(method, colour, monkeypatch):
    """Grey sets are stored with one channel, so that images of different tasks differ in size."""
    strategy, stream = make(method=method, tasks=3, epochs=1, budget=30 * 3 * IMAGE / 1e6)
    for experience, channels in zip(stream.train, colour, strict=True):
        experience.images = replace(experience.images, pixels=experience.images.pixels.expand(-1, -1, -1, channels))
        experience.origin_stream = stream.train
    monkeypatch.setattr(er, "ReplayPlugin", lambda **_: SimpleNamespace(before_training_exp=lambda _: None))
    strategy.method.before_training_exp(SimpleNamespace(experience=stream.train[2], clock=strategy.clock))
    share = 15 if method == "er" else 30 // 5  # of the two earlier tasks, or of the protocol's five
    assert strategy.method.memory_bytes == share * IMAGE * (colour[0] + colour[1])


def test_the_memory_of_agem_is_shared_out_in_advance():
    strategy, _ = trained(method="agem", tasks=3, budget=35 * IMAGE / 1e6)
    assert strategy.method.memory_bytes == 2 * 7 * IMAGE  # two tasks so far, of the protocol's five


@pytest.mark.parametrize("method", ["er", "agem"])
def test_the_network_sees_the_counted_images_of_earlier_tasks_and_no_others(method):
    """The memory is refilled from the data set, so what it may hold is a matter of trust; here it is seen."""
    strategy, stream = make(method=method, tasks=3, epochs=4, budget=10 * IMAGE / 1e6, sample_size=32)
    known = [{sample[0].numpy().tobytes() for sample in experience.dataset} for experience in stream.train]
    seen = [set(), set(), set()]

    def see(model, given):
        x, tasks = given
        for image, task in zip(x, torch.as_tensor(tasks).expand(len(x)).tolist(), strict=True):
            seen[task].add(image.numpy().tobytes())

    strategy.model.register_forward_pre_hook(see)
    for t, experience in enumerate(stream.train):
        for images in seen:
            images.clear()
        strategy.train(experience, eval_streams=[])
        assert IMAGE * sum(map(len, seen[:t])) == strategy.method.memory_bytes, t
        assert all(one <= all_of_it for one, all_of_it in zip(seen, known, strict=True))
        assert seen[t] == known[t], "control: all images of the task at hand"
        assert not any(seen[t + 1 :])
    assert strategy.method.memory_bytes > 0


@pytest.mark.parametrize("method", ["er", "agem"])
def test_stored_images_count_as_training_state(method, tmp_path):
    from benchsuite.training.runner import run

    sizes = []
    for budget in (10 * IMAGE / 1e6, 40 * IMAGE / 1e6):
        overrides = {"tasks": 3, "train_per_class": 24, "test_per_class": 20, "epochs": 1, "budget": budget}
        record = run(resolve("split-digits", "smoke", method, 1, overrides=overrides), results=tmp_path)
        sizes.append((record.training_state_bytes, record.memory_bytes))
    assert sizes[1][1] > sizes[0][1]
    assert sizes[1][0] - sizes[0][0] == sizes[1][1] - sizes[0][1]


@pytest.mark.parametrize("method", ["er", "agem"])
def test_they_say_why_they_do_not_run_with_normalisation_by_task(method):
    with pytest.raises(UserError, match="mix tasks"):
        resolve("split-digits", "smoke", method, 1, overrides={"backbone": "resnet18"})
