"""Commands on finished runs: report, table, export, verify, import, merge."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..text import clean

if TYPE_CHECKING:
    from ..record.schema import RunRecord
    from ..report.selection import Selection


def command_report(arguments: argparse.Namespace) -> None:
    from .. import catalogue
    from ..files import write_atomic
    from ..report.selection import EXAMPLE

    if arguments.example:
        if arguments.example.exists():
            raise UserError(f"{arguments.example}: exists already", "choose another file with --example")
        if arguments.output:
            raise UserError(f"--example writes {arguments.example} and no report", f"leave {arguments.output} out")
        write_atomic(arguments.example, EXAMPLE.read_text(encoding="utf-8"))
        print(f"{arguments.example}: a selection to change; then `benchsuite report DIR --select {arguments.example}`")
        return
    if not arguments.output:
        raise UserError("report needs a folder to write to", "name one, such as `benchsuite report paper`")
    selection = selected(arguments)

    from ..protocol import protocols  # only now: figures and protocols take a second to import
    from ..report.write import compile_document, write_reports

    sources = dict.fromkeys(catalogue.methods(), "")  # installed methods have no file of their own
    if arguments.methods:  # only a method's own file is imported, and PyTorch with it
        from ..method.registered import methods

        for file in arguments.methods:
            name = methods.find(file)
            sources[name] = methods.source(name)
    published = {name: protocol.published for name, protocol in protocols.all().items()}
    files = write_reports(arguments.results, arguments.output, published, selection, files=sources)
    documents = [file for file in files if file.name == "report.tex"]
    for document in documents:
        missing = "not asked for" if arguments.no_pdf else compile_document(document)
        print(document if missing else document.with_suffix(".pdf"))
        if missing and not arguments.no_pdf:
            print(f"benchsuite: note: {document}: no PDF: {missing}; compile it with LaTeX", file=sys.stderr)
    print(f"reproduction ledger: {arguments.output / 'ledger.md'}")
    print(f"page with everything: {arguments.output / 'index.html'}")


def selected(arguments: argparse.Namespace) -> Selection:
    """The selection of a file, with what the options say in place of what it says."""
    import re
    from dataclasses import replace

    from ..fields import convert
    from ..report.selection import Row, Selection, read_selection

    found = read_selection(arguments.select) if arguments.select else Selection()
    given: dict[str, Any] = {
        "protocols": tuple(arguments.protocol),
        "tiers": tuple(arguments.tier),
        "compare": tuple(arguments.compare),
        "boards": tuple(arguments.boards),
        "figures": tuple(arguments.figures),
        "fit": arguments.fit,
        "font": arguments.font,
        "siunitx": arguments.siunitx,
    }
    if arguments.rows:  # NAME=LABEL, where NAME may have settings in brackets
        parts = [re.split(r"=(?![^\[]*\])", text, maxsplit=1) for text in arguments.rows]
        given["rows"] = tuple(Row(name=name, label=label[0] if label else "") for name, *label in parts)
    for name, kind in (("columns", tuple[str, ...]), ("digits", int)):
        pairs = dict(text.partition("=")[::2] for text in getattr(arguments, name))
        given[name] = {**getattr(found, name), **{key: convert(f"{name} of {key}", text, kind) for key, text in pairs.items()}}
    found = replace(found, **{name: value for name, value in given.items() if value})
    for name in arguments.ours:
        if name not in [row.name for row in found.rows]:
            raise UserError(f"--ours {name}: is no row that was selected", f"add --row {name} and the other rows to show")
    return replace(found, rows=tuple(replace(row, ours=row.ours or row.name in arguments.ours) for row in found.rows))


def command_table(arguments: argparse.Namespace) -> None:
    from ..files import write_atomic
    from ..record.store import not_ranked, read_usable
    from ..record.table import table_of
    from ..report.tables import csv, parquet

    if arguments.output.suffix not in (".csv", ".parquet"):
        raise UserError(f"{arguments.output}: is neither CSV nor parquet", "name a file that ends in .csv or .parquet")
    found, refused = read_usable(arguments.results)
    if not found and not refused:
        raise UserError(
            f"{arguments.results}: has no records", "run `benchsuite leaderboard` first, or name the folder with --results"
        )
    frame = table_of(found)
    write_atomic(arguments.output, csv(frame) if arguments.output.suffix == ".csv" else parquet(frame))
    print(f"{arguments.output}: {len(frame)} accuracies of {len(found)} runs")
    if refused:
        raise UserError(f"{arguments.output}: written without records that cannot be used: {not_ranked(refused)}")


def command_export(arguments: argparse.Namespace) -> None:
    from collections import Counter

    from ..files import write_atomic
    from ..record.folder import RunFolder
    from ..record.store import RECORD

    if arguments.output and len(arguments.runs) > 1:
        raise UserError(f"--output names a single file, but there are {len(arguments.runs)} runs")
    if arguments.method:
        from ..method.registered import methods

        methods.find(arguments.method)
    if arguments.tasks and not arguments.to:
        raise UserError("--task chooses among programs", "add --to torch or --to onnx: a file of its own form serves all tasks")
    folders = list(dict.fromkeys(run.parent if run.name == RECORD else run for run in arguments.runs))
    records = [RunFolder(folder).read() for folder in folders]
    names = [f"{r.job.protocol}-{r.job.tier}-{r.job.method}-seed{r.job.seed}" for r in records]
    exports: list[tuple[Path, dict[str, bytes], str]] = []
    for folder, record, name in zip(folders, records, names, strict=True):
        content = RunFolder(folder).read_artifact(record)
        if arguments.form:
            content, name = _in_form(arguments.form, content, record), f"{name}-{arguments.form}"
        if Counter(names)[name] > 1:  # several configurations: tell their files apart
            name = f"{name}-{record.job.config}"
        output = arguments.output or Path(f"{name}-{arguments.to}" if arguments.to else f"{name}.safetensors")
        if output.exists():
            raise UserError(f"{output}: exists already", "choose another file with --output")
        if arguments.to:
            files = _programs(content, record, arguments.to, arguments.form, arguments.tasks)
            said = f"{output}: {sum(map(len, files.values())):,} bytes, {', '.join(files)}"
        else:
            files = {"": content}
            said = f"{output}: {len(content):,} bytes, {len(record.tasks)} tasks"
            said += f"\nserve it with: benchsuite.load({str(output)!r}).predict(images, task)"
        exports.append((output, files, said))
    for output, files, said in exports:  # nothing is written unless all of them are in order
        for name, content in files.items():
            write_atomic(output / name if name else output, content)
        print(said)


def _programs(content: bytes, record: RunRecord, format: str, form: str | None, tasks: Sequence[int] | None) -> dict[str, bytes]:
    """The files of `export --to`, by name: a program for each task (or for `tasks`), then the model card."""
    from ..method.programs import FORMATS, card, exported
    from ..method.serving import served_by

    served = served_by(content)
    made = {t: exported(served, t, format) for t in dict.fromkeys(tasks or range(len(record.tasks)))}
    files = {t: (f"task-{t}.{FORMATS[format]}", program) for t, (program, _) in made.items()}
    text = card(record, served, files, {t: error for t, (_, error) in made.items()}, form)
    return {**dict(files.values()), "README.md": text.encode()}


def _in_form(form: str, content: bytes, record: RunRecord) -> bytes:
    """The artifact of a run in another storage form."""
    from ..method.artifact import Artifact
    from ..method.registered import methods
    from ..registry import suggest

    method = methods.get(record.job.method)
    if form not in method.forms:
        raise UserError(f"{record.job.method} cannot be stored in {form!r}", suggest(form, method.forms))
    return Artifact.from_bytes(content).encoded(form, method.unit_axes).to_bytes()


def command_verify(arguments: argparse.Namespace) -> int:
    from ..checks.verify import verify
    from ..execution.progress import Display
    from ..method.registered import methods
    from ..record.store import RECORD, read
    from ..training.runner import RunFailed

    path = arguments.run if arguments.run.name == RECORD else arguments.run / RECORD
    record = read(path)
    if arguments.method:
        name = methods.find(arguments.method)
        if name not in (record.job.base, record.job.method):
            raise UserError(
                f"{arguments.method}: registers {name}, but the record is of {record.job.method}",
                "name the file that registers that method",
            )
    methods.name_plugins(arguments.plugins, record.job.method)
    if arguments.protocol and arguments.protocol != record.job.protocol:
        raise UserError(
            f"--protocol names a file of {arguments.protocol}, but the record is of {record.job.protocol}",
            "name the file that defines that protocol",
        )
    took = sum(record.seconds.train) + sum(record.seconds.evaluate)
    print(
        f"{record.job}: took {took:,.0f} s according to its record; after an interruption the same command resumes",
        file=sys.stderr,
    )
    try:
        with Display(1) as display:
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


def command_import(arguments: argparse.Namespace) -> None:
    from ..checks.imports import result_of
    from ..record.imported import IMPORTED, rows_of, write

    result = result_of(
        arguments.matrix,
        unit=arguments.unit,
        protocol=arguments.protocol,
        tier=arguments.tier,
        method=arguments.method,
        seed=arguments.seed,
        source=arguments.source,
        by=arguments.by,
        artifact=arguments.artifact,
    )
    new = write(result, arguments.results)
    label, accuracy = next(iter(rows_of([result]))), result.statistics()["accuracy"]
    size = "no size" if result.stored_bytes is None else f"{result.stored_bytes:,} bytes"
    print(f"{label}: {len(result.tasks)} tasks, ACC {accuracy:.2f} %, {size}{'' if new else '; is here already'}")
    print(arguments.results / result.folder / IMPORTED)
    print("boards show it beside runs of the suite, as unverified and never ranked")


def command_merge(arguments: argparse.Namespace) -> int:
    from ..checks.merge import merge
    from ..method.registered import methods

    for file in arguments.methods:
        methods.find(file)
    methods.name_plugins(arguments.plugins)
    count = merge(
        arguments.source,
        arguments.results,
        say=lambda remark: print(clean(f"benchsuite: note: {remark}"), file=sys.stderr),
        refuse=lambda reason: print(clean(f"benchsuite: refused: {reason}"), file=sys.stderr),
    )
    print(f"{arguments.results}: {', '.join(f'{number} {what}' for what, number in count.items())}")
    return 1 if count["refused"] else 0
