"""Step time of each method relative to fine-tuning, or another one, early and late in the sequence, side by side in one process.

Each method learns the tasks before the one that is timed from a handful of images, so that heads, penalties, masks, memories
and whatever else a method gathers are those of that task; then it is timed on the task's full training set. CACL's bank is
filled as wide as the released model's was. A method that cuts its networks to factors has a second row, `recovery`, for the
steps after that. The contenders take turns, a few steps each; a ratio is the median over rounds of the
ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..cli import parse_settings
from ..data.stream import TaskStream, build_stream
from ..method import methods
from ..protocol import protocols
from ..runner import assemble
from ..settings import Unfit, recipe_of, resolve
from ..strategy import Watch
from . import script
from .throughput import Contender, held, race, widen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--protocol", default="split-cifar100")
    parser.add_argument("--methods", nargs="+", help="default: every method that learns task after task")
    parser.add_argument("--relative-to", default="finetune", metavar="METHOD")
    parser.add_argument("--tasks", type=int, nargs=2, default=[2, 20], help="an early and a late task, counted from 1")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    overrides: dict[str, Any] = parse_settings(arguments)
    names = arguments.methods or [name for name, cls in methods.all().items() if not cls.trains_jointly]
    job = resolve(arguments.protocol, "lite", "finetune", 1, overrides=overrides)
    full, few = (
        build_stream(
            protocols.get(arguments.protocol),
            recipe_of(job.settings | changes),
            1,
            data_dir=arguments.data_dir,
            device=torch.device("cpu"),
        )
        for changes in ({}, {"train_per_class": 8})
    )
    contenders: dict[str, Contender] = {}
    base = arguments.relative_to
    cut = {name for name in names if hasattr(methods.get(name), "compress")}
    names = list(
        dict.fromkeys([base, *(row for name in names for row in (name, f"{name} recovery") if row == name or name in cut)])
    )
    for name in names:
        for task in arguments.tasks:
            try:
                contenders[f"{name} {task}"] = late(name, arguments.protocol, full, few, task, overrides, arguments.precision)
            except Unfit as reason:
                print(reason)
    seconds = race(contenders, arguments.rounds, arguments.steps)
    early, last = arguments.tasks

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))

    threads, given = torch.get_num_threads(), f"{arguments.protocol}, {arguments.precision}"
    print(f"{given}, {threads} threads, torch {torch.__version__}, {arguments.rounds} rounds")
    print(f"{'method':27} step time / {base}'s, task {early:<3} task {last:<3}  steps per second, task {last} / task {early}")
    for name in names:
        if f"{name} {early}" in seconds:
            relative = [ratio(f"{name} {task}", f"{base} {task}") for task in arguments.tasks]
            decay = ratio(f"{name} {early}", f"{name} {last}")
            print(f"{name:27} {relative[0]:20.3f} {relative[1]:8.3f} {decay:12.3f}")


def late(
    name: str, protocol: str, full: TaskStream, few: TaskStream, task: int, overrides: dict[str, Any], precision: str
) -> Contender:
    """A step of `name` in its task `task`."""
    name, _, recovery = name.partition(" ")
    settings = {"epochs": 1, "milestones": (), **overrides}
    job = resolve(protocol, "lite", name, 1, overrides=settings, precision=precision)
    strategy = assemble(job, full, plugins=[Watch()])
    if name == "cacl" and full.tasks[0].dataset == "cifar100" and "backbone" not in overrides:
        strategy.model.add_task(0)
        if task > 1:
            widen(strategy.method, task)
        return held(forever(strategy), full.train[0])
    for experience in few.train[: task - 1]:
        strategy.train(experience, eval_streams=[])
    if recovery:
        strategy.method.dense_epochs = lambda: 0  # the cut comes with the first step
    return held(forever(strategy), full.train[task - 1])


def forever(strategy: Any) -> Any:
    strategy.train_epochs = 10**6
    strategy.method.recipe = replace(strategy.method.recipe, epochs=10**6)  # by which some methods time their phases
    return strategy


if __name__ == "__main__":
    script(main)
