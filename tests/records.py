"""Records for tests, from plain JSON."""

import msgspec

from benchsuite.record.schema import RunRecord

ENVIRONMENT = {
    "device": "cpu",
    "device_name": "Model X",
    "threads": 1,
    "instructions": "avx",
    "versions": {"torch": "2.6.0", "avalanche-lib": "0.6.0", "benchsuite": "0.1.0"},
    "source": {"revision": "abcdef0123", "dirty": False},
    "date": "2026-01-02T03:04:05+00:00",
}


def changed(part, **fields):
    """`part` with other fields, which may be plain JSON, checked as if they had been read."""
    return msgspec.convert({name: getattr(part, name) for name in part.__struct_fields__} | fields, type(part))


def record_of(**fields):
    """The record with these fields; what the test does not care about is filled in."""
    test = {"dataset": "digits", "classes": [0, 1], "train": 10}
    fields["tasks"] = [{**test, **task} if isinstance(task, dict) else task for task in fields["tasks"]]
    n = len(fields["tasks"])
    common = {
        "macs": [1] * n,
        "iterations": [1] * n,
        "training_state_bytes": 1,
        "activation_bytes": 1,
        "seconds": {"train": [1.0] * n, "evaluate": [1.0] * n},
        "data": [],
        "environment": ENVIRONMENT,
    }
    return msgspec.convert(common | fields, RunRecord)
