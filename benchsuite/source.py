"""Which source a record was made by, and whether that source says something else today. Needs no torch.

A record names the modules of its method (those that it inherits from, and the modifier's classes, too) and the parts of this
package that they import and that not every run stands on: layers, decompositions, memories. Each has a digest of its syntax tree
without docstrings, so that a comment or another layout changes nothing. The protocol has one of its tasks and images.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from .files import digest
from .record.schema import RunRecord
from .registry import USER_MODULE

# What every method stands on is in the record as a revision and versions. A file outside of any package is part of the job.
ENGINE = {"avalanche", "benchsuite", "torch", *sys.stdlib_module_names}

PARTS = ("benchsuite.methods.", "benchsuite.nn.", "benchsuite.method.replay", "benchsuite.nn.modifiers")

COMMON = {f"benchsuite.nn.{name}" for name in ("backbones", "conditional", "guard", "multihead", "normalisation")}


def made_by(cls: type, modifier: type | None, protocol: Any) -> dict[str, str]:
    """Digests of the source of a run: of the class of its method, of its modifier and of its `protocol.Protocol`."""
    bases = dict.fromkeys(base.__module__ for base in cls.__mro__)
    own = [name for name in bases if name.startswith("benchsuite.methods.") or name.split(".")[0] not in ENGINE]
    parts = [part for name in [*own, *([modifier.__module__] if modifier else [])] for part in parts_of(name)]
    names = list(dict.fromkeys(name for name in [*own, *parts] if not name.startswith(USER_MODULE)))
    names += [f"{base.__module__}:{base.__qualname__}" for base in (modifier.__mro__ if modifier else ()) if base is not object]
    found = {name: digest_of(name) for name in names}
    return {name: value for name, value in found.items() if value} | {f"protocol {protocol.name}": digest_of_protocol(protocol)}


def parts_of(module: str) -> list[str]:
    """The parts of this package that a module imports, directly or through another of them."""
    found: list[str] = []
    waiting = [module]
    while waiting:
        for name in _imports(waiting.pop()):
            if name.startswith(PARTS) and name not in {*COMMON, *found, module} and _file(name):
                found.append(name)
                waiting.append(name)
    return found


@cache
def _imports(module: str) -> list[str]:
    path = _file(module)
    names = []
    for node in ast.walk(ast.parse(path.read_text())) if path else ():
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def changes(code: dict[str, str]) -> list[str]:
    """Of what `made_by` gave, that which says something else today. What is not installed here cannot be compared."""
    return [name for name, before in code.items() if (now := digest_of(name)) and now != before]


def stale(record: RunRecord) -> list[str]:
    """What has changed since the record was made; nothing where it does not say what it was made by."""
    return changes(record.made_by)


def digest_of(name: str) -> str:
    """Twelve hexadecimal digits for "package.module", "package.module:Class" or "protocol NAME"; "" where it is not here."""
    kind, _, protocol = name.rpartition(" ")
    if kind == "protocol":
        from .protocol import protocols

        known = protocols.all()
        return digest_of_protocol(known[protocol]) if protocol in known else ""
    module, _, part = name.partition(":")
    path = _file(module)
    try:
        state = path.stat() if path else None
    except OSError:
        state = None
    return _digest(path, part, state.st_mtime_ns, state.st_size) if path and state else ""


def digest_of_protocol(protocol: Any) -> str:
    """Its tasks and images. Its recipes are settings of the run, and published figures decide nothing."""
    says = asdict(protocol)
    return digest({name: says[name] for name in ("tasks", "image", "crop_padding", "flip")})[:12]


@cache
def _file(module: str) -> Path | None:
    """Where the source of a module lies. What a record names is looked for and not imported: anybody can write a record."""
    spec, package = None, module.split(".")
    try:
        if module in sys.modules:
            spec = sys.modules[module].__spec__
        elif package[0] == "benchsuite":
            spec = importlib.util.find_spec(module)
        elif all(map(str.isidentifier, package)):
            spec = PathFinder.find_spec(package[0])
            for i in range(2, len(package) + 1):
                places = spec.submodule_search_locations if spec else None
                spec = PathFinder.find_spec(".".join(package[:i]), places) if places else None
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _digest(path: Path, part: str, changed: int, size: int) -> str:
    try:
        tree: ast.AST = ast.parse(path.read_text())
    except (OSError, SyntaxError, ValueError):  # what cannot be read cannot be compared
        return ""
    if part:
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == part]
        tree = classes[0] if classes else ast.Module([], [])
    return digest(_plain(tree))[:12]


def _plain(node: Any) -> Any:
    """A syntax tree as JSON. Empty fields are left out: which of them there are differs from one Python to the next."""
    if isinstance(node, ast.AST):
        return [type(node).__name__, {k: _plain(v) for k, v in ast.iter_fields(node) if v is not None and v != []}]
    return [_plain(item) for item in _code(node)] if isinstance(node, list) else repr(node)


def _code(items: list[Any]) -> Iterable[Any]:
    """Without statements that are a mere text."""
    return [
        i for i in items if not (isinstance(i, ast.Expr) and isinstance(i.value, ast.Constant) and isinstance(i.value.value, str))
    ]
