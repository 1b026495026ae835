"""Settings: typed fields of a recipe and a method, resolved and checked before any data is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

from ..errors import UserError, one_line
from ..fields import LARGEST, check, convert, field_types, neutral_values
from ..method.base import Method
from ..method.registered import methods
from ..nn.backbones import BACKBONES, has_batchnorm, least_normalised
from ..protocol import Protocol, Recipe, protocols, unused
from ..record.schema import Job, RunRecord
from ..registry import suggest
from ..source import stale

PRECISIONS = ("fp32", "bf16")

# Five tasks have only 120 orders and 10 sets of three. With this seed the set of first tasks differs from that of the seeds 1 to
# 10 on every protocol (tests/execution/test_tune.py). No result is reported for it.
TUNING_SEEDS = (1002,)


class Unsupported(UserError):
    """A method cannot run under a recipe. The message says why."""


class Crashed(UserError):
    """A method raised an exception of its own, `cause`, before its run."""

    def __init__(self, method: str, cause: Exception) -> None:
        super().__init__(f"{method}: cannot be made: {one_line(cause)}", "`benchsuite check` its file")
        self.cause = cause


def refuse_tuning_seeds(seeds: Iterable[int]) -> None:
    """Raises UserError for a seed on which settings were tuned: no result is reported for it."""
    for seed in seeds:
        if seed in TUNING_SEEDS:
            raise UserError(
                f"the settings were tuned on the task order of seed {seed}, so no result is reported for it",
                "choose another seed",
            )


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a resolved job."""
    return Recipe(**values(Recipe, settings))


def method_of(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of a resolved job. Raises ValueError for a value that is out of bounds."""
    cls = methods.get(name)
    made = cls(**values(cls, settings))
    check(made)  # again, for a class whose __post_init__ does not call the base's
    return made


def values(owner: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a Recipe or a Method class in those of a job, which leaves out what is at its neutral value."""
    kinds = field_types(owner)
    return {k: convert(k, v, kinds[k]) for k, v in {**neutral_values(owner), **settings}.items() if k in kinds}


def resolve(
    protocol: str | Path,
    tier: str,
    method: str | Path,
    seed: int,
    *,
    overrides: Mapping[str, Any] | None = None,
    precision: str = "fp32",
) -> Job:
    """The job with every setting resolved: the defaults of tier and method, then the method's presets for this protocol and
    tier, then `overrides`. protocol, method: a name, or the Python file that defines it.

    Raises UserError with the wrong argument or field."""
    protocol, method = protocols.find(protocol), methods.find(method)
    chosen = protocols.get(protocol)
    cls = methods.get(method)
    defaults = chosen.recipe(tier)
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST:
        raise UserError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    recipe_kinds, method_kinds = field_types(Recipe), field_types(cls)
    if clash := sorted(set(recipe_kinds) & set(method_kinds)):
        raise UserError(f"{method}: the field {clash[0]!r} is a setting of every recipe already", "give it another name")
    kinds = {**recipe_kinds, **method_kinds}
    settings: dict[str, Any] = {name: getattr(defaults, name) for name in recipe_kinds}
    for f in fields(cls):
        if f.init and f.default is not MISSING:
            settings[f.name] = f.default
        elif f.init and callable(f.default_factory):
            settings[f.name] = f.default_factory()
    origins: dict[str, str] = {}
    for declared in cls.settings:
        if declared.protocol == protocol and declared.tier in (None, tier):
            for name, value in declared.values.items():
                if name not in kinds:
                    raise UserError(f"{method}: declares a value for {name!r}, which is not a setting", suggest(name, kinds))
                settings[name], origins[name] = value, declared.origin
    for name, value in (overrides or {}).items():
        if name not in kinds:
            raise UserError(f"{name!r} is not a setting of {protocol} or {method}", suggest(name, kinds))
        settings[name], origins[name] = value, "command line"
    if unset := sorted(set(kinds) - set(settings)):
        raise UserError(f"{method}: {unset[0]} has no default", f"give it with --set {unset[0]}=VALUE")
    settings = {name: convert(name, value, kinds[name]) for name, value in settings.items()}
    plain = {f.name: f.default for f in fields(Recipe)}
    for name in unused(settings["lr_schedule"]):
        if name in (overrides or {}) and settings[name] != plain[name]:
            raise UserError(f"{name} has no effect with lr_schedule={settings['lr_schedule']}", "leave it out")
        settings[name] = plain[name]
    try:
        recipe = recipe_of(settings)
    except ValueError as error:
        raise UserError(str(error)) from None
    try:
        made = method_of(method, settings)
    except ValueError as error:
        raise UserError(f"{method}: {error}") from None
    except Exception as error:
        raise Crashed(method, error) from error
    check_protocol(chosen, recipe)
    for name in ("crop_padding", "flip"):  # the protocol's own value is not another configuration
        if settings[name] == getattr(chosen, name):
            settings[name] = None
    if recipe.lr_schedule != "milestones":
        del settings["milestones"]
        origins.pop("milestones", None)
    if not has_batchnorm(recipe.backbone):  # without effect, so no part of a run's identity
        if "batchnorm" in (overrides or {}):
            raise UserError(f"batchnorm: backbone {recipe.backbone!r} has no batch normalisation", "leave it out")
        del settings["batchnorm"]
    for name, value in {**neutral_values(Recipe), **neutral_values(cls)}.items():
        if settings[name] == value:
            del settings[name]
            if origins.get(name) == "command line":  # a search that chose it stays on record
                del origins[name]
    try:
        reason = unsupported(made, recipe)
    except Exception as error:
        raise Crashed(method, error) from error
    if reason:
        raise Unsupported(f"{method} cannot run like this: {reason}")
    try:
        return Job(
            protocol=protocol,
            tier=tier,
            method=method,
            seed=seed,
            precision=precision,
            settings=json.loads(json.dumps(settings)),
            origins=origins,
            method_source=methods.source(method),
        )
    except ValueError as error:  # a name that is too long with its modifier and its plugins
        raise UserError(str(error), "give it a shorter name") from None


def repeated(
    record: RunRecord, *, seed: int | None, overrides: Mapping[str, Any], precision: str | None
) -> tuple[Job, list[str]]:
    """The job of a record again, with another seed, settings or precision where given, and what to know of it, one line each.

    Where the record does not name a setting, it has its neutral value, or this version's default if it has none. Raises UserError
    for a job that this version cannot run."""
    job = record.job
    cls = methods.get(job.method)
    kinds = {**field_types(Recipe), **field_types(cls)}
    neutral = {**neutral_values(Recipe), **neutral_values(cls)}
    made = resolve(
        job.protocol,
        job.tier,
        job.method,
        job.seed if seed is None else seed,
        overrides={**neutral, **job.settings, **overrides},
        precision=precision or job.precision,
    )
    kept = {name: origin for name, origin in job.origins.items() if name not in overrides}
    made = structs.replace(made, origins=kept | {name: made.origins[name] for name in overrides if name in made.origins})
    notes = [
        f"{name} did not exist when the record was made; this version's default is used"
        for name in sorted(kinds.keys() - job.settings.keys() - neutral.keys() - overrides.keys() - {"batchnorm"})
    ]
    if made.method_source != job.method_source:
        there, here = (source[:12] if source else "built in" for source in (job.method_source, made.method_source))
        notes.append(
            f"the source of {job.method} is another one ({there} on record, here {here}), so this is another configuration"
        )
    if reason := stale(record):
        notes.append(f"this version would give other numbers than the record ({reason})")
    return made, notes


def unsupported(method: Method, recipe: Recipe) -> str | None:
    """Why a method cannot run under a recipe, in one line; None if it can."""
    if method.phase and recipe.lr_schedule == "patience":
        return f"{method.phase} is a share of a task's epochs, which lr_schedule=patience may cut short; use another schedule"
    return method.unsupported_reason(recipe)


def check_protocol(protocol: Protocol, recipe: Recipe) -> None:
    """Check that a recipe fits a protocol."""
    if recipe.tasks is not None and recipe.tasks > len(protocol.tasks):
        raise UserError(f"tasks must be at most {len(protocol.tasks)} on {protocol.name}, got {recipe.tasks}")
    if (recipe.crop_padding or 0) > min(protocol.image[1:]):
        raise UserError(f"crop_padding must be at most {min(protocol.image[1:])}, the image's side, got {recipe.crop_padding}")
    if recipe.order_seed is not None:
        refuse_tuning_seeds([recipe.order_seed])
    if recipe.class_order == "shuffled":
        try:
            protocol.dealt(0)
        except ValueError as error:
            raise UserError(str(error), "leave class_order out") from None
    if recipe.backbone not in BACKBONES:
        raise UserError(f"no backbone is called {recipe.backbone!r}", suggest(recipe.backbone, BACKBONES))
    if round(recipe.dropout * 65536) >= 65536:  # the dropout layer draws 16 bits per element: nothing would be left
        raise UserError(f"dropout must be below 0.99999, got {recipe.dropout}")
    try:
        _shape(recipe.backbone, protocol, recipe)
    except ValueError as error:
        fitting = [name for name in BACKBONES if _fits(name, protocol, recipe)]
        remedy = f"these fit: {', '.join(fitting)}" if fitting else "give the protocol larger images"
        raise UserError(f"backbone {recipe.backbone!r} does not fit {protocol.name}: {error}", remedy) from None
    if recipe.batch_size == 1:
        refuse_single_images(protocol, recipe, "batch_size=1")


def _shape(backbone: str, protocol: Protocol, recipe: Recipe) -> None:
    """Raises ValueError for a backbone that does not fit the images."""
    with torch.device("meta"):
        BACKBONES[backbone](protocol.image, recipe.dropout, recipe.width)


def _fits(backbone: str, protocol: Protocol, recipe: Recipe) -> bool:
    try:
        _shape(backbone, protocol, recipe)
    except ValueError:
        return False
    return True


def refuse_single_images(protocol: Protocol, recipe: Recipe, what: str) -> None:
    """Raises UserError if the backbone normalises a map of one pixel over its batch, which fails for a batch of one image. what:
    why there is such a batch."""
    if least_normalised(recipe.backbone, protocol.image, recipe.width) == 1:
        raise UserError(
            f"{what}: backbone {recipe.backbone!r} normalises single pixels on {protocol.name}, so a batch needs two images",
            "use larger batches, or a backbone without batch normalisation",
        )


def one_class_tasks(protocol: Protocol, seed: int, recipe: Recipe) -> str | None:
    """A line on the tasks with nothing to tell apart, if a run has any."""
    names = sorted(task.name for task in protocol.sequence(seed, recipe) if len(task.classes) == 1)
    return f"{', '.join(names)}: one class in a task is right for every image, so accuracy is 100 % untrained" if names else None
