"""Seconds and peak memory of reading many records and of building their boards.

The records are synthetic, in a temporary folder, and as large as those of 20 tasks: all of one protocol and tier, so that every
row is compared with every other; each method with and without a modifier, at several widths, with 50 seeds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import sys
import time
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from ..analysis.leaderboard import leaderboard
from ..record.folder import RunFolder
from ..record.schema import Job, RunRecord
from ..record.store import read_all, to_json
from . import script

TASKS = 20
METHODS = ("individual", *(f"method-{i}" for i in range(1, 20)))
MODIFIERS, WIDTHS, SEEDS = ("", "+hosvd"), (1.0, 0.25, 0.5, 2.0, 4.0), range(1, 51)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        # in a process of its own, whose memory is not counted
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(Path(folder), arguments.records))
        maker.start()
        maker.join()
        before, start = peak(), clocks()
        records = read_all(Path(folder))
        read, between = clocks(), peak()
        board = leaderboard(records)
        end = clocks()
    loaded = "with" if "torch" in sys.modules else "without"
    print(f"{len(records):,} records, {len(board.accuracy)} rows, {loaded} torch")
    for name, since, until, most in (("read", start, read, between), ("boards", read, end, peak()), ("both", start, end, peak())):
        wall, busy = (b - a for a, b in zip(since, until, strict=True))
        print(f"{name:6} {wall:6.2f} s ({busy:.2f} CPU s), peak {most:.0f} MB ({before:.0f} MB before)")


def clocks() -> tuple[float, float]:
    """Wall-clock time and CPU time of this process, in seconds; on a busy machine the CPU time says more."""
    return time.perf_counter(), time.process_time()


def peak() -> float:
    """The peak memory of this process, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def make(folder: Path, count: int) -> None:
    """Write `count` records below `folder`, all seeds of one configuration before the next configuration."""
    everything = product(METHODS, MODIFIERS, WIDTHS, SEEDS)
    for method, modifier, width, seed in islice(everything, count):
        record = synthetic(method + modifier, width, seed)
        path = RunFolder(folder / record.job.folder).record
        path.parent.mkdir(parents=True)
        path.write_text(to_json(record))


def synthetic(method: str, width: float, seed: int) -> RunRecord:
    """A record like that of a run of `TASKS` tasks, with random numbers that depend only on the arguments."""
    draw = random.Random(f"{method} {width} {seed}")
    order = random.Random(seed).sample(range(TASKS), TASKS)  # the seed alone decides the order of tasks
    settings = {"backbone": "cacl", "epochs": 200, "milestones": [120, 180], "lr": 1e-3, "batch_size": 64, "strength": 0.1}
    settings |= {} if width == 1 else {"width": width}
    settings |= {"epsilon": 0.9} if "+" in method else {}
    learnt = [draw.randint(350, 420) for _ in order]
    grown = [int(width * 500_000 * (1 + 0.1 * t)) for t in range(TASKS)]
    content = {
        "job": Job(protocol="made-up", tier="paper", method=method, seed=seed, precision="fp32", settings=settings),
        "tasks": [
            {"name": str(i), "dataset": "made-up", "classes": list(range(5 * i, 5 * i + 5)), "train": 2500, "test": 500}
            for i in order
        ],
        "correct": [[learnt[i] - draw.randint(0, t - i) if i <= t else None for i in range(TASKS)] for t in range(TASKS)],
        "stored": [{"weights": size, "heads": 20_500 * (t + 1), "masks": 20, "other": 4744} for t, size in enumerate(grown)],
        "macs": [57_921_280] * TASKS,
        "iterations": [8000] * TASKS,
        "training_state_bytes": 3 * grown[-1],
        "activation_bytes": 45_952_353,
        "seconds": {name: [round(draw.uniform(60, 90), 3) for _ in order] for name in ("train", "evaluate")},
        "data": [{"name": "made-up", "digest": "0" * 64, "complete": True, "note": ""}],
        "environment": {
            "device": "cpu",
            "device_name": "Model X",
            "threads": 1,
            "versions": {"torch": "2.6.0", "avalanche-lib": "0.6.0", "benchsuite": "0.1.0"},
            "source": {"revision": "0" * 40, "dirty": False},
            "date": f"2026-01-{1 + seed % 28:02}T03:04:05+00:00",
        },
        "dense_macs": 57_921_280,
        "size_reference": method == METHODS[0],
        "diagnostics": {"ranks": {f"conv{k}": [[draw.randint(20, 40) + 30 * t] for t in range(TASKS)] for k in range(1, 6)}},
        "memory": {name: [draw.randint(10**7, 2 * 10**7)] * TASKS for name in ("held", "peak")},
    }
    return msgspec.convert(content, RunRecord)


if __name__ == "__main__":
    script(main)
