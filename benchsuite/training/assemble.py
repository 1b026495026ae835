"""The strategy, network and method of a job, ready to train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from avalanche.core import SupervisedPlugin

from ..method.artifact import Artifact
from ..method.base import RunInfo
from ..nn.multihead import MultiHead
from ..protocol import Task, protocols
from ..record.schema import Job
from .settings import method_of, recipe_of, refuse_single_images
from .strategy import Strategy
from .stream import TaskStream


def assemble(
    job: Job, stream: TaskStream, *, device: torch.device | str = "cpu", plugins: Sequence[SupervisedPlugin] = ()
) -> Strategy:
    """The strategy of a job at the start of a run: its method on the protocol's network, ready to train."""
    recipe, method = recipe_of(job.settings), method_of(job.method, job.settings)
    protocol = protocols.get(job.protocol)
    if any(len(experience.images.labels) == 1 for experience in stream.train):
        refuse_single_images(protocol, recipe, "a task with one training image")
    model = MultiHead.build(
        recipe.backbone,
        image=protocol.image,
        classes=stream.classes,
        dropout=recipe.dropout,
        seed=recipe.drawn_by(job.seed),
        batchnorm=recipe.batchnorm,
        width=recipe.width,
        init=recipe.init,
    )
    # A run on the first tasks is bit-identical to the beginning of the whole run.
    n_tasks = len(protocol.tasks) if recipe.tasks else len(stream.tasks)
    method.begin(RunInfo(seed=job.seed, recipe=recipe, n_tasks=n_tasks), model, device)
    return Strategy(
        model=method.model,
        method=method,
        recipe=recipe,
        augmentation=stream.augmentation,
        seed=job.seed,
        precision=job.precision,
        device=device,
        plugins=plugins,
    )


def with_header(artifact: Artifact, job: Job, tasks: Sequence[Task]) -> Artifact:
    """The artifact with the header that serving needs: its method, its tasks and their classes."""
    artifact.header |= {
        "method": job.method,
        "protocol": job.protocol,
        "tasks": [
            {"name": t.name, "classes": list(t.classes), "pad": t.pad, "mean": list(t.mean), "std": list(t.std)}
            | ({} if t.orientation == "upright" else {"orientation": t.orientation})
            for t in tasks
        ],
    }
    return artifact
