"""Transfer: a network is trained on the first task; on every later one only its last layers and the task's head learn.

The usual way to fine-tune a pretrained network on a device with little memory: layers that do not learn keep nothing for their
weights' gradients. `last` counts convolutions from the end; 0 leaves the head alone, and `finetune` is the other extreme. What
belongs to normalisation between them is fixed too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from benchsuite.fields import setting
from benchsuite.method import Method, register


@register
@dataclass
class Transfer(Method):
    """Transfer: all layers learn the first task, the last ones and the heads every later task."""

    last: int = setting(2, least=0)  # convolutions that learn on, the settings of arXiv 2411.06346 being 2 and 4

    family = "reference"

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        backbone = self.model.backbone
        layers = [name for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)]
        learning = tuple(f"{name}." for name in layers[max(0, len(layers) - self.last) :])
        for name, _ in backbone.named_parameters():
            if not name.startswith(learning):
                self.guard.freeze(f"backbone.{name}")
