"""What a record may hold, and how one that says something else is refused."""

import copy
import errno
import json
import math
import os
from pathlib import Path

import pandas as pd
import pytest
from msgspec.structs import replace
from records import joint, record_of, run

import benchsuite
from benchsuite import files
from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.files import digest
from benchsuite.method.artifact import Artifact
from benchsuite.record.folder import RunFolder
from benchsuite.record.schema import Job, RunRecord
from benchsuite.record.store import read, read_all, record_paths, to_json, write

RESULTS = Path(__file__).parents[2] / "results"


def content():
    """A sound record of two tasks, as JSON has it."""
    job = Job(protocol="split-digits", tier="smoke", method="finetune", seed=1, precision="fp32", settings={"lr": 0.1})
    record = record_of(
        job=job,
        tasks=[{"name": str(i), "dataset": "digits", "classes": [2 * i, 2 * i + 1], "train": 40, "test": 20} for i in (0, 1)],
        correct=[[18, None], [12, 19]],
        stored=[None, {"weights": 100, "heads": 20, "masks": 0, "other": 5}],
        macs=[10, 10],
        iterations=[4, 4],
        training_state_bytes=300,
        activation_bytes=50,
        memory={"held": [50, 40], "peak": [90, 80]},
        seconds={"train": [0.5, 0.25], "evaluate": [0.125, 1]},
        data=[{"name": "digits", "digest": "d" * 64, "complete": True, "note": ""}],
        dense_macs=10,
        diagnostics={"ranks": {"conv": [[1], [2]]}, "other_sizes": {"weights alone": 100}, "remarks": ["one"]},
        forms={
            "fp32": {"sizes": {"weights": 100, "heads": 20, "masks": 0, "other": 5}, "correct": [12, 19]},
            "int8": {"sizes": {"weights": 25, "heads": 5, "masks": 0, "other": 6}, "correct": [11, 20], "changed": 2},
        },
    )
    return json.loads(to_json(record))


def sealed(found):
    """The text of a record with this content, under a digest that fits."""
    found.pop("digest", None)
    return json.dumps({**found, "digest": digest(found)})


def put(place, value):
    *path, last = place

    def spoil(found):
        for part in path:
            found = found[part]
        found[last] = value

    return spoil


SPOILT = {
    "no whole number": put(["correct", 1, 0], 12.0),
    "true is no number": put(["correct", 1, 0], True),
    "more than there are": put(["correct", 1, 0], 21),
    "negative": put(["correct", 0, 0], -1),
    "last row with a hole": put(["correct", 1, 0], None),
    "a row short": put(["correct", 0], [18]),
    "no test images": put(["tasks", 0, "test"], 0),
    "more test images than there can be": put(["tasks", 0, "test"], 2**53),
    "a task without a name": put(["tasks", 0, "name"], None),
    "a task of many image sets": put(["tasks", 0, "dataset"], ["digits"]),
    "no tasks": put(["tasks"], []),
    "negative bytes": put(["stored", 1, "heads"], -20),
    "bytes whose sum no table can hold": put(["stored", 1, "heads"], 2**63 - 1),
    "half a byte": put(["stored", 1, "heads"], 0.5),
    "a part too many": put(["stored", 1, "extra"], 1),
    "nothing stored": put(["stored", 1], None),
    "macs of one task": put(["macs"], [10]),
    "negative macs": put(["macs", 0], -1),
    "macs beyond any number": put(["macs", 0], 10**400),
    "iterations of three tasks": put(["iterations"], [4, 4, 4]),
    "no steps": put(["iterations"], [0, 0]),
    "seconds of one training": put(["seconds", "train"], [0.5]),
    "negative seconds": put(["seconds", "train", 0], -0.5),
    "no seconds": put(["seconds"], {}),
    "seconds that are text": put(["seconds", "train", 0], "0.5"),
    "memory of one training": put(["memory", "held"], [50]),
    "memory that is no number": put(["memory", "held", 0], None),
    "memory of another kind": put(["memory", "helt"], [50, 40]),
    "negative state": put(["training_state_bytes"], -1),
    "images without a digest": put(["data", 0, "digest"], None),
    "complete or not": put(["data", 0, "complete"], "yes"),
    "no environment": put(["environment"], []),
    "versions that are none": put(["environment", "versions"], "2.6.0"),
    "no device": put(["environment", "device"], None),
    "a source without a revision": put(["environment", "source"], {"dirty": False}),
    "digests that are a list": put(["made_by"], ["method ewc"]),
    "a reference or not": put(["size_reference"], "yes"),
    "negative plain macs": put(["dense_macs"], -1),
    "stored images that are text": put(["memory_bytes"], "0"),
    "no thread": put(["environment", "threads"], 0),
    "diagnostics that are text": put(["diagnostics"], "none"),
    "a size that is text": put(["diagnostics", "other_sizes"], {"weights alone": "100"}),
    "remarks that are no list": put(["diagnostics", "remarks"], "one"),
    "a mistyped diagnostic": put(["diagnostics", "remarkz"], ["one"]),
    "ranks of one task": put(["diagnostics", "ranks", "conv"], [[1]]),
    "ranks of three modes": put(["diagnostics", "ranks", "conv"], [[1, 1, 1], [2, 2, 2]]),
    "ranks of different modes": put(["diagnostics", "ranks", "conv"], [[1], [2, 2]]),
    "ranks without layers": put(["diagnostics", "ranks"], [[1], [2]]),
    "classes that are a number": put(["tasks", 0, "classes"], 2),
    "a form of one task": put(["forms", "int8", "correct"], [12]),
    "a form with more right than there are": put(["forms", "int8", "correct", 0], 21),
    "a form that changes more than there are": put(["forms", "int8", "changed"], 41),
    "an unknown form": put(["forms", "int2"], {"sizes": {"weights": 1, "heads": 1, "masks": 0, "other": 5}, "correct": [1, 1]}),
    "a first form that differs from itself": put(["forms", "fp32", "changed"], 1),
    "half a digest": put(["artifact_sha256"], "ab"),
    "another field": put(["surprise"], 1),
    "a seed that is text": put(["job", "seed"], "1"),
    "settings that are none": put(["job", "settings"], None),
    "a way out": put(["job", "protocol"], ".."),
    "a longer way out": put(["job", "tier"], "../../elsewhere"),
    "an absolute path": put(["job", "method"], "/tmp"),
    "no name": put(["job", "method"], ""),
    "a job that is text": put(["job"], "finetune"),
    "a number as text": put(["job", "settings", "lr"], "0.1"),
    "true for a number": put(["job", "settings", "width"], True),
    "a number for an answer": put(["job", "settings", "partial_data"], 1),
    "a list that is a number": put(["job", "settings", "milestones"], 5),
    "origins that hold lists": put(["job", "origins"], {"lr": ["command line"]}),
    "more seconds than any sum can hold": put(["seconds", "train", 0], 1e308),
    "a whole number beyond every float": put(["job", "settings", "own"], 10**400),
    "a name of 400 bytes": put(["job", "method"], "\U0001f600" * 100),
    "a name with a new line": put(["job", "method"], "ewc\n| forged | 99.9 |"),
    "a setting that hides": put(["job", "settings", "own"], "a\x1b[8mb"),
    "another setting that hides": put(["job", "settings", "own\u202e"], 1),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_record_that_no_run_can_have_made_is_refused_though_its_digest_fits(spoil, tmp_path):
    path, found = tmp_path / "record.json", content()
    path.write_text(sealed(copy.deepcopy(found)))
    assert read(path).correct == [[18, None], [12, 19]]  # control: sealed in the same way, a sound one is read
    spoil(found)
    path.write_text(sealed(found))
    with pytest.raises(UserError, match="is not a valid run record") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_what_is_refused_is_named(tmp_path):
    path = tmp_path / "record.json"
    for spoil, words in (
        ("a mistyped diagnostic", "unknown field `remarkz` - at `$.diagnostics`"),
        ("a seed that is text", "Expected `int`, got `str` - at `$.job.seed`"),
        ("more than there are", "more correct answers than test images"),
        ("a way out", "protocol '..' cannot name a folder"),
    ):
        found = content()
        SPOILT[spoil](found)
        path.write_text(sealed(found))
        with pytest.raises(UserError) as error:
            read(path)
        assert words in str(error.value)


def test_half_a_character_is_refused_wherever_it_stands(tmp_path):
    for place in (["diagnostics", "remarks", 0], ["environment", "device_name"], ["data", 0, "note"], ["job", "method"]):
        found = content()
        put(place, "a\ud800")(found)
        (tmp_path / "record.json").write_text(sealed(found))
        with pytest.raises(UserError, match="contains half of a character") as error:
            read(tmp_path / "record.json")
        str(error.value).encode()


def test_text_that_says_something_is_read_in_one_line(tmp_path):
    """Whatever a record says reaches terminals and documents: nothing in it moves a cursor or begins a line."""
    found = content()
    for place in (["diagnostics", "remarks", 0], ["environment", "device_name"], ["data", 0, "note"], ["tasks", 0, "name"]):
        put(place, "one\n| forged |\r\x1b[2J\u202e\x00two \u2013 é")(found)
    put(["job", "origins"], {"lr": "of\na search"})(found)
    (tmp_path / "record.json").write_text(sealed(found))
    record = read(tmp_path / "record.json")
    cleaned = "one | forged | ?[2J??two \u2013 é"
    assert [record.diagnostics.remarks[0], record.environment.device_name, record.data[0].note, record.tasks[0].name] == [
        cleaned
    ] * 4
    assert record.job.origins == {"lr": "of a search"}


@pytest.mark.parametrize("schema", [True, 2.0, "2", [2], None])
def test_a_schema_of_another_kind_is_another_schema(schema, tmp_path):
    found = content()
    found["schema"] = schema
    (tmp_path / "record.json").write_text(sealed(found))
    with pytest.raises(UserError, match="has record schema"):
        read(tmp_path / "record.json")


@pytest.mark.parametrize("depth", [500, 900, 1000, 5000])
def test_nesting_of_any_depth_is_one_clear_line(depth, tmp_path):
    text = sealed(content()).replace('"lr": 0.1', f'"lr": {"[" * depth}{"]" * depth}')
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match=r"record\.json: ") as error:
        read(tmp_path / "record.json")
    assert "\n" not in str(error.value)


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    folder = RunFolder(tmp_path)
    for path in (folder.record, folder.failure, folder.progress, folder.artifact, folder.lock):
        os.mkfifo(path)
    with pytest.raises(UserError, match="cannot be read: Not a regular file"):
        folder.read()
    with pytest.raises(UserError, match="cannot be read: Not a regular file"):
        folder.read_artifact(record_of(**{k: v for k, v in content().items() if k not in ("schema", "digest")}))
    with pytest.raises(UserError, match="cannot be read: Not a regular file"):
        Artifact.read(folder.artifact)
    assert folder.read_progress() is None
    assert folder.read_failure() == "its failure.json cannot be read"
    assert not folder.is_locked()
    with pytest.raises(UserError, match="cannot write to"), folder.locked():
        pass


def test_a_folder_that_cannot_be_read_is_named_and_not_passed_over(tmp_path, monkeypatch):
    write(run(), tmp_path / run().job.folder / "record.json")
    assert [len(found) for found in (read_all(tmp_path), record_paths(tmp_path))] == [1, 1]
    scandir = os.scandir
    for hidden in (tmp_path / run().job.folder, (tmp_path / run().job.folder).parent, tmp_path):

        def refusing(path, hidden=hidden):
            if Path(path) == hidden:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        for look in (read_all, record_paths):
            with pytest.raises(UserError, match=f"^{hidden}: cannot be read: Permission denied; make it readable"):
                look(tmp_path)
    monkeypatch.setattr(os, "scandir", scandir)
    own = tmp_path / run().job.folder
    (own / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop: cannot be read: Too many levels of symbolic links"):
        read_all(tmp_path)
    (own / "loop").unlink()
    (own / "up").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads back to a folder that it lies in"):
        read_all(tmp_path)


def test_a_folder_behind_a_link_counts(tmp_path):
    write(run(), tmp_path / "disk" / run().job.folder.name / "record.json")
    own = tmp_path / "runs" / run().job.folder
    own.parent.parent.mkdir(parents=True)
    own.parent.symlink_to(tmp_path / "disk")
    assert read_all(tmp_path / "runs") == [run()]
    assert record_paths(tmp_path / "runs") == [own / "record.json"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(value, tmp_path):
    text = sealed(content())
    spoilt = text.replace('"lr": 0.1', f'"lr": {value}')
    assert spoilt != text
    (tmp_path / "record.json").write_text(spoilt)
    with pytest.raises(UserError, match="contains NaN, infinity or a number too large"):
        read(tmp_path / "record.json")


@pytest.mark.parametrize("text", ["", "\0" * 64, "[" * 100_000, '{"schema": 1', "\ud800"])
def test_a_file_that_was_emptied_or_cut_short_is_one_clear_line(text, tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match="is not a JSON file") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_what_cannot_be_written_as_json_is_refused_before_it_is_written(tmp_path):
    found = {name: value for name, value in content().items() if name not in ("schema", "digest")}
    record = record_of(**{**found, "diagnostics": {"extra": {"kappa": math.inf}}})
    with pytest.raises(ValueError, match="diagnostics of the record contains NaN or infinity, which JSON cannot store"):
        write(record, tmp_path / "record.json")
    with pytest.raises(ValueError, match=r"Expected `int` >= 0 - at `\$.macs"):  # what could not be read back
        write(replace(record_of(**found), macs=[-1, 10]), tmp_path / "record.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": math.nan})


def test_every_published_record_is_read():
    paths = sorted(RESULTS.rglob("record.json"))
    assert paths
    for path in paths:
        assert read(path).job.folder.parts == path.parent.parts[-4:]


def test_a_lock_that_another_holds_is_waited_for_or_refused(tmp_path):
    with (
        files.locked(tmp_path / "lock"),
        pytest.raises(files.Busy, match="another process is working"),
        files.locked(tmp_path / "lock", wait=False),
    ):
        pass
    with files.locked(tmp_path / "lock", wait=False):  # released, it is free
        pass


def test_all_records_below_a_folder_are_one_table(tmp_path):
    runs = [run(seed=1), run("hat", 2, ((88, None), (88, 79))), joint()]
    for record in runs:
        write(record, tmp_path / record.job.folder / "record.json")
    table = benchsuite.records(tmp_path)
    assert len(table) == 3 + 3 + 2  # joint training is measured at the end alone
    one = table[table["method"] == "finetune"]
    assert one[["after", "position", "task", "accuracy"]].to_numpy().tolist() == [
        [1, 1, "task 0", 90.0],
        [2, 1, "task 0", 70.0],
        [2, 2, "task 1", 80.0],
    ]
    assert set(one["final_accuracy"]) == {75.0}
    assert set(one["bwt"]) == {-20.0}
    assert set(one["configuration"]) == {runs[0].job.config}
    final = table[table["after"] == table.groupby("path")["after"].transform("max")].groupby("method")["accuracy"].mean()
    assert final.to_dict() == {record.job.method: record.accuracy for record in runs}
    none = benchsuite.records(tmp_path / "none")
    assert list(none.columns) == list(table.columns)[: len(none.columns)]


def test_the_table_has_every_number_of_a_record_and_reads_back_from_csv_and_parquet(tmp_path, capsys):
    settings = [{"epochs": 10, "milestones": [3, 5]}, {"epochs": 10, "odd": 1}, {"epochs": 10, "odd": "one"}]
    runs = [run(seed=seed, settings=own, size=2_000_000 + seed) for seed, own in enumerate(settings)]
    for record in runs:
        write(record, tmp_path / "runs" / record.job.folder / "record.json")
    for name, read_table in (("all.csv", pd.read_csv), ("all.parquet", pd.read_parquet)):
        assert main(["table", str(tmp_path / name), "--results", str(tmp_path / "runs")]) == 0
        assert f"{name}: 9 accuracies of 3 runs" in capsys.readouterr().out
        table = read_table(tmp_path / name)
        assert table.columns.tolist() == benchsuite.records(tmp_path / "runs").columns.tolist()
        for record in runs:
            rows = table[table["seed"] == record.job.seed]
            assert rows["accuracy"].tolist() == [90.0, 70.0, 80.0]
            assert rows["correct"].tolist() == [90, 70, 80]
            assert rows["stored_bytes"].tolist()[1:] == [record.stored_bytes] * 2
            assert set(rows["iterations_sum"]) == {20}
            assert set(rows["training_state_bytes"]) == {3_000_000}
            assert set(rows["macs_mean"]) == {3_000_000}
        assert table["setting.milestones"].dropna().unique().tolist() == ["[3, 5]"]
    parts = {"job", "stored", "macs", "iterations", "kept_epochs", "seconds", "data", "environment", "memory", "forms"}
    words = {"diagnostics", "made_by", "family", "label", "marker"}  # no numbers, or of one method alone
    assert set(RunRecord.__struct_fields__) - set(table.columns) == parts | words


def test_a_table_needs_a_known_ending_and_some_records(tmp_path, capsys):
    assert main(["table", str(tmp_path / "all.xlsx"), "--results", str(tmp_path)]) == 2
    assert "neither CSV nor parquet" in capsys.readouterr().err
    assert main(["table", str(tmp_path / "all.csv"), "--results", str(tmp_path)]) == 2
    assert "has no records" in capsys.readouterr().err
    assert not (tmp_path / "all.csv").exists()
