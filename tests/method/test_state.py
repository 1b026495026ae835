"""What a checkpoint holds of a method, and the generators that go on."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from short_runs import make
from torch import nn

from benchsuite.method.base import Method, RunInfo, plain
from benchsuite.method.registered import register
from benchsuite.protocol import Recipe
from benchsuite.training import runner
from benchsuite.training.settings import resolve
from benchsuite.training.watch import Watch

NOT_HELD = {
    "ndarray": (np.zeros(3), "x is a ndarray, which a checkpoint cannot hold; keep torch.from_numpy(...) of it"),
    "float64": (np.mean([1.0]), "x is a float64, which a checkpoint cannot hold; keep its .item()"),
    "inside": ({"a": [1, np.int64(2)]}, "x['a'][1] is a int64"),
    "defaultdict": (defaultdict(list), "keep a plain dict"),
    "counter": (Counter("a"), "x is a Counter"),
    "generator": (torch.Generator(), "ask self.generator(...) for one each time you draw"),
    "module": (nn.Linear(1, 1), "x is a Linear, which a checkpoint cannot hold; name the attribute in `temporary`"),
    "key": ({nn.Parameter(torch.zeros(1)): 1}, "x has a Parameter as a key, which a checkpoint cannot find again; use names"),
}


@pytest.mark.parametrize(("value", "said"), NOT_HELD.values(), ids=NOT_HELD)
def test_what_a_checkpoint_cannot_hold_is_named_with_what_to_keep(value, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        plain("x", value)


def test_what_a_checkpoint_can_hold_comes_back(tmp_path):
    held = {"a": [1, 2.0, "b", None, True, (torch.ones(2),)], 3: {4, 5}, ("c", 1): nn.Parameter(torch.zeros(1))}
    torch.save(plain("x", held), tmp_path / "x.pt")
    back = torch.load(tmp_path / "x.pt", weights_only=True)
    assert back.keys() == held.keys()
    assert back["a"][:5] == held["a"][:5]
    assert back[3] == held[3]


@dataclass
class Keeps(Method):
    """It makes what no checkpoint holds: in prepare, when a task begins, in a step, or only where state() leaves it out."""

    when: str = "prepare"
    old: dict = field(default_factory=dict, init=False)

    def keep(self, when):
        if self.when == when:
            self.strange = np.zeros(3)

    def prepare(self, model):
        self.keep("prepare")
        return model

    def before_training_exp(self, strategy, **kwargs):
        self.keep("task")

    def after_update(self, strategy, **kwargs):
        self.keep("step")
        self.keep("left out")


class LeavesOut(Keeps):
    """It says itself what is stored."""

    def state(self):
        return {"wrong": np.zeros(3)} if self.when == "wrong" else {"old": self.old}


class Temporary(Keeps):
    """It makes something anew for each task."""

    temporary = ("strange",)


def one(**settings):
    return {"train_per_class": 8, "test_per_class": 8, "epochs": 3, "batch_size": 8, "tasks": 1, **settings}


@pytest.mark.parametrize(("when", "epochs"), [("prepare", 0), ("task", 0), ("step", 1)])
def test_such_an_attribute_ends_a_run_before_its_first_epoch_or_if_a_step_makes_it_after_it(when, epochs, own_methods):
    register(Keeps)
    seen = []
    strategy, stream = make(Watch(lambda task, epoch, loss: seen.append(epoch)), method="keeps", when=when, epochs=3)
    with pytest.raises(TypeError, match=r"^Keeps\.strange is a ndarray"):
        strategy.train(stream.train[0], eval_streams=[])
    assert len(seen) == epochs


def test_a_method_that_says_itself_what_is_stored_may_hold_anything(own_methods, tmp_path):
    register(LeavesOut)
    for when, said in (("left out", None), ("wrong", r"LeavesOut\.state\(\)\['wrong'\] is a ndarray")):
        job = resolve("split-digits", "smoke", "leavesout", 1, overrides=one(when=when, epochs=1))
        if said:
            with pytest.raises(runner.RunFailed, match=said):
                runner.run(job, results=tmp_path, device="cpu")
        else:
            runner.run(job, results=tmp_path, device="cpu")


def test_what_each_task_makes_anew_is_not_stored(own_methods):
    register(Temporary)
    strategy, stream = make(Watch(), method="temporary", when="task", epochs=1)
    strategy.train(stream.train[0], eval_streams=[])
    assert strategy.method.state() == {"old": {}}


def test_a_field_that_is_no_setting_is_stored():
    method = Keeps()
    method.old["a"] = 1
    assert method.state() == {"old": {"a": 1}}


def drawing():
    method = Method()
    method.run = RunInfo(seed=1, recipe=Recipe(backbone="digits", epochs=1), n_tasks=2)
    return lambda *purpose: float(torch.rand((), generator=method.generator(*purpose))), method


def test_a_generator_goes_on_and_a_resumed_method_draws_the_same():
    draw, method = drawing()
    first = [draw("noise") for _ in range(3)]
    other = draw("mask", 0)
    assert len({*first, other}) == 4
    again, resumed = drawing()
    assert [again("noise") for _ in range(2)] == first[:2]  # whatever else was asked for
    resumed._drawn = dict(method._drawn)
    assert again("noise") == draw("noise")
    assert again("noise") not in first


def test_what_is_called_often_draws_the_same_each_time():
    draw, method = drawing()
    draw("sketch")
    found = []
    for _ in range(2):
        with method.same_draws():
            found.append([draw("sketch"), draw("sketch")])
    assert found[0] == found[1] == [draw("sketch"), draw("sketch")]
