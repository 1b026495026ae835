"""Which part of the package may import which: the table in CONTRIBUTING.md, held against every import there is.

A room is a folder of the package, or a file that lies flat beside them. `python tests/test_layout.py [TREE]` counts, for the
source tree TREE (this one by default):

- arrows: pairs of rooms of which the first imports the second,
- circles: groups of rooms that import one another, directly or through others,
- storeys: rooms in the longest chain of imports. A circle adds all its rooms: none of them can be read before the others.

Only `benchsuite/__init__.py` and `__main__.py` are no rooms: the first hands out names and imports nothing before it is asked.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "benchsuite"
FACADE, START = f"{PACKAGE}/__init__.py", f"{PACKAGE}/__main__.py"
COMPUTED = {"import_module", "__import__", "find_spec", "spec_from_file_location", "exec_module", "run_module", "resolve_name"}


@dataclass(frozen=True)
class Import:
    """A file uses a module. how: "at once", "in a function", "for types" or "by name" (in a string)."""

    file: str
    line: int
    module: str
    how: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module} {self.how}"


@dataclass(frozen=True)
class Table:
    """What CONTRIBUTING.md says. rows: room -> number of its row, 1 being the top. beside: pairs of rooms of which the first may
    import the second although it does not lie lower. by_name: pairs, of which the first names the second in a string only.
    light: rooms without torch. inside: rooms and files in which our own modules may be imported inside functions. computed:
    files that import modules by names which they compute."""

    rows: Mapping[str, int]
    beside: frozenset[tuple[str, str]] = frozenset()
    by_name: frozenset[tuple[str, str]] = frozenset()
    light: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()
    computed: frozenset[str] = frozenset()

    @classmethod
    def read(cls, text: str) -> Table:
        rows, beside, by_name, light = {}, set(), set(), set()
        for row, room, _, also, torch in re.findall(r"^\| (\d+) \| `([^`]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE):
            rows[room] = int(row)
            for other, named in re.findall(r"`([^`]+)`( \(by name\))?", also):
                (by_name if named else beside).add((room, other))
            if torch.strip() == "no":
                light.add(room)
        inside, computed = (
            frozenset(
                name for line in re.findall(rf"^- \*\*{rule}\*\*.*", text, re.MULTILINE) for name in re.findall("`([^`]+)`", line)
            )
            for rule in ("Imports inside functions", "Imports by computed names")
        )
        return cls(rows, frozenset(beside), frozenset(by_name), frozenset(light), inside, computed)


@dataclass
class Tree:
    """The source of the package: the text of every file, by its path with our methods and protocols where they are installed."""

    files: dict[str, str]
    modules: dict[str, str] = field(init=False)  # name -> file
    public: dict[str, str] = field(init=False)  # what `from benchsuite import name` hands out -> module

    def __post_init__(self) -> None:
        self.modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in self.files}
        facade = ast.parse(self.files.get(FACADE, ""))
        self.public = {
            alias.name: f"{PACKAGE}.{node.module}"
            for node in ast.walk(facade)
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
            for alias in node.names
        }

    @classmethod
    def read(cls, root: Path) -> Tree:
        folders = {PACKAGE: root / PACKAGE} | {f"{PACKAGE}/{name}": root / name for name in ("methods", "protocols")}
        return cls(
            {
                f"{where}/{path.relative_to(folder).as_posix()}": path.read_text()
                for where, folder in folders.items()
                for path in sorted(folder.rglob("*.py"))
            }
        )

    def with_line(self, file: str, text: str) -> Tree:
        """The same tree with `text` at the end of a file."""
        return Tree(self.files | {file: f"{self.files.get(file, '')}\n{text}\n"})

    def room(self, file: str) -> str:
        """`nn/`, or `errors.py`."""
        parts = file.split("/")
        return f"{parts[1]}/" if len(parts) > 2 else parts[1]

    def imports(self, ours: bool = True) -> list[Import]:
        """Every import of our own modules; or of other people's, by the first part of their names."""
        found = []
        for file, text in self.files.items():
            for line, name, how in names(file, text):
                module = self._resolve(name)
                if ours and module and self.modules[module] != file:
                    found.append(Import(file, line, module, how))
                elif not ours and not name.startswith(PACKAGE):
                    found.append(Import(file, line, name.split(".")[0], how))
        return list(dict.fromkeys(found))

    def _resolve(self, name: str) -> str | None:
        """The module that `name` (a module, or something in one) comes from; None for other people's."""
        above, _, last = name.rpartition(".")
        if above == PACKAGE and name not in self.modules:
            return self.public.get(last)
        return name if name in self.modules else above if above in self.modules else None


@cache
def names(file: str, text: str) -> list[tuple[int, str, str]]:
    """(line, module or module.name, how) of every import in a file."""
    found: list[tuple[int, str, str]] = []
    package, waiting = file.split("/")[:-1], deque([(ast.parse(text), "at once")])
    while waiting:
        node, how = waiting.popleft()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            how = "in a function"
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            waiting += [(child, "for types") for child in node.body]
            waiting += [(child, how) for child in node.orelse]
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, how) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}", how) for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value):
            found.append((node.lineno, node.value, "by name"))
        waiting += [(child, how) for child in ast.iter_child_nodes(node)]
    return found


MODULE = re.compile(rf"{PACKAGE}(\.[a-z_]\w*)+")


def violations(tree: Tree, table: Table) -> list[str]:
    """What the table forbids, one line each."""
    found = [f"{room} is in the table and not in the package" for room in sorted(set(table.rows) - rooms(tree))]
    found += [f"{room} is in the package and not in the table" for room in sorted(rooms(tree) - set(table.rows))]
    if found:
        return found
    for one in tree.imports():
        if one.file == START:
            continue
        if one.file == FACADE:
            found += [str(one)] if one.how == "at once" else []
            continue
        here, there = tree.room(one.file), tree.room(tree.modules[one.module])
        if here == there:
            pass
        elif one.how == "by name" and (here, there) in table.by_name:
            continue
        elif table.rows[there] <= table.rows[here] and (here, there) not in table.beside:
            words = "upward" if table.rows[there] < table.rows[here] else "sideways"
            found.append(f"{one}: {words}, from {here} to {there}")
        if one.how == "in a function" and not {here, one.file} & table.inside:
            found.append(f"{one}: only {', '.join(sorted(table.inside))} may")
    found += [f"these modules import one another: {', '.join(circle)}" for circle in circles(module_graph(tree, table))]
    found += [f"{file}: no torch here, but it imports {' -> '.join(path)}" for file, path in heavy(tree, table)]
    found += [f"{file}:{line} names {name}, which is no module" for file, line, name in dead_names(tree)]
    found += [f"{file}:{line} imports a name that it computes" for file, line in computed(tree) if file not in table.computed]
    return found


def rooms(tree: Tree) -> set[str]:
    return {tree.room(file) for file in tree.files if file not in (FACADE, START)}


def room_graph(tree: Tree) -> dict[str, set[str]]:
    """Which rooms each room imports, in whatever way. What is named in a string counts too, but not what only the registry
    looks for under that name."""
    graph: dict[str, set[str]] = {room: set() for room in rooms(tree)}
    for one in tree.imports():
        here, there = tree.room(one.file), tree.room(tree.modules[one.module])
        if here in graph and there in graph and here != there and not _discovery(tree, one):
            graph[here].add(there)
    return graph


def module_graph(tree: Tree, table: Table) -> dict[str, set[str]]:
    """The same of files; what a file may name, and does not import, does not count."""
    graph: dict[str, set[str]] = {file: set() for file in tree.files}
    for one in tree.imports():
        target = tree.modules[one.module]
        if one.file != FACADE and not (one.how == "by name" and (tree.room(one.file), tree.room(target)) in table.by_name):
            graph[one.file].add(target)
    return graph


def _discovery(tree: Tree, one: Import) -> bool:
    """Whether an import is the name of the package of methods or of protocols, in which the registry looks."""
    return one.how == "by name" and one.module in (f"{PACKAGE}.methods", f"{PACKAGE}.protocols")


def components(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Strongly connected components, each after those that it reaches (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    return [component for component in components(graph) if len(component) > 1]


def storeys(graph: Mapping[str, Iterable[str]]) -> int:
    height: dict[str, int] = {}
    for component in components(graph):
        below = {other for node in component for other in graph[node]} - set(component)
        height |= dict.fromkeys(component, len(component) + max((height[other] for other in below), default=0))
    return max(height.values(), default=0)


def heavy(tree: Tree, table: Table) -> Iterator[tuple[str, list[str]]]:
    """(file, path) for each file of a room without torch that imports it, directly or through our own modules. Importing a module
    imports the packages above it."""
    direct = {one.file for one in tree.imports(ours=False) if one.module in ("torch", "avalanche") and one.how != "for types"}
    steps: dict[str, set[str]] = {file: set() for file in tree.files}
    for one in tree.imports():
        if one.file not in (FACADE, START) and one.how in ("at once", "in a function"):
            steps[one.file] |= {tree.modules[one.module], *above(tree, one.module)}
    for start in tree.files:
        if start in (FACADE, START) or tree.room(start) not in table.light:
            continue
        paths, waiting = {start: [start]}, [start]
        while waiting:
            file = waiting.pop(0)
            if file in direct:
                yield start, [*paths[file][1:], "torch"]
                break
            new = steps[file] - set(paths)
            paths |= {other: [*paths[file], other] for other in new}
            waiting += sorted(new)


def above(tree: Tree, module: str) -> set[str]:
    parts = module.split(".")
    return {tree.modules[".".join(parts[:i])] for i in range(2, len(parts)) if ".".join(parts[:i]) in tree.modules}


def dead_names(tree: Tree) -> Iterator[tuple[str, int, str]]:
    """Strings that look like one of our modules and are none, say after a rename."""
    groups = {f"{PACKAGE}.methods", f"{PACKAGE}.protocols"}  # entry points have these names as well
    for file, text in tree.files.items():
        for line, name, how in names(file, text):
            if how == "by name" and name not in tree.modules and name not in groups:
                yield file, line, name


def computed(tree: Tree) -> list[tuple[str, int]]:
    """Calls that import a module whose name is no plain string."""
    return [(file, line) for file, text in tree.files.items() for line in _computed(text)]


@cache
def _computed(text: str) -> list[int]:
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if getattr(call.func, "attr", getattr(call.func, "id", "")) in COMPUTED
        if not (call.args and isinstance(call.args[0], ast.Constant))
    ]


def packaging(tree: Tree, project: str) -> list[str]:
    """Where pyproject.toml does not fit the tree: its list of packages, and the module of its command."""
    said = tomllib.loads(project)
    there = {str(Path(file).parent).replace("/", ".") for file in tree.files}
    listed = set(said["tool"]["setuptools"]["packages"])
    found = [f"pyproject.toml lists {name}, which is no package" for name in sorted(listed - there)]
    found += [f"pyproject.toml does not list {name}" for name in sorted(there - listed)]
    for command in said["project"]["scripts"].values():
        module, _, name = command.partition(":")
        text = tree.files.get(tree.modules.get(module, ""), "")
        if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.parse(text).body):
            found.append(f"pyproject.toml starts {command}, which is not there")
    return found


def count(tree: Tree) -> str:
    graph = room_graph(tree)
    rings = circles(graph)
    text = f"{len(graph)} rooms, {storeys(graph)} storeys, {len(rings)} circles, {sum(map(len, graph.values()))} arrows"
    return "\n".join([text, *(f"circle: {', '.join(ring)}" for ring in rings)])


TABLE = Table.read((ROOT / "CONTRIBUTING.md").read_text())
TREE = Tree.read(ROOT)


def test_every_import_keeps_the_table():
    assert violations(TREE, TABLE) == []


def test_pyproject_names_what_is_there():
    assert packaging(TREE, (ROOT / "pyproject.toml").read_text()) == []


def test_the_table_is_read_whole():
    assert set(TABLE.rows) == rooms(TREE)
    assert {"analysis/", "record/", "report/"} <= TABLE.light
    assert "cli/" in TABLE.inside
    assert len(TABLE.inside) <= 3
    assert len(TABLE.beside) + len(TABLE.by_name) < 10


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("nn/guard.py", "from ..method.base import Method", "upward, from nn/ to method/"),
        ("nn/guard.py", "from benchsuite import Method", "upward, from nn/ to method/"),
        ("nn/guard.py", "import benchsuite.training.runner", "upward, from nn/ to training/"),
        ("analysis/rows.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..report import tables", "upward"),
        ("training/runner.py", "def f():\n    from ..execution import grid", "upward, from training/ to execution/"),
        ("checks/merge.py", "from ..execution import grid", "sideways, from checks/ to execution/"),
        ("training/runner.py", 'PRELOAD = ["benchsuite.checks.contract"]', "upward, from training/ to checks/"),
        ("checks/merge.py", "def f():\n    from .verify import check_job", "in a function: only"),
        (
            "checks/merge.py",
            'TRAINING = "benchsuite.training.strategie"',
            "names benchsuite.training.strategie, which is no module",
        ),
        ("checks/merge.py", "import importlib\nimportlib.import_module(NAME)", "imports a name that it computes"),
        (
            "nn/conditional.py",
            "from .multihead import MultiHead",
            "these modules import one another: benchsuite/nn/backbones.py, benchsuite/nn/conditional.py",
        ),
        (
            "record/schema.py",
            "import torch",
            "benchsuite/analysis/rows.py: no torch here, but it imports benchsuite/record/schema.py",
        ),
        ("report/tables.py", "from ..nn import images", "no torch here, but it imports benchsuite/nn/images.py -> torch"),
        ("__init__.py", "from .method.base import Method", "benchsuite/__init__.py"),
        ("attic/old.py", "", "attic/ is in the package and not in the table"),
    ],
)
def test_a_planted_import_is_reported(file, line, said):
    """Controls: each breaks one rule."""
    found = violations(TREE.with_line(f"{PACKAGE}/{file}", line), TABLE)
    assert any(said in one for one in found), found


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("cli/main.py", "def f():\n    from ..training import runner"),
        ("report/tables.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("training/runner.py", "def f():\n    import matplotlib"),
        ("training/runner.py", '"""What is said of benchsuite.checks.contract in words is no import."""'),
    ],
)
def test_what_the_table_allows_is_not_reported(file, line):
    assert violations(TREE.with_line(f"{PACKAGE}/{file}", line), TABLE) == []


def missing_places(text: str) -> list[str]:
    """What CONTRIBUTING.md says is in a file and is not: "`Class.function` in `benchsuite/room/file.py`"."""
    wrong = []
    for name, file in re.findall(r"`([\w.]+)` in `(benchsuite/[\w/]+\.py)`", text):
        tree = ast.parse(TREE.files.get(file, ""))
        names = {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef)}
        names |= {ast.unparse(target) for n in tree.body if isinstance(n, ast.Assign) for target in n.targets}
        names |= {ast.unparse(n.target) for n in tree.body if isinstance(n, ast.AnnAssign)}
        wrong += [f"{name} in {file}" for part in name.split(".") if part not in names]
    return wrong


def test_what_contributing_names_is_where_it_says():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(re.findall(r"` in `benchsuite/", text)) > 10
    assert missing_places(text) == []
    assert len(text.splitlines()) <= 120


@pytest.mark.parametrize("name", ["`Batches.__iter__`", "`caption`", "`MODIFIERS`"])
def test_a_place_that_contributing_gets_wrong_is_found(name):
    """Control."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert f"{name} in `" in text
    assert len(missing_places(text.replace(f"{name} in `", f"{name[:-1]}s` in `"))) == 1


def test_a_planted_error_in_pyproject_is_reported():
    text = (ROOT / "pyproject.toml").read_text()
    for old, new in (('"benchsuite.nn"', '"benchsuite.nets"'), ("benchsuite.cli.main:program", "benchsuite.cli:main")):
        assert old in text
        assert packaging(TREE, text.replace(old, new)) != []


def test_rooms_are_counted():
    a, b, c = f"{PACKAGE}/a/x.py", f"{PACKAGE}/b/x.py", f"{PACKAGE}/c.py"
    tree = Tree({f"{PACKAGE}/__init__.py": "", a: "from ..b import x", b: "from .. import c", c: ""})
    assert count(tree) == "3 rooms, 3 storeys, 0 circles, 2 arrows"
    assert count(tree.with_line(c, "from .a import x")) == "3 rooms, 3 storeys, 1 circles, 3 arrows\ncircle: a/, b/, c.py"
    assert count(tree.with_line(a, "from .. import c")) == "3 rooms, 3 storeys, 0 circles, 3 arrows"


if __name__ == "__main__":
    print(count(Tree.read(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)))
