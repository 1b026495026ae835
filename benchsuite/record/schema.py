"""The record of one run: its fields, their types, and what must hold between them.

A record is one JSON file (`store`). The accuracy matrix is kept as counts of correct answers; every statistic is computed from
these (`metrics`). Types, ranges and unknown keys are checked when a record is read or converted (`msgspec.convert`).
"""

from __future__ import annotations

import operator
import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from ..files import digest
from . import metrics

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SCHEMA = 2

MB = 1e6

NAME = re.compile(r"(?!\.)[^/\\]{1,100}")
LONGEST = 200  # bytes of a name: file systems take 255, some 143 characters
LONGEST_LABEL = 60  # characters of what tables and figures call a method, and of its family

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # sums of them still fit into 64 bits
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Images = Annotated[int, msgspec.Meta(ge=1, le=10**9)]  # of a task
Duration = Annotated[float, msgspec.Meta(ge=0, le=1e10)]  # seconds: three centuries, so that sums are finite
Components = Annotated[list[Count], msgspec.Meta(min_length=1, max_length=2)]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything in a record."""


def check_folder_name(name: str, text: str) -> None:
    """Raises ValueError for a text that cannot name a folder. name: what it is."""
    if not (NAME.fullmatch(text) and text.isprintable() and len(text.encode()) <= LONGEST):
        raise ValueError(f"{name} {text!r:.120} cannot name a folder")


def fits(text: str) -> bool:
    """Whether a method's label or family can be shown."""
    return 0 < len(text) <= LONGEST_LABEL and text.isprintable()


class Job(Part, frozen=True, dict=True):
    """What identifies a run. Two runs of the same job on the same kind of device, with as many threads, give the same numbers.

    settings: every resolved value, of the protocol's recipe and of the method, by field name.
    origins: where the value of a setting comes from, unless it is the default of the method or the tier.
    method_source: digest of the method's source if it is not built in (`benchsuite.source.identity`), else "".
    data: digest of the images, where the protocol's name does not determine them (partial data, sets without one official form).
    """

    protocol: str
    tier: str
    method: str
    seed: int
    precision: str
    settings: dict[str, Any]
    origins: dict[str, str] = {}
    method_source: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        for name in ("protocol", "tier", "method"):  # parts of a path: a foreign record must not lead out of a folder
            check_folder_name(name, getattr(self, name))

    @cached_property
    def config(self) -> str:
        """Twelve hexadecimal digits for everything but the seed: runs that may be averaged share it."""
        names = ("protocol", "tier", "method", "precision", "settings", "method_source", *(["data"] if self.data else []))
        return digest({name: getattr(self, name) for name in names})[:12]

    @property
    def base(self) -> str:
        """The method without its modifier."""
        return self.method.partition("+")[0]

    @property
    def folder(self) -> Path:
        """Where this job keeps its files, below the results folder."""
        return Path(self.protocol, self.tier, self.method, f"{self.config}-seed{self.seed}")

    def __str__(self) -> str:
        return f"{self.protocol}/{self.tier} {self.method} seed {self.seed}"


class LearntTask(Part, frozen=True):
    """One task of a run. classes: labels in the image set. train, test: numbers of images."""

    name: str
    dataset: str
    classes: list[Count]
    train: Images
    test: Images


class Sizes(Part, frozen=True):
    """Bytes of an exported artifact by what they hold. other: file header, and whatever else is stored."""

    weights: Count
    heads: Count
    masks: Count
    other: Count

    @property
    def total(self) -> int:
        """Size of the file."""
        return self.weights + self.heads + self.masks + self.other


PARTS = Sizes.__struct_fields__
BITS = {"fp16": 16, "int8": 8, "int6": 6, "int4": 4}  # of a number, in the storage forms that round it
FORMS = ("fp32", *BITS)
NATIVE = ("native",)  # the one form of a method that stores codes itself


class Form(Part, frozen=True):
    """The final network as served from a file in one storage form (`benchsuite.method.forms`).

    sizes: bytes of that file. correct: right answers on the test set of each task. changed: test images of all tasks whose
    predicted class is another one than from the first form's file.
    """

    sizes: Sizes
    correct: list[Count]
    changed: Count = 0


class UsedData(Part, frozen=True):
    """One image set. digest: SHA-256 of its arrays. note: what is partial or substituted. own: declared outside of benchsuite, so
    that it is never taken for a published one."""

    name: str
    digest: str
    complete: bool
    note: str
    own: bool = False


class Source(Part, frozen=True):
    """A git revision of this package, "" outside a checkout. dirty: the code differed from it."""

    revision: str
    dirty: bool

    @property
    def short(self) -> str:
        return self.revision[:7] or "unknown"

    def __str__(self) -> str:
        return f"{self.short}{' with uncommitted changes' if self.dirty else ''}"


class Environment(Part, frozen=True):
    """Where, when and by which versions a run was made.

    earlier_sources: revisions that trained earlier tasks, where a run was resumed by another one.
    instructions: the processor's vector instructions, which decide how sums are rounded; None in records of earlier versions.
    native_bf16: whether the device computes in bf16; None in records of earlier versions.
    """

    device: str
    device_name: str
    threads: Positive
    versions: dict[str, str]
    source: Source
    date: str
    earlier_sources: list[Source] = []
    instructions: str | None = None
    native_bf16: bool | None = None

    @property
    def hardware(self) -> str:
        return f"{self.device} ({self.device_name})"

    @property
    def machine(self) -> str:
        return f"{self.hardware}, {self.threads} thread{'s' * (self.threads != 1)}"


class Seconds(Part, frozen=True):
    """Wall clock of each training, and of each evaluation of all tasks so far."""

    train: list[Duration]
    evaluate: list[Duration]


class Memory(Part, frozen=True):
    """Bytes that one training step needs: for each training the larger of two measurements, in the first step of its second and
    of its last epoch, since a method may prune in between; empty: not measured.

    held: unique bytes that autograd keeps for the backward pass, parameters and buffers aside.
    peak: the most bytes of tensors alive at any moment beyond those when the step began (`training.accounting.Allocated`).
    formula: the sum over compressed layers of what is kept of their inputs or, where none is compressed, over all layers that
        learn (the "activation memory" of arXiv 2411.06346).
    formula_mean: the same averaged over all steps, where layers are compressed.
    """

    held: list[Count] = []
    peak: list[Count] = []
    formula: list[Count] = []
    formula_mean: list[Count] = []


class Diagnostics(Part, frozen=True):
    """What a method reports of itself (`Method.diagnostics`).

    ranks: for each layer, the components that are stored after each task, cumulative; two numbers where output and input
        channels have ranks of their own.
    other_sizes: bytes of the artifact by other ways of counting, in words that follow "MB as"; shown as notes under a board.
    remarks: sentences that are shown as notes under a board.
    extra: anything else, as plain JSON.
    """

    ranks: dict[str, list[Components]] = {}
    other_sizes: dict[str, Count] = {}
    remarks: list[str] = []
    extra: dict[str, Any] = {}


class RunRecord(Part, frozen=True, dict=True):
    """One finished run of T tasks, in n trainings: n = T, or n = 1 for joint training.

    job: what was run.
    tasks: in the order of learning.
    correct: T x T; correct[t][i] is the number of correct answers on the test set of task i after learning task t, None where
        it was not measured.
    stored: for each t the size of the exported artifact after task t; None where there was no artifact.
    macs: multiply-accumulates of one image through the served model, for each task.
    iterations: optimisation steps of each training.
    kept_epochs: under lr_schedule=patience, the epoch, from 1, whose state each training ended with; [] under another.
    training_state_bytes: the most bytes, over trainings, that live between two steps (`training.accounting.training_state`).
    activation_bytes: what one training step keeps for the backward pass, the largest over trainings.
    dense_macs: multiply-accumulates of one image through the plain backbone; None in records of earlier versions.
    memory_bytes: bytes of training images that the method stores.
    carried_bytes: what a new process needs to learn the next task and keep the earlier ones, the most over the ends of tasks:
        the tensors of the checkpoint, and the stored images. None for joint training, and in records of earlier versions.
    forward_images, backward_images: images that went through a network while tasks were learnt, and those whose gradient was
        computed (`nn.computed.Images`), without the evaluations. None in records of earlier versions.
    n_tasks_read: whether the method asked how many tasks the sequence has.
    size_reference: whether sizes and forward gain of other methods are measured against this run (`Method.size_reference`).
    family, label, marker: what the method says of itself (`Method`); "" in records of earlier versions.
    made_by: digests of the golden entries and sources that the numbers depend on; {} in records of earlier versions.
    artifact_sha256: of the artifact's file; "" in records of earlier versions.
    forms: the same network from each of its method's storage forms, by name: `FORMS` or `NATIVE`, in that order, without those
        that cannot hold its numbers; {} in records of earlier versions.
    """

    job: Job
    tasks: list[LearntTask]
    correct: list[list[Count | None]]
    stored: list[Sizes | None]
    macs: list[Count]
    iterations: list[Count]
    training_state_bytes: Count
    activation_bytes: Count
    seconds: Seconds
    data: list[UsedData]
    environment: Environment
    dense_macs: Count | None = None
    kept_epochs: list[Count] = []
    memory_bytes: Count = 0
    carried_bytes: Count | None = None
    forward_images: Count | None = None
    backward_images: Count | None = None
    n_tasks_read: bool = False
    size_reference: bool = False
    family: str = ""
    label: str = ""
    marker: str = ""
    memory: Memory = Memory()
    diagnostics: Diagnostics = Diagnostics()
    made_by: dict[str, str] = {}
    artifact_sha256: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    forms: dict[str, Form] = {}

    def __post_init__(self) -> None:
        """Raises ValueError for what no finished run can have, beyond what the types say."""
        n, tests = len(self.tasks), [task.test for task in self.tasks]
        _check(n > 0, "a run has at least one task")
        _check(len(self.correct) == len(self.stored) == n, "correct and stored must have one row for each task")
        for row in self.correct:
            _check(len(row) == n, "a row of correct must have one entry for each task")
            _check(not any(map(operator.gt, [c or 0 for c in row], tests)), "more correct answers than test images")
        _check(None not in self.correct[-1], "every task must have been tested after the last one")
        _check(self.stored[-1] is not None, "a finished run has stored bytes after its last task")
        _check(all(not text or fits(text) for text in (self.family, self.label, self.marker)), "no label, family or marker")
        _check(len(self.macs) == n, "macs must have one entry for each task")
        _check(sum(self.iterations) > 0, "a finished run has made steps")
        measured = [getattr(self.memory, name) for name in Memory.__struct_fields__]
        lists = [self.iterations, self.seconds.train, self.seconds.evaluate, *filter(None, [*measured, self.kept_epochs])]
        _check({*map(len, lists)} in ({1}, {n}), "iterations, seconds and memory must have one entry for each training")
        for layer, ranks in self.diagnostics.ranks.items():
            same = len(ranks) == n and len({*map(len, ranks)}) == 1
            _check(same, f"ranks of {layer} must have one entry for each task, all of one length")
        names = list(self.forms)
        _check(names == [name for name in (*NATIVE, *FORMS) if name in names], "storage forms must be known ones, in their order")
        for name, form in self.forms.items():
            whole = len(form.correct) == n and not any(map(operator.gt, form.correct, tests))
            _check(whole, f"form {name} must have correct answers for each task, no more than test images")
            _check(form.changed <= sum(tests), f"form {name} cannot change more predictions than there are test images")
        own = not names or (names[0] in (FORMS[0], *NATIVE) and not self.forms[names[0]].changed)
        _check(own, "the first storage form must be the artifact's own")

    @property
    def stored_bytes(self) -> int:
        """Size in bytes of the artifact that serves every task."""
        return self.final_sizes.total

    @property
    def final_sizes(self) -> Sizes:
        last = self.stored[-1]
        assert last is not None, "a finished run has an artifact"
        return last

    @property
    def megabytes(self) -> float:
        """Size of the artifact that serves every task, in MB (10^6 bytes)."""
        return self.stored_bytes / MB

    @property
    def R(self) -> np.ndarray:
        """The accuracy matrix (T x T, per cent): 100 correct[t][i] / test images of task i, NaN where it was not measured."""
        return metrics.accuracy_matrix(self.correct, [task.test for task in self.tasks])

    def matrix(self) -> pd.DataFrame:
        """The accuracy matrix in per cent with names: one row for each task learnt, one column for each task tested."""
        import pandas as pd

        names = [task.name for task in self.tasks]
        return pd.DataFrame(self.R, pd.Index(names, name="after"), pd.Index(names, name="task"))

    @property
    def accuracy(self) -> float:
        """Final accuracy, mean over tasks, in per cent."""
        return metrics.average_accuracy(self.R)

    @property
    def bwt(self) -> float:
        """Backward transfer in percentage points; NaN where it is not defined."""
        return metrics.backward_transfer(self.R)

    @property
    def forgetting(self) -> float:
        """Forgetting in percentage points; NaN where it is not defined."""
        return metrics.forgetting(self.R)

    @property
    def learning_accuracy(self) -> float:
        """Accuracy on each task right after it was learnt, mean over tasks, in per cent; NaN where it is not defined."""
        return metrics.learning_accuracy(self.R)

    @property
    def anytime_accuracy(self) -> float:
        """Accuracy on the tasks learnt so far, mean over the ends of tasks, in per cent; NaN where it is not defined."""
        return metrics.anytime_accuracy(self.R)

    @cached_property
    def task_names(self) -> list[str]:
        """The tasks in an order of their own: seeds shuffle them. With `tasks` set each seed takes the first of its own order."""
        if self.job.settings.get("tasks") is not None:
            dealt = " of shuffled classes" if self.job.settings.get("class_order") == "shuffled" else ""
            return [f"{len(self.tasks)} tasks{dealt}"]
        return sorted(f"{task.dataset} {task.name}" for task in self.tasks)

    @cached_property
    def sample(self) -> str:
        """A digest of the tasks and images, equal for runs that may be averaged."""
        return _sample(tuple(self.task_names), tuple(sorted((entry.name, entry.digest) for entry in self.data)))


@lru_cache
def _sample(tasks: tuple[str, ...], images: tuple[tuple[str, str], ...]) -> str:
    return digest([tasks, images])  # thousands of records have the same ones


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


NOT_DETERMINED = ("seconds", "memory", "environment", "made_by", "family", "label", "marker")


def differences(a: RunRecord, b: RunRecord) -> list[str]:
    """The fields in which two records differ, of those that a run determines: all but wall clock, allocations, date, environment,
    what the code was and what it calls itself."""
    determined = [name for name in RunRecord.__struct_fields__ if name not in NOT_DETERMINED]
    if not (a.forms and b.forms):  # a record of an earlier version has none
        determined.remove("forms")
    return [name for name in determined if getattr(a, name) != getattr(b, name)]


def same_numbers(a: RunRecord, b: RunRecord) -> bool:
    """Whether two records agree in everything that a run determines."""
    return not differences(a, b)
