"""The golden numbers, and what voids them: a changed number does, in the entries that it belongs to; a moved line does not."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from benchsuite import source
from benchsuite.checks import golden
from benchsuite.method import methods
from benchsuite.nn import backbones
from benchsuite.training.batches import Batches, Draws
from benchsuite.training.runner import made_by
from benchsuite.training.settings import resolve
from benchsuite.training.strategy import Schedule

NAMES = sorted(source.golden())


@pytest.fixture
def copied(tmp_path, own_methods):
    """Puts a copy of a method's file, changed, under another module name in its place."""

    def put(name, *changes):
        text = Path(sys.modules[methods.get(name).__module__].__file__).read_text()
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (tmp_path / "moved.py").write_text(text)
        own_methods.remove(name)
        spec = importlib.util.spec_from_file_location("benchsuite.methods.moved", tmp_path / "moved.py")
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

    yield put
    sys.modules.pop("benchsuite.methods.moved", None)


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """A copy of golden.json that may be written."""
    path = tmp_path / "golden.json"
    path.write_bytes(source.GOLDEN.read_bytes())
    monkeypatch.setattr(source, "GOLDEN", path)
    yield path
    source.golden.cache_clear()
    source.digests.cache_clear()


SUBJECTS = [  # the numbers of most methods are left to a run of all tests
    pytest.param(name, marks=[pytest.mark.slow] * (name.startswith("method ") and name not in ("method finetune", "method cacl")))
    for name in sorted({*map(source.subject, NAMES)})
]


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_numbers_are_those_on_file(name):
    assert golden.compare([name]) == {}, f"makes stale: {golden.voids(name)}"


def test_what_is_built_in_no_more_differs_and_is_dropped(own_methods, own_file):
    own_methods.remove("transfer")
    assert set(golden.compare(["method transfer"])) == {"method transfer", "method transfer 2"}
    golden.update(["method transfer"], "it is gone")
    assert not any("transfer" in name for name in source.golden())


def test_every_case_of_everything_built_in_is_on_file():
    assert sorted(golden.entry_plan()) == NAMES
    assert all(entry["reason"] for entry in source.golden().values())


def test_the_process_is_left_as_it_was():
    before = torch.get_default_dtype(), torch.get_num_threads(), dict(backbones.BACKBONES), list(golden.protocols.all())
    golden.compare(["optimizer sgd"])
    assert before == (torch.get_default_dtype(), torch.get_num_threads(), backbones.BACKBONES, list(golden.protocols.all()))


@pytest.mark.slow
def test_a_constant_of_one_method_voids_its_rows_alone(copied):
    copied("ewc", ("self.strength", "1.001 * self.strength"))
    assert set(golden.compare(["method ewc"])) == {name for name in NAMES if source.subject(name) == "method ewc"}
    assert golden.voids("method ewc 2").startswith("rows of ewc,")
    assert golden.compare(["method transfer"]) == {}


def test_a_constant_of_the_strategy_voids_what_is_trained_by_it(monkeypatch):
    def milestone(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs in strategy.recipe.milestones:
            for group in strategy.optimizer.param_groups:
                group["lr"] *= 0.1001

    monkeypatch.setattr(Schedule, "before_training_epoch", milestone)
    changed = golden.compare(["method finetune", "modifier gf", "protocol split-cifar100"])
    assert set(changed) == {"method finetune", "modifier gf"}  # a protocol's tasks and batches are what they were
    assert "rows of finetune" in golden.voids("method finetune")


def test_another_order_of_batches_voids_methods_and_protocols(monkeypatch):
    draws = Batches.draws

    def turned(self, epoch):
        d = draws(self, epoch)
        return Draws(d.index.flip(0), d.top, d.left, d.flip)

    monkeypatch.setattr(Batches, "draws", turned)
    assert {"method finetune", "protocol split-cifar100"} <= set(golden.compare(["method finetune", "protocol split-cifar100"]))
    assert golden.voids("protocol split-cifar100") == "all rows of split-cifar100"


def test_another_initialisation_voids_the_rows_on_a_backbone(monkeypatch):
    default = backbones.initialise

    def wider(module, seed, *purpose, law):
        default(module, seed, *purpose, law=law)
        for parameter in module.parameters(recurse=False):
            parameter.data.mul_(1.0001)

    monkeypatch.setattr(backbones, "initialise", wider)
    (changed,) = golden.compare(["backbone digits"]).values()
    assert changed.startswith("first_logits[0] differs by")
    assert golden.voids("backbone digits") == "rows on digits"
    assert golden.voids("backbone resnet18 batchnorm=shared") == "rows on resnet18 with batchnorm=shared"


def test_another_backbone_voids_no_method(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "digits", golden.network)
    assert set(golden.compare(["backbone digits", "method finetune"])) == {"backbone digits"}


@pytest.mark.slow
def test_a_method_that_moves_or_gets_a_setting_stays_as_it_was(copied):
    job = resolve("split-digits", "smoke", "ewc", 1)
    before = made_by(job)
    copied("ewc")
    assert methods.get("ewc").__module__ == "benchsuite.methods.moved"
    assert golden.compare(["method ewc"]) == {}
    assert made_by(job) == before
    copied("ewc", ("    decay:", "    extra: float = 0.0\n    decay:"))
    assert "extra" in golden.settings_of(methods.get("ewc"))
    assert golden.compare(["method ewc"]) == {}
    assert made_by(job) == before


def test_a_setting_that_is_off_by_default_counts_where_a_preset_has_it_on():
    assert [case.get("sample_size") for case in golden.cases_of("method er")[:-1]].count(32) == 1
    assert "sample_size" not in golden.cases_of("method er")[0]


@pytest.mark.slow
def test_another_default_or_preset_is_a_case_more_and_voids_nothing(copied, own_file, capsys):
    before = made_by(resolve("split-digits", "smoke", "ewc", 1))
    copied("ewc", ('values={"strength": 100.0}', 'values={"strength": 99.0}'))
    assert golden.compare(["method ewc"]) == {"method ewc 6": "not on file"}
    assert golden.main(["method ewc"]) == 1
    assert capsys.readouterr().out == "method ewc 6: not on file\n"
    assert golden.update(["method ewc"], "another preset") == ["method ewc 6"]
    assert source.changes(before) == []
    assert made_by(resolve("split-digits", "smoke", "ewc", 1)).keys() - before.keys() == {"method ewc 6"}


@pytest.mark.slow
def test_updating_rewrites_what_differs_with_its_reason(monkeypatch, own_file, capsys):
    whole = own_file.read_bytes()
    made = made_by(resolve("split-digits", "smoke", "finetune", 1))
    assert golden.main(["--update", "optimizer adam", "--reason", "nothing"]) == 0
    assert own_file.read_bytes() == whole  # rounding changes no digest
    monkeypatch.setattr(backbones, "round", lambda x: 0, raising=False)  # dropout drops nothing
    assert golden.main(["optimizer adam"]) == 1
    assert "makes stale: rows trained by adam" in capsys.readouterr().out
    assert golden.main(["--update", "optimizer adam", "--reason", "no dropout"]) == 0
    entries = json.loads(own_file.read_text())
    assert entries["optimizer adam"]["reason"] == "no dropout"
    assert {name for name, entry in entries.items() if entry != json.loads(whole)[name]} == {"optimizer adam"}
    assert source.changes(made) == ["optimizer adam"]
    assert golden.main(["optimizer adam"]) == 0
    for words in (["--update", "optimizer adam"], ["--update", "optimizer adem", "--reason", "x"]):
        with pytest.raises(SystemExit):
            golden.main(words)
    assert "did you mean 'optimizer adam'?" in capsys.readouterr().err
