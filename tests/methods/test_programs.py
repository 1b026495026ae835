"""Every method's network as programs of torch.export and ONNX: the same logits, for any number of images, and a card."""

import io
import sys
from functools import cache

import pytest
import torch
from records import changed

from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.method import Method, methods, programs
from benchsuite.method.artifact import Artifact
from benchsuite.method.programs import TOLERANCE, OneTask, exported, largest_error, program, to_onnx, to_torch
from benchsuite.method.serving import Served, load
from benchsuite.nn.multihead import MultiHead
from benchsuite.record.folder import RunFolder
from benchsuite.training.runner import run
from benchsuite.training.settings import resolve

TINY = {"tasks": 2, "train_per_class": 16, "test_per_class": 20, "epochs": 1, "batch_size": 16}
BUILT_IN = sorted(name for name in methods.all() if not methods.source(name))
# Methods that leave `restore` alone serve one kind of network, the plain one; every other method has its own.
KINDS = sorted({"finetune" if methods.get(name).restore.__func__ is Method.restore.__func__ else name for name in BUILT_IN})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The served network of a tiny run of a method."""
    results = tmp_path_factory.mktemp("runs")

    @cache
    def of(name):
        job = resolve("split-digits", "smoke", name, 1, overrides=TINY)
        run(job, results=results)
        return load(RunFolder(results / job.folder).artifact), results / job.folder

    return of


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.slow
def test_every_kind_of_served_network_is_exported_to_torch_with_the_same_logits(name, served):
    network, _ = served(name)
    content, error = exported(network, 1, "torch")
    again = torch.export.load(io.BytesIO(content)).module()
    assert error <= TOLERANCE
    for n in (1, 7):
        images = torch.randint(256, (n, 8, 8, 1), dtype=torch.uint8)
        torch.testing.assert_close(again(images), network(images, 1), rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):  # control: the other task's logits are others
        torch.testing.assert_close(again(images), network(images, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_every_kind_of_served_network_is_exported_to_onnx_with_the_same_logits(served):
    """In one file, because starting an export takes most of the time."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    networks = [OneTask(served(name)[0], 1) for name in KINDS]

    class All(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.networks = torch.nn.ModuleList(networks)

        def forward(self, images):
            return torch.cat([network(images) for network in self.networks], 1)

    content, one = to_onnx(program(All(), (8, 8, 1)))
    session = runtime.InferenceSession(content)
    for n in (1, 7):
        images = torch.randint(256, (n, 8, 8, 1), dtype=torch.uint8)
        own = All()(images)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.tensor(found), own, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one(images), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["per_task", "batch_stats"])
@pytest.mark.slow
def test_networks_with_batch_normalisation_are_exported(policy):
    model = MultiHead.build("resnet10", image=(1, 8, 8), classes=[2, 2], batchnorm=policy, width=0.125)
    for task in (0, 1):
        model.add_task(task)
    task = {"name": "a", "classes": [0, 1], "pad": 1, "orientation": "90", "mean": [0.3], "std": [0.4]}
    served = Served(Artifact({}, {"tasks": [task, task], "network": model.describe()}), model)
    assert served.raw_size(1) == (6, 6, 1)
    assert exported(served, 1, "torch")[1] <= TOLERANCE


def test_a_file_holds_the_weights_of_its_own_task_alone(served):
    network, _ = served("individual")
    one = program(OneTask(network, 1), (8, 8, 1))
    numbers = sum(tensor.numel() for tensor in one.state_dict.values())
    assert numbers == sum(p.numel() for p in network.parameters()) // 2


def test_a_program_that_computes_something_else_is_not_written(served, monkeypatch):
    network, _ = served("finetune")
    content, run = to_torch(program(OneTask(network, 1), (8, 8, 1)))
    assert largest_error(run, network, 1) <= TOLERANCE
    monkeypatch.setattr(programs, "to_torch", lambda one: (content, lambda images: run(images) * (1 + 1e-4)))
    with pytest.raises(UserError, match=r"task 1: as torch the logits differ by 1\.0e-04"):
        exported(network, 1, "torch")


def test_the_command_writes_a_file_for_each_task_and_a_card(served, tmp_path, capsys, monkeypatch):
    _, folder = served("cacl")
    output = tmp_path / "out"
    assert main(["export", str(folder), "--to", "torch", "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "task-0.pt2", "task-1.pt2"]
    record, text = RunFolder(folder).read(), (output / "README.md").read_text()
    for said in (
        *("# cacl on split-digits, tier smoke, seed 1", "(B, 8, 8, 1)", record.artifact_sha256, record.data[0].digest),
        *(f"{100 * record.correct[-1][1] / record.tasks[1].test:.2f}", f"{record.stored_bytes:,} bytes", "benchsuite verify"),
        *(record.environment.source.short, "4, 5"),
    ):
        assert said in text, said
    assert main(["export", str(folder), "--to", "torch", "--output", str(output)]) == 2  # exists
    assert main(["export", str(folder), "--task", "1", "--output", str(tmp_path / "x")]) == 2
    assert main(["export", str(folder), "--to", "torch", "--task", "2", "--output", str(tmp_path / "x")]) == 2
    assert "serves tasks 0..1, not 2" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(folder), "--to", "onnx", "--output", str(tmp_path / "x")]) == 2
    assert "ONNX needs the package onnxruntime; pip install 'benchsuite[export]'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_rounded_network_is_exported_with_its_own_accuracy(served, tmp_path, monkeypatch):
    _, folder = served("finetune")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchsuite.method.base.Method.forms", ("fp32", "int4"))
    assert main(["export", str(folder), "--to", "torch", "--form", "int4", "--task", "0"]) == 0
    text = (tmp_path / "split-digits-smoke-finetune-seed1-int4-torch" / "README.md").read_text()
    assert "rounded to 4 bits (int4)" in text


def test_text_of_a_record_is_no_markdown_in_a_card(served):
    network, folder = served("finetune")
    record = RunFolder(folder).read()
    evil = [changed(record.tasks[0], name="a | <b>c</b> | `x`"), record.tasks[1]]
    text = programs.card(changed(record, tasks=evil), network, {0: ("task-0.pt2", b"")}, {0: 0.0}, None)
    assert r"| a \| &lt;b>c&lt;/b> \| `x` |" in text
