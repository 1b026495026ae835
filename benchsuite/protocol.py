"""Protocols: tasks, their order, their images and the recipe of training."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from .data import DataSet, datasets
from .errors import UserError
from .fields import check, setting
from .registry import Registry, suggest


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure from a paper. It is shown only beside runs of the `paper` tier on complete data with an unchanged recipe.

    accuracy: ACC in per cent; bwt: backward transfer in percentage points; megabytes: decimal; None if not printed.
    ours: the registered method of the figure, with the protocol's recipe and its own defaults; "" for none.
    comparable: False if it was measured under another protocol: then no run here can reproduce or contradict it.
    """

    method: str
    ours: str = ""
    comparable: bool = True
    accuracy: float | None = None
    bwt: float | None = None
    megabytes: float | None = None
    source: str = ""


TIERS = {
    "paper": "the published recipe, or the protocol's own full one",
    "lite": "the same tasks on a short schedule, usually a twentieth, and half the width of published networks",
    "smoke": "seconds: a few images and epochs, to see that everything runs",
}

Orientation = Literal["upright", "90", "180", "270", "transposed"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: some classes of one image set, and the preparation of its pixels.

    classes: labels in the image set; label classes[k] becomes k inside the task.
    mean, std: per channel, in units of pixel / 255. Empty: those of all training images of the set, without border.
    pad: zero border in pixels on each side, added before normalisation.
    orientation: how images are turned, counterclockwise, after padding; "transposed" swaps rows and columns.
    """

    name: str
    dataset: str
    classes: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pad: int = 0
    orientation: Orientation = "upright"

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"task {self.name}: classes must be different labels, at least one, got {self.classes}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"task {self.name}: give mean and std of each channel, or neither")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"task {self.name}: std must be above 0, got {self.std}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained on each task. Every field is a setting: `--set name=value`."""

    backbone: str
    width: float = setting(1.0, neutral=1.0, above=0, most=16)  # times the backbone's channels
    # of the convolutions' weights: "he" draws variance 2 / fan_in for all methods; "default" is PyTorch's 1 / (3 fan_in) for
    # dense layers, whatever a method's official code does, 4 / fan_in for CACL's as in its code, 2 / fan_in for its variants'
    init: Literal["default", "he"] = setting("default", neutral="default")
    # where another seed than the run's decides: the initial weights; the order of tasks and of classes
    init_seed: int | None = setting(None, least=0, neutral=None)
    order_seed: int | None = setting(None, least=0, neutral=None)
    task_order: Literal["shuffled", "listed"] = setting(
        "shuffled", neutral="shuffled"
    )  # by the seed, or as the protocol lists them
    # "shuffled": the classes of an image set are dealt to its tasks anew, by the seed
    class_order: Literal["listed", "shuffled"] = setting("listed", neutral="listed")
    epochs: int = setting(least=1, most=10**6)
    # of the learning rate in each task (`benchsuite.training.schedule`); lr_patience, lr_factor and lr_min belong to "patience"
    lr_schedule: Literal["milestones", "cosine", "one_cycle", "patience"] = setting("milestones", neutral="milestones")
    milestones: tuple[int, ...] = setting((), most=10**6)  # the learning rate is divided by ten at the start of these epochs
    lr_patience: int = setting(6, least=1, neutral=6)  # epochs without a new minimum of the validation loss; GPM's 6, / 2
    lr_factor: float = setting(2.0, above=1, most=1e6, neutral=2.0)  # what the learning rate is then divided by
    lr_min: float = setting(1e-6, above=0, neutral=1e-6)  # below it the task ends; WSN's
    # this stratified share of each task's training images is not trained on: lr_schedule=patience watches its loss
    validation: float = setting(0.0, least=0, below=1, neutral=0.0)
    lr: float = setting(1e-3, above=0, most=1e6)
    batch_size: int = setting(64, least=1, most=10**6)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = setting(0.0, least=0, below=1)  # sgd only
    weight_decay: float = setting(0.0, least=0, most=1e6)
    reset_optimizer: bool = True  # fresh optimiser state for each task
    dropout: float = setting(0.15, least=0, below=1)
    crop_padding: int | None = setting(None, least=0, neutral=None)  # training augmentation; None: as the protocol says
    flip: bool | None = setting(None, neutral=None)
    batchnorm: Literal["per_task", "frozen_after_first", "batch_stats", "shared"] = "per_task"  # only if the backbone has it
    tasks: int | None = setting(None, least=1)  # learn only the first so many tasks of the sequence
    train_per_class: int | None = setting(None, least=1)  # keep only the first so many images of each class
    test_per_class: int | None = setting(None, least=1)
    # > 0: test on this stratified share of the training set and train on the rest; the test set is not used
    holdout: float = setting(0.0, least=0, below=1)
    partial_data: bool = False  # accept incomplete image sets and leave out tasks without images

    def __post_init__(self) -> None:
        check(self)
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for optimizer=sgd only, {self.optimizer} has its own")
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise ValueError(f"milestones must be increasing epochs from 1, got {self.milestones}")
        if self.lr_schedule == "patience" and not self.validation:
            raise ValueError(
                "lr_schedule=patience watches the loss on a share of the training images: set it, say validation=0.05"
            )
        if self.lr_schedule == "patience" and not self.reset_optimizer:
            raise ValueError("lr_schedule=patience goes back to the best epoch, and needs reset_optimizer=true")
        if self.lr_schedule == "patience" and self.lr_min >= self.lr:
            raise ValueError(f"lr_min must be below lr={self.lr}, got {self.lr_min}")
        if self.order_seed is not None and (self.task_order, self.class_order) == ("listed", "listed"):
            raise ValueError("order_seed has no effect with task_order=listed and class_order=listed")

    def ordered_by(self, seed: int) -> int:
        """The seed of the order of tasks and classes in a run with this seed."""
        return seed if self.order_seed is None else self.order_seed

    def drawn_by(self, seed: int) -> int:
        """The seed of the initial weights in a run with this seed."""
        return seed if self.init_seed is None else self.init_seed


# The settings that have an effect under one schedule only. Under another they are no part of a run.
OF_SCHEDULE = {"milestones": ("milestones",), "patience": ("lr_patience", "lr_factor", "lr_min")}


def unused(schedule: str) -> list[str]:
    """The settings without an effect under a schedule of the learning rate."""
    return [name for other, names in OF_SCHEDULE.items() if other != schedule for name in names]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A benchmark of T tasks.

    image: channels, height and width of a network input.
    crop_padding, flip: training augmentation: a random crop after zero padding of so many pixels; a horizontal flip with p = 1/2.
    tiers: the recipe of each tier.
    published: figures from papers, shown only beside complete `paper` runs.
    """

    name: str
    summary: str = ""
    needs: str = ""
    tasks: tuple[Task, ...]
    image: tuple[int, int, int]
    tiers: Mapping[str, Recipe]
    crop_padding: int = 0
    flip: bool = False
    published: tuple[Published, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"{self.name}: a protocol has at least one task")
        names = [task.name for task in self.tasks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{self.name}: two tasks are called {twice[0]!r}")

    @property
    def sets(self) -> list[str]:
        """The data sets of its tasks."""
        return list(dict.fromkeys(task.dataset for task in self.tasks))

    def recipe(self, tier: str) -> Recipe:
        """The recipe of a tier. Raises UserError if the protocol has no such tier."""
        if tier not in self.tiers:
            raise UserError(f"no tier of {self.name} is called {tier!r}", suggest(tier, self.tiers))
        return self.tiers[tier]

    def order(self, seed: int) -> list[int]:
        """The order of learning: positions in `tasks`, shuffled by a separate Python generator with this seed.

        Source: CACL's released task orders (seed 1 gives 12 6 18 20 10 1 ... of 20 tasks, counted from 1).
        """
        order = list(range(len(self.tasks)))
        random.Random(seed).shuffle(order)
        return order

    def sequence(self, seed: int, recipe: Recipe) -> list[Task]:
        """The tasks of a run, in its order."""
        seed = recipe.ordered_by(seed)
        tasks = self.dealt(seed) if recipe.class_order == "shuffled" else self.tasks
        order = self.order(seed) if recipe.task_order == "shuffled" else range(len(tasks))
        return [tasks[i] for i in order[: recipe.tasks]]

    def dealt(self, seed: int) -> tuple[Task, ...]:
        """The tasks with other classes: those of each image set, shuffled by this seed, in tasks of the same sizes. Raises
        ValueError if tasks share classes, or none shares its image set."""
        pools: dict[str, list[int]] = {}
        for task in self.tasks:
            pools.setdefault(task.dataset, []).extend(task.classes)
        if len(pools) == len(self.tasks) or any(len(set(pool)) < len(pool) for pool in pools.values()):
            raise ValueError(
                f"class_order=shuffled needs tasks that divide the classes of an image set, unlike those of {self.name}"
            )
        for name, pool in pools.items():
            random.Random(f"classes of {name} {seed}").shuffle(pool)
        return tuple(
            replace(task, name=f"shuffled {i + 1}", classes=tuple(pools[task.dataset].pop(0) for _ in task.classes))
            for i, task in enumerate(self.tasks)
        )

    def datasets(self, seed: int, recipe: Recipe) -> list[str]:
        """The image sets that a run needs, in the order of its tasks."""
        return list(dict.fromkeys(task.dataset for task in self.sequence(seed, recipe)))


def split(
    dataset: DataSet | str,
    tasks: int,
    *,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    pad: int = 0,
) -> tuple[Task, ...]:
    """The classes of a data set in so many tasks of equally many classes, in the order of the labels.

    Raises UserError if the classes cannot be shared out."""
    found = datasets.get(dataset) if isinstance(dataset, str) else dataset
    if tasks < 1 or found.classes % tasks:
        raise UserError(f"{found.classes} classes of {found.name} cannot be shared out to {tasks} tasks", "write the tasks out")
    k = found.classes // tasks
    return tuple(
        Task(name=str(i + 1), dataset=found.name, classes=tuple(range(k * i, k * i + k)), mean=mean, std=std, pad=pad)
        for i in range(tasks)
    )


protocols: Registry[Protocol] = Registry("protocol", "benchsuite.protocols", "call register(Protocol(...)) once")


def register(protocol: Protocol) -> Protocol:
    """Register a protocol by its name."""
    protocols.add(protocol.name, protocol, sys._getframe(1).f_globals["__name__"])
    return protocol
