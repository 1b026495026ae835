"""What a results folder contains: which runs are done, running, failed, interrupted or stale, and which are missing. No torch.

A run counts as running while its lock is held. The lock ends with the process and involves no time, so neither a kill nor a clock
that was set back can make a run look as if it were running.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import folders_below
from ..protocol import protocols
from ..record.folder import RunFolder
from ..record.store import read_in_place
from ..source import stale
from ..text import clean

STATES = ("running", "failed", "unreadable", "stale", "unchecked", "interrupted", "missing", "done")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. config: digest of its settings. detail: a few words on its state."""

    protocol: str
    tier: str
    method: str
    config: str
    seed: int
    state: str
    detail: str = ""


def boards(
    results: Path, protocol: str | None = None, tier: str | None = None, planned: Iterable[Path] = ()
) -> dict[tuple[str, str], list[Run]]:
    """The runs by protocol and tier. protocol, tier: only these. planned: folders below `results` that should exist.

    Raises UserError where a folder cannot be read."""
    planned = dict.fromkeys(planned)
    of = [results / protocol] if protocol else folders_below(results, 1)
    tiers = [folder / tier for folder in of] if tier else [one for folder in of for one in folders_below(folder, 1)]
    there = [run.relative_to(results) for one in tiers for run in folders_below(one, 2) if "-seed" in run.name]
    found: dict[tuple[str, str], list[Run]] = {}
    for folder in dict.fromkeys([*sorted(there), *planned]):
        config, _, seed = folder.name.rpartition("-seed")
        if not seed.isdecimal():
            continue
        state, detail = state_of(results / folder)
        if state == "missing" and folder not in planned:
            continue  # an empty folder
        run = Run(
            protocol=folder.parts[0],
            tier=folder.parts[1],
            method=folder.parts[2],
            config=config,
            seed=int(seed),
            state=state,
            detail=detail,
        )
        found.setdefault((run.protocol, run.tier), []).append(run)
    return found


def state_of(path: Path) -> tuple[str, str]:
    """The state of the run in this folder (one of STATES), and a few words on it."""
    folder = RunFolder(path)
    if folder.is_locked():
        return "running", _words(folder)
    try:
        if folder.record.exists():
            record = read_in_place(folder.record)
            reason = stale(record)
            if reason and record.made_by and record.job.protocol not in protocols.all():
                return "unchecked", reason
            return ("stale", f"{reason}; `leaderboard` runs it again") if reason else ("done", "")
    except UserError as error:
        return "unreadable", str(error)
    except OSError as error:
        return "unreadable", f"{path}: cannot be read: {error.strerror}"
    if reason := folder.read_failure():
        return "failed", f"{reason}; `leaderboard` runs it again"
    if folder.progress.exists() or folder.checkpoint.exists():
        state = folder.read_progress()
        kept = f"{state.kept} of {state.stages} tasks are kept" if state else "its finished tasks are kept"
        return "interrupted", f"{kept}; the same command resumes"
    return "missing", ""


def _words(folder: RunFolder) -> str:
    state = folder.read_progress()
    if not state:
        return "starting"
    words = [f"task {min(state.stage + 1, state.stages)} of {state.stages}, epoch {state.epoch} of {state.epochs}"]
    if state.images_per_second:
        words.append(f"{state.images_per_second:,.0f} images/s")
    if state.seconds_left is not None:
        words.append(f"{duration(state.seconds_left)} left")
    ago = max(0.0, time.time() - folder.progress.stat().st_mtime)
    words.append(f"last update {duration(ago)} ago on {state.host}")
    return ", ".join(words)


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def lines(found: dict[tuple[str, str], list[Run]]) -> Iterator[str]:
    """The boards in words: one line for each run that needs attention; missing and finished runs are grouped by method."""
    for (protocol, tier), runs in found.items():
        counts = [f"{n} {state}" for state in STATES if (n := sum(run.state == state for run in runs))]
        yield clean(f"{protocol}/{tier}: {', '.join(counts)}")
        several = {m for m in {run.method for run in runs} if len({run.config for run in runs if run.method == m}) > 1}
        rows: dict[tuple[str, str, str], list[Run]] = {}
        for run in sorted(runs, key=lambda run: (STATES.index(run.state), run.method, run.config, run.seed)):
            label = run.method + (f" [{run.config}]" if run.method in several else "")
            alone = "" if run.state in ("missing", "done") else str(run.seed)
            rows.setdefault((run.state, label, alone), []).append(run)
        width = max(len(label) for _, label, _ in rows)
        for (state, label, _), group in rows.items():
            yield clean(f"  {state:12} {label:{width}}  seed {ranges([run.seed for run in group])}  {group[0].detail}".rstrip())


def ranges(seeds: Sequence[int]) -> str:
    """Seeds in the form that `--seeds` takes, such as 1-3,7."""
    groups: list[list[int]] = []
    for seed in sorted(seeds):
        if groups and seed == groups[-1][-1] + 1:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return ",".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)
