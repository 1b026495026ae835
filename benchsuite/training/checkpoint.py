"""A run's state on disk after each task."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

from torch import nn

from ..errors import UserError


def is_damaged(content: bytes) -> bool:
    """Whether the bytes of a checkpoint are not those that were written.

    `torch.save` writes an archive with a CRC-32 of each of its files, which finds every flipped bit; `torch.load` checks none."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.testzip() is not None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError):
        return True


def assign_state(model: nn.Module, state: dict[str, Any], frozen: set[str]) -> None:
    """Install every saved tensor, whatever the shape of the one that it replaces: banks and masks grow from task to task."""
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf == "_extra_state":
            module.set_extra_state(value)
        elif leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(value, requires_grad=name not in frozen)
        elif leaf in module._buffers:
            module._buffers[leaf] = value
        else:
            raise UserError(f"the checkpoint holds {name}, which this network has not", "delete it to start this run again")
