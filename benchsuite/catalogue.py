"""The methods and modifiers that exist, read from their source without importing it.

An import would load PyTorch and Avalanche, which takes ten seconds. Nothing is cached.
"""

from __future__ import annotations

import ast
import pkgutil
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import resolve_name
from pathlib import Path

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d")  # shapes, by matplotlib's names


@dataclass(frozen=True)
class MethodEntry:
    """What a method's class says about the method. summary: the first line of its docstring. marker: one of `MARKERS`, or ""."""

    name: str
    summary: str
    family: str = "other"
    forgetting: str = "some"
    label: str = ""
    marker: str = ""


def methods() -> dict[str, MethodEntry]:
    """Every installed method by name, in alphabetical order: our own and those of other distributions.

    An entry point whose module has no class decorated with @register is listed by its name."""
    package = find_source("benchsuite.methods")
    assert package is not None
    found = []
    for module in pkgutil.iter_modules([str(package.parent)]):
        found += _registered(*_parse(f"benchsuite.methods.{module.name}"))
    for point in entry_points(group="benchsuite.methods"):
        theirs = _registered(*_parse(point.module))
        found += theirs or [
            MethodEntry(point.name, f"defined by {point.value}, which must be imported to know more", label=point.name)
        ]
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}


def modifiers() -> dict[str, str]:
    """Every modifier by name, with the first sentence of its docstring."""
    _, tree = _parse("benchsuite.nn.modifiers")
    table = _assignments(tree)["MODIFIERS"]
    assert isinstance(table, ast.Dict)
    docs = {node.name: ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    return {ast.literal_eval(k): first_sentence(docs[ast.unparse(v)]) for k, v in zip(table.keys, table.values, strict=True) if k}


def first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0].rstrip()


def first_sentence(docstring: str | None) -> str:
    return " ".join((docstring or "").split()).partition(". ")[0].rstrip(".") + "."


def find_source(module: str) -> Path | None:
    """The source file of an installed module, found without importing the module or a package above it. None if it has none."""
    spec, path, name = None, None, ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = next((spec for finder in sys.meta_path if (spec := finder.find_spec(name, path))), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations or ()
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _parse(module: str) -> tuple[str, ast.Module]:
    """The package that a module's relative imports start from, and its syntax tree (empty where it has no source)."""
    file = find_source(module)
    package = module if file and file.name == "__init__.py" else module.rpartition(".")[0]
    return package, ast.parse(file.read_bytes() if file else b"")


def _registered(package: str, tree: ast.Module) -> list[MethodEntry]:
    """The classes decorated with @register."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(d).split(".")[-1] == "register" for d in node.decorator_list):
            own, says = _own_texts(node), _texts(node, package, tree)
            name, summary = own.get("name") or node.name.lower(), first_line(ast.get_docstring(node))
            label, marker = own.get("label") or name, own.get("marker", "")  # never inherited: they tell methods apart
            found.append(MethodEntry(name, summary, says.get("family", "other"), says.get("forgetting", "some"), label, marker))
    return found


def _texts(node: ast.ClassDef, package: str, tree: ast.Module) -> dict[str, str]:
    """The class attributes that are strings, including inherited ones."""
    inherited: dict[str, str] = {}
    for base in reversed(node.bases):
        inherited |= _texts_of(ast.unparse(base), package, tree)
    return inherited | _own_texts(node)


def _texts_of(name: str, package: str, tree: ast.Module) -> dict[str, str]:
    """Those of the class that a module calls `name` ("CACL" or "cacl.CACL"), wherever the module imports it from."""
    first, _, rest = name.partition(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _texts(node, package, tree)
        for alias in node.names if isinstance(node, ast.ImportFrom | ast.Import) else ():
            if isinstance(node, ast.ImportFrom) and first == (alias.asname or alias.name):
                module = resolve_name("." * node.level + (node.module or ""), package)
                return _texts_of(rest, *_parse(f"{module}.{alias.name}")) if rest else _texts_of(alias.name, *_parse(module))
            if isinstance(node, ast.Import) and name.startswith(f"{alias.asname or alias.name}."):
                return _texts_of(name.removeprefix(f"{alias.asname or alias.name}."), *_parse(alias.name))
    return {}


def _own_texts(node: ast.ClassDef) -> dict[str, str]:
    values = {name: value.value for name, value in _assignments(node).items() if isinstance(value, ast.Constant)}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def _assignments(node: ast.Module | ast.ClassDef) -> dict[str, ast.expr]:
    """The values that are assigned to names in the body of a module or class."""
    pairs = [(target, one.value) for one in node.body if isinstance(one, ast.Assign) for target in one.targets]
    pairs += [(one.target, one.value) for one in node.body if isinstance(one, ast.AnnAssign) and one.value]
    return {target.id: value for target, value in pairs if isinstance(target, ast.Name)}
