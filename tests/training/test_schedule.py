"""The learning rate of every step, where a task ends, and which epoch's state it ends with."""

import math
import random
from collections import deque
from itertools import chain, repeat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from short_runs import make, quick_fits

from benchsuite.checks.verify import check_job
from benchsuite.errors import UserError
from benchsuite.method.registered import methods
from benchsuite.record.schema import same_numbers
from benchsuite.training import schedule
from benchsuite.training.rollback import Rollback
from benchsuite.training.runner import RunFailed, run
from benchsuite.training.settings import Unsupported, resolve
from benchsuite.training.watch import Watch

SHORT = {"tasks": 2, "train_per_class": 24, "test_per_class": 20, "batch_size": 16, "lr": 0.01, "dropout": 0.15}
PATIENT = {"lr_schedule": "patience", "validation": 0.25}


class Rates(SupervisedPlugin):
    """The rate of every step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_forward(self, strategy, **kwargs):
        self.seen.append(strategy.optimizer.param_groups[0]["lr"])


def rates(method="finetune", tasks=1, **settings):
    spy = Rates()
    strategy, stream = make(spy, method=method, **{"lr": 0.1, **settings})
    for experience in stream.train[:tasks]:
        strategy.train(experience, eval_streams=[])
    return spy.seen


def of_torch(kind, steps, **given):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, seen = kind(optimizer, **given), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_is_the_formula_and_torchs():
    seen = rates(lr_schedule="cosine", epochs=4)[::3]  # three steps each
    assert seen == pytest.approx([0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5))])
    assert seen == pytest.approx(of_torch(torch.optim.lr_scheduler.CosineAnnealingLR, 4, T_max=4))


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_one_cycle_is_torchs(epochs):
    seen = rates(lr_schedule="one_cycle", epochs=epochs)
    expected = of_torch(
        torch.optim.lr_scheduler.OneCycleLR, 3 * epochs - 1, max_lr=0.1, total_steps=3 * epochs, cycle_momentum=False
    )
    assert seen[:-1] == pytest.approx(expected)
    assert seen[-1] == pytest.approx(0.1 / 250_000)
    assert seen != pytest.approx(rates(lr_schedule="cosine", epochs=epochs))  # control


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_a_schedule_starts_again_with_each_task(name):
    seen = rates(lr_schedule=name, epochs=2, tasks=2)
    assert seen[:6] == seen[6:]
    assert len(set(seen[:6])) > 1


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_phases_of_a_method_keep_their_rates(name):
    seen = rates("packnet", lr_schedule=name, epochs=6, retrain_share=1 / 3, retrain_rate=0.5)
    assert seen[:12] == pytest.approx(rates(lr_schedule=name, epochs=4)), "the dense phase has the whole schedule"
    assert seen[12:] == [0.05] * 6
    plain = rates(lr_schedule=name, epochs=4)
    seen = rates("individual-svd", lr_schedule=name, epochs=4, recovery=0.25, recovery_rate=0.5)
    assert seen[:9] == plain[:9]
    relative = [b / plain[9] for b in plain[9:]]
    assert seen[9:] == pytest.approx([0.05 * r * (plain[9] / plain[8] if name == "one_cycle" else 1) for r in relative])


@pytest.fixture
def planted(monkeypatch):
    """Plants validation losses, the same in each task."""

    def plant(*losses):
        left = {}

        def loss(strategy):
            task = strategy.experience.current_experience
            return next(left.setdefault(task, chain(losses, repeat(9.0))))

        monkeypatch.setattr(schedule, "validation_loss", loss)

    return plant


def patient(*plugins, method="finetune", **settings):
    strategy, stream = make(*plugins, method=method, **{**SHORT, **PATIENT, **settings})
    return strategy, stream


def test_the_rate_falls_and_the_task_ends_on_a_planted_loss_curve(planted):
    planted(5.0, 4.0, 4.0, 4.5, 3.0, 3.0, 3.1, 3.2, 3.3)
    spy, watch = Rates(), Watch()
    strategy, stream = patient(spy, watch, epochs=20, lr=0.08, lr_patience=2, lr_factor=2, lr_min=0.03)
    for experience in stream.train[:2]:
        strategy.train(experience, eval_streams=[])
        # Epoch 2 is the best until two more were not better: halved from epoch 5 on, which is a new best; two more: 0.02 < 0.03.
        assert strategy.schedule.kept == 5
        assert watch.iterations == 7 * 3
        assert watch.memory["held"] > 0
    assert spy.seen == pytest.approx(([0.08] * 12 + [0.04] * 9) * 2)
    assert strategy.clock.train_iterations == 42


def test_memory_is_measured_in_the_epoch_that_turns_out_to_be_the_last(planted, monkeypatch):
    planted(*[1.0] * 9)
    measured, watch = [], Watch()
    was = Watch._measured_in

    def noted(watch, strategy):
        if was(watch, strategy):
            measured.append(strategy.clock.train_exp_epochs)
        return was(watch, strategy)

    monkeypatch.setattr(Watch, "_measured_in", noted)
    strategy, stream = patient(watch, epochs=20, lr_patience=3, lr_factor=2, lr_min=0.009)
    strategy.train(stream.train[0], eval_streams=[])
    assert set(measured) == {1, 3}
    assert watch.iterations == 4 * 3


def served(strategy):
    return strategy.method.artifact().to_bytes()


def of_two_tasks(method, **settings):
    strategy, stream = make(method=method, **{**SHORT, "validation": 0.25, **settings})
    stages = [stream.joint()] if strategy.method.trains_jointly else stream.train
    for experience in stages:
        strategy.train(experience, eval_streams=[])
    return strategy


WHOLE = {"retrain_share": 0.0, "recovery": 0.0}  # without a phase that is a share of the epochs


@pytest.mark.parametrize("method", [name for name in methods.all() if methods.is_built_in(name)])
def test_every_method_ends_as_if_its_best_epoch_had_been_the_last(method, planted, monkeypatch):
    quick_fits(monkeypatch)
    planted(5.0, 4.0)
    own = {name: value for name, value in WHOLE.items() if hasattr(methods.get(method), name)}
    ended = of_two_tasks(method, epochs=2, **own)
    patient = of_two_tasks(method, epochs=4, **PATIENT, **own)
    assert patient.schedule.kept == 2
    assert patient.clock.train_iterations == 2 * ended.clock.train_iterations
    assert served(patient) == served(ended)


@pytest.mark.parametrize("method", ["finetune", "hat", "si"])
def test_without_going_back_it_would_not(method, planted, monkeypatch):
    """The control. SI and HAT fail if only the network's `state_dict` comes back."""
    planted(5.0, 4.0)
    ended = served(of_two_tasks(method, epochs=2))

    class Network(Rollback):
        def __init__(self, model, method):
            self.model, self.state = (
                model,
                {name: value.clone() for name, value in model.state_dict().items() if hasattr(value, "clone")},
            )

        def restore(self):
            self.model.load_state_dict(self.state, strict=False)

    if method != "finetune":
        monkeypatch.setattr(schedule, "Rollback", Network)
        assert served(of_two_tasks(method, epochs=4, **PATIENT)) != ended
    monkeypatch.setattr(Rollback, "restore", lambda self: None)
    monkeypatch.setattr(schedule, "Rollback", Rollback)
    assert served(of_two_tasks(method, epochs=4, **PATIENT)) != ended


def test_a_rollback_brings_back_attributes_containers_and_generators():
    class Thing:
        pass

    thing, generator = Thing(), torch.Generator().manual_seed(3)
    shared = torch.arange(6.0)
    thing.whole, thing.part, thing.wide = shared, shared[2:4], torch.ones(1).expand(5)
    thing.kept, thing.names, thing.draw, thing.itself = {"a": [1, {2}]}, ("x",), generator, thing
    before = Rollback(thing)
    first = torch.rand(3, generator=generator)
    thing.part.mul_(7)
    thing.whole, thing.new = torch.zeros(2), 1
    thing.kept["a"][1].add(5)
    thing.kept["a"].append(4)
    thing.kept["b"] = 0
    before.restore()
    assert thing.whole is shared
    assert torch.equal(shared, torch.arange(6.0))
    assert thing.kept == {"a": [1, {2}]}
    assert not hasattr(thing, "new")
    assert torch.equal(torch.rand(3, generator=generator), first)


class Slotted:
    __slots__ = ("count", "names")

    def __init__(self):
        self.count, self.names = 0, []


def test_a_rollback_brings_back_what_a_plugin_may_hold():
    thing = SimpleNamespace(
        array=np.zeros(3),
        objects=np.array([[1], None], object),
        window=deque([1, 2], maxlen=2),
        draws=[np.random.default_rng(0), np.random.RandomState(0), random.Random(0)],
        slotted=Slotted(),
        weights=torch.nn.Parameter(torch.zeros(2)),
    )
    weights = thing.weights

    def draw():
        return [thing.draws[0].random(), thing.draws[1].random(), thing.draws[2].random()]

    before = Rollback(thing)
    first = draw()
    thing.array += 1
    thing.objects[0].append(2)
    thing.objects[1] = 5
    thing.window.append(3)
    thing.slotted.count, thing.slotted.names = 1, ["x"]
    thing.weights.data = torch.ones(3)
    before.restore()
    assert thing.array.tolist() == [0, 0, 0]
    assert thing.objects.tolist() == [[1], None]
    assert list(thing.window) == [1, 2]
    assert draw() == first
    assert (thing.slotted.count, thing.slotted.names) == (0, [])
    assert thing.weights is weights
    assert weights.tolist() == [0, 0]


def test_validation_images_are_a_stratified_share_that_is_not_trained_on():
    _, whole = make(**SHORT)
    _, stream = make(**SHORT, validation=0.25)
    for all_of_it, experience in zip(whole.train, stream.train, strict=True):
        train, validation = experience.images, experience.validation
        assert torch.bincount(validation.labels).tolist() == [6, 6]
        assert torch.bincount(train.labels).tolist() == [18, 18]
        together = torch.cat([train.pixels, validation.pixels]).flatten(1)
        expected = all_of_it.images.pixels.flatten(1)
        assert sorted(together.tolist()) == sorted(expected.tolist())
        assert all_of_it.validation is None
    assert [len(v.labels) for v in stream.joint().validation] == [12, 12]
    assert torch.equal(stream.test[0].images.pixels, whole.test[0].images.pixels)
    with pytest.raises(UserError, match=r"validation=0\.01 of the 24 training images of class"):
        make(**SHORT, validation=0.01)


def test_the_validation_loss_leaves_no_trace():
    plain, stream = make(**SHORT, validation=0.25, epochs=3)
    watched, again = make(**SHORT, **PATIENT, epochs=3, lr_patience=9)
    for one, two in zip(stream.train, again.train, strict=True):
        plain.train(one, eval_streams=[])
        watched.schedule._best_state = None
        watched.train(two, eval_streams=[])
    assert watched.schedule.best < math.log(2)
    assert watched.schedule.kept == 3
    assert served(watched) == served(plain)


def refusal(method="finetune", **settings):
    with pytest.raises(UserError) as error:
        resolve("split-digits", "smoke", method, 1, overrides=settings)
    return str(error.value)


def test_what_patience_cannot_do_is_said_before_training():
    assert refusal(lr_schedule="patience").startswith("lr_schedule=patience watches the loss on a share of the training images")
    assert "needs reset_optimizer=true" in refusal(**PATIENT, reset_optimizer=False)
    assert refusal(**PATIENT, lr_min=0.1) == "lr_min must be below lr=0.001, got 0.1"
    assert refusal(lr_patience=3) == "lr_patience has no effect with lr_schedule=milestones; leave it out"
    assert refusal(lr_schedule="cosine", milestones=(2,)) == "milestones has no effect with lr_schedule=cosine; leave it out"
    phases = {"packnet": "retrain_share", "cacl": "prune_at", "delta-svd": "recovery", "individual-cp": "recovery"}
    for method, name in phases.items():
        own = {"prune_at": 0.5} if method == "cacl" else {}
        with pytest.raises(Unsupported, match=f"{name} is a share of a task's epochs, which lr_schedule=patience may cut short"):
            resolve("split-digits", "smoke", method, 1, overrides={**PATIENT, **own})
        assert resolve("split-digits", "smoke", method, 1, overrides={**PATIENT, name: 1.0 if own else 0.0})


def test_settings_of_another_schedule_are_no_part_of_a_run():
    job = resolve("split-digits", "paper", "finetune", 1, overrides={"lr_schedule": "cosine"})
    assert "milestones" not in job.settings
    assert (
        job.config
        == resolve("split-digits", "paper", "finetune", 1, overrides={"lr_schedule": "cosine", "milestones": ()}).config
    )
    assert "lr_schedule" not in resolve("split-digits", "paper", "finetune", 1, overrides={"lr_schedule": "milestones"}).settings


class Stop(SupervisedPlugin):
    def before_training_exp(self, strategy, **kwargs):
        if strategy.experience.current_experience == 1:
            raise RuntimeError("stop here")


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "patience"])
@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(name, tmp_path):
    own = {"lr_schedule": name, "epochs": 8}
    own |= {"validation": 0.25, "lr_patience": 1, "lr_min": 0.004} if name == "patience" else {}
    job = resolve("split-digits", "smoke", "si", 1, overrides=SHORT | {"tasks": 3} | own)
    events = []
    whole = run(job, results=tmp_path / "whole", device="cpu", report=events.append)
    with pytest.raises(RunFailed):
        run(job, results=tmp_path / "parts", device="cpu", plugins=[Stop()])
    again = run(job, results=tmp_path / "parts", device="cpu")
    assert check_job(job) == [], "nothing is missing in its settings"
    assert same_numbers(whole, again)
    assert again.artifact_sha256 == whole.artifact_sha256
    ends = [event.stage for event in events if event.epoch == event.epochs]
    assert ends == [0, 1, 2], "each task is reported once as over, however early it ended"
    if name == "patience":
        assert len(whole.kept_epochs) == 3
        assert all(1 <= kept <= 8 for kept in whole.kept_epochs)
    else:
        assert whole.kept_epochs == []
