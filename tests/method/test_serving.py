"""Serving: what a file is served from is checked, and a file that anybody may have written raises one clear error."""

import json
import re

import pytest
import safetensors.torch
import torch

from benchsuite.errors import UserError
from benchsuite.method.artifact import Artifact
from benchsuite.method.serving import load
from benchsuite.nn.multihead import MultiHead


@pytest.fixture(scope="module")
def sound():
    """Header and tensors of a network of two tasks."""
    model = MultiHead.build("digits", image=(1, 8, 8), classes=[2, 2])
    for task in (0, 1):
        model.add_task(task)
    artifact = Artifact.of_network(model)
    tasks = [{"name": "a", "classes": [0, 1], "pad": 0, "mean": [0.3], "std": [0.4]} for _ in range(2)]
    return {"format": 1, "method": "finetune", "tasks": tasks, **artifact.header}, artifact.tensors


def written(path, header, tensors):
    path.write_bytes(safetensors.torch.save(tensors, {"benchsuite": header if isinstance(header, str) else json.dumps(header)}))
    return path


def network(**changes):
    return lambda header: {**header, "network": {**header["network"], **changes}}


def task(**changes):
    return lambda header: {**header, "tasks": [{**header["tasks"][0], **changes}, header["tasks"][1]]}


HOSTILE = {
    "a list": lambda header: [1],
    "a number": lambda header: 1,
    "nothing": lambda header: {"format": 1},
    "no format": lambda header: {"method": "finetune"},
    "very deep": lambda header: '{"format": 1, "method": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a method that is a list": lambda header: {**header, "method": ["finetune"]},
    "an unknown method": lambda header: {**header, "method": "nobody"},
    "no tasks": lambda header: {**header, "tasks": []},
    "tasks that are numbers": lambda header: {**header, "tasks": [1, 2]},
    "more tasks than heads": lambda header: {**header, "tasks": header["tasks"] * 2},
    "classes that are text": task(classes=["a", "b"]),
    "another number of classes": task(classes=[0, 1, 2]),
    "an endless border": task(pad=10**9),
    "another orientation": task(orientation="upside down"),
    "a deviation of zero": task(std=[0.0]),
    "as many means as classes": task(mean=[0.1, 0.2]),
    "a form of nobody": lambda header: {**header, "form": "int3"},
    "a network that is text": lambda header: {**header, "network": "digits"},
    "another backbone": network(backbone="nobody"),
    "a backbone that is a list": network(backbone=[1]),
    "a huge image": network(image=[1, 10**9, 10**9]),
    "an image of two sides": network(image=[8, 8]),
    "a huge width": network(width=1e9),
    "a width of nothing": network(width=0),
    "a huge head": network(classes=[2, 2, 10**12]),
    "a head of nothing": network(heads=[0, 7]),
    "no heads": network(heads=[]),
    "other tensors": network(image=[1, 16, 16]),
    "a policy of nobody": network(batchnorm="none"),
}


@pytest.mark.parametrize("spoil", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_one_clear_error(spoil, sound, tmp_path):
    header, tensors = sound
    path = written(tmp_path / "hostile.safetensors", spoil(header), tensors)
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))


def test_control_the_same_file_with_its_own_header_is_served(sound, tmp_path):
    served = load(written(tmp_path / "sound.safetensors", *sound))
    assert served.predict(torch.zeros(3, 8, 8, 1, dtype=torch.uint8), 1).shape == (3,)
