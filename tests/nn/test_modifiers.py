"""Modifiers under methods: what they change, what they must leave alone, what they refuse, and the memory of a step."""

import copy
import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin
from msgspec import structs
from short_runs import TINY, make, quick_fits, weights
from torch import nn
from torch.nn import functional as F

from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.method import Method, methods, register
from benchsuite.method.artifact import Artifact
from benchsuite.method.serving import load
from benchsuite.nn import compressed
from benchsuite.nn.backbones import ConvNet, Dropout
from benchsuite.nn.interception import Interception
from benchsuite.nn.modifiers import ASI, HOSVD, MODIFIERS, SVD, GradientFilter
from benchsuite.record import schema, store
from benchsuite.training.accounting import StepMemory
from benchsuite.training.batches import Batches
from benchsuite.training.runner import run
from benchsuite.training.settings import resolve
from benchsuite.training.watch import Watch

# LANCE keeps maps in a form of its own, and two methods train as `individual-svd` does
NAMES = [name for name in methods.all() if name not in ("lance", "individual-cp", "individual-tucker")]
DECOMPOSING = ("svd", "hosvd", "asi")
SHORT = {"epochs": 1, "train_per_class": 16, "dropout": 0.3}
SMALL = {"backbone": "resnet18", "width": 0.2, "train_per_class": 8, "epochs": 1}


class Seen(SupervisedPlugin):
    """Losses and gradients of every step, and how often a modifier was asked, in steps and outside."""

    def __init__(self, monkeypatch=None, modifier=HOSVD):
        super().__init__()
        self.losses, self.gradients, self.asked, self.kept, self.within = [], [], {True: 0, False: 0}, [], False
        keep = modifier.keep

        def counted(*given):
            self.asked[self.within] += 1
            self.kept.append(keep(*given))
            return self.kept[-1]

        if monkeypatch:
            monkeypatch.setattr(modifier, "keep", counted)

    def before_forward(self, strategy, **kwargs):
        self.within = True

    def after_forward(self, strategy, **kwargs):
        self.within = False

    def after_backward(self, strategy, **kwargs):
        self.losses.append(float(strategy.loss.detach()))
        self.gradients.append({name: p.grad.clone() for name, p in strategy.model.named_parameters() if p.grad is not None})


def learn(*plugins, tasks=2, **settings):
    """A strategy after its first tasks; joint training has one stage."""
    strategy, stream = make(*plugins, **settings)
    for experience in [stream.joint()] if strategy.method.trains_jointly else stream.train[:tasks]:
        strategy.train(experience, eval_streams=[])
    return strategy, stream


def images(n=20):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def state(strategy):
    return {name: value.clone() for name, value in strategy.model.state_dict().items() if isinstance(value, torch.Tensor)}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_share_of_one_gives_the_plain_losses(monkeypatch):
    """Invariant 21: twenty steps in double precision; once as it is, once with every direction computed and kept."""
    plain = Seen()
    learn(plain, tasks=1, epochs=7, dtype=torch.float64)
    assert len(plain.losses) >= 20
    found = []
    for share, force in ((1.0, False), (1.0, True), (0.5, False)):
        with monkeypatch.context() as patch:
            if force:
                whole = compressed.by_energy(1.0)
                patch.setattr(HOSVD, "keep", lambda self, x, *_, whole=whole: compressed.hosvd(x, whole, always=True))
            seen = Seen()
            strategy, _ = learn(seen, method="finetune+hosvd", epsilon=share, tasks=1, epochs=7, dtype=torch.float64)
            assert strategy.method.compression.bytes > 0
        found.append(max(abs(a - b) for a, b in zip(seen.losses, plain.losses, strict=True)))
    assert found[0] < 1e-12
    assert found[1] < 1e-8
    assert found[2] > 1e-3  # control


@pytest.mark.parametrize("method", ["finetune", "cacl"])
@pytest.mark.parametrize("modifier", DECOMPOSING)
def test_bits_in_place_of_relus_output_make_a_step_hold_less_and_no_less_than_the_formula(modifier, method):
    """Invariant 22."""
    held = {}
    for relu in ("mask", "plain", None):
        watch = Watch()
        learn(watch, tasks=1, method=f"{method}+{modifier}" if relu else method, **SHORT, **({"relu": relu} if relu else {}))
        held[relu] = watch.memory["held"]
        assert relu is None or watch.memory["held"] >= watch.memory["formula"] > 0
    assert held["mask"] < 0.9 * held["plain"]
    assert held["mask"] < 0.75 * held[None]
    assert held["plain"] > 0.9 * held[None]  # control: alone, compressed maps save next to nothing


def test_the_memory_of_a_run_is_on_record(tmp_path):
    memory = {}
    for name in ("finetune", "finetune+hosvd"):
        record = run(resolve("split-digits", "smoke", name, 1, overrides=TINY | {"tasks": 2}), results=tmp_path)
        assert store.read(tmp_path / record.job.folder / "record.json").memory == record.memory
        memory[name] = {kind: values for kind, values in structs.asdict(record.memory).items() if values}
        assert record.activation_bytes == max(record.memory.held)
        assert all(len(values) == 2 and min(values) > 0 for values in memory[name].values())
        assert all(peak > held for peak, held in zip(record.memory.peak, record.memory.held, strict=True))
    assert set(memory["finetune"]) == {"formula", "held", "peak"}
    assert set(memory["finetune+hosvd"]) == {"held", "peak", "formula", "formula_mean"}
    small, plain = (memory[name]["held"] for name in ("finetune+hosvd", "finetune"))
    assert all(a < b for a, b in zip(small, plain, strict=True))


def test_the_formula_is_averaged_over_all_steps():
    sums = []

    class Bytes(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            sums.append(strategy.method.compression.bytes)

    watch = Watch()
    learn(Bytes(), watch, method="finetune+hosvd", tasks=1, epochs=3)
    assert watch.memory["formula_mean"] == round(sum(sums) / len(sums))
    assert watch.memory["formula"] == max(sums[len(sums) // 3], sums[2 * len(sums) // 3])  # first step of second and last epoch
    assert len(set(sums)) > 1  # control


@pytest.mark.parametrize("batch", [16, 7])
def test_a_plain_step_holds_the_maps_that_its_layers_read(batch):
    """Convolutions and the head read an image, 16 x 6 x 6, 32 x 2 x 2 and 64 numbers; ReLU and pooling keep more."""
    found = {}
    for relu in ("mask", "plain"):
        watch = Watch()
        learn(watch, tasks=1, method="finetune+hosvd", epsilon=1.0, relu=relu, batch_size=batch, epochs=1, dropout=0.0)
        found[relu] = watch.memory
    maps = 4 * batch * (64 + 16 * 36 + 32 * 4 + 64)
    bits = batch * math.ceil((16 * 36 + 32 * 4 + 64) / 8 + 2 * 32 * 4 / 8)
    labels_and_loss = 8 * batch + 4 * batch * 2
    assert found["mask"]["formula"] == maps
    assert 0 <= found["mask"]["held"] - maps - bits - labels_and_loss <= 8
    assert found["plain"]["held"] > found["mask"]["held"] + 4 * batch * 32 * 16  # control: pooling keeps its input
    for settings, share in (({}, 1), ({"precision": "bf16"}, 2)):  # and so counts the formula of an unmodified method
        watch = Watch()
        learn(watch, tasks=1, method="finetune", batch_size=batch, epochs=1, **settings)
        assert watch.memory["formula"] == maps / share
        assert watch.memory["held"] > watch.memory["formula"]


def test_the_formula_counts_a_map_once_and_only_for_layers_that_learn():
    x = torch.rand(8, 4, 7, 7)
    for between, frozen, maps in ((lambda x: x, False, 1), (lambda x: x.clone(), False, 2), (lambda x: x.clone(), True, 1)):
        net = Pair(nn.Conv2d(4, 3, 3), nn.Conv2d(4, 3, 1), between)
        net.a.requires_grad_(not frozen)
        memory = StepMemory(net)
        memory.start_of_forward()
        net(x)
        memory.end_of_forward()
        assert memory.inputs == maps * x.nbytes
        compression = Interception(HOSVD(epsilon=1.0), net)
        net(x)
        assert compression.bytes == maps * x.nbytes  # the same, where nothing is compressed away


def test_a_map_that_an_uncompressed_layer_keeps_too_counts_whole():
    x = torch.rand(8, 4, 7, 7)
    found = []
    for between in (lambda x: x, lambda x: x.clone()):
        net = Pair(nn.Conv2d(4, 3, 3), nn.Conv2d(4, 3, 1), between)
        compression = Interception(HOSVD(compressed="last:1", mode_ranks=(1,)), net)
        net(x)
        found.append(compression.bytes)
    assert found[0] == x.nbytes
    assert 0 < found[1] < x.nbytes  # control: a map of its own


@pytest.mark.parametrize("name", MODIFIERS)
def test_what_is_stored_and_served_is_the_plain_methods(name):
    settings = {"compressed": "last:2"} if name in ("svd", "hosvd", "gf", "asi") else {}
    plain, _ = learn(method="cacl", **SHORT)
    modified, _ = learn(method=f"cacl+{name}", **SHORT, **settings)
    assert type(modified.method).__mro__[2] is type(plain.method)
    assert modified.method.name == f"cacl+{name}"
    assert [n for n, _ in modified.model.named_modules()] == [n for n, _ in plain.model.named_modules()]
    assert modified.method.diagnostics().keys() == plain.method.diagnostics().keys()
    ours, theirs = modified.method.artifact(), plain.method.artifact()
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert ours.header == theirs.header
    served = type(modified.method).restore(Artifact(dict(ours.tensors), ours.header))
    modified.model.eval()
    for task in range(2):
        assert torch.allclose(served(images(), task), modified.model(images(), task), atol=1e-5)
    assert not torch.allclose(served(images(), 0), served(images(), 1), atol=1e-3)  # control
    assert all(torch.equal(ours.tensors[n], theirs.tensors[n]) for n in ours.tensors) is (name in ("bits", "checkpointing"))


def test_a_modified_run_is_exported_and_served_under_its_name(tmp_path):
    job = resolve("split-digits", "smoke", "cacl+hosvd", 1, overrides=TINY | {"tasks": 2})
    assert job.settings["epsilon"] == 0.8
    assert job.config != resolve("split-digits", "smoke", "cacl", 1, overrides=TINY | {"tasks": 2}).config
    assert job.config != resolve("split-digits", "smoke", "cacl+svd", 1, overrides=TINY | {"tasks": 2}).config
    record = run(job, results=tmp_path)
    assert record.job.method == "cacl+hosvd"
    model = load(tmp_path / job.folder / "artifact.safetensors")
    assert model(torch.zeros(3, 8, 8, 1, dtype=torch.uint8), 1).shape == (3, 2)


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("method", ["finetune+asi", "finetune+hosvd", "cacl+asi"])
@pytest.mark.slow
def test_a_run_that_is_resumed_is_the_undisturbed_one(method, tmp_path, monkeypatch):
    job = resolve("split-digits", "smoke", method, 1, overrides=TINY | {"tasks": 3, "dropout": 0.3})

    def both(folder):
        def stop(event):
            if (event.stage, event.epoch) == (1, 1):  # in the second task
                raise Stopped

        with pytest.raises(Stopped):
            run(job, results=folder / "stopped", report=stop)
        resumed, whole = run(job, results=folder / "stopped"), run(job, results=folder / "whole")
        return resumed.artifact_sha256 == whole.artifact_sha256, schema.same_numbers(resumed, whole)

    assert both(tmp_path / "real") == (True, True)
    if method == "finetune+asi":  # control: were factors carried over to the next task, a checkpoint would lack them
        begin = ASI.begin_task
        monkeypatch.setattr(ASI, "begin_task", lambda self, model, task: (task > 0 and self.bases) or begin(self, model, task))
        assert both(tmp_path / "control")[0] is False


@pytest.mark.parametrize("method", ["cacl", "packnet", "hat", "finetune"])
@pytest.mark.parametrize("modifier", ["hosvd", "asi", "gf"])
def test_class_scores_of_earlier_tasks_keep_their_bits(method, modifier):
    strategy, stream = make(method=f"{method}+{modifier}", **SHORT)
    scores = []
    for experience in stream.train[:3]:
        strategy.train(experience, eval_streams=[])
        strategy.model.eval()
        scores.append([strategy.model(images(), task).detach() for task in range(len(scores) + 1)])
    kept = all(torch.equal(scores[t][i], scores[i][i]) for t in range(3) for i in range(t))
    assert kept is (method != "finetune")  # finetune is the control


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("exact", ["bits", "checkpointing"])
def test_exact_modifiers_change_no_bit_and_hold_less(exact, method, monkeypatch):
    quick_fits(monkeypatch)
    found, held = [], []
    for name in (method, f"{method}+{exact}"):
        watch = Watch()
        strategy, _ = learn(watch, method=name, **SHORT)
        found.append(state(strategy))
        held.append(watch.memory["held"])
    assert equal(*found)
    assert held[1] < held[0]
    if method == "finetune":
        assert not equal(found[0], state(learn(method=method, **(SHORT | {"dropout": 0.31}))[0]))  # control


@pytest.mark.parametrize(
    ("batchnorm", "segments"),
    [("per_task", 1), ("per_task", 2), ("per_task", 20), ("frozen_after_first", 3), ("batch_stats", 3), ("shared", 3)],
)
@pytest.mark.slow
def test_recomputation_keeps_weights_and_running_statistics_of_a_residual_network(batchnorm, segments):
    held, found = [], []
    for name in ("finetune", "finetune+checkpointing"):
        watch = Watch()
        settings = {"segments": segments} if "+" in name else {}
        strategy, _ = learn(watch, method=name, batchnorm=batchnorm, **SMALL, **settings)
        found.append(state(strategy))
        held.append(watch.memory["held"])
    assert equal(*found)
    assert any("running_mean" in name for name in found[0]) is (batchnorm != "batch_stats")
    assert held[1] < held[0] if segments > 1 else held[1] == held[0]


@pytest.mark.parametrize("undone", ["dropout", "statistics"])
def test_recomputation_without_its_book_keeping_would_show(undone, monkeypatch):
    """The control of the two tests above."""
    settings = SHORT if undone == "dropout" else {**SMALL, "batchnorm": "shared"}
    exact = state(learn(**settings)[0])
    if undone == "dropout":
        monkeypatch.setattr("benchsuite.nn.backbones.rerun", lambda *given: torch.enable_grad())
    else:
        monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other: self)
    assert not equal(exact, state(learn(method="finetune+checkpointing", **settings)[0]))


@pytest.mark.parametrize(("method", "settings"), [("cacl", {}), ("hat", {}), ("hat", SMALL), ("finetune", SMALL)], ids=str)
def test_recomputation_of_a_batch_with_images_of_several_tasks(method, settings):
    """A network that changes with the task is run for each of them before any of it is run again."""
    found = []
    for name in (method, f"{method}+checkpointing"):
        strategy, _ = learn(ReplayPlugin(mem_size=20), method=name, **(SHORT | settings))
        found.append(state(strategy))
    assert equal(*found)


def test_segments_hold_their_inputs_and_the_last_one_all():
    """Convolution and what follows it is a step; a part keeps the map it reads."""
    torch.manual_seed(0)
    net, x = ConvNet((1, 8, 8), [(16, 3), (32, 3), "max", (64, 2)], 0.0), images()
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    held = {}
    for net.segments in (1, 2, 3):
        kept = {}

        def pack(tensor, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            net(x)
        held[net.segments] = sum(kept.values())
    image, first, second, last = (4 * 20 * n for n in (64, 16 * 36, 32 * 4, 64))
    assert held[3] == image + first + second + last  # the third step: its input and ReLU's output
    assert held[2] == image + second + last
    assert held[1] > held[3] + first  # control


OUTSIDE = {
    "evaluation": ("finetune", lambda s, stream: s.eval(stream.test[:1])),
    "a forward pass without gradients": ("finetune", lambda s, _: torch.no_grad()(lambda: s.model.train()(images(), 0))()),
    "EWC's Fisher": ("ewc", lambda s, stream: fisher(s, stream)),
    "MAS's importance": ("mas", lambda s, stream: importance(s, stream)),
}


def fisher(strategy, stream):
    return strategy.method.information(0, Batches([stream.train[0].images], [0], 32, augmentation=None))


def importance(strategy, stream):
    strategy.experience = stream.train[0]
    strategy.method.after_training_exp(strategy)


@pytest.mark.parametrize("what", OUTSIDE)
def test_nothing_is_compressed_outside_training(what, monkeypatch):
    method, look = OUTSIDE[what]
    seen = Seen(monkeypatch)
    strategy, stream = learn(seen, method=f"{method}+hosvd", **SHORT)
    steps = seen.asked.copy()
    assert steps[True] == 4 * len(seen.losses) > 0  # four layers: control
    look(strategy, stream)
    assert seen.asked == steps
    assert steps[False] == 0


def test_ewcs_fisher_is_that_of_the_plain_method():
    plain, stream = learn(method="ewc", **SHORT)
    modified, _ = learn(method="ewc+hosvd", **SHORT)
    modified.model.load_state_dict(plain.model.state_dict())
    plain.model.train()
    modified.model.train()
    ours, theirs = fisher(modified, stream), fisher(plain, stream)
    assert equal(ours, theirs)
    modified.model.heads["0"].weight.data.mul_(1.01)
    assert not equal(fisher(modified, stream), theirs)  # control


def test_lwfs_teacher_is_a_plain_network(monkeypatch):
    """It is a copy of the network, hooks and all."""
    seen, taught = Seen(monkeypatch), []

    class Teacher(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            if strategy.experience.current_experience:
                teacher = strategy.method.teacher
                with torch.no_grad():
                    taught.append(torch.equal(teacher(images(), 0), self.served(images(), 0)))

        def before_training_exp(self, strategy, **kwargs):
            model = copy.deepcopy(strategy.model)
            model._forward_hooks.clear()
            model._forward_pre_hooks.clear()
            self.served = model.eval()

        def after_training_iteration(self, strategy, **kwargs):
            strategy.method.compression.bytes = -1  # a copy has an account of its own

    learn(seen, Teacher(), method="lwf+hosvd", **SHORT)
    assert taught
    assert all(taught)
    assert seen.asked == {True: 4 * len(seen.losses), False: 0}
    whole, plain = (state(learn(method=name, **SHORT, **more)[0]) for name, more in ONE)
    assert equal(whole, plain)
    assert not equal(state(learn(method="lwf+hosvd", **SHORT)[0]), plain)  # control


ONE = [("lwf+hosvd", {"epsilon": 1.0}), ("lwf", {})]


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("modifier", ["hosvd", "asi"])
def test_every_method_learns_under_a_modifier(method, modifier, monkeypatch):
    quick_fits(monkeypatch)
    settings = {"activation_mb": 0.02} if modifier == "asi" else {}
    watch = Watch()
    strategy, _ = learn(watch, method=f"{method}+{modifier}", **SHORT, **settings)
    assert weights(strategy.model).isfinite().all()
    assert watch.memory["formula"] > 0
    assert strategy.method.compression._inside is False
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize(
    ("method", "last"), [*(("finetune", last) for last in (0, 1, 3, 9)), *((method, 1) for method in ("er", "joint", "cacl"))]
)
def test_the_last_layers_alone_are_compressed(method, last, monkeypatch):
    """Four layers: three convolutions, and the heads, which read one map."""
    seen = Seen(monkeypatch)
    learn(seen, method=f"{method}+hosvd", compressed=f"last:{last}", mode_ranks=(2,), **SHORT)
    assert seen.asked[True] == min(last, 4) * len(seen.losses)
    if last:
        widths = [kept.factors[1].shape[0] if kept else None for kept in seen.kept[: min(last, 4)]]
        assert widths == [1, 16, 32, 64][-min(last, 4) :]
    plain = Seen()
    learn(plain, method=method, **SHORT)
    names = [f"backbone.conv{i}" for i in (1, 2, 3)]
    ours, theirs = seen.gradients[0], plain.gradients[0]
    for i, name in enumerate(names if f"{names[0]}.weight" in ours else []):  # in the first step the others are exact
        assert torch.allclose(ours[f"{name}.weight"], theirs[f"{name}.weight"], rtol=1e-3, atol=1e-6) is (i < 4 - last)


def test_layers_are_counted_without_a_trace():
    """A pass in evaluation mode without gradients: neither statistics nor dropout nor modes show it."""
    found = [state(learn(method="finetune+hosvd", epsilon=1.0, compressed=c, **SHORT)[0]) for c in ("last:2", "all")]
    found += [state(learn(method="finetune", **SHORT)[0])]
    assert equal(found[0], found[1])
    assert equal(found[1], found[2])
    settings = {**SMALL, "batchnorm": "shared"}
    counted = learn(method="finetune+hosvd", epsilon=1.0, compressed="last:2", **settings)[0]
    assert equal(state(counted), state(learn(**settings)[0]))
    assert counted.method.compression._layers == 21  # 17 convolutions, three shortcuts, and the head
    assert counted.method.compression._first == 19


class Own(nn.Module):
    """Somebody's layer: a convolution deep inside, by the functional form."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.w, self.v = (nn.Parameter(torch.randn(*shape, generator=g)) for shape in ((5, 4, 3, 3), (3, 5)))

    def forward(self, x, *, scale):
        y = F.conv2d(F.conv2d(input=x, weight=self.w, stride=2) * scale, self.w.transpose(0, 1), padding="same")
        return F.linear(y.mean((2, 3)) @ self.v.new_ones(4, 5), self.v)


def test_what_a_users_module_calls_inside_is_compressed(monkeypatch):
    seen, net, plain = Seen(monkeypatch), Own(), Own()
    x = torch.rand(8, 4, 9, 9, generator=torch.Generator().manual_seed(2))
    compression = Interception(HOSVD(compressed="last:3", mode_ranks=(1,)), net)
    assert torch.equal(net(x, scale=2.0), plain(x, scale=2.0))  # and its arguments may be named
    net(x, scale=1.0).square().sum().backward()
    plain(x, scale=1.0).square().sum().backward()
    assert seen.asked[False] == 6
    assert 0 < compression.bytes < x.nbytes
    assert not torch.allclose(net.w.grad, plain.w.grad)  # control: it was approximated


class Pair(nn.Module):
    """Two layers that read one map, one after the other; in between the map may be changed in place."""

    def __init__(self, a, b, between=lambda x: x):
        super().__init__()
        self.a, self.b, self.between = a, b, between

    def forward(self, x):
        x = x * 1
        one = self.a(x).flatten(1).sum(1)
        return one + self.b(self.between(x)).flatten(1).square().sum(1)


PAIRS = {
    "two kernels": lambda: Pair(nn.Conv2d(4, 3, 3), nn.Conv2d(4, 2, 1)),
    "two strides": lambda: Pair(nn.Conv2d(4, 3, 3, 2), nn.Conv2d(4, 2, 3)),
    "padded unevenly, and not": lambda: Pair(nn.Conv2d(4, 3, 2, padding="same"), nn.Conv2d(4, 3, 3, padding=1)),
    "not padded, and unevenly": lambda: Pair(nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 3, 2, padding="same")),
    "a convolution and a linear layer": lambda: Pair(nn.Conv2d(4, 3, 3), nn.Linear(7, 3)),
    "changed in between": lambda: Pair(nn.Conv2d(4, 3, 3), nn.Conv2d(4, 3, 3), lambda x: x.mul_(torch.arange(7.0))),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # it copies, as we do
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("modifier", [SVD(epsilon=1 - 1e-9), HOSVD(epsilon=1 - 1e-9), ASI(epsilon=1 - 1e-9), GradientFilter()])
def test_layers_on_one_map_share_what_is_kept_only_where_it_is_the_same(pair, modifier):
    torch.manual_seed(0)
    net = PAIRS[pair]().double()
    x = torch.ones(8, 4, 7, 7, dtype=torch.float64) * torch.rand(8, 1, 1, 1, dtype=torch.float64)  # rank one
    alone = []
    for layer, given, loss in ((net.a, x, torch.sum), (net.b, net.between(x.clone()), lambda y: y.square().sum())):
        one = copy.deepcopy(layer)
        if isinstance(modifier, GradientFilter):
            Interception(modifier, one)
        loss(one(given)).backward()
        alone += [p.grad for p in one.parameters()]
    modifier.begin_task(net, 0)
    compression = Interception(modifier, net)
    net(x).sum().backward()
    assert all(torch.allclose(p.grad, g, rtol=1e-4, atol=1e-8) for p, g in zip(net.parameters(), alone, strict=True))
    assert compression.bytes > 0


def test_what_is_kept_of_a_map_is_kept_once(monkeypatch):
    seen = Seen(monkeypatch)
    net = Pair(nn.Conv2d(4, 3, 3), nn.Conv2d(4, 3, 1))
    Interception(HOSVD(), net)
    x = torch.rand(8, 4, 7, 7)
    net(x)
    assert seen.asked[False] == 1
    net.between = lambda x: x.clone()
    net(x)
    assert seen.asked[False] == 3  # control: two maps


def test_a_frozen_layer_does_not_hide_a_map_from_one_that_learns(monkeypatch):
    seen = Seen(monkeypatch)
    net = Pair(nn.Linear(7, 3), nn.Conv2d(4, 3, 3))
    compression = Interception(HOSVD(), net)
    for frozen, asked in ((net.a, 1), (net.b, 1), (net, 0)):
        net.requires_grad_(True)
        frozen.requires_grad_(False)
        seen.asked[False] = compression.bytes = 0
        net(torch.rand(8, 4, 7, 7))
        assert seen.asked[False] == asked
        assert (compression.bytes > 0) is bool(asked)


BAD = [
    ("finetune+hosvd", {"epsilon": 0}, "finetune+hosvd: epsilon must lie in (0, 1], got 0.0"),
    ("finetune+hosvd", {"epsilon": 1.5}, "epsilon must lie in (0, 1], got 1.5"),
    ("finetune+svd", {"mode_ranks": "4,0"}, "mode_ranks must be at least 1, got (4, 0)"),
    ("finetune+asi", {"epsilon": 1}, "epsilon must lie in (0, 1), got 1.0"),
    ("finetune+asi", {"activation_mb": -1}, "activation_mb must not be negative"),
    ("finetune+gf", {"radius": 0}, "radius must be at least 1, got 0"),
    ("finetune+checkpointing", {"segments": 0}, "segments must be at least 1, got 0"),
    *(
        ("finetune+hosvd", {"compressed": word}, f"compressed must be all or last:N, got {word!r}")
        for word in ("first:2", "last", "last:", "last:-1", "last:two", "2", "")
    ),
    ("finetune+hosvd", {"relu": "bits"}, "relu must be one of mask, plain, got 'bits'"),
    ("finetune+hosvd", {"factors": "qr"}, "factors must be one of gram, svd, got 'qr'"),
    ("finetune+hosvd", {"radius": 2}, "'radius' is not a setting of split-digits or finetune+hosvd"),
    ("finetune", {"epsilon": 0.5}, "'epsilon' is not a setting"),
    ("finetune+hosvdd", {}, "no modifier is called 'hosvdd'; did you mean 'hosvd'?"),
    ("finetune+", {}, "no modifier is called ''; there are asi, bits, checkpointing, gf, hosvd, svd"),
    ("finetune+hosvd+svd", {}, "no modifier is called 'hosvd+svd'"),
    ("finetuna+hosvd", {}, "did you mean 'finetune'?"),
    ("cacl+hosvd", {"energy_drop": 2}, "energy_drop must lie in [0, 1)"),
    ("lance+hosvd", {}, "lance: its 'relu' is a setting of every hosvd row; give it another name"),
]


@pytest.mark.parametrize(("method", "settings", "said"), BAD, ids=lambda value: str(value))
def test_settings_that_cannot_be_are_said_in_one_line(method, settings, said):
    with pytest.raises(UserError) as error:
        resolve("split-digits", "smoke", method, 1, overrides=settings)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


CLASHES = {
    "epsilon": (float, 0.5),
    "radius": (int, field(default_factory=int)),
    "relu": (str, None),  # no default
    "modifier": (int, field(default_factory=int)),
    "compression": (float, 1.0),
}


@pytest.mark.parametrize("name", CLASHES)
def test_a_setting_that_a_modifier_has_too_is_refused(name, own_methods):
    kind, default = CLASHES[name]
    body = {"__annotations__": {name: kind}, "__doc__": "Mine.", "name": "mine"}
    body |= {} if default is None else {name: default}
    register(dataclass(type("Mine", (Method,), body)))
    other = {"radius": "hosvd", "epsilon": "gf", "relu": "checkpointing"}.get(name)
    wrong = "gf" if name == "radius" else "hosvd"
    with pytest.raises(UserError, match=f"mine: its '{name}' is a setting of every {wrong} row; give it another name"):
        methods.get(f"mine+{wrong}")
    if other:
        assert methods.get(f"mine+{other}").name == f"mine+{other}"  # control


OWN = '''
from benchsuite import Method, register


@register
class Mine(Method):
    """It adds nothing."""
'''


def test_a_method_that_keeps_maps_in_a_form_of_its_own_takes_no_modifier():
    with pytest.raises(UserError, match="lance keeps activations in a form of its own; it takes no modifier"):
        make(method="lance+checkpointing")
    assert make(method="finetune+checkpointing")  # control


@pytest.mark.slow
def test_a_method_in_a_file_runs_under_a_modifier(tmp_path, monkeypatch, own_methods, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    words = [
        "run",
        "--protocol",
        "split-digits",
        "--tier",
        "smoke",
        *(w for s in ("tasks=2", "epochs=1", "train_per_class=16") for w in ("--set", s)),
    ]
    assert main([*words, "--method", "./mine.py+hosvd", "--set", "epsilon=0.7"]) == 0
    (record,) = store.read_all(tmp_path / "runs")
    assert record.job.method == "mine+hosvd"
    assert record.job.settings["epsilon"] == 0.7
    assert len(record.job.method_source) == 64
    assert record.memory.formula[0] > 0
    assert main(["leaderboard", "--protocol", "split-digits", "--tier", "smoke", "--no-run", "--output", "board"]) == 0
    assert "mine+hosvd" in capfd.readouterr().out
    assert main([*words, "--method", "./mine.py+hosvdd"]) == 2
    err = capfd.readouterr().err
    assert err.splitlines() == [err.strip()]
    assert "no modifier is called 'hosvdd'; did you mean 'hosvd'?" in err


@pytest.mark.parametrize("modifier", ["svd", "hosvd", "asi", "gf", "bits", "checkpointing"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_in_bfloat16_keeps_bfloat16(modifier, precision, monkeypatch):
    seen, watch = Seen(monkeypatch, MODIFIERS[modifier]), Watch()
    strategy, _ = learn(seen, watch, method=f"finetune+{modifier}", precision=precision, **SHORT)
    assert weights(strategy.model).dtype == torch.float32
    assert weights(strategy.model).isfinite().all()
    tensors = [t for kept in seen.kept if kept for t in getattr(kept, "tensors", None) or [kept.sums]]
    expected = torch.bfloat16 if precision == "bf16" else torch.float32  # the control
    assert {t.dtype for t in tensors} == (set() if modifier in ("bits", "checkpointing") else {expected})
    assert watch.memory["held"] > 0


def test_maps_in_bfloat16_are_decomposed_in_single_precision(monkeypatch):
    x = torch.rand(8, 4, 7, 7, generator=torch.Generator().manual_seed(2))
    for modifier in (HOSVD(), SVD(), HOSVD(factors="svd"), ASI()):
        with monkeypatch.context() as patch:
            modifier.begin_task(None, 0)
            seen, conv = Seen(patch, type(modifier)), nn.Conv2d(4, 3, 3)
            Interception(modifier, conv)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                conv(x)
        modifier.begin_task(None, 0)
        exact = type(modifier).keep(modifier, x.bfloat16(), 0, conv.weight, None)
        assert all(torch.equal(a, b) for a, b in zip(seen.kept[0].tensors, exact.tensors, strict=True))
        modifier.begin_task(None, 0)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # control: inside it would not be the same
            if not isinstance(modifier, ASI):
                low = type(modifier).keep(modifier, x.bfloat16(), 0, conv.weight, None)
                assert not torch.equal(low.core, exact.core)


def test_factors_that_are_carried_on_count_as_training_state():
    found = {}
    for name in ("finetune", "finetune+hosvd", "finetune+asi"):
        watch = Watch()
        strategy, _ = learn(watch, tasks=1, method=name, **SHORT)
        found[name] = watch.training_state_bytes
    bases = [u for layer in strategy.method.compression.modifier.bases.values() for u in layer]
    assert found["finetune+hosvd"] == found["finetune"]
    assert found["finetune+asi"] - found["finetune"] == sum(u.untyped_storage().nbytes() for u in bases) > 0


def test_asi_holds_to_its_budget_from_the_second_step_of_each_task():
    steps = []

    class Bytes(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            steps.append((strategy.experience.current_experience, strategy.method.compression.bytes))

    budgets = (0.004, 0.008, 0.05)
    means = []
    for budget in budgets:
        steps.clear()
        learn(Bytes(), Watch(), method="finetune+asi", activation_mb=budget, **SHORT)
        for task, group in itertools.groupby(steps, key=lambda step: step[0]):
            first, *rest = [found for _, found in group]
            assert first > 8000  # whole maps: the probe, and the control
            assert max(rest) <= budget * 1e6
            assert task in (0, 1)
        means.append(sum(rest) / len(rest))
    assert means[0] < means[1] < means[2]


def test_a_failing_step_leaves_no_modifier_behind():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("as it was told")

    net = nn.Sequential(nn.Conv2d(4, 3, 3), Fails())
    compression = Interception(HOSVD(), net)
    with pytest.raises(ValueError, match="as it was told"):
        net(torch.rand(2, 4, 5, 5))
    assert not torch.overrides._get_current_function_mode_stack()
    assert compression._inside is False
    del net[1]
    compression.bytes = 0
    net(torch.rand(2, 4, 5, 5))
    assert compression.bytes > 0  # control: and it works again


@pytest.mark.parametrize("name", MODIFIERS)
def test_dropout_draws_the_same_under_every_modifier(name):
    """A modifier draws from no generator but its own, so all that differs is gradients."""
    masks = {}
    for method in ("finetune", f"finetune+{name}"):
        strategy, _ = learn(method=method, **SHORT)
        masks[method] = [m.generator.get_state() for m in strategy.model.modules() if isinstance(m, Dropout)]
    assert all(torch.equal(a, b) for a, b in zip(*masks.values(), strict=True))
    assert masks["finetune"]
    fresh = torch.Generator().get_state()
    assert not torch.equal(masks["finetune"][0], fresh)  # control
