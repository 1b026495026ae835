"""The Avalanche strategy of every run: batches from tensors on the device, otherwise Avalanche's own template."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import avalanche_forward
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from ..method.base import Method
from ..nn.computed import uncounted
from ..nn.conditional import evaluating
from ..protocol import Recipe
from .batches import Augmentation, Batches
from .optimizer import make_optimizer
from .schedule import Schedule


class Strategy(SupervisedTemplate):
    """Training and evaluation by a recipe, with a method and any further Avalanche plugins.

    Batches come from the experience's `images` as long as its data is unchanged. A plugin that changes `adapted_dataset` or
    installs its own DataLoader gets Avalanche's loaders. Under precision "bf16" forward passes run in bfloat16
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
    ) -> None:
        self.method, self.recipe, self.augmentation = method, recipe, augmentation
        self.seed, self.precision, self.dtype = seed, precision, torch.get_default_dtype()
        self.schedule = Schedule(recipe)
        with warnings.catch_warnings():  # an evaluator without loggers is intended: Watch counts for the record
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
            plugins=[self.schedule, method, method.guard, *plugins],
            evaluator=evaluator,
        )
        self.plugins.remove(evaluator)  # even without metrics it would copy the experience at every hook

    def _before_training_iteration(self, **kwargs: Any) -> None:
        for plugin in self.plugins:  # our own hook, before every plugin's `before_training_iteration`
            if hasattr(plugin, "start_of_step"):
                plugin.start_of_step(self)
        super()._before_training_iteration(**kwargs)

    def _before_training_epoch(self, **kwargs: Any) -> None:
        if not self._stop_training:  # else no plugin is told of an epoch that does not take place
            super()._before_training_epoch(**kwargs)

    def _after_training_epoch(self, **kwargs: Any) -> None:
        super()._after_training_epoch(**kwargs)
        self.schedule.end_of_epoch(self)

    def _after_training_exp(self, **kwargs: Any) -> None:
        self.schedule.end_of_training(self)
        super()._after_training_exp(**kwargs)

    def eval(self, *given: Any, **kwargs: Any) -> Any:
        """As Avalanche's. In the middle of an epoch the batch of training is afterwards the current one again."""
        batch = {name: vars(self)[name] for name in ("mbatch", "mb_output", "loss", "_task", "_labels") if name in vars(self)}
        with uncounted():
            found = super().eval(*given, **kwargs)
        self.__dict__.update(batch)
        return found

    @torch.no_grad()
    def metrics_on(self, name: str) -> dict[str, float]:
        """Accuracy and loss on images of this task that are for training, under the names that Avalanche's metrics have.

        name: "train_stream", or "valid_stream" for those that the recipe sets aside."""
        task, experience, right, loss, seen = self.clock.train_exp_counter, self.experience, 0.0, 0.0, 0
        images = experience.images if name == "train_stream" else experience.validation
        with uncounted(), evaluating(self.model), self.precise():
            for x, y, _ in Batches([images], [task], self.eval_mb_size, augmentation=None, dtype=self.dtype):
                logits = self.model(x, task).float()
                right += (logits.argmax(1) == y).sum()
                loss += self._criterion(logits, y) * len(y)
                seen += len(y)
        place = f"eval_phase/{name}/Task{task:03d}"
        return {f"Top1_Acc_Stream/{place}": float(right) / seen, f"Loss_Stream/{place}": float(loss) / seen}

    def make_optimizer(self, **kwargs: Any) -> None:
        kwargs |= {"remove_params": True}  # the optimiser must drop pruned factors too
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
        """The images are already on the device: no memory to pin."""
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
        # The fast batches are on the device. Their task is known without reading it from there.
        if isinstance(self.dataloader, Batches):
            self._task, self._labels = self.dataloader.positions[0], self.mbatch[-1]
            if len(self.dataloader.positions) > 1:
                self._labels = None
        else:
            self._labels = None
            super()._unpack_minibatch()

    def precise(self) -> AbstractContextManager[Any]:
        """Context in the precision of forward passes."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def forward(self) -> Tensor:
        untouched = self.mb_task_id is self._labels  # a plugin may have added samples of other tasks to the batch
        with self.precise():
            return avalanche_forward(self.model, self.mb_x, self._task if untouched else self.mb_task_id)

    def criterion(self) -> Tensor:
        return self._criterion(self.mb_output.float() if self.precision == "bf16" else self.mb_output, self.mb_y)

    def _make_empty_loss(self) -> Tensor:
        return torch.zeros((), device=self.device, dtype=self.dtype)
