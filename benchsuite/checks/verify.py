"""Does a record reproduce? Its job is run again with the record's own settings, and the two records are compared.

identical: every number that a run determines is the same (`record.schema.differences`). It must be so on the same kind of
machine: device, threads, vector instructions of the processor and versions of the libraries.

within interval: on another kind of machine, sums are rounded in another order and training amplifies the differences, so the two
runs are two trainings by one recipe with one test set. Let p_j be the probability that a training classifies image j correctly,
and let the two trainings err independently. The difference of two accuracies on n images then has mean 0 and variance
2/n^2 sum_j p_j (1 - p_j), which is at most 2/n p (1 - p) with p the mean of the p_j (p (1 - p) is concave). p is estimated from
both runs together, with two correct and two wrong answers added, so that accuracies of 0 and 100 % have an interval too. Compared
are the final accuracy of each task, ACC and, if measured, learning accuracy; the variances of the last two are those of means of
independent terms. Each difference must lie within z standard deviations, where z is such that, by the normal approximation, sound
runs fail with probability LEVEL over all comparisons together (Bonferroni).

What this covers: the finite test set, with room to spare, because most images are nearly always classified correctly or nearly
always wrongly (p_j (1 - p_j) is far below p (1 - p)). What it does not cover: one training may be luckier than another on all
images of a task at once. If nothing is forgotten, the spare room is enough for that. How much of a task is forgotten, however,
depends on chance: over the published runs of one job in fp32 and bf16, final accuracies differ by 0.4 (individual networks), 1.2
(CACL) and 2.0 (fine-tuning) of the standard deviation above (root mean square over tasks), and the last figure is explained by a
standard deviation of 0.09 of what was forgotten. Therefore FORGOTTEN = 0.1 of a task's forgetting, as a standard deviation of
each of the two runs, is added to the variance of its final accuracy. It was measured on one protocol with three methods and is
not a law. Nor is agreement within the interval a proof: smaller differences are not detected.

Sizes must be the same if they follow from the settings, and within 5 % if they are learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtri

from ..data.sets import load_all
from ..errors import UserError
from ..fields import field_types, misfit, neutral_values
from ..method.registered import methods
from ..protocol import Recipe, protocols, unused
from ..record import schema, store
from ..record.folder import RunFolder
from ..record.schema import Environment, Job, RunRecord
from ..registry import suggest
from ..training.device import configure_process
from ..training.environment import source_revision
from ..training.events import Event, Note
from ..training.runner import run
from ..training.settings import PRECISIONS, check_protocol, method_of, recipe_of, unsupported

LEVEL = 0.01  # probability that two sound runs are called different, over all comparisons

FORGOTTEN = 0.1  # standard deviation between trainings of what is forgotten of a task, as a share of it

SIZE = 0.05  # largest relative difference of a learnt size


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """reproduced: whether the record reproduces; words: the verdict; remarks: further information, one line each."""

    reproduced: bool
    words: str
    remarks: list[str]


def verify(
    path: Path,
    *,
    scratch: Path,
    data_dir: Path | None = None,
    device: str = "auto",
    report: Callable[[Event | Note], None] = lambda event: None,
) -> Verdict:
    """Run the job of the record at `path` again, below the folder `scratch`, and compare.

    It uses the record's number of threads and, with device "auto", the record's kind of device if this machine has one. An
    interrupted verification resumes. Raises UserError if the job cannot be run here, and `runner.RunFailed` if its run fails.
    """
    record = store.read(path)
    job = record.job
    remarks = [f"note: {note}" for note in check_job(job, strict=True)]
    check_images(record, data_dir)
    where = record.environment
    if device == "auto":
        device = "cuda" if where.device == "cuda" and torch.cuda.is_available() else "cpu"
    configure_process(device, job.precision)
    own = RunFolder(scratch / job.folder)
    if own.record.exists() and own.record.samefile(path):
        raise UserError(f"{path}: was itself made by `benchsuite verify`", "name the record to verify")
    before = torch.get_num_threads()
    if own.record.exists():
        if _made_here(own.read_of(job).environment, where.threads, device):
            remarks.append(f"compared with the re-run of an earlier verification by the same code: {own.record}")
        else:
            own.record.unlink()
    try:
        configure_process(device, job.precision, where.threads)
        again = run(job, results=scratch, data_dir=data_dir, device=device, report=report)
    finally:
        configure_process(device, job.precision, before)
    return compare(record, again, learnt=method_of(job.method, job.settings).size_is_learnt, remarks=remarks)


def check_job(job: Job, *, strict: bool = False) -> list[str]:
    """Raises UserError if no run by this version can have this job. What cannot be checked, because the protocol or the method is
    not known here, is returned as remarks or, if `strict`, is an error too."""
    if job.precision not in PRECISIONS:
        raise UserError(f"no precision is called {job.precision!r}", suggest(job.precision, PRECISIONS))
    remarks = []
    recipe_kinds = field_types(Recipe)
    known = set(recipe_kinds)
    if missing := [name for name in ("backbone", "epochs") if name not in job.settings]:
        raise UserError(f"the setting {missing[0]} is missing and has no default")
    try:
        recipe = recipe_of(job.settings)
        if job.protocol in protocols.all():
            protocol = protocols.get(job.protocol)
            protocol.recipe(job.tier)
            check_protocol(protocol, recipe)
        elif strict:
            protocols.get(job.protocol)
        else:
            remarks.append(f"the protocol {job.protocol} is not known here, so its tasks were not checked")
        if reason := _unknown(job):
            if strict:
                raise UserError(reason)
            return [*remarks, f"{reason}; its settings were not checked"]
        cls = methods.get(job.method)
        kinds = field_types(cls)
        if unknown := sorted(set(job.settings) - known - set(kinds)):
            raise UserError(f"{unknown[0]!r} is not a setting of {job.method} in this version of benchsuite")
        if wrong := misfit(job.settings, kinds):
            raise UserError(f"{job.method}: {wrong}")
        if reason := unsupported(method_of(job.method, job.settings), recipe):
            raise UserError(f"{job.method} cannot run like this: {reason}")
    except (TypeError, ValueError) as error:
        raise UserError(f"{job.method}: {error}") from None
    left_out = {
        "batchnorm",
        *unused(recipe.lr_schedule),
        *neutral_values(Recipe),
        *neutral_values(cls),
    }  # where they have no effect
    absent = sorted({*known, *kinds} - set(job.settings) - left_out)
    return remarks + [f"{name} did not exist when the record was made; this version's default is used" for name in absent]


def _unknown(job: Job) -> str | None:
    """Why the method of this job is not known here; None if it is."""
    try:
        methods.get(job.method)
    except UserError as error:
        reason = str(error)
        if job.base in methods.all():  # it is what the method trains with that is not known
            return reason
    else:
        here = methods.source(job.method)
        if here == job.method_source:
            return None
        if here and job.method_source:
            return f"{job.method} was made from another version of its source ({job.method_source[:12]}, here {here[:12]})"
        if here:
            return f"{job.method} was made with the built-in method of that name"
        reason = f"{job.method} is built in here"
    if job.method_source:
        return f"{reason}; the record is of a method in a file ({job.method_source[:12]}): name it with --method FILE"
    return reason


def check_images(record: RunRecord, data_dir: Path | None) -> None:
    """Raises UserError if the images here are not those of the record. Called before the run, which may take hours."""
    partial = recipe_of(record.job.settings).partial_data
    on_record = {entry.name: entry.digest for entry in record.data}
    names = dict.fromkeys(task.dataset for task in record.tasks)
    for name, images in load_all(names, data_dir, partial=partial).items():
        if images and images.digest != on_record.get(name):
            raise UserError(
                f"{name}: the images here (digest {images.digest[:12]}) are not those of the record "
                f"({str(on_record.get(name))[:12]})",
                "name the folder that has them with --data-dir",
            )


def _made_here(environment: Environment, threads: int, device: str) -> bool:
    """Whether a run made in that environment would be the same now."""
    now = source_revision()
    made = (environment.source, environment.earlier_sources, environment.threads, environment.device)
    return made == (now, [], threads, device) and not now.dirty and environment.versions.get("torch") == version("torch")


def compare(record: RunRecord, again: RunRecord, *, learnt: bool, remarks: Sequence[str] = ()) -> Verdict:
    """The verdict on a record and its re-run. learnt: whether the size of the method is learnt."""
    said = [*remarks, *_machines(record, again)]
    different = schema.differences(record, again)
    if not different:
        return Verdict(reproduced=True, words="identical", remarks=said)
    said.append(f"not identical in: {', '.join(different)}")
    outside = []
    if same_kind(record.environment, again.environment):
        outside.append(
            "both were made on the same kind of machine with the same versions of the libraries, so they must be identical"
        )
    if record.tasks != again.tasks or record.iterations != again.iterations:
        outside.append("tasks or iterations differ, so this is not the same training")
    else:
        for what, one, other, bound in intervals(record, again):
            if abs(one - other) > bound:
                outside.append(f"{what}: {one:.2f} % on record, {other:.2f} % here; the allowed difference is {bound:.2f}")
            elif what in ("ACC", "learning accuracy"):
                said.append(f"{what}: {one:.2f} % on record, {other:.2f} % here; the allowed difference is {bound:.2f}")
    old, new = record.stored_bytes, again.stored_bytes
    if not learnt and record.stored != again.stored:
        outside.append(f"stored bytes: {old:,} on record, {new:,} here; they follow from the settings and must not differ")
    elif abs(new - old) > SIZE * old:
        outside.append(f"stored bytes: {old:,} on record, {new:,} here; the allowed difference is {SIZE:.0%}")
    for form in [form for form in record.forms if form in again.forms and not learnt]:
        old, new = (r.forms[form].sizes.total for r in (record, again))
        if old != new:
            outside.append(f"stored bytes in {form}: {old:,} on record, {new:,} here; they follow from the settings")
    words = "NOT reproduced" if outside else "reproduced within interval"
    return Verdict(reproduced=not outside, words=words, remarks=said + outside)


def intervals(record: RunRecord, again: RunRecord) -> list[tuple[str, float, float, float]]:
    """What is compared, its two values in per cent, and the allowed difference: see the top of this file."""
    tests = np.array([task.test for task in record.tasks], dtype=float)
    T = len(tests)
    one, other = (np.array(r.correct, dtype=float) for r in (record, again))
    pairs = [("ACC", one[-1], other[-1])]
    forgotten = np.nan_to_num((one.diagonal() + other.diagonal() - one[-1] - other[-1]) / 2 / tests).clip(0)
    if not (np.isnan(one.diagonal()) | np.isnan(other.diagonal())).any() and T > 1:
        pairs.append(("learning accuracy", one.diagonal(), other.diagonal()))
    z = ndtri(1 - LEVEL / 2 / (T + len(pairs)))
    found = []
    for what, a, b in pairs:
        p = (a + b + 2) / (2 * tests + 4)
        variance = 2 * p * (1 - p) / tests + (2 * (FORGOTTEN * forgotten) ** 2 if what == "ACC" else 0)
        mean = 100 * (a / tests).mean(), 100 * (b / tests).mean()
        found.append((what, float(mean[0]), float(mean[1]), 100 * float(z * variance.sum() ** 0.5) / T))
        if what == "ACC":
            for task, *values in zip(record.tasks, 100 * a / tests, 100 * b / tests, 100 * z * variance**0.5, strict=True):
                x, y, bound = map(float, values)
                found.append((f"task {task.name}", x, y, bound))
    return found


def same_kind(one: Environment, other: Environment) -> bool:
    """Whether two environments round alike. An older record does not say which instructions its processor has."""
    alike = all(getattr(one, name) == getattr(other, name) for name in ("device", "device_name", "threads", "instructions"))
    versions = ({k: v for k, v in e.versions.items() if k != "benchsuite"} for e in (one, other))
    return alike and one.instructions is not None and next(versions) == next(versions)


def _machines(record: RunRecord, again: RunRecord) -> list[str]:
    """How the machines and the code of the two runs differ, if they do."""
    found = []
    for what, get in (
        ("machine", lambda e: e.machine),
        ("instructions", lambda e: "unknown" if e.instructions is None else e.instructions),
        ("torch", lambda e: e.versions.get("torch")),
        ("source revision", lambda e: str(e.source)),
    ):
        old, new = get(record.environment), get(again.environment)
        if old != new or "uncommitted" in str(new):
            found.append(f"{what}: {old} on record, {new} here")
    if earlier := again.environment.earlier_sources:
        found.append(f"the re-run was resumed after the code had changed, from {', '.join(map(str, earlier))}")
    return found
