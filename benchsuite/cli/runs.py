"""Commands that train: run, leaderboard, status, tune."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UserError
from ..text import clean
from .arguments import PROTOCOL, note_slow_precision, parse_settings

if TYPE_CHECKING:
    from ..analysis.leaderboard import Leaderboard
    from ..execution.plan import Plan
    from ..method.plugged import Call
    from ..record.schema import Job, RunRecord


def command_run(arguments: argparse.Namespace) -> int:
    overrides = parse_settings(arguments)
    from ..analysis.notes import AT_CHANCE, at_chance
    from ..execution.progress import Display
    from ..method.registered import methods
    from ..protocol import protocols
    from ..record.folder import RunFolder
    from ..record.schema import differences
    from ..training.runner import RunFailed, identify, run
    from ..training.settings import one_class_tasks, recipe_of, refuse_tuning_seeds, resolve

    earlier = None
    calls, looking = methods.plugins(arguments.plugins)
    if arguments.record:
        earlier, job = _repeated(arguments, overrides, calls)
    else:
        if not arguments.method:
            raise UserError("a run needs a method", "name one with --method, or a finished run to repeat with --from")
        method, words = methods.with_plugins(methods.find(arguments.method), calls)
        overrides = {**words, **overrides}
        names = arguments.protocol or PROTOCOL, arguments.tier or "paper", method
        seed = 1 if arguments.seed is None else arguments.seed
        job = resolve(*names, seed, overrides=overrides, precision=arguments.precision or "fp32")
    refuse_tuning_seeds([job.seed])
    note_slow_precision(arguments.device, job.precision)
    if note := one_class_tasks(protocols.get(job.protocol), job.seed, recipe_of(job.settings)):
        print(f"benchsuite: note: {note}", file=sys.stderr)
    job = identify(job, arguments.data_dir, results=arguments.results)
    try:
        with Display(1) as display:
            record = run(
                job,
                results=arguments.results,
                data_dir=arguments.data_dir,
                device=arguments.device,
                report=display,
                plugins=looking,
                loggers=arguments.loggers,
                predictions=arguments.predictions,
            )
    except RunFailed as error:
        print(f"benchsuite: failed: {error}", file=sys.stderr)
        return 1
    transfer = "n/a" if record.bwt != record.bwt else f"{record.bwt:z.2f}"
    if failed := at_chance(record):
        print(f"benchsuite: note: {AT_CHANCE}: task {', '.join(failed)}", file=sys.stderr)
    print(f"{job}: ACC {record.accuracy:.2f} %, BWT {transfer}, {record.megabytes:.3f} MB")
    print(RunFolder(arguments.results / job.folder).record)
    if earlier and record.job.config == earlier.job.config and record.job.seed == earlier.job.seed:
        different = differences(earlier, record)
        print(
            f"other numbers than the record in: {', '.join(different)}; `benchsuite verify` judges them"
            if different
            else "the same numbers as the record"
        )
    return 0


def _repeated(arguments: argparse.Namespace, overrides: Mapping[str, str], calls: Sequence[Call]) -> tuple[RunRecord, Job]:
    """The record of `run --from`, and its job with what the other options change."""
    from ..method.registered import methods
    from ..protocol import protocols
    from ..record.store import RECORD, read
    from ..training.settings import repeated

    earlier = read(arguments.record if arguments.record.suffix == ".json" else arguments.record / RECORD)
    job = earlier.job
    methods.name_plugins(calls, job.method)
    given = {
        "protocol": arguments.protocol,
        "tier": arguments.tier,
        "method": arguments.method and methods.find(arguments.method),
    }
    for name, value in given.items():
        if value is not None and value != getattr(job, name):
            raise UserError(
                f"{arguments.record}: its {name} is {getattr(job, name)}, not {value}", f"leave out --{name}, or --from"
            )
    if job.protocol not in protocols.all():
        raise UserError(f"the protocol {job.protocol} is not known here", "name the file that defines it with --protocol")
    if job.base not in methods.all():
        raise UserError(f"the method {job.method} is not known here", "name the file that defines it with --method")
    made, notes = repeated(earlier, seed=arguments.seed, overrides=overrides, precision=arguments.precision)
    for note in notes:
        print(f"benchsuite: note: {note}", file=sys.stderr)
    return earlier, made


def command_leaderboard(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from ..execution.progress import Display
    from ..record.store import boards_with_records, not_ranked

    failed: dict[str, str] = {}
    problems: list[UserError] = []  # what is there is shown all the same
    folder = arguments.results / arguments.protocol / arguments.tier

    def has_records() -> bool:
        return (arguments.protocol, arguments.tier) in boards_with_records(arguments.results)

    if arguments.no_run:
        board = finished(arguments)
    else:
        from ..execution import server

        if arguments.ray is None and server.can_fork(arguments.device):
            server.start()
        plan = planned(arguments)
        from ..execution.plan import NotRun

        with Display() as display:
            try:
                failed = plan.run(
                    arguments.jobs,
                    ray=arguments.ray,
                    cpus_per_run=arguments.cpus_per_run,
                    gpus_per_run=arguments.gpus_per_run,
                    report=display,
                )
            except NotRun as error:
                if not has_records():
                    raise
                left = f"{len(plan.missing())} of {len(plan.jobs)} runs are missing from this board"
                problems.append(UserError(f"{left}: {error.problem}", error.remedy))
        for reason in failed.values():
            print(f"benchsuite: failed: {reason}", file=sys.stderr)
        if failed and not has_records():
            return 1
        board = plan.leaderboard(arguments.compare)

    from ..report.tables import print_boards
    from ..report.write import write_report

    output, where = arguments.output or folder / "leaderboard", ""
    try:
        write_report(board, output, figures=not arguments.no_figures)
        where = f"{'tables' if arguments.no_figures else 'tables and figures'}: {output}"
    except UserError as error:
        problems.append(error)
    console = Console()
    print_boards(board, console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=160))
    if where:
        print(where)
    if board.refused:
        problems.append(UserError(not_ranked(board.refused)))
    for problem in problems:
        print(f"benchsuite: error: {clean(str(problem))}", file=sys.stderr)
    return 2 if problems else 1 if failed else 0


def planned(arguments: argparse.Namespace) -> Plan:
    """The board that the arguments describe. Methods that it leaves out are printed with the reason."""
    from rich.console import Console

    with Console(stderr=True).status("starting PyTorch and Avalanche"):  # takes seconds; shown only on a terminal
        from ..execution.plan import SEEDS, plan

    found = plan(
        arguments.protocol,
        tier=arguments.tier,
        methods=arguments.methods,
        seeds=arguments.seeds or SEEDS,
        settings=parse_settings(arguments),
        precision=arguments.precision,
        results=arguments.results,
        data_dir=arguments.data_dir,
        match_size=getattr(arguments, "match_size", None),
        device=arguments.device,
        loggers=getattr(arguments, "loggers", ()),
        predictions=getattr(arguments, "predictions", False),
        plugins=getattr(arguments, "plugins", ()),
    )
    for reason in found.not_applicable.values():
        print(f"benchsuite: n/a: {reason}", file=sys.stderr)
    return found


def finished(arguments: argparse.Namespace) -> Leaderboard:
    """The board of the existing records. Needs no PyTorch."""
    from ..analysis.leaderboard import leaderboard
    from ..protocol import protocols
    from ..record import imported
    from ..record.served import read_served
    from ..record.store import read_board
    from ..source import stale

    given = {
        "--method": arguments.methods,
        "--set": arguments.settings,
        "--seeds": arguments.seeds,
        "--logger": arguments.loggers,
        "--predictions": arguments.predictions,
        "--plugin": arguments.plugins,
    }
    if any(given.values()):
        words = ", ".join(name for name, value in given.items() if value)
        raise UserError("--no-run ranks all existing records", f"leave out {words}, which only choose what to run")
    protocol = protocols.get(arguments.protocol)
    protocol.recipe(arguments.tier)
    match = arguments.match_size
    if match and ".py" in match:
        from ..method.registered import methods

        match = methods.find(match)
    records, refused = read_board(arguments.results, arguments.protocol, arguments.tier)
    made_elsewhere, unusable = imported.read_board(arguments.results / arguments.protocol / arguments.tier)
    return leaderboard(
        records,
        protocol.published,
        match=match,
        stale=stale,
        compare=arguments.compare,
        refused=refused | unusable,
        imported=made_elsewhere,
        served=read_served(arguments.results / arguments.protocol / arguments.tier),
    )


def command_status(arguments: argparse.Namespace) -> None:
    from ..execution.status import boards, lines

    jobs: Sequence[Job] = ()
    if arguments.protocol:
        arguments.tier = arguments.tier or "paper"
        jobs = planned(arguments).jobs
    elif arguments.methods or arguments.seeds or arguments.settings:
        raise UserError("--method, --seeds and --set describe a board that should exist", "name its --protocol, too")
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
    from ..training.settings import Unsupported

    studies = []  # all checked before the first trains
    for given in map(methods.find, arguments.methods or [name for name, cls in methods.all().items() if cls.space]):
        method, words = methods.trained_with(given, arguments.plugins)
        try:
            studies.append(
                study(
                    arguments.protocol,
                    arguments.tier,
                    method,
                    arguments.trials,
                    overrides={**words, **overrides},
                    precision=arguments.precision,
                )
            )
        except Unsupported as error:
            if arguments.methods:
                raise
            print(f"benchsuite: note: {error}", file=sys.stderr)
    note_slow_precision(arguments.device, arguments.precision)
    folder, failed = arguments.results / "tune", 0  # separate from the runs that a leaderboard ranks
    for chosen in studies:
        trials = []
        for trial in chosen.search(folder, data_dir=arguments.data_dir, device=arguments.device):
            print(f"{chosen.method}: {trial}" if len(studies) > 1 else trial, flush=True)
            trials.append(trial)
        path = chosen.write(trials, folder, device=arguments.device)
        best = best_of(trials)
        if best is None:
            failed = 1
            print(f"benchsuite: failed: no trial has a score; see {path}", file=sys.stderr)
            continue
        print(f"best: {in_words(best.values)} (trial {best.number}); for the `settings` of {chosen.method}:\n")
        print(f"{chosen.declared(best)}\n\n{path}", flush=True)
    return failed
