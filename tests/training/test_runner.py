"""One run: killed, contested, diverging, or met by files that are not what they should be."""

import contextlib
import errno
import io
import json
import multiprocessing
import os
import pickle
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchsuite import files
from benchsuite.errors import UserError
from benchsuite.method import Method, methods, register
from benchsuite.method.artifact import Artifact
from benchsuite.nn.images import normalise
from benchsuite.nn.multihead import MultiHead
from benchsuite.protocol import protocols
from benchsuite.record import schema, store
from benchsuite.training.accounting import macs
from benchsuite.training.checkpoint import is_damaged
from benchsuite.training.events import Note
from benchsuite.training.runner import RunFailed, identify, run
from benchsuite.training.settings import recipe_of, resolve
from benchsuite.training.stream import build_stream

TINY = {"tasks": 4, "train_per_class": 24, "test_per_class": 20, "epochs": 2, "batch_size": 16}


def job_of(name="finetune", seed=1, **settings):
    return resolve("split-digits", "smoke", name, seed, overrides=TINY | settings)


class OtherProcess:
    """A process that runs a job; it stands still at every event until it is told to go on."""

    def start(self, job, results):
        self.pipe, theirs = multiprocessing.Pipe()
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # newer Pythons warn of forks beside threads
            self.process = multiprocessing.get_context("fork").Process(target=self.drive, args=(theirs, job, results))
            self.process.start()
        theirs.close()

    @staticmethod
    def drive(pipe, job, results):
        def report(event):
            pipe.send((event.stage, event.epoch))
            pipe.recv()

        run(job, results=results, report=report)
        pipe.send("done")

    def go_on(self):
        self.pipe.send(None)

    def until(self, event):
        """Let it run until it stands at this event, (stage, epoch) or "done"."""
        while self.pipe.recv() != event:
            self.go_on()


@pytest.fixture
def other_process():
    other = OtherProcess()
    yield other
    other.process.kill()
    other.process.join()
    other.process.close()
    other.pipe.close()


@pytest.mark.slow
def test_two_processes_share_one_run(other_process, tmp_path):
    job, mine, events = job_of("cacl"), [], []
    other_process.start(job, tmp_path)
    other_process.until((1, 1))
    waiting = threading.Thread(target=lambda: mine.append(run(job, results=tmp_path, report=events.append)))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    said = [Note(f"{job}: is running in another process; waiting for it")]
    assert events == said
    other_process.go_on()
    other_process.until("done")
    waiting.join(60)
    assert not waiting.is_alive()
    assert events == said
    (record,) = mine
    folder = tmp_path / job.folder
    assert record == store.read(folder / "record.json")
    assert schema.same_numbers(record, run(job, results=tmp_path / "alone"))
    assert sorted(p.name for p in folder.iterdir()) == ["artifact.safetensors", "record.json"]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(other_process, tmp_path):
    job = job_of("cacl")
    folder = tmp_path / job.folder
    other_process.start(job, tmp_path)
    other_process.until((2, 1))  # in the middle of the third task
    other_process.process.kill()
    other_process.process.join()
    assert other_process.process.exitcode == -9
    assert (folder / "checkpoint.pt").exists()
    assert not (folder / "record.json").exists()
    events = []
    record = run(job, results=tmp_path, report=events.append)
    assert [(e.stage, e.epoch) for e in events] == [(2, 0), (2, 1), (2, 2), (3, 1), (3, 2)]
    whole = run(job, results=tmp_path / "whole")
    assert schema.same_numbers(record, whole)
    artifacts = [(results / job.folder / "artifact.safetensors").read_bytes() for results in (tmp_path, tmp_path / "whole")]
    assert artifacts[0] == artifacts[1]
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize("method", ["cacl", "packnet", "hat", "agem", "ewc"])
@pytest.mark.slow
def test_the_first_tasks_alone_are_the_beginning_of_the_whole_sequence(method, tmp_path):
    """What tuning and a first look rely on: a method that shares something out does so for the whole sequence."""
    lite = {"train_per_class": 16, "test_per_class": 20, "epochs": 2, "batch_size": 16}
    whole, first = (
        run(resolve("split-digits", "smoke", method, 1, overrides=lite | tasks), results=tmp_path / str(len(tasks)))
        for tasks in ({}, {"tasks": 2})
    )
    assert [row[:2] for row in whole.correct[:2]] == first.correct
    assert len(whole.correct) == 5
    weights = [[stored.weights for stored in record.stored] for record in (whole, first)]
    assert weights[0][:2] == weights[1]


def test_a_loss_that_overflows_is_a_failure_and_no_result(tmp_path):
    job = job_of(lr=1e6, optimizer="sgd")
    with pytest.raises(RunFailed, match="task 1, epoch 1"):
        run(job, results=tmp_path)
    assert {p.name for p in (tmp_path / job.folder).iterdir()} == {"failure.json"}


class Fragile(Method):
    """Its loss is not a number in the second epoch of the second task, while `broken`."""

    broken = True

    def before_backward(self, strategy, **kwargs):
        if self.broken and strategy.experience.current_experience == 1 and strategy.clock.train_exp_epochs == 1:
            strategy.loss *= float("nan")


def test_a_run_that_breaks_in_its_first_step_leaves_nothing_behind_for_the_next(own_methods, tmp_path):
    """What a run measures with hooks of the process must end with the run."""

    class Breaks(Method):
        def before_backward(self, strategy, **kwargs):
            raise RuntimeError("at once")

        def prepare(self, model):
            model.backbone.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("at once")))
            return model

    register(Breaks)
    with pytest.raises(RunFailed, match="at once"):
        run(job_of("breaks"), results=tmp_path)
    record = run(job_of("ewc", tasks=2), results=tmp_path)  # its gradients image by image allow no such hook
    assert record.activation_bytes > 0


def test_a_method_that_prepares_no_network_is_told_so(own_methods, tmp_path):
    class Forgetful(Method):
        def prepare(self, model):
            model.eval()

    register(Forgetful)
    with pytest.raises(UserError, match=r"prepare\(\) of forgetful must return the network, not NoneType"):
        run(job_of("forgetful"), results=tmp_path)


def test_logits_that_overflow_in_the_last_step_are_a_failure_too(own_methods, tmp_path):
    """One step a task: every loss that is looked at is finite, the logits that the step leads to are not."""

    @register
    class Leaps(Method):
        def after_update(self, strategy, **kwargs):
            for parameter in self.model.parameters():
                parameter.data *= 1e20

    job = job_of("leaps", epochs=1, batch_size=1000)
    with pytest.raises(RunFailed, match="no longer finite numbers after task 1"):
        run(job, results=tmp_path)
    assert not (tmp_path / job.folder / "record.json").exists()


def test_the_record_of_another_run_is_refused(tmp_path):
    one, two = job_of(seed=1), job_of(seed=2)
    record = run(one, results=tmp_path)
    (tmp_path / two.folder).mkdir(parents=True)
    store.write(record, tmp_path / two.folder / "record.json")
    with pytest.raises(UserError, match="holds the record of another run"):
        run(two, results=tmp_path)
    assert run(one, results=tmp_path) == record


def test_a_checkpoint_made_from_other_images_is_refused(tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    def stop(event):
        if event.stage == 1:
            raise Stop

    job = job_of()
    with pytest.raises(Stop):
        run(job, results=tmp_path, report=stop)
    path = tmp_path / job.folder / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["made_with"]["images"]["digits"] = "0" * 64
    torch.save(content, path)
    with pytest.raises(UserError, match="was made from other images"):
        run(job, results=tmp_path)


@pytest.mark.parametrize("changed", [{"lr": 0.5}, {"seed": 2}], ids=str)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(changed, tmp_path):
    def stop(event):
        if event.stage == 1:
            raise KeyboardInterrupt

    one, other = job_of(), job_of(**changed)
    for job in (one, other):
        with pytest.raises(KeyboardInterrupt):
            run(job, results=tmp_path, report=stop)
    path = tmp_path / one.folder / "checkpoint.pt"
    content = (tmp_path / other.folder / "checkpoint.pt").read_bytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"belongs to another configuration or seed; delete it"):
        run(one, results=tmp_path)
    assert path.read_bytes() == content
    run(other, results=tmp_path)  # control: in its own place it is gone on from


def test_diagnostics_that_are_no_numbers_are_a_failure_that_keeps_what_was_learnt(own_methods, tmp_path, monkeypatch):
    class Vague(Method):
        kappa = 1.0

        def after_training_exp(self, strategy, **kwargs):
            self.kappa = float("nan")

        def diagnostics(self):
            return {"extra": {"kappa": self.kappa}}

    register(Vague)
    job = job_of("vague", tasks=1)
    with pytest.raises(RunFailed, match=r"vague: diagnostics\(\) must .*: extra is not plain JSON, or contains NaN or infinity"):
        run(job, results=tmp_path)
    monkeypatch.setattr(Vague, "diagnostics", lambda self: {"extra": {"kappa": [1.0, None]}})
    events = []
    assert run(job, results=tmp_path, report=events.append).diagnostics.extra["kappa"] == [1.0, None]
    assert [(e.stage, e.epoch) for e in events] == [(1, 0)]  # nothing was learnt again


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        ({"remarkz": ["one"]}, "unknown field `remarkz`"),
        ({"remarks": "one"}, "Expected `array`, got `str` - at `$.remarks`"),
        ({"other_sizes": {"factors": -1}}, "Expected `int` >= 0 - at `$.other_sizes"),
        ({"extra": {"mask": torch.zeros(1)}}, "extra is not plain JSON"),
        (["one"], "has no attribute 'items'"),
    ],
)
def test_a_mistake_in_diagnostics_is_found_before_training(reported, words, own_methods, tmp_path):
    class Mistyped(Method):
        def diagnostics(self):
            return reported

        def before_training(self, strategy, **kwargs):
            raise AssertionError("nothing is to be trained")

    register(Mistyped)
    with pytest.raises(RunFailed) as error:
        run(job_of("mistyped", tasks=1), results=tmp_path)
    said = str(error.value)
    assert "mistyped: diagnostics() must return ranks, other_sizes, remarks, extra" in said
    assert words in said
    assert "\n" not in said


def test_runs_on_different_partial_data_are_different_runs(monkeypatch):
    job = job_of(partial_data="true")
    assert identify(job_of(), None) == job_of()
    first = identify(job, None)
    monkeypatch.setattr("benchsuite.data.sets.load", lambda *a, **k: SimpleNamespace(digest="other"))
    assert len({job.config, first.config, identify(job, None).config}) == 3


def test_a_run_that_another_process_has_in_hand_says_that_it_waits(tmp_path):
    job, said = job_of(tasks=1, epochs=1), []
    with contextlib.ExitStack() as other:
        other.enter_context(files.locked(tmp_path / job.folder / "lock"))

        def report(event):
            said.append(event)
            other.close()  # the other one ends

        run(job, results=tmp_path, report=report)
    lines = [event for event in said if isinstance(event, Note)]
    assert lines == [Note(f"{job}: is running in another process; waiting for it")]
    assert said[0] == lines[0]
    assert len(said) > 1


def test_a_failure_is_on_record_until_a_later_run_succeeds(own_methods, tmp_path, monkeypatch):
    register(Fragile)
    job = job_of("fragile")
    folder = tmp_path / job.folder
    with pytest.raises(RunFailed, match="nan at task 2, epoch 2"):
        run(job, results=tmp_path)
    failure = json.loads((folder / "failure.json").read_text())
    assert "task 2, epoch 2" in failure["error"]
    assert failure["job"]["method"] == "fragile"
    assert not (folder / "record.json").exists()
    monkeypatch.setattr(Fragile, "broken", False)
    events = []
    record = run(job, results=tmp_path, report=events.append)
    assert events[0].stage == 1  # the first task was kept
    assert not (folder / "failure.json").exists()
    assert record.correct == run(job_of(), results=tmp_path).correct  # sound again, it is fine-tuning


@pytest.fixture(scope="module")
def record_text(tmp_path_factory):
    results = tmp_path_factory.mktemp("runs")
    job = job_of(tasks=1, epochs=1)
    run(job, results=results)
    return (results / job.folder / "record.json").read_text()


def change(**values):
    return lambda text: json.dumps(json.loads(text) | values)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda text: text.replace('"iterations": [\n  ', '"iterations": [\n  1'), "was changed after it was written"),
        (change(schema=99), "has record schema 99"),
        (lambda text: text[: len(text) // 2], "is not a JSON file"),
        (lambda text: "", "is not a JSON file"),
        (
            lambda text: text.replace('"activation_bytes": ', '"activation_bytes": NaN, "was": '),
            "contains NaN, infinity or a number too large",
        ),
        (lambda text: "[]", "is not a run record"),
    ],
)
def test_a_record_that_cannot_be_trusted_is_refused_and_left_alone(spoil, word, record_text, tmp_path):
    job = job_of(tasks=1, epochs=1)
    path = tmp_path / job.folder / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(record_text)
    assert run(job, results=tmp_path).correct == json.loads(record_text)["correct"]  # control: untouched it is read
    spoilt = spoil(record_text)
    assert spoilt != record_text
    path.write_text(spoilt)
    with pytest.raises(UserError, match=word) as error:
        run(job, results=tmp_path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert path.read_text() == spoilt


def test_a_results_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write to .*--results"):
        run(job_of(), results=tmp_path / "file" / "runs")
    assert (tmp_path / "file").read_text() == "mine"


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def torch_file(content):
    def write(path, marker):
        torch.save(content(marker), path)

    return write


@pytest.mark.parametrize(
    "write",
    [
        torch_file(lambda marker: Malicious(marker)),
        torch_file(lambda marker: {"config": job_of().config, "done": Malicious(marker)}),
    ],
)
def test_a_malicious_checkpoint_is_refused_and_not_executed(write, tmp_path):
    job, marker = job_of(), tmp_path / "executed"
    path = tmp_path / job.folder / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    write(path, marker)
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot be read .*delete it"):
        run(job, results=tmp_path)
    assert path.exists()
    assert not marker.exists()
    with contextlib.suppress(RuntimeError):  # no torch file, or no longer
        torch.load(path, weights_only=False)  # control: read carelessly it does its work
    assert marker.exists()


def test_a_damaged_checkpoint_is_said_and_its_run_starts_again(tmp_path):
    job = job_of(tasks=2, epochs=1)
    path = tmp_path / job.folder / "checkpoint.pt"

    def stop(event):
        if event.stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, results=tmp_path, report=stop)
    whole = path.read_bytes()
    weights = max(torch.load(path)["model"].values(), key=lambda tensor: tensor.numel())
    at = whole.index(weights.numpy().tobytes())
    flipped = bytearray(whole)
    flipped[at + 3] ^= 1
    torch.load(io.BytesIO(flipped), weights_only=True)  # control: it is loaded without a word
    undisturbed = run(job, results=tmp_path / "undisturbed")
    for damaged in (flipped, b"", bytes(100), whole[: len(whole) // 2], pickle.dumps(Malicious(tmp_path / "executed"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged)
        (path.parent / "record.json").unlink(missing_ok=True)
        events = []
        assert schema.same_numbers(run(job, results=tmp_path, report=events.append), undisturbed)
        assert events[0].stage == 0
        assert "starts again at its first task (its checkpoint is damaged)" in events[0].note
        assert path.with_name("checkpoint.stale.pt").read_bytes() == damaged
        assert not (tmp_path / "executed").exists()
    path.write_bytes(whole)
    (path.parent / "record.json").unlink()
    events = []
    assert schema.same_numbers(run(job, results=tmp_path, report=events.append), undisturbed)
    assert events[0].stage == 1  # control: whole, it is used


def test_every_flipped_bit_of_a_checkpoint_is_noticed_or_changes_nothing():
    file = io.BytesIO()
    torch.save({"weight": torch.arange(3.0), "done": 1}, file)
    whole, missed = file.getvalue(), 0
    assert not is_damaged(whole)
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        if not is_damaged(bytes(flipped)):
            missed += 1
            try:
                found = torch.load(io.BytesIO(flipped), weights_only=True)
            except Exception:  # refused, too
                continue
            assert (found["weight"].tolist(), found["done"]) == ([0, 1, 2], 1)
    assert 0 < missed < len(whole) * 0.6  # in this small file, padding and what an archive says of its making


@pytest.mark.parametrize("content", [{}, [], {"config": "another"}])
def test_a_checkpoint_of_something_else_is_refused(content, tmp_path):
    job = job_of()
    path = tmp_path / job.folder / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    with pytest.raises(UserError, match="delete it to start this run again"):
        run(job, results=tmp_path)


class OneForm(Method):
    """It stores codes itself."""

    forms = schema.NATIVE


class Loud(Method):
    """One of its numbers is too large for fp16."""

    def artifact(self):
        artifact = super().artifact()
        artifact.tensors["other/loud"] = torch.tensor([1e6])
        return artifact


def test_the_final_network_is_evaluated_from_each_storage_form(tmp_path):
    job = job_of("cacl")
    record = run(job, results=tmp_path)
    assert list(record.forms) == ["fp32", "fp16", "int8", "int6", "int4"]
    assert record.forms["fp32"].correct == record.correct[-1]
    assert record.forms["fp32"].sizes == record.final_sizes
    exported, cls = Artifact.read(tmp_path / job.folder / "artifact.safetensors"), methods.get("cacl")
    stream = build_stream(protocols.get("split-digits"), recipe_of(job.settings), 1, data_dir=None, device=torch.device("cpu"))
    for name, form in record.forms.items():
        (tmp_path / name).write_bytes(exported.encoded(name, cls.unit_axes).to_bytes())
        assert (tmp_path / name).stat().st_size == form.sizes.total
        networks = [cls.restore(Artifact.read(tmp_path / file)) for file in (name, "fp32")]
        right = changed = 0
        for t, experience in enumerate(stream.test):
            images = experience.images
            x = normalise(images.pixels, images.mean, images.std)
            with torch.no_grad():
                now, before = (network(x, t).argmax(1) for network in networks)
            assert int((now == images.labels).sum()) == form.correct[t]
            changed += int((now != before).sum())
            right += form.correct[t]
        assert changed == form.changed
    assert record.forms["int4"].changed > 0  # control: a form that rounds so much does change answers


def test_a_method_that_stores_codes_itself_has_one_form_and_what_no_form_can_hold_is_a_remark(own_methods, tmp_path):
    register(OneForm)
    register(Loud)
    record = run(job_of("oneform", tasks=1, epochs=1), results=tmp_path)
    assert list(record.forms) == ["native"]
    assert record.forms["native"].sizes == record.final_sizes
    record = run(job_of("loud", tasks=1, epochs=1), results=tmp_path)
    assert list(record.forms) == ["fp32"]
    assert [remark.partition(",")[0] for remark in record.diagnostics.remarks] == [
        "other/loud holds numbers that are not finite or above 65504"
    ] * 4


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{}", Artifact({}).to_bytes()[:-20]]
)
def test_a_file_that_is_no_artifact_is_refused(content, tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"some\.safetensors"):
        Artifact.read(path)


def test_a_missing_artifact_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Artifact.read(tmp_path / "none.safetensors")
    with pytest.raises(UserError):
        Artifact.read(tmp_path)


def test_multiply_accumulates_of_the_cacl_network():
    model = MultiHead.build("cacl", image=(3, 32, 32), classes=[5])
    model.add_task(0)
    by_layer = [64 * 27 * 30**2, 64 * 576 * 28**2, 128 * 576 * 12**2, 128 * 1152 * 10**2, 256 * 512 * 4**2, 1024 * 5]
    assert macs(model.eval(), (3, 32, 32), 0) == sum(by_layer) == 57_921_280


def test_a_resumed_run_uses_as_many_threads_as_it_began_with(tmp_path):
    def stop(event):
        if event.stage == 1:
            raise KeyboardInterrupt

    job = resolve("split-digits", "smoke", "finetune", 1, overrides={"tasks": 2, "train_per_class": 24})
    with pytest.raises(KeyboardInterrupt):
        run(job, results=tmp_path, report=stop)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        record = run(job, results=tmp_path)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    assert record.environment.threads == before


def test_a_disk_that_is_full_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    job = resolve("split-digits", "smoke", "finetune", 1, overrides={"tasks": 1, "train_per_class": 24})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as error:
        run(job, results=tmp_path)
    assert "\n" not in str(error.value)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"] == []


def test_runs_on_other_images_of_a_set_without_one_official_form_are_other_runs(monkeypatch):
    job = resolve("five-datasets", "smoke", "finetune", 13, overrides={"tasks": 1})  # notMNIST comes first
    seen = []
    for digest in ("a" * 64, "b" * 64):
        monkeypatch.setattr("benchsuite.data.sets.load", lambda name, *_, digest=digest, **__: SimpleNamespace(digest=digest))
        seen.append(identify(job, None))
    assert seen[0].folder != seen[1].folder
    official = resolve("split-cifar100", "smoke", "finetune", 1)  # control: its name says which images there are
    assert identify(official, None) == official
