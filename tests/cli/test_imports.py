"""What each command imports before it can answer: counted, for seconds depend on the machine."""

import subprocess
import sys

import pytest

TORCH = {"torch", "avalanche", "torchvision"}
TABLES = {"numpy", "pandas", "scipy", "matplotlib", "sklearn"}

COMMANDS = {
    "--help": TORCH | TABLES | {"rich", "importlib.metadata", "dataclasses"},
    "leaderboard --help": TORCH | TABLES | {"rich", "importlib.metadata", "dataclasses"},
    "list": TORCH | TABLES,
    "status": TORCH | TABLES - {"numpy"},  # a record has its accuracy and its matrix
    "new-method mine": TORCH | TABLES,
    "export nowhere": TORCH | TABLES - {"numpy"},
    "data verify split-digits": TORCH | {"matplotlib"},
    "report paper": TORCH,
    "leaderboard --no-run": TORCH,
}

CODE = """
import sys
from benchsuite.cli.main import main
try:
    main(sys.argv[2:])
except SystemExit:
    pass
print("imported:", *sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""


@pytest.mark.parametrize(("command", "heavy"), COMMANDS.items(), ids=COMMANDS)
def test_a_command_imports_only_what_it_needs(command, heavy, tmp_path):
    words = [sys.executable, "-c", CODE, ",".join(heavy), *command.split()]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1].split() == ["imported:"], answer.stderr


def test_an_import_of_torch_is_noticed(tmp_path):
    """Control. A module of this name is enough."""
    (tmp_path / "torch.py").touch()
    words = [sys.executable, "-c", CODE.replace("main(sys", "import torch; main(sys"), "torch,avalanche", "--help"]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1].split() == ["imported:", "torch"]
