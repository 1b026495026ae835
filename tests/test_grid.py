"""Worker processes: how many, and that none outlives the command that started it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from benchsuite.grid import cores

# A leaderboard whose one worker never gets beyond its start.
COMMAND = """
import signal
from pathlib import Path

from benchsuite import cli
from benchsuite.grid import Local, Place, run_all
from benchsuite.records import Job

job = Job(protocol="split-digits", tier="smoke", method="slow", seed=1, precision="fp32", settings={})
place = Place(results=Path("runs"), data_dir=None, device="cpu", threads=1, method_files=(Path("slow.py"),))
cli.run_missing = lambda *_: run_all([job], results=place.results, engine=Local(1, place))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
raise SystemExit(cli.main(["leaderboard", "--tier", "smoke"]))
"""
SLOW = """
import os
import time
from pathlib import Path

Path("new").write_text(str(os.getpid()))
Path("new").rename("worker")
time.sleep(300)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = f"/proc/{pid}/stat"  # a process that nobody has buried yet is dead all the same
    try:
        return Path(stat).read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_worker_outlives_its_command(number, code, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "worker").exists() and time.monotonic() < deadline:
            assert command.poll() is None, command.stderr.read()
            time.sleep(0.05)
        worker = int((tmp_path / "worker").read_text())
        if number == signal.SIGINT:
            os.killpg(command.pid, number)  # as a terminal does: every process gets it
        else:
            command.send_signal(number)
        assert command.wait(10) == code
        deadline = time.monotonic() + 2
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(worker)
        err = command.stderr.read()  # its end comes only when every process that holds it has gone
        assert "Traceback" not in err
        if number != signal.SIGKILL:  # after which Python's own resource tracker clears up, and says so
            assert len(err.splitlines()) == 1
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        command.wait()
        command.stderr.close()


def test_only_the_cores_that_may_be_used_count(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert cores() == 2
