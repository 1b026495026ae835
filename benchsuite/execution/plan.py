"""Which runs a board needs and which of them are missing, running these, and ranking all results.

    plan = benchsuite.plan("split-digits", tier="smoke", methods=["finetune", "cacl", "./anchor.py"], seeds=[1, 2])
    print(plan.not_applicable, len(plan.missing()), "of", len(plan.jobs))
    failed = plan.run(jobs=2)
    print(plan.leaderboard().accuracy)

`benchsuite leaderboard` and `benchsuite status` call this. Each run has a process of its own, which does not import the script or
notebook that started it: no `if __name__ == "__main__":` is needed, but a method must be installed or defined in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from ..analysis.leaderboard import Leaderboard, leaderboard
from ..data.declared import datasets
from ..data.sets import Images, MissingData, load_all
from ..errors import UserError
from ..fields import field_types
from ..method.registered import methods as registered
from ..protocol import Protocol, Recipe, protocols
from ..record import imported as imports
from ..record.folder import RunFolder
from ..record.schema import Job
from ..record.served import read_served
from ..record.store import read_board, read_usable
from ..registry import suggest
from ..source import stale
from ..training.device import cores, device_named, slow_precision
from ..training.events import Event, Note
from ..training.logs import check_loggers
from ..training.runner import identify
from ..training.settings import Unsupported, method_of, one_class_tasks, recipe_of, refuse_tuning_seeds, resolve
from . import grid
from .grid import run_all
from .local import Local
from .match import matching_width, stored_bytes
from .messages import Begun, Done
from .ray import Cluster
from .worker import RunContext

SEEDS = (1, 2, 3)

Report = Callable[[Event | Note | Begun | Done], None]


class NotRun(UserError):
    """What is missing cannot be run, or not all of it, although the options are in order: data or a cluster are not there."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a board, as `plan` has resolved them.

    settings: for each method, those of the given settings that it has. reference: a job of the method whose size is matched.
    jobs: every run of the board. not_applicable: methods that cannot run with these settings, and why.
    """

    protocol: Protocol
    tier: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Mapping[str, Any]]
    precision: str
    device: str
    results: Path
    data_dir: Path | None
    loggers: tuple[str, ...] = ()
    predictions: bool = False
    plugins: tuple[str, ...] = ()
    plugin_files: tuple[Path, ...] = ()
    reference: Job | None = None
    jobs: tuple[Job, ...] = ()
    not_applicable: Mapping[str, str]

    def missing(self) -> list[Job]:
        """The jobs without a valid record, or without predictions if they are asked for, longest first."""
        return grid.missing(self.jobs, self.results, predictions=self.predictions)

    def run(
        self,
        jobs: int | None = None,
        *,
        ray: str | None = None,
        cpus_per_run: float | None = None,
        gpus_per_run: float | None = None,
        report: Report = lambda message: None,
    ) -> dict[str, str]:
        """Run what is missing, each run in a process of its own. Returns the errors by run folder.

        Finished runs are never repeated; after an interruption, call this again to continue. With `match_size`, every other
        method whose size can be computed then also runs at the largest width at which it stores no more than the reference.

        jobs: number of runs at once on this machine (default: one per core on a CPU, one on a GPU).
        ray: use the Ray cluster at this address instead of this machine; "local" starts one here. cpus_per_run (default: 1) and
        gpus_per_run (default: 1 with device "cuda", else 0) are reserved for each run; the latter may be a fraction.
        report: called with progress and with notes for the user, which are shown nowhere else.
        Raises NotRun if images are missing or the cluster is not there, or no longer; finished runs are kept.
        """
        self._check(jobs, ray, cpus_per_run, gpus_per_run)
        if ray is None and (note := slow_precision(self.device, self.precision)):  # the nodes of a cluster may differ
            report(Note(note))
        seen = (one_class_tasks(self.protocol, job.seed, recipe_of(job.settings)) for job in self.jobs)
        for line in dict.fromkeys(filter(None, seen)):
            report(Note(line))
        run = partial(self._run, slots=jobs, address=ray, cpus=cpus_per_run, gpus=gpus_per_run, report=report)
        try:
            failed = run(self.jobs)
            return failed | run(self.matched(report)) if self.reference else failed
        except UserError as error:
            raise NotRun(error.problem, error.remedy) from error

    def matched(self, report: Report = lambda message: None) -> tuple[Job, ...]:
        """The jobs of equal size: every other method whose size can be computed, at the largest width at which it stores no more
        than the reference, and the planned size references at each of these widths, which ratios and forward gains are relative
        to. Empty until the reference has a record."""
        assert self.reference is not None, "a plan without match_size has nothing to match"
        records, _ = read_usable(self.results / self.protocol.name / self.tier)
        sizes = [record.stored_bytes for record in records if record.job.config == self.reference.config]
        if not sizes:
            return ()
        wide: dict[tuple[str, float], Mapping[str, Any]] = {}
        target, reference = fmean(sizes), self.reference.method
        beside = [name for name in self.settings if registered.get(name).size_reference and name not in self.not_applicable]
        for name in (name for name in self.settings if name not in (reference, *self.not_applicable)):

            def at(width: float, name: str = name) -> Job:
                return self._job(name, self.seeds[0], {**self.settings[name], "width": width})

            try:
                if method_of(name, at(1).settings).size_is_learnt:
                    report(Note(f"{name}: its size is learnt; only widths that have records can match"))
                    continue
                width = matching_width(at, target)
            except Unsupported:
                continue
            if width is None:
                report(Note(f"n/a: {name} stores more than {reference} at any width"))
            else:
                wide |= {(one, width): {**self.settings[one], "width": width} for one in (name, *beside)}
                size = f"{stored_bytes(at(width)) / 1e6:.3f} of {target / 1e6:.3f} MB"
                report(Note(f"{name}: width {width:g}, {size}"))
        return self._resolved((name, own) for (name, _), own in wide.items())[0]

    def leaderboard(self, compare: Sequence[str] = ()) -> Leaderboard:
        """All finished runs of this protocol and tier, ranked. compare: as for `benchsuite.analysis.leaderboard.leaderboard`."""
        records, refused = read_board(self.results, self.protocol.name, self.tier)
        imported, unusable = imports.read_board(self.results / self.protocol.name / self.tier)
        failed = [why for job in self.jobs if (why := RunFolder(self.results / job.folder).read_failure())]
        if failed and not records and not imported:
            raise UserError(
                f"no run is finished, and {len(failed)} failed, the first with: {failed[0]}", "see what plan.run() returns"
            )
        there = self.reference is not None and any(record.job.config == self.reference.config for record in records)
        match = self.reference if there else None
        own = registered.sources()
        return leaderboard(
            records,
            self.protocol.published,
            match=match,
            files=own,
            stale=stale,
            compare=compare,
            refused=refused | unusable,
            imported=imported,
            served=read_served(self.results / self.protocol.name / self.tier),
        )

    def _job(self, method: str, seed: int, settings: Mapping[str, Any]) -> Job:
        return resolve(self.protocol.name, self.tier, method, seed, overrides=settings, precision=self.precision)

    def _identified(self, job: Job) -> Job:
        try:
            return identify(job, self.data_dir, results=self.results)
        except MissingData:  # `run` says so; what is finished is ranked all the same
            return job

    def _resolved(self, settings: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[tuple[Job, ...], dict[str, str]]:
        """The jobs of these methods with these settings, and why some methods have none."""
        jobs, unsupported, chosen = [], {}, list(settings)
        for seed in self.seeds:
            for name, own in chosen:
                try:
                    jobs.append(self._identified(self._job(name, seed, own)))
                except Unsupported as error:
                    unsupported[name] = str(error)
        return tuple(jobs), unsupported

    def _check(self, jobs: int | None, ray: str | None, cpus: float | None, gpus: float | None) -> None:
        if jobs is not None and jobs < 1:
            raise UserError(f"jobs must be at least 1, got {jobs}")
        if ray is None and (cpus is not None or gpus is not None):
            raise UserError("--cpus-per-run and --gpus-per-run are for a Ray cluster", "name it with --ray, or use --jobs")
        if ray is not None and jobs is not None:
            raise UserError(
                "--jobs is for this machine", "on a Ray cluster --cpus-per-run and --gpus-per-run say how many runs fit"
            )
        if not (cpus is None or cpus > 0):
            raise UserError(f"cpus-per-run must be positive, got {cpus}")
        if not (gpus is None or gpus >= 0):
            raise UserError(f"gpus-per-run must not be negative, got {gpus}")
        typed_in = [name for name in self.settings if registered.get(name).__module__ == "__main__"]
        typed_in += [self.protocol.name] if protocols.is_typed_in(self.protocol.name) else []
        typed_in += filter(datasets.is_typed_in, dict.fromkeys(task.dataset for task in self.protocol.tasks))
        for name in typed_in:
            raise UserError(
                f"{name} is defined in this session, and runs are processes of their own",
                "put it in a file and name that file, or run its jobs here with benchsuite.run",
            )

    def _run(
        self,
        jobs: Sequence[Job],
        *,
        slots: int | None,
        address: str | None,
        cpus: float | None,
        gpus: float | None,
        report: Report,
    ) -> dict[str, str]:
        # The nodes of a cluster may not have the artifacts of finished runs.
        left = grid.missing(jobs, self.results, lambda line: report(Note(line)), predictions=self.predictions and address is None)
        if not left:
            return {}
        images: Images = {}
        for job in left:  # before any run starts: one clear error, and only one process that decodes
            recipe = recipe_of(job.settings)
            names = self.protocol.datasets(job.seed, recipe)
            images = {**images, **load_all(names, self.data_dir, partial=recipe.partial_data, given=images)}
        left = [identify(job, self.data_dir, images) for job in left]  # in case the images were missing when this was planned
        files = [protocols.file(self.protocol.name), *map(registered.file, self.settings), *self.plugin_files]
        context = partial(
            RunContext,
            results=self.results,
            data_dir=self.data_dir,
            user_files=tuple(dict.fromkeys(path for path in files if path)),
            loggers=self.loggers,
            plugins=self.plugins,
            predictions=self.predictions,
        )
        if address is None:
            device = device_named(self.device).type
            slots = slots or (1 if device == "cuda" else cores())
            report(Begun(runs=len(left), of=len(jobs), slots=slots))
            engine: grid.Engine = Local(slots, context(device=device, threads=max(1, cores() // slots)))
        else:
            cpus = 1.0 if cpus is None else cpus
            gpus = float(self.device == "cuda") if gpus is None else gpus
            # On a node "auto" would take a GPU that Ray has given to nobody, or to another run.
            device = self.device if self.device != "auto" else "cuda" if gpus else "cpu"
            report(Begun(runs=len(left), of=len(jobs)))
            engine = Cluster(address, context(device=device, threads=max(1, int(cpus))), images, cpus=cpus, gpus=gpus)
        return run_all(left, results=self.results, engine=engine, report=report)


def plan(
    protocol: str | Path = "rotated-digits",
    *,
    tier: str = "paper",
    methods: Sequence[str | Path] | None = None,
    seeds: Sequence[int] = SEEDS,
    settings: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    results: Path | str = "runs",
    data_dir: Path | str | None = None,
    match_size: str | Path | None = None,
    device: str = "auto",
    loggers: Sequence[str] = (),
    predictions: bool = False,
    plugins: Sequence[str] = (),
) -> Plan:
    """The runs that a board needs. Nothing is run yet.

    protocol: a name, or a Python file that defines one.
    methods: names, or Python files that define one method each (default: every registered method).
    settings: of the recipe or of a method; each method takes those that it has.
    match_size: a method whose size the others are to be compared at, beside the plain runs.
    loggers: any of "tensorboard", "csv" and "wandb"; they write below `logs` in the results folder.
    predictions: each run also writes its answers to all test images (`benchsuite.predictions`); a finished run without them gets
        them from its artifact, on this machine.
    plugins: Avalanche plugins as --plugin takes them (`method.plugged.Call`). All methods train with those that may train, and
        are then called METHOD+PLUGIN; those with `looks_on = True` look on.
    Raises UserError for an unknown name, with the nearest known one.
    """
    check_loggers(loggers)
    chosen = protocols.get(protocols.find(protocol))
    chosen.recipe(tier)
    refuse_tuning_seeds(seeds)
    given, reference = dict(settings or {}), registered.find(match_size) if match_size else None
    if reference and "width" in given:
        raise UserError("--match-size chooses the width of each method", "leave width out of --set")
    calls, texts, files = registered.called(plugins)
    found = [registered.with_plugins(registered.find(name), calls) for name in methods or registered.all()]
    words = dict(found)  # the plugins' arguments
    names = [*words, *([reference] if reference else [])]
    known = {name: {*field_types(Recipe), *field_types(registered.get(name))} for name in names}
    for setting in given:
        if not any(setting in fields for fields in known.values()):
            raise UserError(f"{setting!r} is not a setting of {', '.join(known)}", suggest(setting, set().union(*known.values())))
    made = Plan(
        protocol=chosen,
        tier=tier,
        seeds=tuple(seeds),
        settings={
            name: {**words.get(name, {}), **{k: v for k, v in given.items() if k in fields}} for name, fields in known.items()
        },
        precision=precision,
        device=device,
        results=Path(results),
        data_dir=None if data_dir is None else Path(data_dir),
        loggers=tuple(loggers),
        predictions=predictions,
        plugins=texts,
        plugin_files=files,
        not_applicable={},
    )
    if reference:
        made = replace(made, reference=made._identified(made._job(reference, made.seeds[0], made.settings[reference])))
    jobs, unsupported = made._resolved(made.settings.items())
    return replace(made, jobs=jobs, not_applicable=unsupported)
