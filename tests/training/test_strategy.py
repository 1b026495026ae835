"""The strategy: Avalanche's own plugins run in it unchanged, nothing waits for the device, and it trains as written."""

from types import SimpleNamespace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, LRSchedulerPlugin, LwFPlugin, ReplayPlugin
from short_runs import TINY, make, trained, weights
from torch import nn

from benchsuite.method import Method, register
from benchsuite.nn.backbones import reseed_dropout
from benchsuite.nn.multihead import MultiHead
from benchsuite.protocol import protocols
from benchsuite.training.batches import Batches
from benchsuite.training.runner import run
from benchsuite.training.schedule import Schedule
from benchsuite.training.settings import resolve
from benchsuite.training.stream import build_stream
from benchsuite.training.watch import Watch

DIGITS = protocols.get("split-digits")


class Spy(SupervisedPlugin):
    """Keeps what a function of the strategy returns at one hook."""

    def __init__(self, hook, look):
        super().__init__()
        self.seen = []
        setattr(self, hook, lambda strategy, **kwargs: self.seen.append(look(strategy)))


def test_replay_brings_its_own_loader_and_old_images_reach_their_heads():
    tasks = Spy("before_forward", lambda s: set(s.mb_task_id.tolist()))
    loaders = Spy("before_training_epoch", lambda s: isinstance(s.dataloader, Batches))
    strategy, stream = make(ReplayPlugin(mem_size=20), tasks, loaders)
    strategy.train(stream.train[0])
    old = weights(strategy.model.heads["0"])
    assert tasks.seen == [{0}] * 6
    tasks.seen.clear()
    strategy.train(stream.train[1])
    assert loaders.seen == [True, True, False, False]
    assert {0, 1} in tasks.seen
    assert set.union(*tasks.seen) == {0, 1}
    assert not torch.equal(weights(strategy.model.heads["0"]), old)
    assert torch.isfinite(strategy.loss)

    plain, stream = make()  # control: without the plugin the old head stays as it is
    plain.train(stream.train[0])
    old = weights(plain.model.heads["0"])
    plain.train(stream.train[1])
    assert torch.equal(weights(plain.model.heads["0"]), old)


def test_plugins_see_the_images_that_the_fast_batches_hold():
    _, stream = make()
    for experience, images in ((stream.train[1], stream.train[1].images), (stream.test[2], stream.test[2].images)):
        x, y, t = next(iter(Batches([images], [1], 1000, augmentation=None)))
        dataset = experience.dataset.eval()
        assert torch.equal(torch.stack([dataset[i][0] for i in range(len(dataset))]), x)
        assert [dataset[i][1] for i in range(len(dataset))] == y.tolist() == list(dataset.targets)
    assert {stream.train[1].dataset[i][2] for i in range(len(t))} == {1}


def drift(*plugins, seen=()):
    """Mean change of the first task's logits while the second is learnt."""
    strategy, stream = make(*plugins, *seen, epochs=6, lr=0.01, dropout=0.0, init="default")
    x = next(iter(Batches([stream.test[0].images], [0], 1000, augmentation=None)))[0]
    logits = []
    for experience in stream.train[:2]:
        strategy.train(experience)
        strategy.model.eval()
        logits.append(strategy.model(x, 0).detach())
    return (logits[1] - logits[0]).abs().mean().item()


@pytest.mark.parametrize("plugin", [lambda: LwFPlugin(), lambda: EWCPlugin(ewc_lambda=1e10)], ids=["LwF", "EWC"])
def test_penalties_of_avalanche_hold_old_logits(plugin):
    losses = Spy("before_backward", lambda s: s.loss.item())
    assert drift(plugin(), seen=[losses]) < 0.5 * drift()
    assert all(loss == loss for loss in losses.seen)


READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "nonzero", "unique")


@pytest.fixture
def reads(monkeypatch):
    """Every call that makes the host wait for a value on the device, by name."""
    made = []
    for name in READS:
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _name=name, _original=original, **kwargs):
            made.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return made


class Loop(SupervisedPlugin):
    """Reads of the device between the first and the last hook of an epoch's iterations, and in the whole epoch."""

    def __init__(self, reads):
        super().__init__()
        self.reads, self.inside, self.whole = reads, [], []

    def before_training_epoch(self, strategy, **kwargs):
        self.start = len(self.reads)

    def after_training_iteration(self, strategy, **kwargs):
        self.inside.append(self.reads[self.start :])

    def after_training_epoch(self, strategy, **kwargs):
        self.whole.append(self.reads[self.start :])


@pytest.mark.parametrize("method", ["finetune", "cacl", "individual"])
def test_no_iteration_waits_for_the_device_and_an_epoch_waits_once(method, reads):
    loop = Loop(reads)
    strategy, stream = make(Watch(), loop, method=method, epochs=3)
    for experience in stream.train[:2]:
        strategy.train(experience)
    assert len(loop.inside) == 2 * 3 * 3
    assert all(made == [] for made in loop.inside)
    assert loop.whole == [["__float__"]] * 6


def test_a_plugin_that_reads_the_loss_is_noticed(reads):
    loop = Loop(reads)
    strategy, stream = make(Spy("after_backward", lambda s: s.loss.item()), loop, epochs=1)
    strategy.train(stream.train[0])
    assert [made.count("item") for made in loop.inside] == [1, 2, 3]


def test_evaluation_reads_the_device_once_for_all_tasks(reads):
    watch = Watch()
    strategy, stream = make(watch)
    strategy.train(stream.train[0])
    reads.clear()
    strategy.eval(stream.test)
    assert reads == ["tolist"]
    assert watch.correct.keys() == set(range(5))


@pytest.mark.parametrize(("protocol", "drops"), [("split-cifar100", (120, 180)), ("split-miniimagenet", (150, 180))])
def test_learning_rate_of_every_epoch(protocol, drops):
    recipe = protocols.get(protocol).tiers["paper"]
    group, rates = {"lr": recipe.lr}, []
    for epoch in range(recipe.epochs):
        clock, optimizer = SimpleNamespace(train_exp_epochs=epoch), SimpleNamespace(param_groups=[group])
        Schedule(recipe).before_training_epoch(SimpleNamespace(clock=clock, optimizer=optimizer))
        rates.append(group["lr"])
    expected = [1e-3] * drops[0] + [1e-4] * (drops[1] - drops[0]) + [1e-5] * (200 - drops[1])
    assert rates == pytest.approx(expected)


def test_avalanches_a_gem_runs():
    """It views every gradient as a vector, which needs parameters in the default memory layout."""
    strategy, stream = make(AGEMPlugin(patterns_per_experience=8, sample_size=8))
    for experience in stream.train[:2]:
        strategy.train(experience)
    assert all(p.is_contiguous() for p in strategy.model.parameters())


def test_a_scheduler_of_avalanches_sets_the_rate():
    rates = Spy("before_training_iteration", lambda s: s.optimizer.param_groups[0]["lr"])
    strategy, stream = make(rates, epochs=3, lr=0.1)
    strategy.plugins.insert(-1, LRSchedulerPlugin(torch.optim.lr_scheduler.ExponentialLR(strategy.optimizer, 0.5)))
    strategy.train(stream.train[0])
    assert rates.seen == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.025] * 3)


def test_the_schedule_starts_again_with_each_task():
    rates = Spy("before_training_iteration", lambda s: s.optimizer.param_groups[0]["lr"])
    strategy, stream = make(rates, milestones=(1,), lr=0.1)
    for experience in stream.train[:2]:
        strategy.train(experience)
    assert rates.seen == pytest.approx(([0.1] * 3 + [0.01] * 3) * 2)


@pytest.mark.parametrize("settings", [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.9}])
@pytest.mark.parametrize("reset", [True, False])
def test_optimiser_state_is_fresh_for_each_task(settings, reset):
    moments = Spy("before_training_iteration", lambda s: sum(len(v) for v in s.optimizer.state.values()))
    strategy, stream = make(moments, reset_optimizer=reset, epochs=1, **settings)
    for experience in stream.train[:2]:
        strategy.train(experience)
    assert moments.seen[0] == 0
    assert (moments.seen[3] == 0) is reset  # control: without the reset it is not


def test_momentum_runs_where_some_heads_have_no_gradient_yet():
    strategy, stream = make(method="joint", optimizer="sgd", momentum=0.9, batch_size=1, epochs=1)
    strategy.train(stream.joint())
    assert torch.isfinite(weights(strategy.model)).all()


def test_bf16_computes_in_bfloat16_keeps_fp32_weights_and_is_recorded(tmp_path):
    outputs = Spy("after_forward", lambda s: s.mb_output.dtype)
    losses = Spy("before_backward", lambda s: s.loss.dtype)
    strategy, stream = make(outputs, losses, precision="bf16", epochs=1)
    strategy.train(stream.train[0])
    assert set(outputs.seen) == {torch.bfloat16}
    assert set(losses.seen) == {torch.float32}
    assert {p.dtype for p in strategy.model.parameters()} == {torch.float32}
    half, full = (resolve("split-digits", "smoke", "cacl", 1, overrides=TINY, precision=p) for p in ("bf16", "fp32"))
    record = run(half, results=tmp_path)
    assert record.job.precision == "bf16"
    assert half.config != full.config


ORDERS = {
    ("split-cifar100", 1): [12, 6, 18, 20, 10, 1, 17, 2, 16, 7, 11, 14, 15, 13, 8, 4, 9, 3, 19, 5],
    ("split-cifar100", 2): [8, 7, 18, 9, 20, 16, 14, 1, 4, 10, 15, 5, 11, 13, 17, 6, 12, 19, 3, 2],
    ("split-miniimagenet", 3): [9, 4, 7, 6, 16, 17, 3, 13, 1, 2, 14, 11, 20, 10, 15, 12, 5, 18, 19, 8],
    ("five-datasets", 1): [3, 4, 5, 1, 2],
    ("five-datasets", 2): [3, 2, 4, 5, 1],
    ("five-datasets", 3): [1, 3, 4, 5, 2],
}


@pytest.mark.parametrize(("protocol", "seed"), ORDERS)
def test_task_orders(protocol, seed):
    torch.manual_seed(0)  # no global generator has a say
    assert [i + 1 for i in protocols.get(protocol).order(seed)] == ORDERS[protocol, seed]


@pytest.mark.parametrize("protocol", ["split-cifar100", "split-miniimagenet"])
def test_twenty_tasks_of_five_neighbouring_classes(protocol):
    tasks = protocols.get(protocol).tasks
    assert [task.classes for task in tasks] == [tuple(range(5 * i, 5 * i + 5)) for i in range(20)]
    assert [task.name for task in tasks] == [str(i + 1) for i in range(20)]


def test_constants_of_the_published_recipes():
    cifar, mini, five = (protocols.get(n) for n in ("split-cifar100", "split-miniimagenet", "five-datasets"))
    for protocol in (cifar, mini, five):
        paper = protocol.tiers["paper"]
        assert (paper.epochs, paper.lr, paper.batch_size, paper.dropout) == (200, 1e-3, 64, 0.15)
        assert (paper.optimizer, paper.weight_decay, paper.reset_optimizer, paper.holdout) == ("adam", 0, True, 0)
        lite = protocol.tiers["lite"]
        assert (lite.epochs, lite.width, lite.init) == (40 if protocol is mini else 10, 0.5, "he")
        assert (paper.width, paper.init) == (1, "default")
    assert five.tiers["paper"].milestones == (120, 180)
    assert (cifar.tiers["lite"].milestones, mini.tiers["lite"].milestones) == ((6, 9), (30, 36))
    assert [p.tiers["lite"].train_per_class for p in (cifar, mini, five)] == [None, 100, 1000]
    assert (cifar.crop_padding, cifar.flip) == (4, True)
    assert (mini.crop_padding, mini.flip) == (0, True)
    assert (five.crop_padding, five.flip) == (0, False)
    assert {(t.mean, t.std) for t in cifar.tasks} == {((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))}
    assert {(t.mean, t.std) for t in mini.tasks} == {((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
    by_name = {t.name: t for t in five.tasks}
    assert list(by_name) == ["CIFAR-10", "notMNIST", "MNIST", "SVHN", "FashionMNIST"]
    cifar10 = by_name["CIFAR-10"]
    assert cifar10.mean == pytest.approx([125.3 / 255, 123.0 / 255, 113.9 / 255])
    assert cifar10.std == pytest.approx([63.0 / 255, 62.1 / 255, 66.7 / 255])
    for name, mean, std in (("notMNIST", 0.4254, 0.4501), ("MNIST", 0.1, 0.2752), ("FashionMNIST", 0.2190, 0.3318)):
        assert (by_name[name].mean, by_name[name].std, by_name[name].pad) == ((mean,) * 3, (std,) * 3, 2)
    assert (by_name["SVHN"].mean, by_name["SVHN"].std) == ((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197))


def by_hand(stream, steps, lr):
    """Losses of the first steps of the first task: the plain loop, one image at a time, in float64."""
    model = MultiHead.build("digits", image=DIGITS.image, classes=stream.classes, dropout=0.15, seed=1, init="he")
    model.add_task(0)
    model.double().train()
    reseed_dropout(model, 1, 0)
    images = stream.train[0].images
    index = Batches([images], [0], 16, augmentation=stream.augmentation, seed=1).draws(0).index
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for rows in index.split(16)[:steps]:
        x = torch.stack([(images.pixels[i].permute(2, 0, 1).double() / 255 - 0.305) / 0.376 for i in rows])
        loss = nn.functional.cross_entropy(
            model.heads["0"](model.backbone(x.to(memory_format=torch.channels_last))), images.labels[rows]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_same_losses_as_a_plain_loop_in_float64():
    losses = Spy("before_backward", lambda s: s.loss.item())
    strategy, stream = make(losses, dtype=torch.float64, lr=0.01, epochs=1)
    strategy.train(stream.train[0])
    assert losses.seen == pytest.approx(by_hand(stream, 3, 0.01), rel=1e-10)
    assert losses.seen[1:] != pytest.approx(by_hand(stream, 3, 0.02)[1:], rel=1e-4)  # control: the losses can tell


@pytest.mark.parametrize("size", [1, 10_000_000])
def test_what_a_method_does_before_the_forward_pass_counts_in_the_peak(size, own_methods):
    @register
    class Gathers(Method):
        def before_training_iteration(self, strategy, **kwargs):
            torch.empty(size, dtype=torch.uint8).sum()

    watch = Watch()
    trained(watch, method="gathers")
    assert (watch.memory["peak"] >= 10_000_000) is (size > 1)
    assert watch.memory["held"] < 1_000_000


def test_rotated_digits_are_the_same_digits_in_five_orientations():
    protocol = protocols.get("rotated-digits")
    recipe = protocol.recipe("paper")
    stream = build_stream(protocol, recipe, 1, data_dir=None, device=torch.device("cpu"))
    images = {task.name: e.images for task, e in zip(stream.tasks, stream.train, strict=True)}
    upright = images["upright"].pixels
    assert upright.shape == (400, 8, 8, 1)
    assert upright.tolist() != images["90"].pixels.tolist()
    for name, turned in (("90", upright.rot90(1, (1, 2))), ("180", upright.flip(1, 2)), ("270", upright.rot90(3, (1, 2)))):
        assert torch.equal(images[name].pixels, turned), name
    assert torch.equal(images["transposed"].pixels, upright.transpose(1, 2))
    assert len({tuple(e.images.labels.tolist()) for e in stream.train}) == 1
