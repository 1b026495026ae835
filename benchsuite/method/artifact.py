"""The exported artifact: the tensors that serve every task so far and a JSON header, in one safetensors file.

Its size on disk is the size on the leaderboard, so prediction must need nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .. import files
from ..errors import UserError
from ..files import write_atomic
from ..nn.multihead import MultiHead
from ..record.schema import BITS, PARTS
from . import forms

FORMAT = 1


@dataclass
class Artifact:
    """tensors: named "<part>/<name>" with part one of weights, heads, masks (masks and indices) and other.
    header: plain JSON; "network" describes the multi-head network that the tensors belong to."""

    tensors: dict[str, Tensor]
    header: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.tensors:
            if name.split("/")[0] not in PARTS or "/" not in name:
                raise ValueError(f"artifact tensor {name!r} must be called <part>/<name> with a part of {', '.join(PARTS)}")

    @classmethod
    def of_network(cls, model: MultiHead, without: Iterable[str] = ()) -> Artifact:
        """All parameters and buffers of a network: heads as heads, everything else as weights. without: names of backbone
        modules that the caller stores in another form."""
        own, tensors = _prefixes(without), {}
        for name, tensor in model.state_dict().items():
            if not name.endswith("num_batches_tracked") and not name.startswith(own):  # a counter, not needed for prediction
                part, _, rest = name.partition(".")
                tensors[f"{'heads' if part == 'heads' else 'weights'}/{rest}"] = tensor
        return cls(tensors, {"network": model.describe()})

    def network(self) -> MultiHead:
        """The dense network that `of_network` stored, in eval mode."""
        return self.fill(MultiHead.from_description(self.header["network"]))

    def fill(self, model: MultiHead, without: Iterable[str] = ()) -> MultiHead:
        """Load the tensors of `of_network` into a network of the same structure. Raises UserError if they do not fit."""
        own, state = _prefixes(without), {}
        for name, tensor in self.tensors.items():
            part, _, rest = name.partition("/")
            if part in ("weights", "heads"):
                state[f"{'heads' if part == 'heads' else 'backbone'}.{rest}"] = tensor
        state = {name: tensor for name, tensor in state.items() if not name.startswith(own)}
        missing, unexpected = model.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked") and not name.startswith(own)]
        if missing or unexpected:
            raise UserError(
                f"the artifact does not fit its network: missing {missing}, unexpected {unexpected}", "export it again"
            )
        return model.eval()

    def encoded(self, form: str, axes: forms.Axes) -> Artifact:
        """The same in a storage form (`forms`), which its header names: what a file of that form holds. axes: `Method.unit_axes`.
        Raises UserError for numbers that the form cannot hold."""
        if form not in BITS:
            return self
        used = {name.rpartition("/")[2].rpartition(".")[2] for name in self.tensors}
        other = {name: axis for name, axis in axes.items() if axis != 0 and name in used}
        header = {**self.header, "form": form, **({"unit_axes": other} if other else {})}
        return Artifact(forms.encode(self.tensors, form, axes), header)

    def to_bytes(self) -> bytes:
        header = {"format": FORMAT, **self.header}
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
        return safetensors.torch.save(tensors, {"benchsuite": json.dumps(header, separators=(",", ":"), sort_keys=True)})

    def sizes(self) -> dict[str, int]:
        """Bytes of each part; the header of the file counts as other. The sum is the size of the file."""
        sizes = dict.fromkeys(PARTS, 0)
        for name, tensor in self.tensors.items():
            sizes[name.split("/")[0]] += tensor.numel() * tensor.element_size()
        sizes["other"] += len(self.to_bytes()) - sum(sizes.values())
        return sizes

    def write(self, path: Path) -> None:
        write_atomic(path, self.to_bytes())

    @classmethod
    def read(cls, path: Path) -> Artifact:
        """Read an artifact, in whatever form it is stored. Raises UserError with the file's name if it is not one. Nothing in
        the file is executed."""
        try:
            return cls.from_bytes(files.read(path), path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None

    @classmethod
    def from_bytes(cls, content: bytes, name: Path | str = "an artifact") -> Artifact:
        """The artifact that a file holds. name: of the file, for errors."""
        try:
            size = int.from_bytes(content[:8], "little")
            header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["benchsuite"])
            tensors = safetensors.torch.load(content)
            if header.pop("format") != FORMAT:
                raise UserError(f"{name}: was written in another artifact format", "export it again with this version")
            form, axes = header.pop("form", None), header.pop("unit_axes", {})
            return cls(forms.decode(tensors, form, axes) if form else tensors, header)
        except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise UserError(f"{name}: is not a benchsuite artifact ({error})", "make one with `benchsuite export`") from None


def _prefixes(modules: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"backbone.{name}." for name in modules)
