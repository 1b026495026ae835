"""The predictions of a finished network for every test image, one file beside the record, written on request.

A safetensors file: for task t of the order of learning `predicted/t` and `label/t`, both (n_t,), the positions of classes among
those of the task, a byte each (two above 256 classes), in the order of the test images. Its header names the artifact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from .. import files
from ..errors import UserError
from .folder import RunFolder
from .schema import RunRecord
from .store import RECORD

REMEDY = "delete it and ask for it again with `benchsuite run --predictions`"


class TaskPredictions(NamedTuple):
    """predicted, label: (n,) classes of the test images of a task, as labels of its data set (`LearntTask.classes`)."""

    predicted: np.ndarray
    label: np.ndarray


def encode(record: RunRecord, predicted: Sequence[np.ndarray], label: Sequence[np.ndarray]) -> bytes:
    """The file that holds positions of classes, task by task. Raises UserError where they are not those of the record."""
    arrays: dict[str, np.ndarray] = {}
    for t, task in enumerate(record.tasks):
        kind = np.uint8 if len(task.classes) <= 256 else np.uint16
        arrays |= {f"predicted/{t}": predicted[t].astype(kind), f"label/{t}": label[t].astype(kind)}
    content = safetensors.numpy.save(arrays, {"artifact_sha256": record.artifact_sha256})
    decode(content, record, "these predictions")
    return content


def decode(content: bytes, record: RunRecord, name: Path | str) -> list[TaskPredictions]:
    """The predictions in a file. Raises UserError, with its name, where they do not agree with the record: other tasks or numbers
    of images, another artifact, another number of right answers."""
    try:
        arrays = safetensors.numpy.load(content)
        size = int.from_bytes(content[:8], "little")
        artifact = json.loads(content[8 : 8 + size])["__metadata__"]["artifact_sha256"]
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{name}: is no file of predictions ({type(error).__name__})", REMEDY) from None
    if artifact != record.artifact_sha256:
        raise UserError(f"{name}: belongs to another artifact", REMEDY)
    found, right = [], []
    for t, task in enumerate(record.tasks):
        pair = [arrays.pop(f"{part}/{t}", None) for part in ("predicted", "label")]
        kind = np.uint8 if len(task.classes) <= 256 else np.uint16
        for codes in pair:
            if codes is None or codes.dtype != kind or codes.shape != (task.test,) or codes.max() >= len(task.classes):
                raise UserError(f"{name}: its task {t} has not {task.test} classes of task {task.name}", REMEDY)
        predicted, label = pair
        right.append(int((predicted == label).sum()))
        classes = np.array(task.classes)
        found.append(TaskPredictions(classes[predicted], classes[label]))
    if arrays:
        raise UserError(f"{name}: has predictions of more than {len(record.tasks)} tasks", REMEDY)
    first = next((form.correct for form in record.forms.values()), record.correct[-1])
    if right not in (record.correct[-1], first):
        raise UserError(
            f"{name}: {sum(right)} answers are right, but {sum(c or 0 for c in record.correct[-1])} on record",
            "predict on the kind of machine that made the record",
        )
    return found


def predictions(run: str | Path) -> list[TaskPredictions]:
    """The predictions of a run for the test images of each task, in the order of learning, after the last task.

    run: its folder or its record. Raises UserError where it has none (`benchsuite run --predictions` writes them, without
    training if the run is finished), or they do not agree with the record."""
    folder = RunFolder(Path(run).parent if Path(run).name == RECORD else Path(run))
    record, path = folder.read(), folder.predictions
    try:
        return decode(files.read(path), record, path)
    except FileNotFoundError:
        raise UserError(f"{path}: is not there", "ask for it with `benchsuite run --predictions`") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
