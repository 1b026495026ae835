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

THEIRS = '''
from benchsuite import Method, register


@register
class Theirs(Method):
    """A method of another distribution."""
'''

PROBE = """
import importlib.util, json, warnings
warnings.simplefilter("ignore")
import benchsuite.methods.cacl, benchsuite.protocols.split_digits
from benchsuite.method import methods
from benchsuite.protocol import protocols
print(json.dumps({
    "files": [m.__file__ for m in (benchsuite, benchsuite.methods.cacl, benchsuite.protocols.split_digits)],
    "top": [name for name in ("methods", "protocols") if importlib.util.find_spec(name)],
    "methods": list(methods.all()),
    "protocols": list(protocols.all()),
}))
"""


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
def installed(wheel, tmp_path_factory):
    """What a process sees that has the wheel and another distribution with an entry point, far from the source tree."""
    target, theirs = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("theirs")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    (theirs / "their_method.py").write_text(THEIRS)
    info = theirs / "their_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[benchsuite.methods]\ntheirs = their_method\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(target), str(theirs)])}
    answer = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=theirs, env=environment, capture_output=True, text=True, check=True
    )
    return {"target": target, **json.loads(answer.stdout)}


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


def test_an_installed_wheel_runs_from_its_own_files(installed):
    for file in installed["files"]:
        assert Path(file).is_relative_to(installed["target"])


def test_no_generic_name_is_installed(installed):
    assert installed["top"] == []


def test_methods_of_other_distributions_are_found(installed):
    assert installed["methods"] == ["cacl", "finetune", "individual", "joint", "theirs"]
    assert installed["protocols"] == ["five-datasets", "split-cifar100", "split-digits", "split-miniimagenet"]
