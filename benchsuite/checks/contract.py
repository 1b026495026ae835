"""The conformance rules that every method must keep, and the short runs on split-digits that test them.

`benchsuite check` and the tests call the same functions. A rule that holds returns, perhaps with notes; a broken one raises
`Broken` with what was seen and how to fix it. `Unsupported` from a rule means that it does not apply to the method.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import torch
from avalanche.benchmarks.utils.data import AvalancheDataset
from avalanche.core import SupervisedPlugin
from msgspec.structs import asdict
from torch import Tensor

from ..data.sets import load_all
from ..errors import UserError, one_line
from ..fields import convert, field_types, in_words
from ..method import artifact
from ..method.base import Method, plain
from ..method.held import stored_bytes
from ..method.plugged import Plugged
from ..method.registered import methods
from ..nn.conditional import evaluating
from ..nn.images import normalise
from ..nn.normalisation import BatchNormPolicy
from ..protocol import protocols
from ..randomness import GLOBALS, other_globals
from ..record import schema
from ..record.folder import RunFolder
from ..record.schema import Job, RunRecord
from ..training import runner
from ..training.accounting import tensors_in
from ..training.batches import Batches
from ..training.settings import Crashed, Unsupported, method_of, recipe_of, resolve
from ..training.stream import build_stream

PROTOCOL, TIER, T = "split-digits", "smoke", 3

TINY: Mapping[str, Any] = {"tasks": T, "train_per_class": 24, "test_per_class": 20, "epochs": 2, "batch_size": 16}

BATCHNORM: Mapping[str, Any] = {"backbone": "resnet10", "width": 0.1, "epochs": 1, "train_per_class": 16}  # per_task

OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.01},
    "momentum and decay": {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "adamw and decay": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
}

IMAGES = torch.randint(256, (32, 8, 8, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Broken(Exception):
    """A rule is broken: what was seen; how to fix it."""


class Watcher(SupervisedPlugin):
    """After each task: the logits of the fixed images under every task so far, all heads, and what the method holds of its images
    beside `memory_bytes`: bytes in no tensor, and attributes with training images. asleep: the first task with a step after which
    a part of the network is no longer in training mode. own_loader: whether batches came from a loader of the method."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[list[Tensor]] = []
        self.heads: list[dict[str, list[Tensor]]] = []
        self.held: list[tuple[int, dict[str, int], list[str]]] = []
        self.asleep: int | None = None
        self.own_loader = False

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        self.awake = [module for module in strategy.model.modules() if module.training]

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.own_loader |= not isinstance(strategy.dataloader, Batches)
        if self.asleep is None and not all(module.training for module in self.awake):
            self.asleep = strategy.experience.current_experience

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.model, task = strategy.model, protocols.get(PROTOCOL).tasks[0]
        x = normalise(IMAGES, task.mean, task.std)
        with evaluating(self.model):
            self.logits.append([self.model(x, int(t)) for t in sorted(self.model.heads)])
        self.heads.append({t: [p.clone() for p in head.parameters()] for t, head in self.model.heads.items()})
        method, stream = strategy.method, strategy.experience.origin_stream
        if not (method.trains_jointly or isinstance(method, Plugged)):  # a plugin's data sets are counted for it
            own = {name: value for name, value in vars(method).items() if name not in ("run", "model", "guard", "compression")}
            known = set[bytes]().union(*(scaled(one.images.pixels) for one in stream))
            size = math.prod(IMAGES.shape[1:])
            tensors = {name: [t for t in tensors_in(value) if t.numel() and not t.numel() % size] for name, value in own.items()}
            images = [name for name, found in tensors.items() if any(known & scaled(t.reshape(-1, size)) for t in found)]
            untold = {name: stored_bytes(value, stream) + raw_bytes(value, set()) for name, value in own.items()}
            self.held.append((method.memory_bytes, untold, images))

    def drift(self) -> list[tuple[int, int]]:
        """(i, j): the logits of task i after task j differ from those after an earlier task (i or later)."""
        return [
            (t, j)
            for i, now in enumerate(self.logits)
            for j, later in enumerate(self.logits[i:], i)
            for t in range(i + 1)
            if not torch.equal(later[t], now[t])
        ]

    def moved_heads(self) -> list[str]:
        """Heads that changed while another task was learnt."""
        pairs = zip(self.heads, self.heads[1:], strict=False)
        return [t for now, later in pairs for t in now if not all(map(torch.equal, now[t], later[t]))]


def scaled(rows: Tensor) -> set[bytes]:
    """What tells images apart, whatever their scale. rows: one image each."""
    flat = rows.detach().flatten(1).float()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return {row.numpy().tobytes() for row in ((flat - low) / (high - low) * 100).round()[(high > low)[:, 0]].byte()}


def raw_bytes(value: Any, seen: set[int]) -> int:
    """Bytes of NumPy arrays and byte strings in containers and in the attributes of objects, except in networks and data sets."""
    if id(value) in seen or isinstance(value, type | ModuleType | torch.nn.Module | Tensor | AvalancheDataset):
        return 0
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, bytes | bytearray):
        return len(value)
    if isinstance(value, dict):
        return sum(raw_bytes(item, seen) for item in value.values())
    if isinstance(value, list | tuple | set):
        return sum(raw_bytes(item, seen) for item in value)
    return raw_bytes(vars(value), seen) if hasattr(value, "__dict__") else 0


class Evaluations(SupervisedPlugin):
    """Evaluates all tasks seen so far after every epoch."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        protocol, recipe = protocols.get(job.protocol), recipe_of(job.settings)
        self.test = build_stream(protocol, recipe, job.seed, data_dir=None, device=torch.device("cpu")).test
        self.count = 0

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.count += 1
        strategy.eval(self.test[: max(strategy.experience.task_labels) + 1])


class Stop(KeyboardInterrupt):
    """An interruption by `Interrupted`, not by the user."""


class Interrupted(SupervisedPlugin):
    """Stops a run once in the middle of each training."""

    def __init__(self) -> None:
        super().__init__()
        self.at: set[int] = set()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        task = strategy.experience.current_experience
        if strategy.clock.train_exp_iterations == 2 and task not in self.at:
            self.at.add(task)
            raise Stop


def run(job: Job, results: Path, *plugins: SupervisedPlugin, **kwargs: Any) -> RunRecord:
    """`runner.run` on the CPU. Raises Broken if the run fails."""
    try:
        return runner.run(job, results=results, device="cpu", plugins=plugins, **kwargs)
    except runner.RunFailed as error:
        cause = error.__cause__
        assert cause is not None, "RunFailed always has a cause"
        own = [f for f in traceback.extract_tb(cause.__traceback__) if Path(f.filename) == methods.file(job.method)]
        where = f", at line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else ""
        raise Broken(f"the run failed: {one_line(cause)}{where}; fix that first") from error


def run_in_pieces(job: Job, results: Path, plugin: Interrupted, renew: Callable[[], None] = lambda: None) -> None:
    """Interrupt a run in the middle of every training and resume it each time. renew: called before each piece."""
    for _ in range(T + 1):
        try:
            renew()
            run(job, results, plugin)
        except Stop:
            continue
        return
    raise AssertionError("the run never finished")


def as_now(name: str) -> Callable[[], None]:
    """A function that sets the variables of a method's file and of its classes to what they are now, as in a new process."""
    module = sys.modules[methods.get(name).__module__]
    if methods.file(name) is None:
        return lambda: None
    classes = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
    before = [(owner, set(vars(owner)), _variables(owner)) for owner in (module, *classes)]

    def renew() -> None:
        for owner, names, values in before:
            for key in vars(owner).keys() - names:
                delattr(owner, key)
            for key, value in values.items():
                current, value = vars(owner).get(key), copy.deepcopy(value)
                if isinstance(current, dict | set) and isinstance(value, dict | set):  # other modules may hold it
                    current.clear()
                    current.update(value)
                elif isinstance(current, list) and isinstance(value, list):
                    current[:] = value
                else:
                    setattr(owner, key, value)

    return renew


def _variables(owner: Any) -> dict[str, Any]:
    """The tensors, numbers and texts of a module or class, and containers of them."""
    found = {}
    for key, value in vars(owner).items():
        with suppress(TypeError):
            if not key.startswith("__"):
                found[key] = copy.deepcopy(plain(key, value))
    return found


@dataclass
class Finished:
    """A finished run: its record, its exported file, and what its watcher saw."""

    record: RunRecord
    path: Path
    watcher: Watcher


@dataclass
class ShortRuns:
    """Short runs of methods in a folder. settings: the user's, for all runs."""

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    made: dict[Path, Finished] = field(default_factory=dict, init=False)
    renewers: dict[str, Callable[[], None]] = field(default_factory=dict, init=False)  # `as_now` before a method's first run
    answers: dict[Path, list[Tensor] | str] = field(default_factory=dict, init=False)

    def job(self, name: str, seed: int = 1, **settings: Any) -> Job:
        if name not in self.renewers:
            self.renewers[name] = as_now(name)
        return resolve(PROTOCOL, TIER, name, seed, overrides={**TINY, **self.settings, **settings})

    def fresh(self) -> Path:
        """A new results folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def finished(self, name: str, seed: int = 1, **settings: Any) -> Finished:
        """The finished run of this job; each job is run only once."""
        job = self.job(name, seed, **settings)
        if job.folder not in self.made:
            results, watcher = self.fresh(), Watcher()
            record = run(job, results, watcher)
            self.made[job.folder] = Finished(record, RunFolder(results / job.folder).artifact, watcher)
        return self.made[job.folder]

    def served(self, finished: Finished) -> list[Tensor] | str:
        """The logits of the fixed images for each task, computed from the exported file in a process that has nothing but that
        file and the method's, and that cannot train; or why there are none. One process serves all runs made so far."""
        if finished.path not in self.answers:
            waiting = [run for run in self.made.values() if run.path not in self.answers]
            files = {str(path) for run in waiting if (path := methods.file(run.record.job.method))}
            order = {"files": sorted(files), "artifacts": [str(run.path) for run in waiting], "images": IMAGES.tolist()}
            folder = self.fresh()  # not this folder: a source tree would shadow the installed package
            (folder / "order.json").write_text(json.dumps(order))
            done = subprocess.run(
                [sys.executable, "-m", "benchsuite.checks.serve"], cwd=folder, capture_output=True, text=True, check=False
            )
            said = done.stderr.strip().splitlines() or [f"the process ended with code {done.returncode}"]
            answers = torch.load(folder / "answers.pt") if done.returncode == 0 else [said[-1]] * len(waiting)
            self.answers |= {run.path: answer for run, answer in zip(waiting, answers, strict=True)}
        return self.answers[finished.path]


@dataclass(frozen=True, eq=False)
class Rule:
    """words: what must hold. cases: the settings it is tested with. unless: why it does not apply to a method, or None."""

    words: str
    function: Callable[..., list[str] | None]
    cases: tuple[Mapping[str, Any], ...]
    unless: Callable[[type[Method]], str | None]

    def __call__(self, runs: ShortRuns, name: str, **settings: Any) -> list[str]:
        return self.function(runs, name, **settings) or []


RULES: list[Rule] = []


def rule(
    words: str, *cases: Mapping[str, Any], unless: Callable[[type[Method]], str | None] = lambda cls: None
) -> Callable[[Callable[..., list[str] | None]], Rule]:
    def make(function: Callable[..., list[str] | None]) -> Rule:
        RULES.append(Rule(words, function, cases or ({},), unless))
        return RULES[-1]

    return make


def same(a: RunRecord, b: RunRecord, advice: str) -> None:
    if different := schema.differences(a, b):
        raise Broken(f"the records differ in {', '.join(different)}; {advice}")


@rule(f"a run of {T} tasks finishes and leaves a record", {}, BATCHNORM)
def finishes(runs: ShortRuns, name: str, **settings: Any) -> None:
    tasks = len(runs.finished(name, **settings).watcher.logits[-1])
    if tasks != T:
        raise Broken(f"the final network has heads for {tasks} of {T} tasks; let MultiHead make the heads, one for each task")


@rule("the artifact, loaded in a new process, gives the predictions of the live model for every task", {}, BATCHNORM)
def artifact_alone(runs: ShortRuns, name: str, **settings: Any) -> None:
    finished = runs.finished(name, **settings)
    advice = (
        "artifact() must hold everything that prediction needs, restore() must build the network from it alone, and code for "
        "training (benchsuite.training.strategy, .runner, .stream) must be imported inside the hook that uses it"
    )
    served = runs.served(finished)
    if isinstance(served, str):
        raise Broken(f"the artifact cannot be served: {served}; {advice}")
    for t, (alone, live) in enumerate(zip(served, finished.watcher.logits[-1], strict=True)):
        # a served network may sum in another order; the rounding error scales with the largest logit
        if alone.shape != live.shape or (alone - live).abs().max() > 1e-5 * max(1.0, float(live.abs().max())):
            raise Broken(f"the artifact gives other logits for task {t + 1}; {advice}")
        if not torch.equal(alone.argmax(1), live.argmax(1)):
            raise Broken(f"the artifact predicts other classes for task {t + 1}; {advice}")


@rule("the size on record is the size of the file, and no part of it shrinks from task to task")
def size(runs: ShortRuns, name: str, **settings: Any) -> None:
    finished = runs.finished(name, **settings)
    stored = [parts for parts in finished.record.stored if parts is not None]
    on_disk, on_record = finished.path.stat().st_size, finished.record.stored_bytes
    if on_disk != on_record or artifact.Artifact.read(finished.path).sizes() != asdict(stored[-1]):
        raise Broken(f"{on_record} bytes on record, {on_disk} in the file; artifact() must return the same content each time")
    for part in schema.PARTS:
        sizes = [getattr(parts, part) for parts in stored]
        if sizes != sorted(sizes):
            words = " to ".join(map(str, sizes))
            raise Broken(f"the {part} went from {words} bytes; artifact() must keep serving every task so far")


@rule(
    "a storage form rounds each number by at most half a step, takes the bytes of its formula, and no more than the form before"
)
def storage_forms(runs: ShortRuns, name: str, **settings: Any) -> None:
    finished, cls = runs.finished(name, **settings), methods.get(name)
    record, whole, before = finished.record, artifact.Artifact.read(finished.path), sys.maxsize
    if list(record.forms) != list(cls.forms):
        said = "; ".join(record.diagnostics.remarks)
        raise Broken(f"it was not stored in {', '.join(form for form in cls.forms if form not in record.forms)}: {said}")
    first = record.forms[cls.forms[0]]
    if first.sizes != record.final_sizes or first.correct != record.correct[-1]:
        raise Broken("the exported file has another size or other answers than the run; artifact() must hold the final network")
    for form in cls.forms:
        encoded = whole.encoded(form, cls.unit_axes)
        content = encoded.to_bytes()
        read = artifact.Artifact.from_bytes(content)
        if read.header != whole.header or read.tensors.keys() != whole.tensors.keys():
            raise Broken(f"the {form} file does not give back the names of its tensors and its header")
        if asdict(record.forms[form].sizes) != encoded.sizes():
            raise Broken(f"{form} has {len(content)} bytes, its record says {record.forms[form].sizes.total}")
        for key, tensor in whole.tensors.items():
            bound, size = stored_within(tensor, form, key, cls.unit_axes)
            if ((read.tensors[key] - tensor).abs() > bound).any() or read.tensors[key].shape != tensor.shape:
                raise Broken(f"in {form}, {key} is off by more than half a step; {UNITS}")
            there = next(t for stored, t in encoded.tensors.items() if stored.partition(":")[0] == key)
            if there.numel() * there.element_size() != size:
                raise Broken(f"in {form}, {key} takes {there.numel() * there.element_size()} bytes instead of {size}; {UNITS}")
        if len(content) > before:
            raise Broken(f"{form} has {len(content)} bytes, the form before {before}; {UNITS}")
        before = len(content)


UNITS = "unit_axes must name the dimensions of the units of each stored tensor, where they are not dimension 0"


def stored_within(tensor: Tensor, form: str, name: str, axes: Mapping[str, Any]) -> tuple[Tensor, int]:
    """How far each number of a tensor may be off in a storage form, and the bytes that it takes: by the formulas of
    `benchsuite.method.forms`, but slice by slice, as a reference for its code."""
    exact = torch.zeros(tensor.shape)
    if form not in schema.BITS or not tensor.is_floating_point():
        return exact, tensor.numel() * tensor.element_size()
    own = axes.get(name.rpartition("/")[2].rpartition(".")[2], 0)
    own = [own] if isinstance(own, int) else list(own)
    units = [tensor.shape[axis] for axis in own] if tensor.dim() > 1 else [tensor.numel()]
    bits = schema.BITS[form]
    if bits == 16 or tensor.numel() <= math.prod(units):
        return tensor.abs() * 2.0**-11 + 2.0**-25, 2 * tensor.numel()
    scales = 0
    for unit in itertools.product(*map(range, units)):
        where = [slice(None)] * tensor.dim()
        for axis, position in zip(own, unit, strict=True):
            where[axis] = slice(position, position + 1)
        numbers, allowed = tensor[tuple(where)].flatten(), []
        for group in numbers.split(64 if bits == 4 else len(numbers)):
            scales += 1
            largest = float(group.abs().max())
            step = (largest * (1 + 2.0**-10) + 2.0**-24 * (largest > 0)) / (2 ** (bits - 1) - 1)
            allowed.append(torch.full_like(group, step / 2 * (1 + 1e-5), dtype=exact.dtype))
        exact[tuple(where)] = torch.cat(allowed).view(exact[tuple(where)].shape)
    return exact, 2 * scales + math.ceil(tensor.numel() * bits / 8)


@rule("evaluation during training changes nothing", {}, BATCHNORM)
def evaluation(runs: ShortRuns, name: str, **settings: Any) -> None:
    job = runs.job(name, **settings)
    evaluations = Evaluations(job)
    record = run(job, runs.fresh(), evaluations)
    epochs = len(record.iterations) * recipe_of(job.settings).epochs
    if evaluations.count != epochs:
        raise Broken(f"it trained for {evaluations.count} epochs, but the recipe has {epochs}; keep to the recipe's schedule")
    advice = "evaluation hooks (before_eval, after_eval_forward, ...) must change neither the network nor the method"
    same(record, runs.finished(name, **settings).record, advice)


@rule("a run that is interrupted and resumed in every task gives the same record", {}, {"reset_optimizer": False})
def resumed(runs: ShortRuns, name: str, **settings: Any) -> None:
    job, whole = runs.job(name, **settings), runs.finished(name, **settings).record
    results, stops = runs.fresh(), Interrupted()
    advice = (
        "keep what later tasks need in attributes that after_training_exp sets, not in variables of the module or class, and in "
        "state() and load_state() if you override them; make what a single task needs when that task begins"
    )
    try:
        run_in_pieces(job, results, stops, runs.renewers[name])
    except Broken as error:
        raise Broken(f"interrupted and resumed, {error}; {advice}") from error
    if len(stops.at) != len(whole.iterations):
        raise Broken(f"it trained {len(stops.at)} times instead of {len(whole.iterations)}; {advice}")
    same(RunFolder(results / job.folder).read(), whole, advice)


TEST, LATER = "the test images", "the tasks that follow"

SOURCES = {  # what must not decide a result, and how to do without
    **{f"{whose} global random generator": "draw with generator=self.generator(...) instead" for whose in GLOBALS},
    TEST: "hooks of an evaluation (before_eval to after_eval) must keep nothing of what they see",
    LATER: "learn from strategy.experience alone, and ask self.n_tasks for the number of tasks",
}


@rule("the seed and the training images of the tasks so far alone decide what is learnt")
def same_seed(runs: ShortRuns, name: str, **settings: Any) -> None:
    cls = methods.get(name)
    changed = [*SOURCES][len(GLOBALS) * issubclass(cls, Plugged) :]  # a plugin may use global generators: each task seeds them
    changed = changed[: -1 if cls.trains_jointly else None]
    if runs.finished(name, **settings).watcher.own_loader:  # PyTorch shuffles with it
        changed = [source for source in changed if not source.startswith("PyTorch's")]
    if not differs(runs, name, changed, **settings):
        return
    if differs(runs, name, (), **settings):
        raise Broken(
            "two runs with the same seed end in different networks; take nothing from the clock, from the system or from a "
            "variable of the module or the class, and draw with generator=self.generator(...)"
        )
    for source in changed:
        if differs(runs, name, [source], **settings):
            raise Broken(f"what it learns depends on {source}; {SOURCES[source]}")
    raise Broken(f"what it learns depends on {', '.join(changed[:-1])} or {changed[-1]}")


def differs(runs: ShortRuns, name: str, changed: Collection[str], **settings: Any) -> bool:
    """Whether a run with other test images, fewer tasks or other seeds of the global generators learns anything else."""
    known, watcher = runs.finished(name, **settings).watcher.logits, Watcher()
    job = runs.job(name, **settings, **({"tasks": T - 1} if LATER in changed else {}))
    images = load_all(protocols.get(PROTOCOL).sets)
    if TEST in changed:
        images = {key: replace(one, test_x=255 - one.test_x) for key, one in images.items() if one}
    with other_globals(whose for whose in GLOBALS if f"{whose} global random generator" in changed):
        try:
            run(job, runs.fresh(), watcher, images=images)
        except Broken:  # it does not even run without them
            if not changed:
                raise
            return True
    return not all(
        torch.equal(a, b) for now, then in zip(watcher.logits, known, strict=False) for a, b in zip(now, then, strict=True)
    )


@rule(
    "what is stored of the images counts, and counts once",
    unless=lambda cls: (
        "a plugin's data sets are counted for it"
        if issubclass(cls, Plugged)
        else "all tasks are trained at once (trains_jointly)"
        if cls.trains_jointly
        else None
    ),
)
def counted(runs: ShortRuns, name: str, **settings: Any) -> None:
    for declared, untold, images in runs.finished(name, **settings).watcher.held:
        largest = max(untold, key=lambda attribute: untold[attribute], default="")
        if (total := sum(untold.values())) > max(declared, SMALL):
            raise Broken(
                f"self.{largest} holds what is not counted ({total} bytes in data sets or arrays, memory_bytes is {declared}); "
                "keep it as tensors in attributes, which are counted, or add its bytes to self.memory_bytes"
            )
        if images and declared > total:
            raise Broken(
                f"the training images in self.{images[0]} count twice; tensors in attributes are counted as they are: leave "
                f"them out of self.memory_bytes ({declared})"
            )


SMALL = 1024  # bytes: notes, and no images


@rule("the network stays in training mode while it is trained", {}, BATCHNORM)
def awake(runs: ShortRuns, name: str, **settings: Any) -> None:
    if (task := runs.finished(name, **settings).watcher.asleep) is not None:
        raise Broken(
            f"after a step of task {task + 1} parts of the network are in eval mode, without dropout and batch statistics; "
            "compute in `with evaluating(self.model):` (benchsuite.nn.conditional), which switches back"
        )


@rule("different seeds give different weights")
def other_seed(runs: ShortRuns, name: str, **settings: Any) -> None:
    finished = [runs.finished(name, seed, **settings) for seed in (1, 2)]
    one, other = (artifact.Artifact.read(run.path).tensors for run in finished)
    if one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one):
        raise Broken("seeds 1 and 2 end in the same weights; keep what is learnt, and draw with generator=self.generator(...)")


@rule(
    "the heads of other tasks stay bit-identical",
    *({**OPTIMIZERS[kind], "epochs": 1, "reset_optimizer": False} for kind in ("momentum and decay", "adamw and decay")),
    unless=lambda cls: (
        "all tasks are trained at once (trains_jointly)"
        if cls.trains_jointly
        else "heads of earlier tasks are trained further by design (trains_old_heads)"
        if cls.trains_old_heads
        else None
    ),
)
def heads(runs: ShortRuns, name: str, **settings: Any) -> None:
    watcher = runs.finished(name, **settings).watcher
    advice = (
        "leave heads out of penalties (a weight with a zero gradient may still move), or set trains_old_heads = True by design"
    )
    if moved := watcher.moved_heads():
        raise Broken(f"the head of task {int(moved[0]) + 1} changed while another task was learnt; {advice}")
    if watcher.heads[0].keys() != {"0"}:
        raise Broken("a head exists before its task begins; let MultiHead make the heads")


@rule(
    "the logits of old tasks stay bit-identical after every later task",
    *({**o, "epochs": 1, "reset_optimizer": reset} for o in OPTIMIZERS.values() for reset in (True, False)),
    BATCHNORM,
    {**BATCHNORM, "batchnorm": "shared"},  # methods that share weights refuse it
    unless=lambda cls: (
        'it does not claim this (forgetting = "none")'
        if cls.forgetting != "none"
        else "all tasks are trained at once (trains_jointly)"
        if cls.trains_jointly
        else None
    ),
)
def lasting(runs: ShortRuns, name: str, **settings: Any) -> None:
    watcher = runs.finished(name, **settings).watcher
    if [len(row) for row in watcher.logits] != list(range(1, T + 1)):
        raise Broken("the network does not gain one head with each task; let MultiHead make the heads")
    if drift := watcher.drift():
        old, later = drift[0]
        raise Broken(
            f"the logits of task {old + 1} changed while task {later + 1} was learnt; use self.guard.freeze(name, where): "
            "a zero gradient does not stop momentum, weight decay or Adam"
        )


WRONG: list[tuple[str, Any]] = [("no_such_field", "1"), ("lr", "fast"), ("lr", "nan"), ("lr", -1.0), ("dropout", 1.0)]

WRONG += [("batch_size", 0), ("optimizer", "adem"), ("reset_optimizer", "perhaps"), ("epochs", 1.5), ("tasks", 6)]

WRONG += [("backbone", "vgg"), ("milestones", "3,2")]


def wrong_values(cls: type[Method]) -> list[tuple[str, Any]]:
    """Invalid settings for a method: those of the recipe, and "?" for each of its own fields that is not a string."""
    return WRONG + [(name, "?") for name, kind in field_types(cls).items() if kind is not str and str not in get_args(kind)]


def refused(runs: ShortRuns, name: str, setting: str, value: Any, *, must_be: bool = True) -> None:
    """An invalid value is refused in one line that names its field, when the run is resolved and before any data is loaded.
    must_be: False if the method may also accept the value."""
    try:
        runs.job(name, **{setting: value})
    except Crashed as error:
        advice = f"give {setting!r} bounds, such as setting(1.0, above=0), or raise a ValueError that names it in __post_init__"
        raise Broken(f"{setting}={value!r} raises {one_line(error.cause)}; {advice}") from None
    except UserError as error:
        named = setting in str(error) and "\n" not in str(error)
        if not named and not (isinstance(error, Unsupported) and not must_be):
            raise Broken(
                f"{setting}={value!r} is refused, but its name is not given ({one_line(error)}); name the field"
            ) from None
    else:
        if must_be:
            raise Broken(f"{setting}={value!r} is accepted; give the field a type, such as float or Literal")


@rule("invalid values are refused by name before data is loaded")
def settings_checked(runs: ShortRuns, name: str) -> None:
    cls = methods.get(name)
    for setting, value in wrong_values(cls):
        refused(runs, name, setting, value)
    for setting, kind in field_types(cls).items():
        for value in (0, -1):  # only the method knows whether these are valid
            try:
                convert(setting, value, kind)
            except UserError:
                continue
            refused(runs, name, setting, value, must_be=False)


@rule("recipes that it does not support are refused with a reason")
def says_why(runs: ShortRuns, name: str) -> list[str]:
    settings, notes = runs.job(name).settings, []
    for change in ({}, *({"backbone": "resnet18", "batchnorm": policy} for policy in get_args(BatchNormPolicy))):
        reason = method_of(name, settings).unsupported_reason(replace(recipe_of(settings), **change))
        if reason is not None and not (isinstance(reason, str) and reason and "\n" not in reason):
            raise Broken(f"unsupported_reason() returned {reason!r}; return the reason in one line, or None if it can run")
        if reason is not None:
            notes.append(f"not with {in_words(change)}: {reason}")
    return notes


@dataclass(frozen=True)
class Outcome:
    """The result of a rule. holds: None if it does not apply. notes: what was seen and how to fix it, or why not."""

    rule: Rule
    holds: bool | None
    notes: list[str]


def check(runs: ShortRuns, name: str) -> Iterator[Outcome]:
    """Test every rule on one method. A method that cannot finish a run is not tested any further."""
    for rule in RULES:
        outcome = judge(rule, runs, name)
        yield outcome
        if rule is finishes and not outcome.holds:
            return


def judge(rule: Rule, runs: ShortRuns, name: str) -> Outcome:
    """Test one rule in all its cases, except those that the method does not support."""
    if reason := rule.unless(methods.get(name)):
        return Outcome(rule, None, [reason])
    broken: dict[str, list[str]] = {}
    unsupported: list[str] = []
    notes: list[str] = []
    for case in rule.cases:
        try:
            notes += rule(runs, name, **case)
        except Unsupported as error:
            unsupported.append(str(error))
        except Broken as error:
            broken.setdefault(str(error), []).append(in_words(case))
        except Exception as error:  # raised by the method's own code outside a run
            broken.setdefault(f"it raises {one_line(error)}", []).append(in_words(case))
    if broken:
        return Outcome(rule, False, [what + where(cases) for what, cases in broken.items()])
    return Outcome(rule, None, unsupported) if len(unsupported) == len(rule.cases) else Outcome(rule, True, notes)


def where(cases: list[str]) -> str:
    """The end of a line: the settings with which it was seen."""
    first = next((case for case in cases if case), "")
    hint = "; or let unsupported_reason(self, recipe) say why it cannot learn with batch normalisation"
    normalised = all(case.startswith("backbone=") for case in cases)
    return (
        hint * normalised + (f" (with {first}" + (f", and {len(cases) - 1} more)" if len(cases) > 1 else ")"))
        if first and all(cases)
        else ""
    )
