"""Training throughput side by side in one process: images per second and ratios.

bare        a plain PyTorch loop: same network, batch size, optimiser, precision and memory layout, on pre-normalised tensors in
            memory; no augmentation, no metrics
finetune    the suite's engine: augmentation, counting and Avalanche's template included
cacl        the same with CACL's factors and penalties, in its first task and (with --later-task) with a bank of that many tasks
naive       Avalanche's own Naive with its usual transforms and DataLoader, default layout

The contenders take turns, `rounds` times, a few steps each; the figures are medians over rounds, and each ratio is the median of
the ratios within a round, so that a machine that slows down for a while slows all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn

from ..data.batches import normalise
from ..data.stream import TaskStream, build_stream
from ..nn.multihead import MultiHead
from ..protocol import Protocol, Recipe, protocols
from ..runner import assemble
from ..settings import recipe_of, resolve
from ..strategy import Watch, make_optimizer
from . import script

Contender = Callable[[], None]  # one training step of one batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--protocol", default="split-cifar100")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="steps of each contender in each round")
    parser.add_argument("--later-task", type=int, default=20, help="CACL with a bank as wide as after so many tasks")
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    arguments = parser.parse_args()
    protocol = protocols.get(arguments.protocol)
    job = resolve(arguments.protocol, "lite", "finetune", 1, overrides={"tasks": 1})
    recipe = recipe_of(job.settings)
    stream = build_stream(protocol, recipe, 1, data_dir=arguments.data_dir, device=torch.device("cpu"))
    contenders: dict[str, Contender] = {}
    for name, make in {
        "bare": lambda: bare(protocol, recipe, stream, arguments.precision),
        "finetune": lambda: engine("finetune", protocol, stream, arguments.precision),
        "cacl": lambda: engine("cacl", protocol, stream, arguments.precision),
        f"cacl task {arguments.later_task}": lambda: engine("cacl", protocol, stream, arguments.precision, arguments.later_task),
        "naive": lambda: naive(protocol, recipe, stream),
    }.items():
        if not any(name.startswith(skipped) for skipped in arguments.skip) and not (
            name == "naive" and arguments.precision == "bf16"
        ):
            contenders[name] = make()
    seconds = race(contenders, arguments.rounds, arguments.steps)
    images = recipe.batch_size * arguments.steps
    threads = torch.get_num_threads()
    print(f"{arguments.protocol}, {arguments.precision}, {threads} threads, torch {torch.__version__}, {arguments.rounds} rounds")
    for name, times in seconds.items():
        print(f"{name:16} {images / statistics.median(times):7.1f} images/s")
    for slow, fast in (
        ("finetune", "bare"),
        ("finetune", "naive"),
        ("cacl", "finetune"),
        (f"cacl task {arguments.later_task}", "finetune"),
    ):
        if slow in seconds and fast in seconds:
            ratio = statistics.median(f / s for s, f in zip(seconds[slow], seconds[fast], strict=True))
            print(f"throughput of {slow} / {fast}: {ratio:.3f}   (step time {1 / ratio:.3f})")


def race(contenders: dict[str, Contender], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; one untimed round comes first."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, step in contenders.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def network(protocol: Protocol, recipe: Recipe, stream: TaskStream) -> MultiHead:
    return MultiHead.build(recipe.backbone, image=protocol.image, classes=stream.classes, dropout=recipe.dropout, seed=1)


def bare(protocol: Protocol, recipe: Recipe, stream: TaskStream, precision: str) -> Contender:
    model = network(protocol, recipe, stream)
    model.add_task(0)
    model.to(memory_format=torch.channels_last).train()
    optimizer, images = make_optimizer(recipe, model), stream.train[0].images
    x, y = normalise(images.pixels, images.mean, images.std), images.labels
    position = 0

    def step() -> None:
        nonlocal position
        rows = slice(position, position + recipe.batch_size)
        position = (position + recipe.batch_size) % (len(y) - recipe.batch_size)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(x[rows], 0)
        nn.functional.cross_entropy(logits.float(), y[rows]).backward()
        optimizer.step()

    return step


def engine(name: str, protocol: Protocol, stream: TaskStream, precision: str, later_task: int = 0) -> Contender:
    """The suite's own loop, held after every batch. later_task: with a random bank, as wide as after so many tasks."""
    job = resolve(
        protocol.name, "lite", name, 1, overrides={"tasks": 1, "epochs": 100_000, "milestones": ()}, precision=precision
    )
    strategy = assemble(job, stream, plugins=[Watch()])
    if later_task:
        widen(strategy.method, later_task)
    return held(strategy, stream.train[0])


def widen(method: Any, tasks: int) -> None:
    """Fill the banks with random components: per task the released model's mean new ranks on 20-split CIFAR-100, lambda_s 0.1."""
    source = torch.Generator().manual_seed(0)
    for layer, new, name in zip(method.layers.values(), (9, 26, 27, 30, 35), method.layers, strict=False):
        layer.draw_residual((new * (tasks - 1),), source)
        layer.consolidate(torch.arange(new * (tasks - 1)))
        layer.ranks = []  # so that the task about to be learnt is still called 0; its kernel costs the same
        method.pools[name] = [method.pools[name][0]]


def naive(protocol: Protocol, recipe: Recipe, stream: TaskStream) -> Contender:
    model = network(protocol, recipe, stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = EvaluationPlugin()
    strategy = Naive(
        model=model,
        optimizer=make_optimizer(recipe, model),
        train_mb_size=recipe.batch_size,
        train_epochs=100_000,
        evaluator=evaluator,
    )
    return held(strategy, stream.train[0])


def held(strategy: Any, experience: Any) -> Contender:
    """`strategy.train`, advanced by one batch a call: it runs in a thread that waits at the end of each iteration."""
    from threading import Semaphore, Thread

    from avalanche.core import SupervisedPlugin

    go, done = Semaphore(0), Semaphore(0)

    class Hold(SupervisedPlugin):
        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            go.acquire()

        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            done.release()
            go.acquire()

    strategy.plugins.insert(0, Hold())
    Thread(target=lambda: strategy.train(experience, eval_streams=[]), daemon=True).start()

    def step() -> None:
        go.release()
        done.acquire()

    return step


if __name__ == "__main__":
    script(main)
