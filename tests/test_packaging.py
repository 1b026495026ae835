"""The wheel: what it holds, that it works away from the source tree, and that other people's packages are found."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCES = ["benchsuite", "methods", "protocols", "pyproject.toml", "README.md", "LICENSE"]

# What somebody else's distribution needs: a method and a protocol, and an entry point for each.
THEIRS = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "their-benchmark"
version = "1.0"
dependencies = ["benchsuite"]

[project.entry-points."benchsuite.methods"]
theirs = "their_benchmark.method"

[project.entry-points."benchsuite.protocols"]
their-digits = "their_benchmark.protocol"

[tool.setuptools]
packages = ["their_benchmark"]
""",
    "their_benchmark/__init__.py": "",
    "their_benchmark/method.py": '''
from dataclasses import dataclass

from benchsuite import Method, register


@register
@dataclass
class Theirs(Method):
    """A method of another distribution."""

    factor: float = 0.5

    def before_backward(self, strategy, **kwargs):
        strategy.loss *= self.factor
''',
    "their_benchmark/protocol.py": """
from benchsuite import Protocol, Recipe, Task
from benchsuite.protocol import register

register(
    Protocol(
        name="their-digits",
        summary="2 tasks x 5 digits",
        needs="nothing",
        tasks=tuple(Task(name=str(i), dataset="digits", classes=tuple(range(i, i + 5)), mean=(0.3,), std=(0.4,)) for i in (0, 5)),
        image=(1, 8, 8),
        tiers={"smoke": Recipe(backbone="digits", epochs=1, train_per_class=16)},
    )
)
""",
}

PROBE = """
import importlib.util, json, warnings
warnings.simplefilter("ignore")
import benchsuite.methods.cacl, benchsuite.protocols.split_digits
from benchsuite.method import methods
from benchsuite.protocol import protocols
found = json.dumps({
    "files": [m.__file__ for m in (benchsuite, benchsuite.methods.cacl, benchsuite.protocols.split_digits)],
    "top": [name for name in ("methods", "protocols") if importlib.util.find_spec(name)],
    "methods": list(methods.all()),
    "protocols": list(protocols.all()),
})
import sys
from benchsuite.cli.main import main
assert main(["run", *sys.argv[1:]]) == 0
print(found)
"""

RUN = "--protocol their-digits --tier smoke --method theirs --set factor=2 --results runs"


def pip(*words, cwd):
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)], cwd=cwd, check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the source tree."""
    root, copy = Path(__file__).parent.parent, tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, copy)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, ".", cwd=copy)
    (path,) = out.glob("benchsuite-*.whl")
    return path


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory):
    """A folder with the wheel and somebody else's distribution, both put there by pip, far from the source tree."""
    target, theirs = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("theirs")
    for name, text in THEIRS.items():
        (theirs / name).parent.mkdir(exist_ok=True)
        (theirs / name).write_text(text.lstrip())
    for source in (wheel, theirs):
        pip("install", "--no-deps", "--no-build-isolation", "--no-index", "--target", target, source, cwd=target)
    return target


@pytest.fixture(scope="module")
def python(target, tmp_path_factory):
    """python(*words): what such a process prints that sees nothing but that folder and the libraries."""
    folder, environment = tmp_path_factory.mktemp("elsewhere"), os.environ | {"PYTHONPATH": str(target)}

    def call(*words):
        done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call.folder = folder
    return call


@pytest.fixture(scope="module")
def output(python):
    """The lines of a process that runs their method on their protocol and says what it imported."""
    return python("-c", PROBE, *RUN.split()).splitlines()


@pytest.fixture(scope="module")
def installed(output):
    return json.loads(output[-1])


def test_the_wheel_holds_the_packages_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        licences = [name for name in names if name.endswith("/licenses/LICENSE")]
        assert len(licences) == 1
        assert b"MIT License" in archive.read(licences[0])
    assert {name.split("/")[0] for name in names} == {"benchsuite", wheel.name.split("-py3")[0] + ".dist-info"}
    assert {"benchsuite/methods/cacl.py", "benchsuite/protocols/split_digits.py", "benchsuite/py.typed"} <= set(names)
    root = Path(__file__).parent.parent
    ours = {f"benchsuite/{p.relative_to(root / 'benchsuite').as_posix()}" for p in (root / "benchsuite").rglob("*.py")}
    assert ours <= set(names)  # no sub-package was left out


def test_an_installed_wheel_runs_from_its_own_files(installed, target):
    for file in installed["files"]:
        assert Path(file).is_relative_to(target)


def test_no_generic_name_is_installed(installed):
    assert installed["top"] == []


def test_methods_and_protocols_of_other_distributions_are_found(installed):
    root = Path(__file__).parent.parent
    ours = {path.stem.replace("_", "-") for path in (root / "methods").glob("[!_]*.py")}
    assert installed["methods"] == sorted({*ours, "theirs"})
    assert installed["protocols"] == [
        "cifar100-halves",
        "five-datasets",
        "rotated-digits",
        "split-cifar100",
        "split-digits",
        "split-miniimagenet",
        "their-digits",
    ]


def test_list_names_what_other_distributions_bring(python):
    lines = [" ".join(line.split()) for line in python("-m", "benchsuite", "list").splitlines()]
    assert "theirs A method of another distribution." in lines
    assert "their-digits 2 tasks x 5 digits" in lines


def test_their_method_runs_on_their_protocol(output, python):
    assert any("their-digits/smoke theirs seed 1: ACC " in line for line in output)
    (path,) = python.folder.rglob("record.json")
    record = json.loads(path.read_text())
    assert record["job"]["settings"]["factor"] == 2
    assert [task["classes"] for task in record["tasks"]] in (
        [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]],
        [[5, 6, 7, 8, 9], [0, 1, 2, 3, 4]],
    )
