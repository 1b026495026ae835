"""Records made elsewhere: what holds is added, what does not is refused, and nothing here is overwritten."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from records import changed

from benchsuite import files
from benchsuite.checks import merge
from benchsuite.checks.merge import APART
from benchsuite.checks.verify import check_job
from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.record import store
from benchsuite.record.store import read, write
from benchsuite.training.runner import run
from benchsuite.training.settings import resolve

TINY = {"tasks": 2, "train_per_class": 16, "test_per_class": 20, "epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A results folder with two runs."""
    folder = tmp_path_factory.mktemp("made")
    for method in ("finetune", "joint"):
        run(resolve("split-digits", "smoke", method, 1, overrides=TINY), results=folder)
    return folder


@pytest.fixture
def elsewhere(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "elsewhere"))


@pytest.fixture
def here(tmp_path):
    return tmp_path / "here"


def finetune(folder):
    (path,) = folder.rglob("finetune/*/record.json")
    return path


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def merged(source, here, capsys):
    """The exit code, the counts, the refusals and the remarks."""
    capsys.readouterr()
    code = main(["merge", str(source), "--results", str(here)])
    out, err = capsys.readouterr()
    refusals = [line for line in err.splitlines() if line.startswith("benchsuite: refused: ")]
    return code, out.strip().partition(": ")[2], refusals, [line for line in err.splitlines() if line not in refusals]


def edited(path, **changes):
    """The record at `path` with other values, under a digest that fits."""
    write(changed(read(path), **changes), path)


def test_what_holds_is_brought_in_byte_by_byte_and_a_second_time_skipped(elsewhere, here, capsys):
    assert merged(elsewhere, here, capsys) == (0, "2 added, 0 here already, 0 refused", [], [])
    assert contents(here) == contents(elsewhere)
    assert len(contents(here)) == 4
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert merged(elsewhere, here, capsys)[:2] == (0, "0 added, 2 here already, 0 refused")
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
    assert len(store.read_all(here)) == 2


def swap(record, **settings):
    return changed(record.job, settings={**record.job.settings, **settings})


def tasks_of(record, **changes):
    return [changed(task, **changes) for task in record.tasks]


SPOILT = {
    "tasks in another order": (lambda r: {"tasks": [r.tasks[1], r.tasks[0]]}, "not those of split-digits in the order of seed 1"),
    "an unknown tier": (lambda r: {"job": changed(r.job, tier="light")}, "no tier of split-digits is called 'light'"),
    "an unknown precision": (lambda r: {"job": changed(r.job, precision="fp8")}, "no precision is called 'fp8'"),
    "a setting of nobody": (lambda r: {"job": swap(r, strenght=1)}, "'strenght' is not a setting of finetune"),
    "a setting that is none": (lambda r: {"job": swap(r, epochs=0)}, "epochs must lie in [1, 1000000]"),
    "a seed of tuning": (lambda r: {"job": changed(r.job, seed=1002)}, "is used for tuning"),
    "a hole in the matrix": (
        lambda r: {"correct": [[None, None], r.correct[1]]},
        "cannot be computed: the accuracy matrix has gaps",
    ),
    "other images": (lambda r: {"data": [changed(r.data[0], digest="0" * 64)]}, "are not the official ones"),
    "images of something else": (lambda r: {"data": [changed(r.data[0], name="mnist")]}, "mnist: marked as complete"),
    "no images": (lambda r: {"data": []}, "no images of digits are on record"),
    "too many test images": (lambda r: {"tasks": tasks_of(r, test=4000)}, "4000 test images, but its settings allow 40"),
    "one training for two tasks": (
        lambda r: {"iterations": [4], "seconds": {"train": [1.0], "evaluate": [1.0]}, "memory": {}},
        "1 trainings for 2 tasks",
    ),
    "a larger size": (lambda r: {"stored": [None, changed(r.stored[1], heads=r.stored[1].heads + 1)]}, "bytes, its record says"),
    "other parts": (
        lambda r: {"stored": [None, changed(r.stored[1], heads=0, masks=r.stored[1].heads)]},
        "bytes, but its record says",
    ),
    "a smaller storage form": (
        lambda r: {"forms": r.forms | {"int8": changed(r.forms["int8"], sizes=changed(r.forms["int8"].sizes, heads=1))}},
        "in int8 it takes",
    ),
    "another artifact": (lambda r: {"artifact_sha256": "0" * 64}, "is not the file that its record describes"),
}


@pytest.mark.parametrize(("spoil", "word"), SPOILT.values(), ids=SPOILT.keys())
def test_what_does_not_hold_is_refused_with_the_reason_and_the_others_are_brought_in(spoil, word, elsewhere, here, capsys):
    path = finetune(elsewhere)
    edited(path, **spoil(read(path)))
    code, count, (refusal,), _ = merged(elsewhere, here, capsys)
    assert (code, count) == (1, "1 added, 0 here already, 1 refused")
    assert word in refusal
    assert str(path.parent) in refusal
    assert [p.parent.parent.name for p in here.rglob("record.json")] == ["joint"]


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda text: "", "is not a JSON file"),
        (lambda text: text[: len(text) // 2], "is not a JSON file"),
        (lambda text: text.replace('"seed": 1', '"seed": 2'), "was changed after it was written"),
        (lambda text: text.replace('"training_state_bytes": ', '"training_state_bytes": NaN, "x": '), "contains NaN"),
        (lambda text: json.dumps(json.loads(text) | {"schema": 9}), "has record schema 9, this version reads 2"),
    ],
)
def test_a_damaged_record_does_not_stop_the_others(spoil, word, elsewhere, here, capsys):
    path = finetune(elsewhere)
    text = path.read_text()
    path.write_text(spoil(text))
    assert path.read_text() != text
    code, count, (refusal,), _ = merged(elsewhere, here, capsys)
    assert (code, count) == (1, "1 added, 0 here already, 1 refused")
    assert word in refusal


def test_an_error_that_no_check_foresaw_refuses_one_record_alone(elsewhere, here, capsys, monkeypatch):
    sound = merge.check
    monkeypatch.setattr(merge, "check", lambda record: 1 // (record.job.method != "finetune") and sound(record))
    code, count, (refusal,), _ = merged(elsewhere, here, capsys)
    assert (code, count) == (1, "1 added, 0 here already, 1 refused")
    assert f"{finetune(elsewhere)}: ZeroDivisionError" in refusal


def test_what_would_not_come_out_the_same_is_brought_in_with_a_remark(elsewhere, here, capsys):
    path = finetune(elsewhere)
    record = read(path)
    assert "method finetune" in record.made_by
    assert merged(elsewhere, here / "control", capsys)[3] == []
    for i, (made_by, reason) in enumerate(
        (
            ({**record.made_by, "method finetune": "0" * 12}, "changed since: method finetune"),
            ({}, "made by an earlier version"),
        )
    ):
        edited(path, made_by=made_by)
        code, count, _, (remark,) = merged(elsewhere, here / str(i), capsys)
        assert (code, count) == (0, "2 added, 0 here already, 0 refused")
        assert f"{reason}: `benchsuite leaderboard` runs it again" in remark


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: c["job"]["settings"].update(lr="0.001"), "the setting lr must be a number, got '0.001'"),
        (lambda c: c["job"].update(method="a\ud800"), "contains half of a character"),
        (lambda c: c["job"].update(method="\U0001f600" * 100), "cannot name a folder"),
        (lambda c: c["job"].update(method="m" * 400), "cannot name a folder"),
        (lambda c: c["job"].update(origins={"lr": []}), "Expected `str`, got `array`"),
        (lambda c: c["seconds"]["train"].__setitem__(0, 10**400), "a number is too large"),
        (lambda c: c["diagnostics"].update(remarks=["\ud800"]), "contains half of a character"),
        (lambda c: c["environment"].update(device_name="\ud800"), "contains half of a character"),
        (lambda c: c["data"][0].update(note="\ud800"), "contains half of a character"),
    ],
)
def test_a_record_made_by_hand_is_refused_alone_and_by_name(spoil, words, elsewhere, here, capsys):
    path = finetune(elsewhere)
    content = json.loads(path.read_text())
    spoil(content)
    del content["digest"]
    path.write_text(json.dumps({**content, "digest": files.digest(content)}))
    code, count, (refusal,), _ = merged(elsewhere, here, capsys)
    assert (code, count) == (1, "1 added, 0 here already, 1 refused")
    assert str(path) in refusal
    assert words in refusal
    assert {record.job.method for record in store.read_all(here)} == {"joint"}


def test_a_setting_of_a_method_is_of_its_type(elsewhere, here, capsys):
    path = finetune(elsewhere)
    record = read(path)
    for strength, refused in (("1.0", True), (1.0, False)):  # the second is the control
        job = changed(record.job, method="si", settings={**record.job.settings, "strength": strength, "damping": 0.1})
        assert ("strength must be a number" in _refusal(job)) is refused


def _refusal(job):
    try:
        check_job(job)
    except UserError as error:
        return str(error)
    return ""


def test_a_name_that_the_file_system_cannot_hold_refuses_one_record(elsewhere, here, capsys, monkeypatch):
    bring = merge._bring

    def refusing(record, source, target):
        if record.job.method == "finetune":
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(target))
        return bring(record, source, target)

    monkeypatch.setattr(merge, "_bring", refusing)
    code, count, (refusal,), _ = merged(elsewhere, here, capsys)
    assert (code, count) == (1, "1 added, 0 here already, 1 refused")
    assert "finetune" in refusal
    assert "File name too long" in refusal


def test_what_a_killed_merge_was_writing_is_removed_by_the_next(elsewhere, here, capsys):
    half = here / read(finetune(elsewhere)).job.folder / ".writing.abc"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    assert merged(elsewhere, here, capsys)[0] == 0
    assert contents(here) == contents(elsewhere)


def test_a_folder_that_cannot_be_read_ends_the_merge_and_is_named(elsewhere, here, capsys):
    (elsewhere / "loop").symlink_to("loop")
    assert main(["merge", str(elsewhere), "--results", str(here)]) == 2
    assert f"{elsewhere / 'loop'}: cannot be read" in capsys.readouterr().err
    assert not here.exists()


def test_an_artifact_that_was_changed_or_serves_others_is_refused(elsewhere, here, capsys):
    path = finetune(elsewhere).with_name("artifact.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is not the file that its record describes" in merged(elsewhere, here, capsys)[2][0]
    other = content.replace(b"finetune", b"fineTune")
    assert other != content
    path.write_bytes(other)
    edited(finetune(elsewhere), artifact_sha256="")
    assert "its method are not those of its record" in merged(elsewhere, here, capsys)[2][0]
    path.unlink()
    code, count, refused, remarks = merged(elsewhere, here, capsys)
    assert (code, count, refused) == (0, "1 added, 1 here already, 0 refused", [])
    assert "1 of 2 records have no artifact beside them" in remarks[0]


def test_the_same_run_with_other_numbers_is_refused_with_both_origins_and_kept_as_it_is(elsewhere, here, capsys):
    merged(elsewhere, here, capsys)
    before = contents(here)
    path = finetune(elsewhere)
    record = read(path)
    first, *rest = record.correct[1]
    environment = changed(record.environment, device_name="Model Y", source={"revision": "abcdef0123", "dirty": False})
    edited(path, correct=[record.correct[0], [first - 1, *rest]], environment=environment)
    code, count, (refusal,), _ = merged(elsewhere, here, capsys)
    assert (code, count) == (1, "0 added, 1 here already, 1 refused")
    assert "other numbers (correct)" in refusal
    assert "Model Y" in refusal
    assert "revision abcdef0" in refusal
    assert record.environment.device_name in refusal
    assert contents(here) == before
    edited(path, correct=record.correct)  # control: made elsewhere, but with the same numbers
    assert merged(elsewhere, here, capsys)[:2] == (0, "0 added, 2 here already, 0 refused")
    assert contents(here) == before


def test_two_that_come_together_and_disagree_are_not_both_brought_in(elsewhere, here, capsys):
    twin = elsewhere / "zz" / "copy"
    shutil.copytree(finetune(elsewhere).parent, twin)
    edited(twin / "record.json", macs=[1, 1])
    code, count, (refusal,), _ = merged(elsewhere, here, capsys)
    assert (code, count) == (1, "2 added, 0 here already, 1 refused")
    assert "other numbers (macs)" in refusal


def test_other_images_than_those_of_the_records_here_are_refused(elsewhere, here, capsys, monkeypatch):
    """Of a set whose official digest nobody knows."""
    merged(elsewhere, here, capsys)
    path = finetune(elsewhere)
    record = read(path)
    job = changed(record.job, settings={**record.job.settings, "epochs": 2})
    edited(path, job=job, data=[changed(record.data[0], digest="1" * 64)])
    monkeypatch.setattr("benchsuite.checks.merge.official_digests", dict)
    (refusal,) = merged(elsewhere, here, capsys)[2]
    assert "images of digits: 111111111111 on record" in refusal
    edited(path, data=[changed(record.data[0], digest="1" * 64, complete=False, note="2 of 3 images")])
    code, count, refused, remarks = merged(elsewhere, here, capsys)  # partial sets differ: it is said
    assert (code, count, refused) == (0, "1 added, 1 here already, 0 refused", [])
    assert any("digits is not the published benchmark: 2 of 3 images" in remark for remark in remarks)


def test_a_method_that_is_not_known_here_is_no_reason_to_refuse(elsewhere, here, capsys):
    path = finetune(elsewhere)
    record = read(path)
    job = changed(record.job, method="theirs", method_source="a" * 64, settings={**record.job.settings, "strength": 1.0})
    path.with_name("artifact.safetensors").unlink()
    edited(path, job=job)
    code, count, refused, remarks = merged(elsewhere, here, capsys)
    assert (code, count, refused) == (0, "2 added, 0 here already, 0 refused", [])
    assert any("no method is called 'theirs'" in remark and "its settings were not checked" in remark for remark in remarks)
    assert (here / job.folder / "record.json").exists()


def test_a_name_that_leads_out_of_the_folder_is_refused(elsewhere, here, capsys):
    path = finetune(elsewhere)
    content = json.loads(path.read_text())
    content["job"]["tier"] = "../../../outside"
    del content["digest"]
    path.write_text(json.dumps({**content, "digest": files.digest(content)}))
    (refusal,) = merged(elsewhere, here, capsys)[2]
    assert "cannot name a folder" in refusal
    assert not list(here.parent.rglob("outside"))


def test_after_a_kill_the_same_command_ends_in_the_same_state(elsewhere, here, capsys, monkeypatch):
    whole = contents(elsewhere)
    write_atomic = files.write_atomic
    for moment in range(4):  # before each of the four files
        left = [moment]

        def killed(path, data, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write_atomic(path, data)

        monkeypatch.setattr(files, "write_atomic", killed)
        assert main(["merge", str(elsewhere), "--results", str(here)]) == 130
        for record in here.rglob("record.json"):  # a record is never there before its artifact
            assert record.with_name("artifact.safetensors").exists()
        assert len(contents(here)) == moment
        monkeypatch.setattr(files, "write_atomic", write_atomic)
        assert merged(elsewhere, here, capsys)[0] == 0
        assert contents(here) == whole
        shutil.rmtree(here)


def test_a_run_that_is_under_way_here_is_left_alone(elsewhere, here, capsys):
    record = read(finetune(elsewhere))
    with files.locked(here / record.job.folder / "lock"):
        code, count, (refusal,), _ = merged(elsewhere, here, capsys)
    assert (code, count) == (1, "1 added, 0 here already, 1 refused")
    assert "another process is working on this run" in refusal
    assert not (here / record.job.folder / "record.json").exists()


def test_an_artifact_here_without_a_record_is_not_overwritten(elsewhere, here, capsys):
    record = read(finetune(elsewhere))
    own = here / record.job.folder / "artifact.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    code, count, (refusal,), _ = merged(elsewhere, here, capsys)
    assert (code, count) == (1, "1 added, 0 here already, 1 refused")
    assert "is here already and is another file" in refusal
    assert own.read_bytes() == b"mine"


def test_trials_and_re_runs_stay_apart_and_a_folder_without_records_is_an_error(elsewhere, here, capsys):
    for name in APART:
        shutil.copytree(finetune(elsewhere).parent, elsewhere / name / "split-digits")
    assert merged(elsewhere, here, capsys)[1] == "2 added, 0 here already, 0 refused"
    (here.parent / "empty").mkdir()
    for source in ("empty", "none"):
        assert main(["merge", str(here.parent / source), "--results", str(here)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_results_folder_that_cannot_be_written_ends_the_merge_with_one_line(elsewhere, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["merge", str(elsewhere), "--results", str(tmp_path / "file" / "runs")]) == 2
    err = capsys.readouterr().err
    assert "cannot write to" in err
    assert len(err.splitlines()) == 1


def test_the_fixture_is_as_a_run_leaves_it(made):
    """Guards the tests above: what they spoil held before."""
    assert {read(path).job.method for path in made.rglob("record.json")} == {"finetune", "joint"}
