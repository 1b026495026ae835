"""The command line's parser: commands, options, and how their text becomes values."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NoReturn

PROTOCOL = "rotated-digits"

EPILOG = """examples:
  benchsuite leaderboard                                   every method on rotated-digits, three seeds (no download)
  benchsuite run --protocol split-cifar100 --tier lite --method cacl --seed 1
  benchsuite run --method ./my_method.py --set strength=0.5
  benchsuite run --method cacl+hosvd --set epsilon=0.9      CACL with compressed activations
  benchsuite leaderboard --method cacl --method ./my_method.py --seeds 1-5
  benchsuite status                                        which runs are done, running, failed or interrupted
  benchsuite tune --protocol split-cifar100 --method ewc
  benchsuite new-protocol my_protocol && benchsuite check ./my_protocol.py
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
            raise argparse.ArgumentTypeError(f"seeds must be whole numbers or ranges, separated by commas (1-3,7), got {text!r}")
        if dash and int(last) < int(first):
            raise argparse.ArgumentTypeError(f"a range of seeds must go upwards, got {part.strip()!r}")
        if dash and int(last) - int(first) >= 10_000:
            raise argparse.ArgumentTypeError(f"seeds: {part.strip()!r} is more than 10,000 seeds")
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))


def parser() -> Parser:
    top = Parser(
        prog="benchsuite",
        description="A benchmark of task-incremental continual learning inside a storage budget.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def where(protocol: str | None = PROTOCOL, tier: str | None = "paper") -> Parser:
        """None: not given, where a command takes the value from a record."""
        options = Parser(add_help=False)
        options.add_argument(
            "--protocol",
            default=protocol,
            help=f"a registered protocol or a Python file that defines one (default: {PROTOCOL}, which needs no download)",
        )
        options.add_argument("--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder (default: ./runs)")
        options.add_argument("--tier", default=tier, help=f"paper (the full recipe), lite or smoke (default: {tier or 'paper'})")
        return options

    chosen = Parser(add_help=False)
    chosen.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting of the recipe or of the method; repeatable",
    )

    def how(precision: str | None = "fp32") -> Parser:
        options = Parser(add_help=False, parents=[chosen])
        options.add_argument(
            "--precision", default=precision, help="fp32 (default) or bf16 autocast; part of what identifies a run"
        )
        options.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
        return options

    data = Parser(add_help=False)
    data.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder that holds the image sets, as archives or extracted (default: the download cache)",
    )
    data.add_argument(
        "--partial-data",
        action="store_true",
        help="accept incomplete image sets; such runs are never compared with published figures",
    )

    trained = Parser(add_help=False)
    trained.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="PLUGIN",
        help="train with an Avalanche plugin, as METHOD+PLUGIN: 'CLASS(NAME=VALUE, ...)' of Avalanche's, or MODULE:CLASS(...),"
        " or ./FILE.py:CLASS(...); repeatable",
    )
    watched = Parser(add_help=False, parents=[trained])
    watched.add_argument(
        "--logger",
        dest="loggers",
        action="append",
        default=[],
        metavar="KIND",
        help="log losses and accuracies to RESULTS/logs: tensorboard, csv or wandb; repeatable; changes nothing in a run",
    )
    watched.add_argument(
        "--predictions",
        action="store_true",
        help="also write the answers to all test images after the last task; a finished run gets them without training",
    )

    commands.add_parser("list", help="list methods, modifiers, protocols (with what they download) and tiers")
    one = commands.add_parser(
        "run", parents=[where(None, None), how(None), data, watched], help="train one method on one protocol with one seed"
    )
    one.add_argument("--method", help="a registered method or a Python file that defines one, optionally followed by +MODIFIER")
    one.add_argument("--seed", type=int, help="seed of the run and of its task order (default: 1)")
    one.add_argument(
        "--from",
        dest="record",
        type=Path,
        metavar="RUN",
        help="repeat the configuration of a finished run (its folder, or its record.json); --seed, --set, --precision change it",
    )
    many = Parser(add_help=False)
    many.add_argument(
        "--method",
        dest="methods",
        action="append",
        metavar="METHOD",
        help="a method to run, as for `benchsuite run`; repeatable (default: every registered method)",
    )
    many.add_argument("--seeds", type=seeds, help="such as 1,2,5 or 1-5 or 1-3,7 (default: 1-3)")
    board = commands.add_parser(
        "leaderboard", parents=[where(), how(), data, many, watched], help="run what is missing, then rank all records"
    )
    board.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="number of runs at once on this machine (default: one per core on a CPU, one on a GPU)",
    )
    board.add_argument(
        "--ray", metavar="ADDRESS", help="run on the Ray cluster at this address (local: start one on this machine)"
    )
    board.add_argument("--cpus-per-run", type=float, metavar="N", help="cores for each run on a Ray cluster (default: 1)")
    board.add_argument(
        "--gpus-per-run",
        type=float,
        metavar="N",
        help="GPUs for each run on a Ray cluster; may be a fraction, such as 0.125 (default: 1 with --device cuda, otherwise 0)",
    )
    board.add_argument("--no-run", action="store_true", help="run nothing, only rank the records that exist")
    board.add_argument(
        "--match-size",
        metavar="METHOD",
        help="also run each method at the largest width that stores no more than METHOD",
    )
    board.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for tables and figures (default: `leaderboard` beside the records)"
    )
    board.add_argument("--no-figures", action="store_true", help="write the tables only, which is quicker")
    state = commands.add_parser(
        "status",
        parents=[how(), data, many],
        help="show which runs are done, running, failed, interrupted or stale; with --protocol also which are missing",
    )
    state.add_argument(
        "--protocol", help="only this protocol; also shows what `leaderboard` with the same options would still run"
    )
    state.add_argument("--tier", help="only this tier (default: all; with --protocol: paper)")
    state.add_argument("--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder (default: ./runs)")
    paper = commands.add_parser("report", help="write tables, figures and the reproduction ledger for a paper from finished runs")
    paper.add_argument(
        "output",
        type=Path,
        nargs="?",
        metavar="DIR",
        help="output folder; each protocol and tier gets a folder of its own in it",
    )
    paper.add_argument("--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder (default: ./runs)")
    paper.add_argument("--select", type=Path, metavar="FILE", help="what to show, as TOML; other options go before it")
    paper.add_argument("--example", type=Path, metavar="FILE", help="only write such a file, with comments, to start from")
    paper.add_argument(
        "--protocol", nargs="+", action="extend", default=[], metavar="P", help="only these (default: all that have records)"
    )
    paper.add_argument(
        "--tier", nargs="+", action="extend", default=[], metavar="T", help="only these (default: all that have records)"
    )
    paper.add_argument(
        "--row",
        dest="rows",
        action="append",
        default=[],
        metavar="NAME[=LABEL]",
        help="a row to show, as LABEL; repeatable, in the order of the tables (default: at most 12; the others in an appendix)",
    )
    paper.add_argument("--ours", action="append", default=[], metavar="NAME", help="a row to mark as your own; repeatable")
    paper.add_argument(
        "--boards", nargs="+", action="extend", default=[], metavar="BOARD", help="only these tables (default: all four)"
    )
    paper.add_argument(
        "--columns",
        action="append",
        default=[],
        metavar="BOARD=NAME,...",
        help="the columns of a board, as the CSV files name them; repeatable (default: what fits)",
    )
    paper.add_argument("--digits", action="append", default=[], metavar="COLUMN=N", help="decimals of a column; repeatable")
    paper.add_argument(
        "--fit",
        choices=("column", "two-column", "page"),
        help="what a table must fit: a column of a two-column paper, its full width, or a one-column page (default)",
    )
    paper.add_argument("--font", choices=("serif", "sans"), help="of the figures (default: serif)")
    paper.add_argument("--siunitx", action="store_true", help="numbers in S columns of the LaTeX package siunitx")
    paper.add_argument(
        "--figures", nargs="+", action="extend", default=[], metavar="NAME", help="only these figures (default: the usual ones)"
    )
    paper.add_argument("--no-pdf", action="store_true", help="do not compile report.tex")
    long = commands.add_parser(
        "table", help="write all accuracies, sizes, settings and other numbers of finished runs as one table"
    )
    long.add_argument("output", type=Path, metavar="FILE", help="file to write: .csv or .parquet")
    long.add_argument("--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder (default: ./runs)")
    search = commands.add_parser(
        "tune", parents=[where(tier="lite"), how(), data, trained], help="search the settings of methods, on training images only"
    )
    search.add_argument(
        "--method",
        dest="methods",
        action="append",
        metavar="METHOD",
        help="a registered method or a Python file that defines one; repeatable, one search after another"
        " (default: every registered method with a search space)",
    )
    search.add_argument("--trials", type=int, default=5, metavar="N", help="number of trials for each method (default: 5)")
    sets = commands.add_parser("data", help="download or check the image sets of a protocol, or one image set")
    actions = sets.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    for action, what in (("get", "download what is missing"), ("verify", "decode all images again and check them")):
        actions.add_parser(action, parents=[data], help=what).add_argument(
            "name", help="a registered protocol, a data set, or a Python file that defines one"
        )
    out = commands.add_parser("export", help="copy the artifacts of finished runs, ready to be served")
    out.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run, or its record.json")
    out.add_argument("--form", default=None, metavar="FORM", help="store in fewer bits: fp16, int8, int6 or int4 (default: fp32)")
    out.add_argument(
        "--to",
        choices=("torch", "onnx"),
        help="write a program of torch.export or ONNX for each task instead, and a model card, into a folder",
    )
    out.add_argument(
        "--task",
        dest="tasks",
        type=int,
        action="append",
        metavar="N",
        help="for --to: only this task, counted from 0; repeatable",
    )
    out.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file or, with --to, folder to write, for a single run"
        " (default: PROTOCOL-TIER-METHOD-seedN[-FORM].safetensors or -torch or -onnx in this folder)",
    )
    out.add_argument(
        "--method", metavar="FILE", help="for --form and --to: Python file that defines the method, unless it is installed"
    )
    again = commands.add_parser("verify", help="run a record's job again and say whether it gives the same numbers")
    again.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or its record.json")
    again.add_argument("--method", metavar="FILE", help="Python file that defines the method, unless it is installed")
    again.add_argument(
        "--results", type=Path, default=Path("runs"), metavar="DIR", help="the new run is written to DIR/verify (default: ./runs)"
    )
    again.add_argument(
        "--device", default="auto", help="auto (default: the kind of device on record, if this machine has one), cpu or cuda"
    )
    again.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder that holds the image sets (default: the download cache)"
    )
    foreign = commands.add_parser(
        "import", parents=[where()], help="put an accuracy matrix from elsewhere on a board, as an unverified row"
    )
    foreign.add_argument(
        "--matrix",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV: a row for each task learnt, a column for each task tested",
    )
    foreign.add_argument("--unit", required=True, choices=("percent", "fraction"), help="of the entries of the matrix")
    foreign.add_argument("--method", required=True, metavar="NAME", help="name of the row; '(unverified)' is added")
    foreign.add_argument(
        "--seed",
        type=int,
        default=1,
        help="seed of the result, and of the order of tasks unless the matrix names them (default: 1)",
    )
    foreign.add_argument("--source", required=True, metavar="URL", help="where the result is stated: http(s)://... or doi:...")
    foreign.add_argument("--by", required=True, metavar="WHO", help="who made it, such as 'Doe et al. 2024'")
    foreign.add_argument("--artifact", type=Path, metavar="FILE", help="the file that serves all tasks, for the size")
    bring = commands.add_parser("merge", help="check records made elsewhere and add them; nothing is overwritten")
    bring.add_argument(
        "source", type=Path, metavar="DIR", help="folder of results, or any folder with record.json files below it"
    )
    bring.add_argument("--results", type=Path, default=Path("runs"), metavar="DIR", help="results folder (default: ./runs)")
    for command in (board, paper):
        command.add_argument(
            "--compare",
            action="extend",
            type=lambda text: [name.strip() for name in re.split(r",(?![^\[]*\])", text) if name.strip()],
            default=[],
            metavar="METHOD,METHOD,...",
            help="test only these rows against each other (default: all that are ranked)",
        )
    for command in (again, bring):
        command.add_argument(
            "--plugin",
            dest="plugins",
            action="append",
            default=[],
            metavar="PLUGIN",
            help="MODULE:CLASS or ./FILE.py:CLASS that a method on record trains with; repeatable",
        )
        command.add_argument("--protocol", metavar="FILE", help="Python file that defines the protocol, unless it is installed")
    for command in (paper, bring):
        command.add_argument(
            "--method",
            dest="methods",
            action="append",
            default=[],
            metavar="FILE",
            help="Python file that defines a method; repeatable",
        )
    timed = commands.add_parser(
        "bench",
        parents=[chosen],
        help="measure what a training step costs on this machine, where its time goes and which settings change it",
    )
    timed.add_argument(
        "--protocol",
        default=PROTOCOL,
        help=f"a registered protocol or a Python file that defines one (default: {PROTOCOL}, which needs no download)",
    )
    timed.add_argument("--tier", default="lite", help="lite (default), paper or another tier of the protocol")
    timed.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder that holds the image sets (default: the download cache)"
    )
    timed.add_argument(
        "--methods",
        nargs="+",
        action="extend",
        default=[],
        metavar="METHOD",
        help="methods to measure (default: all that learn task after task)",
    )
    timed.add_argument(
        "--relative-to", default="finetune", metavar="METHOD", help="the method whose step is the unit (default: finetune)"
    )
    timed.add_argument(
        "--tasks", type=int, nargs=2, metavar="N", help="the early and the late task to measure (default: 2 and the last)"
    )
    timed.add_argument(
        "--sections",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION",
        help="any of: loop methods evaluation data settings profile (default: all)",
    )
    timed.add_argument(
        "--skip", nargs="+", action="extend", default=[], metavar="NAME", help="skip measurements whose name starts with NAME"
    )
    timed.add_argument("--precision", default="fp32", help="fp32 (default) or bf16 autocast")
    timed.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    timed.add_argument("--rounds", type=int, default=7, help="number of rounds; each measures every contender once (default: 7)")
    timed.add_argument("--steps", type=int, default=4, help="training steps per measurement (default: 4)")
    timed.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the tables as Markdown and CSV (default: none are written)"
    )
    timed.add_argument(
        "--served",
        type=Path,
        metavar="DIR",
        help="measure the artifacts of a board instead, DIR being RESULTS/PROTOCOL/TIER: how fast they serve, relative to the"
        " dense network; its boards then have the column",
    )
    timed.add_argument("--batch", type=int, default=64, help="images at once with --served (default: 64)")
    fresh = commands.add_parser("new-protocol", help="write a commented Python file that defines a protocol, to start from")
    fresh.add_argument("name", metavar="NAME", help="name of the protocol; letters, digits, - and _")
    fresh.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: NAME.py in this folder)")
    new = commands.add_parser("new-method", help="write a commented Python file that defines a method, to start from")
    new.add_argument("name", metavar="NAME", help="name of the method; must be a valid Python name")
    new.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: NAME.py in this folder)")
    rules = commands.add_parser(
        "check", parents=[chosen, trained], help="run the conformance checks on a method, or check a protocol (about a minute)"
    )
    rules.add_argument("name", metavar="NAME", help="a registered method or protocol, or a Python file that defines one")
    rules.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder that holds the image sets of a protocol (default: the download cache)",
    )
    return top


def note_slow_precision(device: str, precision: str) -> None:
    from ..training.device import slow_precision

    if note := slow_precision(device, precision):
        print(f"benchsuite: {note}", file=sys.stderr)


def parse_settings(arguments: argparse.Namespace) -> dict[str, str]:
    from ..fields import parse_assignments

    overrides = parse_assignments(arguments.settings)
    if getattr(arguments, "partial_data", False):
        overrides["partial_data"] = "true"
    return overrides
