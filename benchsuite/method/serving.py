"""Serving: predictions for raw images by a network restored from its exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..nn.images import lay_out, normalise
from .artifact import Artifact
from .registered import methods


class Served(torch.nn.Module):
    """A network restored from an artifact. It gives logits or classes for raw images of a known task."""

    def __init__(self, artifact: Artifact, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network.eval()
        self.tasks: list[dict[str, Any]] = artifact.header["tasks"]
        self.image = tuple(artifact.header["network"]["image"])

    @torch.no_grad()
    def forward(self, images: Tensor | np.ndarray, task: int) -> Tensor:
        """images: uint8 (B, H, W, C) as in the data set; task: its position in the order of learning.
        Returns logits (B, K_task). Raises UserError for other images or an unknown task."""
        info = self._task(task)
        images = images if isinstance(images, Tensor) else torch.tensor(images)  # a copy: arrays from a file are read-only
        if images.dtype != torch.uint8 or images.ndim != 4:
            found = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            raise UserError(f"images must be uint8 (B, H, W, C) as the data set has them, not {found}")
        x = normalise(lay_out(images, info["pad"], info.get("orientation", "upright")), info["mean"], info["std"])
        if tuple(x.shape[1:]) != self.image:
            raise UserError(f"images {tuple(images.shape)} do not fit task {task}, whose network takes (C, H, W) = {self.image}")
        return self.network(x, task)

    def predict(self, images: Tensor | np.ndarray, task: int) -> Tensor:
        """The predicted class of each image, as a label of its data set: (B,)."""
        best = self(images, task).argmax(1)
        return torch.tensor(self._task(task)["classes"], device=best.device)[best]

    def _task(self, task: int) -> dict[str, Any]:
        if not 0 <= task < len(self.tasks):
            raise UserError(f"this artifact serves tasks 0..{len(self.tasks) - 1}, not {task}")
        return self.tasks[task]


def load(path: Path | str) -> Served:
    """The served model of an exported artifact. Its method must be installed (or imported) under the name it was run with."""
    artifact = Artifact.read(Path(path))
    name = artifact.header["method"]
    if name.partition("+")[0] not in methods.all():
        raise UserError(f"{path}: the method {name!r} is not known here", "import the file that registers it first")
    return Served(artifact, methods.get(name).restore(artifact))
