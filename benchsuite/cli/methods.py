"""Commands on methods: list, new-method, check."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError
from .arguments import parse_settings


def command_list(arguments: argparse.Namespace) -> None:
    from .. import catalogue
    from ..protocol import TIERS, protocols

    print("methods")
    for name, method in catalogue.methods().items():
        print(f"  {name:20} {method.summary}{' [forgets nothing]' if method.forgetting == 'none' else ''}")
    print("modifiers (METHOD+MODIFIER)")
    for name, summary in catalogue.modifiers().items():
        print(f"  {name:20} {summary}")
    print("protocols")
    for name, protocol in protocols.all().items():
        print(f"  {name:20} {protocol.summary}\n  {'':20} needs {protocol.needs}")
    print("tiers")
    for name, what in TIERS.items():
        print(f"  {name:20} {what}")


def command_new_method(arguments: argparse.Namespace) -> None:
    from importlib.resources import files
    from keyword import iskeyword

    from ..catalogue import methods

    given, name = arguments.name, arguments.name.lower()
    path = arguments.output or Path(f"{name}.py")
    if not (name.isascii() and name.isidentifier() and name[0].isalpha()) or iskeyword(name):
        raise UserError(
            f"{given!r} cannot be the name of a method",
            "use letters, digits and underscores, begin with a letter, and avoid Python keywords",
        )
    if name in methods():
        raise UserError(f"a method named {name!r} exists already", "choose another name")
    if path.suffix != ".py":
        raise UserError(f"{path}: the name of a Python file must end in .py")
    words = {"NewMethod": "".join(part.capitalize() for part in name.split("_")), "new_method.py": str(path), "new_method": name}
    text = files("benchsuite.checks").joinpath("template.py").read_text()
    for old, new in words.items():
        text = text.replace(old, new)
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path}: exists already", "choose another name, or another file with --output") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "choose another file with --output") from None
    print(f"{path}: a method that runs; read it, change it, then run: benchsuite check {path}")


def command_check(arguments: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from ..checks.contract import PROTOCOL, TIER, ShortRuns, check
    from ..fields import field_types
    from ..method.registered import methods
    from ..protocol import Recipe
    from ..training.device import configure_process

    overrides = parse_settings(arguments)
    name = methods.find(arguments.method)
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
