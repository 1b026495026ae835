"""Every registered method keeps every rule of `benchsuite.checks.contract`. Each rule stands beside a method that breaks it."""

import os
import random
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from short_runs import quick_fits

from benchsuite.checks import contract
from benchsuite.checks.contract import (
    BATCHNORM,
    OPTIMIZERS,
    RULES,
    Broken,
    Interrupted,
    ShortRuns,
    T,
    Watcher,
    run,
    run_in_pieces,
)
from benchsuite.fields import field_types
from benchsuite.method import Method, forms, methods, register
from benchsuite.method.artifact import Artifact
from benchsuite.methods.packnet import PackNet
from benchsuite.nn.normalisation import BatchNormPolicy
from benchsuite.record import schema, store
from benchsuite.training.settings import Unsupported

NAMES = list(methods.all())
SEQUENTIAL = [name for name in NAMES if not (methods.get(name).trains_jointly or methods.get(name).trains_old_heads)]
LASTING = [name for name in NAMES if methods.get(name).forgetting == "none"]
SHORT = {"fresh_share": 0.2, "sigma_rate": 20.0, "exact_vectors": "both", "prune_at": 0.5, "energy_drop": 0.1}  # of CACL
SHORTS = [  # for CACL and its variants, each with the settings that it has
    ("cacl", SHORT),
    *((name, {k: v for k, v in SHORT.items() if k != "exact_vectors"}) for name in ("cacl-cp", "cacl-kronecker")),
    ("cacl-tucker", {k: v for k, v in SHORT.items() if k not in ("exact_vectors", "sigma_rate")}),
]
VARIANTS = [
    *SHORTS,
    ("cacl", {"storage": "smaller"}),
    ("cacl", {"growth": "fixed"}),
    ("cacl-tucker", {"core": "block"}),
    ("individual-svd", {"recovery": 0.5, "whiten": True}),
    *((name, {"width": 0.5}) for name in ("finetune", "individual", "packnet", "hat", "cacl-cp")),
]
SMALL = {
    **{"individual-cp": {"ratio": 0.02}, "lance": {"calibration_batches": 5}},  # fits of high rank, many batches take long
    "delta-svd": {"recovery": 0.5, "reference": "nearest"},  # one of two epochs after the cut
}
MIXING = ["agem", "er", "joint", "lwf"]  # one batch through several heads
REFUSES = {  # who cannot run under a policy of batch normalisation
    "per_task": MIXING,
    "frozen_after_first": [],
    "batch_stats": ["ewc", "mas"],  # they look at images one by one
    "shared": [name for name in LASTING if not name.startswith("individual")],
}
HEIRS = {name for name in NAMES if any(base in methods.all().values() for base in methods.get(name).__mro__[1:])}
CARRIED = {kind: {**settings, "epochs": 1, "reset_optimizer": False} for kind, settings in OPTIMIZERS.items()}
STEPS = [  # what moves a frozen parameter whose gradient is zero: momentum, moments, decay; plain steps of SGD do not
    *(CARRIED[kind] for kind in ("momentum and decay", "adam", "adamw and decay")),
    {**CARRIED["momentum and decay"], "reset_optimizer": True},
]
POLICIES = [{**BATCHNORM, "batchnorm": policy} for policy in get_args(BatchNormPolicy) if policy != "per_task"]


def unsupported_reason(name, settings):
    """Whether a method refuses these settings; that it says so is tested below."""
    return "backbone" in settings and name in REFUSES[settings.get("batchnorm", "per_task")]


def cases(rule):
    """The methods that a rule is for, and under which settings. `benchsuite check` tries all cases of a rule; for the built-in
    methods those are left out that cannot reveal a fault which another case does not."""
    for name in NAMES:
        if not rule.unless(methods.get(name)):
            settings, third = list(rule.cases), POLICIES[NAMES.index(name) % len(POLICIES)]
            if rule in (contract.resumed, contract.same_seed):  # a test below stops runs of the default case
                settings = [CARRIED["adamw and decay"]]
            elif rule is contract.evaluation and name in HEIRS:  # it inherits its evaluation hooks
                settings = settings[:1]
            elif rule is contract.lasting:
                settings = [*STEPS, *(case for case in settings if "batchnorm" in case or "backbone" in case)]
                settings += [third] if name in HEIRS else POLICIES
            elif rule in (contract.finishes, contract.artifact_alone):  # a third of the methods under each
                settings.append(third)
            if name.startswith("individual-"):  # what cuts individual networks leaves normalisation and isolation to `individual`
                settings = [case for case in settings if "batchnorm" not in case]
                settings = settings[:1] if rule is contract.lasting else settings
            trains = rule not in (contract.settings_checked, contract.says_why)
            small = SMALL.get(name, {}) if trains else {}
            for case in settings:
                if not unsupported_reason(name, case):
                    yield name, {**case, **small}
    if rule in (contract.finishes, contract.artifact_alone, contract.size):
        yield from VARIANTS
    if rule in (contract.resumed, contract.lasting, contract.evaluation):
        yield from SHORTS


CASES = [  # rule by rule: all files are there when the first of them is served
    pytest.param(
        rule,
        name,
        settings,
        id=f"{rule.function.__name__}-{name}-{contract.in_words(settings) or 'default'}",
        marks=[pytest.mark.slow] * ("backbone" in settings),
    )
    for rule in RULES
    for name, settings in cases(rule)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where the plain runs of all registered methods are made once."""
    with pytest.MonkeyPatch.context() as patch:
        quick_fits(patch)
        yield ShortRuns(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def own_bench(tmp_path, own_methods):
    """For methods that a test registers."""
    return ShortRuns(tmp_path)


def artifact_of(job, results):
    return (results / job.folder / "artifact.safetensors").read_bytes()


@pytest.mark.parametrize(("rule", "name", "settings"), CASES)
def test_a_registered_method_keeps_the_rule(rule, name, settings, runs, monkeypatch):
    if set(settings) - set(SMALL.get(name, {})):
        monkeypatch.setattr(Method, "forms", ("fp32",))  # the rule of storage forms is for runs with a method's defaults
    rule(runs, name, **settings)


def test_the_rules_meet_the_methods_that_they_are_for():
    met = {rule: {case.values[1] for case in CASES if case.values[0] is rule} for rule in RULES}
    fewer = (contract.heads, contract.lasting, contract.counted)
    assert all(names == set(NAMES) for rule, names in met.items() if rule not in fewer)
    assert met[contract.counted] == {name for name in NAMES if not methods.get(name).trains_jointly}
    assert met[contract.heads] == set(SEQUENTIAL)
    assert met[contract.lasting] == set(LASTING)
    settings = [case.values[2] for case in CASES if case.values[:2] == (contract.lasting, "cacl")]
    assert len(settings) == len(STEPS) + 4
    assert all(case in contract.lasting.cases for case in STEPS)
    assert all(CARRIED[kind] in contract.heads.cases for kind in ("momentum and decay", "adamw and decay"))
    assert BATCHNORM in settings
    assert not any(unsupported_reason("individual", case) for case in contract.lasting.cases)  # also with batchnorm=shared


@pytest.mark.parametrize("name", NAMES)
def test_the_logits_tell_networks_apart(name, runs):
    settings = SMALL.get(name, {})
    one, other = runs.served(runs.finished(name, **settings)), runs.finished(name, seed=2, **settings).watcher.logits[-1]
    assert len(one) == T
    assert not any(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_stops_in_every_task_and_before_its_record_is_written_gives_the_same_record(name, runs, tmp_path, monkeypatch):
    """After the last stop it trains nothing. It is a second run, so this shows that the same seed gives the same record, too."""
    settings, stops, epochs = SMALL.get(name, {}), Interrupted(), []
    job = runs.job(name, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt) as last:
            run_in_pieces(job, tmp_path, stops)
    assert not isinstance(last.value, contract.Stop)
    assert len(stops.at) == len(runs.finished(name, **settings).record.iterations)
    record = run(job, tmp_path, report=lambda e: epochs.append(e.epoch))
    assert schema.same_numbers(record, runs.finished(name, **settings).record)
    assert not any(epochs)


class Stumbles(Method):
    """It breaks in its second task."""

    def before_backward(self, strategy, **kwargs):
        if strategy.experience.current_experience == 1:
            raise RuntimeError("as it was told")


class Grows(Method):
    """Its artifact is a byte larger each time it is asked for."""

    def artifact(self):
        self.asked = getattr(self, "asked", 0) + 1
        artifact = super().artifact()
        artifact.tensors["other/growing"] = torch.zeros(self.asked, dtype=torch.uint8)
        return artifact


class Shrinks(Method):
    """It stores less and less."""

    def artifact(self):
        artifact = super().artifact()
        artifact.tensors["masks/shrinking"] = torch.zeros(9 - len(self.model.heads), dtype=torch.uint8)
        return artifact


class Loud(Method):
    """One of its numbers is too large for fp16."""

    def artifact(self):
        artifact = super().artifact()
        artifact.tensors["other/loud"] = torch.tensor([1e6])
        return artifact


class Alien(Method):
    """What it stores has other numbers than what was evaluated."""

    def artifact(self):
        artifact = super().artifact()
        artifact.tensors |= {name: -t for name, t in artifact.tensors.items() if name.startswith("heads/")}
        return artifact


class Shifted(Method):
    """What it learns depends on how often it was evaluated."""

    def before_eval(self, strategy, **kwargs):
        self.evaluations = getattr(self, "evaluations", 0) + 1

    def before_backward(self, strategy, **kwargs):
        strategy.loss *= 1 + getattr(self, "evaluations", 0)


class Absentminded(Shifted):
    """It keeps something that its checkpoint does not."""

    def state(self):
        return {}


class Random(Method):
    """It draws from nobody's generator."""

    def after_training_exp(self, strategy, **kwargs):
        with torch.no_grad():
            self.model.backbone.conv1.bias[0] = int.from_bytes(os.urandom(4), "big") / 2**32


class Noisy(Method):
    """It draws in every step, from a generator that goes on."""

    def before_backward(self, strategy, **kwargs):
        strategy.loss *= 1 + torch.rand((), generator=self.generator("noise"))


class Zeroed(Method):
    """Nothing is left of what it learns."""

    @torch.no_grad()
    def after_training_exp(self, strategy, **kwargs):
        for p in self.model.parameters():
            p.zero_()


class PenaltyOnHeads(Method):
    """A penalty over all parameters gives old heads a zero gradient in place of none."""

    def before_backward(self, strategy, **kwargs):
        strategy.loss += 1e-3 * sum(p.square().sum() for p in self.model.parameters())


@dataclass
class GradientMask(Method):
    """After the first task the backbone is "frozen" by zeroing its gradients, which freezes nothing in general."""

    def after_backward(self, strategy, **kwargs):
        if strategy.experience.current_experience:
            for p in self.model.backbone.parameters():
                p.grad.zero_()


@dataclass
class SharedNorm(PackNet):
    """PackNet without its refusal of batchnorm=shared."""

    def unsupported_reason(self, recipe):
        return None


@dataclass
class Nameless(Method):
    """It does not say which value is wrong."""

    share: float = 0.5

    def __post_init__(self):
        if self.share <= 0:
            raise ValueError("must be positive")


@dataclass
class Fragile(Nameless):
    """It breaks on a wrong value."""

    def __post_init__(self):
        self.ratio = 1 / self.share


@dataclass
class Anything(Method):
    """It takes any value."""

    share: float | str | None = 0.5


@dataclass
class Careless(Method):
    """It draws from a global generator, where it is told to."""

    whose: Literal["Python", "NumPy", "PyTorch", "PyTorch at the start"] = "Python"

    def prepare(self, model):
        if self.whose.endswith("start"):
            torch.nn.init.normal_(model.backbone.conv1.weight)
        return model

    def before_backward(self, strategy, **kwargs):
        draws = {"Python": random.random, "NumPy": np.random.random, "PyTorch": lambda: float(torch.rand(()))}
        strategy.loss *= 1 + draws.get(self.whose, lambda: 0)()


class Cheat(Method):
    """It learns from the test images that it is evaluated on."""

    def after_eval_iteration(self, strategy, **kwargs):
        self.seen = strategy.mb_x.mean()

    def before_backward(self, strategy, **kwargs):
        strategy.loss *= 1 + getattr(self, "seen", 0)


class Prophet(Method):
    """It looks at the images of the next task."""

    def before_backward(self, strategy, **kwargs):
        for later in strategy.experience.origin_stream[strategy.experience.current_experience + 1 :]:
            strategy.loss *= 1 + later.images.pixels.float().mean()


class Counts(Method):
    """It asks the stream how many tasks will come."""

    def before_backward(self, strategy, **kwargs):
        strategy.loss /= len(strategy.experience.origin_stream)


class Twice(Method):
    """It stores images as a tensor, and declares them."""

    def after_training_exp(self, strategy, **kwargs):
        kept = strategy.experience.images.pixels[:5]
        self.memory = [*getattr(self, "memory", []), kept.permute(0, 3, 1, 2).float() / 255]
        self.memory_bytes += kept.numel()


class Hoards(Twice):
    """It stores images where nobody counts them."""

    def after_training_exp(self, strategy, **kwargs):
        self.memory = [*getattr(self, "memory", []), strategy.experience.images.pixels.numpy()]

    def state(self):
        return {"memory": [torch.from_numpy(part) for part in self.memory]}

    def load_state(self, state):
        self.memory = [part.numpy() for part in state["memory"]]


class Asleep(Method):
    """It looks at the network in eval mode, and leaves it there."""

    def after_update(self, strategy, **kwargs):
        self.model.eval()


class BatchDependent(Method):
    """It breaks where there is batch normalisation."""

    def before_backward(self, strategy, **kwargs):
        if any(isinstance(module, torch.nn.BatchNorm2d) for module in self.model.modules()):
            raise RuntimeError("what is this layer?")


class Mute(Method):
    """It does not say why it cannot run."""

    def unsupported_reason(self, recipe):
        return recipe.backbone == "resnet18"


CONTROLS = [
    (contract.finishes, Stumbles, {}, "the run failed: RuntimeError: as it was told"),
    (contract.size, Grows, {}, r"bytes on record, \d+ in the file"),
    (contract.size, Shrinks, {}, "the masks went from 8 to 7 to 6 bytes"),
    (contract.storage_forms, Loud, {}, r"not stored in fp16, int8, int6, int4: other/loud holds numbers that are .* above 65504"),
    (contract.storage_forms, Alien, {}, "other answers than the run"),
    (contract.evaluation, Shifted, {"optimizer": "sgd"}, "differ in .*; evaluation hooks"),
    (contract.resumed, Absentminded, {"optimizer": "sgd"}, r"differ in .*artifact_sha256, forms; .* state\(\)"),
    (contract.same_seed, Random, {}, r"two runs with the same seed end in different networks; .*self\.generator"),
    *(
        (
            contract.same_seed,
            Careless,
            {"whose": whose, "epochs": 1},
            f"depends on {whose.partition(' ')[0]}'s global random generator; "
            r"draw with generator=self\.generator",
        )
        for whose in get_args(field_types(Careless)["whose"])
    ),
    (contract.same_seed, Cheat, {"epochs": 1}, "depends on the test images; hooks of an evaluation"),
    (contract.same_seed, Prophet, {"epochs": 1}, "depends on the tasks that follow; learn from strategy.experience alone"),
    (contract.same_seed, Counts, {"epochs": 1}, r"depends on the tasks that follow; .*ask self\.n_tasks"),
    (contract.counted, Twice, {"epochs": 1}, r"the training images in self\.memory count twice; .* leave them out of .* \(320\)"),
    (
        contract.counted,
        Hoards,
        {"epochs": 1},
        r"self\.memory holds what is not counted \(3072 bytes.*, memory_bytes is 0\); keep it as",
    ),
    (contract.awake, Asleep, {"epochs": 1}, r"after a step of task 1 .* eval mode.*`with evaluating\(self\.model\):`"),
    (contract.resumed, Random, {}, r"differ in .*artifact_sha256"),
    (contract.other_seed, Zeroed, {}, "seeds 1 and 2 end in the same weights"),
    (contract.heads, PenaltyOnHeads, {"epochs": 1}, "the head of task 1 changed while another"),
    (contract.lasting, GradientMask, OPTIMIZERS["momentum and decay"], r"task 1 changed while task 2 .*self\.guard\.freeze"),
    (contract.lasting, SharedNorm, {**BATCHNORM, "batchnorm": "shared"}, "task 1 changed while task 2"),
    (contract.settings_checked, Nameless, {}, "share=0 is refused, but its name is not given"),
    (contract.settings_checked, Fragile, {}, "share=0 raises ZeroDivisionError"),
    (contract.says_why, Mute, {}, "returned False"),
]


@pytest.mark.parametrize(("rule", "cls", "settings", "said"), CONTROLS)
@pytest.mark.slow
def test_a_method_that_breaks_the_rule_is_found_out(rule, cls, settings, said, own_bench):
    register(cls)
    with pytest.raises(Broken, match=said) as error:
        rule(own_bench, cls.name, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda scales, bits: torch.full_like(scales, 0.01, dtype=torch.float32), "off by more than half a step"),
        (lambda scales, bits: scales.float() / (2**bits - 1), "off by more than half a step"),
    ],
)
def test_a_form_without_its_scales_is_found_out(spoil, said, runs, monkeypatch):
    contract.storage_forms(runs, "finetune")
    monkeypatch.setattr(forms, "_steps", spoil)
    with pytest.raises(Broken, match=said):
        contract.storage_forms(runs, "finetune")


HIDDEN = """
from benchsuite import Method, register


@register
class Hidden(Method):
    def prepare(self, model):
        model.backbone.register_forward_hook(lambda module, inputs, output: 2 * output)
        return model
"""


def test_a_method_that_keeps_something_from_its_artifact_is_found_out(own_bench, forked_serving, tmp_path):
    (tmp_path / "hidden.py").write_text(HIDDEN)
    methods.load_file(tmp_path / "hidden.py")
    register(Shrinks)  # which no other process knows
    for name in ("hidden", "shrinks"):
        own_bench.finished(name)
    with pytest.raises(Broken, match=r"the artifact gives other logits for task 1; artifact\(\) must hold everything"):
        contract.artifact_alone(own_bench, "hidden")
    with pytest.raises(Broken, match=r"the artifact cannot be served: .*the method 'shrinks' is not known here; import the file"):
        contract.artifact_alone(own_bench, "shrinks")


HEAVY = """
from importlib import import_module
from benchsuite import Method, register

halted = []
for module in ("strategy", "runner", "stream"):
    try:
        import_module(f"benchsuite.training.{module}")
    except ImportError as error:
        halted.append(str(error))
if halted:
    raise ImportError(", ".join(halted))


@register
class Heavy(Method):
    pass
"""


def test_a_method_that_cannot_be_served_without_what_trains_is_found_out(own_bench, forked_serving, tmp_path):
    (tmp_path / "heavy.py").write_text(HEAVY)
    methods.load_file(tmp_path / "heavy.py")
    halted = ", ".join(rf"import of benchsuite.training.{module} halted\b[^,]*" for module in ("strategy", "runner", "stream"))
    with pytest.raises(Broken, match=rf"heavy.py: cannot be imported: ImportError: {halted}.* code for training"):
        contract.artifact_alone(own_bench, "heavy")


def test_every_rule_has_a_method_that_breaks_it():
    assert {rule for rule, *_ in CONTROLS} | {contract.artifact_alone} == set(RULES)


@pytest.mark.parametrize(
    ("optimizer", "reset", "drifts"),
    [
        ("sgd", False, False),
        ("momentum and decay", False, True),
        ("momentum and decay", True, True),
        ("adam", True, False),
        ("adam", False, True),
        ("adamw and decay", True, True),
    ],
)
def test_a_method_that_only_masks_gradients_is_found_out(optimizer, reset, drifts, own_bench):
    register(GradientMask)
    settings = {"epochs": 1, "reset_optimizer": reset, **OPTIMIZERS[optimizer]}
    assert bool(own_bench.finished("gradientmask", **settings).watcher.drift()) is drifts
    if drifts:
        with pytest.raises(Broken):
            contract.lasting(own_bench, "gradientmask", **settings)
    else:
        contract.lasting(own_bench, "gradientmask", **settings)


def test_a_method_that_draws_in_every_step_may_be_interrupted(own_bench):
    register(Noisy)
    contract.resumed(own_bench, "noisy", epochs=1)


def test_each_head_that_a_penalty_moves_is_found_out(own_bench):
    register(PenaltyOnHeads)
    assert own_bench.finished("penaltyonheads", epochs=1).watcher.moved_heads() == ["0", "0", "1"]


def test_what_a_method_forgets_shows_in_its_artifact(own_bench, tmp_path):
    register(Absentminded)
    job = own_bench.job("absentminded", optimizer="sgd")
    run(job, tmp_path / "whole", Watcher())
    stops = Interrupted()
    run_in_pieces(job, tmp_path / "pieces", stops)
    assert len(stops.at) == T
    assert artifact_of(job, tmp_path / "whole") != artifact_of(job, tmp_path / "pieces")


RECIPE = contract.wrong_values(Method)  # the same for every method
WRONG = [(name, *wrong) for name in NAMES for wrong in contract.wrong_values(methods.get(name)) if wrong not in RECIPE]
WRONG += [("finetune", *wrong) for wrong in RECIPE]
WRONG += [("cacl", "energy_drop", 1.0), ("cacl", "sparsity_weight", -0.1), ("cacl", "orthogonality_weight", -1)]


@pytest.mark.parametrize(("name", "field", "value"), WRONG)
def test_wrong_settings_are_refused_by_name_before_data_is_loaded(name, field, value, runs, monkeypatch):
    monkeypatch.setattr("benchsuite.data.sets.load", lambda *_, **__: pytest.fail("data was loaded"))
    contract.refused(runs, name, field, value)


def test_every_field_of_every_method_meets_a_wrong_value():
    assert {(name, field) for name in NAMES for field in field_types(methods.get(name))} <= {wrong[:2] for wrong in WRONG}


def test_a_field_that_takes_anything_is_found_out(own_bench):
    register(Anything)
    assert ("share", "?") not in contract.wrong_values(Anything)  # a text may be what it wants
    with pytest.raises(Broken, match=r"share='\?' is accepted; give the field a type"):
        contract.refused(own_bench, "anything", "share", "?")


@pytest.mark.parametrize(("policy", "name"), [(policy, name) for policy, refusing in REFUSES.items() for name in refusing])
def test_a_method_that_does_not_fit_says_why_and_what_to_use(policy, name, runs):
    with pytest.raises(
        Unsupported, match=f"{name} cannot run like this: .*batchnorm={policy}.*; use (another policy|batchnorm=)"
    ):
        runs.job(name, **{**BATCHNORM, "batchnorm": policy})


def test_a_check_names_the_policies_that_do_not_fit(runs):
    for name in NAMES:
        found = {policy for policy in REFUSES if any(f"batchnorm={policy}: " in note for note in contract.says_why(runs, name))}
        assert found == {policy for policy, refusing in REFUSES.items() if name in refusing}
    assert set(REFUSES) == set(get_args(BatchNormPolicy))


def test_a_check_ends_with_a_method_that_does_not_get_through_a_run(own_bench):
    register(Stumbles)
    (outcome,) = contract.check(own_bench, "stumbles")
    assert outcome.holds is False
    assert outcome.notes == ["the run failed: RuntimeError: as it was told; fix that first"]


def test_a_method_that_breaks_with_batch_normalisation_alone_is_told_how_to_refuse_it(own_bench):
    register(BatchDependent)
    outcome = contract.judge(contract.finishes, own_bench, "batchdependent")
    assert outcome.holds is False
    (note,) = outcome.notes
    assert "RuntimeError: what is this layer?" in note
    assert "or let unsupported_reason(self, recipe) say why it cannot learn with batch normalisation (with backbone=" in note
    register(Stumbles)  # control: it breaks without, too
    (note,) = contract.judge(contract.finishes, own_bench, "stumbles").notes
    assert "unsupported_reason" not in note


REMEMBERS = """
import torch
from benchsuite import Method, register

ANCHORS = {}


@register
class Remembers(Method):
    anchors = {}

    def before_backward(self, strategy, **kwargs):
        for name, p in self.model.backbone.named_parameters() if strategy.experience.current_experience else ():
            strategy.loss += (p - PLACE[name]).square().sum()

    def after_training_exp(self, strategy, **kwargs):
        for name, p in self.model.backbone.named_parameters():
            PLACE[name] = p.detach().clone()
"""


@pytest.mark.parametrize("place", ["ANCHORS", "self.anchors"])
def test_what_a_method_keeps_outside_of_its_attributes_is_missed_after_an_interruption(place, own_bench, tmp_path):
    (tmp_path / "remembers.py").write_text(REMEMBERS.replace("PLACE", place))
    methods.load_file(tmp_path / "remembers.py")
    contract.same_seed(own_bench, "remembers", epochs=1)  # as long as the process lives
    said = (
        r"resumed, the run failed: KeyError: 'conv1.weight', at line 14 of remembers.py.*not in variables of the module or class"
    )
    with pytest.raises(Broken, match=said):
        contract.resumed(own_bench, "remembers", epochs=1)


class Raises(Method):
    """It breaks where it is asked whether it can run."""

    def unsupported_reason(self, recipe):
        return str(1 / (recipe.backbone != "resnet18"))[:0] or None


def test_what_breaks_outside_a_run_is_said_too(own_bench):
    register(Raises)
    outcome = contract.judge(contract.says_why, own_bench, "raises")
    assert outcome.holds is False
    assert outcome.notes == ["it raises ZeroDivisionError: division by zero"]


def test_individual_has_a_model_for_each_task_and_shares_nothing(runs):
    run, single = runs.finished("individual"), runs.finished("finetune")
    networks = [
        [*run.watcher.model.backbone.models[str(t)].parameters(), *run.watcher.model.heads[str(t)].parameters()] for t in range(T)
    ]
    storages = [{p.untyped_storage().data_ptr() for p in network} for network in networks]
    assert len(set.union(*storages)) == sum(map(len, networks))
    first = [network[0] for network in networks]
    assert not torch.equal(first[0], first[1])
    assert run.record.stored[-1].weights == T * single.record.stored[-1].weights
    assert run.record.stored[-1].heads == single.record.stored[-1].heads


def test_the_references_are_one_method_on_one_task(runs):
    """Joint training, fine-tuning and an individual network: same weights, batches and dropout from the same seed."""
    single = runs.finished("finetune", tasks=1)
    b = Artifact.read(single.path).tensors
    for name in ("joint", "individual"):
        other = runs.finished(name, tasks=1)
        assert other.record.correct == single.record.correct
        a = {key.replace("models.0.", ""): tensor for key, tensor in Artifact.read(other.path).tensors.items()}
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    two = runs.finished("joint", tasks=2), runs.finished("finetune", tasks=2)  # control: on two tasks they differ
    assert two[0].path.read_bytes() != two[1].path.read_bytes()
    assert two[0].record.correct[-1] != two[1].record.correct[-1]
