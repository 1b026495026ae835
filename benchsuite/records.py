"""The record of one run: its schema, its validation, and how it is written and read.

A record is one JSON file. The accuracy matrix is kept as integer counts of correct answers; every statistic is derived
from it later (`benchsuite.metrics`). A digest over the whole content tells a record that was edited or cut short.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import UserError

SCHEMA = 1
ELSEWHERE = "choose a folder that can be written (--results, --output or --data-dir; BENCHSUITE_CACHE for the cache)"
PARTS = ("weights", "heads", "masks", "other")


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

    @cached_property
    def config(self) -> str:
        """Twelve hexadecimal digits for everything but the seed: runs that may be averaged share it."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("seed", "origins")}
        return digest({k: v for k, v in parts.items() if (k, v) != ("data", "")})[:12]

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
        under a modifier also `formula`, the sum over compressed layers of what is kept of their inputs (the "activation memory"
        of arXiv 2411.06346), and `formula_mean`, the same averaged over all steps. Empty in older records.
    seconds: {"train": [...], "evaluate": [...]}, wall clock for each task.
    data: one entry {name, digest, complete, note} per image set; `note` says what is partial or substituted.
    environment: device, device_name, threads, versions, source revision, date.
    facts: what the method reports of itself (its rank table, other sizes, ...).
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
    facts: dict[str, Any] = field(default_factory=dict)
    artifact_sha256: str = ""
    memory: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.tasks)
        if n == 0 or len(self.correct) != n or any(len(row) != n for row in self.correct) or len(self.stored) != n:
            raise ValueError("accuracy matrix and stored bytes must have one row for each task")
        images = [task["test"] for task in self.tasks]
        columns = [[c for c in column if c is not None] for column in zip(*self.correct, strict=True)]
        if any(counts and not 0 <= min(counts) <= max(counts) <= n for counts, n in zip(columns, images, strict=True)):
            raise ValueError("a count of correct answers lies outside 0..test images")
        if any(s is not None and (set(s) != set(PARTS) or min(s.values()) < 0) for s in self.stored):
            raise ValueError(f"stored bytes must be split into {', '.join(PARTS)}")

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
        return digest([self.task_names, sorted([entry["name"], entry["digest"]] for entry in self.data)])


def digest(content: Any) -> str:
    """SHA-256 of the canonical JSON form of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Put `data` at `path` whole or not at all: written beside it under a name of its own, synced, then renamed."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing.")
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write to {path.parent}: {error.strerror}; {ELSEWHERE}") from None
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes through a file at `path`, which is removed afterwards. A kill releases it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(f"cannot write to {path.parent}: {error.strerror}; {ELSEWHERE}") from None
        with file:
            # Whoever held the lock before has removed the file: the lock counts only on the file that has the name now.
            try:
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def to_json(record: RunRecord) -> str:
    content = {"schema": SCHEMA, **asdict(record)}
    return json.dumps({**content, "digest": digest(content)}, indent=1) + "\n"


def write(record: RunRecord, path: Path) -> None:
    """Write the record atomically."""
    write_atomic(path, to_json(record))


def read(path: Path) -> RunRecord:
    """Read and check a record. Raises UserError, naming the file, when it is not one or was changed since it was written."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: is not a JSON file; delete it and run again") from None
    if not isinstance(content, dict) or "schema" not in content:
        raise UserError(f"{path}: is not a run record; move it out of the results folder")
    if content["schema"] != SCHEMA:
        raise UserError(
            f"{path}: has record schema {content['schema']!r}, this version reads {SCHEMA}; "
            "read it with the version that wrote it, or move it away and run again"
        )
    claimed = content.pop("digest", None)
    if claimed != digest(content):
        raise UserError(
            f"{path}: was changed after it was written (its digest does not fit); restore it or delete it and run again"
        )
    del content["schema"]
    try:
        return RunRecord(**{**content, "job": Job(**content["job"])})
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is not a valid run record ({error}); delete it and run again") from None


def read_of(job: Job, path: Path) -> RunRecord:
    """The record of this job. Raises UserError where the file holds another run's."""
    record = read(path)
    if replace(record.job, origins=job.origins) != job:
        raise UserError(f"{path}: holds the record of another run ({record.job}); move it away and run again")
    return record


def read_all(folder: Path) -> list[RunRecord]:
    """Every record below `folder`, in the order of their paths. Raises UserError for one that was copied or moved there."""
    found = (os.path.join(place, "record.json") for place, _, files in os.walk(folder) if "record.json" in files)
    paths = [Path(path) for path in sorted(found, key=lambda path: path.split(os.sep))]
    collected = gc.isenabled()
    gc.disable()  # records have no cycles, but there are thousands of lists in each, through which it would go again and again
    try:
        records = {path: read(path) for path in paths}
    finally:
        if collected:
            gc.enable()
    for path, record in records.items():
        own = record.job.folder / "record.json"
        if path.absolute().parts[-len(own.parts) :] != own.parts:
            raise UserError(f"{path}: does not belong in this folder; move it to {own} in a results folder, or away")
    return list(records.values())


def differences(a: RunRecord, b: RunRecord) -> list[str]:
    """The fields in which two records differ, of those that a run determines: all but wall time, allocations, date and
    environment."""
    determined = [f.name for f in fields(RunRecord) if f.name not in ("seconds", "memory", "environment")]
    return [name for name in determined if getattr(a, name) != getattr(b, name)]


def same_numbers(a: RunRecord, b: RunRecord) -> bool:
    """Whether two records agree in everything that a run determines."""
    return not differences(a, b)
