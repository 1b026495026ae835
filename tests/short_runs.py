"""Strategies on a few digits, for tests that look inside a training."""

import torch

from benchsuite.nn import decompose
from benchsuite.protocol import protocols
from benchsuite.randomness import seed_globals
from benchsuite.training.assemble import assemble
from benchsuite.training.settings import recipe_of, resolve
from benchsuite.training.stream import build_stream

TINY = {"train_per_class": 24, "test_per_class": 20, "epochs": 2, "batch_size": 16}


def make(*plugins, method="finetune", precision="fp32", dtype=torch.float32, **settings):
    """A strategy on split-digits and its stream, as the runner makes them."""
    job = resolve("split-digits", "smoke", method, 1, overrides=TINY | settings, precision=precision)
    protocol, recipe = protocols.get("split-digits"), recipe_of(job.settings)
    stream = build_stream(protocol, recipe, 1, data_dir=None, device=torch.device("cpu"))
    seed_globals(1)
    strategy = assemble(job, stream, plugins=plugins)
    if dtype == torch.float64:
        for t in range(len(stream.tasks)):
            strategy.model.add_task(t)
        strategy.model.double()
        strategy.dtype = dtype
    return strategy, stream


def trained(*plugins, tasks=1, **settings):
    """The same after its first tasks."""
    strategy, stream = make(*plugins, **settings)
    for experience in stream.train[:tasks]:
        strategy.train(experience, eval_streams=[])
    return strategy, stream


def quick_fits(patch):
    """Two sweeps for each fit of CP terms, in place of 200, where no test asks how good a fit is."""
    fit = decompose.cp_fit
    patch.setattr(decompose, "cp_fit", lambda kernel, rank, penalty, sweeps=2: fit(kernel, rank, penalty, sweeps))


def weights(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])
