"""Predictions of the last row: on request, beside the record, in agreement with it, and no part of a run's identity."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from records import changed

import benchsuite
from benchsuite.checks.merge import merge
from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.execution import grid
from benchsuite.record.folder import PREDICTIONS, RunFolder
from benchsuite.record.predictions import decode
from benchsuite.training import runner
from benchsuite.training.runner import run
from benchsuite.training.settings import resolve

TINY = {"tasks": 2, "train_per_class": 8, "test_per_class": 12, "epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with predictions: its results folder and its record."""
    results = tmp_path_factory.mktemp("made")
    return results, run(resolve("split-digits", "smoke", "finetune", 1, overrides=TINY), results=results, predictions=True)


@pytest.fixture
def copied(made, tmp_path):
    results, record = made
    return shutil.copytree(results, tmp_path / "runs"), record


def test_they_are_a_byte_for_each_image_and_agree_with_the_record(made):
    results, record = made
    folder = results / record.job.folder
    found = benchsuite.predictions(folder)
    assert [int((task.predicted == task.label).sum()) for task in found] == record.correct[-1]
    served, images = benchsuite.load(folder / "artifact.safetensors"), benchsuite.data.load("digits")
    for t, (task, learnt) in enumerate(zip(found, record.tasks, strict=True)):
        assert len(task.label) == learnt.test
        chosen = np.sort(np.concatenate([np.flatnonzero(images.test_y == label)[:12] for label in learnt.classes]))
        assert task.label.tolist() == images.test_y[chosen].tolist()
        assert task.predicted.tolist() == served.predict(images.test_x[chosen], t).tolist()
    arrays = safetensors.numpy.load_file(folder / PREDICTIONS)
    assert {array.itemsize for array in arrays.values()} == {1}


def test_a_finished_run_gets_them_without_training_and_is_the_same_run(copied, monkeypatch, capsys):
    results, record = copied
    folder = RunFolder(results / record.job.folder)
    before, sealed = folder.predictions.read_bytes(), folder.record.read_bytes()
    folder.predictions.unlink()
    assert grid.missing([record.job], results) == []
    assert grid.missing([record.job], results, predictions=True) == [record.job]
    monkeypatch.setattr(runner._Run, "_learn", lambda *_: pytest.fail("it trains"))
    words = ["run", "--from", str(folder.path), "--results", str(results)]
    assert main(words) == 0
    assert not folder.predictions.exists()
    assert main([*words, "--predictions"]) == 0
    assert folder.predictions.read_bytes() == before
    assert folder.record.read_bytes() == sealed
    folder.predictions.unlink()
    folder.artifact.unlink()
    assert main([*words, "--predictions"]) == 2
    assert "artifact.safetensors: is not there" in capsys.readouterr().err
    with pytest.raises(UserError, match="ask for it with `benchsuite run --predictions`"):
        benchsuite.predictions(folder.path)


def test_a_board_asks_for_them(copied):
    results, record = copied
    (results / record.job.folder / PREDICTIONS).unlink()
    plan = benchsuite.plan(
        "split-digits", tier="smoke", methods=["finetune"], seeds=[1], settings=TINY, results=results, predictions=True
    )
    assert plan.missing() == [record.job]
    assert plan.run(jobs=1) == {}
    assert len(benchsuite.predictions(results / record.job.folder / "record.json")) == 2
    assert plan.missing() == []


def spoilt(arrays, metadata, **changes):
    return safetensors.numpy.save({**arrays, **changes}, metadata)


def test_a_file_that_does_not_agree_is_refused_by_name_and_so_is_its_record_by_merge(copied, tmp_path):
    results, record = copied
    path = results / record.job.folder / PREDICTIONS
    content, own = path.read_bytes(), {"artifact_sha256": record.artifact_sha256}
    arrays = safetensors.numpy.load(content)
    first = arrays["predicted/0"]
    refused = []
    for bad, word in (
        (b"", "is no file of predictions"),
        (content[:-1], "is no file of predictions"),
        (safetensors.numpy.save(arrays), "is no file of predictions"),
        (spoilt(arrays, {"artifact_sha256": "0" * 64}), "belongs to another artifact"),
        (spoilt(arrays, own, **{"predicted/0": first ^ (np.arange(24) == 0)}), "answers are right, but"),
        (spoilt(arrays, own, **{"predicted/0": first[1:]}), "its task 0 has not 24 classes"),
        (spoilt(arrays, own, **{"label/1": first + 2}), "its task 1 has not 24 classes"),
        (spoilt(arrays, own, **{"label/1": first.astype(float)}), "its task 1 has not 24 classes"),
        (spoilt(arrays, own, **{"label/2": first}), "more than 2 tasks"),
    ):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=word) as caught:
            benchsuite.predictions(path.parent)
        assert str(path) in str(caught.value)
        assert merge(results, tmp_path / "none", lambda line: None, refused.append)["refused"] == 1
        assert word in refused[-1]
    path.write_bytes(content)
    assert decode(content, changed(record, forms={}), path)  # control


def test_merge_carries_them_to_a_record_that_is_here_already(copied, tmp_path):
    results, record = copied
    here, path = tmp_path / "here", record.job.folder / PREDICTIONS
    (bare := tmp_path / "bare").mkdir()
    shutil.copytree(results / record.job.folder, bare / record.job.folder, ignore=lambda *_: [PREDICTIONS])
    silent = (lambda line: None, lambda line: pytest.fail(line))
    merge(bare, here, *silent)
    assert not (here / path).exists()
    assert merge(results, here, *silent)["here already"] == 1
    assert (here / path).read_bytes() == (results / path).read_bytes()


def test_those_of_a_stale_run_are_set_aside_with_it(copied):
    results, record = copied
    folder = RunFolder(results / record.job.folder)
    folder.set_aside()
    assert not folder.predictions.exists()
    assert json.loads(next(folder.path.glob("record.stale-1*")).read_text())
    assert next(folder.path.glob("predictions.stale-1*")).exists()
