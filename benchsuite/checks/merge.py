"""Records made elsewhere: all are checked before anything is written, and records that do not hold are refused with the reason.

Nothing here is ever overwritten. Files are written completely or not at all, an artifact before its record, and a run that is
here already with the same numbers is skipped, so that after a kill the same command ends in the same state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import asdict, replace

from .. import files
from ..data import datasets
from ..errors import UserError, one_line
from ..method.artifact import Artifact
from ..method.registered import methods
from ..protocol import protocols
from ..record import imported, schema, store
from ..record.folder import ARTIFACT, PREDICTIONS, RunFolder
from ..record.imported import IMPORTED
from ..record.predictions import predictions
from ..record.schema import PARTS, RunRecord
from ..record.store import RECORD
from ..source import stale
from ..text import clean
from ..training.settings import TUNING_SEEDS, method_of, recipe_of
from . import imports
from .verify import check_job

APART = ("tune", "verify")  # folders of trials and re-runs, which no leaderboard ranks


def merge(source: Path, results: Path, say: Callable[[str], None], refuse: Callable[[str], None]) -> dict[str, int]:
    """Add the records below `source` to `results`, and the imported results. Returns how many were added, were here already, and
    were refused.

    say: called with each remark on a record that holds. refuse: called with the reason for each that does not. Both get one line.
    Raises UserError if there is nothing to merge or `results` cannot be written; what was added until then stays.
    """
    if not source.is_dir():
        raise UserError(f"{source}: is not a folder", f"name one below which {RECORD} files lie")
    paths = [path for path in files.named_below(source, RECORD) if path.relative_to(source).parts[0] not in APART]
    made_elsewhere = files.named_below(source, IMPORTED)
    if not paths and not made_elsewhere:
        raise UserError(f"{source}: there is no {RECORD} below it", "name the results folder that the runs were made in")
    sound: dict[Path, RunRecord] = {}
    bare = 0
    count = {"added": 0, "here already": 0, "refused": 0}
    agreed: dict[str, dict[tuple[str, str], str]] = {}  # by protocol: what all records that hold say about its images
    for path in paths:
        try:
            record = store.read(path)
            remarks = check(record)
            bare += not check_artifact(record, path.parent)
            if RunFolder(path.parent).predictions.exists():
                predictions(path)
        except UserError as error:
            count["refused"] += 1
            refuse(_line(path, error))
            continue
        except Exception as error:  # anybody can write a record: an unforeseen error refuses only this one
            count["refused"] += 1
            refuse(f"{path}: {clean(one_line(error))[:200]}")
            continue
        if (protocol := record.job.protocol) not in agreed:
            agreed[protocol] = _agreed_here(results / protocol)
        here = agreed[protocol]
        if other := next(((what, value) for what, value in claims(record) if here.get(what, value) != value), None):
            count["refused"] += 1
            refuse(f"{path}: {other[0][0]}: {other[1]} on record, {here[other[0]]} in the records here")
            continue
        here.update(claims(record))
        sound[path] = record
        if reason := stale(record):
            remarks.append(f"{reason}: `benchsuite leaderboard` runs it again")
        for remark in remarks:
            say(f"{path}: {remark}")
    if bare:
        say(f"{bare} of {len(paths)} records have no artifact beside them, so their sizes could not be checked")
    for path, record in sound.items():  # only now is anything written
        try:
            count["added" if _bring(record, path.parent, results / record.job.folder) else "here already"] += 1
        except _Refused as error:
            count["refused"] += 1
            refuse(_line(path, error))
        except OSError as error:  # a name that this file system cannot hold, for example
            count["refused"] += 1
            refuse(f"{path}: cannot be brought in: {error.strerror}")
    for path in made_elsewhere:
        try:
            result = imported.read(path)
            imports.check(result)
            count["added" if imported.write(result, results) else "here already"] += 1
        except UserError as error:
            count["refused"] += 1
            refuse(_line(path, error))
        except OSError as error:
            count["refused"] += 1
            refuse(f"{path}: cannot be brought in: {error.strerror}")
    return count


class _Refused(UserError):
    """About one record; any other UserError is about the results folder and ends the merge."""


def _line(path: Path, error: UserError) -> str:
    """What is wrong with a record. The remedy ("delete it and run again") is for the owner of a results folder."""
    return error.problem if str(path.parent) in error.problem else f"{path}: {error}"


def check(record: RunRecord) -> list[str]:
    """A record must be consistent, and agree with its protocol and method if they are known here.

    Returns remarks, one line each. Raises UserError for what does not hold."""
    job, T = record.job, len(record.tasks)
    if job.seed in TUNING_SEEDS:
        raise UserError(f"seed {job.seed} is used for tuning, so no result is reported for it")
    remarks = check_job(job)
    recipe = recipe_of(job.settings)
    together = len(record.iterations) == 1
    values = {"ACC": record.accuracy}
    if T > 1 and not together:
        values |= {"BWT": record.bwt, "forgetting": record.forgetting, "learning accuracy": record.learning_accuracy}
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(f"{name} cannot be computed: the accuracy matrix has gaps, although the tasks were learnt one by one")
    images = {entry.name: entry for entry in record.data}
    digests = official_digests()
    for name, entry in images.items():
        official = digests.get(name)
        if entry.complete and official and entry.digest != official:
            raise UserError(f"{name}: marked as complete, but its images (digest {entry.digest[:12]}) are not the official ones")
        if not entry.complete:
            remarks.append(f"{name} is not the published benchmark: {entry.note or 'incomplete'}")
    for task in record.tasks:
        if task.dataset not in images:
            raise UserError(f"task {task.name}: no images of {task.dataset} are on record")
        most = (recipe.test_per_class or math.inf) * len(task.classes)
        if task.test > most:
            raise UserError(f"task {task.name}: {task.test} test images, but its settings allow {most}")
    if job.protocol in protocols.all():
        protocol = protocols.get(job.protocol)
        order = protocol.sequence(job.seed, recipe)
        if recipe.partial_data:
            order = [task for task in order if task.dataset in images and images[task.dataset].digest]
        expected = [(task.name, task.dataset, list(task.classes)) for task in order]
        if [(task.name, task.dataset, task.classes) for task in record.tasks] != expected:
            raise UserError(f"its tasks are not those of {job.protocol} in the order of seed {recipe.ordered_by(job.seed)}")
    if job.base in methods.all() and methods.source(job.method) == job.method_source:
        made = method_of(job.method, job.settings)
        if T > 1 and together != made.trains_jointly:
            raise UserError(f"{len(record.iterations)} trainings for {T} tasks, which is not how {job.method} learns")
    return remarks


def official_digests() -> dict[str, str | None]:
    """The digest of each built-in data set, None where nobody has published one."""
    known = {name: dataset.official for name, dataset in datasets.all().items() if datasets.is_built_in(name)}
    return {name: official.digest if official else None for name, official in known.items()}


def check_artifact(record: RunRecord, folder: Path) -> bool:
    """Whether there is an artifact beside the record. Raises UserError if it is not the one that the record describes."""
    path = RunFolder(folder).artifact
    if not path.exists():
        return False
    content = RunFolder(folder).read_artifact(record)
    artifact = Artifact.read(path)
    sizes = dict.fromkeys(PARTS, 0)
    for name, tensor in artifact.tensors.items():
        sizes[name.split("/")[0]] += tensor.numel() * tensor.element_size()
    sizes["other"] += len(content) - sum(sizes.values())
    said = asdict(record.final_sizes)
    if sizes != said:
        raise UserError(f"{path}: contains {sizes} bytes, but its record says {said}")
    known = record.job.base in methods.all() and methods.source(record.job.method) == record.job.method_source
    for form in record.forms if known else ():
        sizes, said = artifact.encoded(form, methods.get(record.job.method).unit_axes).sizes(), asdict(record.forms[form].sizes)
        if sizes != said:
            raise UserError(f"{path}: in {form} it takes {sizes} bytes, but its record says {said}")
    served = artifact.header.get("tasks")
    tasks = [(t.get("name"), t.get("classes")) for t in served if isinstance(t, dict)] if isinstance(served, list) else []
    own = [(task.name, task.classes) for task in record.tasks]
    if tasks != own or artifact.header.get("method") != record.job.method:
        raise UserError(f"{path}: its tasks or its method are not those of its record")
    return True


def claims(record: RunRecord) -> list[tuple[tuple[str, str], str]]:
    """What the records of one protocol must agree on: the images of each complete set, and how many of them each task has.

    If the images are part of a run's identity (`Job.data`), runs on other images are other runs, and nothing is claimed."""
    if record.job.data:
        return []
    digests = {entry.name: entry.digest for entry in record.data if entry.complete}
    cut = str([record.job.settings.get(name) for name in ("train_per_class", "test_per_class", "holdout", "validation")])
    return [((f"images of {name}", ""), value[:12]) for name, value in digests.items()] + [
        ((f"training and test images of task {task.name}", cut), f"{task.train} and {task.test}")
        for task in record.tasks
        if task.dataset in digests
    ]


def _agreed_here(folder: Path) -> dict[tuple[str, str], str]:
    """What the records here claim. One that cannot be read claims nothing, and is refused when it is ranked."""
    agreed: dict[tuple[str, str], str] = {}
    for path in files.named_below(folder, RECORD):
        try:
            record = store.read(path)
        except UserError:
            continue
        for what, value in claims(record):
            agreed.setdefault(what, value)
    return agreed


def _bring(record: RunRecord, source: Path, target: Path) -> bool:
    """Put a record and its artifact in place. False if the record is there already."""
    here, there = RunFolder(target), RunFolder(source)
    pairs = ((there.artifact, here.artifact), (there.predictions, here.predictions))
    if not here.record.exists() or any(new.exists() and not old.exists() for new, old in pairs):
        try:
            with here.locked(wait=False):
                here.clear_unfinished()
                return _place(record, source, target)
        except files.Busy as error:
            raise _Refused(str(error)) from None
    return _place(record, source, target)


def _place(record: RunRecord, source: Path, target: Path) -> bool:
    own = target / RECORD
    there = own.exists()
    if there:
        _agree(record, own)
    for name in (ARTIFACT, PREDICTIONS, *(() if there else (RECORD,))):
        try:
            content = files.read(source / name) if (source / name).exists() else None
            found = files.read(target / name) if (target / name).exists() else None
        except OSError as error:
            raise _Refused(f"cannot be read: {error.strerror}") from None
        if content is None or content == found:
            continue
        if found is not None:
            raise _Refused(f"{target / name} is here already and is another file", "move it away, or keep what is here")
        files.write_atomic(target / name, content)
    return not there


def _agree(record: RunRecord, own: Path) -> None:
    """Raises UserError if the record here is not of the same run with the same numbers."""
    try:
        here = store.read_of(record.job, own)
    except UserError as error:
        raise _Refused(f"a record is here already, but {error}") from None
    if different := schema.differences(replace(record, job=here.job), here):
        raise _Refused(
            f"here already with other numbers ({', '.join(different)}): made {_provenance(record)}, here {_provenance(here)}",
            "nothing was changed",
        )


def _provenance(record: RunRecord) -> str:
    e = record.environment
    made = f"torch {e.versions.get('torch')}, revision {e.source}, {e.date[:10]}"
    return f"on {e.machine}, {made}"
