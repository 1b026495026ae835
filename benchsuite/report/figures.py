"""Figures of a leaderboard, sized for one column of a paper, in colours that the colour-blind can tell apart.

Every figure is a plain `matplotlib.figure.Figure` and carries its provenance below; no global state is touched.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from .. import metrics
from ..leaderboard import Leaderboard, series, t_interval
from ..records import RunRecord

WIDTH = 3.5  # inches: one column of the usual two-column layouts
FONT, SMALL = 7, 5  # points
FEW = 8  # methods that can be told apart by labels beside points, and by bands
LEGEND: dict[str, Any] = {"frameon": False, "columnspacing": 1, "handlelength": 1.6, "handletextpad": 0.5}
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#7F7F7F"]  # Okabe and Ito 2008
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]  # nine: no pair of colour and marker returns before 72 rows


def accuracy_vs_size(board: Leaderboard) -> Figure:
    """Accuracy (%) against stored MB (log axis), one point per row with its 95 % intervals, and the Pareto front.

    A line joins the rows of a method at several widths; the largest has its name, the others their width. Where there are more
    than `FEW` methods the names stand in a legend."""
    frame = board.parameter_efficiency.rename(columns={"megabytes": "x", "megabytes_ci": "x_ci"})
    return _trade_off(frame, "stored for all tasks (MB)", board.provenance)


def accuracy_vs_memory(board: Leaderboard) -> Figure:
    """The same against the MB that a training step holds for its backward pass."""
    frame = board.training_memory.rename(columns={"held": "x", "held_ci": "x_ci"}).assign(width=1.0)
    return _trade_off(frame, "held for the backward pass (MB)", board.provenance)


def _trade_off(frame: pd.DataFrame, heading: str, provenance: str) -> Figure:
    rows = frame.dropna(subset=["accuracy", "x"]).sort_values("x").to_dict("records")
    for row in rows:
        row["series"] = series(row["method"])
    largest = {row["series"]: row for row in rows}
    for row in rows:
        name = row["series"] if len(largest) <= FEW else ""
        row["text"] = name if row is largest[row["series"]] else f"×{row['width']:g}"
    looks = _looks(sorted(largest, key=lambda name: (largest[name]["published"], name)))
    columns = _columns(looks)
    legend = -(-len(looks) // columns) if len(looks) > FEW else 0
    figure, axes = _figure(f"{provenance}; dashed: Pareto front", height=2.9 + 0.12 * legend)
    front = sorted((row["x"], row["accuracy"]) for row in rows if row["pareto"])
    axes.plot(*np.array(front).reshape(-1, 2).T, drawstyle="steps-post", color="0.6", linewidth=0.8, linestyle="--", zorder=1)
    for name in looks:
        line = [(row["x"], row["accuracy"]) for row in rows if row["series"] == name]
        axes.plot(*np.array(line).T, color=looks[name]["color"], linewidth=0.8)
        axes.plot([], [], **looks[name], linestyle="", markersize=4, label=textwrap.fill(name, 60))
    for row in rows:
        look = looks[row["series"]]
        axes.errorbar(
            row["x"],
            row["accuracy"],
            xerr=np.nan_to_num(row["x_ci"]),
            yerr=np.nan_to_num(row["accuracy_ci"]),
            color=look["color"],
            marker=look["marker"],
            markersize=5,
            markerfacecolor="white" if row["published"] else look["color"],
            elinewidth=0.8,
            capsize=1.5,
        )
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(0.2, 0.12)
    low, high = axes.get_xlim()
    dense = [1 + 0.5 * i for i in range(18)]  # between close sizes 1, 2, 5 would leave one tick or none
    axes.xaxis.set_major_locator(LogLocator(subs=dense if high < 5 * low else [1, 2, 5]))
    axes.set_xlabel(heading, fontsize=FONT)
    axes.set_ylabel("accuracy (%)", fontsize=FONT)
    _bound(axes)
    if legend:
        figure.legend(loc="outside upper center", ncols=columns, fontsize=FONT - 1, **LEGEND)
    _label_points(figure, axes, rows, looks)
    return figure


def by_epsilon(frame: pd.DataFrame, provenance: str) -> Figure:
    """What compressing every map does at each epsilon: relative gradient error, step time, bytes held and peak relative to the
    unmodified step's. A line for each family of `frame` (columns family, epsilon, error, time, held, formula, peak in MB; its
    first row is the unmodified step's)."""
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    plain = frame.iloc[0]
    known = frame.dropna(subset=["epsilon"])
    looks = _looks(sorted(known["family"].unique()))
    panels = {
        "relative gradient error": known["error"],
        "step time / unmodified": known["time"],
        "bytes held / unmodified": known["held"] / plain["held"],
        "peak / unmodified": known["peak"] / plain["peak"],
    }
    for axes, (heading, values) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for family, look in looks.items():
            rows = known[known["family"] == family].sort_values("epsilon")
            axes.plot(rows["epsilon"], values[rows.index], label=family, markersize=3, linewidth=0.9, **look)
            if heading.startswith("bytes"):
                formula = rows["formula"] / plain["held"]
                axes.plot(rows["epsilon"], formula, label=f"{family}, formula", linewidth=0.9, linestyle=":", color=look["color"])
        axes.set_xlabel("epsilon", fontsize=FONT)
        axes.set_ylabel(heading, fontsize=FONT)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=FONT)
        axes.grid(color="0.9", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.legend(fontsize=FONT - 1, **LEGEND)
    figure.supxlabel(textwrap.fill(provenance, 95), fontsize=SMALL, color="0.4")
    return figure


def accuracy_matrix(label: str, runs: list[RunRecord], provenance: str) -> Figure:
    """Heat map of R (%), mean over seeds by position in the sequence; cells that were not measured stay blank."""
    mean, _ = t_interval(np.stack([metrics.accuracy_matrix(run) for run in runs]))
    n = len(mean)
    figure, axes = _figure(provenance, height=3.2)
    image = axes.imshow(mean, vmin=0, vmax=100, cmap="cividis")
    ticks = np.arange(0, n, 1 if n <= 10 else 2)
    axes.set_xticks(ticks, ticks + 1)
    axes.set_yticks(ticks, ticks + 1)
    axes.grid(False)
    axes.set_xlabel("accuracy on task", fontsize=FONT)
    axes.set_ylabel("after learning task", fontsize=FONT)
    axes.set_title(textwrap.fill(f"{label}, n = {len(runs)}", 60), fontsize=FONT)
    if n <= 10:
        for t, i in zip(*np.nonzero(~np.isnan(mean)), strict=True):
            colour = "black" if mean[t, i] > 50 else "white"
            axes.text(i, t, f"{mean[t, i]:.1f}", ha="center", va="center", fontsize=FONT - 1 - n / 10, color=colour)
    bar = figure.colorbar(image, shrink=0.8)
    bar.set_label("%", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)
    return figure


def accuracy_after_each_task(runs: dict[str, list[RunRecord]], provenance: str) -> Figure:
    """A_k (%) against k, mean over seeds; a method that is measured only at the end is a point. Up to `FEW` methods have their
    95 % bands."""
    looks = _looks(list(runs))
    columns = _columns(runs)
    figure, axes = _figure(provenance, height=2.5 + 0.12 * -(-len(runs) // columns))
    for label, group in runs.items():
        after = np.stack([metrics.accuracy_after_each_task(metrics.accuracy_matrix(run)) for run in group])
        mean, half = t_interval(after)
        k = np.arange(1, len(mean) + 1)
        axes.plot(k, mean, label=textwrap.fill(label, 60), markersize=3, linewidth=0.9, **looks[label])
        known = ~np.isnan(half)
        if len(runs) > FEW:
            continue
        if known.sum() == 1:
            axes.errorbar(k[known], mean[known], yerr=half[known], color=looks[label]["color"], elinewidth=0.8, capsize=1.5)
        else:
            axes.fill_between(k, mean - half, mean + half, color=looks[label]["color"], alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.set_xlabel("tasks learned", fontsize=FONT)
    axes.set_ylabel("mean accuracy on them (%)", fontsize=FONT)
    _bound(axes)
    figure.legend(loc="outside upper center", ncols=columns, fontsize=FONT - 1, **LEGEND)
    return figure


def render(figure: Figure) -> dict[str, bytes]:
    """The figure as {"pdf": ..., "png": ...}, without the date, so that the files depend on their content only."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is found: once is enough for both files
    pdf, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # publishers refuse the default Type 3 fonts
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    figure.savefig(png, format="png", dpi=300)
    return {"pdf": pdf.getvalue(), "png": png.getvalue()}


def _figure(provenance: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.tick_params(labelsize=FONT)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    figure.supxlabel(textwrap.fill(provenance, 95), fontsize=SMALL, color="0.4")
    return figure, axes


def _columns(labels: Iterable[str]) -> int:
    """How many columns of a legend fit."""
    return max(1, min(4, 76 // (max(map(len, labels)) + 8)))


def _bound(axes: Axes) -> None:
    """No room for accuracies that cannot be, however wide an interval is."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))


def _looks(labels: list[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker by position: published rows come last, so that measured ones look the same in every figure."""
    return {label: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]} for i, label in enumerate(labels)}


def _label_points(figure: Figure, axes: Axes, rows: list[dict], looks: dict[str, dict[str, Any]]) -> None:
    """Write each row's text beside its point, in the place around it that covers the least of what stands there."""
    figure.draw_without_rendering()  # fixes the layout: places are compared in pixels
    renderer = FigureCanvasAgg(figure).get_renderer()
    margin = 3 * figure.dpi / 72  # half a marker
    taken = []
    for row in rows:
        x, y = row["x"], row["accuracy"]
        dx, dy = np.nan_to_num(row["x_ci"]), np.nan_to_num(row["accuracy_ci"])
        for corners in ([(x - dx, y), (x + dx, y)], [(x, y - dy), (x, y + dy)]):
            low, high = axes.transData.transform(corners)
            taken.append(Bbox([low - margin, high + margin]))
    front = sorted((row["x"], row["accuracy"]) for row in rows if row["pareto"])
    for (left, bottom), (right, top) in pairwise(front):
        for corners in ([(left, bottom), (right, bottom)], [(right, bottom), (right, top)]):
            low, high = axes.transData.transform(corners)
            taken.append(Bbox([low - 1, high + 1]))

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row["series"], []).append((row["x"], row["accuracy"]))
    for line in lines.values():
        for start, end in pairwise(axes.transData.transform(line)):
            taken += [Bbox([point - 1, point + 1]) for point in np.linspace(start, end, 30)]

    def shared(box: Bbox, other: Bbox) -> float:
        both = Bbox.intersection(box, other)
        return both.width * both.height if both else 0

    for row in (row for row in rows if row["text"]):
        text = axes.annotate(
            row["text"].replace(" [", "\n[").replace(", ", ",\n"),
            (row["x"], row["accuracy"]),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=FONT - 1,
            color=looks[row["series"]]["color"],
        )
        text.set_in_layout(False)
        places: list[tuple[float, int, dict[str, Any], Bbox]] = []
        for distance in (5, 10, 16):
            for right, up in [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]:
                place = {
                    "position": (distance * right, distance * up),
                    "ha": ("right", "center", "left")[right + 1],
                    "va": ("top", "center", "bottom")[up + 1],
                }
                text.set(**place)
                box = text.get_window_extent(renderer).padded(margin / 3)
                outside = box.width * box.height - shared(box, axes.bbox)
                cost = 6 * outside + 3 * sum(shared(box, other) for other in taken) + distance
                places.append((cost, len(places), place, box))
        *_, place, box = min(places, key=lambda entry: entry[:2])
        text.set(**place)
        taken.append(box)
