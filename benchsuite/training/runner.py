"""One run: (protocol, method, seed, settings) to a RunRecord, with a checkpoint after every task.

`record.folder` names the files of a run. A stale record or checkpoint (`benchsuite.source`) is kept under another name, and the
run starts again.
"""

from __future__ import annotations

import hashlib
import io
import math
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from avalanche.models.dynamic_modules import avalanche_model_adaptation
from msgspec import convert, structs, to_builtins
from torch import Tensor

from .. import files, source
from ..data.sets import Images, MissingData, has_one_form, load_all
from ..errors import Diverged, UserError, one_line
from ..files import write_atomic
from ..method.artifact import Artifact
from ..method.base import Method, plain
from ..method.registered import methods
from ..nn.computed import Images as ComputedImages
from ..nn.multihead import MultiHead
from ..protocol import Protocol, protocols
from ..randomness import seed_globals
from ..record.folder import IN_HAND, Progress, RunFolder
from ..record.predictions import encode
from ..record.schema import Diagnostics, Form, Job, LearntTask, Memory, RunRecord, Seconds, Sizes, Source, UsedData
from ..record.store import RECORD, read
from .accounting import bytes_of, macs, run_alone, tensors_in
from .assemble import assemble, with_header
from .batches import Batches
from .checkpoint import assign_state, is_damaged
from .device import configure_process
from .environment import environment, now, source_revision
from .events import Event, Note
from .logs import Log, check_loggers
from .observer import Observer
from .schedule import check_can_go_back
from .settings import recipe_of
from .stream import TaskStream, build_stream
from .watch import Watch

CARRIED = ("model", "method", "guard", "optimizer")  # what a checkpoint holds in tensors

BEAT = 2.0  # least number of seconds between two updates of progress.json


class RunFailed(Exception):
    """A run stopped without a result. The failure file in its folder says why."""


def run(
    job: Job,
    *,
    results: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    report: Callable[[Event | Note], None] = lambda event: None,
    plugins: Sequence[Any] = (),
    loggers: Sequence[str] = (),
    predictions: bool = False,
    images: Images | None = None,
) -> RunRecord:
    """Run `job`, or resume it, or read its record if it is done.

    report: called with each `Event`, and with a `Note` if the same run is running in another process.
    plugins: Avalanche plugins that look on, called after the method. They are no part of the run's identity, so one that changes
        anything of the run is an error (`training.observer`).
    loggers: any of "tensorboard", "csv" and "wandb" (`training.logs`).
    predictions: also write the answers to all test images after the last task (`record.predictions`); of a finished run, by the
        network in its artifact.
    images: sets that are loaded already, None for one that is missing.
    Raises UserError for what the user can fix (data, folder, device) and RunFailed if training diverged or crashed.
    """
    check_loggers(loggers)
    job = identify(job, data_dir, images, results)
    folder = RunFolder(results / job.folder)
    chosen = configure_process(device, job.precision)
    with folder.gone_if_empty(), ExitStack() as stack:
        try:
            stack.enter_context(folder.locked(wait=False))
        except files.Busy:  # a second process with the same run waits, then finds the record
            report(Note(f"{job}: {IN_HAND}"))
            stack.enter_context(folder.locked())
        folder.clear_unfinished()
        note = None
        if folder.record.exists():
            record = folder.read_of(job)
            if not (reason := source.stale(record)):
                folder.tidy()
                if plugins or loggers:
                    report(Note(f"{job}: is done already, so there is nothing to log or to look at"))
                if predictions and not folder.predictions.exists():
                    with run_alone():
                        _Run(job, folder, data_dir, chosen, report, results, (), (), images).predict(record)
                return record
            note = f"run again ({reason}); the old record is kept as {folder.set_aside()}"
        try:
            with run_alone():
                made = _Run(job, folder, data_dir, chosen, report, results, plugins, loggers, images)
                record = made.finish(note)
                if predictions:
                    made.predict(record)
        except (UserError, KeyboardInterrupt):
            raise
        except (Exception, SystemExit) as error:  # a method may end the process, but not silently
            what = str(error) if isinstance(error, Diverged) else one_line(error)
            folder.write_failure(job, what, traceback.format_exc())
            folder.progress.unlink(missing_ok=True)
            raise RunFailed(f"{job}: {what}; see {folder.failure}") from error
        folder.tidy()
        return record


def identify(job: Job, data_dir: Path | None, images: Images | None = None, results: Path | None = None) -> Job:
    """The job, with a digest of its images if the protocol does not determine them (partial data, image sets without one official
    form), so that runs on different images never count as one. images: sets that are loaded already.

    results: where the images are gone, the job of a finished run there, the latest of those that differ in their images only."""
    recipe = recipe_of(job.settings)
    names = protocols.get(job.protocol).datasets(job.seed, recipe)
    if not recipe.partial_data:
        names = [name for name in names if not has_one_form(name)]
    if job.data or not names:
        return job
    try:
        found = load_all(names, data_dir, partial=recipe.partial_data, given=images)
    except MissingData:
        if results is None or (finished := _finished(job, results)) is None:
            raise
        return finished
    return structs.replace(job, data=files.digest({name: source.digest for name, source in found.items() if source})[:12])


def _finished(job: Job, results: Path) -> Job | None:
    """The job of the latest valid record that differs from this one in nothing but its images."""
    found: list[RunRecord] = []
    beside = results / job.folder.parent
    for name in files.listed(beside)[0]:
        if name.endswith(f"-seed{job.seed}") and (path := beside / name / RECORD).exists():
            with suppress(UserError):
                found.append(read(path))
    same = [r for r in found if structs.replace(r.job, data="").config == job.config and not source.stale(r)]
    return max(same, key=lambda r: r.environment.date).job if same else None


def reported(method: Method) -> Diagnostics:
    """What a method reports of itself. Raises ValueError, naming the method and the key, for what a record cannot hold."""
    with method.same_draws():
        content = method.diagnostics()
    try:
        for name, value in content.items():
            try:
                files.digest(value)
            except (TypeError, ValueError):
                raise ValueError(f"{name} is not plain JSON, or contains NaN or infinity") from None
        return convert(content, Diagnostics)
    except (AttributeError, ValueError) as error:
        known = ", ".join(Diagnostics.__struct_fields__)
        raise ValueError(f"{method.name}: diagnostics() must return {known}, of the types on record: {error}") from None


def made_by(job: Job) -> dict[str, str]:
    """Digests of what this job would be run by now. Raises UserError where its method is another version of that name."""
    if methods.source(job.method) != job.method_source:
        raise UserError(f"{job}: the source of {job.method} has changed since this run was planned", "start it again")
    return source.made_by(job, methods.get(job.method))


class _Run:
    """A run, from its first task or its checkpoint to its record."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        data_dir: Path | None,
        device: torch.device,
        report: Callable[[Event | Note], None],
        results: Path,
        plugins: Sequence[Any],
        loggers: Sequence[str],
        images: Images | None,
    ) -> None:
        self.job, self.folder, self.device, self.report = job, folder, device, report
        self.protocol: Protocol = protocols.get(job.protocol)
        self.recipe = recipe_of(job.settings)
        self.stream: TaskStream = build_stream(
            self.protocol, self.recipe, job.seed, data_dir=data_dir, device=device, images=images
        )
        n = len(self.stream.tasks)
        self.watch = Watch(lambda task, epoch, loss: self._tell(self.done, epoch + 1, loss))
        self.logs = [Log(kind, job, results, [task.name for task in self.stream.tasks]) for kind in loggers]
        onlookers = map(Observer, [*self.logs, *plugins])
        seed_globals(job.seed, "prepare")
        self.strategy = assemble(job, self.stream, device=device, plugins=[self.watch, *onlookers])
        self.method: Method = self.strategy.method
        self.stages = [self.stream.joint()] if self.method.trains_jointly else self.stream.train
        n_images = [len(experience.images.labels) for experience in self.stream.train]
        self.began, self.beat, self.trained = time.monotonic(), -math.inf, 0  # of this process: start, last update, images
        self.images = [sum(n_images)] if self.method.trains_jointly else n_images
        self.done = self.kept = 0  # stages that are learnt, and that the checkpoint holds
        self.made_by = made_by(job)
        self.progress: dict[str, Any] = {
            "correct": [[None] * n for _ in range(n)],
            "stored": [None] * n,
            "iterations": [],
            "seconds": {"train": [], "evaluate": []},
            "training_state_bytes": 0,
            "carried_bytes": 0,
            "images": [0, 0],  # computed forward and backward
            "n_tasks_read": False,
            "memory": [],
            "kept_epochs": [],
            "revisions": [],
        }

    def _tell(self, stage: int, epoch: int, loss: float = float("nan"), note: str | None = None) -> None:
        epochs = self.recipe.epochs
        self.trained += self.images[stage] if epoch else 0
        rate = self.trained / max(time.monotonic() - self.began, 1e-9) or None
        left = sum(self.images[stage:]) * epochs - sum(self.images[stage : stage + 1]) * epoch
        self.event = Event(
            job=self.job,
            stage=stage,
            stages=len(self.stages),
            epoch=epoch,
            epochs=epochs,
            loss=loss,
            images_per_second=rate,
            seconds_left=left / rate if rate else None,
            note=note,
        )
        if time.monotonic() - self.beat > BEAT:
            self._beat()
        self.report(self.event)

    def _beat(self) -> None:
        """Write the progress of the run to disk."""
        state = {name: value for name, value in vars(self.event).items() if name in Progress.__struct_fields__}
        self.folder.write_progress(Progress(**state, kept=self.kept, host=socket.gethostname(), date=now()))
        self.beat = time.monotonic()

    def finish(self, note: str | None = None) -> RunRecord:
        note = self._resume() or note
        if self.recipe.lr_schedule == "patience":
            check_can_go_back(self.method)
        if unsaved := self.method.unsaved():
            note = f"{note}; {unsaved}" if note else unsaved
            note += ": if it is interrupted, this run starts again at its first task"
        self.began = time.monotonic()
        revision = to_builtins(source_revision())
        if revision not in self.progress["revisions"]:
            self.progress["revisions"].append(revision)
        self._tell(self.done, 0, note=note)
        reported(self.method)  # a mistake in it shows now, not after training
        with ExitStack() as stack:
            for log in self.logs:
                stack.enter_context(log.opened(self.done, sum(self.progress["iterations"])))
            for stage in range(self.done, len(self.stages)):
                self._learn(stage)
                self.done = stage + 1
                self._checkpoint()
                self._beat()
        self._artifact().write(self.folder.artifact)
        record = self._record(self.folder.artifact)
        self.folder.write(record)
        return self.folder.read()  # as everybody will read it

    def _learn(self, stage: int) -> None:
        """Train one stage, then evaluate every task so far in one pass."""
        last = stage if len(self.stages) > 1 else len(self.stream.tasks) - 1
        seed_globals(self.job.seed, stage)
        computed = ComputedImages()
        start = time.perf_counter()
        try:
            with computed.counting():
                self.strategy.train(self.stages[stage], eval_streams=[])
        finally:
            self.watch.close()
        if self.event.epoch < self.event.epochs:  # the task ended early
            self.event = replace(self.event, epoch=self.event.epochs, note=None)
            self.report(self.event)
        middle = time.perf_counter()
        self.strategy.eval(self.stream.test[: last + 1])
        end = time.perf_counter()
        p = self.progress
        if self.recipe.lr_schedule == "patience":
            p["kept_epochs"].append(self.strategy.schedule.kept)
        for task, correct in self.watch.correct.items():
            p["correct"][last][task] = correct
        p["stored"][last] = self._artifact().sizes()
        p["iterations"].append(self.watch.iterations)
        p["seconds"]["train"].append(round(middle - start, 3))
        p["seconds"]["evaluate"].append(round(end - middle, 3))
        p["training_state_bytes"] = max(p["training_state_bytes"], self.watch.training_state_bytes)
        p["memory"].append(self.watch.memory)
        p["images"] = [p["images"][0] + computed.forward, p["images"][1] + computed.backward]
        p["n_tasks_read"] |= self.method.run.n_tasks_read

    def _artifact(self) -> Artifact:
        with self.method.same_draws():
            return with_header(self.method.artifact(), self.job, self.stream.tasks)

    def _made_with(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be used: the images and the kind of device."""
        return {"images": {s.name: s.digest for s in self.stream.sets}, "device": self.device.type}

    def _checkpoint(self) -> None:
        model = self.method.model
        content = {
            "config": self.job.config,
            "seed": self.job.seed,
            "made_with": self._made_with(),
            "made_by": self.made_by,
            "threads": torch.get_num_threads(),  # they determine how sums are rounded
            "done": self.done,
            "model": model.state_dict(),
            "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
            "method": vars(self.method) if (unsaved := self.method.unsaved()) else self._state(),
            "guard": self.method.guard.state(),
            "drawn": self.method._drawn,
            "progress": self.progress,
        }
        if not self.recipe.reset_optimizer:
            state = self.strategy.optimizer.state  # by name: a pruned parameter is still in the optimiser but not in the network
            content["optimizer"] = {name: state[p] for name, p in model.named_parameters() if p in state}
        carried = bytes_of(tensors_in([content.get(name) for name in CARRIED])) + self.method.memory_bytes
        self.progress["carried_bytes"] = max(self.progress["carried_bytes"], carried)
        if unsaved:
            return
        self.kept = self.done
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomic(self.folder.checkpoint, buffer.getvalue())

    def _state(self) -> dict[str, Any]:
        state = self.method.state()
        plain(f"{type(self.method).__name__}.state()", state)
        return state

    def _resume(self) -> str | None:
        """Continue from the checkpoint. Returns a note if it is no longer valid and the run starts again."""
        path = self.folder.checkpoint
        try:
            saved = files.read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}", "make it readable, or delete it") from None
        if is_damaged(saved):
            kept = self.folder.set_checkpoint_aside()
            return f"starts again at its first task (its checkpoint is damaged); what is left of it is kept as {kept}"
        try:
            content = torch.load(io.BytesIO(saved), map_location=self.device, weights_only=True)
            config, made_with = content["config"], content["made_with"]
        except Exception as error:
            raise UserError(f"{path}: cannot be read ({type(error).__name__})", "delete it to start this run again") from None
        if (config, content.get("seed", self.job.seed)) != (self.job.config, self.job.seed):
            raise UserError(f"{path}: belongs to another configuration or seed", "delete it to start this run again")
        if made_with != self._made_with():
            raise UserError(
                f"{path}: was made from other images or on another kind of device", "delete it to start this run again"
            )
        if changed := source.changes(content["made_by"]):
            kept = self.folder.set_checkpoint_aside()
            return f"starts again (changed since: {', '.join(changed)}); the old checkpoint is kept as {kept}"
        configure_process(self.device.type, self.job.precision, content["threads"])
        self.done, self.progress = content["done"], self.progress | content["progress"]
        self.kept = self.done
        model = self.method.model.train()
        for experience in self.stages[: self.done]:
            avalanche_model_adaptation(model, experience)
        self.method.load_state(content["method"])  # first, because it may install layers
        assign_state(model, content["model"], set(content["frozen"]))
        model.to(self.device)
        self.method.guard.load_state(content["guard"])
        self.method._drawn = content.get("drawn", {})
        self.strategy.experience = self.stages[self.done - 1]
        if "optimizer" in content:
            self.strategy.make_optimizer(reset_optimizer_state=True)
            for name, state in content["optimizer"].items():
                self.strategy.optimizer.state[model.get_parameter(name)] = state
        self.strategy.clock.train_exp_counter = self.done
        return None

    def _dense_macs(self) -> int:
        """Multiply-accumulates of one image through the plain backbone and the first task's head."""
        recipe = self.recipe
        dense = MultiHead.build(
            recipe.backbone,
            image=self.protocol.image,
            classes=self.stream.classes,
            batchnorm=recipe.batchnorm,
            width=recipe.width,
        )
        dense.add_task(0)
        return macs(dense.eval(), self.protocol.image, 0)

    @torch.no_grad()
    def _answers(self, artifact: bytes) -> list[Tensor]:
        """The predicted class of each test image, task by task, by the network that this file serves, computed as in the
        evaluation of the run: on its device, in its precision and in the same batches."""
        served = type(self.method).restore(Artifact.from_bytes(artifact)).to(self.device).eval()
        strategy, found = self.strategy, []
        with strategy.precise():
            for t, experience in enumerate(self.stream.test):
                batches = Batches([experience.images], [t], strategy.eval_mb_size, augmentation=None, dtype=strategy.dtype)
                found.append(torch.cat([served(x, t).argmax(1) for x, *_ in batches]))
        return found

    def predict(self, record: RunRecord) -> None:
        """Write the answers of the finished network to all test images."""
        answers = self._answers(self.folder.read_artifact(record))
        labels = [experience.images.labels for experience in self.stream.test]
        content = encode(record, *([part.cpu().numpy() for part in parts] for parts in (answers, labels)))
        write_atomic(self.folder.predictions, content)

    def _forms(self, artifact: Artifact) -> tuple[dict[str, Form], list[str]]:
        """The network as it is served from each storage form, and why it cannot be stored in some."""
        forms: dict[str, Form] = {}
        refused, first = [], None
        for name in self.method.forms:
            try:
                encoded = artifact.encoded(name, self.method.unit_axes)
            except UserError as error:
                refused.append(str(error))
                continue
            answers = self._answers(encoded.to_bytes())
            first = first or answers
            right = [(a == e.images.labels).sum() for a, e in zip(answers, self.stream.test, strict=True)]
            changed = sum((a != b).sum() for a, b in zip(answers, first, strict=True))
            *correct, changed = torch.stack([*right, changed]).tolist()
            forms[name] = Form(sizes=Sizes(**encoded.sizes()), correct=correct, changed=changed)
        return forms, refused

    def _record(self, artifact: Path) -> RunRecord:
        exported = Artifact.read(artifact)
        served = type(self.method).restore(exported)  # from the file alone, as in serving
        forms, refused = self._forms(exported)
        tasks = self.stream.tasks
        p = self.progress
        diagnostics = reported(self.method)
        alternatives = {
            name: sum(with_header(other, self.job, tasks).sizes().values()) for name, other in self.method.alternatives().items()
        }
        return RunRecord(
            job=self.job,
            tasks=[
                LearntTask(
                    name=task.name,
                    dataset=task.dataset,
                    classes=list(task.classes),
                    train=len(self.stream.train[t].images.labels),
                    test=len(self.stream.test[t].images.labels),
                )
                for t, task in enumerate(tasks)
            ],
            correct=p["correct"],
            stored=convert(p["stored"], list[Sizes | None]),
            macs=[macs(served, self.protocol.image, t) for t in range(len(tasks))],
            iterations=p["iterations"],
            kept_epochs=p["kept_epochs"],
            training_state_bytes=p["training_state_bytes"],
            activation_bytes=max(m.get("held", 0) for m in p["memory"]),
            memory=Memory(**{name: [m.get(name, 0) for m in p["memory"]] for name in p["memory"][0]}),
            seconds=Seconds(**p["seconds"]),
            data=[UsedData(name=s.name, digest=s.digest, complete=s.complete, note=s.note, own=s.own) for s in self.stream.sets]
            + [
                UsedData(name=name, digest="", complete=False, note="missing, its tasks are left out")
                for name in sorted({t.dataset for t in self.protocol.tasks} - {s.name for s in self.stream.sets})
                if self.recipe.partial_data
            ],
            environment=environment(self.device, convert(p["revisions"], list[Source])),
            dense_macs=self._dense_macs(),
            memory_bytes=self.method.memory_bytes,
            carried_bytes=None if self.method.trains_jointly else p["carried_bytes"],
            forward_images=p["images"][0],
            backward_images=p["images"][1],
            n_tasks_read=p["n_tasks_read"],
            size_reference=self.method.size_reference,
            family=self.method.family,
            label=self.method.label,
            marker=self.method.marker,
            diagnostics=structs.replace(
                diagnostics,
                other_sizes={**alternatives, **diagnostics.other_sizes},
                remarks=[*diagnostics.remarks, *refused],
            ),
            made_by=self.made_by,
            artifact_sha256=hashlib.sha256(artifact.read_bytes()).hexdigest(),
            forms=forms,
        )
