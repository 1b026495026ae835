"""Figures of a leaderboard, sized for one column of a paper, in colours that the colour-blind can tell apart.

Every figure is a plain `matplotlib.figure.Figure` with its provenance below; no global state is touched.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ..analysis.leaderboard import Leaderboard
from ..analysis.rows import series
from ..analysis.statistics import t_interval
from ..record import metrics
from ..record.schema import MB, RunRecord
from .looks import COLOURS, FILLS, LINES, MARKERS, look_of_run, looks_of

if TYPE_CHECKING:  # matplotlib takes half a second to import: only drawing needs it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, WIDE = 3.3, 6.9  # inches: one column of the usual two-column layouts, and both
SMALL_MULTIPLES = ("accuracy_matrices", "rank_growth")  # figures of a panel for each row, as wide as the page
PANELS = 5  # heat maps in a row of a wide figure
FONT, SMALL = 8, 6  # points: all text, and the provenance in small print
FINE = 66  # characters of small print in a line of one column
FEW = 8  # methods that can be told apart by labels beside points, and by bands
LEGEND: dict[str, Any] = {"frameon": False, "columnspacing": 1, "handlelength": 1.8, "handletextpad": 0.5, "labelspacing": 0.2}


def accuracy_vs_size(board: Leaderboard) -> Figure:
    """Accuracy (%) against stored MB (log axis): one point per row with its 95 % intervals, and the Pareto front.

    A line joins a method's rows at several widths: the largest is labelled with its name, the others with their width. Another
    joins the storage forms of a row, which have small markers; the front is that of all forms. With more than `FEW` methods the
    names are in a legend."""
    names = {"megabytes": "x", "megabytes_ci": "x_ci"}
    return _trade_off(
        board.parameter_efficiency.rename(columns=names), "stored for all tasks (MB)", board, board.forms.rename(columns=names)
    )


def accuracy_vs_memory(board: Leaderboard) -> Figure | None:
    """The same against the MB that a training step holds for its backward pass; None where no record has them."""
    if board.training_memory["held"].isna().all():
        return None
    frame = board.training_memory.rename(columns={"held": "x", "held_ci": "x_ci"}).assign(width=1.0)
    return _trade_off(frame, "held for the backward pass (MB)", board)


def _trade_off(frame: pd.DataFrame, heading: str, board: Leaderboard, forms: pd.DataFrame | None = None) -> Figure:
    points = frame if forms is None else forms
    curves = {str(label): curve for label, curve in points.groupby("method") if len(curve) > 1}  # the row's own file is the first
    rows = frame.dropna(subset=["accuracy", "x"]).sort_values("x").to_dict("records")
    for row in rows:
        row["series"] = series(row["method"])
    largest = {row["series"]: row for row in rows}
    for row in rows:
        name = row["series"] if len(largest) <= FEW or row["pareto"] else ""
        row["text"] = name if row is largest[row["series"]] else f"×{row['width']:g}"
    every = looks_of(board)
    looks = {name: every[largest[name]["method"]].style for name in sorted(largest)}
    columns = _columns(looks)
    legend = -(-len(looks) // columns) if len(looks) > FEW else 0
    figure, axes = _figure(f"{board.provenance}; dashed: Pareto front", height=2.7 + 0.14 * legend)
    front = _front(points)
    axes.plot(*np.array(front).reshape(-1, 2).T, drawstyle="steps-post", color="0.6", linewidth=0.8, linestyle="--", zorder=1)
    for name in looks:
        line = [(row["x"], row["accuracy"]) for row in rows if row["series"] == name]
        axes.plot(*np.array(line).T, color=looks[name]["color"], linewidth=0.8)
        axes.plot([], [], **{**looks[name], "linestyle": ""}, markersize=4, label=textwrap.fill(name, 50))
    for label, curve in curves.items():
        look = looks[series(label)]
        axes.plot(curve["x"], curve["accuracy"], color=look["color"], linewidth=0.6)
        axes.plot(curve["x"][1:], curve["accuracy"][1:], **{**look, "linestyle": ""}, markersize=2.5, zorder=3)
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
            zorder=4 if row["pareto"] else 2,  # the Pareto front is never covered
        )
    axes.set_xscale("log")
    axes.margins(0.2, 0.12)
    _plain_ticks(axes.xaxis, *axes.get_xlim())
    axes.set_xlabel(heading, fontsize=FONT)
    axes.set_ylabel("accuracy (%)", fontsize=FONT)
    _bound(axes)
    if legend:
        figure.legend(loc="outside upper center", ncols=columns, fontsize=FONT, **LEGEND)
    _label_points(figure, axes, rows, front, [curve[["x", "accuracy"]].to_numpy() for curve in curves.values()], looks)
    return figure


def _front(frame: pd.DataFrame) -> list[tuple[float, float]]:
    points = frame[frame["pareto"].astype(bool)].dropna(subset=["accuracy", "x"])
    return sorted(zip(points["x"], points["accuracy"], strict=True))


def by_epsilon(frame: pd.DataFrame, provenance: str) -> Figure:
    """What compressing all activations does at each epsilon: relative gradient error; step time, bytes held and peak relative to
    the unmodified step. A line for each family of `frame` (columns family, epsilon, error, time, held, formula, peak in MB; the
    first row is the unmodified step); epsilon 1, which keeps the activations themselves, is a point beside it."""
    figure = _blank(provenance, height=4.2)
    plain = frame.iloc[0]
    known = frame.dropna(subset=["epsilon"])
    looks = _by_position(sorted(known["family"].unique()))
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
        axes.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])
        _plain(axes)
        lines |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=2, fontsize=FONT, **LEGEND)
    return figure


def accuracy_matrices(runs: Mapping[str, list[RunRecord]], provenance: str) -> Figure | None:
    """One heat map of R (%) for each row, mean over seeds by position in the sequence; cells that were not measured stay blank.

    A row that was measured only after its last task has no matrix; None where no row has one. Whole numbers stand in the cells
    where there is room to read them.
    """
    means = {
        label: np.stack([run.R for run in group]).mean(axis=0)
        for label, group in runs.items()
        if len(group[0].correct) == 1 or any(row[0] is not None for row in group[0].correct[:-1])
    }
    if not means:
        return None
    figure, panels = _panels(provenance, list(means), gap=0.06, above=0.6, below=0.25)
    alike = len({len(mean) for mean in means.values()}) == 1
    for position, (axes, mean) in enumerate(zip(panels, means.values(), strict=True)):
        n = len(mean)
        image = axes.pcolormesh(np.arange(n), np.arange(n), mean, vmin=0, vmax=100, cmap="cividis")  # an image would be pixels
        axes.invert_yaxis()
        ticks = np.arange(n - 1, -1, -max(1, n // 5))[::-1]  # always the last one
        axes.set_xticks(ticks, ticks + 1)
        axes.set_yticks(ticks, ticks + 1)
        axes.grid(False)
        if alike:  # the first of each row and the last of each column are enough
            left, low = position % PANELS == 0, position >= len(panels) - PANELS
            axes.tick_params(left=left, labelleft=left, bottom=low, labelbottom=low)
        for t, i in zip(*np.nonzero(~np.isnan(mean)), strict=True) if n <= 5 else ():
            colour = "black" if mean[t, i] > 50 else "white"
            axes.text(i, t, f"{mean[t, i]:.0f}", ha="center", va="center", fontsize=FONT, color=colour)
    height = figure.get_figheight()
    bar = figure.colorbar(image, cax=figure.add_axes((0.2, 1 - 0.46 / height, 0.6, 0.08 / height)), orientation="horizontal")
    for area in bar.ax.collections:
        area.set_rasterized(False)
    bar.ax.xaxis.set_ticks_position("top")
    bar.ax.tick_params(labelsize=FONT, pad=1, length=2)
    figure.suptitle("accuracy (%) on task k (column) after t tasks (row)", fontsize=FONT, y=1 - 0.05 / height)
    return figure


def accuracy_after_each_task(runs: dict[str, list[RunRecord]], provenance: str) -> Figure | None:
    """A_k (%) against k, mean over seeds, with 95 % bands; a method that is measured only at the end is a point."""
    series = {label: [metrics.accuracy_after_each_task(run.R) for run in group] for label, group in runs.items()}
    return _over_tasks(runs, series, "mean accuracy (%)", provenance, scale="per cent")


def forgetting_after_each_task(runs: dict[str, list[RunRecord]], provenance: str) -> Figure | None:
    """F_k (points) against k, mean over seeds, with 95 % bands; None where no method has it."""
    series = {label: [metrics.forgetting_after_each_task(run.R) for run in group] for label, group in runs.items()}
    return _over_tasks(runs, series, "mean forgetting (points)", provenance)


def stored_after_each_task(runs: dict[str, list[RunRecord]], provenance: str) -> Figure | None:
    """MB (log axis) of the artifact that serves the first k tasks against k, mean over seeds, with 95 % bands."""
    series = {
        label: [np.array([np.nan if s is None else s.total / MB for s in run.stored]) for run in group]
        for label, group in runs.items()
    }
    return _over_tasks(runs, series, "stored (MB)", provenance, scale="log")


def _over_tasks(
    runs: Mapping[str, list[RunRecord]],
    series: dict[str, list[np.ndarray]],
    heading: str,
    provenance: str,
    scale: Literal["linear", "per cent", "log"] = "linear",
) -> Figure | None:
    """A line for each row. With more than `FEW` rows bands would hide one another: then only the last point has its interval."""
    summaries = {label: t_interval(np.stack(values)) for label, values in series.items()}
    if all(np.isnan(mean).all() for mean, _ in summaries.values()):
        return None
    looks = {label: look_of_run(group[0]).style for label, group in runs.items()}
    columns = _columns(series)
    figure, axes = _figure(provenance, height=2.4 + 0.14 * -(-len(series) // columns))
    for place, (label, (mean, half)) in enumerate(summaries.items()):
        k = np.arange(1, len(mean) + 1)
        every = max(1, len(k) // 5)  # rows have their markers at different tasks, so that they do not cover one another
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
    _count_tasks(axes)
    axes.set_xlabel("tasks learned", fontsize=FONT)
    axes.set_ylabel(heading, fontsize=FONT)
    if scale == "log":
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, *axes.get_ylim())
    elif scale == "per cent":
        _bound(axes)
    figure.legend(loc="outside upper center", ncols=columns, fontsize=FONT, **LEGEND)
    return figure


def rank_growth(runs: Mapping[str, list[RunRecord]], provenance: str) -> Figure | None:
    """How many components each layer has after task k against k, mean over seeds with 95 % bands: a panel for each row that
    reports its ranks, two where kernels have two (Tucker's); None where no row does."""
    lines: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}  # of each panel: of each layer the mean and half-width
    for label, group in runs.items():
        found = [run.diagnostics.ranks for run in group]
        shared = [name for name in found[0] if all(name in one for one in found)]
        layers = {name: t_interval(np.array([one[name] for one in found], dtype=float)) for name in shared}
        if not layers:
            continue
        modes = max(mean.shape[1] for mean, _ in layers.values())
        for mode, side in enumerate([""] if modes == 1 else [", output", ", input"]):
            lines[f"{label}{side}"] = {
                name: (mean[:, min(mode, mean.shape[1] - 1)], half[:, min(mode, mean.shape[1] - 1)])
                for name, (mean, half) in layers.items()
            }
    if not lines:
        return None
    looks = _by_position(list(dict.fromkeys(name for panel in lines.values() for name in panel)))
    columns = _columns(looks, room=62 if len(lines) <= 2 else 130)
    above = 0.25 + 0.16 * -(-len(looks) // columns)
    figure, panels = _panels(provenance, list(lines), gap=0.44, above=above, below=0.35)
    for axes, layers in zip(panels, lines.values(), strict=True):
        for name, (mean, half) in layers.items():
            k = np.arange(1, len(mean) + 1)
            axes.plot(k, mean, label=name, markersize=3, markevery=max(1, len(k) // 5), linewidth=0.9, **looks[name])
            axes.fill_between(k, mean - half, mean + half, color=looks[name]["color"], alpha=0.15, linewidth=0)
        _count_tasks(axes)
        axes.set_ylim(bottom=0)
    handles = {text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    words = {"title": "components of each layer against tasks learned", "title_fontsize": FONT}
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=columns, fontsize=FONT, **words, **LEGEND)
    return figure


def plain_text() -> AbstractContextManager[None]:
    """While it lasts, dollars in a name are drawn as dollars and begin no formula. Publishers refuse the default Type 3 fonts."""
    from matplotlib import rc_context

    return rc_context({"text.parse_math": False, "pdf.fonttype": 42})


def render(figure: Figure) -> dict[str, bytes]:
    """The figure as {"pdf": ..., "png": ...}, without the date, so that the files depend on their content only."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if hasattr(text, "set_fontfeatures"):  # matplotlib >= 3.11: the ligature of "fi" would be embedded as a second font
            text.set_fontfeatures(("-liga",))
    _arrange(figure)
    pdf, png = io.BytesIO(), io.BytesIO()
    # The canvases themselves: `savefig` would draw everything twice.
    with plain_text():
        FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None})
        figure.set_dpi(300)
        FigureCanvasAgg(figure).print_png(png)
    return {"pdf": pdf.getvalue(), "png": png.getvalue()}


def _arrange(figure: Figure) -> None:
    """Find the layout, once for all that is drawn afterwards."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine("none")


def _blank(provenance: str, height: float, width: float = WIDTH) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.supxlabel(textwrap.fill(provenance, int(FINE * width / WIDTH)), fontsize=SMALL, color="0.4")
    return figure


def _figure(provenance: str, height: float) -> tuple[Figure, Axes]:
    figure = _blank(provenance, height)
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _panels(provenance: str, titles: list[str], gap: float, above: float, below: float) -> tuple[Figure, list[Axes]]:
    """Small multiples, square: one or two in a column's width, else `PANELS` in a row of a wide figure.

    gap, above, below: inches between neighbours, and above and below all of them, for what belongs there. Placed by arithmetic,
    since matplotlib's search for a layout takes seconds with twenty panels."""
    across = len(titles) if len(titles) <= 2 else PANELS
    down = -(-len(titles) // across)
    width, edge = WIDTH if len(titles) <= 2 else WIDE, max(gap, 0.3)
    side = (width - edge - 0.1 - gap * (across - 1)) / across
    lines = [textwrap.fill(title, int(side * 18)) for title in titles]
    title = 0.06 + 0.14 * max(text.count("\n") + 1 for text in lines)
    between = title + (0.25 if gap > 0.1 else 0)  # room for labels of ticks
    figure = _blank(provenance, height=1, width=width)
    figure.set_layout_engine("none")
    small = 0.05 + 0.1 * (figure.get_supxlabel().count("\n") + 1)
    height = above + title + down * side + (down - 1) * between + below + small
    figure.set_figheight(height)
    grid: list[Axes] = [
        *figure.subplots(
            *(down, across),
            squeeze=False,
            gridspec_kw={
                **{"left": edge / width, "right": 1 - 0.1 / width, "wspace": gap / side, "hspace": between / side},
                **{"top": 1 - (above + title) / height, "bottom": (below + small) / height},
            },
        ).flat
    ]
    for spare in grid[len(titles) :]:
        spare.remove()
    for axes, text in zip(grid, lines, strict=False):
        _plain(axes)
        axes.set_title(text, fontsize=FONT, pad=3)
    return figure, grid[: len(titles)]


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=FONT)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)


def _count_tasks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _plain_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of a log axis as plain numbers, a few of them whatever its range."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
    dense = [1 + 0.5 * i for i in range(18)]  # between close sizes 1, 2, 5 would leave one tick or none
    steps = ((1.6, dense), (5, [1, 1.5, 2, 3, 4, 5, 7]), (200, [1, 2, 5]))
    axis.set_major_locator(LogLocator(subs=next((subs for ratio, subs in steps if high < ratio * low), [1])))


def _by_position(labels: list[str]) -> dict[str, dict[str, Any]]:
    """Looks of what is no method: with the colour no line returns before 28."""
    return {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % 9],
            "fillstyle": ("full", *FILLS)[i // 9 % 3],
            "linestyle": LINES[i // len(COLOURS) % len(LINES)],
        }
        for i, label in enumerate(labels)
    }


def _columns(labels: Iterable[str], room: int = 62) -> int:
    """How many columns of a legend fit into a line of `room` characters."""
    names = list(labels)
    most = max(1, min(room // 15, room // (max(map(len, names)) + 7)))
    return -(-len(names) // -(-len(names) // most))  # as few as these rows need


def _bound(axes: Axes) -> None:
    """No room for impossible accuracies, however wide an interval is."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))


def _label_points(
    figure: Figure,
    axes: Axes,
    rows: list[dict],
    front: list[tuple[float, float]],
    curves: list[np.ndarray],
    looks: dict[str, dict[str, Any]],
) -> None:
    """Write each row's text beside its point, in the position around it that covers the least of points, front and curves.

    Not `adjustText`: by default it stops after a second of wall clock, wherever it is by then, and it imports pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _arrange(figure)  # places are compared in pixels
    renderer = FigureCanvasAgg(figure).get_renderer()
    margin = 3 * figure.dpi / 72  # half a marker
    taken: list[np.ndarray] = []  # left, bottom, right, top
    for row in rows:
        x, y = row["x"], row["accuracy"]
        dx, dy = np.nan_to_num(row["x_ci"]), np.nan_to_num(row["accuracy_ci"])
        for corners in ([(x - dx, y), (x + dx, y)], [(x, y - dy), (x, y + dy)]):
            low, high = axes.transData.transform(corners)
            taken.append(np.hstack([low - margin, high + margin]))
    for (left, bottom), (right, top) in pairwise(front):
        for corners in ([(left, bottom), (right, bottom)], [(right, bottom), (right, top)]):
            low, high = axes.transData.transform(corners)
            taken.append(np.hstack([low - margin, high + margin]))

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row["series"], []).append((row["x"], row["accuracy"]))
    for line in [*lines.values(), *curves]:
        for start, end in pairwise(axes.transData.transform(line)):
            taken += [np.hstack([point - 1, point + 1]) for point in np.linspace(start, end, 30)]

    def shared(box: np.ndarray, others: np.ndarray) -> float:
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        return float(sides[(sides > 0).all(axis=1)].prod(axis=1).sum())

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
        places: list[tuple[float, int, dict[str, Any], np.ndarray]] = []
        covered = np.array(taken)
        for distance in (5, 10, 16):
            for right, up in [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]:
                place = {
                    "position": (distance * right, distance * up),
                    "ha": ("right", "center", "left")[right + 1],
                    "va": ("top", "center", "bottom")[up + 1],
                }
                text.set(**place)
                box = np.array(text.get_window_extent(renderer).padded(margin / 3).extents)
                outside = (box[2:] - box[:2]).prod() - shared(box, np.array([axes.bbox.extents]))
                cost = 6 * outside + 3 * shared(box, covered) + distance
                places.append((cost, len(places), place, box))
        *_, place, box = min(places, key=lambda entry: entry[:2])
        text.set(**place)
        taken.append(box)
