"""What each part of `delta-svd` is worth: runs with some of its defaults changed, on the first tasks of a protocol.

Runs are stored, and resumed after an interruption, like any others. The table has the accuracy at the end, its difference from
that of the defaults (a mean over tasks, with its standard error), the bytes of the file and, for the first task that is cut and
for the last, the relative error of the layers' outputs (their mean). `--references` names records of `individual` and `finetune`,
also on more tasks: their accuracy on the same tasks, right after learning. With `--no-run` the table is made of the runs that are
there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..analysis.provenance import provenance
from ..errors import UserError
from ..files import write_atomic
from ..record.schema import RunRecord
from ..record.store import RECORD, read, read_all
from ..report import figures
from ..training.runner import run
from ..training.settings import resolve
from . import script

BASE = "defaults"
DEFAULTS: Mapping[str, Any] = {"bits": 6, "recovery": 0.2, "reference": "previous"}  # which a search may have replaced
CHANGES: tuple[tuple[str, Mapping[str, Any]], ...] = (  # the factor, and what it changes
    (BASE, {}),
    *(("bits", {"bits": bits}) for bits in (4, 8)),
    *(("recovery", {"recovery": share}) for share in (0.0, 0.4)),
    *(("reference", {"reference": name}) for name in ("nearest", "first")),
    *(("whitening", {"whiten": False} | more) for more in ({}, {"bits": 4})),
    ("refitting", {"refit": False}),
    ("loop", {"loop": "open"}),
    # without training after the cut, where errors are not trained away
    *(("no recovery", {"recovery": 0.0} | more) for more in ({"loop": "open"}, {"whiten": False}, {"bits": 4})),
    ("no recovery", {"recovery": 0.0, "bits": 4, "refit": False}),
    *(("budget", {"budget": share}) for share in (0.051, 0.204, 0.306, 0.438, 0.611)),  # 5 to 60 kB a task at half width
    ("tuned", {"bits": 4, "recovery": 0.4, "reference": "nearest"}),  # what the search at lite found
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--protocol", default="split-cifar100")
    parser.add_argument("--tier", default="lite")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--factors", nargs="+", help="run only these; the table has all that are there")
    parser.add_argument("--references", type=Path, help="a folder with records of `individual` and `finetune`")
    parser.add_argument("--results", type=Path, default=Path("runs/ablations"), help="the runs (default: runs/ablations)")
    parser.add_argument("--no-run", action="store_true", help="train nothing: the table has the runs that are finished")
    parser.add_argument("--output", type=Path, help="a folder for the table and the figure")
    given = parser.parse_args()
    records: dict[str, RunRecord] = {}
    rows = []
    for factor, changed in CHANGES:
        if given.factors and factor not in (BASE, *given.factors):
            continue
        overrides = {"tasks": given.tasks, **DEFAULTS, **changed}
        job = resolve(given.protocol, given.tier, "delta-svd", given.seed, overrides=overrides, precision=given.precision)
        value = ", ".join(f"{name}={value}" for name, value in changed.items()) or BASE
        path = given.results / job.folder / RECORD
        if not given.no_run:
            records[value] = run(job, results=given.results, data_dir=given.data_dir)
        elif path.exists():
            records[value] = read(path)
        elif value == BASE:
            raise UserError(
                f"{given.results}: the run of the {BASE} is missing", "leave out --no-run, or name the folder with --results"
            )
        else:
            continue
        record = records[value]
        apart = record.R[-1] - records[BASE].R[-1]  # on each task
        errors = [statistics.mean(layers.values()) for layers in record.diagnostics.extra["relative_error"] if layers]
        rows.append(
            {
                "factor": factor,
                "settings": value,
                "accuracy": record.accuracy,
                "difference": float(apart.mean()),
                "standard_error": float(apart.std(ddof=1)) / len(apart) ** 0.5,
                "bytes": record.stored_bytes,
                "first_error": errors[0] if errors else float("nan"),
                "last_error": errors[-1] if errors else float("nan"),
            }
        )
        print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    levels = levels_of(given.references, given.seed, records[BASE]) if given.references else {}
    made = f"first {given.tasks} tasks; {provenance(list(records.values()))}"
    table = markdown(frame, levels, made)
    print(table)
    if given.output:
        write_atomic(given.output / "ablations.md", f"# {__doc__.splitlines()[0]}\n\n{table}")
        write_atomic(given.output / "ablations.csv", frame.assign(provenance=made).to_csv(index=False))
        with figures.style():
            drawn = figures.render(figures.by_factor(frame, levels), "Ablations of delta-SVD", made)
        for suffix, content in drawn.items():
            write_atomic(given.output / f"ablations.{suffix}", content)


def levels_of(folder: Path, seed: int, base: RunRecord) -> dict[str, float]:
    """Mean accuracy right after learning, on the tasks of `base`, of the references that have the same settings."""
    words = {"individual": "individual networks", "finetune": "fine-tuning, right after learning"}
    found = {}
    for record in read_all(folder):
        alike = all(base.job.settings.get(name) == value for name, value in record.job.settings.items() if name != "tasks")
        if record.job.method in words and record.job.seed == seed and alike:
            found[words[record.job.method]] = float(record.R.diagonal()[: len(base.tasks)].mean())
    return found


def markdown(frame: pd.DataFrame, levels: Mapping[str, float], made: str) -> str:
    heads = ("factor", "settings", "accuracy (%)", "difference (points)", "file (kB)", "error, first", "error, last")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {row['factor']} | {row['settings']} | {row['accuracy']:.2f} | "
        f"{row['difference']:+.2f} ± {row['standard_error']:.2f} | {row['bytes'] / 1000:.1f} | "
        f"{row['first_error']:.3f} | {row['last_error']:.3f} |".replace("nan", "–")
        for row in frame.to_dict("records")
    ]
    lines += [f"| reference | {words} | {level:.2f} | – | – | – | – |" for words, level in levels.items()]
    return "\n".join(lines) + f"\n\n{made}\n"


if __name__ == "__main__":
    script(main)
