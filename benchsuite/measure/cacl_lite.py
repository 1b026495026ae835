"""What CACL keeps, and what that costs, at a short schedule: a table over lambda_s (trained) and e (applied afterwards).

For each sparsity weight the first tasks of an order that no reported seed uses are learnt; a tenth of the training images is
held out. After the last of them the pool is pruned at every e in turn, and the hold-out is classified with what is kept.
Printed: the share of the pool that is kept, the size of 20 such tasks relative to 20 individual networks (were every later
task to keep the same share of a full pool), and the accuracy before and after pruning. Test images are never read.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any, cast

import torch

from ..data.stream import build_stream
from ..method import Method
from ..nn.factorised import SVDConv2d
from ..protocol import protocols
from ..runner import assemble
from ..settings import recipe_of, resolve
from ..strategy import Watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--protocol", default="split-cifar100")
    parser.add_argument("--tier", default="lite")
    parser.add_argument("--seed", type=int, default=4, help="an order that no reported seed uses")
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--sparsity-weights", type=float, nargs="+", default=[0.1, 1.0, 3.0, 10.0])
    parser.add_argument("--energy-drops", type=float, nargs="+", default=[3e-5, 1e-3, 1e-2, 0.03, 0.05, 0.07, 0.1, 0.2])
    arguments = parser.parse_args()
    for weight in arguments.sparsity_weights:
        sweep(arguments, weight)


def sweep(arguments: argparse.Namespace, weight: float) -> None:
    overrides = {"sparsity_weight": weight, "tasks": arguments.tasks, "holdout": 0.1}
    job = resolve(arguments.protocol, arguments.tier, "cacl", arguments.seed, overrides=overrides)
    protocol, recipe = protocols.get(job.protocol), recipe_of(job.settings)
    stream = build_stream(protocol, recipe, job.seed, data_dir=arguments.data_dir, device=torch.device("cpu"))
    watch = Watch()
    strategy = assemble(job, stream, plugins=[watch])
    method = cast(Any, strategy.method)
    last = len(stream.tasks) - 1
    for experience in stream.train[:last]:
        strategy.train(experience, eval_streams=[])
    prune, method.after_training_exp = method.after_training_exp, Method.after_training_exp.__get__(method)
    strategy.train(stream.train[last], eval_streams=[])

    def accuracy() -> float:
        strategy.eval(stream.test[last : last + 1])
        return 100 * watch.correct[last] / len(stream.test[last].images.labels)

    print(f"sparsity_weight {weight:g}: {accuracy():.1f} % before pruning", flush=True)
    pools = copy.deepcopy(method.pools)
    residuals = {name: layer_state(layer) for name, layer in method.layers.items()}
    for drop in arguments.energy_drops:
        for name, layer in method.layers.items():
            set_layer_state(layer, residuals[name])
        method.pools, method.energy_drop = copy.deepcopy(pools), drop
        prune(strategy)
        kept = {
            name: (layer.ranks[-1] - (layer.ranks[-2] if last else 0)) / pools[name][-1] for name, layer in method.layers.items()
        }
        print(
            f"  energy_drop {drop:<6g} kept {' '.join(f'{share:.2f}' for share in kept.values())}"
            f"  size {relative_size(method, kept, protocol):.3f} of individual  {accuracy():.1f} %",
            flush=True,
        )


def layer_state(layer: SVDConv2d) -> tuple[Any, ...]:
    names = ("N", "sigma", "C", "residual_N", "residual_sigma", "residual_C")
    return (list(layer.ranks), {name: getattr(layer, name).detach().clone() for name in names})


def set_layer_state(layer: SVDConv2d, state: tuple[Any, ...]) -> None:
    ranks, tensors = state
    layer.ranks = list(ranks)
    for name, tensor in tensors.items():
        setattr(layer, name, torch.nn.Parameter(tensor.clone()) if name.startswith("residual") else tensor.clone())
    layer.set_task(-2)


def relative_size(method: Any, kept: dict[str, float], protocol: Any) -> float:
    """(T tasks that each keep these shares of the initial rank) / (T dense networks), heads left out of both."""
    own = sum(kept[n] * method.pools[n][0] * (layer.rows + layer.columns + 1) for n, layer in method.layers.items())
    return own / sum(layer.rows * layer.columns for layer in method.layers.values())


if __name__ == "__main__":
    main()
