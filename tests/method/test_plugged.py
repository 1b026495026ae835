"""Avalanche's strategy plugins as methods: what they train with, hold, store, and how they resume."""

import numpy as np
import pytest
import qpsolvers
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import plugins
from avalanche.training.storage_policy import ReservoirSamplingBuffer

from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.execution import tune
from benchsuite.execution.messages import Finished
from benchsuite.execution.plan import plan
from benchsuite.execution.worker import RunContext, outcome
from benchsuite.fields import field_types
from benchsuite.method import Method, register
from benchsuite.method.artifact import Artifact
from benchsuite.method.plugged import Call, from_plugin
from benchsuite.method.serving import load
from benchsuite.record import schema
from benchsuite.record.store import read_all
from benchsuite.training import schedule
from benchsuite.training.events import Event
from benchsuite.training.runner import run
from benchsuite.training.settings import Unsupported, resolve

TINY = {"tasks": 3, "train_per_class": 12, "test_per_class": 10, "epochs": 3, "batch_size": 8, "backbone": "digits"}
PLUGINS = {
    "EWCPlugin": {"ewc_lambda": 10.0},
    "EarlyStoppingPlugin": {"patience": 1, "val_stream_name": "train_stream", "margin": 10.0},
    "GDumbPlugin": {"mem_size": 20},
    "GEMPlugin": {"patterns_per_experience": 8, "memory_strength": 0.5},
    "LwFPlugin": {"alpha": 1.0, "temperature": 2.0},
    "MASPlugin": {},
    "RWalkPlugin": {"delta_t": 2},
    "ReplayPlugin": {"mem_size": 20},
    "SynapticIntelligencePlugin": {"si_lambda": 1e7, "excluded_parameters": ["heads"]},
}


def job_of(name, **settings):
    return resolve("split-digits", "smoke", name, 1, overrides=TINY | settings)


def made(name, plugin, **arguments):
    return register(from_plugin(plugin, name=name, **arguments))


def interrupted(job, results, stage=1):
    """Run until the first epoch of this stage has ended. Returns what was said."""
    said = []

    def stop(event):
        said.append(getattr(event, "note", None))
        if isinstance(event, Event) and (event.stage, event.epoch) == (stage, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, results=results, report=stop)
    return [note for note in said if note]


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.slow
def test_it_trains_and_resumes_to_the_same_numbers(name, own_methods, tmp_path):
    if name == "GEMPlugin" and "quadprog" not in qpsolvers.available_solvers:
        pytest.skip("quadprog is not installed")
    made("plugged", getattr(plugins, name), **PLUGINS[name])
    job, stages = job_of("plugged"), []
    assert interrupted(job, tmp_path, stage=2) == []
    resumed = run(job, results=tmp_path, report=lambda event: stages.append(event.stage))
    assert min(stages) == 2
    whole = run(job, results=tmp_path / "whole")
    assert schema.differences(whole, resumed) == []
    finetune = run(job_of("finetune"), results=tmp_path)
    weights, plain = (Artifact.read(next((tmp_path / r.job.folder).glob("*.safetensors"))).tensors for r in (whole, finetune))
    # It does something. But on a CPU Avalanche's SI keeps views of the weights where it needs copies: no weight matters to it.
    assert any(not torch.equal(weights[key], plain[key]) for key in plain) == (name != "SynapticIntelligencePlugin")
    assert (whole.iterations == finetune.iterations) == (name != "EarlyStoppingPlugin")
    assert whole.carried_bytes > finetune.carried_bytes or name == "EarlyStoppingPlugin"


@pytest.mark.parametrize(
    ("plugin", "arguments", "why"),
    [
        (
            "GEMPlugin",
            {"patterns_per_experience": 8, "memory_strength": 0.5},
            "it needs the package quadprog: pip install quadprog",
        ),
        ("BiCPlugin", {}, "one head that all tasks share"),
        ("CWRStarPlugin", {}, "one head that all tasks share"),
        ("SynapticIntelligencePlugin", {"si_lambda": 0.1}, r"add excluded_parameters=\['heads'\]"),
        ("EarlyStoppingPlugin", {"patience": 1, "val_stream_name": "test_stream"}, "test images choose nothing"),
        ("EarlyStoppingPlugin", {"patience": 1, "val_stream_name": "train_stream", "metric_name": "Forgetting"}, "metric_name"),
    ],
)
def test_what_cannot_run_says_why(plugin, arguments, why, own_methods, monkeypatch):
    monkeypatch.setattr(qpsolvers, "available_solvers", [])
    made("plugged", getattr(plugins, plugin), **arguments)
    with pytest.raises(Unsupported, match=why):
        job_of("plugged")


def test_what_no_checkpoint_can_hold_is_said_before_training_and_starts_again(own_methods, tmp_path):
    made("plugged", plugins.AGEMPlugin, patterns_per_experience=4, sample_size=4)
    job, stages = job_of("plugged"), []
    (note,) = interrupted(job, tmp_path)
    assert note == (
        "AGEMPlugin.buffer_dliter is a list_iterator, which no checkpoint can hold: if it is interrupted, "
        "this run starts again at its first task"
    )
    resumed = run(job, results=tmp_path, report=lambda event: stages.append(event.stage))
    assert min(stages) == 0
    assert schema.same_numbers(resumed, run(job, results=tmp_path / "whole"))
    assert resumed.memory_bytes == 3 * 4 * 64
    assert resumed.carried_bytes > resumed.memory_bytes


PATIENT = {"lr_schedule": "patience", "validation": 0.25, "lr_patience": 1, "lr": 0.02}


def test_under_patience_a_plugin_goes_back_to_the_best_epoch_too(own_methods, tmp_path, monkeypatch):
    losses = iter((5.0, 4.0, 4.5, 4.5, *(5.0, 4.5, 4.0, 4.5)))
    monkeypatch.setattr(schedule, "validation_loss", lambda strategy: next(losses))
    seen = []

    class Counts(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.epochs = np.zeros(2, int)

        def after_training_epoch(self, strategy, **kwargs):
            self.epochs[strategy.clock.train_exp_counter] += 1

        def after_training_exp(self, strategy, **kwargs):
            seen.append((self.epochs.tolist(), strategy.clock.train_exp_epochs))

    made("plugged", Counts)
    run(job_of("plugged", tasks=2, epochs=4, **PATIENT), results=tmp_path)
    assert seen == [([2, 0], 4), ([2, 3], 4)]


def test_under_patience_what_cannot_go_back_is_refused_before_training(own_methods, tmp_path):
    made("plugged", plugins.AGEMPlugin, patterns_per_experience=4, sample_size=4)
    said = []
    with pytest.raises(UserError, match=r"AGEMPlugin\.buffer_dliter is a list_iterator, .*; use another lr_schedule"):
        run(job_of("plugged", **PATIENT), results=tmp_path, report=said.append)
    assert said == []
    assert list(tmp_path.iterdir()) == []

    class Later(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            self.lazily = iter([])

    made("later", Later)
    with pytest.raises(UserError, match=r"Later\.lazily is a list_iterator"):
        run(job_of("later", **PATIENT), results=tmp_path)


def test_what_is_found_out_later_costs_the_checkpoint_alone(own_methods, tmp_path):
    class Later(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            self.lazily = iter([])

    made("plugged", Later)
    job, stages = job_of("plugged"), []
    interrupted(job, tmp_path, stage=2)
    run(job, results=tmp_path, report=lambda event: stages.append(event.stage))
    assert min(stages) == 0


def test_stored_images_count(own_methods, tmp_path):
    made("plugged", plugins.ReplayPlugin, mem_size=20)
    record, plain = run(job_of("plugged"), results=tmp_path), run(job_of("finetune"), results=tmp_path)
    assert record.memory_bytes == 20 * 64
    assert record.training_state_bytes >= plain.training_state_bytes + 20 * 64
    assert record.carried_bytes - plain.carried_bytes in range(20 * 64, 20 * 64 + 400)  # and the weights of its lottery


def test_stored_tensors_count(own_methods, tmp_path):
    class Keeps(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            self.kept = [*getattr(self, "kept", []), torch.zeros(250)]

    made("plugged", Keeps)
    record, plain = run(job_of("plugged"), results=tmp_path), run(job_of("finetune"), results=tmp_path)
    assert record.carried_bytes == plain.carried_bytes + 3 * 1000
    assert record.training_state_bytes == plain.training_state_bytes + 2 * 1000


def test_literals_become_typed_settings(own_methods):
    cls = made("plugged", plugins.LwFPlugin, alpha=1, temperature=2.0)
    assert field_types(cls) == {"alpha": int | float, "temperature": int | float}
    assert job_of("plugged").settings.items() >= {"alpha": 1, "temperature": 2.0}.items()
    other = job_of("plugged", alpha="0.5")
    assert other.settings["alpha"] == 0.5
    assert other.config != job_of("plugged").config
    with pytest.raises(UserError, match=r"alpha must be .*, got 'much'"):
        job_of("plugged", alpha="much")


def test_an_argument_that_is_a_setting_already_has_a_name_of_its_own(own_methods):
    cls = made("plugged", plugins.ReplayPlugin, batch_size=4)
    assert cls.arguments["batch_size"] == "ReplayPlugin_batch_size"
    job = job_of("plugged")
    assert (job.settings["batch_size"], job.settings["ReplayPlugin_batch_size"]) == (8, 4)


def test_what_is_no_literal_is_copied_for_each_run(own_methods, tmp_path):
    policy = ReservoirSamplingBuffer(20)
    made("plugged", plugins.ReplayPlugin, mem_size=20, storage_policy=policy)
    first = run(job_of("plugged"), results=tmp_path)
    assert len(policy.buffer) == 0
    assert schema.same_numbers(first, run(job_of("plugged"), results=tmp_path / "again"))


def test_mistakes_are_told_when_the_method_is_made(own_methods):
    with pytest.raises(UserError, match="LwFPlugin has no argument 'alfa'; did you mean 'alpha'"):
        from_plugin(plugins.LwFPlugin, name="plugged", alfa=1.0)
    for wrong in (Method, "LwFPlugin", torch.nn.Linear):
        with pytest.raises(UserError, match="is not an Avalanche strategy plugin"):
            from_plugin(wrong, name="plugged")
    made("plugged", plugins.RWalkPlugin, delta_t=0)
    with pytest.raises(UserError, match="RWalkPlugin cannot be made: AssertionError: `delta_t` must be at least 1"):
        job_of("plugged")


@pytest.mark.parametrize(
    ("plugin", "arguments", "ours", "settings"),
    [
        ("LwFPlugin", {"alpha": 4.0}, "lwf", {"strength": 1.0}),  # alpha KL at tau = 2 is tau^2 KL at strength 1
        ("EWCPlugin", {"ewc_lambda": 50.0}, "ewc", {"strength": 50.0, "fisher": "empirical"}),
    ],
)
@pytest.mark.slow
def test_it_comes_close_to_our_own(plugin, arguments, ours, settings, own_methods, tmp_path):
    made("plugged", getattr(plugins, plugin), **arguments)
    size = {"train_per_class": 40, "test_per_class": 40, "epochs": 4, "tasks": 5}
    theirs, mine = (run(job_of(name, **size, **own), results=tmp_path) for name, own in (("plugged", {}), (ours, settings)))
    assert theirs.accuracy == pytest.approx(mine.accuracy, abs=6)
    assert theirs.bwt == pytest.approx(mine.bwt, abs=8)


def test_a_call_is_read_and_nothing_in_it_is_evaluated():
    assert Call.parse("EarlyStoppingPlugin") == Call("", "EarlyStoppingPlugin", {})
    assert Call.parse("a.b:C(x=1, y='(,)', z=[1, 2.5], w=None)") == Call(
        "a.b", "C", {"x": 1, "y": "(,)", "z": [1, 2.5], "w": None}
    )
    assert Call.parse("./some dir/a.py:C()") == Call("./some dir/a.py", "C", {})
    for wrong in (
        "",
        "C(1)",
        "C(x=print(1))",
        "C(**{'x': 1})",
        "C(x=1",
        "C(x=1)(y=2)",
        "a.py:",
        "C(x=1, x=2)",
        "C(x=" + "[" * 5000,
    ):
        with pytest.raises(UserError):
            Call.parse(wrong)


OWN = """
from avalanche.core import SupervisedPlugin


class Shrink(SupervisedPlugin):
    def __init__(self, by=0.9):
        super().__init__()
        self.by = by

    def after_training_epoch(self, strategy, **kwargs):
        for p in strategy.model.parameters():
            p.data.mul_(self.by)


class Quiet(SupervisedPlugin):
    looks_on = True

    def after_training_epoch(self, strategy, **kwargs):
        print("seen")


class Liar(Shrink):
    looks_on = True
"""
SMALL = ["--protocol", "split-digits", "--tier", "smoke", *(word for k, v in TINY.items() for word in ("--set", f"{k}={v}"))]


def own_file(tmp_path, text=OWN, name="own.py"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_a_plugin_that_trains_is_part_of_the_name_and_of_the_identity(own_methods, tmp_path, capsys):
    own = own_file(tmp_path)
    command = ["run", "--method", "finetune", *SMALL, "--results", str(tmp_path / "runs")]
    assert main(command) == 0
    assert main([*command, "--plugin", f"{own}:Shrink(by=0.5)"]) == 0
    assert main([*command, "--plugin", "RWalkPlugin(delta_t=2)"]) == 0
    assert main([*command, "--plugin", "RWalkPlugin(delta_t=2)", "--plugin", f"{own}:Shrink(by=0.5)"]) == 2
    assert "finetune+RWalkPlugin trains with a plugin already" in capsys.readouterr().err
    assert main(["leaderboard", "--no-run", "--no-figures", *SMALL[:4], "--results", str(tmp_path / "runs")]) == 0
    records = {record.job.method: record for record in read_all(tmp_path / "runs")}
    assert set(records) == {"finetune", "finetune+own.py:Shrink", "finetune+RWalkPlugin"}
    shrunk = records["finetune+own.py:Shrink"]
    assert shrunk.job.settings["by"] == 0.5
    assert len(shrunk.job.method_source) == 64
    board = (tmp_path / "runs" / "split-digits" / "smoke" / "leaderboard" / "accuracy.md").read_text()
    assert all(name in board for name in records)
    assert load(tmp_path / "runs" / shrunk.job.folder / "artifact.safetensors").tasks
    edited = own_file(tmp_path, OWN.replace("mul_(self.by)", "mul_(self.by / 2)"), "other.py")
    assert own_methods.source(own_methods.find(f"finetune+{edited}:Shrink")) != shrunk.job.method_source


def test_a_plugin_that_looks_on_is_checked_and_no_part_of_the_name(own_methods, tmp_path, capsys):
    own = own_file(tmp_path)
    command = ["run", "--method", "finetune", *SMALL, "--results", str(tmp_path / "runs")]
    assert main([*command, "--plugin", f"{own}:Liar()"]) == 2
    assert "Liar may only look on, but in after_training_epoch it changes a tensor of the run (mul_)" in capsys.readouterr().err
    assert main([*command, "--plugin", f"{own}:Quiet"]) == 0
    assert "seen" in capsys.readouterr().out
    assert [record.job.method for record in read_all(tmp_path / "runs")] == ["finetune"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NoSuchPlugin()", "Avalanche has no strategy plugin 'NoSuchPlugin'"),
        ("os:system(command='true')", "os:system: is not an Avalanche strategy plugin"),
        ("no.such.module:C()", "no.such.module: cannot be imported"),
        ("./none.py:C()", "no such file"),
        ("RWalkPlugin(delta=2)", "RWalkPlugin has no argument 'delta' that text can give; did you mean 'delta_t'"),
        ("RWalkPlugin(delta_t='x')", "delta_t must be"),
        ("RWalkPlugin(2)", "an argument without a name"),
        ("EWCPlugin()", "ewc_lambda has no default"),
    ],
)
def test_a_wrong_plugin_is_one_line(text, said, own_methods, tmp_path, capsys):
    assert main(["run", "--method", "finetune", *SMALL, "--results", str(tmp_path), "--plugin", text]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_commands_on_a_record_take_the_plugin_that_its_method_trains_with(own_methods, tmp_path, capsys, monkeypatch):
    own, settings = own_file(tmp_path), {**TINY, "tasks": 1, "epochs": 1}
    monkeypatch.chdir(tmp_path)

    def call(*words, code=0):
        own_methods._plugins.clear(), own_methods._modified.clear()  # as in another process
        capsys.readouterr()
        assert main([str(word) for word in words]) == code
        out, err = capsys.readouterr()
        assert err.count("benchsuite: error") == (code == 2)
        return out if code == 0 else err

    small = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
    call("run", "--method", "finetune", *SMALL[:4], *small, "--plugin", f"{own}:Shrink(by=0.5)")
    (run,) = (tmp_path / "runs").rglob("record.json")
    assert "the plugin own.py:Shrink is not known here; name its module or file with --plugin\n" in call("verify", run, code=2)
    assert "identical" in call("verify", run, "--plugin", "./own.py:Shrink")
    assert "the same numbers" in call("run", "--from", run, "--plugin", "./own.py:Shrink")
    assert "write --plugin without them" in call("verify", run, "--plugin", "./own.py:Shrink(by=0.5)", code=2)
    assert "is of finetune+own.py:Shrink, without RWalkPlugin" in call("verify", run, "--plugin", "RWalkPlugin", code=2)
    assert "1 added" in call("merge", "runs", "--results", "merged", "--plugin", "./own.py:Shrink")
    for command in (["tune", "--method", "ewc", *SMALL[:4]], ["check", "ewc"]):
        assert "Quiet only looks on; leave it out" in call(*command, "--plugin", "./own.py:Quiet", code=2)
        assert "Shrink has no argument 'to'" in call(*command, "--plugin", "./own.py:Shrink(to=1)", code=2)
    said = []
    monkeypatch.setattr(tune.Study, "search", lambda study, *_, **__: said.append((study.method, study.overrides)) or ())
    main(["tune", "--method", "ewc", *SMALL[:4], "--plugin", "./own.py:Shrink(by=0.5)"])
    assert said == [("ewc+own.py:Shrink", {"by": 0.5})]


def test_a_file_without_its_plugin_can_be_mended(own_methods, tmp_path):
    own = own_file(tmp_path, OWN.replace("class Quiet", "class Quite"), "mended.py")
    with pytest.raises(UserError, match=r"mended\.py: has no Quiet; did you mean 'Quite'"):
        own_methods.plugins([f"{own}:Quiet()"])
    own_file(tmp_path, OWN.replace("class Quiet(SupervisedPlugin)", "class Quiet"), "mended.py")
    with pytest.raises(UserError, match=r"mended\.py:Quiet: is not an Avalanche strategy plugin"):
        own_methods.plugins([f"{own}:Quiet()"])
    own_file(tmp_path, OWN, "mended.py")
    assert len(own_methods.plugins([f"{own}:Quiet()"])[1]) == 1


def test_a_record_alone_imports_nothing(own_methods):
    with pytest.raises(UserError, match="the plugin antigravity:C is not known here"):
        own_methods.get("finetune+antigravity:C")
    assert own_methods.source("finetune+antigravity:C") == ""


def test_plugins_reach_every_run_of_a_board(own_methods, tmp_path):
    own = own_file(tmp_path)
    texts = [f"{own}:Shrink(by=0.5)", f"{own}:Quiet()"]
    made = plan(
        "split-digits", tier="smoke", methods=["finetune", "er"], seeds=[1], results=tmp_path, plugins=texts, settings=TINY
    )
    assert {job.method for job in made.jobs} == {f"{name}+own.py:Shrink" for name in ("finetune", "er")}
    assert made.plugins == ("own.py:Shrink(by=0.5)", "own.py:Quiet()")
    context = RunContext(
        results=tmp_path, data_dir=None, device="cpu", threads=1, user_files=made.plugin_files, plugins=made.plugins
    )
    own_methods._plugins.clear()
    own_methods._modified.clear()
    assert outcome(made.jobs[0], context, lambda event: None) == Finished()
