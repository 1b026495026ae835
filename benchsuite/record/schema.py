"""The record of one run: its schema, its validation, and how it is written and read.

A record is one JSON file. The accuracy matrix is kept as integer counts of correct answers; every statistic is derived
from it later (`benchsuite.metrics`). A digest over the whole content tells a record that was edited or cut short.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ..files import digest

SCHEMA = 1

PARTS = ("weights", "heads", "masks", "other")

NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f]{1,100}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What identifies a run: two runs of the same job on the same kind of device, with as many threads, give the same numbers.

    settings: every resolved value, of the protocol's recipe and of the method, by field name.
    origins: for each setting that is not the method's or the tier's own default, where its value comes from.
    method_source: SHA-256 of the method's file when it lies outside the installed package, else "".
    data: which images there were, on partial data or image sets without one official form; "" where the protocol says so.
    """

    protocol: str
    tier: str
    method: str
    seed: int
    precision: str
    settings: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    method_source: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        for name in ("protocol", "tier", "method"):  # parts of a path: what a foreign record says must not lead out of a folder
            _check(_is_text(getattr(self, name)), f"{name} must be text")
            _check(NAME.fullmatch(getattr(self, name)), f"{name} {getattr(self, name)!r} cannot name a folder")
        _check(type(self.seed) is int, "seed must be a whole number")
        _check(all(map(_is_text, (self.precision, self.method_source, self.data))), "precision, method_source, data must be text")
        for name in ("settings", "origins"):
            _check(isinstance(getattr(self, name), dict), f"{name} must be a mapping")

    @cached_property
    def config(self) -> str:
        """Twelve hexadecimal digits for everything but the seed: runs that may be averaged share it."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("seed", "origins")}
        return digest({k: v for k, v in parts.items() if (k, v) != ("data", "")})[:12]

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


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run of T tasks.

    job: what was run.
    tasks: T entries {name, dataset, classes, train, test} in the order of learning; train and test are image counts.
    correct: T x T; correct[t][i] is the number of right answers on the test set of task i after learning task t, None
        where it was not measured. R[t][i] = correct[t][i] / tasks[i]["test"].
    stored: for each t the bytes of the exported artifact after task t, {weights, heads, masks, other}; their sum is the
        size of the file; None where no artifact was made.
    macs: multiply-accumulates of one image through the served model, for each task.
    iterations: optimisation steps for each task.
    training_state_bytes: peak over tasks of parameters, gradients, optimiser state and the method's own state.
    activation_bytes: what one training step keeps for the backward pass, at the protocol's batch size: the largest over tasks.
    memory: for each training, of the first step of its last epoch: `held`, unique bytes that autograd keeps for the backward
        pass, parameters and buffers aside; `peak`, the most bytes allocated at any moment beyond those when the step began;
        `formula`, the sum over compressed layers of what is kept of their inputs, or, where none is compressed, over all that
        learn (the "activation memory" of arXiv 2411.06346), and where some are `formula_mean`, the same averaged over all
        steps. Older records have less, or nothing.
    seconds: {"train": [...], "evaluate": [...]}, wall clock for each task.
    data: one entry {name, digest, complete, note} per image set; `note` says what is partial or substituted.
    environment: device, device_name, threads, versions, source revision, date, and, absent in older records, `instructions`, the
        processor's vector instructions, `native_bf16`, whether it computes in bf16, and `code`, digests of the source of its
        method and protocol (`benchsuite.source`).
    diagnostics: what the method reports of itself (its rank table, other sizes, ...).
    artifact_sha256: of the exported artifact's file.
    """

    job: Job
    tasks: list[dict[str, Any]]
    correct: list[list[int | None]]
    stored: list[dict[str, int] | None]
    macs: list[int]
    iterations: list[int]
    training_state_bytes: int
    activation_bytes: int
    seconds: dict[str, list[float]]
    data: list[dict[str, Any]]
    environment: dict[str, Any]
    diagnostics: dict[str, Any] = field(default_factory=dict)
    artifact_sha256: str = ""
    memory: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for what no finished run can have."""
        _check(isinstance(self.job, Job), "job must be a Job")
        for task in _rows("tasks", self.tasks):
            _check(_is_text(task.get("name")) and _is_text(task.get("dataset", "")), "every task must have a name and a dataset")
            _counts("train and test images of a task", [task.get("train", 1), task.get("test")], least=1)
        n = len(self.tasks)
        tests = [task["test"] for task in self.tasks]
        shaped = isinstance(self.correct, list) and all(isinstance(row, list) for row in self.correct)
        if not shaped or n == 0 or len(self.correct) != n or any(len(row) != n for row in self.correct) or len(self.stored) != n:
            raise ValueError("accuracy matrix and stored bytes must have one row for each task")
        for row in self.correct:
            _counts("correct answers", [c for c in row if c is not None])
            if any(map(operator.gt, [c or 0 for c in row], tests)):
                raise ValueError("a count of correct answers lies outside 0..test images")
        _check(None not in self.correct[-1], "every task must have been tested after the last one")
        for sizes in self.stored:
            if sizes is not None:
                _check(
                    isinstance(sizes, dict) and set(sizes) == set(PARTS), f"stored bytes must be split into {', '.join(PARTS)}"
                )
                _counts("stored bytes", sizes.values())
        _check(self.stored[-1] is not None, "a finished run has stored bytes after its last task")
        _counts("macs", self.macs)
        _check(len(self.macs) == n, "macs must be there for each task")
        _counts("iterations", self.iterations)
        _check(sum(self.iterations) > 0, "a finished run has made steps")
        _counts("training_state_bytes and activation_bytes", [self.training_state_bytes, self.activation_bytes])
        _check(
            isinstance(self.seconds, dict) and {"train", "evaluate"} <= set(self.seconds), "seconds must have train and evaluate"
        )
        _check(isinstance(self.memory, dict), "memory must be a mapping")
        trainings = {len(self.iterations)}
        for name, times in self.seconds.items():
            holds = isinstance(times, list) and all(type(v) in (int, float) and 0 <= v < math.inf for v in times)
            _check(holds, f"seconds of {name} must be finite and not negative")
            trainings.add(len(times))
        for name, values in self.memory.items():
            _counts(f"memory {name}", values)
            trainings.add(len(values))
        _check(
            trainings in ({1}, {n}), "iterations, seconds and memory must have one entry for each training: one a task, or one"
        )
        for entry in _rows("data", self.data):
            _check(all(_is_text(entry.get(name)) for name in ("name", "digest", "note")), "data must have name, digest and note")
            _check(type(entry.get("complete")) is bool, "data must say whether it is complete")
        for name, content in (("environment", self.environment), ("diagnostics", self.diagnostics)):
            _check(isinstance(content, dict), f"{name} must be a mapping")
        for name in ("versions", "source"):
            _check(isinstance(self.environment.get(name, {}), dict), f"{name} of the environment must be a mapping")
        _check(_is_text(self.environment.get("instructions", "")), "instructions of the environment must be text")
        code = self.environment.get("code", {})
        holds = isinstance(code, dict) and all(map(_is_text, code.values()))
        _check(holds, "code of the environment must be a mapping to digests")
        _counts("threads", [self.environment.get("threads", 1)], least=1)
        _counts("diagnostics", [self.diagnostics[name] for name in ("dense_macs", "memory_bytes") if name in self.diagnostics])
        _check(isinstance(self.diagnostics.get("other_sizes", {}), dict), "other_sizes must be a mapping")
        _counts("other_sizes", self.diagnostics.get("other_sizes", {}).values())
        remarks = self.diagnostics.get("remarks", [])
        _check(isinstance(remarks, list) and all(map(_is_text, remarks)), "remarks must be texts")
        sha = self.artifact_sha256
        _check(_is_text(sha) and re.fullmatch("([0-9a-f]{64})?", sha), "artifact_sha256 must be 64 hexadecimal digits, or empty")

    @property
    def stored_bytes(self) -> int:
        """Size in bytes of the artifact that serves every task."""
        last = self.stored[-1]
        assert last is not None, "a finished run has an artifact"
        return sum(last.values())

    @cached_property
    def task_names(self) -> list[str]:
        """The tasks in an order of their own: seeds shuffle them. With `tasks` set each seed takes the first of its own order."""
        if self.job.settings.get("tasks") is not None:
            return [f"{len(self.tasks)} tasks"]
        return sorted(f"{task.get('dataset', '')} {task['name']}" for task in self.tasks)

    @cached_property
    def sample(self) -> str:
        """A digest of the tasks and images, equal for runs that may be averaged."""
        return _sample(tuple(self.task_names), tuple(sorted((entry["name"], entry["digest"]) for entry in self.data)))


@lru_cache
def _sample(tasks: tuple[str, ...], images: tuple[tuple[str, str], ...]) -> str:
    return digest([tasks, images])  # thousands of records have the same ones


def _check(holds: Any, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _rows(name: str, values: Any) -> list[dict[str, Any]]:
    _check(isinstance(values, list) and all(isinstance(value, dict) for value in values), f"{name} must be a list of mappings")
    return list(values)


def _counts(name: str, values: Iterable[Any], least: int = 0) -> None:
    found = list(values)  # at once: value by value this takes a good part of the reading of thousands of records
    if found and not (set(map(type, found)) == {int} and least <= min(found) and max(found) < 2**63):
        raise ValueError(f"{name} must be whole numbers from {least} on")


def differences(a: RunRecord, b: RunRecord) -> list[str]:
    """The fields in which two records differ, of those that a run determines: all but wall time, allocations, date and
    environment."""
    determined = [f.name for f in fields(RunRecord) if f.name not in ("seconds", "memory", "environment")]
    return [name for name in determined if getattr(a, name) != getattr(b, name)]


def same_numbers(a: RunRecord, b: RunRecord) -> bool:
    """Whether two records agree in everything that a run determines."""
    return not differences(a, b)
