"""The command line: what users type, what they read when something is wrong, and a method of their own in one file."""

import ast
import errno
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch

import benchsuite
from benchsuite.cli.arguments import parser
from benchsuite.cli.main import main
from benchsuite.data.sets import load as load_images
from benchsuite.fields import convert
from benchsuite.record.store import read, read_all
from benchsuite.training.device import cores

DIGITS = ["--protocol", "split-digits"]
TINY = [*DIGITS, "--tier", "smoke", "--set", "tasks=3", "--set", "train_per_class=24", "--set", "batch_size=16"]

ANCHOR = '''
from dataclasses import dataclass, field

from benchsuite import Method, register


@register
@dataclass
class Anchor(Method):
    """L2 anchor: L = CE_t + strength / 2 ||theta - theta_{t-1}||^2 over the backbone."""

    strength: float = 1.0
    old: dict = field(default_factory=dict, init=False)

    def __post_init__(self):
        if self.strength < 0:
            raise ValueError(f"strength must not be negative, got {self.strength}")

    def before_backward(self, strategy, **kwargs):
        for name, p in self.model.backbone.named_parameters():
            if name in self.old:
                strategy.loss += self.strength / 2 * (p - self.old[name]).square().sum()

    def after_training_exp(self, strategy, **kwargs):
        self.old = {name: p.detach().clone() for name, p in self.model.backbone.named_parameters()}
'''.lstrip()

BROKEN = '''
from benchsuite import Method, register


@register
class Broken(Method):
    """It breaks in its second task."""

    def before_backward(self, strategy, **kwargs):
        if strategy.experience.current_experience == 1:
            raise RuntimeError("as it was told")
'''.lstrip()

KILLED = """
import os
import signal

from benchsuite import Method, register


@register
class Killed(Method):
    def before_backward(self, strategy, **kwargs):
        if strategy.experience.current_experience == 1:
            os.kill(os.getpid(), signal.SIGKILL)
""".lstrip()


@pytest.fixture
def folder(tmp_path, monkeypatch, own_methods):
    """The current folder, with nothing in reach: no images, no earlier runs, no methods but our own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCHSUITE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "anchor.py").write_text(ANCHOR)
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "killed.py").write_text(KILLED)
    return tmp_path


def call(*words):
    """The exit code of `benchsuite words`."""
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def test_list_names_everything(folder, capsys):
    assert call("list") == 0
    words = capsys.readouterr().out
    for word in ("cacl", "finetune", "individual", "joint", "split-digits", "split-cifar100", "161 MB", "smoke"):
        assert word in words


UNRESOLVED = """
from __future__ import annotations
from benchsuite import Method, register

@register
class Unresolved(Method):
    share: Optional[float] = 0.5
"""

TOO_LONG = f"""
from benchsuite import Method, register

@register
class Long(Method):
    name = {"a" * 300!r}
"""

RUN = ["run", *DIGITS, "--tier", "smoke"]
BAD = [
    ([*RUN, "--method", "cakl"], ["'cakl'", "did you mean 'cacl'?"]),
    ([*RUN, "--method", "none.py"], ["none.py", "registered name or a Python file"]),
    ([*RUN, "--method", "finetune", "--protocol", "split-cifar10"], ["'split-cifar10'", "did you mean 'split-cifar100'?"]),
    (["run", "--method", "finetune", "--tier", "full"], ["'full'", "paper"]),
    ([*RUN, "--method", "cacl", "--set", "sparsty_weight=1"], ["'sparsty_weight'", "did you mean 'sparsity_weight'?"]),
    ([*RUN, "--method", "finetune", "--set", "epochs=many"], ["epochs", "whole number", "'many'"]),
    ([*RUN, "--method", "finetune", "--set", "lr=-1"], ["lr", "(0, 1000000]"]),
    ([*RUN, "--method", "cacl", "--set", "energy_drop=2"], ["energy_drop", "[0, 1)"]),
    ([*RUN, "--method", "finetune", "--set", "epochs"], ["name=value", "'epochs'"]),
    ([*RUN, "--method", "finetune", "--seed", "one"], ["--seed", "'one'", "--help"]),
    ([*RUN, "--method", "finetune", "--seed", "1.5"], ["--seed", "'1.5'", "--help"]),
    ([*RUN, "--method", "finetune", "--seed", "-1"], ["seed", "-1"]),
    ([*RUN, "--method", "finetune", "--precision", "fp8"], ["precision", "'fp8'", "bf16"]),
    ([*RUN, "--method", "finetune", "--device", "tpu"], ["device", "'tpu'", "cpu"]),
    ([*RUN, "--method", "finetune", "--protocol", "split-cifar100", "--data-dir", "empty"], ["empty", "data get"]),
    ([*RUN, "--method", "finetune", "--results", "file/runs"], ["file/runs", "--results"]),
    (["leaderboard", "--seeds", "1,two"], ["seeds", "'1,two'"]),
    (["leaderboard", "--seeds", "1,1002"], ["seed 1002", "another"]),
    ([*RUN, "--method", "finetune", "--seed", "1002"], ["seed 1002", "another"]),
    (["leaderboard", "--tier", "smoke", "--set", "epoch=1"], ["'epoch'", "did you mean 'epochs'?"]),
    (["leaderboard", "--jobs", "0"], ["jobs", "at least 1"]),
    (["leaderboard", "--no-run"], ["no finished runs"]),
    (["leaderboard", "--no-run", "--seeds", "1,2,3"], ["--no-run", "--seeds"]),
    (["leaderboard", "--no-run", "--method", "cacl", "--set", "lr=1"], ["--no-run", "--method, --set"]),
    (
        [*RUN, "--method", "cacl", "--set", "backbone=cacl"],
        ["'cacl'", "split-digits", "too small", "these fit: digits, resnet10, resnet18"],
    ),
    ([*RUN, "--method", "finetune", "--set", "dropout=0.999999"], ["dropout", "0.999999"]),
    (["export", "a", "b", "--output", "c"], ["--output", "single"]),
    (["leaderboard", "--method", "cakl"], ["did you mean 'cacl'?"]),
    (["export", "nowhere"], ["nowhere"]),
    (["report", "out", "--results", "nowhere"], ["nowhere", "has no records", "--results"]),
    (["data", "verify", "split-cifar100", "--data-dir", "empty"], ["empty", "data get"]),
    (["data", "verify", "svhn", "--data-dir", "empty"], ["svhn not found", "data get svhn"]),
    (["data", "get", "cifar1000"], ["no protocol or data set is called 'cifar1000'", "did you mean 'cifar100'"]),
    (["new-method", "cacl"], ["'cacl'", "already"]),
    (["new-method", "CACL"], ["'cacl'", "already"]),
    (["new-method", "3d"], ["'3d'", "letter"]),
    (["new-method", "my-method"], ["'my-method'", "underscores"]),
    (["new-method", "_"], ["'_'", "letter"]),
    (["new-method", ""], ["''", "letter"]),
    (["new-method", "lambda"], ["'lambda'", "keyword"]),
    (["new-method", "none"], ["'none'", "keyword"]),
    (["new-method", "True"], ["'True'", "keyword"]),
    (["new-method", "a" * 300], ["at most 80"]),
    (["new-method", "random"], ["random.py", "hide a module of Python", "--output"]),
    (["new-method", "mine", "--output", 'a""".py'], ['a""".py', "--output"]),
    (["check", "unresolved.py"], ["Unresolved", "NameError: name 'Optional' is not defined", "import or define"]),
    ([*RUN, "--method", "unresolved.py"], ["Unresolved", "NameError: name 'Optional' is not defined", "import or define"]),
    (["check", "long.py"], ["long.py", "cannot name a folder", "shorter"]),
    ([*RUN, "--method", "long.py"], ["long.py", "cannot name a folder", "shorter"]),
    (["new-method", "mine", "--output", "mine.txt"], ["mine.txt", ".py"]),
    (["new-method", "mine", "--output", "nowhere/mine.py"], ["nowhere/mine.py", "--output"]),
    (["new-method", "broken"], ["broken.py", "exists already"]),
    (["check", "cakl"], ["did you mean 'cacl'?"]),
    (["check", "none.py"], ["none.py", "registered name or a Python file"]),
    (["check", "cacl", "--set", "energy_drop=2"], ["energy_drop", "[0, 1)"]),
    (["check", "cacl", "--set", "epochs=1"], ["epochs", "the settings of cacl"]),
    (["fly"], ["'fly'", "--help"]),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda value: " ".join(value[-2:]))
def test_what_the_user_can_mend_is_said_in_one_line(words, said, folder, capsys):
    (folder / "empty").mkdir()
    (folder / "file").write_text("mine")
    (folder / "unresolved.py").write_text(UNRESOLVED)
    (folder / "long.py").write_text(TOO_LONG)
    before = sorted(p for p in folder.rglob("*") if p.is_file())
    assert call(*words) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert err.startswith("benchsuite")
    assert [word for word in said if word not in err] == [], err
    assert out == ""
    left = sorted(p for p in folder.rglob("*") if p.is_file() and "cache" not in p.parts)
    assert left == before


@pytest.mark.parametrize("command", ["run", "leaderboard", "export", "leaderboard --no-run"])
def test_an_edited_record_stops_every_command(command, folder, capsys):
    run = ["run", *TINY, "--method", "finetune"]
    assert call(*run) == 0
    (path,) = folder.rglob("record.json")
    edited = path.read_text().replace('"correct": [\n  [\n   ', '"correct": [\n  [\n   1')
    assert edited != path.read_text()
    path.write_text(edited)
    capsys.readouterr()
    words = {
        "run": run,
        "leaderboard": ["leaderboard", *TINY, "--method", "finetune", "--seeds", "1"],
        "leaderboard --no-run": ["leaderboard", *DIGITS, "--tier", "smoke", "--no-run"],
        "export": ["export", path, "--output", "served.safetensors"],
    }
    assert call(*words[command]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == (4 if command == "leaderboard" else 1)  # first, as other runs go on, and at the end
    assert "record.json: was changed after it was written" in err
    assert path.read_text() == edited
    assert not (folder / "served.safetensors").exists()


@pytest.mark.slow
def test_a_method_in_one_file_appears_on_the_leaderboard(folder, capsys):
    assert len(ANCHOR.splitlines()) <= 30
    for seed in (1, 2):
        assert call("run", *TINY, "--method", "./anchor.py", "--seed", seed, "--set", "strength=0.5") == 0
        assert call("run", *TINY, "--method", "finetune", "--seed", seed) == 0
    assert call("leaderboard", *DIGITS, "--tier", "smoke", "--no-run", "--output", "board") == 0
    out = capsys.readouterr().out
    assert "anchor" in out
    table = pd.read_csv(folder / "board" / "accuracy.csv", comment="#")
    assert {"anchor", "finetune"} == set(table["method"].str.split().str[0])
    assert "anchor" in (folder / "board" / "leaderboard.md").read_text()
    own = [r for r in read_all(folder / "runs") if r.job.method == "anchor"]
    assert {r.job.seed for r in own} == {1, 2}
    assert len({r.job.config for r in own}) == 1
    assert own[0].job.settings["strength"] == 0.5
    assert len(own[0].job.method_source) == 64  # what was run is on record, though it lies outside the package


@pytest.mark.slow
def test_the_leaderboard_leaves_out_what_does_not_apply_and_says_why(folder, capsys):
    words = [*TINY, "--seeds", "1", "--set", "backbone=resnet18", "--set", "width=0.25", "--method", "finetune"]
    assert call("leaderboard", *words, "--method", "lwf") == 0
    said = capsys.readouterr()
    assert "n/a: lwf cannot run like this" in said.err
    assert "finetune" in said.out
    assert call(*RUN, "--method", "lwf", "--set", "backbone=resnet18") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("text", ["raise ValueError('no')", "x = 1", "import no_such_package", "raise ValueError('no\\nno')"])
def test_a_file_that_is_no_method_is_refused(text, folder, capsys):
    (folder / "other.py").write_text(text)
    assert call(*RUN, "--method", "./other.py") == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "other.py" in err


@pytest.mark.slow
def test_failing_and_killed_runs_do_not_stop_the_others(folder, capfd):
    grid = ["--method", "./broken.py", "--method", "./killed.py", "--method", "finetune", "--seeds", "1", "--jobs", "1"]
    assert call("leaderboard", *TINY, *grid) == 1
    failed = [line for line in capfd.readouterr().err.splitlines() if line.startswith("benchsuite: failed")]
    assert len(failed) == 2
    assert "as it was told" in failed[0]
    assert "killed seed 1: its process was killed 3 times" in failed[1]
    runs = folder / "runs" / "split-digits" / "smoke"
    assert {r.job.method for r in read_all(runs)} == {"finetune"}
    assert (runs / "leaderboard" / "accuracy.csv").exists()
    broke, killed = (json.loads(path.read_text()) for path in sorted(runs.rglob("failure.json")))
    assert "RuntimeError: as it was told" in broke["traceback"]
    assert "its process was killed 3 times" in killed["error"]
    assert len(list((runs / "killed").rglob("checkpoint.pt"))) == 1  # its first task is kept
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("record.json")}
    assert call("run", *TINY, "--method", "./broken.py") == 1  # a failure is no result: it is tried again
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("record.json")} == before


@pytest.mark.parametrize("method", ["finetune", "cacl"])
def test_an_exported_artifact_serves_raw_images_with_the_accuracy_on_record(method, folder, capsys):
    assert call("run", *TINY, "--method", method) == 0
    (path,) = folder.rglob("record.json")
    record = read(path)
    assert call("export", path.parent, "--output", "served.safetensors") == 0
    assert f"{record.stored_bytes:,} bytes" in capsys.readouterr().out
    assert (folder / "served.safetensors").stat().st_size == record.stored_bytes
    served, images = benchsuite.load("served.safetensors"), load_images("digits")
    x, y = torch.tensor(images.test_x), torch.tensor(images.test_y)
    for t, task in enumerate(record.tasks):
        rows = torch.isin(y, torch.tensor(task.classes))
        assert rows.sum() == task.test
        assert (served.predict(x[rows], t) == y[rows]).sum() == record.correct[-1][t]
        image = x[rows].numpy()
        image.flags.writeable = False  # as those of a data set are
        with warnings.catch_warnings(action="error"):
            assert torch.equal(served.predict(image, t), served.predict(x[rows], t))
    content = path.with_name("artifact.safetensors").read_bytes()
    path.with_name("artifact.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert call("export", path, "--output", "changed.safetensors") == 2
    assert "is not the file that its record describes" in capsys.readouterr().err
    path.with_name("artifact.safetensors").write_bytes(content)
    for wrong, task, said in (
        (x[:1], 3, r"serves tasks 0\.\.2, not 3"),
        (x[:1].float(), 0, r"must be uint8 \(B, H, W, C\) .* not float32 \(1, 8, 8, 1\)"),
        (x[0], 0, r"not uint8 \(8, 8, 1\)"),
        (x[:1, :5], 0, r"do not fit task 0, whose network takes \(C, H, W\) = \(1, 8, 8\)"),
    ):
        for ask in (served, served.predict):
            with pytest.raises(benchsuite.UserError, match=said):
                ask(wrong, task)

    assert call("export", path, "--form", "int8") == 0
    eight = folder / f"split-digits-smoke-{method}-seed1-int8.safetensors"
    assert eight.stat().st_size == record.forms["int8"].sizes.total < record.stored_bytes
    for t, task in enumerate(record.tasks):
        rows = torch.isin(y, torch.tensor(task.classes))
        assert (benchsuite.load(eight).predict(x[rows], t) == y[rows]).sum() == record.forms["int8"].correct[t]
    assert call("export", path, "--form", "int9") == 2
    assert f"{method} cannot be stored in 'int9'; did you mean 'int" in capsys.readouterr().err

    content = (folder / "served.safetensors").read_bytes()
    assert call("export", path, "--output", "served.safetensors") == 2
    assert "exists already" in capsys.readouterr().err
    assert (folder / "served.safetensors").read_bytes() == content


@pytest.mark.slow
def test_a_board_is_shown_without_a_record_that_cannot_be_used_and_says_so(folder, capsys):
    for method in ("finetune", "joint"):
        assert call("run", *TINY, "--method", method) == 0
    (path,) = folder.rglob("finetune/*/record.json")
    path.write_text("")
    for words, where in (
        (["leaderboard", *DIGITS, "--tier", "smoke", "--no-run", "--no-figures"], "runs/split-digits/smoke/leaderboard"),
        (["report", "out"], "out/split-digits/smoke"),
    ):
        capsys.readouterr()
        assert call(*words) == 2
        (err,) = capsys.readouterr().err.splitlines()
        assert "record.json: is not a JSON file" in err
        text = (folder / where / "leaderboard.md").read_text()
        assert "| joint " in text
        assert f"left out, because their records cannot be used: finetune/{path.parent.name}" in text


def test_a_board_that_cannot_be_written_is_shown(folder, capsys):
    assert call("run", *TINY, "--method", "finetune") == 0
    (folder / "file").touch()
    capsys.readouterr()
    assert call("leaderboard", *DIGITS, "--tier", "smoke", "--no-run", "--no-figures", "--output", "file/board") == 2
    out, err = capsys.readouterr()
    assert "finetune" in out
    assert err.startswith("benchsuite: error: cannot write to file/board")
    assert len(err.splitlines()) == 1


def test_a_board_without_any_run_says_why(folder, capfd):
    assert call("leaderboard", *TINY, "--method", "./broken.py", "--seeds", "1", "--jobs", "1") == 1
    err = capfd.readouterr().err
    assert "benchsuite: failed" in err
    assert "as it was told" in err
    assert "no finished runs" not in err


def test_several_configurations_are_exported_at_once(folder):
    for strength in ("0.5", "2"):
        assert call("run", *TINY, "--method", "./anchor.py", "--set", f"strength={strength}") == 0
    records = read_all(folder / "runs")
    assert call("export", *folder.rglob("*-seed1")) == 0
    assert {p.name for p in folder.glob("*.safetensors")} == {
        f"split-digits-smoke-anchor-seed1-{r.job.config}.safetensors" for r in records
    }


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["verify", "empty"], "empty/record.json: is not there; name the folder of one run"),
        (["export", "empty"], "empty/record.json: is not there; name the folder of one run"),
        (["run", "--from", "file"], "file/record.json: is not there; name the folder of one run"),
        (["status", "--results", "file"], "file: is not a folder; name one with --results"),
        (["leaderboard", "--no-run", "--results", "file"], "file: is not a folder; name one with --results"),
        (["report", "out", "--results", "file"], "file: is not a folder; name one with --results"),
    ],
)
def test_a_wrong_path_is_one_line_that_says_what_to_name(words, reason, folder, capsys):
    (folder / "empty").mkdir()
    (folder / "file").touch()
    assert main(words) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["status", "--results", LONG],
        ["leaderboard", "--no-run", "--results", LONG],
        ["merge", LONG],
        ["export", LONG],
        ["verify", LONG],
        ["check", f"{LONG}.py"],
        ["run", "--method", f"./{LONG}.py"],
        ["report", "out", "--results", "runs", "--method", f"{LONG}.py"],
        ["new-method", "mine", "--output", f"{LONG}.py"],
        ["run", *TINY, "--method", "finetune", "--results", LONG],
    ],
    ids=lambda words: words[0],
)
def test_a_path_that_is_too_long_is_one_line(words, folder, capsys):
    assert call(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchsuite: error: ")
    assert "File name too long" in line


def test_a_path_that_is_not_permitted_is_one_line(folder, capsys, monkeypatch):
    def refusing(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", refusing)
    code = call("status", "--results", "private/runs")
    monkeypatch.undo()
    assert code == 2
    assert capsys.readouterr().err == (
        "benchsuite: error: private/runs: Permission denied; check its name and your permissions\n"
    )


@pytest.mark.slow
def test_a_name_that_is_no_text_is_no_reason_to_fail(folder, capsys):
    results = os.fsdecode(b"runs-\xff")
    assert call("run", *TINY, "--method", "finetune", "--results", results) == 0
    assert "runs-\\udcff/split-digits/smoke/finetune" in capsys.readouterr().out
    for words in (
        ["status"],
        ["leaderboard", *DIGITS, "--tier", "smoke", "--no-run", "--no-figures"],
        ["report", "out"],
        ["merge", "none"],
    ):
        assert call(*words, "--results", results) == (2 if "none" in words else 0), words
    assert "runs-%FF/split-digits/smoke/finetune" in (folder / "out/index.html").read_text()


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">/dev/full", 2, r"benchsuite: error: cannot (read or write|write to standard output): No space left on device\n"),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
    ],
)
def test_standard_output_that_takes_nothing_is_one_line_at_most(redirection, code, said, tmp_path):
    answer = subprocess.run(
        f"exec '{sys.executable}' -m benchsuite status {redirection}", shell=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout) == (code, "")
    assert re.fullmatch(said, answer.stderr)


def test_a_record_in_the_folder_of_another_run_is_refused(folder, capsys):
    assert call("run", *TINY, "--method", "finetune") == 0
    (path,) = folder.rglob("record.json")
    path.parent.rename(str(path.parent).replace("seed1", "seed2"))
    capsys.readouterr()
    assert call("leaderboard", *TINY, "--method", "finetune", "--seeds", "2") == 2
    said, number, failed, error = capsys.readouterr().err.splitlines()
    reason = "record.json: holds the record of another run (split-digits/smoke finetune seed 1); move it away"
    assert said.startswith("benchsuite: not run: ")
    assert reason in said
    assert number == f"benchsuite: 1 of 1 runs to do, {cores()} at once"
    assert failed.startswith("benchsuite: failed: ")
    assert reason in failed
    assert error.startswith("benchsuite: error: ")
    assert "does not belong in this folder" in error


@pytest.mark.parametrize("partial", [True, False])
def test_data_get_accepts_incomplete_sets_only_when_told_to(partial, monkeypatch, capsys):
    import benchsuite.data as data

    def get(name, data_dir):
        raise benchsuite.UserError("half of it")

    def load(name, data_dir, *, partial):
        assert partial
        return load_images("digits")

    monkeypatch.setattr(data, "get", get)
    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(data, "verify", None)  # get has decoded everything already
    assert call("data", "get", "split-digits", *["--partial-data"] * partial) == (0 if partial else 2)
    assert "half of it" in capsys.readouterr().err


def test_a_setting_of_several_types_takes_the_narrowest_that_fits():
    given = [convert("n", value, int | float | None) for value in ("3", "0.5", 2.0, 4, "none")]
    assert given == [3, 0.5, 2.0, 4, None]
    assert [type(value) for value in given[:4]] == [int, float, float, int]
    assert convert("n", "half", int | str) == "half"
    with pytest.raises(benchsuite.UserError, match="n must be a whole number or a number, got 'many'"):
        convert("n", "many", int | float)


@pytest.mark.slow
def test_a_new_method_runs_and_keeps_the_rules(folder, forked_serving, capsys):
    assert call("new-method", "my_anchor") == 0
    assert (
        capsys.readouterr().out
        == "my_anchor.py: a method that runs; read it, change it, then run: benchsuite check my_anchor.py\n"
    )
    text = (folder / "my_anchor.py").read_text()
    assert len(text.splitlines()) <= 80
    assert "class MyAnchor(Method)" in text
    assert "new_method" not in text.lower()
    for word in HOOKS:
        assert word in text
    assert call("check", "./my_anchor.py") == 0
    out = capsys.readouterr().out
    assert out.startswith("my_anchor on split-digits, tier smoke\n  holds  a run of 3 tasks finishes and leaves a record\n")
    assert out.endswith("\nmy_anchor: all 13 applicable rules hold\n")
    assert "  n/a    the logits of old tasks" in out
    assert "FAILS" not in out
    assert sorted(path.name for path in folder.iterdir() if path.name not in ("cache", "__pycache__")) == [
        "anchor.py",
        "broken.py",
        "killed.py",
        "my_anchor.py",
    ]
    assert call("run", *TINY, "--method", "./my_anchor.py", "--set", "strength=100") == 0
    assert call("run", *TINY, "--method", "finetune") == 0
    held, free = (read(path) for path in sorted(folder.rglob("record.json"), key=lambda path: "finetune" in path.parts))
    assert held.job.settings["strength"] == 100
    assert held.artifact_sha256 != free.artifact_sha256  # the penalty acts


HOOKS = ["before_train_dataset_adaptation", "before_training_exp", "before_training_iteration", "before_forward"]
HOOKS += [
    "before_backward",
    "after_backward",
    "after_update",
    "after_training_exp",
    "prepare",
    "artifact",
    "restore",
    "diagnostics",
]
HOOKS += [
    "state()",
    "load_state(",
    "unsupported_reason(",
    "self.guard.freeze",
    "self.generator",
    "trains_old_heads",
    'forgetting = "',
]


@pytest.mark.parametrize("name", ["any", "artifact", "method", "tensor", "match", "new_method", "nn"])
@pytest.mark.slow
def test_a_new_method_is_valid_python_whatever_its_name(name, folder):
    assert call("new-method", name) == 0
    tree = ast.parse((folder / f"{name}.py").read_text())
    (cls,) = (node.name for node in tree.body if isinstance(node, ast.ClassDef))
    assert cls not in {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_a_new_method_never_overwrites_a_file(folder, capsys):
    (folder / "mine.py").write_text("mine")
    for words in (["mine"], ["other", "--output", "mine.py"]):
        assert call("new-method", *words) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert "mine.py: exists already" in err
    assert (folder / "mine.py").read_text() == "mine"
    assert call("new-method", "other", "--output", "there.py") == 0
    assert 'name = "other"' in (folder / "there.py").read_text()
    assert not (folder / "other.py").exists()


MASKED = '''
from benchsuite import Method, register


@register
class Masked(Method):
    """It "freezes" the backbone by zeroing its gradients."""

    forgetting = "none"

    def after_backward(self, strategy, **kwargs):
        if strategy.experience.current_experience:
            for p in self.model.backbone.parameters():
                if p.grad is not None:
                    p.grad.zero_()
'''.lstrip()


@pytest.mark.slow
def test_a_method_that_breaks_a_rule_fails_the_check(folder, forked_serving, capsys):
    (folder / "masked.py").write_text(MASKED)
    assert call("check", "./masked.py") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "FAILS" in line] == [
        "  FAILS  the logits of old tasks stay bit-identical after every later task"
    ]
    why = lines[lines.index("  FAILS  the logits of old tasks stay bit-identical after every later task") + 1]
    assert "the logits of task 1 changed while task 2 was learnt; use self.guard.freeze" in why
    assert "a zero gradient does not stop momentum" in why
    assert "optimizer=sgd, lr=0.01, momentum=0.9" in why
    assert lines[-1] == "masked: 1 of 14 rules broken"


def test_a_method_that_cannot_run_fails_the_check_at_once(folder, capsys):
    assert call("check", "./broken.py") == 1
    out = capsys.readouterr().out
    assert out.count("FAILS") == 1
    assert "the run failed: RuntimeError: as it was told, at line 10 of broken.py; fix that first" in out
    assert "holds" not in out


@pytest.mark.slow
def test_a_method_in_a_file_has_its_family_on_the_page_and_its_settings_checked_in_a_merge(folder, capsys):
    (folder / "anchor.py").write_text(ANCHOR.replace("    strength: float", '    family = "moorings"\n    strength: float'))
    assert call("run", *TINY, "--method", "./anchor.py") == 0
    assert call("leaderboard", "--no-run", "--tier", "paper") == 2
    assert "has no finished runs; there are some of --protocol split-digits --tier smoke" in capsys.readouterr().err
    assert call("merge", "runs", "--results", "again", "--method", "./anchor.py") == 0
    assert "not checked" not in capsys.readouterr().err
    assert call("report", "paper") == 0
    assert "moorings" in (folder / "paper" / "index.html").read_text()


@pytest.mark.parametrize(("words", "expected"), [(["--jobs", "2"], (2, 4)), (["--jobs", "16"], (16, 1)), ([], (8, 1))], ids=str)
def test_runs_at_once_share_the_cores(words, expected, folder, monkeypatch):
    from benchsuite.execution import plan

    asked = []
    monkeypatch.setattr(plan, "cores", lambda: 8)
    monkeypatch.setattr(
        plan, "run_all", lambda jobs, engine, **_: asked.append((engine.slots, engine.context.threads)) or {"a": "b"}
    )
    assert call("leaderboard", "--tier", "smoke", "--method", "finetune", "--seeds", "1", "--device", "cpu", *words) != 0
    assert asked == [expected]


def test_a_row_with_several_settings_can_be_named_in_a_list():
    words = parser().parse_args(["report", "paper", "--compare", "ewc, finetune [epochs=3, width=1],lwf"])
    assert words.compare == ["ewc", "finetune [epochs=3, width=1]", "lwf"]


NO_RUN = """
import sys
from benchsuite.cli.main import main
words = ["leaderboard", "--no-run", "--no-figures", "--results", sys.argv[1]]
assert main([*words, "--output", "board", *sys.argv[2:]]) == 0
print(sorted({"torch", "avalanche", "matplotlib"} & set(sys.modules)))
"""


@pytest.mark.parametrize("match", [[], ["--match-size", "cacl"]], ids=str)
@pytest.mark.slow
def test_records_are_ranked_without_torch_and_drawn_only_if_asked_for(match, tmp_path):
    results = Path(__file__).parents[2] / "results"
    command = [sys.executable, "-c", NO_RUN, results, *match]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["tables: board", "[]"]
    assert (tmp_path / "board" / "accuracy.csv").exists()
    assert not [*(tmp_path / "board").glob("*.png"), *(tmp_path / "board").glob("*.pdf")]
