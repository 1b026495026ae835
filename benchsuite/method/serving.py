"""Serving: predictions for raw images by a network restored from its exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from ..errors import UserError, one_line
from ..nn.images import lay_out, normalise
from ..nn.normalisation import BatchNormPolicy
from ..protocol import Orientation
from ..record.schema import Count
from .artifact import Artifact
from .registered import methods

Side = Annotated[int, Meta(ge=1, le=4096)]  # pixels: a header must not make a reader reserve all memory


class ServedTask(msgspec.Struct, frozen=True, kw_only=True):
    """How a header describes a task: see `benchsuite.protocol.Task`."""

    name: str
    classes: Annotated[list[Count], Meta(min_length=1)]
    mean: list[float]
    std: list[Annotated[float, Meta(gt=0)]]
    pad: Annotated[int, Meta(ge=0, le=2048)]
    orientation: Orientation = "upright"


class ServedNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """How a header describes a network: the result of `MultiHead.describe`."""

    backbone: str
    image: Annotated[list[Side], Meta(min_length=3, max_length=3)]
    classes: list[Annotated[int, Meta(ge=1, le=2**20)]]
    heads: list[Count]
    batchnorm: BatchNormPolicy = "per_task"
    width: Annotated[float, Meta(gt=0, le=16)] = 1.0


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What serving reads of the header of an artifact. A method may have put more there."""

    method: str
    tasks: Annotated[list[ServedTask], Meta(min_length=1)]
    network: ServedNetwork

    def __post_init__(self) -> None:
        channels = self.network.image[0]
        for t, task in enumerate(self.tasks):
            if t not in self.network.heads or self.network.classes[t : t + 1] != [len(task.classes)]:
                raise ValueError(f"the network has no head for the classes of task {t}")
            if not {len(task.mean), len(task.std)} <= {1, channels}:
                raise ValueError(f"mean and std of task {t} do not fit {channels} channels")


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

    def raw_size(self, task: int) -> tuple[int, int, int]:
        """Height, width and channels of the images of a task, as the data set has them."""
        info, (channels, height, width) = self._task(task), self.image
        if info.get("orientation", "upright") in ("90", "270", "transposed"):
            height, width = width, height
        return height - 2 * info["pad"], width - 2 * info["pad"], channels

    def predict(self, images: Tensor | np.ndarray, task: int) -> Tensor:
        """The predicted class of each image, as a label of its data set: (B,)."""
        best = self(images, task).argmax(1)
        return torch.tensor(self._task(task)["classes"], device=best.device)[best]

    def _task(self, task: int) -> dict[str, Any]:
        if not 0 <= task < len(self.tasks):
            raise UserError(f"this artifact serves tasks 0..{len(self.tasks) - 1}, not {task}")
        return self.tasks[task]


def load(path: Path | str) -> Served:
    """The served model of an exported artifact. Its method must be installed (or imported) under the name it was run with.

    Raises UserError where the file is no artifact or its header does not describe a network. Nothing in it is executed."""
    return _served(Artifact.read(Path(path)), path)


def served_by(content: bytes) -> Served:
    """The same from the content of the file."""
    return _served(Artifact.from_bytes(content), "an artifact")


def _served(artifact: Artifact, path: Path | str) -> Served:
    remedy = "make one with `benchsuite export`"
    try:
        name = msgspec.convert(artifact.header, Header).method
    except ValueError as error:
        raise UserError(f"{path}: its header cannot be served ({error})", remedy) from None
    if name.partition("+")[0] not in methods.all():
        raise UserError(f"{path}: the method {name!r} is not known here", "import the file that registers it first")
    try:
        return Served(artifact, methods.served(name).restore(artifact))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a header can be anything
        raise UserError(f"{path}: its content is no network of {name} ({one_line(error)[:200]})", remedy) from None
