"""Commands on this machine: data, bench."""

from __future__ import annotations

import argparse
import sys

from ..errors import UserError
from .arguments import note_slow_precision, parse_settings


def command_data(arguments: argparse.Namespace) -> None:
    from ..data import get, load, verify
    from ..data.sets import NAMES, MissingData
    from ..protocol import protocols
    from ..registry import suggest

    known = {name: [task.dataset for task in protocol.tasks] for name, protocol in protocols.all().items()}
    known = {**{name: [name] for name in NAMES}, **known}
    if arguments.name not in known:
        raise UserError(f"no protocol or image set is called {arguments.name!r}", suggest(arguments.name, known))
    for name in dict.fromkeys(known[arguments.name]):
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
            f"{'complete' if images.complete else images.note or 'incomplete'}, digest {images.digest[:16]}"
        )


def command_bench(arguments: argparse.Namespace) -> None:
    overrides = parse_settings(arguments)
    from ..measure.bench import SECTIONS, Bench, measure
    from ..method.registered import methods
    from ..training.device import configure_process

    note_slow_precision(arguments)
    bench = Bench(
        protocol=arguments.protocol,
        data_dir=arguments.data_dir,
        methods=[methods.find(name) for name in arguments.methods],
        relative_to=methods.find(arguments.relative_to),
        precision=arguments.precision,
        device=configure_process(arguments.device, arguments.precision),
        rounds=arguments.rounds,
        steps=arguments.steps,
        tasks=arguments.tasks and tuple(arguments.tasks),
        sections=arguments.sections or SECTIONS,
        skip=arguments.skip,
        overrides=overrides,
    )
    measure(bench, arguments.output)
