"""Golden numbers: what short runs of everything built in yield, so that a change of any number is noticed.

golden.json has one entry for each case of a method, modifier, protocol, backbone and optimizer. An entry says with which settings
the run is made, what it yields, and why it was last regenerated. A record names the entries that stand for it
(`benchsuite.source`); a regenerated entry makes the records that name it stale, and no others.

Runs are made in float64 on one thread, so that the numbers are the same on every processor, but for rounding. Methods are run on
a network and a protocol of this module's own: a change of a registered backbone or protocol changes its own entry alone.

    python -m benchsuite.checks.golden                                    which entries differ, and which rows that makes stale
    python -m benchsuite.checks.golden --update NAME... --reason "..."    regenerate these entries, and add missing ones
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from .. import source
from ..data.sets import ImageSet
from ..errors import UserError, one_line
from ..fields import field_types
from ..files import write_atomic
from ..method.artifact import Artifact
from ..method.base import Method
from ..method.registered import methods
from ..nn.backbones import BACKBONES, ConvNet, has_batchnorm, scaled
from ..nn.images import normalise
from ..nn.modifiers import MODIFIERS
from ..nn.multihead import MultiHead
from ..nn.normalisation import BatchNormPolicy
from ..protocol import Protocol, Recipe, Task, protocols
from ..record.folder import RunFolder
from ..registry import suggest
from ..source import digests, golden, subject
from ..training.runner import run
from ..training.settings import Unsupported, resolve

TOLERANCE = 1e-9  # relative and absolute

DIGITS = 13  # significant digits on file

SIZE = {
    **{"backbone": "golden", "width": 1.0, "optimizer": "adam", "momentum": 0.0, "lr": 0.005, "weight_decay": 1e-3, "init": "he"},
    **{"epochs": 3, "milestones": (2,), "batch_size": 8, "dropout": 0.15, "reset_optimizer": True, "tasks": 3},
    **{"train_per_class": 8, "test_per_class": 8},
}

RESNET = {
    **{"backbone": "resnet18", "width": 0.1, "tasks": 2, "epochs": 2, "milestones": ()},
    **{"lr": 0.002, "reset_optimizer": False, "init": "default"},
}

NOT_ON_RESNET = (
    "individual-cp",  # the fits of its layers take 14 s
    "cacl-tucker",  # singular vectors of equal singular values, which differ between processors, enter the second task
)

IMAGES = {"golden": "mnist", "golden-colour": "cifar10"}  # the protocols of this module and the name that their images go by


class Steps(SupervisedPlugin):
    """The loss of every step, and the first batch of every task, in training and in the last evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.trained: dict[int, list[Any]] = {}
        self.evaluated: dict[int, list[Any]] = {}

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.trained.setdefault(strategy.experience.current_experience, batch(strategy))

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.evaluated.setdefault(strategy.experience.current_experience, batch(strategy))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.losses.append(float(strategy.loss.detach()))


def batch(strategy: Any) -> list[Any]:
    return [*strategy.mb_x.shape, checksum(strategy.mb_x), *strategy.mb_y.tolist()]


def checksum(x: Tensor) -> float:
    """The product with a fixed vector: whatever moves changes it."""
    return float(x.detach().flatten() @ torch.arange(x.numel(), dtype=x.dtype).cos())


def network(image: Sequence[int], dropout: float, width: float = 1.0) -> torch.nn.Module:
    a, b, c = (scaled(channels, width) for channels in (6, 8, 10))
    return ConvNet(image, [(a, 3), (b, 3), "max", "drop", (c, 2)], dropout)


def protocol(name: str) -> Protocol:
    image = (1, 8, 8) if name == "golden" else (3, 32, 32)
    tasks = tuple(
        Task(name=str(t), dataset=IMAGES[name], classes=(2 * t, 2 * t + 1), mean=(0.4,) * image[0], std=(0.3,) * image[0])
        for t in range(5)
    )
    tiers = {"smoke": Recipe(backbone="golden", epochs=1)}
    return Protocol(name=name, summary="", needs="", tasks=tasks, image=image, crop_padding=1, flip=True, tiers=tiers)


def synthetic(name: str, classes: int, size: int, channels: int, count: int) -> ImageSet:
    """Noise around a pattern of each class, `count` images of it for training and for test."""
    draw, shape = random.Random(name), (size, size, channels)

    def pixels() -> np.ndarray:
        return np.frombuffer(draw.randbytes(math.prod(shape)), np.uint8).reshape(shape)

    patterns = [pixels() for _ in range(classes)]
    x = np.stack([patterns[i % classes] // 4 * 3 + pixels() // 4 for i in range(2 * count * classes)])
    y: np.ndarray = np.arange(len(x)) % classes
    n = len(x) // 2
    return ImageSet(name=name, train_x=x[:n], train_y=y[:n], test_x=x[n:], test_y=y[n:], digest="golden", complete=True, note="")


SETS = {  # classes, size, channels
    **{"cifar100": (100, 32, 3), "cifar10": (10, 32, 3), "svhn": (10, 32, 3), "miniimagenet": (100, 84, 3)},
    **dict.fromkeys(("mnist", "fashion_mnist", "notmnist"), (10, 28, 1)),
}


@contextmanager
def stage() -> Iterator[None]:
    """While open, runs are made in float64 on one thread, and this module's network and protocols are known."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
        BACKBONES["golden"] = network
        for name in IMAGES:
            protocols.add(name, protocol(name))
        yield
    finally:
        for name in IMAGES:
            protocols.remove(name)
        del BACKBONES["golden"]
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


def of_run(name: str, method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of a method on a protocol of this module yields."""
    made = protocol(name)
    images = synthetic(IMAGES[name], 10, made.image[1], made.image[0], 8)
    task, steps = made.tasks[0], Steps()
    with stage(), tempfile.TemporaryDirectory() as folder:
        job = resolve(name, "smoke", method, 1, overrides={**SIZE, **settings})
        record = run(job, results=Path(folder), device="cpu", plugins=[steps], images={images.name: images})
        artifact = Artifact.read(RunFolder(Path(folder) / job.folder).artifact)
        served = methods.get(method).restore(artifact).eval()
        x = normalise(torch.from_numpy(images.test_x[:4]), task.mean, task.std, torch.float64)
        with torch.no_grad():
            logits = [served(x, t).flatten().tolist() for t in range(len(record.tasks))]
    return {
        "losses": steps.losses,
        "correct": record.correct,
        "logits": logits,
        "bytes": [sizes and sizes.total for sizes in record.stored],
        "macs": record.macs,
        "iterations": record.iterations,
        "training_state_bytes": record.training_state_bytes,
        "compressed_bytes": record.memory.formula if "+" in method else [],
        "forms": {form: [stored.sizes.total, stored.correct] for form, stored in record.forms.items()},
    }


def of_backbone(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The logits of the new network at full width, and a short run of a narrow one."""
    backbone, policy = settings["backbone"], settings.get("batchnorm", "per_task")
    image = (1, 8, 8) if name == "golden" else (3, 32, 32)
    images = synthetic(name, 1, image[1], image[0], 2)
    with stage():
        model = MultiHead.build(backbone, image=image, classes=[2], seed=1, batchnorm=policy).eval()
        model.add_task(0)
        x = normalise(torch.from_numpy(images.train_x), (0.4,) * image[0], (0.3,) * image[0], torch.float64)
        with torch.no_grad():
            first = model(x, 0).flatten().tolist()
    return {"first_logits": first, **of_run(name, "finetune", settings)}


def of_protocol(name: str) -> dict[str, Any]:
    """The orders of three seeds, the tasks, and the first batches of the first tasks on images of their shape."""
    known, steps = protocols.get(name), Steps()
    images = {s: synthetic(s, *SETS[s], 2) for s in dict.fromkeys(task.dataset for task in known.tasks) if s in SETS}
    settings = {"epochs": 1, "milestones": (), "batch_size": 4, "train_per_class": 2, "test_per_class": 2}
    settings |= {"tasks": min(5, len(known.tasks))}
    with stage(), tempfile.TemporaryDirectory() as folder:
        run(
            resolve(name, "paper", "finetune", 1, overrides={**SIZE, **settings}),
            results=Path(folder),
            device="cpu",
            plugins=[steps],
            images=images,
        )
    return {
        "orders": [known.order(seed) for seed in (1, 2, 3)],
        "tasks": [[task.name, task.dataset, list(task.classes)] for task in known.tasks],
        "training": list(steps.trained.values()),
        "test": list(steps.evaluated.values()),
    }


def built_in() -> list[str]:
    """The subjects that must have entries."""
    policies = {name: get_args(BatchNormPolicy) if has_batchnorm(name) else () for name in BACKBONES}
    return [
        *(f"method {name}" for name in methods.all() if methods.is_built_in(name)),
        *(f"modifier {name}" for name in MODIFIERS),
        *(f"protocol {name}" for name in protocols.all() if protocols.is_built_in(name)),
        *(f"backbone {name}" for name in BACKBONES if not policies[name]),
        *(f"backbone {name} batchnorm={policy}" for name in BACKBONES for policy in policies[name]),
        *(f"optimizer {name}" for name in get_args(get_type_hints(Recipe)["optimizer"])),
        *(f"lr_schedule {name}" for name in get_args(get_type_hints(Recipe)["lr_schedule"]) if name != "milestones"),
    ]


def cases_of(what: str) -> list[dict[str, Any]]:
    """The settings of each case that a subject must have an entry for."""
    kind, _, name = what.partition(" ")
    if kind == "method":
        return cases_of_method(methods.get(name))
    if kind == "backbone":
        name, _, policy = name.partition(" batchnorm=")
        return [{**RESNET, "backbone": name, "batchnorm": policy} if policy else {"backbone": name, "width": 0.25}]
    if kind == "optimizer":
        momentum = {"optimizer": name, "momentum": 0.9, "reset_optimizer": False}
        return [{"optimizer": name}, *([momentum] if name == "sgd" else [])]
    if kind == "lr_schedule":
        patience = {"epochs": 8, "validation": 0.25, "lr_patience": 1, "lr_min": 2e-3, "reset_optimizer": True}
        return [{"lr_schedule": name, "milestones": (), **(patience if name == "patience" else {})}]
    return [{}]


def cases_of_method(cls: type[Method]) -> list[dict[str, Any]]:
    """A method's defaults, each set of values that it declares for a protocol, and a network with batch normalisation."""
    names = field_types(cls)
    cases = [settings_of(cls)]
    for preset in cls.settings:
        case = settings_of(cls, {name: value for name, value in preset.values.items() if name in names})
        cases += [case] if case not in cases else []
    if cls.name in NOT_ON_RESNET:
        return cases
    for policy in get_args(BatchNormPolicy):
        case = {**cases[0], **RESNET, "batchnorm": policy}
        with stage():
            try:
                resolve("golden", "smoke", cls.name, 1, overrides={**SIZE, **case})
            except Unsupported:
                continue
        return [*cases, case]
    return cases


def settings_of(cls: type[Method], chosen: Mapping[str, Any] = {}) -> dict[str, Any]:
    """A method's settings as a run has them: its defaults, with some chosen anew, without those at their neutral value."""
    with stage():
        settings = resolve("golden", "smoke", cls.name, 1, overrides={**SIZE, **chosen}).settings
    return {name: settings[name] for name in field_types(cls) if name in settings}


def entry_plan(names: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """The settings of every entry: those on file, and new ones for cases that no entry covers. A subject's cases are numbered.

    names: of these entries, or subjects, alone."""
    names = set(names)
    chosen = set(map(subject, names))
    entries = {name: entry["settings"] for name, entry in golden().items() if not names or subject(name) in chosen}
    for what in built_in():
        if names and what not in chosen:
            continue
        kind, _, name = what.partition(" ")
        # A setting that is younger than the entry has its default there.
        defaults = settings_of(methods.get(name)) if kind == "method" else {}
        for case in json.loads(json.dumps(cases_of(what))):  # as on file
            known = [settings for entry, settings in entries.items() if subject(entry) == what]
            if not any({**defaults, **settings} == {**defaults, **case} for settings in known):
                entries[f"{what} {len(known) + 1}" if known else what] = case
    return {name: settings for name, settings in entries.items() if not names or {name, subject(name)} & names}


def numbers(name: str, settings: Mapping[str, Any]) -> Any:
    """The numbers of an entry, computed now."""
    kind, _, rest = subject(name).partition(" ")
    if kind == "protocol":
        found = of_protocol(rest)
    elif kind == "backbone":
        found = of_backbone("golden-colour" if rest == "cacl" else "golden", settings)
    else:
        found = of_run("golden", {"method": rest, "modifier": f"finetune+{rest}"}.get(kind, "finetune"), settings)
    return rounded(found)


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return {name: rounded(item) for name, item in value.items()} if isinstance(value, dict) else value


def differences(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Where two forms of an entry's numbers differ by more than rounding, and by how much."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for name in before:
            yield from differences(before[name], now[name], f"{where}.{name}" if where else name)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, f"{where}[{i}]")
    elif (isinstance(before, float) and isinstance(now, float | int)) or (isinstance(now, float) and isinstance(before, int)):
        if not abs(before - now) <= TOLERANCE * (1 + abs(before)):
            yield where, abs(before - now)
    elif before != now:
        yield where, math.inf


def compare(names: Iterable[str] = ()) -> dict[str, str]:
    """Entries that differ from golden.json, and what differs first. names: only these."""
    known, found = golden(), {}
    for name, settings in entry_plan(names).items():
        if name not in known:
            found[name] = "not on file"
            continue
        try:
            now = numbers(name, settings)
        except Exception as error:  # what cannot be run any more differs
            found[name] = one_line(error)
            continue
        if where := next(differences(known[name]["numbers"], now), None):
            found[name] = f"{where[0]} differs by {where[1]:.2g}"
    return found


def voids(name: str) -> str:
    """Which records a change of an entry makes stale, in words."""
    kind, _, rest = subject(name).partition(" ")
    return {
        "method": f"rows of {rest}, and of methods from elsewhere that inherit from it"
        + (" or from no other built-in method" if rest == "finetune" else ""),
        "modifier": f"rows under +{rest}",
        "protocol": f"all rows of {rest}",
        "backbone": f"rows on {rest.replace(' ', ' with ')}",
        "optimizer": f"rows trained by {rest}",
        "lr_schedule": f"rows under lr_schedule={rest}",
    }[kind]


def update(names: Sequence[str], reason: str) -> list[str]:
    """Regenerate those of these entries that differ, add missing ones, and drop those that cannot be run any more. Returns their
    names."""
    entries, known = entry_plan(names), dict(golden())
    if unknown := [name for name in names if name not in {*entries, *map(subject, entries)}]:
        raise UserError(f"there is no entry {unknown[0]!r}", suggest(unknown[0], {*golden(), *built_in()}))
    changed = compare(names)
    for name in changed:
        try:
            known[name] = {"reason": reason, "settings": entries[name], "numbers": numbers(name, entries[name])}
        except UserError:
            if subject(name) in built_in():
                raise
            del known[name]
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known))
    write_atomic(source.GOLDEN, f"{{\n{lines}\n}}\n")
    golden.cache_clear()
    digests.cache_clear()
    return list(changed)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchsuite.checks.golden", description="Compare with golden.json.")
    parser.add_argument("names", nargs="*", help="entries, such as 'method ewc' (default: all)")
    parser.add_argument("--update", nargs="*", metavar="NAME", help="regenerate these entries if they differ (default: all)")
    parser.add_argument("--reason", help="why the numbers change, stored with the entries")
    arguments = parser.parse_args(words)
    if arguments.update is not None and not arguments.reason:
        parser.error("--update needs a --reason")
    known = golden()  # no record names another entry, so none becomes stale by it
    try:
        if arguments.update is not None:
            for name in update(arguments.update, arguments.reason):
                print(f"{name}: regenerated; makes stale: {voids(name)}" if name in known else f"{name}: added")
            return 0
        changed = compare(arguments.names)
    except UserError as error:
        parser.error(str(error))
    for name, what in changed.items():
        print(f"{name}: {what}" + (f"; makes stale: {voids(name)}" if name in known else ""))
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
