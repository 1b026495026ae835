"""Plugins that look on: the record is that of the run without them, or the run says what they changed."""

import random
import re

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import CSVLogger
from avalanche.training.plugins import EvaluationPlugin
from short_runs import make

from benchsuite.errors import UserError
from benchsuite.record import schema
from benchsuite.training.observer import Observer
from benchsuite.training.runner import run
from benchsuite.training.settings import resolve

TINY = {"tasks": 2, "train_per_class": 24, "test_per_class": 20, "epochs": 2, "batch_size": 16}


def job(**settings):
    return resolve("split-digits", "smoke", "finetune", 1, overrides=TINY | settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(job(), results=tmp_path_factory.mktemp("plain"))


class Curious(SupervisedPlugin):
    """Looks at everything, calls the network and draws from every global generator."""

    def after_backward(self, strategy, **kwargs):
        self.kept = [p.grad.clone() for p in strategy.model.parameters() if p.grad is not None]
        self.total = torch.zeros(1)
        self.total += random.random() + np.random.rand() + torch.rand(1)  # noqa: NPY002
        self.norm = sum(g.norm() for g in self.kept)

    def after_training_epoch(self, strategy, **kwargs):
        training = strategy.model.training
        with torch.no_grad():
            strategy.model.eval()
            strategy.model(strategy.mb_x, 0)
            strategy.model.train(training)


def evaluation(folder):
    metrics = [measure(minibatch=True, epoch=True, experience=True, stream=True) for measure in (accuracy_metrics, loss_metrics)]
    return EvaluationPlugin(*metrics, loggers=[CSVLogger(str(folder))])


def test_what_only_looks_on_changes_nothing(plain, tmp_path):
    seen = evaluation(tmp_path / "theirs")
    with_them = run(job(), results=tmp_path, plugins=[Curious(), seen], loggers=["csv"])
    seen.loggers[0].close()
    assert schema.same_numbers(plain, with_them)
    assert with_them.memory == plain.memory
    assert seen.get_last_metrics()["Top1_Acc_Stream/eval_phase/test_stream/Task001"] >= 0


def weight(strategy):
    return next(iter(strategy.model.parameters()))


def attach(strategy):
    strategy.model.heads["0"].register_forward_hook(lambda module, given, out: 0 * out)


def train_mode(strategy):
    strategy.model.train()
    strategy.model(torch.zeros(4, 1, 8, 8), 0)


CULPRITS = {
    "write": ("after_training_iteration", lambda s: weight(s).data.mul_(1.01), "a tensor of the run (mul_)"),
    "view": ("before_forward", lambda s: s.mbatch[0].flatten()[:3].zero_(), "a tensor of the run (zero_)"),
    "gradient": ("after_backward", lambda s: torch.nn.utils.clip_grad_norm_(s.model.parameters(), 1e-3), "a tensor of the run"),
    "step": ("after_training_epoch", lambda s: s.optimizer.step(), "a tensor of the run"),
    "loss": ("before_backward", lambda s: setattr(s, "loss", s.loss * 2), "the strategy's loss"),
    "added": ("before_backward", lambda s: s.loss.add_(1), "a tensor of the run (add_)"),
    "replaced": ("after_update", lambda s: setattr(weight(s), "data", weight(s).data.clone()), "the weights"),
    "numpy": ("after_training_epoch", lambda s: weight(s).detach().numpy().fill(1), "the values of the weights"),
    "backward": ("before_training_iteration", lambda s: s.model(torch.ones(2, 1, 8, 8), 0).sum().backward(), "the gradients"),
    "mode": ("before_forward", lambda s: s.model.eval(), "the network's mode"),
    "rate": ("before_training_epoch", lambda s: s.optimizer.param_groups[0].update(lr=1.0), "the optimiser"),
    "stop": ("before_training_epoch", lambda s: s.stop_training(), "the strategy's _stop_training"),
    "epochs": ("before_training_exp", lambda s: setattr(s, "train_epochs", 7), "the strategy's train_epochs"),
    "clock": ("after_training_exp", lambda s: setattr(s.clock, "train_exp_counter", 7), "the clock"),
    "frozen": ("before_training_epoch", lambda s: weight(s).requires_grad_(False), "the weights"),
    "hook": ("before_training_epoch", attach, "the hooks on the network"),
    "dropout": ("after_training_epoch", train_mode, "a random generator"),
    "method": ("before_training_exp", lambda s: setattr(s.method, "memory_bytes", 7), "the method's memory_bytes"),
    "plugins": ("before_training_epoch", lambda s: s.plugins.append(SupervisedPlugin()), "the strategy's plugins"),
}


@pytest.mark.parametrize("name", CULPRITS)
def test_a_plugin_that_changes_something_is_named(name):
    hook, act, words = CULPRITS[name]
    culprit = type("Meddler", (SupervisedPlugin,), {hook: lambda self, strategy, **kwargs: act(strategy)})()
    strategy, stream = make(Observer(culprit), epochs=1)
    with pytest.raises(UserError, match=rf"Meddler may only look on, but in {hook} it changes {re.escape(words)}"):
        strategy.train(stream.train[0], eval_streams=[])


def test_a_run_with_a_meddler_leaves_no_record(tmp_path):
    class Meddler(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            weight(strategy).data.zero_()

    with pytest.raises(UserError, match="may only look on"):
        run(job(), results=tmp_path, plugins=[Meddler()])
    assert not list(tmp_path.rglob("record.json"))


def test_a_fault_of_an_onlooker_keeps_its_own_words():
    class Clumsy(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            raise LookupError("nothing there")

    strategy, stream = make(Observer(Clumsy()), epochs=1)
    with pytest.raises(LookupError, match="nothing there"):
        strategy.train(stream.train[0], eval_streams=[])


def test_a_network_without_a_parameter_before_its_first_task_can_be_looked_at():
    class Early(SupervisedPlugin):
        def before_training(self, strategy, **kwargs):
            self.seen = len(list(strategy.model.parameters()))

    early = Early()
    strategy, stream = make(Observer(early), method="individual", epochs=1)
    strategy.train(stream.train[0], eval_streams=[])
    assert early.seen == 0
