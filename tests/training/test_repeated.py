"""`run --from`: the configuration of a record again, with what the options change, and what differs said."""

from pathlib import Path

import pytest
from records import changed

from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.record.store import read, write
from benchsuite.training.runner import run
from benchsuite.training.settings import repeated, resolve

TINY = {"tasks": 1, "train_per_class": 8, "test_per_class": 8, "epochs": 1, "batch_size": 16, "strength": 3.0}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return run(
        resolve("split-digits", "smoke", "ewc", 2, overrides=TINY, precision="bf16"), results=tmp_path_factory.mktemp("runs")
    )


def again(record, seed=None, precision=None, **overrides):
    return repeated(record, seed=seed, overrides=overrides, precision=precision)


def test_the_same_job_comes_back_with_its_origins_and_only_what_is_given_changes(record):
    assert again(record) == (record.job, [])
    other, notes = again(record, seed=5, strength="4", precision="fp32")
    assert notes == []
    assert (other.seed, other.precision, other.settings) == (5, "fp32", {**record.job.settings, "strength": 4.0})
    assert other.origins == record.job.origins | {"strength": "command line"}


def test_a_neutral_value_stays_neutral_where_the_tier_has_another(record):
    plain = changed(record.job, settings={name: value for name, value in record.job.settings.items() if name != "init"})
    assert resolve("split-digits", "smoke", "ewc", 2).settings["init"] == "he"
    assert again(changed(record, job=plain))[0].settings == plain.settings


def test_what_would_come_out_differently_is_said(record):
    old = dict.fromkeys(record.made_by, "0" * 12)
    foreign = changed(record.job, method_source="a" * 64)
    without = changed(record.job, settings={name: value for name, value in record.job.settings.items() if name != "dropout"})
    for spoilt, word in (
        ({"made_by": old}, "would give other numbers than the record (changed since: "),
        ({"made_by": {}}, "would give other numbers than the record (made by an earlier version)"),
        ({"job": foreign}, f"the source of ewc is another one ({'a' * 12} on record, here built in)"),
        ({"job": without}, "dropout did not exist when the record was made"),
    ):
        notes = again(changed(record, **spoilt))[1]
        assert any(word in note for note in notes), (word, notes)
    with pytest.raises(UserError, match="'strenght' is not a setting"):
        again(changed(record, job=changed(record.job, settings={**record.job.settings, "strenght": 1})))


def test_the_command_repeats_a_record_and_says_whether_its_numbers_are_the_same(record, tmp_path, capsys):
    path, results = tmp_path / "elsewhere" / "record.json", tmp_path / "here"
    write(record, path)
    command = ["run", "--results", str(results), "--from"]
    assert main([*command, str(path.parent)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "the same numbers as the record"
    made = Path(out.splitlines()[-2])
    assert read(made).job == record.job
    write(changed(record, carried_bytes=1), path)
    assert main([*command, str(path)]) == 0
    assert "other numbers than the record in: carried_bytes; `benchsuite verify`" in capsys.readouterr().out
    for wrong, word in (
        (["--tier", "paper"], "its tier is smoke, not paper; leave out --tier, or --from"),
        (["--method", "mas"], "its method is ewc, not mas"),
        (["--seed", "1002"], "tuned on the task order of seed 1002"),
        (["--set", "epochs=0"], "epochs must lie in [1,"),
    ):
        assert main([*command, str(path), *wrong]) == 2
        assert word in capsys.readouterr().err
    assert main(["run"]) == 2
    assert "a run needs a method; name one with --method, or a finished run to repeat with --from" in capsys.readouterr().err
