"""Speed of the suite on this machine: where the time of a training step goes, and which settings would change it.

loop        one training step of the suite (fine-tuning on its first task, with augmentation, counting and Avalanche's template),
            beside a bare PyTorch loop (same network, batch, optimiser, precision and memory layout, on images normalised in
            advance), the bare loop on the suite's batches, the suite without its metrics, and Avalanche's own Naive with its
            usual transforms and DataLoader, always in fp32. The differences are the shares of batches, of the template with its
            hooks, and of metrics in a step
methods     each method's step relative to fine-tuning's, early and late in the sequence. Earlier tasks are learnt from a few
            images each, so that heads, penalties, masks and memories are those of the task that is timed; CACL's bank is filled
            to the width of the released model. Methods that prune or cut a task's weights during the task have a row for each
            phase; the second begins after one epoch
evaluation  a pass over the test images of one task, beside the same pass in a bare loop and by Naive
data        setting up the tasks from the cache, and decoding all images again
settings    the bare loop with another precision, memory layout, optimiser or compiler. As a check, on the same first batch and
            without dropout: how far the gradient, and the change of the weights in three steps, are from those of the plain
            loop, relative to their norm. Also one process of the suite on each core, beside one process on all cores and Naive on
            all cores: several jobs at once, beside the same jobs one after another, and beside Avalanche's loop
profile     the operations of a step by kind, as shares of its wall-clock time, by PyTorch's profiler (which slows down small
            operations); the convolutions' operations per second relative to those of a large matrix product; that product in bf16

The contenders take turns, a few steps each. A figure is the median over rounds of the ratios within a round, with the lowest and
the highest ratio. Seconds are those of one step, one pass or one set-up.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..data.sets import verify
from ..errors import UserError, one_line
from ..files import write_atomic
from ..method.registered import methods
from ..nn.backbones import reseed_dropout
from ..nn.images import normalise
from ..nn.multihead import MultiHead
from ..protocol import Recipe, protocols
from ..record.schema import Job
from ..registry import suggest
from ..training.assemble import assemble
from ..training.batches import Batches
from ..training.device import configure_process, cores
from ..training.optimizer import make_optimizer
from ..training.settings import Unsupported, method_of, recipe_of, resolve
from ..training.stream import TaskStream, build_stream
from ..training.watch import Watch
from .race import Contender, circumstances, paused, race, ratio

COLUMNS = ["section", "what", "relative_to", "ratio", "lowest", "highest", "seconds", "gradient_error", "update_error"]
SECTIONS = ("loop", "methods", "evaluation", "data", "settings", "profile")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECOND = "second phase"
SIDE = 1024  # of the square matrices whose product is taken as the speed that the machine can reach
KINDS = {  # of operations, by words in their names; the first match counts
    "optimiser": ("adam", "sgd", "optimizer", "lerp", "addcdiv", "_foreach"),
    "convolutions": ("conv",),
    "matrix products": ("mm", "linear", "bmm"),
    "pooling": ("pool",),
    "activations": ("relu", "clamp_min", "threshold"),
    "dropout": ("random", "aten::ge", "aten::mul"),
    "copies and casts": ("copy", "aten::to", "contiguous", "clone", "index", "cat"),
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured: the recipe of a protocol and tier with seed 1 and `overrides`."""

    protocol: str = "split-digits"
    tier: str = "lite"
    data_dir: Path | None = None
    methods: Sequence[str] = ()
    relative_to: str = "finetune"
    precision: str = "fp32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounds: int = 7
    steps: int = 4
    tasks: tuple[int, int] | None = None
    sections: Sequence[str] = SECTIONS
    skip: Sequence[str] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = print

    def job(self, method: str = "finetune", **changes: Any) -> Job:
        overrides = {"epochs": 1, "milestones": (), **self.overrides, **changes}
        return resolve(self.protocol, self.tier, method, 1, overrides=overrides, precision=self.precision)

    def stream(self, **changes: Any) -> TaskStream:
        recipe = recipe_of(self.job(**changes).settings)
        return build_stream(protocols.get(self.protocol), recipe, 1, data_dir=self.data_dir, device=self.device)

    @cached_property
    def full(self) -> TaskStream:
        return self.stream()

    @cached_property
    def few(self) -> TaskStream:
        return self.stream(train_per_class=8)

    def run(self) -> pd.DataFrame:
        """One row for each figure, with the columns COLUMNS."""
        for section in self.sections:
            if section not in SECTIONS:
                raise UserError(f"no section is called {section!r}", suggest(section, SECTIONS))
        if self.rounds < 1 or self.steps < 1:
            raise UserError("rounds and steps must be at least 1")
        if self.tasks and not 1 <= min(self.tasks) <= max(self.tasks) <= len(self.full.tasks):
            raise UserError(f"tasks must lie in 1..{len(self.full.tasks)}, got {self.tasks[0]} and {self.tasks[1]}")
        rows: list[dict[str, Any]] = []
        for section in self.sections:
            rows += [{"section": section, **row} for row in getattr(self, f"time_{section}")()]
        return pd.DataFrame(rows, columns=COLUMNS)

    def compared(
        self, contenders: Mapping[str, Callable[[], Contender]], pairs: Sequence[tuple[str, str]], steps: int = 0
    ) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
        """Make the contenders that are not skipped, time them in turns, and return one row for each pair (what, relative to)."""
        made = {}
        for name, make in contenders.items():
            if not any(name.startswith(skipped) for skipped in self.skip):
                try:
                    made[name] = make()
                except Unsupported as reason:
                    self.say(f"n/a: {reason}")
        steps = steps or self.steps
        self.say(f"timing {len(made)} contenders in turns")  # making them may take minutes
        seconds = race(made, self.rounds, steps)
        rows = []
        for one, other in pairs:
            if one in seconds and other in seconds:
                rows.append(timed(seconds, one, other, steps))
        return rows, seconds

    # The sections

    def time_loop(self) -> list[dict[str, Any]]:
        bare, batches, ours, silent = "bare loop", "bare loop, benchsuite's batches", "benchsuite", "benchsuite without metrics"
        naive = "Avalanche's Naive, fp32"
        rows, seconds = self.compared(
            {
                bare: lambda: Bare(self),
                batches: lambda: Bare(self, batches=True),
                silent: lambda: self.ours("finetune", watched=False),
                ours: lambda: self.ours("finetune"),
                naive: lambda: paused(self.naive(), self.full.train[0]),
            },
            [*((name, bare) for name in (bare, batches, silent, ours, naive)), (ours, naive)],
        )
        for what, one, other in (
            ("share of batches (augmentation, normalisation)", batches, bare),
            ("share of Avalanche's template and hooks", silent, batches),
            ("share of metrics", ours, silent),
        ):
            if one in seconds and other in seconds and ours in seconds:
                shares = [(a - b) / c for a, b, c in zip(seconds[one], seconds[other], seconds[ours], strict=True)]
                found = {"ratio": statistics.median(shares), "lowest": min(shares), "highest": max(shares)}
                rows.append({"what": what, "relative_to": ours, **found})
        return rows

    def time_methods(self) -> list[dict[str, Any]]:
        chosen = self.methods or [name for name, cls in methods.all().items() if not cls.trains_jointly]
        last = len(self.full.tasks)
        tasks = self.tasks or (min(2, last), last)
        names = [self.relative_to]
        for name in chosen:
            settings = self.job(name).settings
            names += [name, f"{name} {SECOND}"] if method_of(name, settings).phase else [name]
        names = list(dict.fromkeys(names))

        def make(name: str, task: int) -> Callable[[], Contender]:
            return lambda: self.ours(name.removesuffix(f" {SECOND}"), second=name.endswith(SECOND), task=task)

        early, late = tasks
        rows, _ = self.compared(
            {f"{name}, task {task}": make(name, task) for name in names for task in tasks},
            [(f"{name}, task {task}", f"{self.relative_to}, task {task}") for name in names for task in tasks]
            + [(f"{name}, task {late}", f"{name}, task {early}") for name in names if late > early],
        )
        return rows

    def time_evaluation(self) -> list[dict[str, Any]]:
        test, bare = self.full.test[:1], Bare(self)
        images = test[0].images
        x, y = normalise(images.pixels, images.mean, images.std), images.labels

        @torch.no_grad()
        def plain() -> None:
            bare.model.eval()
            for rows in torch.arange(len(y), device=y.device).split(256):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    (bare.model(x[rows], 0).argmax(1) == y[rows]).sum()

        def ours() -> Contender:
            strategy = assemble(self.job(), self.full, device=self.device, plugins=[Watch()])
            return lambda: strategy.eval(test)

        def naive() -> Contender:
            strategy = self.naive()
            return lambda: strategy.eval(test)

        names = ["bare pass", "benchsuite", "Avalanche's Naive, fp32"]
        makers = dict(zip(names, (lambda: plain, ours, naive), strict=True))
        return self.compared(makers, [*((name, names[0]) for name in names), (names[1], names[2])], steps=1)[0]

    def time_data(self) -> list[dict[str, Any]]:
        def decode() -> None:
            for images in self.full.sets:
                verify(images.name, self.data_dir)
            self.stream()

        warm, cold = "set-up from the cache", "set-up with images decoded again"
        return self.compared({warm: lambda: lambda: void(self.stream()), cold: lambda: decode}, [(warm, warm), (cold, warm)], 1)[
            0
        ]

    def time_settings(self) -> list[dict[str, Any]]:
        other = "fp32" if self.precision == "bf16" else "bf16"
        variants: dict[str, dict[str, Any]] = {
            "plain": {},
            other: {"precision": other},
            "contiguous layout (NCHW)": {"layout": torch.contiguous_format},
            "unfused optimiser": {"fused": False},
            "compiled": {"compiled": True},
        }
        plain, errors, contenders = Bare(self, dropout=False).trial(), {}, {}
        for name, options in variants.items():
            if any(name.startswith(skipped) for skipped in self.skip):
                continue
            try:
                errors[name] = distances(plain, Bare(self, dropout=False, **options).trial())
                contenders[name] = Bare(self, **options)
            except Exception as error:  # no compiler, or an operation that this machine lacks
                self.say(f"n/a: {name}: {one_line(error)[:200]}")
        makers = {name: partial(contenders.__getitem__, name) for name in contenders}
        rows, _ = self.compared(makers, [(name, "plain") for name in contenders])
        for row in rows:
            row["gradient_error"], row["update_error"] = errors[row["what"]]
        return rows + self.processes()

    def processes(self) -> list[dict[str, Any]]:
        """One process on all cores, one process on each core, and Avalanche's Naive on all cores: seconds per step, divided by
        the number of processes."""
        threads, count = torch.get_num_threads(), cores()
        if count == 1 or self.device.type != "cpu" or any("processes".startswith(skipped) for skipped in self.skip):
            return []
        together, apart = Processes(self, 1, count), Processes(self, count, 1)
        one, many = f"1 process x {count} threads", f"{count} processes x 1 thread, per image"
        naive = f"Avalanche's Naive x {count} threads, fp32"
        configure_process("cpu", self.precision, count)
        try:
            contenders: dict[str, Contender] = {one: together, many: apart, naive: paused(self.naive(), self.full.train[0])}
            seconds = race(contenders, self.rounds, self.steps)
        finally:
            together.close()
            apart.close()
        seconds[many] = [s / count for s in seconds[many]]
        trials = []
        for number in (count, 1):
            configure_process("cpu", self.precision, number)
            trials.append(Bare(self, dropout=False).trial())
        configure_process("cpu", self.precision, threads)
        gradient, update = distances(*trials)
        return [
            {**timed(seconds, many, one, self.steps), "gradient_error": gradient, "update_error": update},
            timed(seconds, many, naive, self.steps),
        ]

    def time_profile(self) -> list[dict[str, Any]]:
        strategy: Any = assemble(self.job(), self.full, device=self.device, plugins=[Watch()])
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        for _ in range(2):  # the first pass warms up
            profile = torch.profiler.profile(activities=activities)
            wall = profiled(strategy, self.full.train[0], self.steps, profile)
        shares: dict[str, float] = dict.fromkeys([*KINDS, "other operations"], 0.0)
        for event in profile.key_averages():
            if event.device_type != torch.autograd.DeviceType.CPU:
                continue  # a kernel: its time counts for the operation that launched it
            kind = next((kind for kind, words in KINDS.items() if any(w in event.key.lower() for w in words)), "other operations")
            taken = event.self_device_time_total if self.device.type == "cuda" else event.self_cpu_time_total
            shares[kind] += taken / 1e6 / wall
        shares["Python and waiting"] = 1 - sum(shares.values())
        ordered = sorted(shares.items(), key=lambda item: -item[1])
        self.say(f"largest share of a step: {ordered[0][0]}, {ordered[0][1]:.0%} of its wall-clock time")
        rows = [{"what": kind, "relative_to": "one step", "ratio": share} for kind, share in ordered]

        bare, products = Bare(self), {}
        for name, dtype in DTYPES.items():
            matrix = torch.ones(SIDE, SIDE, dtype=dtype, device=self.device)
            products[name] = partial(torch.mm, matrix, matrix)
        with FlopCounterMode(display=False) as counter:
            bare()
        seconds = race(products, self.rounds, self.steps)
        named = {name: f"{SIDE} x {SIDE} matrix product in {name}" for name in DTYPES}
        operations = sum(n for kind, n in counter.get_flop_counts()["Global"].items() if "conv" in str(kind))
        if shares["convolutions"]:
            rate = operations / (shares["convolutions"] * wall / self.steps)
            best = 2 * SIDE**3 * self.steps / statistics.median(seconds[self.precision])
            rows.append(
                {"what": "convolutions, operations per second", "relative_to": named[self.precision], "ratio": rate / best}
            )
        compared = timed(seconds, "bf16", "fp32", self.steps)
        return [*rows, {**compared, "what": named["bf16"], "relative_to": named["fp32"]}]

    # The contenders

    def ours(self, name: str, *, second: bool = False, task: int = 1, watched: bool = True) -> Contender:
        """A step of a method in its task `task`, counted from 1, and there in its first or second phase."""
        strategy: Any = assemble(self.job(name), self.full, device=self.device, plugins=[Watch()] if watched else [])
        earlier = task - 1
        if name == "cacl" and self.full.tasks[0].dataset == "cifar100" and "backbone" not in self.overrides:
            strategy.model.add_task(0)
            if earlier:
                widen(strategy.method, task)
            earlier, task = 0, 1
        for experience in self.few.train[:earlier] if earlier else []:
            strategy.train(experience, eval_streams=[])
        if second:
            strategy.method.first_epochs = lambda: 1
        step = paused(forever(strategy), self.full.train[task - 1])
        if second:
            step()  # the clock still showed the task before
            while not strategy.clock.train_exp_epochs:
                step()
        return step

    def network(self, recipe: Recipe) -> MultiHead:
        image = protocols.get(self.protocol).image
        model = MultiHead.build(
            recipe.backbone,
            image=image,
            classes=self.full.classes,
            dropout=recipe.dropout,
            seed=1,
            batchnorm=recipe.batchnorm,
            width=recipe.width,
        )
        model.add_task(0)
        reseed_dropout(model.to(self.device), 1)
        return model

    def naive(self) -> Any:
        recipe = recipe_of(self.job().settings)
        model = self.network(recipe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = EvaluationPlugin()
        return Naive(
            model=model,
            optimizer=make_optimizer(recipe, model),
            train_mb_size=recipe.batch_size,
            eval_mb_size=256,
            train_epochs=10**6,
            evaluator=evaluator,
            device=self.device,
        )


def timed(seconds: Mapping[str, Sequence[float]], one: str, other: str, steps: int) -> dict[str, Any]:
    """The row of `one` relative to `other`. seconds: of each contender for `steps` steps, by round."""
    median, lowest, highest = ratio(seconds, one, other)
    taken = statistics.median(seconds[one]) / steps
    return {"what": one, "relative_to": other, "ratio": median, "lowest": lowest, "highest": highest, "seconds": taken}


def void(value: Any) -> None:
    """A contender returns nothing."""


def forever(strategy: Any) -> Any:
    strategy.train_epochs = 10**6
    run = strategy.method.run  # some methods time their phases by its epochs
    strategy.method.run = replace(run, recipe=replace(run.recipe, epochs=10**6))
    return strategy


def widen(method: Any, tasks: int) -> None:
    """Fill the banks with random components: for each task as many as the released model adds on average to each layer (20-split
    CIFAR-100, lambda_s 0.1)."""
    source = torch.Generator().manual_seed(0)
    for layer, new, name in zip(method.layers.values(), (9, 26, 27, 30, 35), method.layers, strict=False):
        layer.draw_residual((new * (tasks - 1),), source)
        layer.consolidate(torch.arange(new * (tasks - 1), device=layer.sigma.device))
        layer.ranks = []  # the next task is still number 0; its kernel costs the same
        method.pools[name] = [method.pools[name][0]]


class Bare:
    """A plain PyTorch loop over the first task; each call is one step. With `batches`, on the suite's augmented batches."""

    def __init__(
        self,
        bench: Bench,
        *,
        precision: str = "",
        layout: torch.memory_format = torch.channels_last,
        fused: bool = True,
        compiled: bool = False,
        batches: bool = False,
        dropout: bool = True,
    ) -> None:
        recipe = recipe_of(bench.job().settings)
        self.recipe = recipe if dropout else replace(recipe, dropout=0.0)
        self.model = bench.network(self.recipe).to(memory_format=layout).train()
        self.optimizer = make_optimizer(self.recipe, self.model)
        if not fused:
            for group in self.optimizer.param_groups:
                group["fused"] = None  # PyTorch's default
        self.forward: Any = torch.compile(self.model.embed) if compiled else self.model.embed
        images = bench.full.train[0].images
        self.x, self.y = normalise(images.pixels, images.mean, images.std).contiguous(memory_format=layout), images.labels
        self.bf16, self.device, self.position = (precision or bench.precision) == "bf16", bench.device, 0
        size = self.recipe.batch_size
        self.batches = Batches([images], [0], size, augmentation=bench.full.augmentation, seed=1) if batches else None
        self.source: Any = iter(())

    def batch(self) -> tuple[Tensor, Tensor]:
        if self.batches is not None:
            found = next(self.source, None)
            if found is None:
                self.source = iter(self.batches)
                found = next(self.source)
            return found[0], found[1]
        rows = slice(self.position, self.position + self.recipe.batch_size)
        self.position = rows.stop if rows.stop + self.recipe.batch_size <= len(self.y) else 0
        return self.x[rows], self.y[rows]

    def __call__(self) -> None:
        x, y = self.batch()
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model.heads["0"](self.forward(x, 0))
        nn.functional.cross_entropy(logits.float(), y).backward()
        self.optimizer.step()

    def trial(self) -> tuple[Tensor, Tensor]:
        """The gradient of the first batch, and the change of the weights in three steps, each as one vector."""
        start = self.weights()
        self()
        gradient = torch.cat([p.grad.flatten().clone() for p in self.model.parameters() if p.grad is not None])
        for _ in range(2):
            self()
        return gradient, self.weights() - start

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten().clone() for p in self.model.parameters()])


def distances(plain: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """||a - b|| / ||a|| for the gradients, and for the changes of the weights."""
    gradient, update = (float((a - b).norm() / a.norm()) for a, b in zip(plain, other, strict=True))
    return gradient, update


def profiled(strategy: Any, experience: Any, steps: int, profile: Any) -> float:
    """Seconds of the first `steps` training steps, profiled and run in this thread. Training stops after them."""
    iterate, left, start = strategy._before_training_iteration, steps, 0.0

    class Enough(Exception):
        pass

    def count(**kwargs: Any) -> None:
        nonlocal left, start
        if left == steps:
            profile.start()
            start = time.perf_counter()
        if left == 0:
            raise Enough
        left -= 1
        iterate(**kwargs)

    strategy._before_training_iteration = count
    with suppress(Enough):
        forever(strategy).train(experience, eval_streams=[])
    strategy._before_training_iteration = iterate
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    profile.stop()
    return seconds


class Processes:
    """Several processes, each fine-tuning; a call is one step in all of them at the same time."""

    def __init__(self, bench: Bench, count: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        words = (bench.protocol, bench.data_dir, bench.device.type, bench.precision, dict(bench.overrides), threads)
        self.pipes, self.processes = [], []
        for _ in range(count):
            ours, theirs = context.Pipe()
            self.processes.append(context.Process(target=_serve, args=(theirs, *words), daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.pipes.append(ours)
        self()

    def __call__(self) -> None:
        for pipe in self.pipes:
            pipe.send("step")
        for pipe in self.pipes:
            try:
                pipe.recv()
            except EOFError:
                raise UserError("a process of the measurement was killed (out of memory?)", "use --skip processes") from None

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join()


def _serve(
    pipe: Any, protocol: str, data_dir: Path | None, device: str, precision: str, overrides: dict[str, Any], threads: int
) -> None:
    bench = Bench(
        protocol=protocol,
        data_dir=data_dir,
        device=configure_process(device, precision, threads),
        precision=precision,
        overrides={**overrides, "tasks": 1},
    )
    step = bench.ours("finetune")
    try:
        while pipe.recv():
            step()
            pipe.send("done")
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the training thread would wait for ever


def provenance(bench: Bench, load: tuple[float, ...]) -> str:
    return f"{bench.protocol}, {bench.tier}, {bench.precision}, {circumstances(bench.device, bench.rounds, bench.steps, load)}"


def markdown(frame: pd.DataFrame, below: str) -> str:
    """One table for each section, with the columns that have values in it."""
    formats = {"ratio": "{:.3f}", "lowest": "{:.3f}", "highest": "{:.3f}", "ms": "{:.1f}"}
    formats |= {"gradient error": "{:.1e}", "update error": "{:.1e}"}
    frame = frame.assign(ms=frame["seconds"] * 1e3).rename(columns=lambda name: name.replace("_", " "))
    parts = []
    for section, rows in frame.groupby("section", sort=False):
        names = [name for name in formats if rows[name].notna().any()]
        lines = [f"## {section}\n", f"| {' | '.join(['what', 'relative to', *names])} |", "|---|---|" + "---:|" * len(names)]
        for row in rows.to_dict("records"):
            cells = ["–" if pd.isna(row[name]) else formats[name].format(row[name]) for name in names]
            lines.append(f"| {' | '.join([row['what'], row['relative to'], *cells])} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, f"{below}\n"])


def measure(bench: Bench, output: Path | None = None) -> None:
    """Run the bench, print its tables, and write them, as Markdown and CSV, into the folder `output` if one is given."""
    load = os.getloadavg()
    if load[0] > 0.5:
        bench.say(f"note: other processes are running (load {load[0]:.1f} on {cores()} cores); check the spread over rounds")
    frame = bench.run()
    below = provenance(bench, load)
    bench.say(markdown(frame, below))
    if output:
        write_atomic(output / "bench.md", f"# {(__doc__ or '').splitlines()[0]}\n\n{markdown(frame, below)}")
        write_atomic(output / "bench.csv", frame.assign(provenance=below).to_csv(index=False))
        bench.say(f"tables: {output}")
