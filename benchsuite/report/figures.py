"""Figures of a leaderboard, sized for one column of a paper, in colours that the colour-blind can tell apart.

Every figure is a plain `matplotlib.figure.Figure` and carries its provenance below; no global state is touched.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from ..analysis import metrics
from ..analysis.leaderboard import Leaderboard
from ..analysis.provenance import provenance
from ..analysis.rows import MB, series, t_interval
from ..record.schema import RunRecord

WIDTH = 3.3  # inches: one column of the usual two-column layouts
FONT, SMALL = 8, 6  # points: all that is read, and the provenance in small print
FINE = 66  # characters of small print in a line
FEW = 8  # methods that can be told apart by labels beside points, and by bands
LEGEND: dict[str, Any] = {"frameon": False, "columnspacing": 1, "handlelength": 1.8, "handletextpad": 0.5, "labelspacing": 0.2}
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#7F7F7F"]  # Okabe and Ito 2008
# In grey, marker, filling and line tell rows apart: 27 of them; with the colour no look returns before 216.
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
FILLS, LINES = ["full", "none", "left"], ["-", "--", ":"]
OUTSIDE = ["x", "+", "1", "2", "3", "4"]  # of published rows, in black: strokes, where measured ones have shapes


def accuracy_vs_size(board: Leaderboard) -> Figure:
    """Accuracy (%) against stored MB (log axis), one point per row with its 95 % intervals, and the Pareto front.

    A line joins the rows of a method at several widths; the largest has its name, the others their width. Where there are more
    than `FEW` methods the names stand in a legend."""
    frame = board.parameter_efficiency.rename(columns={"megabytes": "x", "megabytes_ci": "x_ci"})
    return _trade_off(frame, "stored for all tasks (MB)", board)


def accuracy_vs_memory(board: Leaderboard) -> Figure:
    """The same against the MB that a training step holds for its backward pass."""
    frame = board.training_memory.rename(columns={"held": "x", "held_ci": "x_ci"}).assign(width=1.0)
    return _trade_off(frame, "held for the backward pass (MB)", board)


def _trade_off(frame: pd.DataFrame, heading: str, board: Leaderboard) -> Figure:
    rows = frame.dropna(subset=["accuracy", "x"]).sort_values("x").to_dict("records")
    for row in rows:
        row["series"] = series(row["method"])
    largest = {row["series"]: row for row in rows}
    for row in rows:
        name = row["series"] if len(largest) <= FEW or row["pareto"] else ""
        row["text"] = name if row is largest[row["series"]] else f"×{row['width']:g}"
    every = looks_of(board.runs)
    looks = {name: every[name] for name in sorted(largest) if not largest[name]["published"]}
    others = [name for name in sorted(largest) if largest[name]["published"]]
    looks |= {name: {"color": "black", "marker": OUTSIDE[i % len(OUTSIDE)], "linestyle": ""} for i, name in enumerate(others)}
    columns = _columns(looks)
    legend = -(-len(looks) // columns) if len(looks) > FEW else 0
    figure, axes = _figure(f"{board.provenance}; dashed: Pareto front", height=2.7 + 0.14 * legend)
    front = sorted((row["x"], row["accuracy"]) for row in rows if row["pareto"])
    axes.plot(*np.array(front).reshape(-1, 2).T, drawstyle="steps-post", color="0.6", linewidth=0.8, linestyle="--", zorder=1)
    for name in looks:
        line = [(row["x"], row["accuracy"]) for row in rows if row["series"] == name]
        axes.plot(*np.array(line).T, color=looks[name]["color"], linewidth=0.8)
        axes.plot([], [], **{**looks[name], "linestyle": ""}, markersize=4, label=textwrap.fill(name, 50))
    for row in rows:
        look = looks[row["series"]]
        axes.errorbar(
            row["x"],
            row["accuracy"],
            xerr=row["x_ci"] or None if pd.notna(row["x_ci"]) else None,
            yerr=row["accuracy_ci"] if pd.notna(row["accuracy_ci"]) else None,
            **look,
            markersize=5,
            elinewidth=0.8,
            capsize=1.5,
            zorder=4 if row["pareto"] else 2,  # what the figure is about is not covered
        )
    axes.set_xscale("log")
    axes.margins(0.2, 0.12)
    _plain_ticks(axes.xaxis, *axes.get_xlim())
    axes.set_xlabel(heading, fontsize=FONT)
    axes.set_ylabel("accuracy (%)", fontsize=FONT)
    _bound(axes)
    if legend:
        figure.legend(loc="outside upper center", ncols=columns, fontsize=FONT, **LEGEND)
    _label_points(figure, axes, rows, looks)
    return figure


def by_epsilon(frame: pd.DataFrame, provenance: str) -> Figure:
    """What compressing every map does at each epsilon: relative gradient error, step time, bytes held and peak relative to the
    unmodified step's. A line for each family of `frame` (columns family, epsilon, error, time, held, formula, peak in MB; its
    first row is the unmodified step's); epsilon 1, which keeps the maps themselves, is a point beside it."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
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
    lines: dict[str, Any] = {}
    for axes, (heading, values) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for family, look in looks.items():
            rows = known[known["family"] == family].sort_values("epsilon")
            lossy, exact = rows[rows["epsilon"] < 1], rows[rows["epsilon"] == 1]
            axes.plot(exact["epsilon"], values[exact.index], markersize=3, **{**look, "linestyle": ""})
            axes.plot(lossy["epsilon"], values[lossy.index], label=family, markersize=3, linewidth=0.9, **look)
            if heading.startswith("bytes"):
                formula = lossy["formula"] / plain["held"]
                dotted = {"linewidth": 0.9, "linestyle": ":", "color": look["color"]}
                axes.plot(lossy["epsilon"], formula, label=f"{family}, formula", **dotted)
        axes.set_xlabel("epsilon", fontsize=FONT)
        axes.set_ylabel(heading, fontsize=FONT)
        axes.set_ylim(0, 1.08 * values.max())
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        _plain(axes)
        lines |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=2, fontsize=FONT, **LEGEND)
    figure.supxlabel(textwrap.fill(provenance, FINE), fontsize=SMALL, color="0.4")
    return figure


def accuracy_matrix(label: str, runs: list[RunRecord], provenance: str) -> Figure:
    """Heat map of R (%), mean over seeds by position in the sequence; cells that were not measured stay blank.

    Numbers stand in the cells where there is room to read them: whole ones beyond 6 tasks, none beyond 10."""
    mean, _ = t_interval(np.stack([metrics.accuracy_matrix(run) for run in runs]))
    n = len(mean)
    figure, axes = _figure(provenance, height=3.2)
    image = axes.pcolormesh(np.arange(n), np.arange(n), mean, vmin=0, vmax=100, cmap="cividis")  # an image would be pixels
    axes.invert_yaxis()
    axes.set_aspect("equal")
    ticks = np.arange(n - 1, -1, -1 if n <= 10 else -2)[::-1]  # the last one always
    axes.set_xticks(ticks, ticks + 1)
    axes.set_yticks(ticks, ticks + 1)
    axes.grid(False)
    axes.set_xlabel("accuracy on the k-th task learned", fontsize=FONT)
    axes.set_ylabel("after learning t tasks", fontsize=FONT)
    axes.set_title(textwrap.fill(f"{label}, n = {len(runs)}", 48), fontsize=FONT)
    if n <= 10:
        for t, i in zip(*np.nonzero(~np.isnan(mean)), strict=True):
            colour = "black" if mean[t, i] > 50 else "white"
            number = f"{mean[t, i]:.{1 if n <= 6 else 0}f}"
            axes.text(i, t, number, ha="center", va="center", fontsize=FONT, color=colour)
    bar = figure.colorbar(image, shrink=0.8)
    for area in bar.ax.collections:
        area.set_rasterized(False)
    bar.set_label("%", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)
    return figure


def accuracy_after_each_task(runs: dict[str, list[RunRecord]], provenance: str) -> Figure | None:
    """A_k (%) against k, mean over seeds, with 95 % bands; a method that is measured only at the end is a point."""
    series = {
        label: [metrics.accuracy_after_each_task(metrics.accuracy_matrix(run)) for run in group] for label, group in runs.items()
    }
    return _over_tasks(series, "mean accuracy (%)", provenance, scale="per cent")


def forgetting_after_each_task(runs: dict[str, list[RunRecord]], provenance: str) -> Figure | None:
    """F_k (points) against k, mean over seeds, with 95 % bands; None where no method has it."""
    series = {
        label: [metrics.forgetting_after_each_task(metrics.accuracy_matrix(run)) for run in group]
        for label, group in runs.items()
    }
    return _over_tasks(series, "mean forgetting (points)", provenance)


def stored_after_each_task(runs: dict[str, list[RunRecord]], provenance: str) -> Figure | None:
    """MB (log axis) of the artifact that serves the first k tasks against k, mean over seeds, with 95 % bands."""
    series = {
        label: [np.array([np.nan if s is None else sum(s.values()) / MB for s in run.stored]) for run in group]
        for label, group in runs.items()
    }
    return _over_tasks(series, "stored (MB)", provenance, scale="log")


def _over_tasks(
    series: dict[str, list[np.ndarray]], heading: str, provenance: str, scale: Literal["linear", "per cent", "log"] = "linear"
) -> Figure | None:
    """A line for each row. Bands of more than `FEW` rows would hide one another: then only the last point has its interval."""
    summaries = {label: t_interval(np.stack(values)) for label, values in series.items()}
    if all(np.isnan(mean).all() for mean, _ in summaries.values()):
        return None
    looks = looks_of(series)
    columns = _columns(series)
    figure, axes = _figure(provenance, height=2.4 + 0.14 * -(-len(series) // columns))
    for place, (label, (mean, half)) in enumerate(summaries.items()):
        k = np.arange(1, len(mean) + 1)
        every = max(1, len(k) // 5)  # markers of their own places: not all rows' on top of one another
        axes.plot(
            k,
            mean,
            label=textwrap.fill(label, 50),
            markersize=3.5,
            linewidth=0.9,
            markevery=(place % every, every) if (~np.isnan(mean)).sum() > every else None,
            **looks[label],
        )
        known = np.flatnonzero(~np.isnan(half))
        if len(known) > 1 and len(series) <= FEW:
            axes.fill_between(k, mean - half, mean + half, color=looks[label]["color"], alpha=0.15, linewidth=0)
        elif len(known):
            last = known[-1]
            axes.errorbar(k[last], mean[last], yerr=half[last], color=looks[label]["color"], elinewidth=0.8, capsize=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.set_xlabel("tasks learned", fontsize=FONT)
    axes.set_ylabel(heading, fontsize=FONT)
    if scale == "log":
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, *axes.get_ylim())
    elif scale == "per cent":
        _bound(axes)
    figure.legend(loc="outside upper center", ncols=columns, fontsize=FONT, **LEGEND)
    return figure


def step_time(board: Leaderboard) -> Figure:
    """Wall clock per training step, a row each with its 95 % interval."""
    frame = board.training_memory.dropna(subset=["step_seconds"]).sort_values(["step_seconds", "method"], ascending=False)
    figure, axes = _figure(
        f"{provenance(board.timed)}; wall clock of trainings, median over tasks; other work may have run meanwhile",
        height=1.1 + 0.16 * len(frame),
    )
    y = np.arange(len(frame))
    axes.errorbar(
        1000 * frame["step_seconds"],
        y,
        xerr=1000 * np.nan_to_num(frame["step_seconds_ci"]),
        linestyle="",
        marker="o",
        markersize=4,
        color=COLOURS[0],
        elinewidth=0.8,
        capsize=1.5,
    )
    axes.set_xlim(left=0)
    axes.set_yticks(y, [textwrap.shorten(name, 34, placeholder=" …") for name in frame["method"]])
    axes.set_ylim(-0.7, len(frame) - 0.3)
    axes.set_xlabel("time per training step (ms)", fontsize=FONT)
    return figure


def rank_growth(label: str, runs: list[RunRecord], provenance: str) -> Figure | None:
    """How many components each layer holds after task k against k, mean over seeds; None where the records do not say.

    Of a bank that grows, `diagnostics["ranks"]` has the cumulative ranks of each layer, for each task; of networks that were cut
    one by one, those of each network, which are summed here. A kernel with two ranks (Tucker's) has a panel for each; ranks of
    more modes are those of activations, of which nothing is kept.
    """
    found = [_ranks(run) for run in runs]
    if not all(found):
        return None
    layers = {name: t_interval(np.stack([one[name] for one in found])) for name in found[0] if all(name in one for one in found)}
    modes = max(mean.shape[1] for mean, _ in layers.values())
    if modes > 2:
        return None
    names = {1: ["components"], 2: ["output components", "input components"]}[modes]
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, modes, squeeze=False)[0])
    looks = _looks(list(layers))
    for mode, axes in enumerate(panels):
        for name, (mean, half) in layers.items():
            k, m = np.arange(1, len(mean) + 1), min(mode, mean.shape[1] - 1)
            axes.plot(k, mean[:, m], label=name, markersize=3, markevery=max(1, len(k) // 5), linewidth=0.9, **looks[name])
            axes.fill_between(k, (mean - half)[:, m], (mean + half)[:, m], color=looks[name]["color"], alpha=0.15, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.set_xlabel("tasks learned", fontsize=FONT)
        axes.set_ylabel(names[mode], fontsize=FONT)
        axes.set_ylim(bottom=0)
        _plain(axes)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=_columns(layers), fontsize=FONT, **LEGEND
    )
    figure.supxlabel(textwrap.fill(f"{label}, n = {len(runs)}; {provenance}", FINE), fontsize=SMALL, color="0.4")
    return figure


def _ranks(run: RunRecord) -> dict[str, np.ndarray]:
    """Of each layer the components that it holds after each of T tasks (T, modes); empty where the record has none."""
    diagnostics: Any = run.diagnostics.get("ranks")
    try:
        if isinstance(diagnostics, list):  # of each task's own network
            layers = {name: np.cumsum([one[name] for one in diagnostics], axis=0) for name in diagnostics[0]}
        else:
            layers = {name: np.array(ranks, dtype=float).reshape(len(ranks), -1) for name, ranks in diagnostics.items()}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):  # other methods may call other things ranks
        return {}
    return layers if all(ranks.ndim == 2 and len(ranks) == len(run.tasks) for ranks in layers.values()) else {}


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
    _plain(axes)
    figure.supxlabel(textwrap.fill(provenance, FINE), fontsize=SMALL, color="0.4")
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=FONT)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)


def _plain_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of a log axis as plain numbers, a few of them whatever its range."""
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
    dense = [1 + 0.5 * i for i in range(18)]  # between close sizes 1, 2, 5 would leave one tick or none
    steps = ((1.6, dense), (5, [1, 1.5, 2, 3, 4, 5, 7]), (200, [1, 2, 5]))
    axis.set_major_locator(LogLocator(subs=next((subs for ratio, subs in steps if high < ratio * low), [1])))


def _columns(labels: Iterable[str]) -> int:
    """How many columns of a legend fit."""
    names = list(labels)
    most = max(1, min(4, 62 // (max(map(len, names)) + 7)))
    return -(-len(names) // -(-len(names) // most))  # as few as these rows need


def _bound(axes: Axes) -> None:
    """No room for accuracies that cannot be, however wide an interval is."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))


def looks_of(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each row of a board looks, by its label, in every figure and on the page. Under the name of its `series` a method looks
    as the first of its widths does."""
    looks = _looks(sorted(labels))
    return {series(label): look for label, look in reversed(looks.items())} | looks


def _looks(labels: list[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker, filling and line, by position."""
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
            taken.append(Bbox([low - margin, high + margin]))

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
            fontsize=FONT,
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
