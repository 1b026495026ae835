"""Commands on methods and protocols, and the files that define them: list, new-method, new-protocol, check."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from .arguments import parse_settings

IMPORTED = ("Any", "Artifact", "Method", "Tensor")  # what a template imports: a class of that name would hide it


def command_list(arguments: argparse.Namespace) -> None:
    from .. import catalogue
    from ..data import datasets
    from ..protocol import TIERS, protocols

    print("methods")
    for name, method in catalogue.methods().items():
        print(f"  {name:20} {method.summary}{' [forgets nothing]' if method.forgetting == 'none' else ''}")
    print("modifiers (METHOD+MODIFIER)")
    for name, summary in catalogue.modifiers().items():
        print(f"  {name:20} {summary}")
    print("protocols")
    for name, protocol in protocols.all().items():
        print(f"  {name:20} {protocol.summary}\n  {'':20} needs {protocol.needs or ', '.join(protocol.sets)}")
    print("data sets")
    for name, dataset in datasets.all().items():
        print(f"  {name:20} {dataset.classes} classes; {dataset.origin}")
    print("tiers")
    for name, what in TIERS.items():
        print(f"  {name:20} {what}")


def command_new_method(arguments: argparse.Namespace) -> None:
    from keyword import iskeyword

    from ..catalogue import methods

    given, name = arguments.name, arguments.name.lower()
    if not re.fullmatch(r"[a-z]\w{0,80}", name, re.ASCII) or iskeyword(name) or iskeyword(name.capitalize()):
        raise UserError(
            f"{given!r:.100} cannot be the name of a method",
            "use at most 80 letters, digits and underscores, begin with a letter, and avoid Python keywords",
        )
    if name in methods():
        raise UserError(f"a method named {name!r} exists already", "choose another name")
    path = arguments.output or Path(f"{name}.py")
    if path.stem in sys.stdlib_module_names:
        raise UserError(f"{path.name} would hide a module of Python", "choose another name, or another file with --output")
    cls = "".join(part.capitalize() for part in name.split("_"))
    words = {"NewMethod": cls + "Method" * (cls in IMPORTED), "new_method.py": str(path), "new_method": name}
    _write_template("template.py", words, path)
    print(f"{path}: a method that runs; read it, change it, then run: benchsuite check {path}")


def command_new_protocol(arguments: argparse.Namespace) -> None:
    from ..protocol import protocols

    name = arguments.name
    if not re.fullmatch(r"[A-Za-z][\w-]{0,80}", name, re.ASCII):
        raise UserError(f"{name!r} cannot be the name of a protocol", "use letters, digits, - and _, and begin with a letter")
    if name in protocols.all():
        raise UserError(f"a protocol named {name!r} exists already", "choose another name")
    path = arguments.output or Path(f"{name}.py")
    _write_template("protocol_template.py", {"new_protocol.py": str(path), "new-protocol": name}, path)
    print(f"{path}: a protocol that runs; read it, change it, then run: benchsuite check {path}")


def _write_template(template: str, words: Mapping[str, str], path: Path) -> None:
    """Write a template with some of its words replaced."""
    from importlib.resources import files

    if path.suffix != ".py":
        raise UserError(f"{path}: the name of a Python file must end in .py")
    text = files("benchsuite.checks").joinpath(template).read_text()
    for old, new in words.items():
        text = text.replace(old, new)
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):  # it stands in the docstring
        raise UserError(f"{path}: Python text cannot hold this name", "choose another file with --output") from None
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path}: exists already", "choose another name, or another file with --output") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "choose another file with --output") from None


def command_check(arguments: argparse.Namespace) -> int:
    """A file may define a method and a protocol: then both are checked."""
    from ..protocol import protocols
    from ..registry import load_file

    found = load_file(Path(arguments.name)) if arguments.name.endswith(".py") else {}
    own = found.get(protocols.kind, [arguments.name] if arguments.name in protocols.all() else [])
    failed = [check_protocol(name, arguments) for name in own]
    if not own or "method" in found:
        failed.append(check_method(arguments))
    return max(failed)


def check_protocol(name: str, arguments: argparse.Namespace) -> int:
    from ..checks.protocol import examine
    from ..protocol import protocols
    from ..training.device import configure_process

    if arguments.settings or arguments.plugins:
        raise UserError(f"{'--set' if arguments.settings else '--plugin'} is for the check of a method", "leave it out")
    configure_process("cpu", threads=1)
    print(f"{name}: {protocols.get(name).summary}")
    failed = 0
    for finding in examine(protocols.get(name), arguments.data_dir):
        failed += finding.holds is False
        print({True: "  holds  ", False: "  FAILS  ", None: "  note   "}[finding.holds] + finding.what, flush=True)
    print(f"{name}: {failed} check{'s' * (failed > 1)} failed" if failed else f"{name}: sound")
    return 1 if failed else 0


def check_method(arguments: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from ..checks.contract import PROTOCOL, TIER, ShortRuns, check
    from ..fields import field_types
    from ..method.registered import methods
    from ..protocol import Recipe
    from ..training.device import configure_process

    name, words = methods.trained_with(methods.find(arguments.name), arguments.plugins)
    overrides = {**words, **parse_settings(arguments)}
    if recipe := sorted(set(overrides) & set(field_types(Recipe))):
        raise UserError(
            f"check uses a recipe of its own, so {recipe[0]} cannot be set", f"use --set for the settings of {name} only"
        )
    configure_process("cpu", threads=1)  # the networks are too small for more
    with TemporaryDirectory() as folder:
        runs = ShortRuns(Path(folder), overrides)
        runs.job(name)  # wrong settings are reported before anything is trained
        print(f"{name} on {PROTOCOL}, tier {TIER}")
        answers = []
        for outcome in check(runs, name):
            answers.append(outcome.holds)
            print({True: "  holds  ", False: "  FAILS  ", None: "  n/a    "}[outcome.holds] + outcome.rule.words, flush=True)
            for note in outcome.notes:
                print(f"         - {note}")
    failed, asked = answers.count(False), len(answers) - answers.count(None)
    print(f"{name}: {failed} of {asked} rules broken" if failed else f"{name}: all {asked} applicable rules hold")
    return 1 if failed else 0
