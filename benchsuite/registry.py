"""Finding methods, protocols and data sets: built-in packages, entry points of other packages, or a file.

A failing import is an error, and so is a name that is taken: otherwise a method could be missing from a board without notice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import UserError, one_line

T = TypeVar("T")

USER_MODULE = "benchsuite_user_"  # how the modules of files outside of any package begin

_REGISTRIES: list[Registry] = []
_BESIDE: dict[Path, tuple[Path, ...]] = {}  # the files beside a file that it imports
_MODULES: dict[Path, str] = {}  # the modules of files that were loaded


def load_file(path: Path) -> dict[str, list[str]]:
    """Import a Python file that registers something, once per process. It can import modules that stand beside it.

    Returns the names that it registers, by kind."""
    path = path.expanduser().resolve()
    if not _is_loaded(path):
        if not path.is_file():
            raise UserError(f"{path}: no such file", "give a registered name or a Python file")
        before = {registry.kind: set(registry.all()) for registry in _REGISTRIES}
        modules = set(sys.modules)
        name = USER_MODULE + path.stem
        if getattr(sys.modules.get(name), "__file__", str(path)) != str(path):  # another file of that name
            name += f"_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert isinstance(spec.loader, SourceFileLoader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # last: a file beside it hides no installed module
        try:
            # No cached bytecode: it goes by second and size, and would hide an edit within the same second.
            exec(spec.loader.source_to_code(path.read_bytes(), path), module.__dict__)
        except (Exception, SystemExit) as error:
            _forget(path, name)
            if isinstance(error, UserError):
                raise UserError(f"{path}: {error.problem}", error.remedy) from None
            raise UserError(f"{path}: cannot be imported: {one_line(error)}") from error
        _MODULES[path] = name
        for registry in _REGISTRIES:
            if new := sorted(registry.others() - before.get(registry.kind, set())):
                registry.files[path] = new
        homes = [Path(file) for new in set(sys.modules) - modules if (file := getattr(sys.modules[new], "__file__", None))]
        _BESIDE[path] = tuple(sorted(home for home in homes if path.parent in home.parents and home != path))
    return {registry.kind: registry.files[path] for registry in _REGISTRIES if path in registry.files}


def _is_loaded(path: Path) -> bool:
    return any(path in registry.files for registry in _REGISTRIES)


def _forget(path: Path, module: str) -> None:
    """Undo the import of a file that is refused: mended, it can be loaded again, as in a notebook."""
    for registry in _REGISTRIES:
        registry.forget(module)
        registry.files.pop(path, None)
    _MODULES.pop(path, None)


def find_in(place: str, name: str, check: Callable[[Any], None]) -> tuple[Any, Path | None]:
    """What a module, or a Python file, calls `name`; and the file. A file that was loaded is also known by its bare name.

    check: raises UserError for what it must not be. A file without it, or with a wrong one, is loaded again once it is mended."""
    path = Path(place).expanduser().resolve() if place.endswith(".py") else None
    if path and not path.is_file():
        path = next((loaded for loaded in reversed(_MODULES) if loaded.name == place), path)
    if fresh := path is not None and path not in _MODULES:
        load_file(path)
    try:
        module = sys.modules[_MODULES[path]] if path else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise UserError(f"{place}: cannot be imported: {one_line(error)}", "name an installed module or a Python file") from None
    try:
        if not hasattr(module, name):
            raise UserError(f"{place}: has no {name}", suggest(name, [word for word in vars(module) if word[0].isupper()]))
        check(getattr(module, name))
    except UserError:
        if fresh and path:
            _forget(path, module.__name__)
        raise
    return getattr(module, name), path


def with_those_beside(path: Path) -> tuple[Path, ...]:
    """A file that was loaded, and the files beside it that it imports: what another machine needs to load it, too."""
    return (path, *_BESIDE.get(path, ()))


class Registry(Generic[T]):
    """The methods, the protocols or the data sets by name.

    kind: what they are, in the singular. package: holds our own. how: what a file does to register one."""

    def __init__(self, kind: str, package: str, how: str) -> None:
        self.kind, self.package, self.how = kind, package, how
        self._known: dict[str, T] = {}
        self._origins: dict[str, str] = {}  # the module that registered each of them
        self.files: dict[Path, list[str]] = {}  # what files outside of any package registered
        self._discovered = False
        _REGISTRIES.append(self)

    def add(self, name: str, item: T, origin: str = "") -> None:
        """Register an item. Its name must be free, unless a notebook or `__main__` registers its own item again."""
        again = origin == self._origins.get(name) == "__main__"
        if name in self._known and self._known[name] is not item and not again:
            raise UserError(f"two {self.kind}s are called {name!r}", "rename one of them")
        self._known[name], self._origins[name] = item, origin

    def remove(self, name: str) -> None:
        del self._known[name], self._origins[name]

    def forget(self, origin: str) -> None:
        """Remove what a module registered."""
        for name in [name for name, its in self._origins.items() if its == origin]:
            self.remove(name)

    def others(self) -> set[str]:
        """What is registered and not built in."""
        return {name for name in self._known if not self._origins.get(name, "").startswith(f"{self.package}.")}

    def is_built_in(self, name: str) -> bool:
        self.all()
        return self._origins.get(name, "").startswith(f"{self.package}.")

    def is_typed_in(self, name: str) -> bool:
        """Whether it was registered in this session: by a notebook's cell, or by the script that is run."""
        return self._origins.get(name) == "__main__"

    def modules(self) -> list[str]:
        """The modules of our own package, by their full names."""
        path = importlib.import_module(self.package).__path__
        return [module.name for module in pkgutil.iter_modules(path, f"{self.package}.")]

    def import_ours(self) -> None:
        for module in self.modules():
            importlib.import_module(module)

    def all(self) -> dict[str, T]:
        """Every registered item by name, in alphabetical order."""
        if not self._discovered:
            self._discovered = True
            self.import_ours()
            for entry in entry_points(group=f"benchsuite.{self.kind.replace(' ', '')}s"):
                entry.load()
        return dict(sorted(self._known.items()))

    def get(self, name: str) -> T:
        known = self.all()
        if name not in known:
            raise UserError(f"no {self.kind} is called {name!r}", suggest(name, known))
        return known[name]

    def load_file(self, path: Path) -> str:
        """Import a Python file that registers one item, and return that item's name."""
        path = path.expanduser().resolve()
        self.all()
        fresh = not _is_loaded(path)
        new = load_file(path).get(self.kind, [])
        if len(new) != 1:
            if fresh:
                _forget(path, _MODULES[path])
            raise UserError(f"{path}: registers {len(new)} {self.kind}s, expected one", self.how)
        return new[0]

    def find(self, text: str | Path) -> str:
        """The name of an item that is given by its name or as the Python file that defines it."""
        return self.load_file(Path(text)) if str(text).endswith(".py") else str(text)

    def file(self, name: str) -> Path | None:
        """The file that `name` was loaded from, None for an installed one."""
        return next((path for path, known in self.files.items() if name in known), None)


def suggest(name: str, known: Iterable[str]) -> str:
    """The remedy of an error: the nearest known name, or all of them."""
    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
