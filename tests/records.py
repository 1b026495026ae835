"""Records for tests, from plain JSON."""

import msgspec

from benchsuite.record.schema import Job, RunRecord

ENVIRONMENT = {
    "device": "cpu",
    "device_name": "Model X",
    "threads": 1,
    "instructions": "avx",
    "versions": {"torch": "2.6.0", "avalanche-lib": "0.6.0", "benchsuite": "0.1.0"},
    "source": {"revision": "abcdef0123", "dirty": False},
    "date": "2026-01-02T03:04:05+00:00",
}
COMPLETE = {"name": "digits", "digest": "d" * 64, "complete": True, "note": ""}

COMPLETE = {"name": "digits", "digest": "d" * 64, "complete": True, "note": ""}


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


def run(method="finetune", seed=1, correct=((90, None), (70, 80)), size=1_000_000, *, environment=None, **changes):
    """A run of two tasks with 100 test images each, so that counts are per cent."""
    job = {"tier": "lite", "precision": "fp32", "settings": {"epochs": 10}, "origins": {}, "method_source": ""}
    job = {name: changes.pop(name, value) for name, value in job.items()}
    n = len(correct)
    stored = {"weights": size - 1000, "heads": 1000, "masks": 0, "other": 0}
    record = {
        "tasks": [{"name": f"task {i}", "test": 100} for i in range(n)],
        "correct": [list(row) for row in correct],
        "stored": [None] * (n - 1) + [stored],
        "macs": [2_000_000, 4_000_000][:n],
        "iterations": [10] * n,
        "training_state_bytes": 3_000_000,
        "data": [COMPLETE],
        "environment": {**ENVIRONMENT, **(environment or {})},
        "size_reference": method == "individual",
    }
    return record_of(job=Job(protocol="split-digits", method=method, seed=seed, **job), **{**record, **changes})


def individual(seed=1, correct=((90, None), (90, 85)), size=2_000_000, **changes):
    return run("individual", seed, correct, size, **changes)


def joint(seed=1):
    return run("joint", seed, ((None, None), (95, 93)))


def rows(frame):
    return {row["method"]: row for row in frame.to_dict("records")}


def memory(held, peak, formula=None):
    found = {"held": held, "peak": peak} | ({"formula": formula, "formula_mean": formula} if formula else {})
    return {"memory": found, "activation_bytes": max(held)}
