"""Frozen entries stay bit-identical under every optimiser; masking gradients alone does not freeze them."""

import copy
import re

import pytest
import torch
from avalanche.core import SupervisedPlugin
from short_runs import make, trained

from benchsuite.methods.cacl import CACL
from benchsuite.nn.guard import FrozenGuard

OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    "momentum and decay": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "adamw and decay": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
}
# where a masked gradient is not enough: momentum or moments from before, and decay whether or not they are fresh
MOVES = {("momentum", False), ("momentum and decay", False), ("momentum and decay", True), ("adam", False)}
MOVES |= {("adamw and decay", False), ("adamw and decay", True)}
NAME = "backbone.conv2.weight"


class Freeze(SupervisedPlugin):
    """Freezes the first half of a layer's kernels after the first task."""

    def __init__(self):
        super().__init__()
        self.kept = None

    def after_training_exp(self, strategy, **kwargs):
        if self.kept is None:
            weight = strategy.model.get_parameter(NAME)
            where = torch.zeros_like(weight, dtype=torch.bool)
            where[: len(weight) // 2] = True
            strategy.method.guard.freeze(NAME, where)
            self.kept = weight.detach().clone()


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_entries_are_bit_identical_and_the_others_learn(optimizer, reset):
    freeze = Freeze()
    strategy, _ = trained(freeze, tasks=3, reset_optimizer=reset, **OPTIMIZERS[optimizer])
    weight, half = strategy.model.get_parameter(NAME), len(freeze.kept) // 2
    assert torch.equal(weight[:half], freeze.kept[:half])
    assert not torch.equal(weight[half:], freeze.kept[half:])


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_masked_gradient_alone_does_not_freeze(optimizer, reset, monkeypatch):
    monkeypatch.setattr(FrozenGuard, "after_update", lambda *_, **__: None)
    freeze = Freeze()
    strategy, _ = trained(freeze, tasks=3, reset_optimizer=reset, **OPTIMIZERS[optimizer])
    half = len(freeze.kept) // 2
    moved = not torch.equal(strategy.model.get_parameter(NAME)[:half], freeze.kept[:half])
    assert moved is ((optimizer, reset) in MOVES)


def test_a_wholly_frozen_parameter_gets_no_gradient_and_can_be_freed_again():
    strategy, stream = make()
    guard = strategy.method.guard
    guard.freeze("backbone.conv1.weight")
    before = strategy.model.backbone.conv1.weight.detach().clone()
    strategy.train(stream.train[0], eval_streams=[])
    assert strategy.model.backbone.conv1.weight.grad is None
    assert torch.equal(strategy.model.backbone.conv1.weight, before)
    guard.freeze("backbone.conv1.weight", torch.zeros_like(before, dtype=torch.bool))
    strategy.train(stream.train[1], eval_streams=[])
    assert not torch.equal(strategy.model.backbone.conv1.weight, before)


@pytest.mark.parametrize("method", ["packnet", "hat", "cacl"])
def test_heads_of_finished_tasks_are_frozen_for_methods_that_forget_nothing(method):
    strategy, _ = trained(method=method, tasks=2, epochs=1)
    assert not any(p.requires_grad for t in "01" for p in strategy.model.heads[t].parameters())
    other, _ = trained(method="finetune", tasks=2, epochs=1)  # control
    assert all(p.requires_grad for t in "01" for p in other.model.heads[t].parameters())


@pytest.mark.parametrize("method", ["packnet", "hat"])
@pytest.mark.parametrize(("optimizer", "reset"), [("momentum and decay", False), ("adamw and decay", True)])  # others: see above
def test_without_the_guard_the_methods_that_rely_on_it_forget(method, optimizer, reset, monkeypatch):
    def drift():
        strategy, stream = make(method=method, epochs=1, reset_optimizer=reset, **OPTIMIZERS[optimizer])
        x, logits = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), []
        for experience in stream.train[:3]:
            strategy.train(experience, eval_streams=[])
            with torch.no_grad():
                logits.append(strategy.model.eval()(x, 0))
        return not (torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2]))

    assert not drift()
    monkeypatch.setattr(FrozenGuard, "after_update", lambda *_, **__: None)
    assert drift()


def tensors(model):
    return {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def belongings(strategy, task):
    """All that serves the newest task: {name: (which entries, their values)}."""
    method, state = strategy.method, tensors(strategy.model)
    if method.name == "packnet":
        places = {f"backbone.{name}.weight": layer.visible(task) for name, layer in method.layers.items()}
    elif isinstance(method, CACL):  # what lies in the bank now; later tasks append to it
        banks = {f"backbone.{name}.{part}": getattr(layer, part) for name, layer in method.layers.items() for part in layer.grows}
        places = {name: torch.ones_like(bank, dtype=torch.bool) for name, bank in banks.items()}
    else:
        places = dict(method._protected())
    own = [name for name in state if re.search(rf"\b(heads|norms|biases)\.{task}\b", name)]
    places |= {name: torch.ones_like(state[name], dtype=torch.bool) for name in own}
    assert all(where.any() for where in places.values())
    return {name: (where, state[name][where].clone()) for name, where in places.items()}


def part_of(tensor, where):
    """As much of a tensor that has grown as there was."""
    return tensor[tuple(slice(n) for n in where.shape)]


def moved(strategy, kept):
    """Names of what is not bit for bit as it was."""
    now = tensors(strategy.model)
    return [name for name, (where, values) in kept.items() if not torch.equal(part_of(now[name], where)[where], values)]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("cacl", {}),
        ("cacl-cp", {}),
        ("cacl-kronecker", {}),
        ("cacl-tucker", {}),
        ("cacl-tucker", {"core": "block"}),
        ("packnet", {}),
        ("packnet", {"biases": "first_task"}),
        ("packnet", {"backbone": "resnet18", "width": 0.25, "train_per_class": 8}),
        ("hat", {}),
        ("hat", {"backbone": "resnet18", "width": 0.25, "train_per_class": 8}),
    ],
)
def test_what_belongs_to_a_task_is_bit_identical_after_each_later_one(method, settings):
    """Z2: weights, biases, normalisation and heads."""
    strategy, stream = make(method=method, epochs=1, **OPTIMIZERS["adamw and decay"], **settings)
    kept = []
    for task, experience in enumerate(stream.train[:3]):
        strategy.train(experience, eval_streams=[])
        assert [moved(strategy, earlier) for earlier in kept] == [[]] * task
        kept.append(belongings(strategy, task))
    names = " ".join(kept[0])
    assert all(kind in names for kind in ("weight", "bias", "heads", "norms" if "backbone" in settings else "conv2"))
    for name, (where, values) in kept[0].items():  # control: each of them would be seen to move
        assert moved(strategy, {**kept[0], name: (where, values + 1)}) == [name]


@pytest.mark.parametrize("method", ["cacl", "packnet", "hat"])
def test_a_copy_keeps_its_own_protection(method):
    """G4: train a deep copy on, and what is protected in it does not move, nor anything of the first."""
    strategy, stream = trained(method=method, **OPTIMIZERS["adamw and decay"])
    kept, first = belongings(strategy, 0), {name: t.clone() for name, t in tensors(strategy.model).items()}
    twin = copy.deepcopy(strategy)
    for experience in stream.train[1:3]:  # CACL's second task finds no free component, its third does
        twin.train(experience, eval_streams=[])
    now = tensors(twin.model)
    assert not moved(twin, kept)
    learns = "backbone.conv2.C" if method == "cacl" else NAME
    assert now[learns].shape != first[learns].shape or not torch.equal(now[learns], first[learns])  # control: the rest learns on
    assert all(torch.equal(t, first[name]) for name, t in tensors(strategy.model).items())
