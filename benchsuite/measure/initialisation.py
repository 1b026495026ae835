"""How much does the law of the initial weights decide? The same runs from PyTorch's default law and from He's.

Each method learns the first tasks of an order that no published record uses, with a tenth of the training images held out.
Printed for each law: the accuracy on the held-out images right after each task was learnt, and the mean after the last one. Test
images are never read. The runs are stored, and resumed after an interruption, like any others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..training.runner import run
from ..training.settings import resolve
from . import script

LAWS = ("default", "he")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--protocol", default="split-cifar100")
    parser.add_argument("--tier", default="lite")
    parser.add_argument("--methods", nargs="+", default=["individual", "finetune", "packnet", "cacl-tucker"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--seed", type=int, default=4, help="seed of the task order; not one that results are reported for")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("runs/initialisation"))
    arguments = parser.parse_args()
    print(f"| method | init | {' | '.join(f'task {t + 1}' for t in range(arguments.tasks))} | ACC |")
    print(f"| --- | --- |{' ---: |' * (arguments.tasks + 1)}")
    for method in arguments.methods:
        for law in LAWS:
            overrides = {"init": law, "tasks": arguments.tasks, "holdout": 0.1}
            job = resolve(
                arguments.protocol, arguments.tier, method, arguments.seed, overrides=overrides, precision=arguments.precision
            )
            record = run(job, results=arguments.results, data_dir=arguments.data_dir)
            learnt = " | ".join(f"{accuracy:.1f}" for accuracy in record.R.diagonal())
            print(f"| {method} | {law} | {learnt} | {record.accuracy:.1f} |", flush=True)


if __name__ == "__main__":
    script(main)
