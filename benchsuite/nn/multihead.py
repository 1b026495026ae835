"""One backbone and one linear head per task; the task is known in training and at test time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks.scenarios import CLExperience
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import computed
from .backbones import Law, Undrawn, build_backbone, has_batchnorm, initialise
from .conditional import TaskConditional, outermost
from .normalisation import BatchNormPolicy, apply_policy


class MultiHead(MultiTaskModule):
    """y = head_task(backbone(x)), with a head of exactly K_task outputs for each task.

    classes: K_t for every task t of the sequence. A head is created when its task first appears. Its initial weights depend on
    (seed, task) alone, so no evaluation schedule can change them.
    """

    def __init__(
        self, backbone: nn.Module, *, classes: Sequence[int], seed: int = 0, described: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, nn.ModuleDict()
        self.classes, self.seed = list(classes), seed
        self.features: int = backbone.features
        self._described = described or {}
        self._table: Any = None  # (heads and device, their tasks, their widths)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "backbone":  # a method may install another one
            if hasattr(self, "_observed"):
                self._observed.remove()
            self._observed: RemovableHandle = computed.observe(value)
        super().__setattr__(name, value)

    @classmethod
    def build(
        cls,
        backbone: str,
        *,
        image: Sequence[int],
        classes: Sequence[int],
        dropout: float = 0.0,
        seed: int = 0,
        batchnorm: BatchNormPolicy = "per_task",
        width: float = 1.0,
        init: Law = "default",
    ) -> MultiHead:
        """The protocol's dense network. The weights of each layer come from a generator of their own."""
        described: dict[str, Any] = {"backbone": backbone, "image": list(image)}
        if has_batchnorm(backbone):
            described["batchnorm"] = batchnorm
        if width != 1:
            described["width"] = width
        network = build_backbone(backbone, image, dropout, seed, width, init)
        apply_policy(network, batchnorm)
        return cls(network, classes=classes, seed=seed, described=described)

    def describe(self) -> dict[str, Any]:
        """The plain JSON that `from_description` needs."""
        return {**self._described, "classes": self.classes, "heads": sorted(int(t) for t in self.heads)}

    @classmethod
    def from_description(cls, described: dict[str, Any]) -> MultiHead:
        dense = {name: described[name] for name in ("backbone", "image", "classes", "batchnorm", "width") if name in described}
        model = cls.build(**dense)
        for task in described["heads"]:
            model.add_task(task)
        return model

    def adaptation(self, experience: CLExperience) -> None:
        """Called by Avalanche before an experience is trained on or evaluated: create the heads that it needs."""
        super().adaptation(experience)  # records the tasks trained so far for `forward_all_tasks`
        for task in experience.task_labels:
            self.add_task(int(task))

    def add_task(self, task: int) -> None:
        if str(task) not in self.heads:
            with Undrawn():
                head = nn.Linear(self.features, self.classes[task])
            initialise(head, self.seed, "head", task)
            self.heads[str(task)] = head.to(_device_of(self.backbone))
            for module in self._conditional():
                module.add_task(task, self.seed)

    def forward(self, x: Tensor, task_labels: int | Tensor | None) -> Tensor | dict[int, Tensor]:
        """x: (B, C, H, W). task_labels: one task for the whole batch, or (B,) tasks, one for each image.
        Returns logits (B, K_task). For (B,) tasks: (B, max K), with the lowest finite number in columns beyond a task's head.
        For None, which Avalanche's distillation uses: {task: (B, K_task)} for every task trained so far."""
        if task_labels is None:
            return self.forward_all_tasks(x)
        if isinstance(task_labels, Tensor):
            labels = task_labels.to(x.device)  # Avalanche's A-GEM keeps the labels of its memory on the CPU
            if not self._conditional():
                return self._gather(self.backbone(x), labels)
            tasks = labels.unique().tolist()
            if len(tasks) > 1:
                return self._mixed(x, labels, tasks)
            task_labels = int(tasks[0])
        return self.forward_single_task(x, task_labels)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        return self.heads[str(task_label)](self.embed(x, task_label))

    def embed(self, x: Tensor, task: int) -> Tensor:
        """The backbone's features (B, features) for a batch of one task."""
        self._tell(task)
        return self.backbone(x)

    def _gather(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute all heads, then select each row's: nothing is read back from the device."""
        known = sorted(int(task) for task in self.heads)
        heads, width = [self.heads[str(task)] for task in known], max(self.classes[task] for task in known)
        every = torch.stack([nn.functional.pad(head(features), (0, width - head.out_features)) for head in heads], 1)
        key = (tuple(known), labels.device)
        if self._table is None or self._table[0] != key:  # copied to the device once, not at every step
            widths = torch.tensor([head.out_features for head in heads], device=labels.device)
            self._table = (key, torch.tensor(known, device=labels.device), widths)
        _, positions, widths = self._table
        which = torch.searchsorted(positions, labels)
        out = every[torch.arange(len(labels), device=labels.device), which]
        beyond = torch.arange(width, device=labels.device) >= widths[which][:, None]
        return out.masked_fill(beyond, torch.finfo(out.dtype).min)

    def _mixed(self, x: Tensor, labels: Tensor, tasks: list[int]) -> Tensor:
        """One forward pass per task, because the backbone depends on the task."""
        width = max(self.classes[t] for t in tasks)
        rows = [(labels == task).nonzero().squeeze(1) for task in tasks]
        logits = [self.forward_single_task(x[r], task) for r, task in zip(rows, tasks, strict=True)]
        padded = [nn.functional.pad(part, (0, width - part.shape[1]), value=torch.finfo(part.dtype).min) for part in logits]
        return torch.cat(padded)[torch.cat(rows).argsort()]

    def _conditional(self) -> list[TaskConditional]:
        return list(outermost(self.backbone))

    def _tell(self, task: int) -> None:
        self.backbone.told_task = task
        for module in self._conditional():
            module.set_task(task)


def _device_of(module: nn.Module) -> torch.device:
    return next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
