"""The registered methods."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ..registry import Registry
from ..source import identity
from .base import Method
from .modified import modified


class Methods(Registry[type[Method]]):
    """The methods by name; `method+modifier` is a method under one of `benchsuite.nn.modifiers`."""

    def __init__(self) -> None:
        super().__init__("method", "benchsuite.methods", "put @register above one class")
        self._modified: dict[str, type[Method]] = {}  # each class is created once
        self._sources: dict[str, str] = {}

    def add(self, name: str, item: type[Method], origin: str = "", file: str = "") -> None:
        super().add(name, item, origin)
        self._modified = {known: cls for known, cls in self._modified.items() if known.partition("+")[0] != name}
        self._sources[name] = identity(item, file)  # now: the file may change while the class is in use

    def get(self, name: str) -> type[Method]:
        base, plus, modifier = name.partition("+")
        if not plus:
            return super().get(name)
        if name not in self._modified:
            self._modified[name] = modified(super().get(base), modifier)
        return self._modified[name]

    def find(self, text: str | Path) -> str:
        """The name of a method given by its name or as the Python file that defines it, either with +MODIFIER after it."""
        text = str(text)
        file, plus, modifier = text.partition(".py+") if ".py+" in text else (text.removesuffix(".py"), "", "")
        if plus or text.endswith(".py"):
            text = self.load_file(Path(f"{file}.py")) + ("+" + modifier if plus else "")
        return self.get(text).name

    def file(self, name: str) -> Path | None:
        return super().file(name.partition("+")[0])

    def source(self, name: str) -> str:
        """The digest of the source of a method from elsewhere, "" for a built-in one (see `benchsuite.source.identity`)."""
        self.all()
        return self._sources.get(name.partition("+")[0], "")

    def sources(self) -> dict[str, str]:
        """That of every method, by name."""
        return {name: self.source(name) for name in self.all()}


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
    methods.add(cls.name, cls, cls.__module__, sys._getframe(1).f_code.co_filename)
    return cls
