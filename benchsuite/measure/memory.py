"""What a method holds between two steps and carries between two tasks: as counted for the boards, and as the allocator says.

Each method learns tiny tasks. In the last of them, after its last step:
- training: kB as counted (`benchsuite.training.accounting`), without the images that the method stores,
- allocated: kB that PyTorch's allocator gave out since the run began and did not take back, less the images, batches, output and
  loss, which do not count; on a GPU it rounds each tensor up to 512 bytes.
After the task before:
- carried: kB as counted, without stored images,
- loaded: kB that the allocator gives out while the checkpoint is loaded.
1 kB = 1000 bytes.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from ..method.registered import methods
from ..record.schema import RunRecord
from ..training.accounting import between_steps, bytes_of, made_since, tensors_in
from ..training.device import device_named
from ..training.environment import environment, source_revision
from ..training.events import Event, Note
from ..training.runner import CARRIED, run
from ..training.settings import resolve
from . import script

TASKS = 3
TINY: dict[str, Any] = {"tasks": TASKS, "train_per_class": 24, "test_per_class": 20, "epochs": 2, "batch_size": 16}


class Given:
    """Bytes that the allocator gives out and does not take back from `__init__` to `stop`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self.start = torch.cuda.memory_allocated(device)
        else:
            self.profile = torch.autograd.profiler.profile(profile_memory=True)
            self.profile.__enter__()

    def stop(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) - self.start
        self.profile.__exit__(None, None, None)
        return sum(e.nbytes() for e in self.profile.kineto_results.events() if e.name() == "[memory]")


class Compare(SupervisedPlugin):
    """Both counts at the end of a run's last training.

    They are made where the run reports an epoch, right after its own count: around an onlooker's hook, a copy of the state of the
    random generators is alive."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.given, self.counted, self.allocated = Given(device), 0, 0

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        self.strategy = weakref.ref(strategy)  # what an onlooker itself holds is not counted

    def reported(self, event: Event | Note) -> None:
        if isinstance(event, Event) and (event.stage + 1, event.epoch) == (event.stages, event.epochs):
            given = self.given.stop()
            counted, left_out = between_steps(self.strategy())
            self.counted = sum(counted.values())
            self.allocated = given - sum(n for place, n in left_out.items() if place in self.own())

    def own(self) -> set[Any]:
        """Places of the tensors that PyTorch allocated for this run: not of images in NumPy's memory, or older tables."""
        tensors = [o for o in made_since() if issubclass(type(o), torch.Tensor)]
        return {(t.device, t.data_ptr()) for t in tensors if t.untyped_storage().resizable()}


def compare(name: str, device: torch.device, results: Path) -> tuple[int, int, int | None, int | None, RunRecord]:
    """Bytes of one method: training, allocated, carried, loaded (see the module), and its record. Carried and loaded are None for
    joint training."""
    job = resolve("split-digits", "smoke", name, 1, overrides=TINY)
    seen, checkpoint, kept = Compare(device), results / job.folder / "checkpoint.pt", results / "checkpoint.pt"

    def keep(event: Event | Note) -> None:
        seen.reported(event)
        if getattr(event, "stage", 0) == TASKS - 1 and checkpoint.exists() and not kept.exists():
            shutil.copy(checkpoint, kept)

    record = run(job, results=results, device=device.type, plugins=[seen], report=keep)
    if not kept.exists():
        return seen.counted, seen.allocated, None, None, record
    gc.collect()
    given = Given(device)
    content = torch.load(kept, map_location=device, weights_only=True)
    loaded = given.stop()
    return seen.counted, seen.allocated, bytes_of(tensors_in([content.get(part) for part in CARRIED])), loaded, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--method", dest="names", action="append", metavar="NAME", help="only these")
    arguments = parser.parse_args()
    device = device_named(arguments.device)
    print("| method | training (kB) | allocated (kB) | carried (kB) | loaded (kB) |\n|---|---:|---:|---:|---:|")
    for name in arguments.names or methods.all():
        with tempfile.TemporaryDirectory() as folder:
            *found, _ = compare(name, device, Path(folder))
        cells = ["–" if n is None else f"{n / 1e3:.3f}" for n in found]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    where = environment(device, [source_revision()])
    print(f"\nsplit-digits, {TASKS} tasks, {where.device_name}, torch {where.versions['torch']}, revision {where.source}")


if __name__ == "__main__":
    script(main)
