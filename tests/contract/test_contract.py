"""What every registered method must satisfy, whoever wrote it. Each claim stands beside a method that breaks it."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from avalanche.core import SupervisedPlugin

from benchsuite import records, runner
from benchsuite.artifact import Artifact
from benchsuite.data.batches import normalise
from benchsuite.data.stream import build_stream
from benchsuite.errors import UserError
from benchsuite.method import Method, methods, register
from benchsuite.protocol import protocols
from benchsuite.settings import field_types, recipe_of, resolve
from benchsuite.strategy import Strategy

T = 3
TINY = {"tasks": T, "train_per_class": 24, "test_per_class": 20, "epochs": 2, "batch_size": 16}
NAMES = list(methods.all())
SEQUENTIAL = [name for name in NAMES if not (methods.get(name).trains_jointly or methods.get(name).trains_old_heads)]
LASTING = [name for name in NAMES if methods.get(name).forgetting == "none"]
VARIANTS = [(name, {}) for name in NAMES] + [("cacl", {"storage": "smaller"}), ("cacl", {"growth": "fixed"})]
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 0.01},
    "momentum and decay": {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "adamw and decay": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
}

IMAGES = torch.randint(256, (32, 8, 8, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def job_of(name, seed=1, **settings):
    return resolve("split-digits", "smoke", name, seed, overrides=TINY | settings)


def run(job, results, *plugins, **kwargs):
    """`runner.run` with further plugins in its strategy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Strategy", lambda **k: Strategy(**k | {"plugins": [*k["plugins"], *plugins]}))
        return runner.run(job, results=results, **kwargs)


class Watcher(SupervisedPlugin):
    """After each task: the logits of the fixed images under every task so far, and all heads."""

    def __init__(self):
        super().__init__()
        self.logits, self.heads, self.artifacts = [], [], []

    @torch.no_grad()
    def after_training_exp(self, strategy, **kwargs):
        self.model = strategy.model.eval()
        x = normalise(IMAGES, (0.305,), (0.376,))
        self.logits.append([self.model(x, int(t)) for t in sorted(self.model.heads)])
        self.heads.append({t: [p.clone() for p in head.parameters()] for t, head in self.model.heads.items()})

    def drift(self):
        """Whether any logit of an old task changed after the task ended."""
        return any(
            not torch.equal(later[t], now[t])
            for i, now in enumerate(self.logits)
            for later in self.logits[i:]
            for t in range(i + 1)
        )

    def moved_heads(self):
        """Heads that changed while another task was learnt."""
        pairs = zip(self.heads, self.heads[1:], strict=False)
        return [t for now, later in pairs for t in now if not all(map(torch.equal, now[t], later[t]))]


class Evaluations(SupervisedPlugin):
    """Evaluates all tasks met so far after every epoch."""

    def __init__(self, job):
        super().__init__()
        protocol, recipe = protocols.get(job.protocol), recipe_of(job.settings)
        self.test = build_stream(protocol, recipe, job.seed, data_dir=None, device=torch.device("cpu")).test
        self.count = 0

    def after_training_epoch(self, strategy, **kwargs):
        self.count += 1
        strategy.eval(self.test[: max(strategy.experience.task_labels) + 1])


class Interrupted(SupervisedPlugin):
    """Stops a run once in the middle of each of its trainings."""

    def __init__(self):
        super().__init__()
        self.at = set()

    def after_training_iteration(self, strategy, **kwargs):
        task = strategy.experience.current_experience
        if strategy.clock.train_exp_iterations == 2 and task not in self.at:
            self.at.add(task)
            raise KeyboardInterrupt


def run_in_pieces(job, results):
    """A run that is interrupted in every task, and once more before its record is written; returns how often it stopped."""
    plugin, stops = Interrupted(), 0
    for _ in range(T + 1):
        try:
            run(job, results, plugin)
        except KeyboardInterrupt:
            stops += 1
        else:
            return stops
    raise AssertionError("never came to an end")


@dataclass
class Finished:
    record: records.RunRecord
    watcher: Watcher
    artifact: bytes
    path: object


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """finished(name, seed, **settings): that run, made once."""
    made = {}

    def get(name, seed=1, **settings):
        key = (name, seed, *sorted(settings.items()))
        if key not in made:
            job, results, watcher = job_of(name, seed, **settings), tmp_path_factory.mktemp("runs"), Watcher()
            record = run(job, results, watcher)
            path = results / job.folder / "artifact.safetensors"
            made[key] = Finished(record, watcher, path.read_bytes(), path)
        return made[key]

    return get


SERVE = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, benchsuite
torch.set_num_threads(1)
images = torch.load(sys.argv[1])
networks = [benchsuite.load(path) for path in sys.argv[3:]]
torch.save([[network(images, t) for t in range(3)] for network in networks], sys.argv[2])
"""


@pytest.fixture(scope="session")
def served(finished, tmp_path_factory):
    """Logits of every variant's artifact in a process that knows nothing but the file."""
    folder = tmp_path_factory.mktemp("served")
    torch.save(IMAGES, folder / "images.pt")
    paths = [finished(name, **settings).path for name, settings in VARIANTS]
    subprocess.run(
        [sys.executable, "-c", SERVE, folder / "images.pt", folder / "logits.pt", *paths],
        check=True,
        cwd=folder,  # not the source tree, whose folders would shadow the installed package
    )
    return dict(zip(map(str, VARIANTS), torch.load(folder / "logits.pt"), strict=True))


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_the_artifact_alone_predicts_as_the_live_model_for_every_task(name, settings, finished, served):
    live, other = finished(name, **settings).watcher.logits[-1], finished(name, seed=2, **settings).watcher.logits[-1]
    assert len(live) == T
    for t, logits in enumerate(served[str((name, settings))]):
        assert torch.allclose(logits, live[t], rtol=1e-4, atol=1e-5)
        assert torch.equal(logits.argmax(1), live[t].argmax(1))
        assert not torch.allclose(logits, other[t], rtol=1e-4, atol=1e-5)  # control: the logits tell networks apart


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_the_size_on_record_is_the_size_of_the_file(name, settings, finished):
    run = finished(name, **settings)
    stored = [parts for parts in run.record.stored if parts is not None]
    assert run.record.stored_bytes == sum(stored[-1].values()) == len(run.artifact) == run.path.stat().st_size
    for part in records.PARTS:
        sizes = [parts[part] for parts in stored]
        assert sizes == sorted(sizes), f"{part} shrank"
    assert Artifact.read(run.path).sizes() == stored[-1]


@pytest.mark.parametrize("name", NAMES)
def test_evaluating_in_the_middle_of_training_changes_nothing(name, finished, tmp_path):
    job = job_of(name)
    evaluations = Evaluations(job)
    record = run(job, tmp_path, evaluations)
    assert evaluations.count == len(record.iterations) * 2
    assert records.same_numbers(record, finished(name).record)
    assert (tmp_path / job.folder / "artifact.safetensors").read_bytes() == finished(name).artifact


class Shifted(Method):
    """Control: what it learns depends on how often it was evaluated."""

    def before_eval(self, strategy, **kwargs):
        self.evaluations = getattr(self, "evaluations", 0) + 1

    def before_backward(self, strategy, **kwargs):
        strategy.loss *= 1 + getattr(self, "evaluations", 0)


def test_a_method_that_evaluation_shifts_is_found_out(own_methods, tmp_path):
    register(Shifted)
    job = job_of("shifted", optimizer="sgd")
    plain, shifted = run(job, tmp_path / "a"), run(job, tmp_path / "b", Evaluations(job))
    assert plain.correct != shifted.correct or plain_bytes(job, tmp_path / "a") != plain_bytes(job, tmp_path / "b")


def plain_bytes(job, results):
    return (results / job.folder / "artifact.safetensors").read_bytes()


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_gives_the_same_record(name, reset, finished, tmp_path):
    job, whole = job_of(name, reset_optimizer=reset), finished(name, reset_optimizer=reset)
    assert run_in_pieces(job, tmp_path) == len(whole.record.iterations)
    assert records.same_numbers(records.read(tmp_path / job.folder / "record.json"), whole.record)
    assert plain_bytes(job, tmp_path) == whole.artifact


class Absentminded(Shifted):
    """Control: it keeps something that its checkpoint does not."""

    def state(self):
        return {}


def test_a_method_that_forgets_its_state_is_found_out(own_methods, tmp_path):
    register(Absentminded)
    job = job_of("absentminded", optimizer="sgd")
    run(job, tmp_path / "whole")
    run_in_pieces(job, tmp_path / "pieces")
    assert plain_bytes(job, tmp_path / "whole") != plain_bytes(job, tmp_path / "pieces")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_stops_before_its_record_is_written_only_writes_it(name, finished, tmp_path, monkeypatch):
    job = job_of(name)
    with monkeypatch.context() as patch:
        patch.setattr(records, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(job, tmp_path)
    epochs = []
    assert records.same_numbers(run(job, tmp_path, report=lambda e: epochs.append(e.epoch)), finished(name).record)
    assert not any(epochs)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_another_run(name, finished):
    one, other = finished(name), finished(name, seed=2)
    assert one.artifact != other.artifact
    assert not records.same_numbers(one.record, other.record)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", LASTING)
def test_old_logits_are_bit_identical_for_ever(name, optimizer, reset, finished):
    watcher = finished(name, epochs=1, reset_optimizer=reset, **OPTIMIZERS[optimizer]).watcher
    assert [len(row) for row in watcher.logits] == [1, 2, 3]
    assert not watcher.drift()


@dataclass
class GradientMask(Method):
    """Control: after the first task the backbone is "frozen" by zeroing its gradients, which freezes nothing in general."""

    name = "gradientmask"

    def after_backward(self, strategy, **kwargs):
        if strategy.experience.current_experience:
            for p in self.model.backbone.parameters():
                p.grad.zero_()


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
def test_a_method_that_only_masks_gradients_is_found_out(optimizer, reset, drifts, own_methods, tmp_path):
    register(GradientMask)
    watcher = Watcher()
    run(job_of("gradientmask", epochs=1, reset_optimizer=reset, **OPTIMIZERS[optimizer]), tmp_path, watcher)
    assert watcher.drift() is drifts


@pytest.mark.parametrize("optimizer", ["momentum and decay", "adamw and decay"])
@pytest.mark.parametrize("name", SEQUENTIAL)
def test_heads_of_other_tasks_stay_bit_identical(name, optimizer, finished):
    watcher = finished(name, epochs=1, reset_optimizer=False, **OPTIMIZERS[optimizer]).watcher
    assert watcher.moved_heads() == []
    assert watcher.heads[0].keys() == {"0"}


class PenaltyOnHeads(Method):
    """Control: a penalty over all parameters gives old heads a zero gradient in place of none."""

    def before_backward(self, strategy, **kwargs):
        strategy.loss += 1e-3 * sum(p.square().sum() for p in self.model.parameters())


def test_a_penalty_that_moves_old_heads_is_found_out(own_methods, tmp_path):
    register(PenaltyOnHeads)
    watcher = Watcher()
    run(job_of("penaltyonheads", epochs=1), tmp_path, watcher)
    assert watcher.moved_heads() == ["0", "0", "1"]


WRONG = [("no_such_field", "1"), ("lr", "fast"), ("lr", "nan"), ("lr", -1.0), ("dropout", 1.0), ("batch_size", 0)]
WRONG += [("optimizer", "adem"), ("reset_optimizer", "perhaps"), ("epochs", 1.5), ("tasks", 6), ("backbone", "vgg")]
WRONG += [("milestones", "3,2")]
CASES = [(name, *wrong) for name in NAMES for wrong in WRONG]
CASES += [(name, field, "?") for name in NAMES for field in field_types(methods.get(name))]  # "?" is of no type
CASES += [("cacl", "energy_drop", 1.0), ("cacl", "sparsity_weight", -0.1), ("cacl", "orthogonality_weight", -1)]


@pytest.mark.parametrize(("name", "field", "value"), CASES)
def test_wrong_settings_are_refused_by_name_before_data_is_loaded(name, field, value, monkeypatch):
    monkeypatch.setattr("benchsuite.data.stream.load", lambda *_, **__: pytest.fail("data was loaded"))
    with pytest.raises(UserError, match=field) as error:
        job_of(name, **{field: value})
    assert "\n" not in str(error.value)


def test_individual_has_a_model_for_each_task_and_shares_nothing(finished):
    run, single = finished("individual"), finished("finetune")
    networks = [
        [*run.watcher.model.backbone.models[str(t)].parameters(), *run.watcher.model.heads[str(t)].parameters()] for t in range(T)
    ]
    storages = [{p.untyped_storage().data_ptr() for p in network} for network in networks]
    assert len(set.union(*storages)) == sum(map(len, networks))
    first = [network[0] for network in networks]
    assert not torch.equal(first[0], first[1])
    assert run.record.stored[-1]["weights"] == T * single.record.stored[-1]["weights"]
    assert run.record.stored[-1]["heads"] == single.record.stored[-1]["heads"]


def test_the_references_are_one_method_on_one_task(finished):
    """Joint training, fine-tuning and an individual network: same weights, batches and dropout from the same seed."""
    single = finished("finetune", tasks=1)
    b = Artifact.read(single.path).tensors
    for name in ("joint", "individual"):
        other = finished(name, tasks=1)
        assert other.record.correct == single.record.correct
        a = {key.replace("models.0.", ""): tensor for key, tensor in Artifact.read(other.path).tensors.items()}
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    two = finished("joint", tasks=2), finished("finetune", tasks=2)  # control: on two tasks they differ
    assert two[0].artifact != two[1].artifact
    assert two[0].record.correct[-1] != two[1].record.correct[-1]
