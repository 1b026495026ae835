"""Figures: what they show, that labels do not cover one another, and that the same records give the same bytes."""

import io
import re

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from records import changed, memory
from records import run as record

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.errors import UserError
from benchsuite.protocol import Published
from benchsuite.record.store import write
from benchsuite.report import figures
from benchsuite.report.looks import looks_of
from benchsuite.report.selection import Row, Selection
from benchsuite.report.write import check_figures, write_report, write_reports


def run(method, seed=1, first=90, last=80, size=1_000_000, tasks=3, **changes):
    """Each task is learned to `first` per cent and kept at `last`."""
    correct = [[None if i > t else first if i == t else last for i in range(tasks)] for t in range(tasks)]
    given = {"macs": [1] * tasks, **memory([2_000_000] * tasks, [3_000_000] * tasks), **changes}
    return record(method, seed, correct, size, **given)


def seeds(method, first=90, last=80, n=3, **changes):
    """Runs of a method that differ a little between seeds, each row in its own way."""
    odd = sum(map(ord, method))
    return [run(method, s, first, last + (odd * s) % 3, **changes) for s in range(1, n + 1)]


MANY = ("er", "agem", "lwf", "ewc", "si", "mas", "hat", "packnet", "cacl", "finetune", "transfer", "individual")


@pytest.fixture(scope="module")
def many():
    return leaderboard([r for i, name in enumerate(MANY) for r in seeds(name, 92, 92 - 3 * i, size=10**6 + 10**5 * (i % 3))])


def texts(figure, *without):
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text.get_text() not in without]


def overlaps(figure, names):
    """Pairs of labels that cover one another, and labels that leave the figure."""
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in texts(figure) if text.get_text() in names}
    assert set(boxes) == set(names)
    pairs = [(a, b) for a in boxes for b in boxes if a < b and boxes[a].overlaps(boxes[b])]
    outside = [a for a, box in boxes.items() if not (figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1)]
    return pairs + outside


@pytest.mark.parametrize("fit", ["column", "page", "two-column"])
@pytest.mark.parametrize("name", ["accuracy_vs_size", "accuracy_vs_memory", "accuracy_after_each_task", "accuracy_of_each_task"])
@pytest.mark.slow
def test_labels_stand_in_the_figure_and_do_not_cover_one_another(name, fit, many):
    labels = [row.label for row in Selection().rows_on(many).values()]
    assert len(labels) == 12
    with figures.style():
        figure = figures.FIGURES[name](many, Selection(fit=fit)).figure
    assert figure.get_figwidth() == figures.WIDTHS[fit]
    assert overlaps(figure, labels) == []
    assert not figure.legends
    first, second = (text for text in texts(figure) if text.get_text() in labels[:2])  # control
    second.set_position(first.get_position())
    second.set_transform(first.get_transform())
    for text in (first, second):
        if hasattr(text, "xyann"):
            text.xy, text.xyann = first.xy, first.xyann
    assert overlaps(figure, labels)


def test_a_row_looks_the_same_in_every_figure_and_without_the_others(many):
    alone = leaderboard(seeds("er", 92, 92))
    look = looks_of(many)["er"]

    def drawn(board, name):
        lines = [line for axes in figures.FIGURES[name](board, Selection()).figure.axes for line in axes.lines]
        return {(line.get_color(), line.get_marker(), line.get_fillstyle()) for line in lines if line.get_label() == "ER"}

    for name in ("accuracy_vs_size", "accuracy_vs_memory", "accuracy_after_each_task", "accuracy_of_each_task"):
        assert drawn(many, name) == drawn(alone, name) == {(look.colour, look.marker, "full")}, name


def test_rows_are_shown_in_the_order_and_by_the_names_of_the_selection(many):
    rows = (Row(name="si", label="Ours"), Row(name="er"))
    figure = figures.accuracy_after_each_task(many, Selection(rows=rows)).figure
    assert [line.get_label() for line in figure.axes[0].lines if line.get_label()[0] != "_"] == ["Ours", "ER"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["Ours", "ER"]  # from the lowest up
    assert len(figure.axes) == 1


def test_many_rows_have_a_frame_for_each_family_with_the_best_of_the_others_in_grey(many):
    drawing = figures.accuracy_after_each_task(many)
    titles = [axes.get_title(loc="left") for axes in drawing.figure.axes]
    assert titles == ["Reference", "Factorised", "Parameter isolation", "Regularisation", "Replay"]  # the same in every figure
    assert len({axes.get_ylim() for axes in drawing.figure.axes}) == 1
    for axes in drawing.figure.axes:
        grey = [line for line in axes.lines if line.get_color() == "0.8"]
        assert len(grey) == len(titles) - 1
    assert drawing.figure.axes[0].lines[len(titles) - 2].get_ydata().tolist() == pytest.approx(
        np.mean([r.R[-1].mean() for r in many.runs["er"]]) + 0 * np.arange(3), abs=4
    )
    assert "grey: the most accurate row of each other family" in drawing.caption
    few = figures.accuracy_after_each_task(leaderboard(seeds("er") + seeds("hat")))  # control
    assert len(few.figure.axes) == 1
    assert "grey" not in few.caption


def test_intervals_are_inside_the_frame():
    wide = [run("er", s, 99, last, size=10**6 + s * 10**5) for s, last in ((1, 99), (2, 40))]
    for name in ("accuracy_vs_size", "accuracy_after_each_task", "accuracy_of_each_task"):
        (axes,) = figures.FIGURES[name](leaderboard([*wide, run("hat")]), Selection()).figure.axes
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        for line in (line for line in axes.lines if line.get_transform() == axes.transData and len(line.get_xdata())):
            assert np.all((line.get_xdata() >= left) & (line.get_xdata() <= right))
            assert np.nanmin(line.get_ydata()) >= low >= -5
            assert np.nanmax(line.get_ydata()) <= high <= 105


def test_rows_of_one_size_stand_side_by_side_and_no_others_move():
    sizes, accuracy = np.array([1.0, 1.0, 1.0, 1.0, 2.0]), np.array([80.0, 80.5, 79.8, 60.0, 80.0])
    factors = figures._fanned(sizes, accuracy, np.full(5, 1.0))
    assert len({*factors[:3]}) == 3
    assert factors[3] == factors[4] == 1
    near = np.array([1.004, 1.0, 1.002])  # fanned, and in the order of their sizes
    assert np.argsort(near * figures._fanned(near, np.array([80.0, 79.9, 80.1]), np.full(3, 1.0))).tolist() == [1, 2, 0]
    assert np.abs(np.log(factors)).max() < 0.05


def test_the_storage_forms_of_a_row_are_a_curve_and_the_front_is_of_the_rows_shown():
    parts = {"heads": 0, "masks": 0, "other": 0}
    sizes = dict(zip(("fp32", "fp16", "int8", "int6", "int4"), (8, 4, 2, 1.5, 1), strict=True))
    forms = {
        name: {"sizes": {"weights": int(10**6 * mb), **parts}, "correct": [80 - i] * 3}
        for i, (name, mb) in enumerate(sizes.items())
    }
    best = run("c", first=95, last=95, size=10**5)
    board = leaderboard([changed(run("a", last=75, size=8 * 10**6), forms=forms), run("b", last=60, size=10**7), best])
    (axes,) = figures.accuracy_vs_size(board, Selection(rows=(Row(name="a"), Row(name="b")))).figure.axes
    assert [8, 4, 2, 1.5, 1] in [line.get_xdata().tolist() for line in axes.lines if line.get_linestyle() == "-"]
    (front,) = [line for line in axes.lines if line.get_linestyle() == "--" and line.get_color() == "0.55"]
    assert front.get_xdata().tolist() == [1, 1.5, 2, 4, 8]
    (axes,) = figures.accuracy_vs_size(board).figure.axes  # control: a row that dominates all leaves no front to draw
    assert not [line for line in axes.lines if line.get_linestyle() == "--" and line.get_color() == "0.55"]


def test_a_method_at_several_widths_is_one_dotted_line():
    wide = [run("a", last=70 + w, size=10**6 * w, settings={"width": float(w)}) for w in (2, 3)]
    board = leaderboard([*wide, run("a", size=10**6, settings={"width": 1.0}), run("b", size=10**7)])
    (axes,) = figures.accuracy_vs_size(board).figure.axes
    assert {text.get_text() for text in axes.texts} == {"a", "a ×2", "a ×1", "b"}
    dotted = [line.get_xdata().tolist() for line in axes.lines if line.get_linestyle() == ":" and len(line.get_xdata()) > 1]
    assert dotted == [[1, 2, 3]]


def test_matrices_show_changes_since_a_task_was_learned_and_name_the_rows_without_any():
    board = leaderboard([*seeds("er", 90, 70), run("hat", 1, 80, 80), run("lwf", tasks=2)])
    drawing = figures.accuracy_matrices(board)
    panels = drawing.figure.axes[1::-1]
    assert [axes.get_title() for axes in panels] == ["ER", "LwF"]
    assert drawing.caption.endswith("Nothing changes by half a point in HAT.")
    change = panels[0].collections[0].get_array()
    mean = np.mean([r.R[2, 0] - r.R[0, 0] for r in board.runs["er"]])
    assert change[2, 0] == pytest.approx(mean)
    assert {text.get_text() for text in panels[1].texts} == {"−10"}
    norm = panels[0].collections[0].norm
    assert norm(0) == 0.5  # white is no change
    assert figures.accuracy_matrices(leaderboard([run("hat", 1, 80, 80)])) is None


def test_differences_that_can_be_told_apart_are_not_joined():
    far = [r for name, last in (("er", 88), ("lwf", 60), ("si", 30)) for r in seeds(name, 90, last, n=5)]
    near = far[:5] + [changed(r, job=changed(r.job, method="agem")) for r in seeds("er", 90, 88, n=5)[::-1]]
    near = [*near, *far[5:]]
    assert figures.critical_difference(leaderboard(far)).caption.count("All rows can be told apart") == 1
    drawing = figures.critical_difference(leaderboard(near))
    bars = [line for line in drawing.figure.axes[0].lines if line.get_linewidth() == 1.6]
    assert len(bars) == 1
    assert "over 5 seeds (1, 2, 3, 4, 5)" in drawing.caption
    names = [text.get_text() for text in drawing.figure.axes[0].texts if "(" in text.get_text()]
    assert sorted(re.sub(r" \(.*", "", name) for name in names) == ["A-GEM", "ER", "LwF", "SI"]
    assert overlaps(drawing.figure, names) == []
    assert figures.critical_difference(leaderboard([r for r in far if r.job.seed == 1])) is None


def test_equal_ranks_stand_side_by_side():
    far = [r for name, last in (("er", 88), ("lwf", 60), ("si", 30)) for r in seeds(name, 90, last, n=5)]
    same = [changed(r, job=changed(r.job, method="agem")) for r in far[:5]]

    def places(runs):
        drawing = figures.critical_difference(leaderboard(runs))
        marks = [line for line in drawing.figure.axes[0].lines if line.get_markersize() == 4 and len(line.get_xdata()) == 1]
        pixels = [drawing.figure.axes[0].transData.transform((line.get_xdata()[0], 0))[0] for line in marks]
        return np.diff(pixels) * 72 / drawing.figure.dpi, drawing

    gaps, drawing = places([*far, *same])
    assert gaps.min() > 4  # points, the width of a marker
    assert {"ER (1.5)", "A-GEM (1.5)"} <= {text.get_text() for text in texts(drawing.figure)}
    assert "equal ones side by side" in drawing.caption
    assert "side by side" not in places(far)[1].caption


def test_a_curve_below_another_one_is_thicker():
    board = leaderboard([run("er"), run("lwf"), run("ewc", first=70, last=60)])
    lines = figures.accuracy_after_each_task(board).figure.axes[0].lines
    widths = {line.get_label(): line.get_linewidth() for line in lines if not line.get_label().startswith("_")}
    assert min(widths.values()) == widths["EWC"]
    assert sorted(widths.values())[1:] == [widths["EWC"], max(widths.values())]
    assert max(widths.values()) == widths["EWC"] + 1


def test_many_tasks_have_a_frame_for_each_family():
    few, crowded = (leaderboard([run("er", tasks=n), run("hat", tasks=n), run("lwf", tasks=n)]) for n in (20, 21))
    assert len(figures.accuracy_of_each_task(few).figure.axes) == 1
    assert len(figures.accuracy_of_each_task(crowded).figure.axes) == 3
    assert len(figures.accuracy_after_each_task(crowded).figure.axes) == 1  # curves can be followed


def test_accuracy_of_each_task_is_by_name_whatever_the_order_of_a_seed():
    correct = [[90, None], [70, 80]]
    one = run("er", 1, tasks=2)
    tasks = [changed(task, name=name) for task, name in zip(one.tasks, ("b", "a"), strict=True)]
    one = changed(one, tasks=tasks, correct=correct)
    two = changed(run("er", 2, tasks=2), tasks=tasks[::-1], correct=correct)
    figure = figures.accuracy_of_each_task(leaderboard([one, two])).figure
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "ER"]
    assert line.get_ydata().tolist() == [75, 75]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["a", "b"]
    same = figures.accuracy_of_each_task(leaderboard([one, changed(two, tasks=tasks)])).figure  # control
    assert [line.get_ydata().tolist() for line in same.axes[0].lines if line.get_label() == "ER"] == [[80, 70]]


def test_ranks_of_banks_and_of_single_networks_are_drawn_on_request():
    bank = {"ranks": {"conv1": [[3], [5]], "conv2": [[4], [4]]}}
    tucker = {"ranks": {"conv1": [[3, 2], [8, 6]]}}
    runs = [run("a", s, tasks=2, diagnostics=bank) for s in (1, 2)] + [run("b", tasks=2, diagnostics=tucker), run("c", tasks=2)]
    figure = figures.rank_growth(leaderboard(runs)).figure
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"conv1", "conv2"}
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["A", "B, output", "B, input"] or len(figure.axes) == 3
    assert figures.rank_growth(leaderboard([run("c")])) is None
    assert "rank_growth" not in figures.USUAL
    assert 2 * len(figures.USUAL) <= 12, "files of figures that nobody asked for"
    assert len(figures.USUAL) <= 12
    for wrong in ({"conv1": [[1]]}, {"conv1": "full"}, [], 3, {"conv1": [[1, 2, 3]] * 2}, {"conv1": [[1], [1, 2]]}):
        with pytest.raises(ValueError, match="ranks"):
            run("c", tasks=2, diagnostics={"ranks": wrong})


@pytest.mark.slow
def test_text_is_of_three_sizes_and_provenance_is_in_the_metadata_and_not_on_the_plot(many):
    for name in figures.USUAL:
        with figures.style("sans"):
            drawing = figures.FIGURES[name](many, Selection(font="sans"))
            files = figures.render(drawing.figure, drawing.caption, many.provenance)
        words = texts(drawing.figure)
        assert {text.get_fontsize() for text in words} <= {figures.FONT, figures.SMALL, figures.TINY}
        assert {*words[0].get_fontfamily()} == {"DejaVu Sans"}
        assert not [text for text in words if "torch" in text.get_text() or "Model X" in text.get_text()]
        assert Image.open(io.BytesIO(files["png"])).text["Description"] == many.provenance
        assert b"/Subject" in files["pdf"]
        assert b"/Type3" not in files["pdf"]


def test_the_same_records_give_the_same_bytes(many):
    def drawn():
        with figures.style():
            return figures.render(figures.accuracy_vs_size(many).figure, "a", "b")

    assert drawn() == drawn()


def test_captions_say_what_is_averaged_and_what_bars_are():
    several = figures.accuracy_vs_size(leaderboard([*seeds("er", n=2), run("hat")])).caption
    assert "mean over n = 1 to 2 seeds; bars: 95 % confidence interval (Student's t; with two seeds 12.7 standard err" in several
    one = figures.accuracy_vs_size(leaderboard([run("er"), run("hat"), run("lwf"), run("si", tasks=2)])).caption
    assert "without SI (other tasks or images); one seed, so no intervals." in one


def test_stored_sizes_and_forgetting_over_tasks():
    one = run("er")
    sizes = [{"weights": n, "heads": 0, "masks": 0, "other": 0} for n in (10**6, 2 * 10**6)]
    one = changed(one, stored=[*sizes, one.stored[-1]])
    line = figures.stored_after_each_task(leaderboard([one])).figure.axes[0].lines[0]
    assert line.get_ydata().tolist() == [1, 2, 1]
    line = figures.forgetting_after_each_task(leaderboard([one])).figure.axes[0].lines[0]
    assert line.get_ydata()[1:].tolist() == [10, 10]
    assert figures.forgetting_after_each_task(leaderboard([run("a", tasks=1)])) is None
    gained = figures.forgetting_after_each_task(leaderboard([run("a", first=60, last=95)])).figure.axes[0]
    assert gained.get_ylim()[0] < np.nanmin(gained.lines[0].get_ydata()) < -2


def test_one_run_of_one_task_and_published_figures_can_be_drawn(tmp_path):
    published = [Published(method="HAT", accuracy=76.96, megabytes=30), Published(method="ACL", megabytes=8.5)]
    single = [run("a", tasks=1, tier="paper", method_source="ab/cd")]
    names = {path.name for path in write_report(leaderboard(single, published), tmp_path) if path.suffix == ".png"}
    assert names == {"accuracy_vs_size.png", "accuracy_vs_memory.png", "accuracy_after_each_task.png"}


def test_a_figure_that_nobody_can_draw_is_refused_by_name():
    check_figures(figures.FIGURES)
    with pytest.raises(UserError, match="no figure is called 'accuracy_vs_sise'; did you mean 'accuracy_vs_size'"):
        check_figures(["accuracy_vs_sise"])


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_labels_are_moved_apart_as_little_as_possible(count):
    wanted = np.sort(np.random.default_rng(count).uniform(0, 100, count))
    found = figures._apart(wanted, 10, 0, 100)
    assert np.all(np.diff(found) > 10 - 1e-9)
    if count <= 5:
        assert found[0] >= 5 - 1e-9
        assert found[-1] <= 95 + 1e-9
    assert figures._apart(np.array([20.0, 60.0]), 10, 0, 100).tolist() == [20, 60]


@pytest.mark.slow
def test_ranks_over_protocols_are_drawn_beside_the_summary(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "render", lambda figure, *words: drawn.append((figure, *words)) or {"pdf": b"", "png": b""})
    for protocol in ("split-digits", "rotated-digits"):
        for i, method in enumerate(("er", "hat", "mine")):
            one = run(method, 1, 90, 80 - 9 * i, label="Ours++" if method == "mine" else "")
            one = changed(
                one, job=changed(one.job, protocol=protocol, **({"method_source": "f" * 64} if method == "mine" else {}))
            )
            write(one, tmp_path / "runs" / one.job.folder / "record.json")
    chosen = Selection(figures=("critical_difference",))
    files = {path.name for path in write_reports(tmp_path / "runs", tmp_path / "paper", {}, chosen)}
    assert {"critical_difference.pdf", "critical_difference.png"} <= files
    (figure, caption, made) = drawn[-1]
    assert "over 2 boards (rotated-digits/lite, split-digits/lite)" in caption
    assert made.count("tier lite") == 2
    assert {"ER (1.0)", "HAT (2.0)", "Ours++ (3.0)"} <= {text.get_text() for text in texts(figure)}
    assert "critical_difference" in (tmp_path / "paper" / "report.tex").read_text()
    before = len(drawn)
    write_reports(
        tmp_path / "runs", tmp_path / "one", {}, Selection(figures=("critical_difference",), protocols=("split-digits",))
    )
    assert len(drawn) == before  # control: of one protocol with one seed nothing can be tested
