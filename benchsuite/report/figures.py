"""Figures of a leaderboard: vector graphics as wide as the selection says, in colours that the colour-blind can tell apart.

Every figure is a plain `matplotlib.figure.Figure`; no global state is touched. What made the numbers stands in the caption and in
the file's metadata, not on the plot. Labels stand beside what they name: there are no legends to look up.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ..analysis.leaderboard import Leaderboard
from ..analysis.rows import series, setting_of
from ..analysis.statistics import t_interval
from ..analysis.summary import Summary, summary
from ..record import metrics
from ..record.schema import MB, RunRecord
from .columns import TITLES
from .looks import COLOURS, FAMILIES, FILLS, LINES, MARKERS, Look, entry_of, looks_of
from .selection import Selection
from .tables import confidence_interval, span

if TYPE_CHECKING:  # matplotlib takes half a second to import: only drawing needs it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS = {"column": 3.17, "page": 4.77, "two-column": 6.5}  # inches: of article, which is narrower than NeurIPS and IEEE
FONTS = {"serif": "STIXGeneral", "sans": "DejaVu Sans"}  # matplotlib brings both; the first goes with Times
FONT, SMALL = 8, 7  # points: axes and titles; ticks and labels in the plot
TINY = 6  # points: numbers in the cells of a matrix
LINE = 0.14  # inches from one line of text to the next
FEW = 6  # rows that one frame holds; more are drawn family by family
CROWD = 60  # points that one frame holds; more are drawn in the same way
USUALLY = Selection()
OUTSIDE = "published"  # the family of rows without runs here
LEGEND: dict[str, Any] = {"frameon": False, "columnspacing": 1, "handlelength": 1.8, "handletextpad": 0.5, "labelspacing": 0.2}


@dataclass(frozen=True)
class Drawing:
    """A figure and its caption, without what made the numbers."""

    figure: Figure
    caption: str


@dataclass(frozen=True, eq=False)
class _Row:
    """A row that is shown. name: its label on the board; label: what readers see."""

    name: str
    label: str
    look: Look
    family: str
    runs: list[RunRecord]


def _rows(board: Leaderboard, selection: Selection) -> list[_Row]:
    looks = looks_of(board)
    rows = []
    for name, row in selection.rows_on(board).items():
        runs = board.runs.get(name, [])
        rows.append(_Row(name, row.label or name, looks[name], entry_of(runs[0]).family if runs else OUTSIDE, runs))
    return rows


# ---- accuracy against what it costs


def accuracy_vs_size(board: Leaderboard, selection: Selection = USUALLY) -> Drawing | None:
    """Accuracy (%) against stored MB (log axis): a curve for each row over its storage forms, with the Pareto front."""
    names = {"megabytes": "x", "megabytes_ci": "x_ci"}
    frame = board.parameter_efficiency.rename(columns=names)
    figure = _trade_off(frame, board.forms.rename(columns=names), "stored for all tasks (MB)", board, selection)
    several = len(board.forms) > len(board.parameter_efficiency)
    forms = " A curve joins the storage forms of a row: fp32 or native (large), fp16, int8, int6, int4." if several else ""
    return _of(figure, f"Accuracy against stored size {_where(board)}.{forms}{_front_says(board, selection)}")


def accuracy_vs_memory(board: Leaderboard, selection: Selection = USUALLY) -> Drawing | None:
    """The same against the MB that a training step holds for its backward pass; None where no record has them."""
    frame = board.training_memory.rename(columns={"held": "x", "held_ci": "x_ci"}).assign(form="")
    figure = _trade_off(frame, frame, "held for the backward pass (MB)", board, selection)
    return _of(figure, f"Accuracy against training memory {_where(board)}.{_front_says(board, selection)}")


def _front_says(board: Leaderboard, selection: Selection) -> str:
    rows = _rows(board, selection)
    left = [row.label for row in rows if row.name in board.elsewhere]
    return (
        " Rows of one size stand side by side. Dashed: Pareto front of the ranked rows shown"
        + (f", without {', '.join(left)} (other tasks or images)" if left else "")
        + f"; {averaged([len(row.runs) for row in rows if row.runs], 'bars')}."
    )


def _trade_off(
    frame: pd.DataFrame, points: pd.DataFrame, heading: str, board: Leaderboard, selection: Selection
) -> Figure | None:
    rows = {row.name: row for row in _rows(board, selection)}
    frame = frame[frame["method"].isin(rows)].dropna(subset=["accuracy", "x"])
    points = points[points["method"].isin(frame["method"])].dropna(subset=["accuracy", "x"])
    if frame.empty:
        return None
    figure, axes = _frame(selection, height=2.5)
    axes.set_xscale("log")
    whole = {name: points[points["method"] == name][["x", "accuracy"]].to_numpy(float) for name in frame["method"]}
    ends = frame.set_index("method")
    bars = np.nan_to_num(ends[["x_ci", "accuracy_ci"]].to_numpy(float))
    sizes, accuracy = ends["x"].to_numpy(float), ends["accuracy"].to_numpy(float)
    low, high = _room(accuracy, bars[:, 1], [p for curve in whole.values() for p in curve[:, 1]])
    axes.set_ylim(low, high)
    factors = _fanned(sizes, accuracy, 0.05 * (high - low) + bars[:, 1])
    every = np.concatenate([curve[:, 0] * factor for curve, factor in zip(whole.values(), factors, strict=True)])
    every = np.concatenate([every, sizes + bars[:, 0], np.maximum(sizes - bars[:, 0], sizes / 3)])
    margin = (every.max() / every.min()) ** 0.09 * 1.1
    axes.set_xlim(every.min() / margin, every.max() * margin)
    _plain_ticks(axes.xaxis, *axes.get_xlim())
    drawn = points.assign(drawn=points["x"] * points["method"].map(dict(zip(ends.index, factors, strict=True))))
    front = _front(drawn[drawn["competes"].astype(bool)])
    if len(front) > 1:
        axes.plot(*np.array(front).T, drawstyle="steps-post", color="0.55", linewidth=0.8, linestyle="--", zorder=1)
    texts, solid = [], [*_corners(front)]
    largest: dict[str, str] = {}  # of each series the row that is labelled with its name
    for name in ends.index[np.argsort(sizes, kind="stable")]:
        largest[series(name)] = name
    for name, factor, (x_bar, y_bar) in zip(ends.index, factors, bars, strict=True):
        row, curve = rows[name], whole[name] * [factor, 1]
        (x, y), style = curve[0], {**row.look.style, "linestyle": ""}
        axes.plot(*curve.T, color=row.look.colour, linewidth=0.7, zorder=2)
        axes.plot(*curve[1:].T, **style, markersize=2.2, markeredgewidth=0.5, zorder=3)
        x_ends = np.clip([x - x_bar, x + x_bar], *axes.get_xlim())
        y_ends = np.clip([y - y_bar, y + y_bar], *(max(low, 0), min(high, 100)))
        for bar in ([(x_ends[0], y), (x_ends[1], y)] if x_bar else [], [(x, y_ends[0]), (x, y_ends[1])] if y_bar else []):
            if bar:
                axes.plot(*np.array(bar).T, color=row.look.colour, linewidth=0.7, alpha=0.6, zorder=2)
                solid.append(np.array(bar))
        axes.plot(x, y, **style, markersize=5, zorder=4, label=row.label)
        text = row.label
        if sum(series(other) == series(name) for other in ends.index) > 1:  # only the largest has the name alone
            text = series(rows[largest[series(name)]].label)
            text += f" ×{setting_of('width', row.runs[0]):g}" if name != largest[series(name)] and row.runs else ""
        texts.append((text, row.look.colour, curve[[0, -1]]))
        solid.append(curve)
    for one, name in largest.items():  # dotted: a method at several widths
        widths = np.flatnonzero([series(other) == one for other in ends.index])
        joined = np.array(sorted(zip(sizes[widths] * factors[widths], accuracy[widths], strict=True)))
        axes.plot(*joined.T, color=rows[name].look.colour, linewidth=0.7, linestyle=":", zorder=2)
        solid.append(joined)
    axes.set_xlabel(heading, fontsize=FONT)
    axes.set_ylabel("accuracy (%)", fontsize=FONT)
    _write_beside(figure, axes, texts, solid)
    return figure


def _front(points: pd.DataFrame) -> list[tuple[float, float]]:
    """Where the points are drawn that no smaller one beats in accuracy, from the smallest on."""
    found: list[tuple[float, float]] = []
    for point in points.sort_values(["x", "accuracy"], ascending=[True, False]).to_dict("records"):
        if not found or point["accuracy"] > found[-1][1]:
            found.append((point["drawn"], point["accuracy"]))
    return found


def _corners(front: list[tuple[float, float]]) -> Iterable[np.ndarray]:
    for (left, bottom), (right, top) in pairwise(front):
        yield np.array([(left, bottom), (right, bottom), (right, top)])


def _fanned(sizes: np.ndarray, accuracy: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Factors on sizes that put rows of one size (within 2 %) whose intervals overlap side by side, smaller ones on the left."""
    step = max(1.012, (sizes.max() / sizes.min()) ** 0.016)
    places = np.zeros(len(sizes))
    order = np.lexsort((-accuracy, sizes))
    for position, i in enumerate(order):
        crowd = [
            j
            for j in order[:position]
            if abs(np.log(sizes[i] / sizes[j])) < 0.02 and abs(accuracy[i] - accuracy[j]) < halves[i] + halves[j]
        ]
        taken = {places[j] for j in crowd}
        beyond = max((places[j] for j in crowd if sizes[j] < sizes[i]), default=-99)
        places[i] = next(place for place in (0, 1, -1, 2, -2, 3, -3, *range(4, 99)) if place > beyond and place not in taken)
    return step**places


def _room(means: np.ndarray, halves: np.ndarray, others: Collection[float] = (), bounds: bool = True) -> tuple[float, float]:
    """Limits of an axis that hold all means with their intervals, none of them beyond what is possible."""
    halves = np.nan_to_num(halves)
    low = float(np.nanmin([*(means - halves).ravel(), *others]))
    high = float(np.nanmax([*(means + halves).ravel(), *others]))
    if bounds:
        low, high = max(low, 0.0), min(high, 100.0)
    edge = 0.05 * (high - low or 1.0)
    return low - edge, high + edge


# ---- curves over tasks


def accuracy_after_each_task(board: Leaderboard, selection: Selection = USUALLY) -> Drawing | None:
    """A_k (%) against k, mean over seeds, with 95 % bands; a method that is measured only at the end is a point."""
    return _over_tasks(
        board, selection, "mean accuracy (%)", "Mean accuracy on the tasks learned so far",
        lambda run: metrics.accuracy_after_each_task(run.R), "per cent",
    )  # fmt: skip


def forgetting_after_each_task(board: Leaderboard, selection: Selection = USUALLY) -> Drawing | None:
    """F_k (points) against k, mean over seeds, with 95 % bands; None where no method has it."""
    return _over_tasks(
        board, selection, "mean forgetting (points)", "Mean forgetting of the tasks learned so far",
        lambda run: metrics.forgetting_after_each_task(run.R),
    )  # fmt: skip


def stored_after_each_task(board: Leaderboard, selection: Selection = USUALLY) -> Drawing | None:
    """MB (log axis) of the artifact that serves the first k tasks against k, mean over seeds, with 95 % bands."""
    return _over_tasks(
        board, selection, "stored (MB)", "Stored size over tasks",
        lambda run: np.array([np.nan if s is None else s.total / MB for s in run.stored]), "log",
    )  # fmt: skip


def _over_tasks(
    board: Leaderboard,
    selection: Selection,
    heading: str,
    title: str,
    values: Callable[[RunRecord], np.ndarray],
    scale: Literal["linear", "per cent", "log"] = "linear",
) -> Drawing | None:
    found = {row: t_interval(np.stack([values(run) for run in row.runs])) for row in _rows(board, selection) if row.runs}
    found = {row: summary for row, summary in found.items() if not np.isnan(summary[0]).all()}
    if not found:
        return None
    caption = f"{title} {_where(board)}, each seed in its own order"
    return _by_family(found, selection, heading, "tasks learned", caption, scale=scale, joined=True)


def accuracy_of_each_task(board: Leaderboard, selection: Selection = USUALLY) -> Drawing | None:
    """Final accuracy (%) on each task, mean over seeds with 95 % intervals, tasks in the order of their names."""
    rows = [row for row in _rows(board, selection) if row.runs and row.name not in board.elsewhere]
    if not rows or len({(t.dataset, t.name) for run in rows[0].runs for t in run.tasks}) < 2:
        return None

    def of(run: RunRecord) -> dict[tuple[str, str], float]:
        return {(task.dataset, task.name): float(a) for task, a in zip(run.tasks, run.R[-1], strict=True)}

    every = [{row.name: [of(run) for run in row.runs]} for row in rows]
    keys = sorted(
        {key for one in every for runs in one.values() for run in runs for key in run},
        key=lambda key: [key[0], *((int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", key[1]))],
    )
    if any(set(run) != set(keys) for one in every for runs in one.values() for run in runs):
        return None  # seeds learn tasks of their own: there are no means over seeds
    found = {
        row: t_interval(np.array([[run[key] for key in keys] for run in one[row.name]]))
        for row, one in zip(rows, every, strict=True)
    }
    sets = len({dataset for dataset, _ in keys})
    names = [f"{dataset} {name}" if sets > 1 else name for dataset, name in keys]
    short = max(map(len, names)) * len(names) <= 26
    caption = f"Accuracy on each task after the last one {_where(board)}"
    if not short and names != [str(i + 1) for i in range(len(names))]:
        caption += f": {', '.join(names)}" if sum(map(len, names)) < 160 else ", in the order of their names"
    return _by_family(
        found, selection, "final accuracy (%)", "task", caption, "per cent", joined=False, names=names if short else ()
    )


def _by_family(
    found: Mapping[_Row, tuple[np.ndarray, np.ndarray]],
    selection: Selection,
    heading: str,
    below: str,
    caption: str,
    scale: Literal["linear", "per cent", "log"],
    joined: bool,
    names: Sequence[str] = (),
) -> Drawing:
    """One frame for each family, on the same axes, with the best row of each other family in grey behind; few rows share one.

    joined: lines with bands; otherwise points with bars."""
    families: dict[str, list[_Row]] = {}
    split = len(found) > FEW or (not joined and sum(len(mean) for mean, _ in found.values()) > CROWD)
    order = [*FAMILIES]
    for row in sorted(found, key=lambda row: order.index(row.family) if row.family in order else len(order)):
        families.setdefault(row.family if split else "", []).append(row)
    best = {family: max(rows, key=lambda row: np.mean([run.accuracy for run in row.runs])) for family, rows in families.items()}
    figure, panels = _panels(selection, [family.capitalize() for family in families], max(len(row.label) for row in found))
    means, halves = (np.concatenate([part[k] for part in found.values()]) for k in (0, 1))
    if scale == "log":
        low, high = np.nanmin(means) / 1.3, np.nanmax(means) * 1.3
    else:
        low, high = _room(means, halves, bounds=scale == "per cent")
    for axes, (family, rows) in zip(panels, families.items(), strict=True):
        if scale == "log":
            axes.set_yscale("log")
        axes.set_ylim(low, high)
        for other in (row for name, row in best.items() if name != family):
            mean, _ = found[other]
            axes.plot(np.arange(1, len(mean) + 1), mean, color="0.8", linewidth=0.8, zorder=1)
        ends = []
        curves = [axes.transData.transform(np.column_stack([np.arange(len(found[row][0])), found[row][0]])) for row in rows]
        for place, row in enumerate(rows):
            mean, half = found[row]
            over = sum(_same(curves[place], other, figure.dpi / 72) for other in curves[place + 1 :]) if joined else 0
            k = np.arange(1, len(mean) + 1)
            shift = 0 if joined else 0.5 * ((place + 0.5) / len(rows) - 0.5)
            every = max(1, len(k) // 5)
            known = np.flatnonzero(~np.isnan(mean))
            axes.plot(
                k + shift, mean, markersize=3.2 + 1.3 * over, markeredgewidth=0.6, linewidth=0.9 + over if joined else 0.4,
                markevery=[*known[::-every]] if joined else None, zorder=3, label=row.label,
                **row.look.style | ({} if joined else {"linestyle": ""}),
            )  # fmt: skip
            if joined and np.isfinite(half).sum() > 1:
                under, above = np.clip([mean - half, mean + half], *((low, high) if scale == "log" else (max(low, 0), high)))
                axes.fill_between(k, under, above, color=row.look.colour, alpha=0.13, linewidth=0, zorder=2)
            else:
                for x, y, h in zip(k + shift, mean, half, strict=True):
                    if np.isfinite(h):
                        bar = np.clip([y - h, y + h], *((0, 100) if scale == "per cent" else (low, high)))
                        axes.plot([x, x], bar, color=row.look.colour, linewidth=0.7, alpha=0.6, zorder=2)
            ends.append((k[known[-1]] + shift, mean[known[-1]], row))
        last = max(len(mean) for mean, _ in found.values())
        edge = max(0.04 * last, 0.0 if joined else 0.35)
        axes.set_xlim(1 - edge, last + edge)
        if names:
            axes.set_xticks(range(1, len(names) + 1), names)
        else:
            _count_tasks(axes)
        if scale == "log":
            _plain_ticks(axes.yaxis, low, high)
        _write_at_ends(figure, axes, ends)
    _shared_labels(figure, panels, below, heading)
    single = len(families) == 1
    grey = "" if single else " One frame for each family; grey: the most accurate row of each other family."
    marks = ("bands" if joined else "bars") + (", cut at 0 and 100 %" if scale == "per cent" else "")
    seeds = averaged([len(row.runs) for row in found], marks)
    return Drawing(figure, f"{caption}; {seeds}.{grey}")


def _same(one: np.ndarray, other: np.ndarray, point: float) -> bool:
    """Whether a curve lies on another one wherever both are known: it is drawn thicker, and so can be seen below."""
    apart = np.abs(one[: len(other), 1] - other[: len(one), 1])
    return bool(np.isfinite(apart).any() and np.nanmax(apart) < 1.5 * point)


# ---- all rows in one figure


def accuracy_matrices(board: Leaderboard, selection: Selection = USUALLY) -> Drawing | None:
    """The change (points) of the accuracy on each task since it was learned, after each later one: a panel for each row, mean
    over seeds by position in the sequence. Rows in which nothing changes are named in the caption."""
    means: dict[_Row, np.ndarray] = {}
    still = []
    for row in _rows(board, selection):
        if row.runs and len(row.runs[0].correct) > 1 and any(line[0] is not None for line in row.runs[0].correct[:-1]):
            R = np.stack([run.R for run in row.runs]).mean(axis=0)
            change = np.where(np.tri(len(R), dtype=bool), R - np.diag(R), np.nan)
            if np.nanmax(np.abs(change)) < 0.5:
                still.append(row.label)
            else:
                means[row] = change
    if not means:
        return None
    from matplotlib.colors import Normalize

    every = np.concatenate([change.ravel() for change in means.values()])
    highest = max(float(np.nanmax(every)), 1.0)
    lowest = min(float(np.nanmin(every)), -1.0)
    darkest = max(highest, -lowest)
    norm = Normalize(-darkest, darkest)  # white is no change; gain and loss of one size are equally dark
    width = WIDTHS[selection.fit]
    tasks = max(len(change) for change in means.values())
    down = -(-len(means) // max(2, int(width / (1.0 if tasks > 5 else 1.15))))
    across = -(-len(means) // down)  # rows of panels as even as they can be
    left, right, above, below, gap = 0.38, 0.62, 0.02, 0.36, 0.1
    side = min(1.6, (width - left - right - gap * (across - 1)) / across)
    titles = [textwrap.fill(row.label.replace("+", " +"), max(8, int(side * 19))).replace(" +", "+") for row in means]
    title = 0.05 + LINE * max(text.count("\n") + 1 for text in titles)
    height = above + below + down * (side + title)
    figure = _blank(selection, height, left + right + across * side + gap * (across - 1))
    for place, (change, text) in enumerate(zip(means.values(), titles, strict=True)):
        i, j = divmod(place, across)
        box = (left + j * (side + gap), height - above - (i + 1) * (side + title), side, side)
        axes = figure.add_axes(tuple(part / size for part, size in zip(box, (*figure.get_size_inches(),) * 2, strict=True)))
        n = len(change)
        image = axes.pcolormesh(np.arange(n + 1) + 0.5, np.arange(n + 1) + 0.5, change, norm=norm, cmap="RdBu")
        axes.invert_yaxis()
        axes.set_title(text, fontsize=SMALL, pad=2)
        axes.tick_params(labelsize=SMALL, length=2, pad=1.5)
        for name in ("top", "right"):
            axes.spines[name].set_visible(False)
        ticks = sorted({1, n, *([] if n < 4 else [(n + 1) // 2])})
        lowest_of_column = place + across >= len(means)
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        axes.tick_params(labelbottom=lowest_of_column, labelleft=j == 0)
        if n <= 5:
            for t, k in zip(*np.nonzero(np.tri(n, k=-1)), strict=True):
                colour = "white" if abs(change[t, k]) > 0.6 * darkest else "black"
                axes.text(
                    k + 1, t + 1, f"{change[t, k]:z.0f}".replace("-", "−"), ha="center", va="center", fontsize=TINY, color=colour
                )
    bar_height = min(1.6, 0.8 * (height - below - title))
    box = (1 - (right - 0.1) / figure.get_figwidth(), (below + 0.1) / height, 0.09 / figure.get_figwidth(), bar_height / height)
    bar = figure.colorbar(image, cax=figure.add_axes(box))
    bar.ax.set_ylim(lowest, highest)
    for area in bar.ax.collections:
        area.set(rasterized=False, edgecolor="face", linewidth=0.4)  # or viewers show seams
    bar.ax.tick_params(labelsize=SMALL, length=2, pad=1.5)
    bar.ax.set_title("points", fontsize=SMALL, pad=4)
    figure.text((left + (across * side) / 2) / figure.get_figwidth(), 0.03 / height, "task", fontsize=FONT, ha="center")
    figure.text(0.03 / figure.get_figwidth(), 0.5 + below / height / 2, "after task", fontsize=FONT, va="center", rotation=90)
    unchanged = f" Nothing changes by half a point in {', '.join(still)}." if still else ""
    return Drawing(
        figure,
        f"Change in accuracy (points) since a task was learned, {_where(board)}: tasks from left to right in each seed's order,"
        f" each row of cells after one more task; the diagonal is 0; {averaged([len(row.runs) for row in means])}.{unchanged}",
    )


def critical_difference(board: Leaderboard, selection: Selection = USUALLY) -> Drawing | None:
    """Average ranks over the seeds of a board, and which rows cannot be told apart; None without two seeds."""
    rows = {row.name: row for row in _rows(board, selection) if row.runs}
    if len(rows) < 2:
        return None
    frames = {kind: getattr(board, kind) for kind in TITLES}
    shown = {kind: frame[frame["method"].isin(rows)].reset_index(drop=True) for kind, frame in frames.items()}
    ranked = summary([replace(board, **shown, runs={name: row.runs for name, row in rows.items()})])
    return ranks_of(ranked, selection, shown_in(ranked, [board], selection))


def shown_in(ranked: Summary, boards: Sequence[Leaderboard], selection: Selection) -> dict[str, tuple[str, Look]]:
    """Label and look of each configuration of a summary of boards, as on the first board that shows it."""
    found: dict[str, tuple[str, Look]] = {}
    for board in boards:
        own = ranked.results[ranked.results["board"] == f"{board.protocol}/{board.tier}"]
        names = dict(zip(own["row"], own["method"], strict=True))
        for row in _rows(board, selection):
            if row.name in names:
                found.setdefault(names[row.name], (row.label, row.look))
    return found


def ranks_of(ranked: Summary, selection: Selection, shown: Mapping[str, tuple[str, Look]]) -> Drawing | None:
    """The critical-difference diagram of a summary. shown: label and look of its configurations.

    None where there is nothing to rank: fewer than two blocks, or than three rows."""
    table = ranked.ranks.dropna(subset=["average_rank"])
    if len(table) < 3 or len(ranked.blocks) < 2:
        return None
    labels = {name: shown[name][0] if name in shown else name for name in table["method"]}
    rank = dict(zip(table["method"], table["average_rank"], strict=True))
    names = sorted(rank, key=lambda name: rank[name])
    m, width = len(rank), WIDTHS[selection.fit]
    groups = [group for group in ranked.groups if len(group) > 1]
    half = -(-m // 2)
    wide = 0.05 * (max(map(len, labels.values())) + 7) + 0.15
    height = 0.42 + 0.09 * len(groups) + 0.1 + 0.155 * half
    figure = _blank(selection, height, width)
    axes = figure.add_axes((wide / width, 0, 1 - 2 * wide / width, 1))
    axes.set_axis_off()
    axes.set_xlim(1, m)
    axes.set_ylim(-height, 0)
    top = -0.36
    touch = 0.065 * (m - 1) / (width - 2 * wide)  # of two markers that touch
    at = dict(zip(names, _apart(np.array([rank[name] for name in names]), touch, 1 - touch / 2, m + touch / 2), strict=True))
    axes.plot([1, m], [top, top], color="black", linewidth=0.8, clip_on=False)
    for tick in range(1, m + 1, max(1, m // 12)):
        axes.plot([tick, tick], [top, top + 0.05], color="black", linewidth=0.8, clip_on=False)
        axes.text(tick, top + 0.07, str(tick), ha="center", va="bottom", fontsize=SMALL)
    axes.text(1, top + 0.19, "average rank", ha="left", va="bottom", fontsize=FONT)
    for i, group in enumerate(groups):
        y = top - 0.07 - 0.09 * i
        places = [at[name] for name in group]
        axes.plot([min(places), max(places)], [y, y], color="0.35", linewidth=1.6, solid_capstyle="round", clip_on=False)
        axes.plot(places, [y] * len(places), color="0.35", marker="o", markersize=2.6, linestyle="", clip_on=False)
    base = top - 0.09 * len(groups) - 0.14
    for i, name in enumerate(names):
        place = at[name]
        is_left = i < half
        y = base - 0.155 * (i if is_left else m - 1 - i)
        edge, side = (1, "right") if is_left else (m, "left")
        step = (-1 if is_left else 1) * 0.06 * (m - 1) / (width - 2 * wide)
        look = shown[name][1] if name in shown else None
        colour = look.colour if look else "black"
        axes.plot([place, place, edge + step], [top, y, y], color=colour, linewidth=0.7, clip_on=False)
        if look:
            axes.plot(place, top, **{**look.style, "linestyle": ""}, markersize=4, clip_on=False, zorder=5)
        axes.text(edge + 1.6 * step, y, f"{labels[name]} ({rank[name]:.1f})", ha=side, va="center", fontsize=SMALL, clip_on=False)
    blocks = f"{len(ranked.blocks)} {ranked.over}"
    tied = ", equal ones side by side" if table["average_rank"].duplicated().any() else ""
    joined = "Bars join rows (dots) that cannot be told apart" if groups else "All rows can be told apart"
    return Drawing(
        figure,
        f"Critical-difference diagram: average ranks by accuracy over {blocks} ({', '.join(ranked.blocks)}), the best on the"
        f" left{tied}. {joined} (moderated paired t-test of accuracies, Holm's correction over all pairs of these rows,"
        " references apart, p > 0.05).",
    )


def rank_growth(board: Leaderboard, selection: Selection = USUALLY) -> Drawing | None:
    """How many components each layer has after task k against k, mean over seeds with 95 % bands: a panel for each row that
    reports its ranks, two where kernels have two (Tucker's); None where no row does."""
    lines: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}  # of each panel: of each layer the mean and half-width
    seeds = []
    for row in _rows(board, selection):
        found = [run.diagnostics.ranks for run in row.runs]
        shared = [name for name in found[0] if all(name in one for one in found)] if found else []
        layers = {name: t_interval(np.array([one[name] for one in found], dtype=float)) for name in shared}
        if not layers:
            continue
        seeds.append(len(found))
        modes = max(mean.shape[1] for mean, _ in layers.values())
        for mode, side in enumerate([""] if modes == 1 else [", output", ", input"]):
            lines[f"{row.label}{side}"] = {
                name: (mean[:, min(mode, mean.shape[1] - 1)], half[:, min(mode, mean.shape[1] - 1)])
                for name, (mean, half) in layers.items()
            }
    if not lines:
        return None
    looks = _by_position(list(dict.fromkeys(name for panel in lines.values() for name in panel)))
    columns = max(1, int(WIDTHS[selection.fit] * 18 / (max(map(len, looks)) + 7)))
    above = 0.1 + LINE * -(-len(looks) // columns)
    figure, panels = _panels(selection, list(lines), 0, above=above, alike=False)
    for axes, of_layers in zip(panels, lines.values(), strict=True):
        for name, (mean, half) in of_layers.items():
            k = np.arange(1, len(mean) + 1)
            axes.plot(k, mean, label=name, markersize=3, markevery=max(1, len(k) // 5), linewidth=0.9, **looks[name])
            axes.fill_between(k, mean - half, mean + half, color=looks[name]["color"], alpha=0.15, linewidth=0)
        _count_tasks(axes)
        axes.set_ylim(bottom=0)
    _shared_labels(figure, panels, "tasks learned", "components")
    handles = {text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=columns, fontsize=SMALL, **LEGEND)
    return Drawing(figure, f"Components of each layer over tasks {_where(board)}; {averaged(seeds, 'bands')}.")


def by_factor(frame: pd.DataFrame, levels: Mapping[str, float]) -> Figure:
    """Runs that differ from the first row of `frame` in one factor each (columns factor, settings, accuracy, difference,
    standard_error, bytes). Left: accuracy against the bytes of the file (log axis), budgets joined by a line. Right: the
    difference from the first row, with its standard error.
    levels: accuracies to compare with, by name, as horizontal lines."""
    figure = _blank(USUALLY, height=3.6, width=WIDTHS["two-column"])
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2)
    base, rest = frame.iloc[0], frame[1:]
    looks = _by_position(list(dict.fromkeys(rest["factor"])))
    for name, level in levels.items():
        left.axhline(level, color="0.6", linewidth=0.8, linestyle="--", zorder=1)
        x, side = (0, "left") if level > base["accuracy"] else (1, "right")  # accuracy grows with bytes: these corners are free
        left.annotate(name, (x, level), xycoords=left.get_yaxis_transform(), ha=side, va="bottom", fontsize=SMALL, color="0.4")
    for factor, look in looks.items():
        rows = rest[rest["factor"] == factor]
        if factor == "budget":
            line = frame[frame["factor"].isin([factor, base["factor"]])].sort_values("bytes")
            left.plot(line["bytes"] / 1000, line["accuracy"], color=look["color"], linewidth=0.9, zorder=2)
        dots = {**look, "linestyle": "", "markersize": 4, "zorder": 3}
        left.plot(rows["bytes"] / 1000, rows["accuracy"], label=factor, **dots)
        right.errorbar(rows["difference"], rows.index, xerr=rows["standard_error"], elinewidth=0.8, **dots)
    left.plot(base["bytes"] / 1000, base["accuracy"], "k*", markersize=8, label=base["factor"], zorder=4)
    left.set_xscale("log")
    _plain_ticks(left.xaxis, *left.get_xlim())
    left.set_xlabel("stored for all tasks (kB)", fontsize=FONT)
    left.set_ylabel("accuracy (%)", fontsize=FONT)
    left.legend(fontsize=SMALL, **LEGEND | {"frameon": True, "framealpha": 0.8, "edgecolor": "none"})
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(rest.index, rest["settings"])
    right.invert_yaxis()
    right.set_xlabel(f"accuracy minus that of {base['factor']} (points)", fontsize=FONT)
    for axes in (left, right):
        _plain(axes)
    right.tick_params(axis="y", labelsize=SMALL)
    return figure


def by_epsilon(frame: pd.DataFrame) -> Figure:
    """What compressing all activations does at each epsilon: relative gradient error; step time, bytes held and peak relative to
    the unmodified step. A line for each family of `frame` (columns family, epsilon, error, time, held, formula, peak in MB; the
    first row is the unmodified step); epsilon 1, which keeps the activations themselves, is a point beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTHS["column"], 4.2), layout="constrained")
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
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=2, fontsize=SMALL, **LEGEND)
    return figure


FIGURES: dict[str, Callable[[Leaderboard, Selection], Drawing | None]] = {
    "accuracy_vs_size": accuracy_vs_size,
    "accuracy_vs_memory": accuracy_vs_memory,
    "accuracy_after_each_task": accuracy_after_each_task,
    "forgetting_after_each_task": forgetting_after_each_task,
    "stored_after_each_task": stored_after_each_task,
    "accuracy_of_each_task": accuracy_of_each_task,
    "accuracy_matrices": accuracy_matrices,
    "critical_difference": critical_difference,
    "rank_growth": rank_growth,
}
ON_REQUEST = (
    "forgetting_after_each_task",
    "stored_after_each_task",
    "rank_growth",
)  # a board has at most twelve files of figures
USUAL = tuple(name for name in FIGURES if name not in ON_REQUEST)


def averaged(counts: Collection[int], marks: str = "") -> str:
    """How rows of so many seeds each are averaged. marks: what shows their intervals."""
    if max(counts, default=1) == 1:
        return "one seed, so no intervals" if marks else "one seed"
    mean = f"mean over n = {span(sorted({*counts}))} seeds"
    return f"{mean}; {marks}: {confidence_interval(counts)}" if marks else mean


def _where(board: Leaderboard) -> str:
    return f"on {board.protocol}, tier {board.tier}"


def _of(figure: Figure | None, caption: str) -> Drawing | None:
    return Drawing(figure, caption) if figure else None


# ---- drawing


def style(font: str = "serif") -> AbstractContextManager[None]:
    """While it lasts, text is in this font, dollars in a name begin no formula, and fonts are embedded as outlines: publishers
    refuse the default Type 3 fonts."""
    from matplotlib import rc_context

    return rc_context({"font.family": FONTS[font], "text.parse_math": False, "pdf.fonttype": 42, "axes.linewidth": 0.6})


def render(figure: Figure, title: str, made: str) -> dict[str, bytes]:
    """The figure as {"pdf": ..., "png": ...}, without the date, so that the files depend on their content only.

    title, made: of the files' metadata: what is drawn, and what made the numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if hasattr(text, "set_fontfeatures"):  # matplotlib >= 3.11: the ligature of "fi" would be embedded as a second font
            text.set_fontfeatures(("-liga",))
    _arrange(figure)
    pdf, png = io.BytesIO(), io.BytesIO()
    # The canvases themselves: `savefig` would draw everything twice.
    FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None, "Title": title, "Subject": made})
    figure.set_dpi(300)
    FigureCanvasAgg(figure).print_png(png, metadata={"Title": title, "Description": made})
    return {"pdf": pdf.getvalue(), "png": png.getvalue()}


def _arrange(figure: Figure) -> None:
    """Find the layout, once for all that is drawn afterwards."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine("none")


def _blank(selection: Selection, height: float, width: float | None = None) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width or WIDTHS[selection.fit], height))
    FigureCanvasAgg(figure)
    return figure


def _frame(selection: Selection, height: float) -> tuple[Figure, Axes]:
    figure = _blank(selection, height)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _panels(
    selection: Selection, titles: list[str], characters: int, above: float = 0.03, alike: bool = True
) -> tuple[Figure, list[Axes]]:
    """Small multiples on the same axes, with room for labels of so many characters at the right of each. alike: only the first of
    a row and the last of a column have labels of ticks.

    Placed by arithmetic, since matplotlib's search for a layout takes seconds with many panels."""
    width = WIDTHS[selection.fit]
    label = 0.052 * min(characters, 22) + 0.12 if characters else 0.0
    across = min(len(titles), 1 if len(titles) == 1 else max(1, int((width - 0.45) / (label + 1.05))))
    across = -(-len(titles) // -(-len(titles) // across))  # rows of panels as even as they can be
    down = -(-len(titles) // across)
    left, below = 0.47, 0.38
    gap = (0.12 if alike else 0.4) + label
    panel = (width - left - label - 0.03 - gap * (across - 1)) / across
    tall = 1.9 if len(titles) == 1 else (1.1, 0.95, 0.75)[min(down, 3) - 1]
    title = 0.04 + (LINE if any(titles) else 0.02)
    between = title + (0.06 if alike else 0.2)
    height = above + title + down * tall + (down - 1) * between + below
    figure = _blank(selection, height)
    panels = []
    for place, text in enumerate(titles):
        i, j = divmod(place, across)
        box = (left + j * (panel + gap), height - above - title - (i + 1) * tall - i * between, panel, tall)
        axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        _plain(axes)
        axes.set_title(text, fontsize=FONT, pad=3, loc="left")
        if alike:
            axes.tick_params(labelleft=j == 0, labelbottom=place + across >= len(titles))
        panels.append(axes)
    return figure, panels


def _shared_labels(figure: Figure, panels: list[Axes], below: str, beside: str) -> None:
    boxes = [axes.get_position() for axes in panels]
    middle = (min(box.x0 for box in boxes) + max(box.x1 for box in boxes)) / 2, (boxes[0].y1 + min(box.y0 for box in boxes)) / 2
    width, height = figure.get_size_inches()
    figure.text(middle[0], 0.03 / height, below, fontsize=FONT, ha="center", va="bottom")
    figure.text(0.02 / width, middle[1], beside, fontsize=FONT, ha="left", va="center", rotation=90)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=SMALL, length=2, pad=2)
    axes.grid(color="0.92", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _count_tasks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _plain_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of a log axis as plain numbers, a few of them whatever its range."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
    dense = [*(1 + 0.2 * i for i in range(5)), *(2 + 0.5 * i for i in range(16))]  # 1, 2, 5 would leave one tick or none
    steps = ((2.5, dense), (5, [1, 1.5, 2, 3, 4, 5, 7]), (200, [1, 2, 5]))
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


# ---- labels beside what they name


def _ink(colour: str) -> str:
    """A colour for text, which is thin: a quarter darker."""
    return "#" + "".join(f"{int(0.75 * int(colour[i : i + 2], 16)):02X}" for i in (1, 3, 5))


def _write_at_ends(figure: Figure, axes: Axes, ends: list[tuple[float, float, _Row]]) -> None:
    """Write each row's label at the right of the frame, at the height of its last value, moved apart where they would touch."""
    ends = sorted(ends, key=lambda end: end[1])
    box = axes.get_window_extent()
    line = SMALL * 1.12 * figure.dpi / 72
    wanted = np.array([axes.transData.transform((x, y))[1] for x, y, _ in ends])
    places = _apart(wanted, line, box.y0, box.y1)
    for (x, y, row), place in zip(ends, places, strict=True):
        (x0, y0), x1 = axes.transData.transform((x, y)), box.x1 + 6 * figure.dpi / 72
        corners = axes.transAxes.inverted().transform([(x0, y0), (box.x1, y0), (x1 - 2, place)])
        axes.plot(*corners[[0, 2]].T, transform=axes.transAxes, color=row.look.colour, linewidth=0.4, clip_on=False, zorder=1)
        across, up = axes.transAxes.inverted().transform((x1, place))
        text = axes.text(across, up, textwrap.shorten(row.label, 26, placeholder="…"), ha="left", va="center", fontsize=SMALL)
        text.set(transform=axes.transAxes, color=_ink(row.look.colour))


def _apart(wanted: np.ndarray, step: float, low: float, high: float) -> np.ndarray:
    """Ascending positions moved apart by at least `step`, as little as possible, between low and high if there is room."""
    groups: list[list[float]] = []  # [sum of wanted - offset, members]: blocks of touching labels stand at their mean
    for i, one in enumerate(wanted):
        groups.append([one - i * step, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, members = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + members]
    found = np.concatenate([[total / members] * int(members) for total, members in groups]) + step * np.arange(len(wanted))
    least = low + step / 2 + step * np.arange(len(wanted))
    most = high - step / 2 - step * np.arange(len(wanted))[::-1]
    return np.maximum(np.minimum(found, most), least) if len(wanted) * step < high - low else (least + most) / 2


def _write_beside(figure: Figure, axes: Axes, texts: list[tuple[str, str, np.ndarray]], solid: list[np.ndarray]) -> None:
    """Write each text beside one of its points, where it covers the least, with a line to it from further away.

    texts: text, colour, points; the first is the best. solid: lines and points not to be covered. Not `adjustText`: it moves
    texts at random and imports pyplot; here the same records give the same figure, and no two texts overlap while there is room.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _arrange(figure)  # places are compared in pixels
    point = figure.dpi / 72
    renderer = FigureCanvasAgg(figure).get_renderer()
    spots = [axes.transData.transform(curve) for curve in solid]
    dense = [np.linspace(start, end, 12) for curve in spots for start, end in pairwise(curve)]
    small = np.concatenate([*dense, *spots])
    markers = np.concatenate([axes.transData.transform(points[:1]) for _, _, points in texts])
    taken = np.concatenate([np.hstack([small - point, small + point]), np.hstack([markers - 3 * point, markers + 3 * point])])
    frame = np.array(axes.bbox.extents)
    written = np.empty((0, 4))

    def shared(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Areas (k,) that boxes (k, 4) share with others (m, 4), summed over these."""
        sides = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - np.maximum(boxes[:, None, :2], others[None, :, :2])
        return np.asarray(np.clip(sides, 0, None).prod(axis=2).sum(axis=1))

    angles = np.arange(16) * np.pi / 8
    for text, colour, points in sorted(texts, key=lambda entry: (-len(entry[0]), entry[0])):
        broken, place = text.replace(" [", "\n[").replace(", ", ",\n"), (float(points[0, 0]), float(points[0, 1]))
        drawn = axes.annotate(broken, place, xytext=(0, 0), textcoords="offset points", ha="center", va="center", zorder=6)
        drawn.set(fontsize=SMALL, color=_ink(colour), annotation_clip=False)
        drawn.set_in_layout(False)
        extent = drawn.get_window_extent(renderer)
        half = np.array([extent.width, extent.height]) / 2 + 0.5 * point
        choices = []
        for rank, anchor in enumerate(axes.transData.transform(points)):
            for distance in (5, 9, 15, 24, 36, 50):
                for turn, angle in enumerate(angles):
                    way = np.array([np.cos(angle), np.sin(angle)])
                    gap = float(np.min(half / np.maximum(np.abs(way), 1e-9)))  # from the middle of the box to its edge
                    middle = anchor + way * (distance * point + gap)
                    choices.append((anchor, middle, distance + 4 * (rank > 0) + 0.5 * (turn % 4 != 0)))
        middles = np.array([middle for _, middle, _ in choices])
        boxes = np.hstack([middles - half, middles + half])
        area = 4 * half.prod()
        lines = np.array([np.linspace(anchor, middle, 8)[1:] for anchor, middle, _ in choices])
        dots = np.concatenate([lines - 1, lines + 1], axis=2).reshape(-1, 4)
        crossed = shared(dots, written).reshape(len(choices), -1).sum(axis=1) if len(written) else 0
        cost = (
            np.array([price for *_, price in choices]) * point**2
            + 8 * (area - shared(boxes, frame[None]))
            + 2 * shared(boxes, taken)
            + (50 * shared(boxes, written) + 10 * crossed if len(written) else 0)
        )
        anchor, middle, _ = choices[int(np.argmin(cost))]
        drawn.xyann = tuple((middle - axes.transData.transform(points[0])) / point)
        box = boxes[int(np.argmin(cost))]
        nearest = np.clip(anchor, box[:2], box[2:])
        if np.hypot(*(nearest - anchor)) > 8 * point:
            ends = axes.transAxes.inverted().transform([anchor, nearest])
            axes.plot(*ends.T, transform=axes.transAxes, color=colour, linewidth=0.4, alpha=0.8, zorder=5, clip_on=False)
        written = np.vstack([written, box])
