"""Settings: typed dataclass fields with bounds and a neutral value, and their values from text or JSON."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UserError, one_line

LARGEST = 2**63 - 1  # what records and tensors can hold: no number of a setting is further from 0


def setting(
    default: Any = MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    neutral: Any = MISSING,
) -> Any:
    """A dataclass field with bounds: `share: float = setting(0.5, above=0, most=1)`.

    least <= value or above < value; value <= most or value < below. A tuple is checked number by number; None always passes.
    neutral: the value at which the setting has no effect. There it is no part of a run's identity, so that a setting added
    with a neutral value leaves all earlier records valid. Only a new setting can be given one, and it must stay the same.
    """
    metadata: dict[str, Any] = {"least": least, "above": above, "most": most, "below": below}
    if neutral is not MISSING:
        metadata["neutral"] = neutral
    return field(default=default, metadata=metadata)


def check(instance: Any) -> None:
    """Raises ValueError if a field's value is out of bounds, with the field, its bounds and the value."""
    for f in fields(instance) if is_dataclass(instance) else ():
        value = getattr(instance, f.name, None)
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, int | float)]
        least, above, most, below = map(f.metadata.get, ("least", "above", "most", "below"))
        if any(abs(v) > LARGEST for v in numbers):
            raise ValueError(f"{f.name} must be at most 2^63 - 1, got {value}")
        if not all(
            (least is None or v >= least)
            and (above is None or v > above)
            and (most is None or v <= most)
            and (below is None or v < below)
            for v in numbers
        ):
            low, high = (least if above is None else above), (most if below is None else below)
            if low is None:
                words = f"be at most {high:.9g}" if below is None else f"be below {high:.9g}"
            elif high is not None:
                words = f"lie in {'[' if above is None else '('}{low:.9g}, {high:.9g}{']' if below is None else ')'}"
            elif above is None:
                words = f"be at least {low:g}" if low else "not be negative"
            else:
                words = f"be above {low:g}" if low else "be positive"
            raise ValueError(f"{f.name} must {words}, got {value}")


def neutral_values(owner: Any) -> dict[str, Any]:
    """The neutral values of the settings of a Recipe or a Method class that have one, by name."""
    return {f.name: f.metadata["neutral"] for f in fields(owner) if "neutral" in f.metadata} if is_dataclass(owner) else {}


def convert(name: str, value: Any, kind: Any) -> Any:
    """`value`, text from a command line or a value from JSON, as the annotated type `kind`. Raises UserError with the name."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if type(None) in get_args(kind) and (value is None or value == "none"):
            return None
        # The value's own type first, so that values of a record come back unchanged; then narrow types before wide ones.
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
        for known in get_args(kind):
            if value == known or value == str(known):
                return known
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
    elif kind is str and isinstance(value, str) and value.isprintable():
        return value
    raise UserError(f"{name} must be {in_a_word(kind)}, got {value!r}")


def in_a_word(kind: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text in one line", NoneType: "none"}
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()
    return words.get(kind) or " or ".join(map(in_a_word, members)) or str(kind)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of the annotated type `kind` as it stands, without a conversion; whole numbers are numbers."""
    origin, members = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, member) for member in members)
    if origin is Literal:
        return type(value) in map(type, members)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(item, members[0]) for item in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind or kind not in (bool, int, str, NoneType)


def misfit(settings: Mapping[str, Any], kinds: Mapping[str, Any]) -> str | None:
    """The first of these settings whose value is of another JSON type than its field, in words; None if there is none."""
    wrong = (name for name, value in settings.items() if name in kinds and not fits(value, kinds[name]))
    return next((f"{name} must be {in_a_word(kinds[name])}, got {settings[name]!r:.60}" for name in wrong), None)


def field_types(owner: Any) -> dict[str, Any]:
    """Names and types of the settings of a Recipe or a Method class."""
    if not is_dataclass(owner):
        return {}
    try:
        hints = get_type_hints(owner)
    except Exception as error:  # an annotation may be any text
        what = (
            f"{getattr(owner, '__name__', type(owner).__name__)}: the types of its fields cannot be resolved: {one_line(error)}"
        )
        raise UserError(what, "import or define each name in its annotations at the top of the file") from None
    return {f.name: hints[f.name] for f in fields(owner) if f.init}


def parse_assignments(texts: Iterable[str]) -> dict[str, str]:
    """The values of `--set NAME=VALUE`, by name."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--set takes name=value, got {text!r}")
        found[name] = value
    return found


def in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
