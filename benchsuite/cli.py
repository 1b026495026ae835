"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError

SEEDS = (1, 2, 3)  # of a board, unless given
EPILOG = """examples:
  benchsuite leaderboard                                   the embedded protocol, every method, three seeds
  benchsuite run --protocol split-cifar100 --tier lite --method cacl --seed 1
  benchsuite run --method ./my_method.py --set strength=0.5
  benchsuite run --method cacl+hosvd --set epsilon=0.9      CACL with compressed activation maps
  benchsuite leaderboard --method cacl --method ./my_method.py --seeds 1-5
  benchsuite status                                        what is done, running, failed, interrupted
  benchsuite tune --protocol split-cifar100 --method ewc --trials 12
  benchsuite new-method my_method && benchsuite check ./my_method.py
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(2)


def seeds(text: str) -> list[int]:
    """1,2,5 or 1-5 or 1-3,7."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"seeds must be whole numbers or ranges with commas between (1-3,7), got {text!r}")
        if dash and int(last) < int(first):
            raise argparse.ArgumentTypeError(f"seeds must run upwards, got {part.strip()!r}")
        if dash and int(last) - int(first) >= 10_000:
            raise argparse.ArgumentTypeError(f"seeds: {part.strip()!r} are more than 10,000")
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))


def parser() -> Parser:
    top = Parser(
        prog="benchsuite",
        description="Continual learning inside a storage budget: methods on equal terms, four leaderboards.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    place = Parser(add_help=False)
    place.add_argument("--protocol", default="split-digits", help="a registered protocol (default: the embedded split-digits)")
    place.add_argument("--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder (default: ./runs)")
    where = Parser(add_help=False, parents=[place])
    where.add_argument("--tier", default="paper", help="paper (the full recipe, default), lite or smoke")
    chosen = Parser(add_help=False)
    chosen.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting of the recipe or the method",
    )
    how = Parser(add_help=False, parents=[chosen])
    how.add_argument("--precision", default="fp32", help="fp32 (default) or bf16 autocast; part of a run's identity")
    how.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    data = Parser(add_help=False)
    data.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where image sets lie, as archives or extracted (default: the download cache)",
    )
    data.add_argument(
        "--partial-data", action="store_true", help="accept incomplete image sets; never comparable with published figures"
    )

    commands.add_parser("list", help="the methods and protocols, and what they need")
    one = commands.add_parser("run", parents=[where, how, data], help="one run: a method on a protocol with a seed")
    one.add_argument(
        "--method", required=True, help="a registered method, or a Python file that registers one; +MODIFIER after it"
    )
    one.add_argument("--seed", type=int, default=1)
    many = Parser(add_help=False)
    many.add_argument(
        "--method",
        dest="methods",
        action="append",
        metavar="METHOD",
        help="only these; repeatable (default: every registered one)",
    )
    many.add_argument("--seeds", type=seeds, help="1,2,5 or 1-5 or 1-3,7 (default: 1-3)")
    board = commands.add_parser(
        "leaderboard", parents=[where, how, data, many], help="run what is missing, then rank all results"
    )
    board.add_argument(
        "--jobs", type=int, metavar="N", help="runs at once on this machine (default: one a core on the CPU, one on a GPU)"
    )
    board.add_argument("--ray", metavar="ADDRESS", help="run on the Ray cluster with this address; local: one on this machine")
    board.add_argument("--cpus-per-run", type=float, metavar="N", help="cores that a run takes on a Ray cluster (default: 1)")
    board.add_argument(
        "--gpus-per-run",
        type=float,
        metavar="N",
        help="GPUs that a run takes on a Ray cluster, a share too: 0.125 (default: 1 with --device cuda, else 0)",
    )
    board.add_argument("--no-run", action="store_true", help="rank the records that are there, run nothing")
    board.add_argument(
        "--match-size",
        metavar="METHOD",
        help="beside each method as it is, run those whose size can be computed at the width at which they store as much as this"
        " one, from below",
    )
    board.add_argument("--output", type=Path, metavar="DIR", help="folder for tables and figures (default: beside the records)")
    state = commands.add_parser(
        "status",
        parents=[how, data, many],
        help="what is done, running, failed, interrupted, stale; with --protocol also what is missing",
    )
    state.add_argument("--protocol", help="this protocol alone, and what `leaderboard` with the same options would still run")
    state.add_argument("--tier", help="this tier alone (with --protocol: paper, unless given)")
    state.add_argument("--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder (default: ./runs)")
    paper = commands.add_parser("report", help="tables, figures and the reproduction ledger for a paper, from finished runs")
    paper.add_argument("output", type=Path, metavar="DIR", help="the folder to write, a folder for each protocol and tier in it")
    paper.add_argument("--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder (default: ./runs)")
    paper.add_argument("--protocol", nargs="+", default=(), metavar="P", help="only these (default: all that have records)")
    paper.add_argument("--tier", nargs="+", default=(), metavar="T", help="only these (default: all that have records)")
    search = commands.add_parser("tune", parents=[place, how, data], help="search a method's settings on training images alone")
    search.add_argument("--tier", default="lite", help="paper (the full recipe), lite (default) or smoke")
    search.add_argument("--method", required=True, help="a registered method, or a Python file that registers one")
    search.add_argument("--trials", type=int, required=True, metavar="N", help="how many sets of values to try")
    sets = commands.add_parser("data", help="fetch or check a protocol's image sets")
    actions = sets.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    for action, what in (("get", "download what is missing"), ("verify", "decode everything afresh and check it")):
        actions.add_parser(action, parents=[data], help=what).add_argument("protocol")
    out = commands.add_parser("export", help="copy out the servable artifacts of finished runs")
    out.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder or its record.json")
    out.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="for a single run (default: <protocol>-<tier>-<method>-seed<n>.safetensors here)",
    )
    again = commands.add_parser("verify", help="run a record's job again and say whether it reproduces")
    again.add_argument("run", type=Path, metavar="RUN", help="a run's folder or its record.json")
    again.add_argument("--method", metavar="FILE", help="the file of its method, where that is not an installed one")
    again.add_argument(
        "--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder; the re-run lies in DIR/verify (./runs)"
    )
    again.add_argument("--device", default="auto", help="auto (default: the record's kind where there is one), cpu or cuda")
    again.add_argument("--data-dir", type=Path, metavar="DIR", help="where image sets lie (default: the download cache)")
    bring = commands.add_parser("merge", help="bring in records made elsewhere, every one checked; nothing is overwritten")
    bring.add_argument("source", type=Path, metavar="DIR", help="a results folder, or any other with record.json files below it")
    bring.add_argument("--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder (default: ./runs)")
    for command in (paper, bring):
        command.add_argument(
            "--method",
            dest="methods",
            action="append",
            default=[],
            metavar="FILE",
            help="the file of a method in one; repeatable",
        )
    timed = commands.add_parser(
        "bench",
        parents=[chosen],
        help="what a step costs on this machine, as ratios, where its time goes, and what would change it",
    )
    timed.add_argument("--protocol", default="split-digits", help="a registered protocol (default: the embedded split-digits)")
    timed.add_argument("--data-dir", type=Path, metavar="DIR", help="where image sets lie (default: the download cache)")
    timed.add_argument(
        "--methods", nargs="+", default=[], metavar="METHOD", help="default: every method that learns task after task"
    )
    timed.add_argument("--relative-to", default="finetune", metavar="METHOD", help="whose step the methods' are compared with")
    timed.add_argument("--tasks", type=int, nargs=2, metavar="N", help="an early and a late task (default: 2 and the last)")
    timed.add_argument(
        "--sections", nargs="+", default=[], metavar="SECTION", help="loop methods evaluation data settings profile"
    )
    timed.add_argument(
        "--skip", nargs="+", default=[], metavar="NAME", help="leave out what is measured under names that begin so"
    )
    timed.add_argument("--precision", default="fp32", help="fp32 (default) or bf16 autocast")
    timed.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    timed.add_argument("--rounds", type=int, default=7, help="turns of each contender (default: 7)")
    timed.add_argument("--steps", type=int, default=4, help="steps of each in a turn (default: 4)")
    timed.add_argument("--output", type=Path, metavar="DIR", help="folder for the tables (Markdown, CSV)")
    new = commands.add_parser("new-method", help="write a method of your own to start from: one commented file that runs")
    new.add_argument("name", metavar="NAME", help="what the method will be called, a Python name")
    new.add_argument("--output", type=Path, metavar="FILE", help="the file to write (default: NAME.py here)")
    rules = commands.add_parser("check", parents=[chosen], help="does a method keep the rules that every method keeps? a minute")
    rules.add_argument("method", metavar="METHOD", help="a registered method, or a Python file that registers one")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 for a run that failed, 2 for what the user can mend, 130 or 143 after a signal."""
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.version:
        from importlib.metadata import version

        print(f"benchsuite {version('benchsuite')}")
        return 0
    if arguments.command is None:
        top.print_help()
        return 2
    # A termination ends a command as an interrupt does: the worker processes go too.
    here = threading.current_thread() is threading.main_thread()  # Python lets no other thread set a handler
    before = signal.signal(signal.SIGTERM, interrupt) if here else None
    try:
        if (results := getattr(arguments, "results", None)) and results.exists() and not results.is_dir():
            raise UserError(f"{results}: is no folder; name one with --results")
        return int(globals()[f"command_{arguments.command.replace('-', '_')}"](arguments) or 0)
    except UserError as error:
        print(f"benchsuite: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of what is printed has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        kept = arguments.command in ("run", "leaderboard", "tune", "verify")
        print(f"benchsuite: interrupted{'; finished tasks are kept, the same command resumes' if kept else ''}", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


def interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt(number)


def command_list(arguments: argparse.Namespace) -> None:
    from .method import methods
    from .modifiers import MODIFIERS
    from .protocol import TIERS, protocols

    print("methods")
    for name, cls in methods.all().items():
        first = (cls.__doc__ or "").strip().splitlines()[0]
        print(f"  {name:20} {first}{' [forgets nothing]' if cls.forgetting == 'none' else ''}")
    print("modifiers (METHOD+MODIFIER)")
    for name, modifier in MODIFIERS.items():
        print(f"  {name:20} {' '.join((modifier.__doc__ or '').split()).split('. ')[0].rstrip('.')}.")
    print("protocols")
    for name, protocol in protocols.all().items():
        print(f"  {name:20} {protocol.summary}\n  {'':20} needs {protocol.needs}")
    print("tiers")
    for name, what in TIERS.items():
        print(f"  {name:20} {what}")


def command_run(arguments: argparse.Namespace) -> int:
    overrides = parse_settings(arguments)
    from .method import methods
    from .progress import Display
    from .runner import RunFailed, identify, run
    from .settings import resolve

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
    from .metrics import accuracy_matrix, average_accuracy, backward_transfer

    R = accuracy_matrix(record)
    bwt = backward_transfer(R)
    transfer = "n/a" if bwt != bwt else f"{bwt:z.2f}"
    print(f"{job}: ACC {average_accuracy(R):.2f} %, BWT {transfer}, {record.stored_bytes / 1e6:.3f} MB")
    print(arguments.results / job.folder / "record.json")
    return 0


def command_leaderboard(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    overrides = parse_settings(arguments)
    given = {"--method": arguments.methods, "--set": arguments.settings, "--seeds": arguments.seeds}
    if arguments.no_run and any(given.values()):
        words = ", ".join(name for name, value in given.items() if value)
        raise UserError(f"--no-run ranks every record that is there; {words} can only choose what to run, leave it out")
    with Console(stderr=True).status("starting PyTorch and Avalanche"):  # which takes seconds; shown on a terminal alone
        from .protocol import protocols

        if not arguments.no_run:
            from .method import methods
    protocol = protocols.get(arguments.protocol)
    protocol.recipe(arguments.tier)
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"jobs must be at least 1, got {arguments.jobs}")
    if arguments.ray is None and (arguments.cpus_per_run is not None or arguments.gpus_per_run is not None):
        raise UserError("--cpus-per-run and --gpus-per-run are for a Ray cluster; name it with --ray, or use --jobs")
    if arguments.ray is not None and arguments.jobs is not None:
        raise UserError("--jobs is for this machine; on a Ray cluster --cpus-per-run and --gpus-per-run say how many runs fit")
    if not (arguments.cpus_per_run is None or arguments.cpus_per_run > 0):
        raise UserError(f"cpus-per-run must be positive, got {arguments.cpus_per_run}")
    if not (arguments.gpus_per_run is None or arguments.gpus_per_run >= 0):
        raise UserError(f"gpus-per-run must not be negative, got {arguments.gpus_per_run}")
    failed: dict[str, str] = {}
    match: Any = arguments.match_size or ""
    if arguments.no_run and match:
        from .method import methods

        match = resolve_method(methods, match)
    elif match:
        failed, match = run_matched(protocol, arguments, overrides)
    elif not arguments.no_run:
        failed = run_missing(protocol, arguments, shares(arguments, overrides))
    for error in failed.values():
        print(f"benchsuite: failed: {error}", file=sys.stderr)

    from .leaderboard import leaderboard
    from .records import read_all
    from .report import write_report
    from .report.tables import print_boards

    folder = arguments.results / arguments.protocol / arguments.tier
    records = read_all(folder)
    if failed and not records:
        return 1
    if not records and (there := {path.parts[-5:-3] for path in arguments.results.glob("*/*/*/*/record.json")}):
        found = ", ".join(f"--protocol {name} --tier {tier}" for name, tier in sorted(there))
        raise UserError(f"{folder}: has no finished runs; there are some of {found}")
    files = {} if arguments.no_run else methods.sources()
    board = leaderboard(records, protocol.published, match=match, files=files)
    output = arguments.output or folder / "leaderboard"
    write_report(board, output)
    print_boards(board, Console(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 160))
    print(f"tables and figures: {output}")
    return 1 if failed else 0


def command_report(arguments: argparse.Namespace) -> None:
    from .method import methods
    from .protocol import protocols
    from .report import write_reports

    for file in arguments.methods:
        resolve_method(methods, file)
    published = {name: protocol.published for name, protocol in protocols.all().items()}
    families = {name: cls.family for name, cls in methods.all().items()}
    files = write_reports(
        arguments.results,
        arguments.output,
        published,
        protocols=arguments.protocol,
        tiers=arguments.tier,
        families=families,
        files=methods.sources(),
    )
    print("\n".join(f"{folder / 'report.tex'}" for folder in dict.fromkeys(file.parent for file in files)))
    print(f"what is reproduced: {arguments.output / 'ledger.md'}")
    print(f"all of it as one page: {arguments.output / 'index.html'}")


def shares(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The methods that a board is to run, the one whose size is to be matched the last, each with those settings that it has."""
    from .method import methods
    from .protocol import Recipe
    from .registry import suggest
    from .settings import field_types

    given = [*(arguments.methods or methods.all()), *([arguments.match_size] if arguments.match_size else [])]
    names = [resolve_method(methods, name) for name in given]
    known = {name: {*field_types(Recipe), *field_types(methods.get(name))} for name in names}
    for setting in overrides:
        if not any(setting in fields for fields in known.values()):
            raise UserError(f"{setting!r} is no setting of {', '.join(names)}; {suggest(setting, set().union(*known.values()))}")
    return {name: {k: v for k, v in overrides.items() if k in fields} for name, fields in known.items()}


def run_matched(protocol: Any, arguments: argparse.Namespace, overrides: dict[str, str]) -> tuple[dict[str, str], Any]:
    """Run every method as it is, then each whose size can be computed at the width at which it stores as much as the reference.

    Returns the errors by run folder, and a job of the reference's, or "" where none has a record."""
    from statistics import fmean

    from .match import matching_width, stored_bytes
    from .method import methods
    from .records import read_all
    from .runner import identify
    from .settings import Unfit, method_of, resolve

    if "width" in overrides:
        raise UserError("--match-size chooses the width of each method; leave width out of --set")
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
        except Unfit:
            continue  # it was said when its turn came
        if width is None:
            print(f"benchsuite: n/a: {name} stores more than {reference} at any width", file=sys.stderr)
        else:
            wide[name] = {**plain[name], "width": width}
            print(f"{name}: width {width:g}, {stored_bytes(at(width, name)) / 1e6:.3f} of {target / 1e6:.3f} MB", file=sys.stderr)
    return failed | run_missing(protocol, arguments, wide), matched


def jobs_of(protocol: Any, arguments: argparse.Namespace, chosen: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The jobs of a grid. chosen: the methods, each with the settings given for it; one that cannot run like this is said."""
    from .runner import identify
    from .settings import Unfit, resolve

    refuse_tuning_seeds(arguments.seeds or ())
    jobs, unfit = [], {}
    for seed in arguments.seeds or SEEDS:
        for name, words in chosen.items():
            try:
                job = resolve(protocol.name, arguments.tier, name, seed, overrides=words, precision=arguments.precision)
            except Unfit as error:
                unfit[name] = str(error)
            else:
                jobs.append(identify(job, arguments.data_dir))
    for reason in unfit.values():
        print(f"benchsuite: n/a: {reason}", file=sys.stderr)
    return jobs


def run_missing(protocol: Any, arguments: argparse.Namespace, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Run what the board lacks; returns the errors by run folder. chosen: the methods, each with the settings given for it."""
    from .data import load
    from .data.sets import MissingData
    from .grid import Engine, Local, Place, cores, missing, run_all
    from .method import methods
    from .progress import Display
    from .runner import choose_device
    from .settings import recipe_of

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
    place = partial(Place, results=arguments.results, data_dir=arguments.data_dir, method_files=files)
    engine: Engine
    if arguments.ray is None:
        device = choose_device(arguments.device, "fp32").type
        slots = arguments.jobs or (1 if device == "cuda" else cores())
        engine = Local(slots, place(device=device, threads=max(1, cores() // slots)))
        print(f"benchsuite: runs to do: {len(left)} of {len(jobs)}, {slots} at once", file=sys.stderr)
    else:
        from .cluster import Cluster

        cpus = 1.0 if arguments.cpus_per_run is None else arguments.cpus_per_run
        gpus = float(arguments.device == "cuda") if arguments.gpus_per_run is None else arguments.gpus_per_run
        # On a node "auto" would take a GPU that Ray has given to nobody, or to another run.
        device = arguments.device if arguments.device != "auto" else "cuda" if gpus else "cpu"
        where = place(device=device, threads=max(1, int(cpus)))
        engine = Cluster(arguments.ray, where, images, cpus=cpus, gpus=gpus)
    with Display(left) as display:
        return run_all(left, results=arguments.results, engine=engine, report=display)


def command_status(arguments: argparse.Namespace) -> None:
    from .status import boards, lines

    jobs: list[Any] = []
    if arguments.protocol:
        from .protocol import protocols

        arguments.tier, arguments.match_size = arguments.tier or "paper", None
        protocol = protocols.get(arguments.protocol)
        protocol.recipe(arguments.tier)
        jobs = jobs_of(protocol, arguments, shares(arguments, parse_settings(arguments)))
    elif arguments.methods or arguments.seeds or arguments.settings:
        raise UserError("--method, --seeds and --set say what should be there; name the --protocol too")
    found = boards(arguments.results, arguments.protocol, arguments.tier, [job.folder for job in jobs])
    if not found:
        print(f"no runs below {arguments.results}; start some with `benchsuite leaderboard`, or name their folder with --results")
    for line in lines(found):
        print(line)


def command_tune(arguments: argparse.Namespace) -> int:
    overrides = parse_settings(arguments)
    from .method import methods
    from .settings import in_words
    from .tune import best_of, study

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


def command_data(arguments: argparse.Namespace) -> None:
    from .data import get, load, verify
    from .data.sets import MissingData
    from .protocol import protocols

    for name in dict.fromkeys(task.dataset for task in protocols.get(arguments.protocol).tasks):
        if arguments.action == "get":
            try:
                get(name, arguments.data_dir)
            except UserError as error:  # what cannot be completed may be accepted as it is
                if not arguments.partial_data:
                    raise
                print(f"benchsuite: note: {error}", file=sys.stderr)
        check = load if arguments.action == "get" else verify  # get has decoded and checked it a moment ago
        try:
            images = check(name, arguments.data_dir, partial=arguments.partial_data)
        except MissingData as error:
            if not arguments.partial_data:
                raise
            print(f"benchsuite: note: {error}", file=sys.stderr)
            continue
        print(
            f"{name}: {len(images.train_y):,} training and {len(images.test_y):,} test images, "
            f"{'complete' if images.complete else images.note or 'incomplete'}, digest {images.digest[:16]}"
        )


def command_export(arguments: argparse.Namespace) -> None:
    from collections import Counter

    from .records import artifact_of, read, write_atomic

    if arguments.output and len(arguments.runs) > 1:
        raise UserError(f"--output names the file of a single run, got {len(arguments.runs)} runs")
    folders = list(dict.fromkeys(run.parent if run.name == "record.json" else run for run in arguments.runs))
    records = [read(folder / "record.json") for folder in folders]
    names = [f"{r.job.protocol}-{r.job.tier}-{r.job.method}-seed{r.job.seed}" for r in records]
    exports = []
    for folder, record, name in zip(folders, records, names, strict=True):
        content = artifact_of(record, folder)
        if Counter(names)[name] > 1:  # several configurations: tell their files apart
            name = f"{name}-{record.job.config}"
        output = arguments.output or Path(f"{name}.safetensors")
        if output.exists():
            raise UserError(f"{output}: exists already; choose another file with --output")
        exports.append((output, content, record))
    for output, content, record in exports:  # only once every one of them is in order
        write_atomic(output, content)
        print(f"{output}: {len(content):,} bytes, {len(record.tasks)} tasks")
        print(f"serve it with: benchsuite.load({str(output)!r}).predict(images, task)")


def command_verify(arguments: argparse.Namespace) -> int:
    from .method import methods
    from .progress import Display
    from .records import read
    from .runner import RunFailed
    from .verify import verify

    path = arguments.run if arguments.run.name == "record.json" else arguments.run / "record.json"
    record = read(path)
    if arguments.method:
        name = resolve_method(methods, arguments.method)
        if name != record.job.base:
            raise UserError(f"{arguments.method}: registers {name}, the record is of {record.job.method}; name that one's file")
    took = sum(map(sum, record.seconds.values()))
    print(f"{record.job}: took {took:,.0f} s on record; interrupt it and the same command resumes", file=sys.stderr)
    try:
        with Display([record.job]) as display:
            verdict = verify(
                path,
                scratch=arguments.results / "verify",
                data_dir=arguments.data_dir,
                device=arguments.device,
                report=display,
            )
    except RunFailed as error:
        print(f"benchsuite: failed: {error}", file=sys.stderr)
        return 1
    for remark in verdict.remarks:
        print(f"  {remark}")
    print(f"{record.job}: {verdict.words}")
    return 0 if verdict.reproduced else 1


def command_merge(arguments: argparse.Namespace) -> int:
    from .merge import merge
    from .method import methods

    for file in arguments.methods:
        resolve_method(methods, file)
    count = merge(
        arguments.source,
        arguments.results,
        say=lambda remark: print(f"benchsuite: note: {remark}", file=sys.stderr),
        refuse=lambda reason: print(f"benchsuite: refused: {reason}", file=sys.stderr),
    )
    print(f"{arguments.results}: {', '.join(f'{number} {what}' for what, number in count.items())}")
    return 1 if count["refused"] else 0


def command_bench(arguments: argparse.Namespace) -> None:
    overrides = parse_settings(arguments)
    from .measure.bench import SECTIONS, Bench, measure
    from .method import methods
    from .runner import choose_device

    note_slow_precision(arguments)
    bench = Bench(
        protocol=arguments.protocol,
        data_dir=arguments.data_dir,
        methods=[resolve_method(methods, name) for name in arguments.methods],
        relative_to=resolve_method(methods, arguments.relative_to),
        precision=arguments.precision,
        device=choose_device(arguments.device, arguments.precision),
        rounds=arguments.rounds,
        steps=arguments.steps,
        tasks=arguments.tasks and tuple(arguments.tasks),
        sections=arguments.sections or SECTIONS,
        skip=arguments.skip,
        overrides=overrides,
    )
    measure(bench, arguments.output)


def command_new_method(arguments: argparse.Namespace) -> None:
    from keyword import iskeyword

    from .method import methods

    given, name = arguments.name, arguments.name.lower()
    path = arguments.output or Path(f"{name}.py")
    if not (name.isascii() and name.isidentifier() and name[0].isalpha()) or iskeyword(name):
        raise UserError(
            f"{given!r} is no name for a method; use letters, digits and underscores, a letter first, no Python keyword"
        )
    if name in methods.all():
        raise UserError(f"a method is called {name!r} already; choose another name")
    if path.suffix != ".py":
        raise UserError(f"{path}: a method's file must end in .py")
    words = {"NewMethod": "".join(part.capitalize() for part in name.split("_")), "new_method.py": str(path), "new_method": name}
    text = Path(__file__).with_name("template.py").read_text()
    for old, new in words.items():
        text = text.replace(old, new)
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path}: exists already; choose another name, or another file with --output") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with --output") from None
    print(f"{path}: a method that runs; read it, change it, then: benchsuite check {path}")


def command_check(arguments: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    import torch

    from .contract import PROTOCOL, TIER, Bench, check
    from .method import methods
    from .protocol import Recipe
    from .settings import field_types

    overrides = parse_settings(arguments)
    name = resolve_method(methods, arguments.method)
    if recipe := sorted(set(overrides) & set(field_types(Recipe))):
        raise UserError(f"check sets the recipe itself, {recipe[0]} too; --set takes the fields of {name} here")
    torch.set_num_threads(1)  # the networks are too small to share out
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), overrides)
        bench.job(name)  # what is wrong with the words themselves is said first
        print(f"{name} on {PROTOCOL}, tier {TIER}")
        answers = []
        for outcome in check(bench, name):
            answers.append(outcome.holds)
            print({True: "  holds  ", False: "  FAILS  ", None: "  n/a    "}[outcome.holds] + outcome.rule.words, flush=True)
            for note in outcome.notes:
                print(f"         - {note}")
    failed, asked = answers.count(False), len(answers) - answers.count(None)
    print(f"{name}: {failed} of {asked} rules broken" if failed else f"{name}: all {asked} rules that apply hold")
    return 1 if failed else 0


def note_slow_precision(arguments: argparse.Namespace) -> None:
    from .nn import bfloat16
    from .runner import choose_device

    device = choose_device(arguments.device, "fp32")  # whether a GPU has bf16 each run asks: here that would open the GPU
    if arguments.precision == "bf16" and device.type == "cpu" and not bfloat16.native():
        print(
            "benchsuite: note: this CPU has no bf16 arithmetic; its numbers are computed in fp32, which is no faster than fp32",
            file=sys.stderr,
        )


def refuse_tuning_seeds(given: Sequence[int]) -> None:
    from .settings import TUNING_SEEDS

    for seed in given:
        if seed in TUNING_SEEDS:
            raise UserError(f"settings were chosen on the task order of seed {seed}, so nothing is reported for it; take another")


def parse_settings(arguments: argparse.Namespace) -> dict[str, str]:
    overrides = {}
    for text in arguments.settings:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--set takes name=value, got {text!r}")
        overrides[name] = value
    if getattr(arguments, "partial_data", False):
        overrides["partial_data"] = "true"
    return overrides


def resolve_method(methods: Any, text: str) -> str:
    """A registered name as it is; a Python file is imported and its method's name returned. Either may end in +MODIFIER."""
    file, plus, modifier = text.partition(".py+") if ".py+" in text else (text.removesuffix(".py"), "", "")
    if plus or text.endswith(".py"):
        text = methods.load_file(Path(f"{file}.py")) + ("+" + modifier if plus else "")
    return methods.get(text).name


if __name__ == "__main__":
    raise SystemExit(main())
