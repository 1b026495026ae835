"""How many components CACL keeps after a short schedule, and what pruning costs: the basis of its preset for the tier `lite`.

For each pair of lambda_s and lambda_o, the first tasks are learnt in an order that no published record uses, with a tenth of the
training images held out. Printed:
- after the first task, for each e: the components kept of every layer's pool, the size relative to individual networks (if every
  task kept that share of a full pool), and the hold-out accuracy before and after pruning;
- after each task, pruned at --energy-drop: its hold-out accuracy before and after, the size so far relative to individual
  networks, and of the last features the standard deviation and the share above zero. Components are initialised at the same
  scale for every task, and a short training hardly shrinks them, so kernels can grow until all features are dead.
Heads are not counted in the sizes. Test images are never read.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..fields import parse_assignments
from ..method.base import Method
from ..nn.factorised import FactorisedConv2d, Rank
from ..protocol import protocols
from ..training.assemble import assemble
from ..training.settings import recipe_of, resolve
from ..training.stream import build_stream
from ..training.watch import Watch
from . import script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--protocol", default="split-cifar100")
    parser.add_argument("--tier", default="lite")
    parser.add_argument("--method", default="cacl", help="cacl or a method that is built on it")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--seed", type=int, default=4, help="seed of the task order; not one that results are reported for")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--sparsity-weights", type=float, nargs="+", default=[0.1, 1.0, 10.0])
    parser.add_argument("--orthogonality-weights", type=float, nargs="+", default=[1.0, 100.0])
    parser.add_argument("--energy-drops", type=float, nargs="+", default=[3e-5, 1e-2, 0.03, 0.05, 0.08, 0.1, 0.2])
    parser.add_argument("--energy-drop", type=float, default=0.08, help="the e at which each task is pruned before the next one")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    for weights in itertools.product(arguments.sparsity_weights, arguments.orthogonality_weights):
        learn(arguments, *weights)


def learn(arguments: argparse.Namespace, sparsity_weight: float, orthogonality_weight: float) -> None:
    print(f"lambda_s {sparsity_weight:g}, lambda_o {orthogonality_weight:g}", flush=True)
    overrides = {"holdout": 0.1} | parse_assignments(arguments.settings)
    overrides |= {"sparsity_weight": sparsity_weight, "orthogonality_weight": orthogonality_weight, "tasks": arguments.tasks}
    job = resolve(
        arguments.protocol, arguments.tier, arguments.method, arguments.seed, overrides=overrides, precision=arguments.precision
    )
    stream = build_stream(
        protocols.get(job.protocol),
        recipe_of(job.settings),
        job.seed,
        data_dir=arguments.data_dir,
        device=torch.device("cpu"),
    )
    watch = Watch()
    strategy = assemble(job, stream, plugins=[watch])
    method = cast(Any, strategy.method)
    prune, method.after_training_exp = method.after_training_exp, Method.after_training_exp.__get__(method)
    features: list[Tensor] = []
    list(method.layers.values())[-1].register_forward_hook(lambda _, __, out: features.append(out.detach().float()))

    def accuracy(task: int) -> float:
        features.clear()
        strategy.eval(stream.test[task : task + 1])
        return 100 * watch.correct[task] / len(stream.test[task].images.labels)

    def prune_at(drop: float) -> None:
        method.energy_drop = drop
        prune(strategy)

    for task, experience in enumerate(stream.train):
        strategy.train(experience, eval_streams=[])
        before = accuracy(task)
        if task == 0:
            pools, layers = copy.deepcopy(method.pools), {name: state(layer) for name, layer in method.layers.items()}
            for drop in arguments.energy_drops:
                prune_at(drop)
                kept = " ".join(f"{of(layer.ranks[-1])}/{of(pools[name][-1])}" for name, layer in method.layers.items())
                size, after = relative_size(method), accuracy(task)
                print(f"  e {drop:<6g} kept {kept}, {size:.3f} of individual, {before:.1f} -> {after:.1f} %", flush=True)
                method.pools = copy.deepcopy(pools)
                for name, layer in method.layers.items():
                    set_state(layer, layers[name])
        prune_at(arguments.energy_drop)
        after = accuracy(task)
        last = torch.cat(features)
        print(
            f"  task {task + 1}: {before:.1f} -> {after:.1f} %, {relative_size(method):.3f} of individual, "
            f"last features: std {float(last.std()):.2f}, {100 * float((last > 0).float().mean()):.0f} % above zero",
            flush=True,
        )


def of(rank: Rank) -> str:
    return "x".join(map(str, rank))


def state(layer: FactorisedConv2d) -> tuple[list[Rank], dict[str, Tensor]]:
    names = [*layer.grows, *(f"residual_{name}" for name in layer.grows)]
    return list(layer.ranks), {name: getattr(layer, name).detach().clone() for name in names}


def set_state(layer: FactorisedConv2d, state: tuple[list[Rank], dict[str, Tensor]]) -> None:
    ranks, tensors = state
    layer.ranks = list(ranks)
    for name, tensor in tensors.items():
        setattr(layer, name, torch.nn.Parameter(tensor.clone()) if name.startswith("residual") else tensor.clone())
    layer.set_task(-2)


def relative_size(method: Any) -> float:
    """The size of the bank so far, relative to one dense network for each task so far."""
    layers = method.layers.values()
    bank = sum(layer.elements(layer.ranks[-1]) for layer in layers)
    return bank / sum(len(layer.ranks) * layer.rows * layer.columns for layer in layers)


if __name__ == "__main__":
    script(main)
