"""Colour, marker, filling and line of each row, the same in every figure and on the page. Needs no matplotlib.

A look follows from a method's own name, family and marker, never from the rows beside it: the family gives the hue, the marker
tells its methods apart, and variants of a method differ in filling and line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from .. import catalogue
from ..analysis.leaderboard import Leaderboard
from ..catalogue import MARKERS, MethodEntry
from ..files import digest
from ..record.schema import RunRecord

FAMILIES = {  # Okabe and Ito 2008; their yellow cannot be read on white: brown in its place
    "reference": "#000000",
    "factorised": "#0072B2",
    "parameter isolation": "#D55E00",
    "regularisation": "#009E73",
    "gradient projection": "#CC79A7",
    "replay": "#E69F00",
    "expansion": "#56B4E9",
    "prompt/adapter": "#8C6D1F",
    "other": "#7F7F7F",
}
COLOURS = [colour for family, colour in FAMILIES.items() if family not in ("reference", "other")]
LINES = ["-", "--", ":", "-."]
FILLS = ["none", "left", "right", "top", "bottom"]  # of variants
STROKES = ["x", "+", "1", "2", "3", "4"]  # published rows and results made elsewhere, where measured ones have shapes
GREYS = ["#000000", "#666666"]


@dataclass(frozen=True)
class Look:
    """marker, fill, line: by matplotlib's names."""

    colour: str
    marker: str
    fill: str
    line: str

    @property
    def style(self) -> dict[str, Any]:
        """The same as keywords of a matplotlib line."""
        return {"color": self.colour, "marker": self.marker, "fillstyle": self.fill, "linestyle": self.line}


def look_of(name: str, family: str = "other", marker: str = "") -> Look:
    """How a row looks. name: the method, its modifiers (+NAME) and, in brackets, settings that are not its defaults.
    family, marker: of the method; without a known marker one follows from its name."""
    method, variant = re.fullmatch(r"([^+ ]*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    place = MARKERS.index(marker) if marker in MARKERS else _chosen(method, len(MARKERS))
    colour = FAMILIES.get(family) or COLOURS[_chosen(family, len(COLOURS))]
    line, shade = divmod(place if marker in MARKERS else _chosen(f"line {method}", 3 * len(LINES)), 3)
    line %= len(LINES)
    if not variant:
        return Look(_mixed(colour, shade), MARKERS[place], "full", LINES[line])
    turn, fill = divmod(_chosen(f"filling and line of {variant}", len(FILLS) * (len(LINES) - 1)), len(FILLS))
    return Look(_mixed(colour, shade), MARKERS[place], FILLS[fill], LINES[(line + 1 + turn) % len(LINES)])


def outside_look(name: str) -> Look:
    """How a published row, or one made elsewhere, looks."""
    return Look(GREYS[_chosen(f"grey {name}", len(GREYS))], STROKES[_chosen(name, len(STROKES))], "full", "")


def entry_of(run: RunRecord) -> MethodEntry:
    """What the method of a run says of itself: an installed one in its source, another one in the record."""
    known = None if run.job.method_source else _installed().get(run.job.base)
    return known or MethodEntry(run.job.base, "", run.family or "other", label=run.label or run.job.base, marker=run.marker)


def look_of_run(run: RunRecord) -> Look:
    """How the row of a run looks. The row's label will not do: it depends on the other rows."""
    own = [f"{name}={run.job.settings[name]}" for name, origin in sorted(run.job.origins.items()) if origin == "command line"]
    said = entry_of(run)
    return look_of(f"{run.job.method} [{', '.join(own)}]" if own else run.job.method, said.family, said.marker)


def looks_of(board: Leaderboard) -> dict[str, Look]:
    """How each row of a board looks, by its label."""
    frames = (board.accuracy, board.backward_transfer, board.parameter_efficiency)
    rows = {row: outside_look(row) for frame in frames for row in frame["method"]}
    return rows | {row: look_of_run(runs[0]) for row, runs in board.runs.items()}


def labels_of(board: Leaderboard) -> dict[str, str]:
    """What papers call each row of a board, by its label: "ER+hosvd" for "er+hosvd"."""
    said = {row: entry_of(runs[0]) for row, runs in board.runs.items()}
    return {row: said[row].label + row.removeprefix(said[row].name) if row in said else row for row in looks_of(board)}


def _chosen(text: str, count: int) -> int:
    return int(digest(text), 16) % count


def _mixed(colour: str, shade: int) -> str:
    """A colour as it is, two fifths towards white, or a third towards black; black itself further towards white."""
    towards, share = ((0, 0.0), (255, 0.4), (0, 0.35) if colour != "#000000" else (255, 0.65))[shade]
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (towards - part)):02X}" for part in parts)


_installed = cache(catalogue.methods)
