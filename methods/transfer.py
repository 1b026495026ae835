"""Transfer: trains the whole network on the first task, then only the last layers and the task's head on every later task.

This is the usual way to fine-tune a pretrained network on a device with little memory: frozen layers store no activations for
weight gradients. `last` counts convolutions from the end. 0 trains only the head; `finetune` is the other extreme. Normalisation
parameters of frozen layers are frozen too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from benchsuite.fields import setting
from benchsuite.method import Choice, Method, Preset, register


@register
@dataclass
class Transfer(Method):
    """Transfer: trains all layers on the first task and only the last layers and the head on later tasks."""

    last: int = setting(2, least=0)  # convolutions that are trained further; arXiv 2411.06346 uses 2 and 4

    label = "Transfer"
    family = "reference"
    marker = "^"
    settings: ClassVar = (
        Preset(
            protocol="rotated-digits",
            tier="paper",
            values={"last": 2},
            origin="tuned: 5 trials of `benchsuite tune`, ACC after the first 3 tasks of seed 1002 on a held-out 10 % of"
            " the training images",
        ),
    )
    space: ClassVar = {"last": Choice((0, 1, 2))}  # 3 are all layers of the smallest network

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        backbone = self.model.backbone
        layers = [name for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)]
        learning = tuple(f"{name}." for name in layers[max(0, len(layers) - self.last) :])
        for name, _ in backbone.named_parameters():
            if not name.startswith(learning):
                self.guard.freeze(f"backbone.{name}")
