"""Served models beside the dense network: multiply-accumulates and measured time of each form that computes them.

Each artifact is loaded as a user would load it and serves its last task. composed: every factorised convolution as one
convolution with the composed kernel; chain: as a chain of convolutions, one for each factor; served: as `benchsuite.load` does
it, layer by layer in the form that needs fewer multiply-accumulates. Kernels are composed once, before anything is timed. All
forms of all artifacts and the dense network of the same shape take turns; a ratio is the median over rounds of the ratios within
a round. `benchsuite bench --served FOLDER` measures the artifacts of a board as they are served, for a column of that board.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import UserError
from ..files import write_atomic
from ..method.artifact import Artifact
from ..method.serving import load, served_by
from ..nn.factorised import FactorisedConv2d
from ..nn.multihead import MultiHead
from ..record.folder import RunFolder
from ..record.served import COLUMNS, SERVED
from ..record.store import read_usable
from ..training.accounting import macs
from . import script
from .race import Contender, circumstances, race, ratio

LIMIT = 10  # a form with more than this times the dense network's operations is not timed
FORMS: dict[str, Literal["composed", "chain", "cheaper"]] = {"composed": "composed", "chain": "chain", "served": "cheaper"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="+", type=Path, help="files written by `benchsuite export`, all of one protocol")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64], help="images in a batch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="batches of each contender in each round")
    arguments = parser.parse_args()
    contenders: dict[str, Contender] = {}
    counts: dict[tuple[str, str], int] = {}
    for path in arguments.artifacts:
        described = Artifact.read(path).header["network"]
        image, task = tuple(described["image"]), len(described["classes"]) - 1
        dense = MultiHead.from_description({**described, "heads": [task]}).eval()
        networks = {("dense", ""): dense} if not contenders else {}
        for form, value in FORMS.items():
            network = load(path).network
            layers = [layer for layer in network.modules() if isinstance(layer, FactorisedConv2d)]
            for layer in layers:
                layer.form = value
            if layers or form == "served":
                networks[path.stem, form] = network
        for (name, form), network in networks.items():
            counts[name, form] = macs(network, image, task)
            if counts[name, form] > LIMIT * counts["dense", ""]:
                print(f"{name} {form}: {counts.pop((name, form)) / 1e6:.0f} MMACs, too many to time")
                continue
            for batch in arguments.batches:
                contenders[f"{name} {form} {batch}"] = forward(network, torch.rand(batch, *image), task)
    seconds = race(contenders, arguments.rounds, arguments.steps)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.rounds} rounds; time relative to dense")
    print(f"{'artifact':48} {'form':9} {'MMACs':>8}" + "".join(f" {f'batch {batch}':>10}" for batch in arguments.batches))
    for (name, form), count in counts.items():
        ratios = [ratio(seconds, f"{name} {form} {n}", f"dense  {n}").median for n in arguments.batches]
        print(f"{name:48} {form:9} {count / 1e6:8.3f}" + "".join(f" {value:10.3f}" for value in ratios))


def measure_board(folder: Path, device: torch.device, *, batch: int = 64, rounds: int = 7, steps: int = 4) -> Path:
    """Time the artifacts of a board, RESULTS/PROTOCOL/TIER, as they are served, each in turns with the dense network of the same
    width, on their last tasks; print how many times as fast each is, and write it into the folder, where boards find it.

    Raises UserError for a folder of no board or without artifacts."""
    records, _ = read_usable(folder)
    if not records or folder.absolute().parts[-2:] != (records[0].job.protocol, records[0].job.tier):
        raise UserError(f"{folder}: is not the folder of a board with records", "name one, RESULTS/PROTOCOL/TIER")
    if min(batch, rounds, steps) < 1:
        raise UserError("batch, rounds and steps must be at least 1")
    before, lines = os.getloadavg(), []
    for record in records:
        try:
            content = RunFolder(folder.joinpath(*record.job.folder.parts[2:])).read_artifact(record)
            network = served_by(content).network.to(device)
        except UserError as error:
            print(f"n/a: {error}")
            continue
        described = Artifact.from_bytes(content).header["network"]
        image, task = tuple(described["image"]), len(described["classes"]) - 1
        dense = MultiHead.from_description({**described, "heads": [task]}).eval().to(device)
        x = torch.rand(batch, *image, device=device)
        seconds = race({"dense": forward(dense, x, task), "served": forward(network, x, task)}, rounds, steps)
        speed = ratio(seconds, "dense", "served")  # of the times, so that more is quicker
        print(f"{record.job.folder}: {speed.median:.2f} ({speed.lowest:.2f} to {speed.highest:.2f}) times as fast as dense")
        lines.append([record.job.method, record.job.seed, record.artifact_sha256, *speed])
    if not lines:
        raise UserError(f"{folder}: has no artifacts to time", "the runs write them; published records come without")
    how = f"{batch} images at once, fp32, {circumstances(device, rounds, steps, before)}"
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *([*line, how] for line in lines)])
    write_atomic(folder / SERVED, table.getvalue())
    print(f"{how}\n{folder / SERVED}")
    return folder / SERVED


def forward(network: Any, x: torch.Tensor, task: int) -> Contender:
    @torch.no_grad()
    def step() -> None:
        network(x, task)

    return step


if __name__ == "__main__":
    script(main)
