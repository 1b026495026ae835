"""Records as one long table: a row for each accuracy that was measured, with everything else that is a number of its run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import asdict

from .schema import MB, Memory, RunRecord
from .store import read_all

if TYPE_CHECKING:
    import pandas as pd

JOB_COLUMNS = ("protocol", "tier", "method", "seed", "precision")
RUN_COLUMNS = (*JOB_COLUMNS, "configuration", "final_accuracy", "bwt", "forgetting", "megabytes", "device", "date", "path")
CELL_COLUMNS = ("after", "position", "task", "dataset", "accuracy", "correct", "test", "train", "stored_bytes")


def records(folder: str | Path) -> pd.DataFrame:
    """All records below a folder as one table: a row for each run, each number of tasks learnt and each task measured then.

    after: how many tasks had been learnt. position, task, dataset: the task tested, by its place in the order of learning, and by
    name. accuracy: in per cent; correct, test, train: the numbers behind it. stored_bytes: of the artifact after so many tasks,
    NaN where there was none. The other columns describe the run as a whole: final_accuracy, bwt and forgetting as in `RunRecord`,
    megabytes of its artifact, configuration (`Job.config`: runs that may be averaged share it), path, then every number of the
    record (lists over tasks or trainings as their sum, mean or largest entry, as the name says), its storage forms and settings
    (`setting.NAME`; empty where a run has none).
    Raises UserError for a record that cannot be used, and names it.
    """
    return table_of(read_all(Path(folder)))


def table_of(found: Iterable[RunRecord]) -> pd.DataFrame:
    """The table of these records, as `records` has it."""
    import pandas as pd

    found = list(found)
    runs = pd.DataFrame([_described(record) for record in found])
    for name in (name for name in runs if len(set(map(type, runs[name].dropna()))) > 1):  # a column of a file has one type
        runs[name] = [value if pd.isna(value) else str(value) for value in runs[name]]
    tables = []
    for record in found:
        R = record.R
        after, position = np.nonzero(~np.isnan(R))
        tasks = [record.tasks[i] for i in position]
        stored = [np.nan if sizes is None else sizes.total for sizes in record.stored]
        columns: dict[str, list[Any]] = {name: [getattr(task, name) for task in tasks] for name in ("dataset", "test", "train")}
        columns |= {"task": [task.name for task in tasks], "stored_bytes": [stored[t] for t in after]}
        columns |= {"correct": [record.correct[t][i] for t, i in zip(after, position, strict=True)]}
        cells = {"after": after + 1, "position": position + 1, "accuracy": R[after, position], **columns}
        tables.append(pd.DataFrame(cells)[list(CELL_COLUMNS)])
    order = [*RUN_COLUMNS, *CELL_COLUMNS, *(name for name in runs if name not in RUN_COLUMNS)]
    if not tables:
        return pd.DataFrame(columns=order)
    repeated = runs.loc[runs.index.repeat([len(table) for table in tables])].reset_index(drop=True)
    return pd.concat([repeated, pd.concat(tables, ignore_index=True)], axis=1)[order]


def _described(record: RunRecord) -> dict[str, Any]:
    job, environment, seconds = record.job, record.environment, record.seconds
    named = {name: getattr(job, name) for name in JOB_COLUMNS} | {
        "configuration": job.config,
        "final_accuracy": record.accuracy,
        "bwt": record.bwt,
        "forgetting": record.forgetting,
        "megabytes": record.megabytes,
        "device": environment.device_name,
        "date": environment.date,
        "path": str(job.folder),
        "anytime_accuracy": record.anytime_accuracy,
        "learning_accuracy": record.learning_accuracy,
        "tasks": len(record.tasks),
    }
    sizes = {f"{part}_bytes": size for part, size in asdict(record.final_sizes).items()}
    measured = {f"memory_{name}_largest": max(getattr(record.memory, name), default=None) for name in Memory.__struct_fields__}
    own = ("training_state_bytes", "activation_bytes", "memory_bytes", "carried_bytes", "forward_images", "backward_images")
    counted = {
        "macs_mean": float(np.mean(record.macs)),
        "dense_macs": record.dense_macs,
        "iterations_sum": sum(record.iterations),
        "kept_epochs_sum": sum(record.kept_epochs) if record.kept_epochs else None,
        "seconds_train_sum": sum(seconds.train),
        "seconds_evaluate_sum": sum(seconds.evaluate),
        **{name: getattr(record, name) for name in own},
        **measured,
        "n_tasks_read": record.n_tasks_read,
        "size_reference": record.size_reference,
        "threads": environment.threads,
        "torch": environment.versions.get("torch"),
        "revision": str(environment.source),
        "images_complete": all(entry.complete for entry in record.data),
        "method_source": job.method_source,
        "artifact_sha256": record.artifact_sha256,
    }
    forms: dict[str, float] = {}
    for name, form in record.forms.items():
        accuracy = [100 * right / task.test for right, task in zip(form.correct, record.tasks, strict=True)]
        forms |= {f"{name}_megabytes": form.sizes.total / MB, f"{name}_accuracy": float(np.mean(accuracy))}
    settings = {f"setting.{name}": _cell(value) for name, value in job.settings.items()}
    return {**named, **sizes, **counted, **forms, **settings}


def _cell(value: Any) -> Any:
    """A setting as a cell: a list or an object as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value
