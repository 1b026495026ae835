"""The device, precision and threads of a process."""

from __future__ import annotations

import os

import torch

from ..errors import UserError
from ..nn import bfloat16


def device_named(device: str) -> torch.device:
    """auto: the GPU if there is one. Raises UserError for a device that this machine does not have."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: no usable GPU was found", "use --device cpu or auto")
    return torch.device(device)


def cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure_process(device: str, precision: str = "fp32", threads: int | None = None) -> torch.device:
    """Prepare this process to compute in this precision; returns the device. threads: None leaves them as they are.

    Whatever is set for a whole process is set here, so every entry that computes calls this first."""
    chosen = device_named(device)
    if threads is not None:
        torch.set_num_threads(threads)
    if chosen.type == "cuda":
        # fp32 means fp32, and a run must be able to repeat itself
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        if precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise UserError("precision bf16: this GPU does not support it", "use --precision fp32")
    elif precision == "bf16" and not bfloat16.native():
        bfloat16.install()
    return chosen


def slow_precision(device: str, precision: str) -> str | None:
    """What to tell the user if this machine only emulates the precision. Does not open the GPU: each run asks it for bf16."""
    if device_named(device).type == "cpu" and precision == "bf16" and not bfloat16.native():
        return "note: this CPU has no bf16 arithmetic; bf16 is computed in fp32 and is no faster"
    return None
