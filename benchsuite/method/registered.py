"""The registered methods."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from avalanche.core import BaseSGDPlugin
from avalanche.training import plugins as avalanche_plugins

from ..catalogue import MARKERS
from ..errors import UserError, one_line
from ..files import digest
from ..nn.modifiers import MODIFIERS
from ..record.schema import LONGEST_LABEL, check_folder_name, fits
from ..registry import Registry, find_in, suggest
from ..source import identity
from .base import Method
from .modified import modified
from .plugged import Call, Plugged, check_plugin, plugged

AVALANCHE = {
    name: cls for name, cls in vars(avalanche_plugins).items() if isinstance(cls, type) and issubclass(cls, BaseSGDPlugin)
}


class Methods(Registry[type[Method]]):
    """The methods by name; `method+modifier` is a method under one of `benchsuite.nn.modifiers`, `method+plugin` one that also
    trains with an Avalanche plugin: CLASS for one of Avalanche's own, MODULE:CLASS or FILE:CLASS for one that was named here."""

    def __init__(self) -> None:
        super().__init__("method", "benchsuite.methods", "put @register above one class")
        self._modified: dict[str, type[Method]] = {}  # each class is created once
        self._sources: dict[str, str] = {}
        self._plugins: dict[str, tuple[Any, Path | None]] = {}  # those that were named, and their files

    def add(self, name: str, item: type[Method], origin: str = "", file: str = "") -> None:
        super().add(name, item, origin)
        self._modified = {known: cls for known, cls in self._modified.items() if known.partition("+")[0] != name}
        self._sources = {known: own for known, own in self._sources.items() if known.partition("+")[0] != name}
        self._sources[name] = identity(item, file)  # now: the file may change while the class is in use

    def get(self, name: str) -> type[Method]:
        inner, plus, last = name.rpartition("+")
        if not plus:
            return super().get(name)
        if name not in self._modified:
            if plugin := self._plugin(last):
                if issubclass(self.get(inner), Plugged):
                    raise UserError(f"{inner} trains with a plugin already, and takes no second one", f"leave {last} out")
                self._modified[name], own = plugged(plugin, name, self.get(inner)), identity(plugin)
                self._sources[name] = digest([self.source(inner), own]) if own else self.source(inner)
            else:
                base, _, modifier = name.partition("+")
                self._modified[name] = modified(super().get(base), modifier)
        return self._modified[name]

    def _plugin(self, name: str) -> Any:
        """The class of a plugin that is Avalanche's or was named; None for what is no plugin. A record alone imports nothing."""
        known = self._plugins[name][0] if name in self._plugins else AVALANCHE.get(name)
        if known is None and ":" in name:
            raise UserError(f"the plugin {name} is not known here", "name its module or file with --plugin")
        return known

    def plugin(self, place: str, name: str) -> str:
        """Name a plugin: what stands in the name of a method with it."""
        if f"{place}:{name}" in self._plugins:
            return f"{place}:{name}"
        if not place and name not in AVALANCHE:
            raise UserError(f"Avalanche has no strategy plugin {name!r}", suggest(name, AVALANCHE))
        if place:
            cls, file = find_in(place, name, partial(check_plugin, text=f"{place}:{name}"))
        else:
            cls, file = AVALANCHE[name], None
        full = name if AVALANCHE.get(name) is cls else f"{file.name if file else place}:{name}"
        if "+" in full:
            raise UserError(f"{full}: a + divides a method from its plugins", "give the file another name")
        if self._plugins.setdefault(full, (cls, file))[0] is not cls:
            raise UserError(f"two plugins are called {full}", "give one of the files another name")
        return full

    def plugins(self, texts: Iterable[str]) -> tuple[list[Call], list[Any]]:
        """The plugins of --plugin: calls of those that train, under their full names, and those that look on, made."""
        calls, looking = [], []
        for call in map(Call.parse, texts):
            place, _, name = self.plugin(call.place, call.name).rpartition(":")
            cls = self._plugin(f"{place}:{name}" if place else name)
            if not getattr(cls, "looks_on", False):
                calls.append(replace(call, place=place))
                continue
            try:
                looking.append(cls(**call.arguments))
            except Exception as error:
                raise UserError(f"{name} cannot be made: {one_line(error)}", "check its arguments") from error
        return calls, looking

    def called(self, texts: Iterable[str]) -> tuple[list[Call], tuple[str, ...], tuple[Path, ...]]:
        """The calls of those that train; what another process must know: calls under the plugins' full names, and files."""
        texts = list(texts)
        names = [self.plugin(call.place, call.name) for call in map(Call.parse, texts)]
        words = [", ".join(f"{k}={v!r}" for k, v in Call.parse(text).arguments.items()) for text in texts]
        files = tuple(file for name in names if (file := self._plugins[name][1]))
        return self.plugins(texts)[0], tuple(f"{name}({said})" for name, said in zip(names, words, strict=True)), files

    def with_plugins(self, name: str, calls: Iterable[Call]) -> tuple[str, dict[str, Any]]:
        """The name of a method with these plugins, and the settings that their arguments are."""
        settings: dict[str, Any] = {}
        for call in calls:
            name += f"+{self.plugin(call.place, call.name)}"
            fields: Mapping[str, str] = self.get(name).arguments
            for word, value in call.arguments.items():
                if word not in fields:
                    raise UserError(f"{call.name} has no argument {word!r} that text can give", suggest(word, fields))
                settings[fields[word]] = value
        return name, settings

    def trained_with(self, name: str, texts: Iterable[str]) -> tuple[str, dict[str, Any]]:
        """`with_plugins`, for what takes no plugin that looks on."""
        calls, looking = self.plugins(texts)
        if looking:
            raise UserError(f"{type(looking[0]).__name__} only looks on", "leave it out; `benchsuite run` takes it")
        return self.with_plugins(name, calls)

    def name_plugins(self, given: Iterable[str | Call], within: str | None = None) -> None:
        """Name plugins that methods on record train with. within: the one method there is."""
        for call in (Call.parse(one) if isinstance(one, str) else one for one in given):
            name = self.plugin(call.place, call.name)
            if within is not None and name not in within.split("+"):
                raise UserError(f"the record is of {within}, without {name}", "leave --plugin out, or name another record")
            if call.arguments:
                raise UserError(f"the arguments of {name} are on record", "write --plugin without them")

    def find(self, text: str | Path) -> str:
        """The name of a method given by its name or as the Python file that defines it, with +MODIFIER and +PLUGIN after it."""
        match = re.fullmatch(r"(.+?\.py|[^+]*)((?:\+[^+]+)*)", str(text))
        base, rest = (match[1], match[2]) if match else (str(text), "")
        name = self.load_file(Path(base)) if base.endswith(".py") else base
        for part in rest.split("+")[1:]:
            place, colon, cls = part.rpartition(":")
            name += f"+{self.plugin(place, cls) if colon else part}"
        return self.get(name).name

    def served(self, name: str) -> type[Method]:
        """The class that restores what a method learned: a plugin has no part in it."""
        base, *others = name.split("+")
        return self.get("+".join([base, *(part for part in others if part in MODIFIERS)]))

    def file(self, name: str) -> Path | None:
        return super().file(name.partition("+")[0])

    def source(self, name: str) -> str:
        """The digest of the source of a method from elsewhere, "" for a built-in one (see `benchsuite.source.identity`)."""
        self.all()
        if ":" in name and name not in self._sources:
            with suppress(UserError):  # it is not known here
                self.get(name)
        return self._sources.get(name, self._sources.get(name.partition("+")[0], ""))

    def sources(self) -> dict[str, str]:
        """That of every method, by name."""
        return {name: self.source(name) for name in {**self.all(), **self._sources}}


methods = Methods()


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: register a method by its name."""
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise TypeError("@register goes above a class that inherits from benchsuite.Method")
    if "__dataclass_fields__" not in cls.__dict__:
        cls = dataclass(cls)
    # Plugins are compared by identity: a dataclass would compare its fields and would not be hashable.
    cls.__eq__, cls.__hash__ = object.__eq__, object.__hash__  # type: ignore[method-assign]
    cls.name = cls.__dict__.get("name") or cls.__name__.lower()
    if not re.fullmatch(r"[\w][\w.-]*", cls.name):
        raise TypeError(f"a method's name is letters, digits and _ . -, got {cls.name!r}")
    try:
        check_folder_name("a method called", cls.name)
    except ValueError as error:
        raise TypeError(f"{error}: give it a shorter name") from None
    cls.label, cls.marker = cls.__dict__.get("label") or cls.name, cls.__dict__.get("marker", "")  # no other method's
    for word, text in (("label", cls.label), ("family", cls.family)):
        if not (isinstance(text, str) and fits(text)):
            raise TypeError(f"{cls.name}: its {word} must be 1 to {LONGEST_LABEL} printable characters, got {text!r:.200}")
    if cls.marker not in ("", *MARKERS):
        raise TypeError(f"{cls.name}: there is no marker {cls.marker!r}; there are {' '.join(MARKERS)}")
    methods.add(cls.name, cls, cls.__module__, sys._getframe(1).f_code.co_filename)
    return cls
