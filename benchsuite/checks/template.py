"""NewMethod: in one sentence, what it does and where it comes from.

    L = CE_t + strength / 2 sum_i (theta_i - theta*_i)^2      theta*: weights after the previous task; none in the first task

This file is the method: equations here, hyper-parameters as fields, hooks as code. As it stands, it is an L2 anchor that runs:
    benchsuite check ./new_method.py                    run the conformance checks
    benchsuite run --method ./new_method.py --tier smoke --set strength=0.5
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from benchsuite import Artifact, Method, MultiHead, register, setting
from benchsuite.nn.conditional import shared_parameters


@register
@dataclass
class NewMethod(Method):
    """NewMethod: the line that `benchsuite list` shows."""

    # A field is a hyper-parameter: typed, recorded, set with --set. What training produces is an attribute, never a field.
    # Bounds are least, above, most, below; a value outside is refused by name. A plain default works too.
    strength: float = setting(1.0, least=0)  # where the value comes from

    name = "new_method"  # for --method, records and tables
    label = "NewMethod"  # what tables and figures call it
    family = "regularisation"  # in the field's terms: its colour in figures, and a filter on the page of results
    forgetting = "some"  # "none" claims that old tasks' logits stay bit-identical; old heads are then frozen
    trains_old_heads = False  # True: heads of earlier tasks are trained further, by design

    # __post_init__(self): call super().__post_init__(), then raise ValueError, with the field's name, for combinations of values
    # that cannot work. There is no network and no data yet.
    # unsupported_reason(self, recipe): why it cannot run under a recipe (say, batchnorm="shared") in one line, or None.

    def prepare(self, model: MultiHead) -> MultiHead:
        """Before the first task: factorise, mask or gate the network. No training, and no heads: each is made with its task.
        Draw random numbers with generator=self.generator("what for"), here and in hooks; each call gives further draws. Never
        draw from a global generator."""
        self.anchor: dict[str, Tensor] = {}
        return model

    # Hooks, those of an Avalanche SupervisedPlugin, in this order; each is `def hook(self, strategy, **kwargs)`:
    # before_train_dataset_adaptation  a task begins: make its parameters now, before the optimiser collects them. No head yet.
    # before_training_exp              optimiser and head exist. Too late for parameters that the optimiser should train.
    # before_training_iteration        the batch is loaded. Do not set gradients: they are cleared after this hook.
    # before_forward                   change strategy.mbatch, but not the structure of the network.

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add penalties to strategy.loss, but not on heads: a gradient of zero, unlike none, lets weight decay move them."""
        for name, p in shared_parameters(self.model.backbone).items():
            if name in self.anchor:
                strategy.loss += self.strength / 2 * (p - self.anchor[name]).square().sum()

    # after_backward  change gradients, but not to freeze weights: momentum, weight decay and Adam's moments move a weight even if
    #                 its gradient is zero. self.guard.freeze("backbone.conv1.weight", where) restores its values, too.
    # after_update    change weights after the optimiser step. Gradients have no effect any more.

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Consolidate: keep what later tasks need, and self.guard.freeze what must not change. Do not use test images. Stored
        training images count: tensors in attributes as they are, those in data sets by self.memory_bytes, which you set."""
        self.anchor = {name: p.detach().clone() for name, p in shared_parameters(self.model.backbone).items()}

    def artifact(self) -> Artifact:
        """Everything that prediction on the tasks so far needs, and nothing else: its file is the size on the leaderboard."""
        return Artifact.of_network(self.model)

    @classmethod
    def restore(cls, artifact: Artifact) -> nn.Module:
        """The served network, model(x, task), built from the artifact alone: the attributes of a run are not available."""
        return artifact.network()

    # diagnostics(self): more for the record: {"remarks": [...], "extra": {...}}. No times or paths: a seed must give one record.
    # state(), load_state(state): what a checkpoint stores after a task besides the network. By default every attribute, made of
    # tensors, numbers, strings and lists, tuples, sets and dicts of them; anything else ends the run before its first epoch, but
    # for what each task makes anew: temporary = ("attribute", ...). Nothing in variables of the module or the class is stored.
