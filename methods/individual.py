"""Individual networks: one for each task, the denominator of all size ratios."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from benchsuite.method import Method, register
from benchsuite.method.artifact import Artifact
from benchsuite.nn.backbones import Law, build_backbone, reseed_dropout
from benchsuite.nn.conditional import TaskConditional, outermost, replace_modules
from benchsuite.nn.multihead import MultiHead
from benchsuite.protocol import Recipe
from benchsuite.randomness import derive


class PerTask(TaskConditional):
    """One backbone per task, created when its task first appears. Backbones share nothing."""

    def __init__(self, described: dict, features: int, dropout: float, init: Law) -> None:
        super().__init__()
        self.described, self.features, self.dropout, self.init = described, features, dropout, init
        self.models = nn.ModuleDict()
        self._task = -1

    def add_task(self, task: int, seed: int) -> None:
        own = derive(seed, "individual", task) if task else seed  # the first network starts as with every other method
        d = self.described
        network = build_backbone(d["backbone"], d["image"], self.dropout, own, d.get("width", 1.0), self.init)
        if d.get("batchnorm") == "batch_stats":  # a network of one task needs no other policy
            replace_modules(network, nn.BatchNorm2d, lambda _, n: nn.BatchNorm2d(n.num_features, track_running_stats=False))
        self.models[str(task)] = network

    def set_task(self, task: int) -> None:
        before, self._task = self._task, task
        for module in outermost(self.models[str(before)]) if before not in (-1, task) else ():
            module.set_task(-1)  # free its composed kernels while another network is in use
        for module in outermost(self.models[str(task)]):
            module.set_task(0)  # the only task of its network

    def forward(self, x: Tensor) -> Tensor:
        return self.models[str(self._task)](x)


@register
class Individual(Method):
    """Individual: trains a separate network for each task, the reference for size and forward gain.

    Each network has its own initialisation. Nothing is shared or forgotten; the size is T times that of one network.
    """

    label = "Individual"
    family = "reference"
    marker = "o"
    forgetting = "none"
    size_reference = True

    def unsupported_reason(self, recipe: Recipe) -> str | None:
        return None  # tasks share no network, and so no batch normalisation

    def prepare(self, model: MultiHead) -> MultiHead:
        return _separate(model, self.recipe.dropout, self.recipe.init)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        # Dropout as in a single network: the name of the copy is not part of the layers' names.
        task = strategy.experience.current_experience
        reseed_dropout(self.model.backbone.models[str(task)], self.seed, task, prefix="backbone.")

    @classmethod
    def restore(cls, artifact: Artifact) -> nn.Module:
        return artifact.fill(cls.skeleton(artifact))

    @classmethod
    def skeleton(cls, artifact: Artifact) -> MultiHead:
        """The dense networks that an artifact describes, without its weights."""
        network = artifact.header["network"]
        model = _separate(MultiHead.build(**{k: v for k, v in network.items() if k != "heads"}))
        for task in network["heads"]:
            model.add_task(task)
        return model

    def diagnostics(self) -> dict[str, Any]:
        counted = [p for name, p in self.model.named_parameters() if name.startswith("heads.") or not name.endswith(".bias")]
        return {"other_sizes": {"CACL's official code counts (no biases of convolutions)": sum(p.nbytes for p in counted)}}


def _separate(model: MultiHead, dropout: float = 0.0, init: Law = "default") -> MultiHead:
    model.backbone = PerTask(model.describe(), model.features, dropout, init)
    return model
