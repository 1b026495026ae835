"""Settings of CACL and its variants on a short schedule: the search that the presets of the tier `lite` are chosen from.

Each candidate learns the first tasks in an order that no published record uses, with a tenth of the training images held out. It
gets one line: for every task its hold-out accuracy before pruning, after pruning and at its end, and the size so far relative to
individual networks. Heads are left out: on split-cifar100 the size ratio of a board is 0.02 higher. Test images are never read.

Without --energy-drops the candidates are those in CANDIDATES. With it there is one for each e, and --set changes the presets of
all. Lines are appended to --output; what has a line there is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import Diverged
from ..fields import in_words, parse_assignments
from ..nn.conditional import evaluating
from ..nn.images import normalise
from ..protocol import protocols
from ..record.schema import Job
from ..training.assemble import assemble
from ..training.device import configure_process
from ..training.settings import recipe_of, resolve
from ..training.stream import build_stream
from ..training.watch import Watch
from . import script

SHORT = {  # ours, see methods/cacl.py
    "orthogonality_weight": 1.0,
    "sigma_rate": 20.0,  # 200 epochs of the paper over 10 of `lite`
    "fresh_share": 0.2,
    "prune_at": 0.6,  # at the first milestone
    "exact_vectors": "both",
}
OFF = {"orthogonality_weight": 1.0, "sigma_rate": 1.0, "fresh_share": 1.0, "prune_at": 1.0, "exact_vectors": "never"}
LIGHT, MIDDLE = {**SHORT, "sparsity_weight": 0.01}, {**SHORT, "sparsity_weight": 0.03, "energy_drop": 0.03}
CANDIDATES: tuple[dict[str, Any], ...] = (
    {**OFF, "sparsity_weight": 0.1, "energy_drop": 3e-5},  # the paper's settings
    *({**SHORT, "sparsity_weight": 0.1, "energy_drop": e} for e in (0.001, 0.01, 0.02, 0.03, 0.05, 0.1)),
    *({**MIDDLE, "energy_drop": e} for e in (0.01, 0.03, 0.1)),
    *({**LIGHT, "energy_drop": e} for e in (0.05, 0.1)),
    {**SHORT, "sparsity_weight": 0.0, "orthogonality_weight": 0.0, "energy_drop": 0.1},
    *({**LIGHT, "energy_drop": e, "prune_at": 0.3} for e in (0.05, 0.1)),  # the second is used
    *({**LIGHT, "energy_drop": 0.1, "prune_at": 0.3, **more} for more in ({"fresh_share": 1.0}, {"sparsity_weight": 0.0})),
    # the middle one, with one thing changed
    {**MIDDLE, "fresh_share": 1.0},
    {**MIDDLE, "sigma_rate": 5.0},
    {**MIDDLE, "exact_vectors": "first"},
    {**MIDDLE, "exact_vectors": "never"},
    {**MIDDLE, "prune_at": 1.0},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--protocol", default="split-cifar100")
    parser.add_argument("--tier", default="lite")
    parser.add_argument("--method", default="cacl", help="cacl or, with --energy-drops, a method that is built on it")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--seed", type=int, default=4, help="seed of the task order; not one that results are reported for")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--energy-drops", type=float, nargs="+", metavar="E")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--output", type=Path, help="file of lines; an interrupted search continues from it")
    given = parser.parse_args()
    if given.method != "cacl" and not given.energy_drops:
        parser.error("the candidates are CACL's; for its variants give --energy-drops")
    common = parse_assignments(given.settings)
    known = given.output.read_text().splitlines() if given.output and given.output.exists() else []
    for candidate in [{"energy_drop": e} for e in given.energy_drops] if given.energy_drops else CANDIDATES:
        settings = {**candidate, **common}
        name = f"{given.method}, {given.precision}, seed {given.seed}, {given.tasks} tasks, {in_words(settings) or 'presets'}: "
        line = next((line for line in known if line.startswith(name)), "")
        if not line:
            line = name + learn(job_of(given, settings), given.data_dir)
            if given.output:
                with given.output.open("a") as file:
                    file.write(line + "\n")
        print(line, flush=True)


def job_of(given: argparse.Namespace, settings: Mapping[str, Any]) -> Job:
    overrides = {"holdout": 0.1, **settings, "tasks": given.tasks}
    return resolve(given.protocol, given.tier, given.method, given.seed, overrides=overrides, precision=given.precision)


def learn(job: Job, data_dir: Path | None) -> str:
    """The accuracies and sizes, task by task."""
    recipe, device = recipe_of(job.settings), configure_process("cpu", job.precision)
    stream = build_stream(protocols.get(job.protocol), recipe, job.seed, data_dir=data_dir, device=device)
    strategy = assemble(job, stream, plugins=[Watch()])
    method = cast(Any, strategy.method)
    prune = method.prune
    found: list[str] = []

    @torch.no_grad()
    def accuracy(task: int) -> float:
        images = stream.test[task].images
        with evaluating(strategy.model), strategy.precise():
            right = strategy.model(normalise(images.pixels, images.mean, images.std), task).argmax(1) == images.labels
        return 100 * float(right.float().mean())

    def watched() -> None:
        task = len(found)
        before = accuracy(task)
        prune()
        found.append(f"{before:.1f} > {accuracy(task):.1f}")

    method.prune = watched
    for task, experience in enumerate(stream.train):
        try:
            strategy.train(experience, eval_streams=[])
        except Diverged as error:
            return "; ".join([*found, str(error)])
        found[-1] += f" > {accuracy(task):.1f} % at {relative_size(method):.3f}"
    return "; ".join(found)


def relative_size(method: Any) -> float:
    """The size of the bank so far, relative to one dense network for each task so far."""
    layers = method.layers.values()
    bank = sum(layer.elements(layer.ranks[-1]) for layer in layers)
    return bank / sum(len(layer.ranks) * layer.rows * layer.columns for layer in layers)


if __name__ == "__main__":
    script(main)
