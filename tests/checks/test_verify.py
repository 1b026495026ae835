"""A record's job run again: identical, within the interval, or not reproduced."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from records import changed

from benchsuite.checks.verify import compare, intervals, same_kind
from benchsuite.cli.main import main
from benchsuite.record import schema
from benchsuite.record.schema import Source
from benchsuite.record.store import read, write
from benchsuite.training.runner import run
from benchsuite.training.settings import resolve

RESULTS = Path(__file__).parents[2] / "results"
TINY = {"tasks": 2, "train_per_class": 16, "test_per_class": 20, "epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    job = resolve("split-digits", "smoke", "finetune", 1, overrides=TINY)
    run(job, results=folder)
    return folder / job.folder / "record.json"


@pytest.fixture
def path(made, tmp_path):
    """A record of its own for each test, in a results folder of its own, where the re-run lies too."""
    own = tmp_path.joinpath("runs", *made.parts[-5:])
    own.parent.mkdir(parents=True)
    shutil.copy(made, own)
    return own


def verified(path, capsys, *words):
    capsys.readouterr()
    results = path.parents[4 if path.name == "record.json" else 3]
    code = main(["verify", str(path), "--results", str(results), *words])
    return code, *capsys.readouterr()


def test_a_record_of_this_machine_reproduces_to_the_bit_and_is_left_alone(path, capsys, monkeypatch):
    before = path.read_bytes()
    code, out, _ = verified(path.parent, capsys)
    assert code == 0
    assert out.splitlines()[-1].endswith("finetune seed 1: identical")
    assert path.read_bytes() == before
    (again,) = (path.parents[4] / "verify").rglob("record.json")
    assert schema.same_numbers(read(again), read(path))
    assert main(["verify", str(again), "--results", str(path.parents[4])]) == 2  # it would always be identical to itself
    assert "was itself made by `benchsuite verify`" in capsys.readouterr().err


def elsewhere(record):
    """The record as if it had been made on another kind of machine."""
    return changed(record, environment=changed(record.environment, instructions="mmx"))


def test_on_the_same_kind_of_machine_a_count_that_differs_is_not_reproduced(path, capsys):
    record = read(path)
    first, last = record.correct[1]
    write(changed(record, correct=[record.correct[0], [first, last - 1]]), path)
    code, out, _ = verified(path, capsys)
    assert code == 1
    assert "made on the same kind of machine with the same versions of the libraries, so they must be identical" in out
    assert out.splitlines()[-1].endswith("NOT reproduced")
    one = record.environment
    assert same_kind(one, changed(one, date="", versions={**one.versions, "benchsuite": "9"}))
    for other in ({"instructions": ""}, {"threads": 99}, {"device_name": "X"}, {"versions": {}}):
        assert not same_kind(one, changed(one, **other))
    older = changed(one, instructions=None)
    assert not same_kind(older, older)  # it does not say enough


def test_an_edited_count_is_not_identical_and_a_forged_accuracy_is_not_reproduced(path, capsys):
    record = elsewhere(read(path))
    first, last = record.correct[1]
    for change, expected, word in ((1, 0, "reproduced within interval"), (-18, 1, "NOT reproduced")):
        write(changed(record, correct=[record.correct[0], [first, last + change if last + change <= 40 else last - 1]]), path)
        code, out, _ = verified(path, capsys)
        assert code == expected, out
        assert out.splitlines()[-1].endswith(word)
        assert "not identical in: correct" in out


def test_sizes_that_follow_from_the_settings_must_not_differ(path):
    record, here = elsewhere(read(path)), read(path)
    larger = changed(record.stored[1], heads=record.stored[1].heads + 4)
    other = changed(here, stored=[record.stored[0], larger])
    assert not compare(record, other, learnt=False).reproduced
    assert compare(record, other, learnt=True).words == "reproduced within interval"  # control: a size that is learnt may
    much = changed(here, stored=[record.stored[0], changed(larger, weights=2 * larger.weights)])
    assert not compare(record, much, learnt=True).reproduced
    assert not compare(record, changed(here, iterations=[1, 1]), learnt=True).reproduced
    int8 = here.forms["int8"]
    other = changed(here, forms=here.forms | {"int8": changed(int8, sizes=changed(int8.sizes, heads=int8.sizes.heads + 1))})
    assert not compare(record, other, learnt=False).reproduced
    assert compare(record, other, learnt=True).reproduced
    assert compare(here, changed(here, forms={}), learnt=False).words == "identical"  # an earlier version put none on record
    assert compare(record, here, learnt=False).words == "identical"


def test_the_interval_covers_independent_trainings_and_not_a_lower_accuracy(path):
    """Answers drawn for two networks of which each gets image j right with its own probability p_j."""
    template, rng = read(path), np.random.default_rng(0)
    T, n = 5, 200
    tasks = [changed(template.tasks[0], name=str(i), test=n) for i in range(T)]

    def record(p):
        counts = (rng.random((T, n)) < p).sum(1).tolist()
        correct = [[counts[i] if t in (i, T - 1) else None for i in range(T)] for t in range(T)]
        common = {"stored": [template.stored[-1]] * T, "macs": [1] * T, "iterations": [1] * T, "memory": {}, "forms": {}}
        return changed(template, tasks=tasks, correct=correct, seconds={"train": [1.0] * T, "evaluate": [1.0] * T}, **common)

    def refused(p, q, runs=300):
        return sum(any(abs(a - b) > bound for _, a, b, bound in intervals(record(p), record(q))) for _ in range(runs)) / runs

    same = np.full((T, n), 0.8)
    assert refused(same, same) <= 0.03  # LEVEL, 0.01, at most
    spread = np.where(rng.random((T, n)) < 0.7, 0.99, 0.36)  # the same mean of images that are easy and hard
    assert refused(spread, spread) <= refused(same, same)
    assert refused(same, same - 0.1) > 0.95  # ACC ten points lower
    one_task = same.copy()
    one_task[2] -= 0.3
    assert refused(same, one_task) > 0.95


def test_runs_of_other_methods_do_not_lie_within_the_interval():
    one, other = (read(next((RESULTS / "rotated-digits/paper" / name).rglob("*-seed1/record.json"))) for name in ("ewc", "lwf"))
    assert any(abs(a - b) > bound for _, a, b, bound in intervals(one, other))


def test_an_interrupted_verification_resumes(path, capsys, monkeypatch):
    from benchsuite.execution.progress import Display

    seen, call = [], Display.__call__

    def stop(self, event):
        seen.append((event.stage, event.epoch))
        if event.stage == 1 and len(seen) < 4:
            raise KeyboardInterrupt
        call(self, event)

    monkeypatch.setattr(Display, "__call__", stop)
    assert verified(path, capsys)[0] == 130
    seen += [None] * 4
    code, out, _ = verified(path, capsys)
    assert code == 0
    assert "identical" in out
    assert [event for event in seen if event][-2:] == [(1, 0), (1, 1)]  # the first task was not learnt again


def test_an_earlier_re_run_counts_only_if_the_code_is_the_same(path, capsys, monkeypatch):
    revision = ["a" * 40]
    for place in ("training.runner", "checks.verify"):
        monkeypatch.setattr(f"benchsuite.{place}.source_revision", lambda: Source(revision=revision[0], dirty=False))
    assert "earlier verification" not in verified(path, capsys)[1]
    (again,) = (path.parents[4] / "verify").rglob("record.json")
    made = again.stat().st_mtime_ns
    out = verified(path, capsys)[1]
    assert "compared with the re-run of an earlier verification by the same code" in out
    assert again.stat().st_mtime_ns == made
    revision[0] = "b" * 40
    out = verified(path, capsys)[1]
    assert "earlier verification" not in out
    assert "source revision:" in out
    assert "bbbbbbb here" in out
    assert again.stat().st_mtime_ns != made


METHOD = '''
from benchsuite import Method, register


@register
class Own(Method):
    """A method in a file."""

    factor: float = 1.0

    def before_backward(self, strategy, **kwargs):
        strategy.loss *= self.factor
'''


def test_the_record_of_a_method_in_a_file_asks_for_that_file(own_methods, tmp_path, capsys, monkeypatch):
    file = tmp_path / "own.py"
    file.write_text(METHOD)
    words = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    results = tmp_path / "runs"
    assert main(["run", "--method", str(file), "--tier", "smoke", "--results", str(results), *words]) == 0
    (path,) = results.rglob("record.json")
    known = dict(own_methods._known)

    def forget():
        for name, value in (("_known", {k: v for k, v in known.items() if k != "own"}), ("files", {}), ("_modified", {})):
            monkeypatch.setattr(own_methods, name, value)

    forget()
    code, _, err = verified(path, capsys)
    assert code == 2
    assert "name it with --method FILE" in err
    assert verified(path, capsys, "--method", str(file))[0] == 0
    forget()
    file.write_text(METHOD + "\n# changed\n")
    assert verified(path, capsys, "--method", str(file))[0] == 0
    forget()
    file.write_text(METHOD.replace("*=", "+="))
    code, _, err = verified(path, capsys, "--method", str(file))
    assert code == 2
    assert "was made from another version of its source" in err
    forget()
    file.write_text(METHOD.replace("Own", "Another"))
    code, _, err = verified(path, capsys, "--method", str(file))
    assert code == 2
    assert "registers another, but the record is of own" in err


def test_other_images_are_said_before_anything_is_trained(path, capsys):
    record = read(path)
    write(changed(record, data=[changed(record.data[0], digest="0" * 64)]), path)
    code, _, err = verified(path, capsys)
    assert code == 2
    assert "digits: the images here" in err
    assert not (path.parents[4] / "verify").exists()


def test_a_job_that_this_version_does_not_know_is_an_error(path, capsys):
    record = read(path)
    for change, word in (
        ({"protocol": "split-other"}, "no protocol is called"),
        ({"method": "finetun"}, "no method is called"),
        ({"settings": {**record.job.settings, "strenght": 1}}, "is not a setting of finetune in this version"),
    ):
        write(changed(record, job=changed(record.job, **change)), path)
        code, _, err = verified(path, capsys)
        assert code == 2
        assert word in err
    assert verified(path.parent / "none", capsys)[0] == 2
