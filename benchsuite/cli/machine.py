"""Commands on this machine: data, bench."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import UserError
from .arguments import note_slow_precision, parse_settings


def command_data(arguments: argparse.Namespace) -> None:
    from ..data import datasets, get, load, verify
    from ..data.sets import MissingData
    from ..protocol import protocols
    from ..registry import load_file, suggest

    known = {**{name: [name] for name in datasets.all()}, **{name: p.sets for name, p in protocols.all().items()}}
    if arguments.name.endswith(".py"):
        found = load_file(Path(arguments.name))
        names = [*found.get(datasets.kind, []), *(name for p in found.get(protocols.kind, []) for name in protocols.get(p).sets)]
        if not names:
            raise UserError(f"{arguments.name}: defines no protocol and no data set", f"{protocols.how}, or {datasets.how}")
    elif arguments.name in known:
        names = known[arguments.name]
    else:
        raise UserError(f"no protocol or data set is called {arguments.name!r}", suggest(arguments.name, known))
    for name in dict.fromkeys(names):
        if arguments.action == "get":
            try:
                get(name, arguments.data_dir)
            except UserError as error:  # an incomplete set may be accepted
                if not arguments.partial_data:
                    raise
                print(f"benchsuite: note: {error}", file=sys.stderr)
        check = load if arguments.action == "get" else verify  # get has just decoded and checked it
        try:
            images = check(name, arguments.data_dir, partial=arguments.partial_data)
        except MissingData as error:
            if not arguments.partial_data:
                raise
            print(f"benchsuite: note: {error}", file=sys.stderr)
            continue
        print(
            f"{name}: {len(images.train_y):,} training and {len(images.test_y):,} test images, "
            f"{images.note or ('complete' if images.complete else 'incomplete')}, digest {images.digest[:16]}"
        )


def command_bench(arguments: argparse.Namespace) -> None:
    overrides = parse_settings(arguments)
    from ..measure.bench import SECTIONS, Bench, measure
    from ..measure.serving import measure_board
    from ..method.registered import methods
    from ..training.device import configure_process

    note_slow_precision(arguments.device, arguments.precision)
    device = configure_process(arguments.device, arguments.precision)
    names = [methods.find(name) for name in arguments.methods]
    if arguments.served:
        measure_board(arguments.served, device, batch=arguments.batch, rounds=arguments.rounds, steps=arguments.steps)
        return
    bench = Bench(
        protocol=arguments.protocol,
        tier=arguments.tier,
        data_dir=arguments.data_dir,
        methods=names,
        relative_to=methods.find(arguments.relative_to),
        precision=arguments.precision,
        device=device,
        rounds=arguments.rounds,
        steps=arguments.steps,
        tasks=arguments.tasks and tuple(arguments.tasks),
        sections=arguments.sections or SECTIONS,
        skip=arguments.skip,
        overrides=overrides,
    )
    measure(bench, arguments.output)
