"""What made a record, and whether it would come out the same today. Needs no torch.

golden.json holds the numbers that short runs of everything built in yield (`benchsuite.checks.golden`). A record names the
entries that stand for it, each with a digest of its numbers: moving or renaming code changes none of them. A method from
elsewhere has a digest of its source, without comments and docstrings, in the identity of its runs (`Job.method_source`).
"""

from __future__ import annotations

import ast
import inspect
import json
import linecache
import os
import re
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from .files import digest
from .protocol import Protocol, protocols
from .record.schema import Job, RunRecord

GOLDEN = Path(__file__).with_name("golden.json")

BUILT_IN = {"avalanche", "benchsuite", "torch", *sys.stdlib_module_names}  # packages whose source is no part of a method


@cache
def golden() -> dict[str, dict[str, Any]]:
    """The entries of golden.json: each has a reason, settings and numbers."""
    return dict(json.loads(GOLDEN.read_text())) if GOLDEN.exists() else {}


@cache
def digests() -> dict[str, str]:
    """Twelve hexadecimal digits of the numbers of each entry."""
    return {name: digest(entry["numbers"])[:12] for name, entry in golden().items()}


def made_by(job: Job, cls: type) -> dict[str, str]:
    """Digests of the entries that stand for a job, and of its protocol if that is not built in. cls: the class of its method."""
    taking_part = subjects(job, cls)
    found = {}
    for name, value in digests().items():
        # A case on a network with batch normalisation says nothing of a run on another network.
        backbone = golden()[name]["settings"].get("backbone", job.settings["backbone"])
        if subject(name) in taking_part and backbone == job.settings["backbone"]:
            found[name] = value
    protocol = f"protocol {job.protocol}"
    return found if protocol in found else found | {protocol: digest_of_protocol(protocols.get(job.protocol))}


def subject(name: str) -> str:
    """What an entry is about: several cases of one method are numbered."""
    return re.sub(r" \d+$", "", name)


def subjects(job: Job, cls: type) -> list[str]:
    """What takes part in a job. In that of a method from elsewhere: the built-in ones it inherits from, and the engine."""
    if own_classes(cls):
        bases = [f"method {base.__dict__['name']}" for base in cls.__mro__ if base.__dict__.get("name")]
        made = [*(base for base in bases if base in digests()), "method finetune"]
    else:
        made = [f"method {job.base}"]
    modifiers = job.method.split("+")[1:]
    policy = f" batchnorm={job.settings['batchnorm']}" if "batchnorm" in job.settings else ""
    return [
        *made,
        *(f"modifier {modifier}" for modifier in modifiers),
        f"protocol {job.protocol}",
        f"backbone {job.settings['backbone']}{policy}",
        f"optimizer {job.settings.get('optimizer', 'adam')}",
        *([f"lr_schedule {job.settings['lr_schedule']}"] if "lr_schedule" in job.settings else []),
    ]


def changes(made_by: dict[str, str]) -> list[str]:
    """The entries of a record that differ today, or are not known here any more."""
    changed = []
    for name, before in made_by.items():
        now = digests().get(name)
        kind, _, protocol = name.partition(" ")
        if now is None and kind == "protocol" and protocol in protocols.all():
            now = digest_of_protocol(protocols.get(protocol))
        if now != before:
            changed.append(name)
    return changed


def stale(record: RunRecord) -> str | None:
    """Why a run would not give this record's numbers today; None if it would."""
    if not record.made_by:
        return "made by an earlier version"
    changed = changes(record.made_by)
    if f"protocol {record.job.protocol}" in changed and record.job.protocol not in protocols.all():
        return f"the protocol {record.job.protocol} is not known here (name its file with --protocol)"
    return f"changed since: {', '.join(changed)}" if changed else None


def digest_of_protocol(protocol: Protocol) -> str:
    """Its tasks and images. Its recipes are settings of the run, and published figures decide nothing."""
    says = asdict(protocol)
    return digest({name: says[name] for name in ("tasks", "image", "crop_padding", "flip")})[:12]


def identity(cls: type, registered_in: str = "") -> str:
    """SHA-256 of the source of a method from elsewhere, without comments and docstrings; "" for a built-in one.

    Its source is the whole file; of a class that was typed in, as in a notebook, the class alone. Where no source can be had, the
    answer is another one each time, so that no record is ever taken for its own. registered_in: the file that registers it.
    """
    trees = [_source(base, registered_in) for base in own_classes(cls)]
    if not trees:
        return ""
    return digest(list(map(_plain, trees))) if all(trees) else uuid.uuid4().hex * 2


def own_classes(cls: type) -> list[type]:
    """The classes behind a method that come from elsewhere."""
    plugins = [vars(base)["plugin_class"] for base in cls.__mro__ if "plugin_class" in vars(base)]  # of `method.plugged`
    classes = dict.fromkeys(base for each in (cls, *plugins) for base in each.__mro__)
    return [base for base in classes if base.__module__ == "__main__" or base.__module__.split(".")[0] not in BUILT_IN]


def _source(cls: type, registered_in: str) -> ast.AST | None:
    """The syntax tree of a class's file, or of the class itself if it stands in no file of its module."""
    home = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    functions = [inspect.unwrap(item) for item in vars(cls).values() if inspect.isfunction(item)]
    typed_in = cls.__module__ == "__main__" and registered_in  # perhaps: `python -i FILE` has both
    places = [function.__code__.co_filename for function in functions] + [typed_in or home]
    for place in dict.fromkeys(places):
        whole = os.path.exists(place) and os.path.exists(home) and os.path.samefile(place, home)
        try:
            tree = ast.parse(Path(home).read_text() if whole else "".join(linecache.getlines(place)))
        except (OSError, ValueError, SyntaxError):
            continue
        if whole:
            return tree
        if "plugin_class" in vars(cls):
            return tree  # no class stands in it: it was made by a call
        if found := [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__]:
            return found[-1]
    return None


def _plain(node: Any) -> Any:
    """A syntax tree as JSON. Empty fields are left out: which of them there are differs from one Python to the next."""
    if isinstance(node, ast.AST):
        return [type(node).__name__, {k: _plain(v) for k, v in ast.iter_fields(node) if v is not None and v != []}]
    return [_plain(item) for item in _code(node)] if isinstance(node, list) else repr(node)


def _code(items: list[Any]) -> Iterator[Any]:
    """Without statements that are a mere text."""
    for item in items:
        if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)):
            yield item
