"""Stale records: a record is stale when a number that stands for it has changed, or when nothing says what made it."""

import importlib
import linecache
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from msgspec import structs

from benchsuite import source
from benchsuite.errors import UserError
from benchsuite.execution.grid import missing
from benchsuite.execution.status import state_of
from benchsuite.protocol import protocols
from benchsuite.record import store
from benchsuite.training.runner import made_by, run
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
OTHER = PLANTED.replace("= 1", "= 2")
FIELDS_ALONE = """
from benchsuite import register
from benchsuite.methods.ewc import EWC

@register
class Planted(EWC):
    strength: float = 5.0
"""


def job_of(name="planted", **settings):
    return resolve("split-digits", "smoke", name, 1, overrides=TINY | settings)


def forget(methods, name="planted"):
    methods._known.pop(name, None)
    methods.files.clear()


def loaded(text, folder, methods):
    """The digest of a method in a file."""
    forget(methods)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "planted.py").write_text(text)
    methods.load_file(folder / "planted.py")
    return methods.source("planted")


@pytest.fixture
def changed(monkeypatch):
    """Pretends that the numbers of an entry have changed."""

    def change(name):
        assert name in source.digests()
        now = {**source.digests(), name: "0" * 12}
        monkeypatch.setattr(source, "digests", lambda: now)

    return change


@pytest.fixture
def cell(monkeypatch, own_methods):
    """Runs a text as a notebook runs a cell; `known` is False where nobody keeps the text."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    count = 0

    def execute(text, known=True):
        nonlocal count
        count += 1
        name = f"<cell {count}>"
        if known:
            monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(True), name))
        exec(compile(text, name, "exec"), vars(sys.modules["__main__"]))
        return own_methods.source("planted")

    return execute


def test_a_comment_changes_nothing_and_a_number_does(tmp_path, own_methods):
    digests = [loaded(text, tmp_path / str(i), own_methods) for i, text in enumerate((PLANTED, SAME, OTHER))]
    assert len(digests[0]) == 64
    assert digests[0] == digests[1] != digests[2]
    helper = "def scale():\n    return 2\n\n\n"  # the whole file counts, not the class alone
    assert loaded(helper + PLANTED, tmp_path / "a", own_methods) not in digests
    assert own_methods.source("ewc") == own_methods.source("ewc+hosvd") == ""
    assert own_methods.source("planted+hosvd") == own_methods.source("planted")


def test_a_method_of_an_installed_package_counts_with_the_classes_that_it_inherits_from(tmp_path, monkeypatch, own_methods):
    monkeypatch.syspath_prepend(tmp_path)
    child = PLANTED.replace("from benchsuite.methods.ewc import EWC", "from theirs_base import EWC")

    def digest(text, base):
        forget(own_methods)
        for name in ("theirs", "theirs_base"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        (tmp_path / "theirs_base.py").write_text(base)
        (tmp_path / "theirs.py").write_text(text)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        importlib.import_module("theirs")
        assert job_of().method_source == own_methods.source("planted")
        return own_methods.source("planted")

    base = "from benchsuite.methods.ewc import EWC as Base\n\n\nclass EWC(Base):\n    pass\n"
    digests = [digest(PLANTED, base), digest(child, base), digest(child, base + "    # a comment\n")]
    digests += [digest(child, base.replace("pass", "xi = 1"))]
    assert len(digests[0]) == 64
    assert digests[1] == digests[2]
    assert len({*digests}) == 3


def test_a_class_in_a_notebook_is_known_by_its_own_source(cell, own_methods):
    first = cell(PLANTED)
    assert len(first) == 64
    assert cell("x = 1\n" + SAME) == first  # registered again: the new class takes the place of the old one
    assert cell(OTHER) != first
    assert own_methods.get("planted") is sys.modules["__main__"].Planted
    assert own_methods.get("planted+hosvd").__mro__[2] is own_methods.get("planted")
    before = own_methods.get("planted+hosvd")
    fields = cell(FIELDS_ALONE)
    assert own_methods.get("planted+hosvd") is not before
    assert fields == cell(FIELDS_ALONE) != cell(FIELDS_ALONE.replace("5.0", "6.0"))


def test_a_class_whose_source_nobody_keeps_never_finds_a_record(cell, tmp_path):
    assert len({cell(PLANTED, known=False), cell(PLANTED, known=False), cell(FIELDS_ALONE, known=False)}) == 3
    job, results = job_of(), tmp_path / "runs"
    run(job, results=results)
    assert missing([job], results) == []  # this very class
    cell(FIELDS_ALONE, known=False)
    assert missing([job_of()], results) == [job_of()]


def test_only_a_notebook_may_register_a_name_again(cell, tmp_path, own_methods):
    cell(PLANTED)
    (tmp_path / "planted.py").write_text(PLANTED)
    with pytest.raises(UserError, match="two methods are called 'planted'"):
        own_methods.load_file(tmp_path / "planted.py")
    with pytest.raises(UserError, match="two methods are called 'ewc'"):
        cell(PLANTED.replace("class Planted", "class Ewc"))
    forget(own_methods)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "planted.py").write_text(SAME)
    own_methods.load_file(tmp_path / "planted.py")
    with pytest.raises(UserError, match="two methods are called 'planted'"):
        own_methods.load_file(tmp_path / "more" / "planted.py")


def test_a_run_is_refused_where_its_method_has_changed_since_it_was_planned(cell, tmp_path):
    cell(PLANTED)
    job = job_of()
    cell(OTHER)
    with pytest.raises(UserError, match="the source of planted has changed since this run was planned"):
        run(job, results=tmp_path)


def test_a_record_names_the_entries_that_stand_for_it(tmp_path, own_methods):
    def parts(name, **settings):
        return {*made_by(job_of(name, **settings))}

    common = {"protocol split-digits", "backbone digits", "optimizer adam"}
    assert parts("finetune") == {"method finetune", *common}
    cacl = {"method cacl", *(f"method cacl {k}" for k in (2, 3, 5, 6, 7, 8, 9))}  # 4 is on a network with batch normalisation
    assert parts("cacl") == cacl | common
    assert parts("cacl+hosvd") == cacl | common | {"modifier hosvd"}
    assert not any(name.startswith("method cacl") and name[11:12] != "-" for name in parts("cacl-cp"))
    assert {"optimizer sgd", "optimizer sgd 2"} == parts("finetune", optimizer="sgd") - parts("finetune")
    resnet = parts("cacl", backbone="resnet18", width=0.25)
    assert resnet == cacl | {"method cacl 4", "protocol split-digits", "backbone resnet18 batchnorm=per_task", "optimizer adam"}
    loaded(PLANTED, tmp_path, own_methods)  # a method from elsewhere stands on what it inherits from and on the engine
    ewc = {"method ewc", "method ewc 2", "method ewc 3", "method ewc 5"}  # 4 is on a network with batch normalisation
    assert parts("planted") == {*ewc, "method finetune", *common}


def test_what_has_changed_or_is_not_known_any_more_is_named(changed):
    made = made_by(job_of("cacl"))
    assert source.changes(made) == []
    assert source.changes({**made, "method gone": "0" * 12, "protocol gone": "0" * 12}) == ["method gone", "protocol gone"]
    changed("method ewc")
    assert source.changes(made) == []  # one method's change is not another's
    changed("method cacl")
    assert source.changes(made) == ["method cacl"]


def test_a_protocol_from_elsewhere_is_its_tasks_and_images(monkeypatch):
    one = replace(protocols.get("split-digits"), name="theirs")
    digest = source.digest_of_protocol(one)
    monkeypatch.setattr(protocols, "_known", {**protocols.all(), "theirs": one})
    job = resolve("theirs", "smoke", "finetune", 1, overrides=TINY)
    made = made_by(job)
    assert made["protocol theirs"] == digest
    assert source.changes(made) == []
    assert digest == source.digest_of_protocol(replace(one, summary="in other words", published=()))
    assert digest != source.digest_of_protocol(replace(one, flip=True))
    monkeypatch.setattr(protocols, "_known", {**protocols.all(), "theirs": replace(one, tasks=one.tasks[::-1])})
    assert source.changes(made) == ["protocol theirs"]


def test_a_stale_run_is_run_again_and_its_record_kept(changed, tmp_path):
    job, results, said = job_of("ewc"), tmp_path / "runs", []
    old = run(job, results=results)
    assert missing([job], results, said.append) == said == []  # control
    changed("method ewc")
    assert missing([job], results, said.append) == [job]
    assert "stale: split-digits/smoke ewc seed 1: changed since: method ewc; it is run again" in said[0]
    assert state_of(results / job.folder)[0] == "stale"
    events = []
    new = run(job, results=results, report=events.append)
    folder = results / job.folder
    assert "changed since: method ewc" in events[0].note
    assert str(folder / "record.stale-1.json") in events[0].note
    assert store.read(folder / "record.stale-1.json") == old
    assert (folder / "artifact.stale-1.safetensors").exists()
    assert store.read_all(results) == [new]  # the old one is ranked no more
    assert missing([job], results) == []
    changed("optimizer adam")
    run(job, results=results)
    assert (folder / "record.stale-2.json").exists()
    assert store.read(folder / "record.stale-1.json") == old


def test_a_checkpoint_from_before_a_change_is_not_resumed(changed, tmp_path):
    def stop(event):
        if event.stage == 1:
            raise KeyboardInterrupt

    job = job_of("ewc")
    for what, stages in (("method mas", [1, 1]), ("method ewc", [0, 0, 1])):
        results = tmp_path / str(len(stages))
        with pytest.raises(KeyboardInterrupt):
            run(job, results=results, report=stop)
        changed(what)
        events = []
        run(job, results=results, report=events.append)
        assert [event.stage for event in events] == stages
        assert ("changed since: method ewc" in (events[0].note or "")) == (len(stages) == 3)
        assert (results / job.folder / "checkpoint.stale.pt").exists() == (len(stages) == 3)


def test_a_record_that_does_not_say_what_made_it_is_run_again(tmp_path):
    job, said = job_of("finetune"), []
    record = run(job, results=tmp_path)
    path = tmp_path / job.folder / "record.json"
    store.write(structs.replace(record, made_by={}), path)
    assert missing([job], tmp_path, said.append) == [job]
    assert "made by an earlier version" in said[0]
    assert state_of(path.parent) == ("stale", "made by an earlier version; `leaderboard` runs it again")
    again = run(job, results=tmp_path)
    assert again.correct == record.correct
    assert missing([job], tmp_path) == []


def test_what_is_published_is_what_this_version_would_find():
    found = [store.read(path) for path in PUBLISHED.rglob("record.json")]
    assert len(found) > 70
    assert {record.job.folder: reason for record in found if (reason := source.stale(record))} == {}
    made = [(record, one) for record in found for one in (record.environment.source, *record.environment.earlier_sources)]
    assert not [record.job.folder for record, revision in made if revision.dirty]
