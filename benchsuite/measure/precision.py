"""Is bf16 distinguishable from fp32? The same runs in both precisions, compared seed by seed.

The two runs of a pair share their seed: task order, initial weights, batches and augmentation are the same, only the arithmetic
differs. Printed: ACC and learning accuracy in both, and the mean difference with its 95 % interval over the seeds (Student's t).
The runs are stored, and resumed after an interruption, like any others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ..analysis.statistics import t_interval
from ..fields import parse_assignments
from ..record.schema import RunRecord
from ..training.runner import run
from ..training.settings import resolve
from . import script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--protocol", default="split-cifar100")
    parser.add_argument("--tier", default="lite")
    parser.add_argument("--method", default="finetune")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--results", type=Path, default=Path("runs/precision"))
    arguments = parser.parse_args()
    overrides = parse_assignments(arguments.settings) | {"tasks": arguments.tasks}
    found: dict[str, list[RunRecord]] = {"fp32": [], "bf16": []}
    for seed in arguments.seeds:
        for precision, records in found.items():
            job = resolve(arguments.protocol, arguments.tier, arguments.method, seed, overrides=overrides, precision=precision)
            record = run(job, results=arguments.results, data_dir=arguments.data_dir)
            records.append(record)
            print(f"{job} {precision}: ACC {record.accuracy:.2f} %", flush=True)
    for name, statistic in (("ACC", "accuracy"), ("learning accuracy", "learning_accuracy")):
        values = {precision: np.array([getattr(record, statistic) for record in records]) for precision, records in found.items()}
        mean, half = t_interval(values["bf16"] - values["fp32"])
        verdict = "not distinguishable" if abs(mean) <= half else "DIFFERENT"
        print(
            f"{name}: fp32 {values['fp32'].mean():.2f} %, bf16 {values['bf16'].mean():.2f} %, "
            f"difference {mean:+.2f} ± {half:.2f} (95 %, n = {len(arguments.seeds)}): {verdict}"
        )


if __name__ == "__main__":
    script(main)
