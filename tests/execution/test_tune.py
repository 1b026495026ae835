"""Tuning: what is searched, what a trial may see, and that the same command gives the same choice, whatever came between."""

import itertools
import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar, Literal

import optuna
import pytest

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.cli.main import main
from benchsuite.data import sets
from benchsuite.errors import UserError
from benchsuite.execution import tune
from benchsuite.execution.tune import best_of, study
from benchsuite.fields import field_types
from benchsuite.method import Choice, Method, Range, methods, register
from benchsuite.record.store import read_all
from benchsuite.training import runner, stream
from benchsuite.training.settings import resolve

TINY = {"train_per_class": 8, "test_per_class": 8, "batch_size": 16}
DIGITS = ["--protocol", "split-digits"]
SET = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]

PULL = '''
from dataclasses import dataclass
from typing import ClassVar

from benchsuite import Preset, Method, Range, register


@register
@dataclass
class Pull(Method):
    """A weight decay of the loss's own."""

    strength: float = 0.01
    power: int = 2

    space: ClassVar = {"strength": Range(1e-3, 10.0, log=True)}
    settings: ClassVar = (
SETTINGS
    )

    def before_backward(self, strategy, **kwargs):
        strategy.loss += self.strength * sum(p.abs().pow(self.power).sum() for p in self.model.backbone.parameters())
'''.lstrip()


@pytest.fixture
def toy(own_methods):
    """A method that trains as fine-tuning does, with a setting of every kind."""

    @register
    @dataclass
    class Toy(Method):
        rate: float = 1.2345
        depth: int = 4
        kind: Literal["a", "b", "c"] = "b"
        sizes: tuple[int, ...] = (1, 2)
        spare: float = 0.0

        space: ClassVar = {
            "rate": Range(1e-2, 1e2, log=True),
            "depth": Range(2, 9),
            "kind": Choice(("a", "b")),
            "sizes": Choice(((1, 2), (3,))),
            "lr": Choice((1e-3, 1e-2)),
        }

        def __post_init__(self):
            if self.rate < 0 or self.depth < 2:
                raise ValueError(f"rate must not be negative, nor depth below 2, got {self.rate} and {self.depth}")

    return Toy


@pytest.fixture
def pretend(monkeypatch):
    """Runs that take no time: ACC is highest at rate 30, but for exceptions. The jobs so far, and the exceptions by rate."""
    jobs, exceptions = [], {}

    def run(job, **_):
        jobs.append(job)
        right = exceptions.get(job.settings["rate"], round(1000 - 100 * abs(job.settings["rate"] - 30) ** 0.5))
        return SimpleNamespace(accuracy=max(right, 0) / 10)

    monkeypatch.setattr(tune, "run", run)
    return jobs, exceptions


@pytest.fixture
def trained(monkeypatch):
    """The jobs that were trained, as against read."""
    jobs, finish = [], runner._Run.finish

    def counted(self, *given):
        jobs.append(self.job)
        return finish(self, *given)

    monkeypatch.setattr(runner._Run, "finish", counted)
    return jobs


def study_of(name, trials, **settings):
    return study("split-digits", "smoke", name, trials, overrides=TINY | settings)


def test_every_trial_lies_in_the_space(toy, pretend, tmp_path):
    trials = list(study_of("toy", 40).search(tmp_path))
    assert [t.number for t in trials] == list(range(1, 41))
    assert trials[0].values == {"rate": 1.2345, "depth": 4, "kind": "b", "sizes": [1, 2], "lr": 1e-3}, "the present values"
    for trial, job in zip(trials, pretend[0], strict=True):
        values = trial.values
        assert 1e-2 <= values["rate"] <= 1e2
        assert trial.number == 1 or values["rate"] == float(f"{values['rate']:.3g}")
        assert type(values["depth"]) is int
        assert 2 <= values["depth"] <= 9
        assert values["kind"] in ("a", "b")
        assert values["sizes"] in ([1, 2], [3])
        assert values["lr"] in (1e-3, 1e-2)
        assert values.items() <= job.settings.items()
    for name, least in {"rate": 20, "depth": 4, "kind": 2, "sizes": 2, "lr": 2}.items():
        assert len({str(t.values[name]) for t in trials}) >= least, f"{name} is searched"
    best = best_of(trials)
    assert best.score == max(t.score for t in trials) > trials[0].score


def test_the_sampler_is_told_what_was_run_and_learns_from_it(toy, pretend, tmp_path, monkeypatch):
    searches, create = [], optuna.create_study

    def kept(**options):
        searches.append(create(**options))
        return searches[-1]

    monkeypatch.setattr(optuna, "create_study", kept)
    toy.space = {name: toy.space[name] for name in ("rate", "kind")}
    trials = list(study_of("toy", 40).search(tmp_path))
    for told, trial in zip(searches[0].trials, trials, strict=True):
        assert told.params["rate"] == pytest.approx(trial.values["rate"], rel=0.01)
        assert "ab"[told.params["kind"]] == trial.values["kind"]
        assert told.value == trial.score
    near = sum(10 < trial.values["rate"] < 90 for trial in trials[20:])
    assert near >= 10, f"{near} of the last 20; of blind draws 5 would be"


def test_a_trial_is_the_tier_on_the_first_tasks_of_an_order_of_its_own(toy, pretend, tmp_path):
    list(study_of("toy", 2, spare=0.5).search(tmp_path))
    plain = resolve("split-digits", "smoke", "toy", 1002, overrides=TINY)
    for job in pretend[0]:
        own = {"rate", "depth", "kind", "sizes", "lr"}
        assert {k for k, v in job.settings.items() if plain.settings[k] != v} - own == {"tasks", "holdout", "spare"}
        assert (job.seed, job.settings["tasks"], job.settings["holdout"]) == (1002, 3, 0.1)
        assert {job.origins[name] for name in (*own, "tasks", "holdout")} == {"benchsuite tune"}
        assert job.origins["spare"] == "command line"


def test_several_seeds_are_averaged(toy, pretend, tmp_path, monkeypatch):
    scores = iter([10, 30, 40, 40])
    record = lambda job, **_: SimpleNamespace(accuracy=next(scores))  # noqa: E731
    monkeypatch.setattr(tune, "run", record)
    monkeypatch.setattr(tune, "TUNING_SEEDS", (1002, 1004))
    made = study_of("toy", 2)
    trials = list(made.search(tmp_path))
    assert [t.score for t in trials] == [20, 40]
    assert [folder.rsplit("-", 1)[1] for folder in trials[0].runs] == ["seed1002", "seed1004"]
    assert "of seeds 1002, 1004 on" in made.origin()


def test_no_trial_reads_a_test_image(tmp_path, monkeypatch):
    load, streams = sets.load, []

    def without_test_images(*words, **options):
        return replace(load(*words, **options), test_x=None, test_y=None)

    def build(*words, **options):
        streams.append(stream.build_stream(*words, **options))
        return streams[-1]

    monkeypatch.setattr(sets, "load", without_test_images)
    monkeypatch.setattr(runner, "build_stream", build)
    made = study("split-digits", "smoke", "ewc", 2, overrides={"train_per_class": 1000})
    assert all(trial.score is not None for trial in made.search(tmp_path))
    assert len(streams) == 2
    for built in streams:
        for task, train, test in zip(built.tasks, built.train, built.test, strict=True):
            everything = sum(int((load("digits", None).train_y == label).sum()) for label in task.classes)
            assert len(train.images.labels) + len(test.images.labels) == everything
            assert 0.08 < len(test.images.labels) / everything < 0.12
    reported = resolve("split-digits", "smoke", "ewc", 1002, overrides={"tasks": 3})
    with pytest.raises(UserError, match="no test image"):  # an ordinary run does read them
        runner.run(reported, results=tmp_path)


@pytest.mark.slow
def test_the_same_command_reads_what_is_done_and_goes_on(own_methods, trained, tmp_path):
    class Stopped(Method):
        """Its user stops it in the second task of the third trial."""

        strength: float = 1.0
        space: ClassVar = {"strength": Range(0.1, 10.0, log=True)}
        starts, stop = 0, True

        def before_training_exp(self, strategy, **kwargs):
            Stopped.starts += 1
            if Stopped.stop and Stopped.starts == 8:
                raise KeyboardInterrupt

    register(dataclass(Stopped))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    made = study_of("stopped", 7)
    trials = made.search(parts)
    seen = [next(trials), next(trials)]
    with pytest.raises(KeyboardInterrupt):
        next(trials)
    assert Stopped.starts == 8
    again = list(made.search(parts))
    assert again[:2] == seen
    assert Stopped.starts == 8 + 2 + 4 * 3, "the second and third task of the stopped trial, and four whole ones"
    assert len(trained) == 3 + 5

    Stopped.stop = False
    assert list(made.search(whole)) == again, "as if nobody had stopped it"
    assert len(trained) == 3 + 5 + 7
    assert list(made.search(whole)) == again
    assert len(trained) == 3 + 5 + 7, "nothing is left to train"
    assert list(study_of("stopped", 3).search(whole)) == again[:3], "a smaller budget is the start of a larger one"
    assert len(trained) == 3 + 5 + 7
    next(study_of("stopped", 7, dropout=0.0).search(whole))
    assert len(trained) == 3 + 5 + 7 + 1, "another study is not taken for this one"


def test_a_small_budget_is_spread_over_the_space(toy, pretend, tmp_path):
    toy.rate = toy.__dataclass_fields__["rate"].default = 1.0  # the middle, which the spread would begin with
    toy.space = {name: toy.space[name] for name in ("rate", "sizes")}
    trials = [t.values for t in study_of("toy", 5).search(tmp_path)]
    assert trials[0] == {"rate": 1.0, "sizes": [1, 2]}
    assert all(a != b for a, b in itertools.combinations(trials, 2))
    quarters = [int(2 + math.log10(values["rate"])) for values in trials[1:]]
    assert sorted(quarters) == [0, 1, 2, 3], "one trial in each quarter of the logarithmic range"
    assert {tuple(values["sizes"]) for values in trials} == {(1, 2), (3,)}
    toy.space = {"kind": Choice(("a", "b"))}
    assert [t.values["kind"] for t in study_of("toy", 2).search(tmp_path)] == ["b", "a"]


def test_the_sampler_alone_decides_what_comes_next(toy, pretend, tmp_path, monkeypatch):
    first = [t.values for t in study_of("toy", 12).search(tmp_path)]
    assert [t.values for t in study_of("toy", 12).search(tmp_path)] == first
    monkeypatch.setattr(tune, "SAMPLER_SEED", 1)
    other = [t.values for t in study_of("toy", 12).search(tmp_path)]
    known = 1 + tune.SPREAD
    assert other[:known] == first[:known]
    assert all(a != b for a, b in itertools.islice(zip(first, other, strict=True), known, None))


@pytest.mark.parametrize(("name", "value"), [("rate", 500.0), ("kind", "c"), ("rate", 60.0)])
@pytest.mark.slow
def test_present_values_outside_of_the_space_compete_and_teach_the_sampler_nothing(name, value, toy, pretend, tmp_path):
    setattr(toy, name, value)
    toy.__dataclass_fields__[name].default = value
    outside = value in (500.0, "c")
    trials = list(study_of("toy", 16).search(tmp_path))
    assert trials[0].values[name] == value
    assert all((t.values[name] in ("a", "b")) if name == "kind" else (1e-2 <= t.values[name] <= 1e2) for t in trials[1:])
    assert len({str(t.values) for t in trials}) == 16
    rate = trials[0].values["rate"]
    pretend[1][rate] = 0 if trials[0].score > 50 else 1000
    others = list(study_of("toy", 16).search(tmp_path))
    assert others[0].score != trials[0].score
    assert ([t.values for t in others] == [t.values for t in trials]) == outside


def test_present_values_stay_unless_something_is_better():
    trials = [
        tune.Trial(number=k, values={"x": k}, score=score, runs=[]) for k, score in enumerate([50.0, None, 50.0, 49.9, 0.0], 1)
    ]
    assert best_of(trials).number == 1
    assert best_of(trials[1:]).number == 3
    assert best_of([*trials, replace(trials[0], number=6, score=50.1)]).number == 6
    assert best_of(trials[1:2]) is None
    assert best_of(trials[4:]).number == 5, "a score of 0 is a score"


PRICKLY = """
from dataclasses import dataclass
from typing import ClassVar

from benchsuite import Method, Range, register


@register
@dataclass
class Prickly(Method):
    strength: float = 0.5
    limit: float = 1.0

    space: ClassVar = {"strength": Range(0.0, 2.0)}

    def before_backward(self, strategy, **kwargs):
        if self.strength > self.limit:
            strategy.loss *= float("nan")
""".lstrip()


def test_a_trial_that_fails_is_shown_and_ends_nothing(own_methods, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prickly.py").write_text(PRICKLY)
    command = ["tune", *DIGITS, "--tier", "smoke", "--method", "prickly.py", "--trials", "6", *SET]
    assert main(command) == 0
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "runs/tune/split-digits/smoke/prickly.json").read_text())
    assert len(content["trials"]) == 6
    for trial, line in zip(content["trials"], out.splitlines(), strict=False):
        assert line.startswith(f"trial {trial['number']}: strength={trial['values']['strength']}: ")
        if trial["values"]["strength"] > 1:
            assert trial["score"] is None
            assert "task 1, epoch 1" in trial["error"]
            assert line.endswith(f"failed: {trial['error']}")
        else:
            assert trial["error"] == ""
            assert line.endswith(f": ACC {trial['score']:.2f} %")
    assert {trial["score"] is None for trial in content["trials"]} == {True, False}
    assert content["best"]["values"]["strength"] <= 1

    assert main([*command, "--set", "limit=-1"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count(": failed: ") == 6
    assert captured.err.splitlines()[-1].startswith("benchsuite: failed: no trial has a score; see runs/tune/split-digits/")
    assert json.loads((tmp_path / "runs/tune/split-digits/smoke/prickly.json").read_text())["best"] is None


@pytest.mark.slow
def test_several_methods_are_searched_in_turn_and_a_second_call_reads_what_is_done(
    own_methods, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, space in (("pull", SPACE), ("push", SPACE), ("plain", "{}")):
        source = PULL.replace("class Pull", f"class {name.title()}").replace(SPACE, space).replace("SETTINGS\n", "")
        (tmp_path / f"{name}.py").write_text(source)
    command = ["tune", *DIGITS, "--tier", "smoke", *SET]
    both = [*command, "--method", "pull.py", "--method", "push.py"]
    assert main([*both, "--method", "plain.py"]) == 2, "all are checked before the first trains"
    assert "plain has nothing to tune" in capsys.readouterr().err
    assert (trained, (tmp_path / "runs").exists()) == ([], False)

    assert main(both) == 0
    out = capsys.readouterr().out
    assert [job.method for job in trained] == ["pull"] * 5 + ["push"] * 5, "five trials each"
    assert all(f"{name}: trial {n}: strength=" in out for name in ("pull", "push") for n in range(1, 6))
    assert {path.name for path in (tmp_path / "runs/tune/split-digits/smoke").glob("*.json")} == {"pull.json", "push.json"}
    trained.clear()
    assert main(both) == 0
    assert capsys.readouterr().out == out
    assert trained == []


@pytest.mark.slow
def test_without_a_method_every_space_is_searched(own_methods, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    searched = []
    monkeypatch.setattr(tune.Study, "search", lambda self, *_, **__: searched.append(self.method) or iter(()))
    monkeypatch.setattr(tune.Study, "write", lambda *_, **__: "study.json")
    command = ["tune", *DIGITS, "--tier", "smoke", "--set", "backbone=resnet18"]
    assert main([*command, "--set", "batchnorm=per_task"]) == 1, "no trial has a score"
    assert "note: lwf cannot run like this" in capsys.readouterr().err
    assert {"ewc", "hat", "cacl"} & set(searched)
    assert {"lwf", "er", "finetune", "joint"}.isdisjoint(searched)


SPACE = '{"strength": Range(1e-3, 10.0, log=True)}'


@pytest.mark.parametrize(
    ("words", "space", "line"),
    [
        ((), "{}", "pull has nothing to tune: its class declares no `space`"),
        ((), '{"strenght": Range(0, 1)}', "pull: its space for 'strenght' is not for a setting; did you mean 'strength'?"),
        ((), '{"strength": Range(2, 2)}', "pull: its space for 'strength' must have low below high, got 2 and 2"),
        (
            (),
            '{"strength": Range(0, 2, log=True)}',
            "pull: its space for 'strength' is logarithmic and must start above 0, got 0",
        ),
        ((), '{"strength": (1, 2)}', "pull: its space for 'strength' must be a Range or a Choice, got (1, 2)"),
        ((), '{"strength": Choice(())}', "pull: its space for 'strength' has no values"),
        (
            (),
            '{"power": Range(1.5, 3)}',
            "pull: its space for 'power' contains 1.5: power must be a whole number, got 1.5",
        ),
        ((), '{"lr": Choice((1e-3, 0.0))}', "pull: its space for 'lr' contains 0.0: lr must lie in (0, 1000000], got 0.0"),
        (("--trials", "0"), SPACE, "trials must be at least 1, got 0"),
        (("--set", "tasks=2"), SPACE, "tasks is the same in every study; leave it out of --set"),
        (("--set", "holdout=0.5"), SPACE, "holdout is the same in every study; leave it out of --set"),
        (("--set", "strength=1"), SPACE, "strength is being searched; leave it out of --set"),
        (("--set", "powr=1"), SPACE, "'powr' is not a setting of split-digits or pull; did you mean 'power'?"),
        (("--tier", "smok"), SPACE, "no tier of split-digits is called 'smok'; did you mean 'smoke'?"),
    ],
)
def test_one_line_says_what_is_wrong(words, space, line, own_methods, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = PULL.replace("SETTINGS\n", "").replace(SPACE, space).replace("Method, Range", "Choice, Method, Range")
    (tmp_path / "pull.py").write_text(source)
    assert main(["tune", "--method", "pull.py", "--trials", "2", *DIGITS, "--tier", "smoke", *words]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"benchsuite: error: {line}\n")
    assert not (tmp_path / "runs").exists()


def test_what_was_found_goes_into_the_file_and_from_there_under_the_table(own_methods, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pull.py").write_text(PULL.replace("SETTINGS\n", ""))
    assert main(["tune", *DIGITS, "--tier", "smoke", "--method", "pull.py", "--trials", "3", "--set", "power=4", *SET]) == 0
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "runs/tune/split-digits/smoke/pull.json").read_text())
    best = content["best"]
    origin = (
        "tuned: 3 trials of `benchsuite tune` with power=4, train_per_class=8, test_per_class=8, batch_size=16, ACC after the "
        "first 3 tasks of seed 1002 on a held-out 10 % of the training images"
    )
    assert best["origin"] == origin
    assert best["score"] == max(trial["score"] for trial in content["trials"])
    assert content["budget"] == {"trials": 3, "seeds": [1002], "tasks": 3, "holdout": 0.1}
    assert {"torch", "optuna", "benchsuite"} <= content["environment"]["versions"].keys()
    assert "revision" in content["environment"]["source"]
    assert out.splitlines()[-1] == "runs/tune/split-digits/smoke/pull.json"
    records = {str(r.job.folder): r for r in read_all(tmp_path / "runs/tune")}
    assert set(records) == {folder for trial in content["trials"] for folder in trial["runs"]}

    run = ["run", *DIGITS, "--tier", "smoke", "--method", "pull.py", "--set", "tasks=2", *SET]
    reported = tmp_path / "runs/split-digits/smoke"
    assert main(run) == 0
    (plain,) = read_all(reported)
    assert not any("tuned: 3" in note for note in leaderboard([plain]).footnotes), "no trial is ranked, and nothing is pasted yet"

    entry = out.split("\n\n")[1]
    assert all(len(line) <= 130 for line in entry.splitlines())
    (tmp_path / "pull.py").write_text(PULL.replace("SETTINGS", entry))
    own_methods.files.clear()
    del own_methods._known["pull"]
    assert main(run) == 0
    (tuned,) = [r for r in read_all(reported) if r.job != plain.job]
    assert (tuned.job.origins["strength"], tuned.job.settings["strength"]) == (origin, best["values"]["strength"])
    assert (tuned.job.origins["power"], tuned.job.settings["power"]) == (origin, 4), "what it was found with"
    notes = leaderboard([plain, tuned]).footnotes
    assert any(note.startswith(f"settings, {origin}: ") and f"strength = {best['values']['strength']}" in note for note in notes)


FIXED = {"budget"}  # terms of the comparison: the same for every method that has them


def untuned(classes):
    """Methods that have settings of their own and no space."""
    return [name for name, cls in classes.items() if field_types(cls).keys() - FIXED and not cls.space]


def test_every_method_with_settings_of_its_own_has_a_space(toy):
    ours = {name: cls for name, cls in methods.all().items() if name != "toy"}
    assert untuned(ours) == []
    assert {name for name, cls in ours.items() if not cls.space} == {"finetune", "individual", "joint"}
    toy.space = {}
    assert untuned(methods.all()) == ["toy"], "control"


@pytest.mark.parametrize("name", [name for name, cls in methods.all().items() if cls.space])
def test_the_space_of_every_method_holds_its_present_values(name):
    made = study("split-digits", "lite", name, 1)
    assert all(tune.contains(space, made.start[setting]) for setting, space in made.space.items())
    assert "tune`, ACC after the first 3 tasks of seed 1002" in made.origin()


@pytest.mark.parametrize("name", [n for n, p in tune.protocols.all().items() if len(p.tasks) > 2])  # two have two orders
def test_no_reported_seed_has_an_order_of_tuning(name):
    order = tune.protocols.get(name).order
    reported = [order(seed) for seed in range(1, 11)]
    assert not [seed for seed in tune.TUNING_SEEDS if order(seed) in reported]
    assert order(1) in reported
    first = [set(tasks[: tune.TASKS]) for tasks in reported]  # nor are the tasks that it tunes on the first ones of any
    assert not [seed for seed in tune.TUNING_SEEDS if set(order(seed)[: tune.TASKS]) in first]


def test_a_short_protocol_is_tuned_on_all_its_tasks(toy, monkeypatch):
    short = replace(tune.protocols.get("split-digits"), name="short", tasks=tune.protocols.get("split-digits").tasks[:2])
    monkeypatch.setattr(tune.protocols, "_known", {**tune.protocols.all(), "short": short})
    assert study("short", "smoke", "toy", 1).tasks == 2


def test_a_method_that_does_not_apply_says_so():
    with pytest.raises(UserError, match="lwf cannot run like this"):
        study("split-digits", "smoke", "lwf", 1, overrides={"backbone": "resnet18"})


def test_help_does_not_wait_for_the_optimiser():
    code = (
        "import sys\nfrom benchsuite.cli.main import main\ntry: main(['tune', '--help'])\nfinally: print('optuna' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--trials N" in out
    assert out.splitlines()[-1] == "False"
    assert "optuna" in sys.modules
