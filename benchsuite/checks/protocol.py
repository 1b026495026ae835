"""Is a protocol sound? Its tasks, sizes, normalisation and recipes are held against its images, and a tiny run is made."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..data.sets import ImageSet, channel_statistics, load
from ..errors import UserError
from ..protocol import Protocol, Task, protocols
from ..source import digest_of_protocol
from ..training.runner import RunFailed, run
from ..training.settings import resolve
from ..training.stream import normalised

METHOD = "finetune"  # trains under every recipe

# What normalised training images may be off by. Published values for other splits of a set lie far within.
MEAN_OFF, STD_OFF = 0.5, 2.0


@dataclass(frozen=True)
class Finding:
    """holds: None for what the user should know and need not change."""

    holds: bool | None
    what: str


def examine(protocol: Protocol, data_dir: Path | None) -> Iterator[Finding]:
    """What is found, one after another. Ends early where the rest cannot be asked."""
    sets: dict[str, ImageSet] = {}
    for name in protocol.sets:
        try:
            sets[name] = load(name, data_dir)
        except UserError as error:
            yield Finding(False, f"images: {error}")
            return
        yield Finding(True, f"{name}: {described(sets[name])}")
        if same := in_both_parts(sets[name]):
            yield Finding(None, f"{name}: {same:,} test images are training images, too")
    outside = [
        (task.name, label)
        for task in protocol.tasks
        for label in task.classes
        if label not in set(sets[task.dataset].train_y.tolist())
    ]
    if outside:
        yield Finding(False, f"classes: task {outside[0][0]} has class {outside[0][1]}, which its data set has not")
        return
    yield Finding(True, "classes: all exist, with training and test images")
    yield from shares(protocol)
    try:
        tasks = [normalised(task, sets[task.dataset], protocol) for task in protocol.tasks]
    except UserError as error:
        yield Finding(False, f"input: {error}")
        return
    yield Finding(True, f"input: images of {protocol.image[1]}x{protocol.image[2]} with {protocol.image[0]} channels")
    wrong = [text for task in tasks if (text := implausible(task, sets[task.dataset]))]
    yield Finding(False, f"normalisation: {wrong[0]}") if wrong else Finding(True, "normalisation: fits the images")
    yield stable(protocol)
    sound = []
    for tier in protocol.tiers:
        try:
            resolve(protocol.name, tier, METHOD, 1)
        except UserError as error:
            yield Finding(False, f"tier {tier}: {error}")
        else:
            sound.append(tier)
            recipe = protocol.recipe(tier)
            yield Finding(True, f"tier {tier}: {recipe.backbone}, {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}")
    if sound:
        yield trained(protocol, "smoke" if "smoke" in sound else sound[-1], data_dir)


def described(images: ImageSet) -> str:
    """How many images there are, and how evenly they are spread."""
    words = []
    for y, part in ((images.train_y, "training"), (images.test_y, "test")):
        counts = np.bincount(y)
        spread = f"{counts.min():,} a class" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,} a class"
        words.append(f"{len(y):,} {part} images ({spread})")
    height, width = images.train_x.shape[1:3]
    return ", ".join([*words, f"{height}x{width}", *filter(None, [images.note])]) + f", digest {images.digest[:12]}"


def in_both_parts(images: ImageSet) -> int:
    """How many test images are also training images, to the pixel."""
    training = {hash(image.tobytes()) for image in images.train_x}
    return sum(hash(image.tobytes()) in training for image in images.test_x)


def shares(protocol: Protocol) -> Iterator[Finding]:
    """Whether tasks have classes in common, and which have a single one."""
    owners = Counter((task.dataset, label) for task in protocol.tasks for label in task.classes)
    shared = sum(n > 1 for n in owners.values())
    said = f"have {shared} of {len(owners)} classes in common" if shared else "share no class"
    yield Finding(None, f"tasks: {len(protocol.tasks)}, which {said}")
    if alone := [task.name for task in protocol.tasks if len(task.classes) == 1]:
        yield Finding(None, f"tasks: {', '.join(alone)} of one class, on which every method scores 100 %")


def implausible(task: Task, images: ImageSet) -> str | None:
    """Why a task's mean and standard deviation cannot be those of its images, or None. A border counts as pixels of 0."""
    height, width, has = images.train_x.shape[1:]
    filled = height * width / ((height + 2 * task.pad) * (width + 2 * task.pad))
    for channel, (mean, std) in enumerate(zip(task.mean, task.std, strict=True)):
        its, spread = (part[channel % has] for part in channel_statistics(images))
        square = filled * (spread**2 + its**2)
        its *= filled
        spread = (square - its**2) ** 0.5
        if abs(its - mean) > MEAN_OFF * std or not 1 / STD_OFF < spread / std < STD_OFF:
            return (
                f"task {task.name} states mean {mean:g} and std {std:g} for channel {channel}, its images have {its:.3f} and "
                f"{spread:.3f}; leave both out to have them computed"
            )
    return None


AGAIN = """
import sys
from pathlib import Path
from benchsuite.protocol import protocols
from benchsuite.source import digest_of_protocol
print(digest_of_protocol(protocols.get(protocols.find(sys.argv[1]))))
"""


def stable(protocol: Protocol) -> Finding:
    """Whether another process finds the same tasks, in the same order for a seed."""
    orders = [protocol.order(seed) for seed in (1, 1, 2)]
    if orders[0] != orders[1] or sorted(orders[0]) != list(range(len(protocol.tasks))):
        return Finding(False, "order: one seed gives two orders, or an order leaves tasks out")
    file = protocols.file(protocol.name)
    command = [sys.executable, "-P", "-c", AGAIN, str(file or protocol.name)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.stdout.strip() != digest_of_protocol(protocol):
        why = (made.stderr.strip().splitlines() or ["its tasks differ"])[-1]
        return Finding(
            False, f"order: another process reads another protocol ({why}); draw nothing at random, sort what is a set"
        )
    return Finding(True, "order: the same in every process; the seed alone decides it")


def trained(protocol: Protocol, tier: str, data_dir: Path | None) -> Finding:
    """A run of a few steps on two tasks."""
    few = {"epochs": 1, "milestones": (), "tasks": min(2, len(protocol.tasks)), "train_per_class": 4, "test_per_class": 2}
    with TemporaryDirectory() as folder:
        try:
            job = resolve(protocol.name, tier, METHOD, 1, overrides=few)
            record = run(job, results=Path(folder), data_dir=data_dir, device="cpu")
        except (UserError, RunFailed) as error:
            return Finding(False, f"training: {str(error).partition('; see ')[0]}")
    return Finding(True, f"training: {len(record.tasks)} tasks, {sum(record.iterations)} steps, {record.megabytes:.3f} MB")
