"""Finding methods and protocols: built-in packages, entry points of other packages, or a file.

A failing import is an error, and so is a name that is taken: otherwise a method could be missing from a board without notice.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from .errors import UserError, one_line

T = TypeVar("T")

USER_MODULE = "benchsuite_user_"  # how the modules of files outside of any package begin


class Registry(Generic[T]):
    """The methods, or the protocols, by name. `kind` is "method" or "protocol"; `package` holds our own."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._known: dict[str, T] = {}
        self._origins: dict[str, str] = {}  # the module that registered each of them
        self._files: dict[Path, str] = {}
        self._discovered = False

    def add(self, name: str, item: T, origin: str = "") -> None:
        """Register an item. Its name must be free, unless a notebook or `__main__` registers its own item again."""
        again = origin == self._origins.get(name) == "__main__"
        if name in self._known and self._known[name] is not item and not again:
            raise UserError(f"two {self.kind}s are called {name!r}", "rename one of them")
        self._known[name], self._origins[name] = item, origin

    def remove(self, name: str) -> None:
        del self._known[name], self._origins[name]

    def is_built_in(self, name: str) -> bool:
        self.all()
        return self._origins.get(name, "").startswith(f"{self.package}.")

    def modules(self) -> list[str]:
        """The modules of our own package, by their full names."""
        path = importlib.import_module(self.package).__path__
        return [module.name for module in pkgutil.iter_modules(path, f"{self.package}.")]

    def all(self) -> dict[str, T]:
        """Every registered item by name, in alphabetical order."""
        if not self._discovered:
            self._discovered = True
            for module in self.modules():
                importlib.import_module(module)
            for entry in entry_points(group=f"benchsuite.{self.kind}s"):
                entry.load()
        return dict(sorted(self._known.items()))

    def get(self, name: str) -> T:
        known = self.all()
        if name not in known:
            raise UserError(f"no {self.kind} is called {name!r}", suggest(name, known))
        return known[name]

    def load_file(self, path: Path) -> str:
        """Import a Python file that registers one item, and return that item's name."""
        path = path.resolve()
        self.all()
        if path not in self._files:
            if not path.is_file():
                raise UserError(f"{path}: no such file", "give a registered name or a Python file")
            before = set(self._known)
            spec = importlib.util.spec_from_file_location(USER_MODULE + path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            try:
                spec.loader.exec_module(module)
            except UserError:
                raise
            except (Exception, SystemExit) as error:
                raise UserError(f"{path}: cannot be imported: {one_line(error)}") from error
            new = sorted(set(self._known) - before)
            if len(new) != 1:
                raise UserError(f"{path}: registers {len(new)} {self.kind}s, expected one", "put @register above one class")
            self._files[path] = new[0]
        return self._files[path]

    def file(self, name: str) -> Path | None:
        """The file that `name` was loaded from, None for an installed one."""
        return next((path for path, known in self._files.items() if known == name), None)


def suggest(name: str, known: Iterable[str]) -> str:
    """The remedy of an error: the nearest known name, or all of them."""
    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
