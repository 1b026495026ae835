"""Tuning: the same search for every method, on training images only.

A trial is one value for each setting in the method's `space`. With these values the method learns the first TASKS tasks of an
order that no reported seed uses, by the tier's recipe, with a stratified share HOLDOUT of the training images held out. The score
is ACC on that share. The first trial has the method's present values, the next ones are spread evenly over the space (a Halton
sequence), and Optuna's TPE sampler proposes the others. A trial whose run fails has no score.

Only the runs are stored: the sampler is deterministic, so the same command proposes the same trials, reads the records of those
that are finished, and continues. Proposals do not depend on how many trials follow, so a study can be continued with more trials.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from msgspec import structs, to_builtins
from scipy.stats import qmc

from ..errors import UserError
from ..fields import field_types, in_words, neutral_values
from ..files import write_atomic
from ..method.base import Choice, Method, Range
from ..method.registered import methods
from ..protocol import Recipe, protocols
from ..record.schema import Job
from ..registry import suggest
from ..training.device import device_named
from ..training.environment import environment, source_revision
from ..training.runner import RunFailed, identify, run
from ..training.settings import TUNING_SEEDS, resolve
from .messages import Done
from .progress import Display

TASKS = 3  # forgetting shows from the second task on, a penalty too strong to learn anything new in the third

HOLDOUT = 0.1

SPREAD = 4  # trials spread over the space before TPE models the scores; in a small budget random ones would cluster

SAMPLER_SEED = 0

ORIGIN = "benchsuite tune"  # of the settings in a trial's record


@dataclass(frozen=True, kw_only=True)
class Trial:
    """values: of the searched settings. score: the mean of ACC over TUNING_SEEDS, in per cent; None if a run failed, and then
    `error` says why. runs: their folders, relative to the folder of all studies."""

    number: int
    values: dict[str, Any]
    score: float | None
    error: str = ""
    runs: list[str]

    def __str__(self) -> str:
        return f"trial {self.number}: {in_words(self.values)}: " + (
            f"failed: {self.error}" if self.score is None else f"ACC {self.score:.2f} %"
        )


@dataclass(frozen=True, kw_only=True)
class Study:
    """The search for one method on one protocol and tier, checked; made by `study`.

    trials: their number. overrides: settings of every trial. space: the method's, with values in the form that records use.
    start: the present values of the searched settings. tasks: TASKS, or all tasks of a shorter protocol.
    """

    protocol: str
    tier: str
    method: str
    trials: int
    overrides: dict[str, Any]
    precision: str
    tasks: int
    space: dict[str, Range | Choice]
    start: dict[str, Any]

    def job(self, values: Mapping[str, Any], seed: int) -> Job:
        own = {**values, "tasks": self.tasks, "holdout": HOLDOUT}
        job = resolve(self.protocol, self.tier, self.method, seed, overrides={**self.overrides, **own}, precision=self.precision)
        return structs.replace(job, origins={**job.origins, **{name: ORIGIN for name in own if name in job.settings}})

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting of a trial, including those at their neutral value."""
        owners = (Recipe, methods.get(self.method))
        settings = self.job(values, TUNING_SEEDS[0]).settings
        return {**{name: value for owner in owners for name, value in neutral_values(owner).items()}, **settings}

    def search(self, folder: Path, *, data_dir: Path | None = None, device: str = "auto") -> Iterator[Trial]:
        """Run the trials in turn and yield each as it ends. Runs are stored below `folder`."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(n_startup_trials=SPREAD, seed=SAMPLER_SEED)
        search = optuna.create_study(direction="maximize", sampler=sampler)
        inside = all(contains(space, self.start[name]) for name, space in self.space.items())
        if inside:
            search.enqueue_trial({name: internal(space, self.start[name]) for name, space in self.space.items()})
        for values in self.spread():
            search.enqueue_trial({name: internal(self.space[name], value) for name, value in values.items()})
        for number in range(1, self.trials + 1):
            # Present values outside the space compete too, but the sampler cannot learn from them.
            asked = search.ask() if inside or number > 1 else None
            values = {name: propose(asked, name, space) for name, space in self.space.items()} if asked else self.start
            if number == 1:
                values = self.start  # not rounded
            trial = self.attempt(number, values, folder, data_dir, device)
            if asked:
                search.tell(asked, trial.score, state=optuna.trial.TrialState.FAIL if trial.score is None else None)
            yield trial

    def spread(self) -> list[dict[str, Any]]:
        """SPREAD points of the space (fewer if it has no more), none of them the present values."""
        points = []
        for shares in qmc.Halton(len(self.space), scramble=False).random(16 * SPREAD)[1:]:  # the first point is the origin
            values = {name: at(space, float(u)) for u, (name, space) in zip(shares, self.space.items(), strict=True)}
            if values != self.start and values not in points:
                points.append(values)
        return points[:SPREAD]

    def attempt(self, number: int, values: dict[str, Any], folder: Path, data_dir: Path | None, device: str) -> Trial:
        jobs = [identify(self.job(values, seed), data_dir) for seed in TUNING_SEEDS]
        score, error = None, ""
        try:
            with Display(len(jobs)) as display:
                done = []
                for job in jobs:
                    done.append(run(job, results=folder, data_dir=data_dir, device=device, report=display))
                    display(Done(job))
            score = sum(record.accuracy for record in done) / len(done)
        except RunFailed as failure:
            error = str(failure)
        return Trial(number=number, values=values, score=score, error=error, runs=[str(job.folder) for job in jobs])

    def origin(self) -> str:
        """Where the chosen values come from, including the whole budget: for the method's file, and so for every record."""
        given = {**self.overrides, **({} if self.precision == "fp32" else {"precision": self.precision})}
        return (
            f"tuned: {self.trials} trial{'s' if self.trials > 1 else ''} of `benchsuite tune`"
            f"{f' with {in_words(given)}' if given else ''}, ACC after the first {self.tasks} tasks of "
            f"seed{'s' if len(TUNING_SEEDS) > 1 else ''} {', '.join(map(str, TUNING_SEEDS))} "
            f"on a held-out {100 * HOLDOUT:g} % of the training images"
        )

    def declared(self, best: Trial) -> str:
        """The entry for `settings` in the method's file: the best values, and the method's overrides they were found with."""
        given = self.overrides.keys() & field_types(methods.get(self.method)).keys()
        settings = self.settings(best.values)
        values = {**{name: settings[name] for name in self.overrides if name in given}, **best.values}
        lines = textwrap.wrap(self.origin(), 100, break_long_words=False, break_on_hyphens=False)
        texts = [quoted(f"{' ' if k else ''}{line}") for k, line in enumerate(lines)]
        pairs = ", ".join(f"{quoted(name)}: {quoted(value)}" for name, value in values.items())
        code = [
            "Preset(",
            f'    protocol="{self.protocol}",',
            f'    tier="{self.tier}",',
            f"    values={{{pairs}}},",
            "    origin=" + "\n    ".join(texts) + ",",
            "),",
        ]
        return textwrap.indent("\n".join(code), " " * 8)

    def write(self, trials: Sequence[Trial], folder: Path, *, device: str = "auto") -> Path:
        """Write the whole study to a JSON file below `folder`, and return its path."""
        best = best_of(trials)
        here = environment(device_named(device), [source_revision()])
        content = {
            "protocol": self.protocol,
            "tier": self.tier,
            "method": self.method,
            "precision": self.precision,
            "overrides": self.overrides,
            "budget": {"trials": self.trials, "seeds": TUNING_SEEDS, "tasks": self.tasks, "holdout": HOLDOUT},
            "sampler": {"name": "Halton, then optuna.TPESampler", "seed": SAMPLER_SEED, "n_startup_trials": SPREAD},
            "space": {name: {"kind": type(space).__name__, **asdict(space)} for name, space in self.space.items()},
            "trials": [asdict(trial) for trial in trials],
            "best": best and {"trial": best.number, "values": best.values, "score": best.score, "origin": self.origin()},
            "environment": to_builtins(structs.replace(here, versions={**here.versions, "optuna": version("optuna")})),
        }
        path = folder / self.protocol / self.tier / f"{self.method}.json"
        write_atomic(path, json.dumps(content, indent=1) + "\n")
        return path


def study(
    protocol: str, tier: str, method: str, trials: int, *, overrides: Mapping[str, Any] | None = None, precision: str = "fp32"
) -> Study:
    """The study that these arguments describe. Raises UserError for what is wrong with them or with the method's space."""
    if trials < 1:
        raise UserError(f"trials must be at least 1, got {trials}")
    given, cls = dict(overrides or {}), methods.get(method)
    resolve(protocol, tier, method, TUNING_SEEDS[0], overrides=given, precision=precision)
    if not cls.space:
        raise UserError(f"{method} has nothing to tune: its class declares no `space`")
    for name in ("tasks", "holdout", "order_seed"):
        if name in given:
            raise UserError(f"{name} is the same in every study", "leave it out of --set")
    if both := sorted(given.keys() & cls.space.keys()):
        raise UserError(f"{both[0]} is being searched", "leave it out of --set")
    made = Study(
        protocol=protocol,
        tier=tier,
        method=method,
        trials=trials,
        overrides=given,
        precision=precision,
        tasks=min(TASKS, len(protocols.get(protocol).tasks)),
        space={},
        start={},
    )
    settings = made.settings({})
    start = {name: settings[name] for name in check_space(cls) if name in settings}
    space = {name: resolved(made, name, limits) for name, limits in cls.space.items()}
    return replace(made, space=space, start=start)


def check_space(cls: type[Method]) -> Mapping[str, Range | Choice]:
    """The method's space. Raises UserError if a name in it is not a setting, or if there is nothing to choose from."""
    kinds = {**field_types(Recipe), **field_types(cls)}
    for name, space in cls.space.items():
        where = f"{cls.name}: its space for {name!r}"
        if name not in kinds:
            raise UserError(f"{where} is not for a setting", suggest(name, kinds))
        if not isinstance(space, Range | Choice):
            raise UserError(f"{where} must be a Range or a Choice, got {space!r}")
        if isinstance(space, Choice) and not space.values:
            raise UserError(f"{where} has no values")
        if isinstance(space, Range) and not space.low < space.high:
            raise UserError(f"{where} must have low below high, got {space.low} and {space.high}")
        if isinstance(space, Range) and space.log and space.low <= 0:
            raise UserError(f"{where} is logarithmic and must start above 0, got {space.low}")
    return cls.space


def resolved(study: Study, name: str, space: Range | Choice) -> Range | Choice:
    """The space with values in the form that records use. Raises UserError for one that the method or the recipe refuses."""

    def value(given: Any) -> Any:
        try:
            return study.settings({name: given})[name]
        except UserError as error:
            raise UserError(f"{study.method}: its space for {name!r} contains {given!r}: {error}") from None

    if isinstance(space, Choice):
        return Choice(tuple(map(value, space.values)))
    return Range(value(space.low), value(space.high), space.log)


def contains(space: Range | Choice, value: Any) -> bool:
    return value in space.values if isinstance(space, Choice) else value is not None and space.low <= value <= space.high


def internal(space: Range | Choice, value: Any) -> Any:
    """A value in the form that Optuna uses: for a Choice, its index."""
    return space.values.index(value) if isinstance(space, Choice) else value


def at(space: Range | Choice, share: float) -> Any:
    """The value at `share`, in [0, 1), of the way through the space."""
    if isinstance(space, Choice):
        return space.values[int(share * len(space.values))]
    low, high = (math.log(x) if space.log else x for x in (space.low, space.high))
    value = low + share * (high - low)
    return contains_rounded(space, math.exp(value) if space.log else value)


def contains_rounded(space: Range, value: float) -> Any:
    """A value in the form that trials use: an integer, or rounded to three digits. Scores cannot tell finer values apart, and it
    stays the same run on a machine whose logarithms differ in the last bit."""
    value = round(value) if isinstance(space.low, int) else float(f"{value:.3g}")
    return min(max(value, space.low), space.high)


def propose(trial: optuna.Trial, name: str, space: Range | Choice) -> Any:
    if isinstance(space, Choice):
        return space.values[trial.suggest_categorical(name, range(len(space.values)))]
    if isinstance(space.low, int):
        return trial.suggest_int(name, space.low, space.high, log=space.log)
    return contains_rounded(space, trial.suggest_float(name, space.low, space.high, log=space.log))


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest score, the earliest of equals: the present values stay unless others are better."""
    return max((t for t in trials if t.score is not None), key=lambda t: t.score or 0.0, default=None)


def quoted(value: Any) -> str:
    """As in a source file: strings in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
