"""What storing less for the backward pass saves and what it costs: memory measured three ways, step time, gradient error.

A network is first trained on the first task for some epochs, so that its activations are typical of training; every variant then
starts from its weights. Measured for each variant on the same batches:
- formula: MB of the inputs that compressed layers store, or all layers if none is compressed (the "activation memory" of
  arXiv 2411.06346),
- held: MB that autograd stores for the backward pass, each storage counted once, without parameters and buffers,
- peak: MB, the most allocated at any moment of the step beyond what was allocated when it began,
- error: ||g - g'|| / ||g|| over all weights of convolutions and linear layers, where g is the gradient of the unmodified network.
Figures are means over the batches, except peak, which is the maximum. The variants then take turns training. Step time is the
median over rounds of the ratio to the unmodified network's time in the same round, with the lowest and the highest ratio.
1 MB = 10^6 bytes.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..files import write_atomic
from ..nn.backbones import reseed_dropout
from ..protocol import protocols
from ..report import figures
from ..training.accounting import StepMemory
from ..training.assemble import assemble
from ..training.batches import Batches
from ..training.environment import environment, source_revision
from ..training.settings import recipe_of, resolve
from ..training.stream import build_stream
from ..training.watch import Watch
from . import script
from .race import Contender, paused, race, ratio

EPSILONS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "unmodified": ("", {}),
    "exact: masks alone": ("+hosvd", {"compressed": "last:0"}),
    "exact: checkpointing, 3 segments": ("+checkpointing", {}),
    **{f"hosvd {e:g}": ("+hosvd", {"epsilon": e}) for e in EPSILONS},
    "hosvd 0.8, plain ReLU": ("+hosvd", {"epsilon": 0.8, "relu": "plain"}),
    "hosvd 0.8, factors by SVD": ("+hosvd", {"epsilon": 0.8, "factors": "svd"}),
    **{f"svd {e:g}": ("+svd", {"epsilon": e}) for e in EPSILONS},
    "svd 0.8, factors by SVD": ("+svd", {"epsilon": 0.8, "factors": "svd"}),
    "asi, ranks of hosvd 0.8": ("+asi", {"epsilon": 0.8}),
    **{f"gf, radius {r}": ("+gf", {"radius": r}) for r in (2, 4, 7)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--protocol", default="split-cifar100")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--epochs", type=int, default=10, help="training epochs before anything is measured")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT", help="only these")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="steps of each variant in each round; 0: no timing")
    parser.add_argument("--output", type=Path, help="folder for the table (Markdown, CSV) and the figure")
    arguments = parser.parse_args()
    stream = None
    trained: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    exact: list[list[Tensor]] = []
    contenders: dict[str, Contender] = {}
    for label in dict.fromkeys(["unmodified", *arguments.variants]):
        modifier, settings = VARIANTS[label]
        overrides = {"tasks": 1, "epochs": arguments.epochs, "milestones": (), **settings}
        job = resolve(arguments.protocol, "lite", f"finetune{modifier}", 4, overrides=overrides, precision=arguments.precision)
        recipe = recipe_of(job.settings)
        stream = stream or build_stream(
            protocols.get(job.protocol), recipe, job.seed, data_dir=arguments.data_dir, device=torch.device("cpu")
        )
        strategy: Any = assemble(job, stream, plugins=[Watch()])
        strategy.model.add_task(0)
        if not trained:
            strategy.train(stream.train[0], eval_streams=[])
            trained = {name: tensor.clone() for name, tensor in strategy.model.state_dict().items()}
        strategy.model.load_state_dict(trained)
        batches = Batches([stream.train[0].images], [0], recipe.batch_size, augmentation=None, dtype=strategy.dtype)
        found = [measure(strategy, x, y) for (x, y, _), _ in zip(batches, range(arguments.batches), strict=False)]
        gradients = [gradient for _, gradient in found]
        exact = exact or gradients
        row: dict[str, Any] = {"variant": label}
        row["family"], _, epsilon = label.partition(" ")
        row["epsilon"] = float(epsilon) if row["family"] in ("svd", "hosvd") and "," not in epsilon else float("nan")
        for name in ("formula", "held"):
            row[name] = statistics.mean(memory[name] for memory, _ in found) / 1e6
        row["peak"] = max(memory["peak"] for memory, _ in found) / 1e6
        row["error"] = statistics.mean(distance(one, other) for one, other in zip(exact, gradients, strict=True))
        rows.append(row)
        print(row, flush=True)
        strategy.train_epochs = 10**6
        contenders[label] = paused(strategy, stream.train[0])
    frame = pd.DataFrame(rows)
    frame["held_ratio"] = frame["held"] / frame["held"][0]
    frame[["time", "lowest", "highest"]] = float("nan")
    if arguments.steps:
        seconds = race(contenders, arguments.rounds, arguments.steps)
        frame[["time", "lowest", "highest"]] = [ratio(seconds, variant, "unmodified") for variant in frame["variant"]]
    where = environment(torch.device("cpu"), [source_revision()])
    provenance = (
        f"{arguments.protocol}, first task of seed 4 after {arguments.epochs} epochs, batches of {recipe.batch_size}, "
        f"{arguments.precision}, {where.threads} threads, {where.device_name}, torch {where.versions['torch']}, "
        f"revision {where.source}, {where.date[:10]}; rounds: {arguments.rounds}, "
        f"steps in each: {arguments.steps}"
    )
    table = markdown(frame, provenance)
    print(table)
    if arguments.output:
        write_atomic(arguments.output / "activations.md", f"# {__doc__.splitlines()[0]}\n\n{table}")
        write_atomic(arguments.output / "activations.csv", frame.assign(provenance=provenance).to_csv(index=False))
        with figures.style():
            drawn = figures.render(figures.by_epsilon(frame), "Compressed activations", provenance)
        for suffix, content in drawn.items():
            write_atomic(arguments.output / f"activations.{suffix}", content)


def measure(strategy: Any, x: Tensor, y: Tensor) -> tuple[dict[str, float], list[Tensor]]:
    """Memory of one training step without the weight update, and the gradients of all weights."""
    model, compression = strategy.model.train(), getattr(strategy.method, "compression", None)
    reseed_dropout(model, 0)
    model.zero_grad()
    if compression is not None:
        if not strategy.method.__dict__.get("_begun"):
            compression.begin_task(model, 0)
            strategy.method._begun = True
        compression.bytes = 0
    memory = StepMemory(model)
    memory.open()
    memory.start_of_forward()
    try:
        with strategy.precise():
            logits = model(x, 0)
        loss = nn.functional.cross_entropy(logits.float(), y)
        memory.end_of_forward()
        loss.backward()
    finally:
        memory.close()
    formula = compression.bytes if compression is not None and compression.bytes else memory.inputs
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None and p.dim() > 1]
    return {"formula": formula, "held": memory.held, "peak": memory.peak}, gradients


def distance(exact: list[Tensor], other: list[Tensor]) -> float:
    gap = sum(float((a - b).square().sum()) for a, b in zip(exact, other, strict=True))
    return (gap / sum(float(a.square().sum()) for a in exact)) ** 0.5


def markdown(frame: pd.DataFrame, provenance: str) -> str:
    heads = "variant | formula (MB) | held (MB) | held / unmodified | peak (MB) | gradient error | step time / unmodified"
    lines = [f"| {heads} |", "|---|" + "---:|" * 6]
    for row in frame.to_dict("records"):
        numbers = [f"{row[name]:.{digits}f}" for name, digits in (("formula", 2), ("held", 2), ("held_ratio", 3))]
        numbers += [
            f"{row['peak']:.2f}",
            f"{row['error']:.4f}",
            f"{row['time']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
        ]
        lines.append(f"| {row['variant']} | {' | '.join(n.replace('nan', '–') for n in numbers)} |")
    return "\n".join(lines) + f"\n\n{provenance}\n"


if __name__ == "__main__":
    script(main)
