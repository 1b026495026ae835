"""Where, when and by which versions runs were made, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..record.schema import RunRecord

VERSIONS = ("torch", "avalanche-lib", "benchsuite")


def _machine(run: RunRecord) -> tuple[str, ...]:
    """The kind of machine that a run was made on, and with which torch; empty where an older record says too little of it."""
    if "instructions" not in run.environment:
        return ()
    names = ("device", "device_name", "threads", "instructions")
    return (*(str(run.environment.get(name, "unknown")) for name in names), _version("torch", run))


def _emulated(run: RunRecord) -> bool:
    """Whether its bf16 convolutions were computed in fp32 (`benchsuite.nn.bfloat16`), whose copies are in the peak of a step."""
    words = run.environment.get("instructions", "").split()  # of records that do not say it themselves
    guess = "avx2" not in words or any(word.startswith(("avx512", "amx")) for word in words)
    return run.job.precision == "bf16" and not run.environment.get("native_bf16", guess)


def _version(library: str, run: RunRecord) -> str:
    return str(run.environment.get("versions", {}).get(library, "unknown"))


def _device(run: RunRecord) -> str:
    return f"{run.environment.get('device', 'unknown')} ({run.environment.get('device_name', 'unknown')})"


def _revision(run: RunRecord) -> str:
    return str(run.environment.get("source", {}).get("revision") or "unknown")[:7]


def provenance(records: Sequence[RunRecord]) -> str:
    """One line: what was run, where, by which versions and when."""

    def every(get: Callable[[RunRecord], Any]) -> str:
        return ", ".join(map(str, sorted({get(r) for r in records})))

    dates = sorted({str(r.environment.get("date", "unknown"))[:10] for r in records})
    incomplete = sorted({entry["name"] for r in records for entry in r.data if not entry["complete"]})
    revisions = {_revision(r) for r in records}
    return "; ".join(
        [
            f"{records[0].job.protocol}, tier {records[0].job.tier}",
            f"seeds: {every(lambda r: r.job.seed)}",
            f"tasks: {every(lambda r: len(r.tasks))}",
            every(_device),
            every(lambda r: r.job.precision),
            ", ".join(f"{library} {every(partial(_version, library))}" for library in VERSIONS),
            f"revision {every(_revision)}" if len(revisions) <= 3 else f"{len(revisions)} revisions (see the notes)",
            dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
            *([f"not the published benchmark: incomplete images of {', '.join(incomplete)}"] if incomplete else []),
        ]
    )
