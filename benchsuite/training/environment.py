"""The environment of a run: hardware, versions, source, date."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from ..nn import bfloat16
from ..record.schema import Environment, Source


def environment(device: torch.device, revisions: Sequence[Source]) -> Environment:
    """Hardware, versions, source and date of a run."""
    names = ("torch", "torchvision", "avalanche-lib", "numpy", "benchsuite")
    cudnn = {"cudnn": str(torch.backends.cudnn.version())} if device.type == "cuda" else {}
    return Environment(
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        instructions="" if device.type == "cuda" else _instructions(),
        native_bf16=device.type == "cuda" or bfloat16.native(),
        threads=torch.get_num_threads(),
        versions={"python": platform.python_version(), **{name: version(name) for name in names}, **cudnn},
        source=revisions[-1],
        earlier_sources=list(revisions[:-1]),
        date=now(),
    )


def source_revision() -> Source:
    """The git revision of the source tree of this package ("" outside a checkout), and whether the code differs from it."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    if not (root / "pyproject.toml").exists() or not (root / ".git").exists():
        return Source(revision="", dirty=False)
    return Source(
        revision=git("rev-parse", "HEAD"),
        dirty=bool(git("status", "--porcelain", "--", "benchsuite", "methods", "protocols")),
    )


def _cpu_name() -> str:
    return _cpu("model name") or platform.processor() or platform.machine()


def _instructions() -> str:
    """The processor's vector instructions, which determine how sums are rounded. A name such as "AMD EPYC" does not."""
    flags = sorted(flag for flag in _cpu("flags").split() if re.match("avx|amx|fma", flag))
    return " ".join(flags) or torch.backends.cpu.get_cpu_capability()


def _cpu(what: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(what)), "")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
