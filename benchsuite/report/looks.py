"""Colour, marker, filling and line of each row, the same in every figure and on the page. Needs no matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..analysis.rows import series

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#7F7F7F"]  # Okabe and Ito 2008
# In grey, marker, filling and line tell 27 rows apart; with the colour no combination returns before 216.
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
FILLS, LINES = ["full", "none", "left"], ["-", "--", ":"]
OUTSIDE = ["x", "+", "1", "2", "3", "4"]  # published rows, in black: strokes, where measured ones have shapes


def looks_of(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each row of a board looks, by its label. The name of a `series` has the look of the first of its widths."""
    looks = looks_by_position(sorted(labels))
    return {series(label): look for label, look in reversed(looks.items())} | looks


def looks_by_position(labels: list[str]) -> dict[str, dict[str, Any]]:
    turn = len(MARKERS)
    return {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % turn],
            "fillstyle": FILLS[i // turn % len(FILLS)],
            "linestyle": LINES[i // len(COLOURS) % len(LINES)],  # with the colour no line returns before 24
        }
        for i, label in enumerate(labels)
    }
