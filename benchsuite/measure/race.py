"""Timing contenders in turns, so that all of them are slowed when the machine slows down for a while."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Semaphore, Thread
from typing import Any, NamedTuple

import torch
from avalanche.core import SupervisedPlugin

from ..training.device import cores
from ..training.environment import environment, source_revision

Contender = Callable[[], None]  # one training step of one batch


def alone() -> bool:
    """Whether one CPU thread does all the work. Its CPU seconds are then what to time: other work on the machine takes from the
    clock on the wall, but not from what one thread computes."""
    return not torch.cuda.is_available() and torch.get_num_threads() == 1


def race(contenders: Mapping[str, Contender], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, CPU seconds where it works `alone`; one untimed round comes first."""
    clock = time.process_time if alone() else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, step in contenders.items():
            start = clock()
            for _ in range(steps):
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


class Ratio(NamedTuple):
    median: float
    lowest: float
    highest: float


def ratio(seconds: Mapping[str, Sequence[float]], one: str, other: str) -> Ratio:
    """How much longer `one` takes than `other`, within each round: median and extremes over the rounds."""
    values = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
    return Ratio(statistics.median(values), min(values), max(values))


def circumstances(device: torch.device, rounds: int, steps: int, load: tuple[float, ...]) -> str:
    """Where, when and how contenders were timed. load: the load averages before."""
    where, seconds = environment(device, [source_revision()]), "CPU seconds" if alone() else "wall clock"
    loads = ", ".join(f"{value:.1f}" for value in (load[0], os.getloadavg()[0]))
    return (
        f"{seconds}, {where.device_name}, {where.threads} threads, {cores()} cores, torch {where.versions['torch']}, "
        f"revision {where.source}, {where.date[:10]}; rounds: {rounds}, steps in each: {steps}; "
        f"load average (one minute) before and after: {loads}"
    )


def paused(strategy: Any, experience: Any) -> Contender:
    """`strategy.train`, advanced by one batch per call: it runs in a thread that waits at the end of each iteration.

    Whatever ends the training, such as an error, is raised by the call during which it happens."""
    go, done = Semaphore(0), Semaphore(0)
    errors: list[BaseException] = []

    class Hold(SupervisedPlugin):
        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            go.acquire()

        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            done.release()
            go.acquire()

    def train() -> None:
        try:
            strategy.train(experience, eval_streams=[])
            errors.append(RuntimeError("the training has ended"))
        except BaseException as error:
            errors.append(error)
        done.release()

    strategy.plugins.insert(0, Hold())
    Thread(target=train, daemon=True).start()

    def step() -> None:
        if not errors:
            go.release()
            done.acquire()
        if errors:
            raise errors[0]

    return step
