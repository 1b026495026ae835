"""The device and precision of a process."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..nn import bfloat16


def choose_device(device: str, precision: str) -> torch.device:
    """auto: the GPU where there is one. Prepares this process for the precision on that device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("device cuda: no usable GPU was found", "use --device cpu or auto")
        # fp32 means fp32, and a run must be able to repeat itself
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        if precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise UserError("precision bf16: this GPU does not support it", "use --precision fp32")
    elif precision == "bf16" and not bfloat16.native():
        bfloat16.install()
    return torch.device(device)
