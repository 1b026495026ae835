"""NewMethod: in a sentence, what it does, and where it comes from.

    L = CE_t + strength / 2 sum_i (theta_i - theta*_i)^2      theta*: as the task before left the weights; none in the first task

The file is the method: equations here, hyper-parameters as fields, hooks as code. It runs as it is, an L2 anchor:
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

    # A field is a hyper-parameter: typed, on record, set with --set. What training produces is an attribute, never a field.
    # Bounds are least, above, most, below; a value outside of them is refused by name. A plain default works too.
    strength: float = setting(1.0, least=0)  # where the value comes from

    name = "new_method"  # for --method, records and tables
    family = "regularisation"  # what readers of the page filter by
    forgetting = "some"  # "none" claims that old tasks' logits stay bit-identical; old heads are then frozen
    trains_old_heads = False  # True: heads of earlier tasks are trained further, by design

    # __post_init__(self): call super().__post_init__(), then raise ValueError, with the field's name, for combinations of values
    # that cannot work. There is no network and no data yet.
    # unsupported_reason(self, recipe): why it cannot run under a recipe (say, batchnorm="shared") in one line, or None. No raise.

    def prepare(self, model: MultiHead) -> MultiHead:
        """Before the first task: factorise, mask or gate the network. No training, and no heads: each comes with its task.
        Draw with generator=self.generator("what for", task), here and in hooks, never from a global generator."""
        self.anchor: dict[str, Tensor] = {}
        return model

    # Hooks, all of an Avalanche SupervisedPlugin, in this order; each is `def hook(self, strategy, **kwargs)`:
    # before_train_dataset_adaptation  a task begins: make its parameters, before the optimiser collects them. No head yet.
    # before_training_exp              optimiser and head are there. Too late for parameters that the optimiser should have.
    # before_training_iteration        the batch is there. No gradients: they are cleared after this hook.
    # before_forward                   change strategy.mbatch. Not the network's structure.

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add penalties to strategy.loss. Not on heads: a gradient of zero is not none, and weight decay would move them."""
        for name, p in shared_parameters(self.model.backbone).items():
            if name in self.anchor:
                strategy.loss += self.strength / 2 * (p - self.anchor[name]).square().sum()

    # after_backward  change gradients. Not to freeze: momentum, weight decay and Adam's moments move a weight whose gradient is
    #                 zero all the same; self.guard.freeze("backbone.conv1.weight", where) also writes its values back.
    # after_update    change values, once the optimiser has stepped. No gradients: they have been used.

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Consolidate: keep what later tasks need, self.guard.freeze what must not change. No test images; stored training
        images count, in self.memory_bytes."""
        self.anchor = {name: p.detach().clone() for name, p in shared_parameters(self.model.backbone).items()}

    def artifact(self) -> Artifact:
        """All that predicting every task so far needs: its file is the size on the leaderboard. Not what only training needs."""
        return Artifact.of_network(self.model)

    @classmethod
    def restore(cls, artifact: Artifact) -> nn.Module:
        """The served network, model(x, task). From the artifact alone: no attribute of a run is in reach."""
        return artifact.network()

    # diagnostics(self): more for the record: {"remarks": [...], "extra": {...}}. No times or paths: a seed must give one record.
    # state(), load_state(state): what a checkpoint keeps after a task besides the network. By default every attribute,
    # made of tensors, numbers, text and containers of them; override both for anything else. Not what each task makes anew.
