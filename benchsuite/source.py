"""Which source a record was made by, and whether that source says something else today. Needs no torch.

A record names the modules of its method (those that it inherits from and the modifier's classes too), each with a digest of
its syntax tree without docstrings, so that a comment or another layout changes nothing; and its protocol, with a digest of its
tasks and images.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from .records import RunRecord, digest
from .registry import USER_MODULE

# What every method stands on is in the record as a revision and versions. A file outside of any package is part of the job.
ENGINE = {"avalanche", "benchsuite", "torch", *sys.stdlib_module_names}


def made_by(cls: type, modifier: type | None, protocol: Any) -> dict[str, str]:
    """Digests of the source of a run: of the class of its method, of its modifier and of its `protocol.Protocol`."""
    names = [
        name
        for name in dict.fromkeys(base.__module__ for base in cls.__mro__)
        if name.startswith("benchsuite.methods.") or not (name.split(".")[0] in ENGINE or name.startswith(USER_MODULE))
    ]
    names += [f"{base.__module__}:{base.__qualname__}" for base in (modifier.__mro__ if modifier else ()) if base is not object]
    found = {name: digest_of(name) for name in names}
    return {name: value for name, value in found.items() if value} | {f"protocol {protocol.name}": digest_of_protocol(protocol)}


def changes(code: dict[str, str]) -> list[str]:
    """Of what `made_by` gave, that which says something else today. What is not installed here cannot be compared."""
    return [name for name, before in code.items() if (now := digest_of(name)) and now != before]


def stale(record: RunRecord) -> list[str]:
    """What has changed since the record was made; nothing where it does not say what it was made by."""
    return changes(record.environment.get("code", {}))


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
    try:
        spec = sys.modules[module].__spec__ if module in sys.modules else importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _digest(path: Path, part: str, changed: int, size: int) -> str:
    tree: ast.AST = ast.parse(path.read_text())
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
