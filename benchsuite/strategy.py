"""The Avalanche strategy of every run: batches from device-resident tensors, everything else Avalanche's own template."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import avalanche_forward
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from .accounting import StepMemory, training_state
from .data.batches import Augmentation, Batches
from .errors import Diverged
from .method import Method
from .nn.backbones import reseed_dropout
from .protocol import Recipe


class Strategy(SupervisedTemplate):
    """Training and evaluation by a recipe, with a method and any further Avalanche plugins.

    Batches come from the experience's `images` while nobody has changed its data; a plugin that changes `adapted_dataset` or
    puts a DataLoader of its own in place gets Avalanche's loaders. Under precision "bf16" forward passes run in bfloat16
    autocast; weights, gradients, optimiser state and the loss stay fp32.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        method: Method,
        recipe: Recipe,
        augmentation: Augmentation,
        seed: int,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
        plugins: Sequence[SupervisedPlugin] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.method, self.recipe, self.augmentation = method, recipe, augmentation
        self.seed, self.precision, self.dtype = seed, precision, dtype
        with warnings.catch_warnings():  # an evaluator without loggers is what we want: Watch counts for the record
            warnings.simplefilter("ignore")
            evaluator = EvaluationPlugin()
        super().__init__(
            model=model,
            optimizer=make_optimizer(recipe, model),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=recipe.batch_size,
            train_epochs=recipe.epochs,
            eval_mb_size=256,
            device=device,
            plugins=[Schedule(), method, method.guard, *plugins],
            evaluator=evaluator,
        )
        self.plugins.remove(evaluator)  # with nothing to evaluate it would copy the experience at every hook

    def _before_training_iteration(self, **kwargs: Any) -> None:
        for plugin in self.plugins:
            if isinstance(plugin, Watch):
                plugin.start_of_step(self)
        super()._before_training_iteration(**kwargs)

    def make_optimizer(self, **kwargs: Any) -> None:
        kwargs |= {"remove_params": True}  # a factor that was pruned away must leave the optimiser too
        super().make_optimizer(**kwargs)

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        kwargs.setdefault("reset_optimizer_state", self.recipe.reset_optimizer)
        super().check_model_and_optimizer(**kwargs)

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        super().train_dataset_adaptation(**kwargs)
        self._untouched = self.adapted_dataset

    def make_train_dataloader(self, **kwargs: Any) -> None:
        if self.adapted_dataset is self._untouched and hasattr(self.experience, "images"):
            self.dataloader = self._batches(self.augmentation)
        else:
            super().make_train_dataloader(**self._loader(kwargs))

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        if hasattr(self.experience, "images"):
            self.dataloader = self._batches(None)
        else:
            super().make_eval_dataloader(**self._loader(kwargs))

    def _loader(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Our images lie on the device already, where there is nothing to pin."""
        return {**kwargs, "pin_memory": False} if hasattr(self.experience, "images") else kwargs

    def _batches(self, augmentation: Augmentation | None) -> Batches:
        experience = self.experience
        images = experience.images if isinstance(experience.images, list) else [experience.images]
        return Batches(
            images,
            sorted(experience.task_labels),
            self.eval_mb_size if augmentation is None else self.train_mb_size,
            augmentation=augmentation,
            seed=self.seed,
            stage=experience.current_experience,
            dtype=self.dtype,
        )

    def _unpack_minibatch(self) -> None:
        # The fast batches lie on the device; their task is known without asking the device for it.
        if isinstance(self.dataloader, Batches):
            self._task, self._labels = self.dataloader.positions[0], self.mbatch[-1]
            if len(self.dataloader.positions) > 1:
                self._labels = None
        else:
            self._labels = None
            super()._unpack_minibatch()

    def forward(self) -> Tensor:
        untouched = self.mb_task_id is self._labels  # a plugin may have put other tasks' samples into the batch
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return avalanche_forward(self.model, self.mb_x, self._task if untouched else self.mb_task_id)

    def criterion(self) -> Tensor:
        return self._criterion(self.mb_output.float() if self.precision == "bf16" else self.mb_output, self.mb_y)

    def _make_empty_loss(self) -> Tensor:
        return torch.zeros((), device=self.device, dtype=self.dtype)


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    # A method may make its first parameters with its first task.
    return optimizer_of(recipe, list(model.parameters()) or [nn.Parameter(torch.zeros(()))])


def optimizer_of(recipe: Recipe, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The recipe's optimiser in PyTorch's fused form, where it is sound."""
    if recipe.optimizer == "sgd":
        # With momentum the fused form breaks on parameters of which some have had no gradient yet (the heads of later tasks).
        fused = True if recipe.momentum == 0 else None  # None: what PyTorch takes by itself
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


class Schedule(SupervisedPlugin):
    """The learning rate of each epoch, and fresh dropout generators for each task."""

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        reseed_dropout(strategy.model, strategy.seed, strategy.experience.current_experience)
        for group in strategy.optimizer.param_groups:
            group["lr"] = strategy.recipe.lr

    def before_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        if strategy.clock.train_exp_epochs in strategy.recipe.milestones:
            for group in strategy.optimizer.param_groups:
                group["lr"] *= 0.1


class Watch(SupervisedPlugin):
    """Counts, measures and reports a run. Reads the device once an epoch in training and once in a whole evaluation.

    correct: {task: right answers} of the last evaluation. training_state_bytes: peak. memory: of the first step of the last epoch
    of a training, see `RunRecord.memory`.
    """

    def __init__(self, report: Callable[[int, int, float], None] = lambda task, epoch, loss: None) -> None:
        super().__init__()
        self.report = report
        self.correct: dict[int, int] = {}
        self.iterations = self.training_state_bytes = 0
        self.memory: dict[str, int] = {}
        self._measured: StepMemory | None = None

    def close(self) -> None:
        """End a measurement that a failing step left open: its hooks are the process's, not the run's."""
        if self._measured is not None:
            self._measured.close()
            self._measured = None

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        self.iterations, self.memory, self._formula = 0, {}, 0

    def before_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        self._loss, self._steps = torch.zeros((), device=strategy.device), 0

    def start_of_step(self, strategy: Strategy) -> None:
        """Before any plugin has done anything in a step."""
        if not self.memory and strategy.clock.train_exp_epochs + 1 == strategy.train_epochs:
            self._measured = StepMemory(strategy.model, strategy.device)
            self._measured.open()

    def before_forward(self, strategy: Strategy, **kwargs: Any) -> None:
        if strategy.method.compression is not None:
            strategy.method.compression.bytes = 0
        if self._measured is not None:
            self._measured.start_of_forward()

    def before_backward(self, strategy: Strategy, **kwargs: Any) -> None:
        if self._measured is not None:
            self._measured.end_of_forward()

    def after_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        compression = strategy.method.compression
        if self._measured is not None:
            measured = self._measured
            self.close()
            kept = compression.bytes if compression is not None else 0  # none where no layer is compressed
            self.memory = {"formula": kept or measured.inputs, "held": measured.held, "peak": measured.peak}
        if compression is not None:
            self._formula += compression.bytes
        self._loss += strategy.loss.detach()
        self._steps += 1

    def after_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        self.iterations += self._steps
        epoch, task = strategy.clock.train_exp_epochs, strategy.experience.current_experience
        loss = float(self._loss) / max(self._steps, 1)
        if loss != loss or abs(loss) == float("inf"):
            raise Diverged(f"the training loss became {loss} at task {task + 1}, epoch {epoch + 1}")
        if self.memory and self._formula:
            self.memory["formula_mean"] = round(self._formula / self.iterations)
        if epoch + 1 == strategy.train_epochs:  # gradients and optimiser state are all there, nothing is consolidated yet
            methods = [plugin for plugin in strategy.plugins if isinstance(plugin, Method)]
            state = training_state(strategy.model, strategy.optimizer, methods)
            self.training_state_bytes = max(self.training_state_bytes, state)
        self.report(task, epoch, loss)

    def before_eval(self, strategy: Strategy, **kwargs: Any) -> None:
        self._counts: dict[int, Tensor] = {}
        self._finite = torch.ones((), dtype=torch.bool, device=strategy.device)

    def after_eval_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        task = strategy.experience.current_experience
        right = (strategy.mb_output.argmax(1) == strategy.mb_y).sum()
        self._counts[task] = self._counts[task] + right if task in self._counts else right
        self._finite &= strategy.mb_output.isfinite().all()

    def after_eval(self, strategy: Strategy, **kwargs: Any) -> None:
        *counts, finite = torch.stack([*self._counts.values(), self._finite.long()]).tolist()
        if not finite:  # the last step of a task comes after the last loss that was looked at
            raise Diverged(f"the class scores are no longer finite numbers after task {max(self._counts) + 1}, its last epoch")
        self.correct = dict(zip(self._counts, counts, strict=True))
