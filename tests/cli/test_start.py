"""What each command imports before it can answer: counted, for seconds depend on the machine."""

import os
import subprocess
import sys

import pytest

TORCH = {"torch", "avalanche", "torchvision"}
TABLES = {"numpy", "pandas", "scipy", "matplotlib", "sklearn"}

COMMANDS = {
    "--help": TORCH | TABLES | {"rich", "importlib.metadata", "dataclasses"},
    "leaderboard --help": TORCH | TABLES | {"rich", "importlib.metadata", "dataclasses"},
    "list": TORCH | TABLES - {"numpy"},  # data sets are declared with their readers
    "status": TORCH | TABLES - {"numpy"},  # a record has its accuracy and its matrix
    "new-method mine": TORCH | TABLES,
    "export nowhere": TORCH | TABLES - {"numpy"},
    "data verify split-digits": TORCH | {"matplotlib"},
    "report paper": TORCH,
    "report paper --select nowhere.toml": TORCH | {"matplotlib", "benchsuite.protocols"},
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
@pytest.mark.slow
def test_a_command_imports_only_what_it_needs(command, heavy, tmp_path):
    words = [sys.executable, "-c", CODE, ",".join(heavy), *command.split()]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1].split() == ["imported:"], answer.stderr


@pytest.mark.slow
def test_a_home_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path):
    """Avalanche makes a folder there when it is imported."""
    code = "import benchsuite, avalanche; print(avalanche.benchmarks.datasets.default_dataset_location('x'))"
    drawing = os.environ.get("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib"))  # it would list all fonts again
    environment = {**os.environ, "HOME": "/dev/null/home", "MPLCONFIGDIR": drawing}
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (answer.returncode, answer.stderr, answer.stdout) == (0, "", "/dev/null/home/.avalanche/data/x\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quiet", [True, False], ids=["", "control"])
def test_matplotlib_says_nothing_of_a_home_folder_that_cannot_be_written(quiet, tmp_path):
    code = (
        f"{'import benchsuite' if quiet else ''}\nimport matplotlib\nprint(matplotlib.get_cachedir(), matplotlib.get_configdir())"
    )
    environment = {**os.environ, "HOME": "/dev/null/home", "TMPDIR": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if not name.startswith(("MPL", "XDG"))}
    answer = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert answer.stdout.startswith(str(tmp_path))
    assert ("not a writable directory" in answer.stderr or "temporary cache" in answer.stderr) is not quiet, answer.stderr
    assert not (quiet and answer.stderr)


def test_an_import_of_torch_is_noticed(tmp_path):
    """Control. A module of this name is enough."""
    (tmp_path / "torch.py").touch()
    words = [sys.executable, "-c", CODE.replace("main(sys", "import torch; main(sys"), "torch,avalanche", "--help"]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1].split() == ["imported:", "torch"]


LEAVES_A_THREAD = """
import threading, time
from benchsuite.cli import main
main.PATIENCE = 0.2
threading.Thread(target=time.sleep, args=({seconds},), name="upload", daemon={daemon}).start()
main.main = lambda: print("done") or 3
main.program()
"""


@pytest.mark.parametrize(("seconds", "daemon", "noted"), [(60, False, True), (0.1, False, False), (60, True, False)])
def test_a_thread_that_a_method_leaves_running_does_not_keep_a_command_from_ending(seconds, daemon, noted):
    code = LEAVES_A_THREAD.format(seconds=seconds, daemon=daemon)
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (3, "done\n")
    assert ("still running and stopped now: upload" in ended.stderr) is noted
