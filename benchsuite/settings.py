"""Settings: typed fields of a recipe and a method, resolved and checked before any data is loaded."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from .errors import UserError, one_line
from .method import Method, methods
from .nn.backbones import BACKBONES, has_batchnorm
from .protocol import Protocol, Recipe, protocols
from .records import Job
from .registry import suggest

PRECISIONS = ("fp32", "bf16")
# Of five tasks there are only 120 orders and 10 sets of three, so this seed is one whose first tasks are not, as a set, the first
# ones of any of the seeds 1 to 10 on any protocol (tests/test_tune.py). No result is reported for it.
TUNING_SEEDS = (1002,)


class Unfit(UserError):
    """A method does not apply to a recipe, and says why."""


class Crashed(UserError):
    """A method raised something of its own, `cause`, before its run."""

    def __init__(self, method: str, cause: Exception) -> None:
        super().__init__(f"{method}: cannot be made: {one_line(cause)}; `benchsuite check` its file")
        self.cause = cause


def convert(name: str, value: Any, kind: Any) -> Any:
    """`value`, text from a command line or a value from JSON, as the annotated type `kind`. Raises UserError with the name."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if type(None) in get_args(kind) and (value is None or value == "none"):
            return None
        # The value's own type first, so that what a record holds comes back as it is; then the narrow before the wide.
        members = [k for k in get_args(kind) if k is not type(None)]
        members.sort(key=lambda k: (type(value) is not k, k is str, k is float))
        if len(members) == 1:
            return convert(name, value, members[0])
        for member in members:
            try:
                return convert(name, value, member)
            except UserError:
                pass
    if origin is Literal:
        if value in get_args(kind):
            return value
        raise UserError(f"{name} must be one of {', '.join(map(str, get_args(kind)))}, got {value!r}")
    if origin is tuple:
        items = [v for v in value.split(",") if v] if isinstance(value, str) else value
        if isinstance(items, list | tuple):
            return tuple(convert(name, v, get_args(kind)[0]) for v in items)
    elif kind is bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
    elif kind in (int, float):
        try:
            if not isinstance(value, bool) and (kind is float or isinstance(value, str) or value == int(value)):
                number = kind(value)
                if number == number and abs(number) != float("inf"):
                    return number
        except (TypeError, ValueError, OverflowError):
            pass
    elif kind is str and isinstance(value, str):
        return value
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))
    raise UserError(f"{name} must be {wanted}, got {value!r}")


def field_types(owner: Any) -> dict[str, Any]:
    """Names and types of the settings of a Recipe or a Method class."""
    hints = get_type_hints(owner)
    return {f.name: hints[f.name] for f in fields(owner) if f.init} if is_dataclass(owner) else {}


def in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    kinds = field_types(Recipe)
    return Recipe(**{k: convert(k, v, kinds[k]) for k, v in settings.items() if k in kinds})


def method_of(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of a resolved job."""
    cls = methods.get(name)
    kinds = field_types(cls)
    return cls(**{k: convert(k, v, kinds[k]) for k, v in settings.items() if k in kinds})


def resolve(
    protocol: str,
    tier: str,
    method: str,
    seed: int,
    *,
    overrides: Mapping[str, Any] | None = None,
    precision: str = "fp32",
) -> Job:
    """The job that these words mean, every setting resolved: the tier's and the method's defaults, then what the method
    declares for this protocol and tier, then `overrides`. Raises UserError naming the word or field that is wrong."""
    chosen = protocols.get(protocol)
    cls = methods.get(method)
    defaults = chosen.recipe(tier)
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be a whole number from 0, got {seed!r}")
    recipe_kinds, method_kinds = field_types(Recipe), field_types(cls)
    if clash := sorted(set(recipe_kinds) & set(method_kinds)):
        raise UserError(f"{method}: the field {clash[0]!r} is a setting of every recipe already; give it another name")
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
                    raise UserError(f"{method}: declares a value for {name!r}, which is no setting; {suggest(name, kinds)}")
                settings[name], origins[name] = value, declared.origin
    for name, value in (overrides or {}).items():
        if name not in kinds:
            raise UserError(f"{name!r} is no setting of {protocol} or {method}; {suggest(name, kinds)}")
        settings[name], origins[name] = value, "command line"
    if unset := sorted(set(kinds) - set(settings)):
        raise UserError(f"{method}: {unset[0]} has no default; give it with --set {unset[0]}=VALUE")
    settings = {name: convert(name, value, kinds[name]) for name, value in settings.items()}
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
    if not has_batchnorm(recipe.backbone):  # a setting without effect is no part of a run's identity
        if "batchnorm" in (overrides or {}):
            raise UserError(f"batchnorm: backbone {recipe.backbone!r} has no batch normalisation; leave it out")
        del settings["batchnorm"]
    if recipe.width == 1:
        del settings["width"]
        origins.pop("width", None)
    try:
        reason = made.unfit(recipe)
    except Exception as error:
        raise Crashed(method, error) from error
    if reason:
        raise Unfit(f"{method} cannot run like this: {reason}")
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


def check_protocol(protocol: Protocol, recipe: Recipe) -> None:
    """What a recipe and a protocol must agree on."""
    if recipe.tasks is not None and recipe.tasks > len(protocol.tasks):
        raise UserError(f"tasks must be at most {len(protocol.tasks)} on {protocol.name}, got {recipe.tasks}")
    if recipe.backbone not in BACKBONES:
        raise UserError(f"no backbone is called {recipe.backbone!r}; {suggest(recipe.backbone, BACKBONES)}")
    if round(recipe.dropout * 65536) >= 65536:  # the dropout layer draws 16 bits for each element: nothing would be left
        raise UserError(f"dropout must be below 0.99999, got {recipe.dropout}")
    try:
        with torch.device("meta"):
            BACKBONES[recipe.backbone](protocol.image, recipe.dropout, recipe.width)
    except ValueError as error:
        raise UserError(f"backbone {recipe.backbone!r} does not fit {protocol.name}: {error}") from None
