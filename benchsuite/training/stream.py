"""A protocol's tasks as Avalanche experiences, in the order of one seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience, benchmark_from_datasets
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torchvision.transforms import v2

from ..data.sets import Images, ImageSet, channel_statistics, load_all
from ..errors import UserError
from ..nn.images import lay_out, offset_and_scale
from ..protocol import Protocol, Recipe, Task
from ..randomness import derive
from .batches import Augmentation, TaskImages


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskStream:
    """tasks: the tasks in order. train, test: an Avalanche experience for each; position t has task label t, labels
    0..K_t-1 and an attribute `images` (TaskImages on the device), which the fast batches read. One of train also has
    `validation`, the images that the recipe sets aside, or None. joint: all of train in one.
    sets: the image sets."""

    tasks: list[Task]
    train: list[DatasetExperience]
    test: list[DatasetExperience]
    augmentation: Augmentation
    sets: list[ImageSet]

    @property
    def classes(self) -> list[int]:
        return [len(task.classes) for task in self.tasks]

    def joint(self) -> DatasetExperience:
        parts = [Normalised(experience.images, self.augmentation) for experience in self.train]
        labels = [t for t, part in enumerate(parts) for _ in range(len(part))]
        dataset = ConcatDataset(parts)
        dataset.targets = [y for part in parts for y in part.targets]
        experience = _experiences([dataset], [labels])[0]
        experience.images = [e.images for e in self.train]
        experience.validation = [e.validation for e in self.train]
        return experience


class Normalised(Dataset):
    """TaskImages one by one, for plugins with their own DataLoader: (float (C, H, W), label).

    Avalanche's "train" transform augments with torch's global generator; "eval" leaves the image unchanged."""

    def __init__(self, images: TaskImages, augmentation: Augmentation | None) -> None:
        self.images, self.targets = images, images.labels.tolist()
        self._pixels: Tensor | None = None  # on the CPU: single images gain nothing from a GPU
        steps: list[Any] = []
        if augmentation and augmentation.padding:
            steps.append(v2.RandomCrop(images.pixels.shape[1:3], padding=augmentation.padding))
        if augmentation and augmentation.flip:
            steps.append(v2.RandomHorizontalFlip())
        train = v2.Compose([*steps, self.normalise]) if steps else self.normalise
        self.transform_groups = {"train": (train, None), "eval": (self.normalise, None)}
        self._offset, self._scale = (part[:, None, None] for part in offset_and_scale(images.mean, images.std))

    def normalise(self, pixels: Tensor) -> Tensor:
        return torch.addcmul(self._offset, pixels.to(self._scale.dtype), self._scale)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if self._pixels is None:
            self._pixels = self.images.pixels.cpu()
        return self._pixels[i].permute(2, 0, 1), self.targets[i]


def build_stream(
    protocol: Protocol,
    recipe: Recipe,
    seed: int,
    *,
    data_dir: Path | None,
    device: torch.device,
    images: Images | None = None,
) -> TaskStream:
    """Load the image sets and cut them into tasks. images: sets that are loaded already.

    Raises UserError if data is missing or damaged."""
    sets = load_all(protocol.datasets(seed, recipe), data_dir, partial=recipe.partial_data, given=images)
    tasks = [task for task in protocol.sequence(seed, recipe) if sets[task.dataset] is not None]
    if not tasks:
        raise UserError(f"none of the image sets of {protocol.name} was found", f"see `benchsuite data get {protocol.name}`")
    padding, flip = (getattr(protocol if getattr(recipe, n) is None else recipe, n) for n in ("crop_padding", "flip"))
    augmentation = Augmentation(padding=padding, flip=flip)
    cut: dict[str, list[TaskImages]] = {name: [] for name in ("train", "test", "validation")}
    for position, task in enumerate(tasks):
        source = sets[task.dataset]
        assert source is not None
        tasks[position] = task = normalised(task, source, protocol)
        for name, parts in cut.items():
            if name != "validation" or recipe.validation:
                parts.append(_task_images(source, task, name, recipe, seed, position, device))
    stream = stream_of(tasks, cut["train"], cut["test"], augmentation, [s for s in sets.values() if s is not None])
    for experience, part in zip(stream.train, cut["validation"], strict=False):
        experience.validation = part
    return stream


def stream_of(
    tasks: list[Task], train: list[TaskImages], test: list[TaskImages], augmentation: Augmentation, sets: list[ImageSet]
) -> TaskStream:
    """The stream of the tasks whose images exist, in order."""
    return TaskStream(
        tasks=tasks,
        train=_stream("train", train, augmentation),
        test=_stream("test", test, None),
        augmentation=augmentation,
        sets=sets,
    )


def normalised(task: Task, images: ImageSet, protocol: Protocol) -> Task:
    """The task with its mean and standard deviation. Raises UserError if its images do not fit the input of the network."""
    channels, *size = protocol.image
    height, width, has = images.train_x.shape[1:]
    laid_out = [height + 2 * task.pad, width + 2 * task.pad]
    if task.orientation in ("90", "270", "transposed"):
        laid_out.reverse()
    if laid_out != size or has not in (1, channels):
        what = f"{has}x{laid_out[0]}x{laid_out[1]}, {protocol.name} says image=({channels}, {size[0]}, {size[1]})"
        raise UserError(
            f"{images.name}: images of task {task.name} are {what}", "give its reader another size, or change `image`"
        )
    if not task.mean:
        mean, std = (part * (channels // has) for part in channel_statistics(images))
        if not all(std):
            raise UserError(f"{images.name}: a channel of its training images is the same everywhere", "state mean and std")
        task = replace(task, mean=mean, std=std)
    if len(task.mean) != channels:
        raise UserError(f"{protocol.name}: task {task.name} has {len(task.mean)} means, but images have {channels} channels")
    return task


def _task_images(
    images: ImageSet, task: Task, part: str, recipe: Recipe, seed: int, position: int, device: torch.device
) -> TaskImages:
    """One part (training, validation, test) of a task: the images of its classes in the data set's order, with labels 0..K-1."""
    from_train = part != "test" or recipe.holdout > 0
    x, y = (images.train_x, images.train_y) if from_train else (images.test_x, images.test_y)
    rng, own = (np.random.default_rng(derive(seed, purpose, position)) for purpose in ("holdout", "validation"))
    chosen = []
    for label in task.classes:
        rows = np.flatnonzero(y == label)
        if recipe.holdout:  # the first share of a fixed shuffle is held out; the rest is for training
            shuffled = rng.permutation(rows)
            cut = round(len(rows) * recipe.holdout)
            rows = np.sort(shuffled[:cut] if part == "test" else shuffled[cut:])
        rows = rows[: recipe.test_per_class if part == "test" else recipe.train_per_class]
        if recipe.validation and part != "test":  # of what is left, in the same way
            shuffled, cut = own.permutation(rows), round(len(rows) * recipe.validation)
            if not 0 < cut < len(rows):
                raise UserError(
                    f"validation={recipe.validation} of the {len(rows)} training images of class {label} is {cut}",
                    "set a share that leaves images on both sides",
                )
            rows = np.sort(shuffled[cut:] if part == "train" else shuffled[:cut])
        if len(rows) == 0:
            raise UserError(
                f"{images.name}: no {part} image of class {label} for task {task.name}", "check it with `benchsuite data verify`"
            )
        chosen.append(rows)
    rows = np.sort(np.concatenate(chosen))
    relabel = {label: k for k, label in enumerate(task.classes)}
    return TaskImages(
        pixels=lay_out(torch.from_numpy(np.ascontiguousarray(x[rows])), task.pad, task.orientation).to(device),
        labels=torch.tensor([relabel[int(v)] for v in y[rows]], device=device),
        mean=task.mean,
        std=task.std,
    )


def _experiences(datasets: list[Any], labels: list[Any], name: str = "train") -> list[DatasetExperience]:
    made = [
        _make_taskaware_classification_dataset(
            dataset,
            task_labels=label,
            transform_groups=getattr(dataset, "transform_groups", None),
            initial_transform_group=name if name == "train" else "eval",
        )
        for dataset, label in zip(datasets, labels, strict=True)
    ]
    experiences = list(with_task_labels(benchmark_from_datasets(**{name: made})).streams[name])
    for experience, dataset in zip(experiences, datasets, strict=True):
        experience.classes_in_this_experience = sorted(set(dataset.targets))
    return experiences


def _stream(name: str, parts: list[TaskImages], augmentation: Augmentation | None) -> list[DatasetExperience]:
    experiences = _experiences([Normalised(part, augmentation) for part in parts], list(range(len(parts))), name)
    for experience, part in zip(experiences, parts, strict=True):
        experience.images, experience.validation = part, None
    return experiences
