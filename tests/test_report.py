import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from benchsuite.errors import UserError
from benchsuite.leaderboard import Published, leaderboard, series
from benchsuite.records import Job, RunRecord
from benchsuite.report import figures, tables, write_report

ENVIRONMENT = {
    "device": "cpu",
    "device_name": "Model X",
    "versions": {"torch": "2.6.0", "avalanche-lib": "0.6.0", "benchsuite": "0.1.0"},
    "source": {"revision": "abcdef0123", "dirty": False},
    "date": "2026-01-02T03:04:05+00:00",
}


def run(method, seed=1, first=90, last=80, size=1_000_000, tier="lite", tasks=2, **changes):
    """Each task is learned to `first` per cent and kept at `last`; `first` None: only the end was measured."""
    correct = [
        [None if i > t or (first is None and t < tasks - 1) else first if i == t and first else last for i in range(tasks)]
        for t in range(tasks)
    ]
    return RunRecord(
        job=Job(protocol="split_x", tier=tier, method=method, seed=seed, precision="fp32", **{"settings": {}, **changes}),
        tasks=[{"name": f"task {i}", "test": 100} for i in range(tasks)],
        correct=correct,
        stored=[None] * (tasks - 1) + [{"weights": size - 1000, "heads": 1000, "masks": 0, "other": 0}],
        macs=[2_500_000] * tasks,
        iterations=[1] * tasks,
        training_state_bytes=4_000_000,
        activation_bytes=1,
        memory={"held": [2_000_000] * tasks, "peak": [3_000_000] * tasks},
        seconds={"train": [1.0] * tasks, "evaluate": [1.0] * tasks},
        data=[],
        environment=ENVIRONMENT,
    )


def records(tasks=2, tier="lite"):
    return [
        run("fine_tune", 1, 90, 70, tasks=tasks, tier=tier),
        run("fine_tune", 2, 92, 71, tasks=tasks, tier=tier),
        *(run("individual", s, 93, 93, 2_000_000, tasks=tasks, tier=tier) for s in (1, 2)),
        run("joint", 1, None, 95, tasks=tasks, tier=tier),
    ]


DRAWN = [record for record in records(tasks=3) if record.job.method != "individual"]


def test_markdown():
    board = leaderboard(records())
    assert (
        tables.to_markdown(board, "accuracy")
        == """\
## Accuracy

| Method | Accuracy (%) | Learning accuracy (%) | Forward gain | n |
| --- | ---: | ---: | ---: | ---: |
| joint | 95.00 | n/a: trains all tasks at once | n/a: trains all tasks at once | 1 |
| individual | 93.00 ± 0.00 | 93.00 ± 0.00 | 0.00 ± 0.00 | 2 |
| fine_tune | 80.75 ± 9.53 | 91.00 ± 12.71 | -2.00 ± 12.71 | 2 |

split_x, tier lite; seeds: 1, 2; tasks: 2; cpu (Model X); fp32; torch 2.6.0, avalanche-lib 0.6.0, benchsuite 0.1.0; \
revision abcdef0; 2026-01-02
"""
    )
    text = tables.to_markdown(board, "parameter_efficiency")
    assert (
        "| fine_tune | 1.00 | 0.999 | 0.001 | 0 | 0 | 0.500 | 2.00 | – | 2.50 | – | 4.00 | 80.75 ± 9.53 | yes | 2 |" in text
    )  # joint, which sees all tasks at once, is no rival


def test_markdown_cells_cannot_break_the_table():
    assert r"| a\|b | 85.00 |" in tables.to_markdown(leaderboard([run("a|b")]), "accuracy")


def test_csv_reads_back_equal():
    published = [Published(method="HAT", accuracy=76.96, bwt=0.01, megabytes=1 / 3)]
    for board in (leaderboard(records()), leaderboard(records(tier="paper"), published)):
        for kind in tables.TITLES:
            frame = getattr(board, kind)
            text = tables.to_csv(board, kind)
            assert "±" not in text
            back = pd.read_csv(io.StringIO(text))
            for name in ("protocol", "tier", "provenance"):  # every row says where it is from
                assert set(back.pop(name)) == {getattr(board, name)}
            notes = [name for name in frame if name.endswith("_note")]  # a column of blanks has no type to read back
            pd.testing.assert_frame_equal(back.drop(columns=notes), frame.drop(columns=notes), rtol=1e-15)
            assert all(back[name].dropna().tolist() == frame[name].dropna().tolist() for name in notes)


def test_latex():
    board = leaderboard([*records(), run("a&b 100%", last=1)])
    text = tables.to_latex(board, "accuracy")
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{", r"\label{"))
    assert r"fine\_tune & 80.75 $\pm$ 9.53" in text
    assert r"a\&b 100\% &" in text
    assert r"joint & \textbf{95.00}" in text
    assert text.count(r"\textbf") == 3
    assert r"\par\footnotesize split\_x, tier lite; seeds: 1, 2" in text
    assert text.rstrip().endswith(r"\end{table}")


def test_bold_is_what_reads_as_the_best():
    close = [run("a", size=1_000_000), run("b", size=1_000_400), run("c", size=1_100_000)]
    text = tables.to_latex(leaderboard(close), "parameter_efficiency")
    assert [r"\textbf{1.00}" in line for line in text.splitlines() if line[:4] in ("a & ", "b & ", "c & ")] == [True, True, False]


def test_no_column_is_cut_off_on_a_narrow_screen():
    stream = io.StringIO()
    tables.print_boards(leaderboard(records()), Console(file=stream, width=40))
    tables_only = [line for line in stream.getvalue().splitlines() if line.startswith(("│", "┃"))]
    assert all(line.endswith(("│", "┃")) for line in tables_only)


def test_the_screen_shows_brackets_and_the_tier():
    stream = io.StringIO()
    changed = [run("a", method_source="abc1234"), run("a", 2)]
    tables.print_boards(leaderboard(changed), Console(file=stream, width=120))
    text = stream.getvalue()
    assert "a [file abc1234]" in text
    assert text.count("tier lite") == len(tables.TITLES)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    before = dict(matplotlib.rcParams)
    files = write_report(leaderboard(DRAWN), DRAWN, folder / "new")
    assert dict(matplotlib.rcParams) == before
    return files


def test_report_writes_every_file(report):
    figures = ["accuracy_vs_size", "accuracy_vs_memory", "accuracy_after_each_task"]
    figures += [f"accuracy_matrix_{method}" for method in ("fine_tune", "joint")]
    expected = {f"{name}.{suffix}" for name in figures for suffix in ("pdf", "png")}
    expected |= {f"{kind}.{suffix}" for kind in tables.TITLES for suffix in ("md", "csv", "tex")} | {"leaderboard.md"}
    assert {path.name for path in report} == expected
    assert {path.name for path in report[0].parent.iterdir()} == expected
    page = (report[0].parent / "leaderboard.md").read_text()
    assert page.count("tier lite; seeds") == len(tables.TITLES)
    assert all(f"({name}.png)" in page for name in figures)


def test_figures_are_drawn(report):
    from matplotlib.image import imread

    for path in report:
        if path.suffix == ".png":
            pixels = imread(path)
            assert pixels.shape[1] == 1050  # 3.5 inches at 300 dpi
            assert len(np.unique(pixels[:, :, 0])) > 20  # not a blank page
        if path.suffix == ".pdf":
            assert path.stat().st_size > 5000
            assert b"CreationDate" not in path.read_bytes()


def test_same_records_in_any_order_give_the_same_bytes(report, tmp_path):
    for path in write_report(leaderboard(DRAWN[::-1]), DRAWN[::-1], tmp_path):
        assert path.read_bytes() == (report[0].parent / path.name).read_bytes(), path.name


def test_one_run_of_one_task_and_published_figures_can_be_drawn(tmp_path):
    published = [Published(method="HAT", accuracy=76.96, megabytes=30), Published(method="ACL", megabytes=8.5)]
    single = [run("a", tasks=1, tier="paper", method_source="ab/cd")]
    files = write_report(leaderboard(single, published), single, tmp_path)
    assert tmp_path / "accuracy_matrix_a.png" in files


def test_a_method_at_several_widths_is_one_line(tmp_path):
    wide = [run("a", last=70 + w, size=10**6 * w, settings={"width": w}) for w in (2, 3)]
    board = leaderboard([*wide, run("a", size=10**6), run("b", size=10**7)])
    (axes,) = figures.accuracy_vs_size(board).axes
    assert {text.get_text() for text in axes.texts} == {"a", "×1", "×2", "b"}
    coloured = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    assert [line.get_xdata().tolist() for line in coloured] == [[1, 2, 3]]
    assert list(board.parameter_efficiency["width"]) == [1, 2, 3, 1]


def test_many_methods_have_a_legend_and_no_bands():
    many = [run(f"m{i}", seed, last=60 + i + seed) for i in range(figures.FEW + 1) for seed in (1, 2)]
    for runs, few in ((many, False), (many[2:], True)):
        groups = {name: [r for r in runs if r.job.method == name] for name in dict.fromkeys(r.job.method for r in runs)}
        figure = figures.accuracy_vs_size(leaderboard(runs))
        assert {text.get_text() for text in figure.axes[0].texts} == (set(groups) if few else set())
        assert bool(figure.legends) is not few
        if not few:
            assert {text.get_text() for text in figure.legends[0].get_texts()} == set(groups)
        assert bool(figures.accuracy_after_each_task(groups, "").axes[0].collections) is few


def test_the_width_is_taken_from_a_label():
    assert series("a [width=0.5]") == "a"
    assert series("a [lr=0.1, width=0.5]") == series("a [width=2, lr=0.1]") == "a [lr=0.1]"
    assert series("a [lr=0.1, width=0.5, file x]") == "a [lr=0.1, file x]"
    assert series("b") == "b"


def test_runs_of_fewer_tasks_are_drawn_apart(tmp_path):
    mixed = [run("a", 1, tasks=3), run("a", 2, tasks=2)]
    files = write_report(leaderboard(mixed), mixed, tmp_path)
    assert {tmp_path / f"accuracy_matrix_a-tasks={n}.png" for n in (2, 3)} <= {*files}


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        write_report(leaderboard([run("a")]), [run("a")], tmp_path / "file" / "report")
