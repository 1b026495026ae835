"""Where, when and by which versions runs were made, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..record.schema import RunRecord

VERSIONS = ("torch", "avalanche-lib", "benchsuite")


def emulates_bf16(run: RunRecord) -> bool:
    """Whether bf16 convolutions were computed in fp32 (`benchsuite.nn.bfloat16`)."""
    native = run.environment.native_bf16
    if native is None:  # a record of an earlier version
        words = (run.environment.instructions or "").split()
        native = "avx2" not in words or any(word.startswith(("avx512", "amx")) for word in words)
    return run.job.precision == "bf16" and not native


def library_version(library: str, run: RunRecord) -> str:
    return run.environment.versions.get(library, "unknown")


def provenance(records: Sequence[RunRecord]) -> str:
    """One line: what was run, where, by which versions and when."""

    def every(get: Callable[[RunRecord], Any]) -> str:
        return ", ".join(map(str, sorted({get(r) for r in records})))

    dates = sorted({r.environment.date[:10] for r in records})
    incomplete = sorted({entry.name for r in records for entry in r.data if not entry.complete})
    own = sorted({entry.name for r in records for entry in r.data if entry.own})
    revisions = {r.environment.source.short for r in records}
    return "; ".join(
        [
            f"{records[0].job.protocol}, tier {records[0].job.tier}",
            f"seeds: {every(lambda r: r.job.seed)}",
            f"tasks: {every(lambda r: len(r.tasks))}",
            every(lambda r: r.environment.hardware),
            every(lambda r: r.job.precision),
            ", ".join(f"{library} {every(partial(library_version, library))}" for library in VERSIONS),
            f"revision {', '.join(sorted(revisions))}" if len(revisions) <= 3 else f"{len(revisions)} revisions (see the notes)",
            dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
            *([f"not the published benchmark: incomplete images of {', '.join(incomplete)}"] if incomplete else []),
            *([f"own images: {', '.join(own)}"] if own else []),
        ]
    )
