"""Stale records: what a record was made by is told from what it says, not from how it is laid out."""

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from benchsuite import source
from benchsuite.execution.grid import missing
from benchsuite.method import methods
from benchsuite.protocol import protocols
from benchsuite.record import store
from benchsuite.training.runner import code_of, run
from benchsuite.training.settings import resolve

TINY = {"tasks": 2, "train_per_class": 8, "test_per_class": 8, "epochs": 1, "batch_size": 16}
PUBLISHED = Path(__file__).parent.parent / "results"
PLANTED = '''
from benchsuite import register
from benchsuite.methods.ewc import EWC


@register
class Planted(EWC):
    """One."""

    def after_training_exp(self, strategy, **kwargs):
        super().after_training_exp(strategy, **kwargs)
        self.seen = 1
'''.lstrip()
SAME = '''
# a comment
from benchsuite import register
from benchsuite.methods.ewc import EWC
@register
class Planted(EWC):
    """Two,
    at length."""
    def after_training_exp(self, strategy, **kwargs):
        "three"
        super().after_training_exp(
            strategy, **kwargs)  # another
        self.seen = (1)
'''.lstrip()


@pytest.fixture
def planted(tmp_path, monkeypatch, own_methods):
    """The file of a method that is installed with another package."""
    path = tmp_path / "site" / "planted_method.py"
    path.parent.mkdir()
    path.write_text(PLANTED)
    monkeypatch.syspath_prepend(path.parent)
    source._file.cache_clear()
    __import__("planted_method")
    own_methods.add("planted", __import__("sys").modules["planted_method"].Planted)
    yield path
    __import__("sys").modules.pop("planted_method", None)
    source._file.cache_clear()


def job_of(name="planted", **settings):
    return resolve("split-digits", "smoke", name, 1, overrides=TINY | settings)


def test_a_comment_changes_nothing_and_a_number_does(planted):
    code = code_of(job_of())
    assert list(code) == ["planted_method", "benchsuite.methods.ewc", "benchsuite.nn.importance", "protocol split-digits"]
    planted.write_text(SAME)
    assert source.changes(code) == []
    planted.write_text(SAME.replace("(1)", "(2)"))
    assert source.changes(code) == ["planted_method"]
    planted.unlink()
    assert source.changes(code) == []  # not here, so there is nothing to compare


def test_a_modifier_counts_class_by_class():
    plain, hosvd, asi = (code_of(job_of(name)) for name in ("cacl", "cacl+hosvd", "cacl+asi"))
    assert "benchsuite.methods.cacl" in plain
    assert not any("modifiers" in name for name in plain)
    assert plain.items() <= hosvd.items()
    assert {"benchsuite.modifiers:HOSVD", "benchsuite.modifiers:CompressedActivations"} <= hosvd.keys()
    assert "benchsuite.modifiers:HOSVD" not in asi
    assert (
        len(
            {
                source.digest_of(f"benchsuite.modifiers:{name}")
                for name in ("HOSVD", "ASI", "CompressedActivations", "Checkpointing")
            }
        )
        == 4
    )


def test_a_method_in_a_file_is_known_by_its_bytes_alone(tmp_path, own_methods):
    (tmp_path / "planted.py").write_text(PLANTED)
    own_methods.load_file(tmp_path / "planted.py")
    assert job_of().method_source
    assert list(code_of(job_of())) == ["benchsuite.methods.ewc", "benchsuite.nn.importance", "protocol split-digits"]


def test_the_parts_that_a_method_imports_count_and_what_every_run_stands_on_does_not():
    def parts(name):
        return {name.removeprefix("benchsuite.") for name in code_of(job_of(name)) if name.startswith("benchsuite.")}

    assert parts("finetune") == {"methods.finetune"}
    assert parts("cacl-kronecker") == {*(f"methods.{name}" for name in ("cacl", "cacl_cp", "cacl_kronecker")), "nn.factorised"}
    assert {"nn.decompose", "nn.factorised", "nn.compressed"} < parts("individual-tucker")  # the last through the first
    assert parts("er") == {"methods.er", "memory"}
    assert {"nn.compressed", "modifiers"} < parts("lance")
    assert {"nn.compressed", "modifiers:HOSVD"} < parts("finetune+hosvd")
    assert "modifiers" not in parts("finetune+hosvd")
    code = code_of(job_of("cacl"))
    assert source.changes(code) == []
    assert source.changes({**code, "benchsuite.nn.factorised": "0" * 12}) == ["benchsuite.nn.factorised"]


def test_what_a_record_names_is_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "surprise"
    package.mkdir()
    for name in ("__init__", "part"):
        (package / f"{name}.py").write_text("raise SystemExit('imported')")
    (package / "broken.py").write_text("def")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(source.digest_of("surprise.part")) == len(source.digest_of("surprise")) == 12
    for name in ("surprise.broken", "surprise.absent", "surprise/part", "surprise..part", ""):
        assert source.digest_of(name) == ""


def test_a_protocol_is_its_tasks_and_images():

    one = protocols.get("split-digits")
    digest = source.digest_of_protocol(one)
    assert digest == source.digest_of("protocol split-digits")
    assert digest == source.digest_of_protocol(replace(one, summary="in other words", published=()))
    assert digest != source.digest_of_protocol(replace(one, flip=True))
    assert digest != source.digest_of_protocol(replace(one, tasks=one.tasks[::-1]))


def test_a_stale_run_is_run_again_and_its_record_kept(planted, tmp_path):
    job, results, said = job_of(), tmp_path / "runs", []
    old = run(job, results=results)
    assert missing([job], results, said.append) == said == []  # control
    planted.write_text(PLANTED.replace("= 1", "= 2"))
    assert missing([job], results, said.append) == [job]
    assert "stale: split-digits/smoke planted seed 1: planted_method changed since" in said[0]
    events = []
    new = run(job, results=results, report=events.append)
    folder = results / job.folder
    assert "planted_method changed since" in events[0].note
    assert str(folder / "record.stale-1.json") in events[0].note
    assert store.read(folder / "record.stale-1.json") == old
    assert (folder / "artifact.stale-1.safetensors").exists()
    assert store.read_all(results) == [new]  # the old one is ranked no more
    assert missing([job], results) == []
    planted.write_text(PLANTED)
    run(job, results=results)
    assert (folder / "record.stale-2.json").exists()
    assert store.read(folder / "record.stale-1.json") == old


def test_a_checkpoint_of_other_source_is_not_gone_on_from(planted, tmp_path):
    def stop(event):
        if event.stage == 1:
            raise KeyboardInterrupt

    job = job_of()
    for text, stages in ((SAME, [1, 1]), (PLANTED.replace("= 1", "= 2"), [0, 0, 1])):
        planted.write_text(PLANTED)
        results = tmp_path / str(len(stages))
        with pytest.raises(KeyboardInterrupt):
            run(job, results=results, report=stop)
        planted.write_text(text)
        events = []
        run(job, results=results, report=events.append)
        assert [event.stage for event in events] == stages
        assert ("planted_method changed meanwhile" in events[0].note) == (len(stages) == 3)
        assert (results / job.folder / "checkpoint.stale.pt").exists() == (len(stages) == 3)


def test_records_from_before_count_as_finished():
    found = sorted(PUBLISHED.glob("split-cifar100/lite/*/*/record.json"))
    assert found
    assert all(source.stale(store.read(path)) == [] for path in found if not store.read(path).made_by)
    path = next(p for p in found if p.parent.parent.name == "finetune")
    job = store.read(path).job
    assert structs.replace(job).folder.name == path.parent.name  # digests are no part of where a run lies
    assert methods.get("finetune").name == job.method
