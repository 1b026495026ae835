"""What may be typed: commands, options, and how their text becomes values."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UserError

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


def note_slow_precision(arguments: argparse.Namespace) -> None:
    from ..training.device import slow_precision

    if note := slow_precision(arguments.device, arguments.precision):
        print(f"benchsuite: {note}", file=sys.stderr)


def refuse_tuning_seeds(given: Sequence[int]) -> None:
    from ..training.settings import TUNING_SEEDS

    for seed in given:
        if seed in TUNING_SEEDS:
            raise UserError(
                f"settings were chosen on the task order of seed {seed}, so nothing is reported for it", "take another"
            )


def parse_settings(arguments: argparse.Namespace) -> dict[str, str]:
    from ..fields import parse_assignments

    overrides = parse_assignments(arguments.settings)
    if getattr(arguments, "partial_data", False):
        overrides["partial_data"] = "true"
    return overrides


def resolve_method(methods: Any, text: str) -> str:
    """A registered name as it is; a Python file is imported and its method's name returned. Either may end in +MODIFIER."""
    file, plus, modifier = text.partition(".py+") if ".py+" in text else (text.removesuffix(".py"), "", "")
    if plus or text.endswith(".py"):
        text = methods.load_file(Path(f"{file}.py")) + ("+" + modifier if plus else "")
    return methods.get(text).name
