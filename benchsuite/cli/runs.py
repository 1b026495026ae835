"""Commands that train: run, leaderboard, status, tune."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..errors import UserError
from .arguments import SEEDS, note_slow_precision, parse_settings, refuse_tuning_seeds, resolve_method


def command_run(arguments: argparse.Namespace) -> int:
    overrides = parse_settings(arguments)
    from ..execution.progress import Display
    from ..method.registered import methods
    from ..training.runner import RunFailed, identify, run
    from ..training.settings import resolve

    method = resolve_method(methods, arguments.method)
    refuse_tuning_seeds([arguments.seed])
    note_slow_precision(arguments)
    job = resolve(arguments.protocol, arguments.tier, method, arguments.seed, overrides=overrides, precision=arguments.precision)
    job = identify(job, arguments.data_dir)
    try:
        with Display([job]) as display:
            record = run(job, results=arguments.results, data_dir=arguments.data_dir, device=arguments.device, report=display)
    except RunFailed as error:
        print(f"benchsuite: failed: {error}", file=sys.stderr)
        return 1
    transfer = "n/a" if record.bwt != record.bwt else f"{record.bwt:z.2f}"
    print(f"{job}: ACC {record.accuracy:.2f} %, BWT {transfer}, {record.megabytes:.3f} MB")
    print(arguments.results / job.folder / "record.json")
    return 0


def command_leaderboard(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    overrides = parse_settings(arguments)
    given = {"--method": arguments.methods, "--set": arguments.settings, "--seeds": arguments.seeds}
    if arguments.no_run and any(given.values()):
        words = ", ".join(name for name, value in given.items() if value)
        raise UserError("--no-run ranks every record that is there", f"{words} can only choose what to run, leave it out")
    with Console(stderr=True).status("starting PyTorch and Avalanche"):  # which takes seconds; shown on a terminal alone
        from ..protocol import protocols

        if not arguments.no_run:
            from ..method.registered import methods
    protocol = protocols.get(arguments.protocol)
    protocol.recipe(arguments.tier)
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"jobs must be at least 1, got {arguments.jobs}")
    if arguments.ray is None and (arguments.cpus_per_run is not None or arguments.gpus_per_run is not None):
        raise UserError("--cpus-per-run and --gpus-per-run are for a Ray cluster", "name it with --ray, or use --jobs")
    if arguments.ray is not None and arguments.jobs is not None:
        raise UserError("--jobs is for this machine", "on a Ray cluster --cpus-per-run and --gpus-per-run say how many runs fit")
    if not (arguments.cpus_per_run is None or arguments.cpus_per_run > 0):
        raise UserError(f"cpus-per-run must be positive, got {arguments.cpus_per_run}")
    if not (arguments.gpus_per_run is None or arguments.gpus_per_run >= 0):
        raise UserError(f"gpus-per-run must not be negative, got {arguments.gpus_per_run}")
    failed: dict[str, str] = {}
    match: Any = arguments.match_size or ""
    if arguments.no_run and match:
        from ..method.registered import methods

        match = resolve_method(methods, match)
    elif match:
        failed, match = run_matched(protocol, arguments, overrides)
    elif not arguments.no_run:
        failed = run_missing(protocol, arguments, shares(arguments, overrides))
    for error in failed.values():
        print(f"benchsuite: failed: {error}", file=sys.stderr)

    from ..analysis.leaderboard import leaderboard
    from ..record.store import read_all
    from ..report.tables import print_boards
    from ..report.write import write_report

    folder = arguments.results / arguments.protocol / arguments.tier
    records = read_all(folder)
    if failed and not records:
        return 1
    if not records and (there := {path.parts[-5:-3] for path in arguments.results.glob("*/*/*/*/record.json")}):
        found = ", ".join(f"--protocol {name} --tier {tier}" for name, tier in sorted(there))
        raise UserError(f"{folder}: has no finished runs", f"there are some of {found}")
    files = {} if arguments.no_run else methods.sources()
    board = leaderboard(records, protocol.published, match=match, files=files)
    output = arguments.output or folder / "leaderboard"
    write_report(board, output)
    print_boards(board, Console(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 160))
    print(f"tables and figures: {output}")
    return 1 if failed else 0


def shares(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The methods that a board is to run, the one whose size is to be matched the last, each with those settings that it has."""
    from ..fields import field_types
    from ..method.registered import methods
    from ..protocol import Recipe
    from ..registry import suggest

    given = [*(arguments.methods or methods.all()), *([arguments.match_size] if arguments.match_size else [])]
    names = [resolve_method(methods, name) for name in given]
    known = {name: {*field_types(Recipe), *field_types(methods.get(name))} for name in names}
    for setting in overrides:
        if not any(setting in fields for fields in known.values()):
            raise UserError(
                f"{setting!r} is no setting of {', '.join(names)}", f"{suggest(setting, set().union(*known.values()))}"
            )
    return {name: {k: v for k, v in overrides.items() if k in fields} for name, fields in known.items()}


def run_matched(protocol: Any, arguments: argparse.Namespace, overrides: dict[str, str]) -> tuple[dict[str, str], Any]:
    """Run every method as it is, then each whose size can be computed at the width at which it stores as much as the reference.

    Returns the errors by run folder, and a job of the reference's, or "" where none has a record."""
    from statistics import fmean

    from ..execution.match import matching_width, stored_bytes
    from ..method.registered import methods
    from ..record.store import read_all
    from ..training.runner import identify
    from ..training.settings import Unsupported, method_of, resolve

    if "width" in overrides:
        raise UserError("--match-size chooses the width of each method", "leave width out of --set")
    plain, reference = shares(arguments, overrides), resolve_method(methods, arguments.match_size)
    seed = (arguments.seeds or SEEDS)[0]

    def at(width: float, name: str) -> Any:
        words = {**plain[name], "width": width}
        return resolve(protocol.name, arguments.tier, name, seed, overrides=words, precision=arguments.precision)

    matched = identify(at(1, reference), arguments.data_dir)
    failed = run_missing(protocol, arguments, plain)
    records = read_all(arguments.results / protocol.name / arguments.tier)
    sizes = [record.stored_bytes for record in records if record.job.config == matched.config]
    if not sizes:
        return failed, ""
    wide, target = {}, fmean(sizes)
    for name in (name for name in plain if name != reference):
        try:
            if method_of(name, at(1, name).settings).size_is_learnt:
                print(f"{name}: what it stores is learnt; only the widths that it has records of can match", file=sys.stderr)
                continue
            width = matching_width(partial(at, name=name), target)
        except Unsupported:
            continue  # it was said when its turn came
        if width is None:
            print(f"benchsuite: n/a: {name} stores more than {reference} at any width", file=sys.stderr)
        else:
            wide[name] = {**plain[name], "width": width}
            print(f"{name}: width {width:g}, {stored_bytes(at(width, name)) / 1e6:.3f} of {target / 1e6:.3f} MB", file=sys.stderr)
    return failed | run_missing(protocol, arguments, wide), matched


def jobs_of(protocol: Any, arguments: argparse.Namespace, chosen: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The jobs of a grid. chosen: the methods, each with the settings given for it; one that cannot run like this is said."""
    from ..training.runner import identify
    from ..training.settings import Unsupported, resolve

    refuse_tuning_seeds(arguments.seeds or ())
    jobs, unfit = [], {}
    for seed in arguments.seeds or SEEDS:
        for name, words in chosen.items():
            try:
                job = resolve(protocol.name, arguments.tier, name, seed, overrides=words, precision=arguments.precision)
            except Unsupported as error:
                unfit[name] = str(error)
            else:
                jobs.append(identify(job, arguments.data_dir))
    for reason in unfit.values():
        print(f"benchsuite: n/a: {reason}", file=sys.stderr)
    return jobs


def run_missing(protocol: Any, arguments: argparse.Namespace, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Run what the board lacks; returns the errors by run folder. chosen: the methods, each with the settings given for it."""
    from ..data import load
    from ..data.sets import MissingData
    from ..execution.grid import Engine, missing, run_all
    from ..execution.local import Local, cores
    from ..execution.progress import Display
    from ..execution.worker import RunContext
    from ..method.registered import methods
    from ..training.device import device_named
    from ..training.settings import recipe_of

    jobs = jobs_of(protocol, arguments, chosen)
    if arguments.ray is None:  # what this machine has says nothing of a cluster's nodes
        note_slow_precision(arguments)
    left = missing(jobs, arguments.results, lambda line: print(f"benchsuite: {line}", file=sys.stderr))
    if not left:
        return {}
    images: dict[str, Any] = {}
    for job in left:  # before any run starts: one clear line, and one process that decodes
        recipe = recipe_of(job.settings)
        for name in dict.fromkeys(protocol.tasks[i].dataset for i in protocol.order(job.seed)[: recipe.tasks]):
            try:
                images[name] = images.get(name) or load(name, arguments.data_dir, partial=recipe.partial_data)
            except MissingData:
                if not recipe.partial_data:
                    raise
                images[name] = None
    files = tuple(path for name in chosen if (path := methods.file(name)))
    place = partial(RunContext, results=arguments.results, data_dir=arguments.data_dir, method_files=files)
    engine: Engine
    if arguments.ray is None:
        device = device_named(arguments.device).type
        slots = arguments.jobs or (1 if device == "cuda" else cores())
        engine = Local(slots, place(device=device, threads=max(1, cores() // slots)))
        print(f"benchsuite: runs to do: {len(left)} of {len(jobs)}, {slots} at once", file=sys.stderr)
    else:
        from ..execution.ray import Cluster

        cpus = 1.0 if arguments.cpus_per_run is None else arguments.cpus_per_run
        gpus = float(arguments.device == "cuda") if arguments.gpus_per_run is None else arguments.gpus_per_run
        # On a node "auto" would take a GPU that Ray has given to nobody, or to another run.
        device = arguments.device if arguments.device != "auto" else "cuda" if gpus else "cpu"
        where = place(device=device, threads=max(1, int(cpus)))
        engine = Cluster(arguments.ray, where, images, cpus=cpus, gpus=gpus)
    with Display(left) as display:
        return run_all(left, results=arguments.results, engine=engine, report=display)


def command_status(arguments: argparse.Namespace) -> None:
    from ..execution.status import boards, lines

    jobs: list[Any] = []
    if arguments.protocol:
        from ..protocol import protocols

        arguments.tier, arguments.match_size = arguments.tier or "paper", None
        protocol = protocols.get(arguments.protocol)
        protocol.recipe(arguments.tier)
        jobs = jobs_of(protocol, arguments, shares(arguments, parse_settings(arguments)))
    elif arguments.methods or arguments.seeds or arguments.settings:
        raise UserError("--method, --seeds and --set say what should be there", "name the --protocol too")
    found = boards(arguments.results, arguments.protocol, arguments.tier, [job.folder for job in jobs])
    if not found:
        print(f"no runs below {arguments.results}; start some with `benchsuite leaderboard`, or name their folder with --results")
    for line in lines(found):
        print(line)


def command_tune(arguments: argparse.Namespace) -> int:
    overrides = parse_settings(arguments)
    from ..execution.tune import best_of, study
    from ..fields import in_words
    from ..method.registered import methods

    method = resolve_method(methods, arguments.method)
    chosen = study(
        arguments.protocol, arguments.tier, method, arguments.trials, overrides=overrides, precision=arguments.precision
    )
    note_slow_precision(arguments)
    folder, trials = arguments.results / "tune", []  # apart from the runs that a leaderboard ranks
    for trial in chosen.search(folder, data_dir=arguments.data_dir, device=arguments.device):
        print(trial, flush=True)
        trials.append(trial)
    path = chosen.write(trials, folder, device=arguments.device)
    best = best_of(trials)
    if best is None:
        print(f"benchsuite: failed: no trial has a score; see {path}", file=sys.stderr)
        return 1
    print(f"best: {in_words(best.values)} (trial {best.number}); for the `settings` of {method}:\n\n{chosen.declared(best)}\n")
    print(path)
    return 0
