import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from records import changed, record_of
from rich.console import Console

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.analysis.notes import Note, named
from benchsuite.analysis.rows import series
from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.protocol import Published
from benchsuite.record.schema import Job
from benchsuite.record.store import write
from benchsuite.report import figures, latex, tables
from benchsuite.report.selection import Selection
from benchsuite.report.write import compile_document, write_report, write_reports


def run(method, seed=1, first=90, last=80, size=1_000_000, tier="lite", tasks=2, diagnostics=None, **changes):
    """Each task is learned to `first` per cent and kept at `last`; `first` None: only the end was measured."""
    correct = [
        [None if i > t or (first is None and t < tasks - 1) else first if i == t and first else last for i in range(tasks)]
        for t in range(tasks)
    ]
    return record_of(
        job=Job(protocol="split_x", tier=tier, method=method, seed=seed, precision="fp32", **{"settings": {}, **changes}),
        tasks=[{"name": f"task {i}", "test": 100} for i in range(tasks)],
        correct=correct,
        stored=[None] * (tasks - 1) + [{"weights": size - 1000, "heads": 1000, "masks": 0, "other": 0}],
        macs=[2_500_000] * tasks,
        training_state_bytes=4_000_000,
        size_reference=method == "individual",
        memory={"held": [2_000_000] * tasks, "peak": [3_000_000] * tasks},
        seconds={"train": [2.0] * tasks, "evaluate": [1.0] * tasks},
        diagnostics=diagnostics or {},
    )


def records(tasks=2, tier="lite"):
    return [
        run("fine_tune", 1, 90, 70, tasks=tasks, tier=tier),
        run("fine_tune", 2, 92, 71, tasks=tasks, tier=tier),
        *(run("individual", s, 93, 93, 2_000_000, tasks=tasks, tier=tier) for s in (1, 2)),
        run("joint", 1, None, 95, tasks=tasks, tier=tier),
    ]


DRAWN = [record for record in records(tasks=3) if record.job.method != "individual"]


def latex_of(board, kind, **selection):
    """The float with its tabular in it."""
    tabular, floating = latex.board_table(board, kind, Selection(**selection))
    return latex.with_tabular(floating, tabular)


def test_markdown():
    board = leaderboard(records())
    assert (
        tables.to_markdown(board, "accuracy")
        == """\
## Accuracy

| Method | Accuracy (%) | Anytime accuracy (%) | Learning accuracy (%) | Forward gain (pp) | n |
| --- | ---: | ---: | ---: | ---: | ---: |
| joint | 95.00 | n/a | n/a | n/a | 1 |
| individual | **93.00 ± 0.00** | **93.00 ± 0.00** | **93.00 ± 0.00** | **0.00 ± 0.00** | 2 |
| fine_tune | <ins>80.75 ± 9.53</ins> | <ins>85.88 ± 11.12</ins> | <ins>91.00 ± 12.71</ins> | <ins>-2.00 ± 12.71</ins> | 2 |

Accuracy on split_x, tier lite: mean ± 95 % confidence interval (Student's t; with two seeds 12.7 standard errors) \
over n = 1 to 2 seeds. Accuracy: mean over all tasks after the last one. Anytime accuracy: mean over t of the accuracy on the \
t tasks learned so far. Learning accuracy: mean over tasks, each measured right after it was learned. Forward gain: \
learning accuracy minus that of a separate network per task, from the second task on. \
Not ranked: joint training. Bold: best; underlined: second best, by the printed numbers. \
† not significantly different from the best (p > 0.05), which does not mean equal: \
moderated t-test of differences paired by seed, 2 shared seeds, Holm's correction over all pairs of these rows (those \
with a reference apart).

split_x, tier lite; seeds: 1, 2; tasks: 2; cpu (Model X); fp32; torch 2.6.0, avalanche-lib 0.6.0, benchsuite 0.1.0; \
revision abcdef0; 2026-01-02

- n/a: joint training (joint)
- nothing to tune: fine_tune, individual, joint
- Of †: in simulations with a size reference the chance of any error in a column was at most 5.5 % with normal noise; \
with skewed noise and rows that vary unequally it was up to 12 % at five seeds and 20 % at ten.
"""
    )
    text = tables.to_markdown(board, "parameter_efficiency")
    assert (
        "| fine_tune | **1.00** | 0.999 | 0.001 | 0 | 0 | **0.500** | **2.00** | – | **2.50** | – | 4.00 "
        "| <ins>80.75 ± 9.53</ins> | yes | 2 |" in text
    )  # joint, which sees all tasks at once, is no rival


def test_markdown_cells_cannot_break_the_table():
    assert r"| a\|b | 85.00 |" in tables.to_markdown(leaderboard([run("a|b")]), "accuracy")


HOSTILE = {  # text: in Markdown, in LaTeX
    "<img src=x onerror=alert(1)>": ("&lt;img src=x onerror=alert(1)>", "$<$img src=x onerror=alert(1)$>$"),
    "</td><script>": ("&lt;/td>&lt;script>", "$<$/td$>$$<$script$>$"),
    "[a](javascript:b)": (r"\[a\](javascript:b)", "{[}a](javascript:b)"),
    "![a](http://b)": (r"![a\](http://b)", "![a](http://b)"),
    "[a]: http://b": (r"\[a]: http://b", "{[}a]: http://b"),
    "# Best": (r"\# Best", r"\# Best"),
    "- one": (r"\- one", "- one"),
    "1. one": (r"1\. one", "1. one"),
    "> one": (r"\> one", "$>$ one"),
    "**one** _two_ ~~three~~": (r"\*\*one\*\* \_two\_ \~~three\~~", None),
    r"a\|b": (r"a\\\|b", r"a\textbackslash{}\textbar{}b"),
    r"\input{/etc/passwd}": (r"\\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
    "*[1cm]": (r"\*[1cm]", "{*}[1cm]"),
    "«Ðð»": ("«Ðð»", "''??''"),
}
PLAIN = ["-3.20 ± 0.10", "<0.001", "cacl+hosvd [width=0.5]", "batch_size=16", "`benchsuite tune`: 100 images", "p > 0.05", "–"]


def test_text_is_text_in_markdown_and_latex():
    for text, (markdown, printed) in HOSTILE.items():
        assert tables.markdown_text(text) == markdown
        assert printed is None or latex.latex_text(text) == printed
    assert [tables.markdown_text(text) for text in PLAIN] == PLAIN  # control: what boards say is left as it is


def test_what_a_record_says_forges_nothing_on_a_board():
    text = "<script>alert(1)</script> [a](http://b) **best**"
    origin = {"epochs": text}
    board = leaderboard([run("# ewc*"), run("lwf", settings={"epochs": 1}, origins=origin)])
    for kind in tables.TITLES:
        found = tables.to_markdown(board, kind)
        assert text in "".join(board.footnotes)
        assert [bad for bad in ("<script", "</script", " [a](http", " **best**", "| # ewc") if bad in found] == []
        assert r"| \# ewc\* |" in found
    odd = leaderboard([changed(run("ewc"), job=changed(run("ewc").job, protocol="a}b%c", tier="x_y"))])
    assert r"\label{tab:accuracy-a-b-c-x_y}" in latex_of(odd, "accuracy")


def test_no_cell_of_a_csv_is_a_formula():
    frame = pd.DataFrame({"text": ["=1+1", "@SUM(A1)", "+cmd|x", "-2+3", "=5", "ewc", "", None], "number": [-3.2] * 8})
    texts = ["'=1+1", "'@SUM(A1)", "'+cmd|x", "'-2+3", "'=5", "ewc", "", ""]
    lines = tables.csv(frame).splitlines()[1:]
    assert [line.split(",") for line in lines] == [[text or "", "-3.2"] for text in texts]
    numbers = pd.DataFrame({"text": ["-3.2", "+1", "-.5", "-1e-7"]})  # control
    assert tables.csv(numbers).splitlines()[1:] == list(numbers["text"])


@pytest.mark.slow
def test_dollars_in_a_name_are_drawn_as_they_are(tmp_path):
    board = leaderboard([run("$a_{$"), run(r"a$b$"), run("ewc")])
    assert (tmp_path / "accuracy_vs_size.png") in write_report(board, tmp_path)


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
            again = pd.read_parquet(io.BytesIO(tables.parquet(tables.numbers(board, kind))))
            assert set(again.pop("provenance")) == {board.provenance}
            pd.testing.assert_frame_equal(
                again.drop(columns=[*notes, "protocol", "tier"]), frame.drop(columns=notes), check_exact=True
            )
            assert all(back[name].dropna().tolist() == frame[name].dropna().tolist() for name in notes)


def test_bold_is_what_reads_as_the_best():
    close = [run("a", size=1_000_000), run("b", size=1_000_400), run("c", size=1_100_000)]
    text = latex_of(leaderboard(close), "parameter_efficiency")
    assert [r"\textbf{1.00}" in line for line in text.splitlines() if line[:4] in ("a & ", "b & ", "c & ")] == [True, True, False]


def test_no_column_is_cut_off_on_a_narrow_screen():
    stream = io.StringIO()
    tables.print_boards(leaderboard(records()), Console(file=stream, width=40))
    tables_only = [line for line in stream.getvalue().splitlines() if line.startswith(("│", "┃"))]
    assert all(line.endswith(("│", "┃")) for line in tables_only)


def test_the_screen_shows_brackets_and_the_tier():
    stream = io.StringIO()
    pair = [run("a", method_source="abc1234"), run("a", 2)]
    tables.print_boards(leaderboard(pair), Console(file=stream, width=120))
    text = stream.getvalue()
    assert "a [file abc1234]" in text
    assert text.count("split_x, tier lite: ") == len(tables.TITLES)  # below every table
    assert text.count("split_x, tier lite; ") == 1  # the provenance
    assert "one seed, so no intervals" in text


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    before = dict(matplotlib.rcParams)
    files = write_report(leaderboard(DRAWN), folder / "new")
    assert dict(matplotlib.rcParams) == before
    return files


def test_report_writes_every_file(report):
    figures = ["accuracy_vs_size", "accuracy_vs_memory", "accuracy_after_each_task", "accuracy_of_each_task"]
    figures += ["accuracy_matrices"]
    expected = {f"{name}.{suffix}" for name in figures for suffix in ("pdf", "png")} | {"leaderboard.md", "report.tex"}
    expected |= {f"{kind}{end}" for kind in tables.TITLES for end in (".md", ".csv", ".parquet", ".tex", "_tabular.tex")}
    assert {path.name for path in report} == expected
    assert {path.name for path in report[0].parent.iterdir()} == expected
    page = (report[0].parent / "leaderboard.md").read_text()
    assert page.count("tier lite; seeds") == len(tables.TITLES)
    assert all(f"({name}.png)" in page for name in figures)


@pytest.mark.slow
def test_a_figure_that_is_not_drawn_again_goes(tmp_path, undrawn):
    write_report(leaderboard(DRAWN), tmp_path)
    assert (tmp_path / "accuracy_vs_memory.pdf").exists()
    write_report(leaderboard([changed(record, memory={}) for record in DRAWN]), tmp_path)
    assert not (tmp_path / "accuracy_vs_memory.pdf").exists()
    assert "accuracy_vs_memory" not in (tmp_path / "leaderboard.md").read_text()


def test_figures_are_drawn(report):
    from matplotlib.image import imread

    for path in report:
        if path.suffix == ".png":
            pixels = imread(path)
            assert pixels.shape[1] <= 1431  # 4.77 inches at 300 dpi
            assert len(np.unique(pixels[:, :, 0])) > 20  # not a blank page
        if path.suffix == ".pdf":
            assert path.stat().st_size > 5000
            assert b"CreationDate" not in path.read_bytes()
            assert b"/Subtype /Image" not in path.read_bytes()  # lines and areas, at any size
            kinds = fonts(path.read_bytes())
            assert set(kinds) <= {"/TrueType", "/CIDFontType2"}  # the second is what newer matplotlib makes of TrueType fonts
            assert set(kinds.values()) == {True}
            (box,) = re.findall(rb"/MediaBox \[ 0 0 ([0-9.]+) ", path.read_bytes())
            assert float(box) <= 4.77 * 72 + 1e-6


def fonts(pdf):
    """The kinds of simple fonts of a PDF, and whether every one of a kind is embedded."""
    kinds = {}
    for part in re.findall(rb"<<(?:(?!endobj).)*?/Type /Font\b(?:(?!endobj).)*?endobj", pdf, re.DOTALL):
        (kind,) = re.findall(rb"/Subtype (/[A-Za-z0-9]+)", part)
        descriptor = re.search(rb"/FontDescriptor (\d+) 0 R", part)
        described = descriptor and re.search(rb"\b%s 0 obj(?:(?!endobj).)*" % descriptor[1], pdf, re.DOTALL)
        embedded = bool(described and b"/FontFile" in described[0])
        if kind != b"/Type0":  # which only names a CIDFont
            kinds[kind.decode()] = kinds.get(kind.decode(), True) and embedded
    return kinds


def test_the_checks_of_figures_see_type_3_and_pixels():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, file = Figure(), io.BytesIO()
    FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, "text")
    figure.add_subplot().imshow([[1]])
    figure.savefig(file, format="pdf")  # as matplotlib does without being told
    assert "/Type3" in fonts(file.getvalue())
    assert b"/Subtype /Image" in file.getvalue()


@pytest.mark.slow
def test_same_records_in_any_order_give_the_same_bytes(report, tmp_path):
    for path in write_report(leaderboard(DRAWN[::-1]), tmp_path):
        assert path.read_bytes() == (report[0].parent / path.name).read_bytes(), path.name


def test_what_an_older_record_does_not_say_is_a_dash():
    board = leaderboard([changed(run("a", tasks=1), memory={})])
    assert "| a | – | – | 4.00 | 90.00 |" in tables.to_markdown(board, "training_memory")


def test_the_width_is_taken_from_a_label():
    assert series("a [width=0.5]") == "a"
    assert series("a [lr=0.1, width=0.5]") == series("a [width=2, lr=0.1]") == "a [lr=0.1]"
    assert series("a [lr=0.1, width=0.5, file x]") == "a [lr=0.1, file x]"
    assert series("b") == "b"


def test_without_figures_only_tables_are_written_and_no_older_figure_stays(tmp_path, undrawn, monkeypatch):
    board = leaderboard([run("a"), run("b", diagnostics={"ranks": {"conv1": [[3], [5]]}})])
    drawn = {path for path in write_report(board, tmp_path) if path.suffix in (".pdf", ".png")}
    assert {path.name for path in drawn} >= {"accuracy_matrices.pdf", "accuracy_vs_size.png"}
    assert all(path.exists() for path in drawn)
    monkeypatch.setattr(figures, "render", None)
    files = write_report(board, tmp_path, figures=False)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
    assert not drawn & {*files}
    for name in ("leaderboard.md", "report.tex"):
        assert not re.search(r"Figures|\.pdf|\.png", (tmp_path / name).read_text()), name


def test_unwritable_folder(tmp_path, undrawn):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        write_report(leaderboard([run("a")]), tmp_path / "file" / "report")


def seeds(method, *accuracies, **changes):
    return [run(method, seed, last, last, **changes) for seed, last in enumerate(accuracies, 1)]


def five():
    """Over five seeds `close` cannot be told from `best`; `far` can, and `bound`, which differs by almost the same each time."""
    return [
        *seeds("best", 90, 82, 91, 85, 88),
        *seeds("close", 87, 84, 90, 83, 89),
        *seeds("bound", 84, 77, 85, 79, 82),
        *seeds("far", 40, 42, 41, 40, 43),
    ]


def test_a_dagger_stands_at_what_the_seeds_cannot_tell_from_the_best():
    board = leaderboard(five())
    rows = [line.split(" | ") for line in tables.to_markdown(board, "accuracy").splitlines() if line.startswith("| ")]
    marked = {row[0]: "†" in row[1] for row in rows}
    assert [marked[f"| {name}"] for name in ("best", "close", "bound", "far")] == [False, True, False, False]
    text = latex_of(board, "accuracy")
    assert re.search(r"close & \\underline\{\\smash\{86.60\}\}\$\\pm\$\S+\$\^\\dagger\$ &", text)
    assert r"$^\dagger$ not significantly different from the best (p $>$ 0.05), which does not mean equal: moderated" in text
    assert "paired by seed, 5 shared seeds, Holm's correction over all pairs of these rows" in text
    chosen = leaderboard(five(), compare=["close", "far"])
    assert "† not significantly different from the best of close, far (p > 0.05)" in tables.caption(chosen, "accuracy")
    # Control: with the seeds of one row in another order `bound` is no longer bound to the best.
    loose = [*five()[:10], *seeds("bound", 77, 85, 79, 84, 82), *five()[15:]]
    assert any("bound" in line and "†" in line for line in tables.to_markdown(leaderboard(loose), "accuracy").splitlines())


def test_no_dagger_stands_where_nothing_can_be_said():
    text = tables.to_markdown(leaderboard([record for record in five() if record.job.seed == 1]), "accuracy")
    assert "†" not in text
    assert "one seed, so no intervals or tests" in text
    apart = leaderboard([run("a", 1), run("a", 2), run("b", 3), run("b", 4)])
    assert "No difference can be tested without two seeds shared with the best.\n" in tables.to_markdown(apart, "accuracy")
    mixed = tables.to_markdown(leaderboard([*five(), run("new", 1, 85, 85)]), "accuracy")
    assert "No difference can be tested without two seeds shared with the best: new." in mixed
    assert "†" not in next(line for line in mixed.splitlines() if line.startswith("| new"))


def test_rows_on_other_tasks_have_no_marks_and_are_named():
    board = leaderboard(
        [run("a"), run("b", last=70), run("c", last=99, tasks=1, settings={"tasks": 1}), run("joint", 1, None, 95)]
    )
    text = tables.to_markdown(board, "accuracy")
    assert "| a | **85.00** |" in text
    assert "| c | 90.00 |" in text
    assert "Not ranked: joint training; rows on other tasks or images (c). Bold: best" in text
    alone = tables.caption(leaderboard([run("a"), run("c", tasks=1)]), "accuracy")
    assert alone.endswith("Not ranked: rows on other tasks or images (c).")
    assert "Not ranked" not in tables.caption(leaderboard([run("a"), run("c")]), "accuracy")  # control


def test_best_and_second_are_what_is_printed():
    close = [run("a", size=1_000_000), run("b", size=1_000_400), run("c", size=1_100_000), run("d", size=1_100_100)]
    rows = {line[:4]: line for line in latex_of(leaderboard(close), "parameter_efficiency").splitlines()}
    rows = {name: rows[f"{name} & "] for name in "abcd"}
    assert [r"\textbf{1.00}" in rows[name] for name in "abcd"] == [True, True, False, False]
    assert [r"\underline{\smash{1.10}}" in rows[name] for name in "abcd"] == [False, False, True, True]
    alone = latex_of(leaderboard([run("a")]), "parameter_efficiency")
    assert "textbf" not in alone  # the best of one is no news
    paper = leaderboard([run("a", tier="paper"), run("b", last=1, tier="paper")], [Published(method="HAT", accuracy=99.0)])
    assert "**" not in next(line for line in tables.to_markdown(paper, "accuracy").splitlines() if "HAT" in line)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine")
def test_the_report_compiles(tmp_path):
    odd = [run('[1cm] a&b_100% {x} ~^ "quoted" <|> λ «Ðð»', s, settings={"a": "~\\" * 30}) for s in (1, 2)]
    many = [*five(), *odd, run("joint", 1, None, 95)]
    for folder in (tmp_path, tmp_path / "split_x" / "lite"):
        if folder == tmp_path:
            for record in many:
                write(record, tmp_path / "runs" / record.job.folder / "record.json")
            published = {"split_x": [Published(method="B_x", ours="best", accuracy=88.0, megabytes=1.0, source="p. 3 & 4")]}
            write_reports(tmp_path / "runs", tmp_path, published)
        assert compile_document(folder / "report.tex") is None
        assert (folder / "report.pdf").stat().st_size > 10_000
    (tmp_path / "bad.tex").write_text(r"\documentclass{article}\begin{document}\nothing\end{document}")  # control
    assert compile_document(tmp_path / "bad.tex") == "pdflatex failed: ! Undefined control sequence."
    assert not (tmp_path / "bad.pdf").exists()
    alone = r"\input{split_x/lite/accuracy}\input{split_x/lite/accuracy_tabular}\input{summary}\input{ledger}"  # as in any paper
    packages = r"\usepackage{array,booktabs,longtable}"
    (tmp_path / "paper.tex").write_text(rf"\documentclass{{article}}{packages}\begin{{document}}{alone}\end{{document}}")
    assert compile_document(tmp_path / "paper.tex") is None


@pytest.fixture
def undrawn(monkeypatch):
    """What is drawn takes most of the time."""
    monkeypatch.setattr(figures, "render", lambda *words: {"pdf": b"", "png": b""})


@pytest.mark.slow
def test_rows_to_compare_may_be_missing_on_some_boards(tmp_path, undrawn):
    one, two = run("ewc"), run("lwf")
    for record in (one, two, changed(one, job=changed(one.job, tier="smoke"))):
        write(record, tmp_path / "runs" / record.job.folder / "record.json")
    write_reports(tmp_path / "runs", tmp_path / "paper", {}, Selection(compare=("lwf", "ewc")))
    with pytest.raises(UserError, match="no row is called 'lwff'"):
        write_reports(tmp_path / "runs", tmp_path / "paper", {}, Selection(compare=("lwff",)))


@pytest.mark.slow
def test_reports_of_several_protocols_and_tiers(tmp_path, undrawn):
    for record in (run("a"), run("b"), run("a", tier="paper")):
        write(record, tmp_path / "runs" / record.job.folder / "record.json")
    held = {"split_x": Published(method="A", ours="a", accuracy=80.0, source="p. 1")}
    held["other"] = Published(method="B", accuracy=1.0, source="p. 2")
    published = {name: [figure] for name, figure in held.items()}
    files = write_reports(tmp_path / "runs", tmp_path / "all", published)
    assert {file.parent.relative_to(tmp_path / "all").as_posix() for file in files} == {"split_x/lite", "split_x/paper", "."}
    ledger = pd.read_csv(tmp_path / "all" / "ledger.csv")
    assert ledger["protocol"].tolist() == ["split_x", "split_x", "other"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "all" / "ledger.parquet"), ledger, check_dtype=False)

    some = write_reports(tmp_path / "runs", tmp_path / "some", published, Selection(protocols=("split_x",), tiers=("lite",)))
    assert {file.parent.name for file in some} == {"lite", "some"}
    assert len(pd.read_csv(tmp_path / "some" / "ledger.csv")) == 2  # the ledger knows of the paper run all the same
    for chosen, words in (
        ({"protocols": ("split_y",)}, "no records of a protocol 'split_y'; did you mean 'split_x'"),
        ({"tiers": ("smoke",)}, "no records of a tier 'smoke'; there are lite, paper"),
        ({"protocols": ("other",)}, "no records of other"),
    ):
        with pytest.raises(UserError, match=words):
            write_reports(tmp_path / "runs", tmp_path / "none", published, Selection(**chosen))
    with pytest.raises(UserError, match="has no records; run `benchsuite leaderboard`"):
        write_reports(tmp_path / "nowhere", tmp_path / "none", published)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_reports_load_no_torch(tmp_path):
    record = run("a", tasks=1)
    write(record, tmp_path / "runs" / record.job.folder / "record.json")
    code = (
        "import sys; from pathlib import Path; from benchsuite.report.write import write_reports\n"
        "write_reports(Path('runs'), Path('out'), {})\n"
        "assert not {'torch', 'avalanche'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_report_command_writes_a_page_whose_links_lead_to_the_records(tmp_path, monkeypatch, capsys):
    record = run("finetune", tasks=1)
    write(record, tmp_path / "runs" / record.job.folder / "record.json")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "out/paper", "--tier", "lite", "--no-pdf"]) == 0
    said = capsys.readouterr().out.splitlines()
    pages = ["reproduction ledger: out/paper/ledger.md", "page with everything: out/paper/index.html"]
    assert said == ["out/paper/split_x/lite/report.tex", "out/paper/report.tex", *pages]
    page = (tmp_path / "out/paper/index.html").read_text()
    assert '"families":["reference"]' in page
    (link,) = re.findall(r'"record":"([^"]+)"', page)
    assert (tmp_path / "out/paper" / link).samefile(tmp_path / "runs" / record.job.folder / "record.json")


def test_the_screen_explains_only_the_columns_that_it_shows():
    stream = io.StringIO()
    board = leaderboard([changed(run("a"), memory_bytes=500_000), run("b")])
    tables.print_boards(board, Console(file=stream, width=200))
    assert "Learning accuracy: mean" in " ".join(stream.getvalue().split())
    assert "Anytime accuracy: mean" in tables.to_markdown(board, "accuracy")  # where the column is
    for word in ("Anytime accuracy", "Added: ", "training MB includes"):
        assert word not in stream.getvalue(), word


def test_notes_of_a_document_have_its_names_and_columns():
    titles = ("tuned", "served speed", "training MB includes stored images, in MB")
    notes = [Note(f"{title}: {named('er')} 0.5") for title in titles]
    board = replace(leaderboard(records()), footnotes=notes)
    assert tables.notes_of(board, ["megabytes"])[0] == "tuned: er 0.5"
    assert tables.notes_of(board, ["training_megabytes", "served_speed"])[:3] == notes
    assert not any("served" in note or "training MB" in note for note in tables.notes_of(board, ["megabytes"]))
    assert tables.notes_of(board)[:3] == notes


def test_notes_on_sizes_stand_under_the_boards_of_sizes():
    diagnostics = {"other_sizes": {"factors": 1_000_000, "kernels": 2_500_000}}
    board = leaderboard(
        [changed(run("a", diagnostics=diagnostics, last=90), memory={}, memory_bytes=500_000), run("b"), run("c", last=60)]
    )
    about = {kind: tables.to_markdown(board, kind) for kind in tables.TITLES}
    for note in (
        "stored MB as kernels: a 2.500",
        "training MB includes stored images, in MB: a 0.500",
        "no measurement of training memory",
    ):
        assert [kind for kind, text in about.items() if note in text] == list(tables.ABOUT_SIZES), note
    assert "MB as factors" not in str(board.footnotes)  # the size that stands in the table
    (line,) = (line for line in about["training_memory"].splitlines() if line.startswith("| a |"))
    assert "**" not in line  # the best accuracy, but without a memory
    assert "**" in next(line for line in about["accuracy"].splitlines() if line.startswith("| a |"))
    tiny = changed(run("b"), stored=[None, {"weights": 999_600, "heads": 400, "masks": 0, "other": 0}])
    assert "| <0.001 | 0 |" in tables.to_markdown(leaderboard([tiny]), "parameter_efficiency")


@pytest.mark.slow
def test_a_figure_that_another_command_has_removed_meanwhile_is_no_error(tmp_path, undrawn, monkeypatch):
    write_report(leaderboard([run("a")]), tmp_path)
    old = tmp_path / "accuracy_vs_memory.png"
    assert old.exists()
    unlink = Path.unlink

    def late(path, **given):
        unlink(path)
        return unlink(path, **given)

    monkeypatch.setattr(Path, "unlink", late)
    write_report(leaderboard([changed(run("a"), memory={})]), tmp_path)
    assert not old.exists()
