import re
import shutil
import subprocess

import pytest
from records import changed, individual, joint, memory, run

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.analysis.summary import summary
from benchsuite.report import latex
from benchsuite.report.columns import TITLES
from benchsuite.report.selection import Row, Selection

COMPILED = pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine")


FORMS = {
    form: {"sizes": {"weights": size - 1000, "heads": 1000, "masks": 0, "other": 0}, "correct": [80, 80]}
    for form, size in (("fp32", 1_000_000), ("int8", 250_000))
}


def of(method, *finals, **changes):
    """A run for each seed that ends at an accuracy."""
    return [run(method, seed, ((90, None), (final, final)), **changes) for seed, final in enumerate(finals, 1)]


def five():
    """Over five seeds `lwf` cannot be told from `er`; `ewc` can."""
    return [*of("er", 90, 82, 91, 85, 88), *of("lwf", 87, 84, 90, 83, 89), *of("ewc", 40, 42, 41, 40, 43)]


def tabular(board, kind="accuracy", **selection):
    return latex.board_table(board, kind, Selection(**selection))[0]


def floating(board, kind="accuracy", **selection):
    return latex.board_table(board, kind, Selection(**selection))[1]


def rows(table):
    body = table.split("\\midrule\n")[1].split("\n\\bottomrule")[0]
    return {line.split(" & ")[0]: line.removesuffix(" \\tabularnewline").split(" & ")[1:] for line in body.splitlines()}


def test_a_tabular_is_bare_and_the_float_takes_it_in():
    board = leaderboard([*five(), joint()])
    table, around = latex.board_table(board, "accuracy", Selection())
    code = "".join(line for line in table.splitlines(keepends=True) if not line.startswith("%"))
    assert code.startswith("\\begin{tabular}{@{}l")
    assert code.endswith("\\end{tabular}\n")
    assert "caption" not in table
    assert f"% {board.provenance}" in table
    assert "cpu (Model X)" not in around.replace(f"% {board.provenance}", "")  # nor is it printed elsewhere
    placed = latex.taking_in(around, "accuracy_tabular")
    assert [word in placed for word in ("\\begin{table}[tbp]", "\\caption{", "\\label{tab:accuracy-", " accuracy_tabular}")] == [
        True
    ] * 4
    assert "\\begin{tabular}" not in placed
    assert table.rstrip() in latex.with_tabular(around, table)


def test_rows_have_the_names_of_papers_and_ours_is_bold_and_shaded():
    board = leaderboard([*five(), joint()])
    found = rows(tabular(board, rows=(Row(name="lwf"), Row(name="er", label="Replay & co", ours=True), Row(name="joint"))))
    assert list(found) == ["LwF", r"\ifdefined\rowcolor\rowcolor[gray]{0.92}\fi \textbf{Replay \& co}", "Joint"]
    assert found["LwF"][0] == r"\underline{\smash{86.60}}$\pm$3.79$^\dagger$"
    assert found["Joint"][1] == r"\multicolumn{1}{c}{n/a}"
    assert "n/a: joint training (Joint)." in floating(board)


def plain(table):
    """The first cell of each row without its marks."""
    marks = r"\\(?:textbf|underline|smash|phantom)\{|[{}]"
    return [re.sub(marks, "", cells[0]).replace(r"$^\dagger$", "") for cells in rows(table).values()]


def test_a_column_has_one_number_format():
    """Numbers end at one place: where an interval is missing or shorter its room stays."""
    runs = [*of("er", 80, 81), *of("lwf", 30, 95), *of("ewc", 50), *of("si", 60, size=12_345_000)]
    board = leaderboard(runs)
    assert len({len(text) for text in plain(tabular(board))}) == 1
    assert sorted(plain(tabular(board, "parameter_efficiency"))) == ["1.00", "1.00", "1.00", "12.35"]
    small = leaderboard([*runs, *of("hat", 70, size=98_700)])
    assert sorted(plain(tabular(small, "parameter_efficiency"))) == ["0.099", "1.000", "1.000", "1.000", "12.345"]
    assert [text[:2] for text in plain(tabular(board, digits={"accuracy": 0}))] == ["80", "62", "60", "50"]


def test_rows_outside_of_the_compared_family_change_no_daggers():
    new = of("mas", 89, 83, 90, 84, 88)

    def marked(runs, **selection):
        wanted = selection.get("compare", ())
        text = tabular(leaderboard(runs, compare=wanted), **selection)
        return {name: "$^\\dagger$" in cells[0].replace(r"\phantom{$^\dagger$}", "") for name, cells in rows(text).items()}

    family = ("er", "lwf", "ewc")
    before, after = marked(five(), compare=family), marked([*five(), *new], compare=family)
    assert before == {"ER": False, "LwF": True, "EWC": False}
    assert after == {**before, "MAS": False}
    everything = marked([*five(), *of("mas", 99, 100, 99, 100, 99)])  # control: a new best changes all
    assert everything["LwF"] is False


def test_a_table_has_its_daggers_in_one_column():
    table = tabular(leaderboard([individual(s) for s in (1, 2, 3)] + [*five()]))
    columns = zip(*rows(table).values(), strict=True)
    assert ["$^\\dagger$" in " ".join(column) for column in columns][1:] == [False, False, False]


def test_a_caption_speaks_only_of_the_columns_that_are_there():
    board = leaderboard(five())
    whole, part = floating(board), floating(board, columns={"accuracy": ("accuracy", "megabytes")})
    assert "Learning accuracy:" in whole
    assert "Learning accuracy:" not in part
    assert "Size: file that serves all tasks" in part
    every = {"forms": FORMS}
    wide, narrow = (
        floating(leaderboard(of("individual", 80, **every)), "parameter_efficiency", fit=fit) for fit in ("page", "column")
    )
    assert "Smallest: " in wide
    assert "Smallest: " not in narrow
    assert re.search("^% left out for want of room: .*smallest_megabytes, pareto$", narrow, re.MULTILINE)


def test_a_column_that_says_nothing_is_left_out():
    board = leaderboard([*of("er", 80, size=500_000), *of("lwf", 70), *of("ewc", 60)])
    assert "& Pareto " in tabular(board, "parameter_efficiency")
    assert "& Pareto " not in tabular(board, "parameter_efficiency", rows=(Row(name="lwf"), Row(name="ewc")))
    assert "& n " not in tabular(board)
    assert "& n " in tabular(leaderboard([*of("er", 80, 81), *of("lwf", 70)]))


def test_columns_that_were_asked_for_stay_and_the_table_spans_both_columns():
    board = leaderboard([individual(s) for s in (1, 2, 3)] + five())
    asked = ("accuracy", "learning_accuracy", "forward_gain", "bwt", "forgetting", "megabytes", "ratio")
    wide = floating(board, fit="column", columns={"accuracy": asked})
    assert "\\begin{table*}" in wide
    assert "left out" not in wide
    assert "\\begin{table}" in floating(board, fit="column", columns={"accuracy": asked[:2]})  # control


def test_a_long_name_is_broken_before_a_column_is_left_out():
    long = "individual [precision=bf16, width=0.5, init=orthogonal]"
    board = leaderboard([individual(s) for s in (1, 2, 3)] + five())
    table = tabular(board, rows=(Row(name="er", label=long), Row(name="lwf"), Row(name="ewc")))
    assert "@{}p{" in table
    assert r"\raggedright individual [precision=\allowbreak{}bf16, width=\allowbreak{}0.5, " in table
    assert latex.LEFT_OUT not in table


def test_siunitx_columns():
    board = leaderboard([*five(), joint()])
    table = tabular(board, siunitx=True)
    assert "S[table-format=2.2(3), separate-uncertainty, table-align-uncertainty=false, detect-weight" in table
    found = rows(table)
    assert found["ER"][0] == r"\bfseries 87.20 +- 4.60"
    assert found["LwF"][0] == r"86.60 +- 3.79 {$^\dagger$}"
    assert found["Joint"][1] == "{n/a}"
    assert "underlined" not in floating(board, siunitx=True)
    assert "% needs booktabs, siunitx;" in table
    assert "siunitx" not in tabular(board)


def other_protocol(runs):
    return leaderboard([changed(r, job=changed(r.job, protocol="split-x", tier="paper")) for r in runs])


def test_the_summary_has_sizes_and_ranks_of_several_boards():
    boards = [
        leaderboard(of("er", 80, forms=FORMS) + of("lwf", 70)),
        other_protocol(of("er", 60) + of("lwf", 70) + of("ewc", 50)),
    ]
    table, around = latex.summary_table(summary(boards), boards, Selection())
    assert r"\multicolumn{4}{c}{split-digits (lite)} & \multicolumn{3}{c}{split-x (paper)}" in table
    assert r"\cmidrule(lr){2-5}\cmidrule(lr){6-8}" in table
    dash = r"\multicolumn{1}{c}{--}"
    assert rows(table)["ER"] == [
        r"\textbf{80.00}",
        r"\textbf{$-$10.00}",
        r"\textbf{1.00}",
        "0.250",
        r"\underline{\smash{60.00}}",
        r"\underline{\smash{$-$30.00}}",
        r"\textbf{1.00}",
        r"\textbf{1.50}",
    ]
    assert rows(table)["EWC"] == [dash, dash, dash, dash, "50.00", r"$-$40.00", r"\textbf{1.00}", dash]
    assert "Average rank: by accuracy among the rows shown that are ranked on all 2 boards" in around
    chosen = Selection(rows=(Row(name="lwf", ours=True), Row(name="er")), columns={"summary": ("accuracy",)})
    table, _ = latex.summary_table(summary(boards, ["lwf", "er"]), boards, chosen)
    assert [len(cells) for cells in rows(table).values()] == [3, 3]
    assert r"\textbf{LwF}" in next(iter(rows(table)))


def test_a_document_has_results_first_and_notes_last():
    parts = ["\\begin{table}A\\end{table}", "\\begin{table}B\\end{table}"]
    text = latex.document("T", "made here", parts, {"curve": "Curve."}, ["\\begin{table}C\\end{table}"], ["a note"])
    order = [text.index(word) for word in ("made here", "}A\\end", "}B\\end", "curve", "Appendix", "}C\\end", "a note")]
    assert order == sorted(order)
    assert "\\clearpage" not in text

    def boxes(text):
        return re.findall(r"\\begin\{minipage\}\[t\]\{([\d.]+)\\linewidth\}", text)

    assert boxes(text) == ["0.49", "0.49", "1", "0.69", "0.29", "1"]  # narrow tables in pairs, captions beside figures
    curves = {"one": "1", "two": "2"}
    assert boxes(latex.document("T", "", [], curves, fit="column")) == ["0.49", "0.49"]
    assert boxes(latex.document("T", "", [], curves, fit="two-column")) == ["1", "1"]
    assert "Appendix" not in latex.document("T", "", parts)
    before, _, _ = latex.document("T", "", parts, ledger="LEDGER").partition("LEDGER")
    assert before.count("\\begin{minipage}") == before.count("\\end{minipage}") == 2  # which may break, begins on this page


def test_a_table_of_a_document_is_half_as_wide_if_it_has_all_its_columns():
    board = leaderboard([*five(), *of("individual", 80, forms=FORMS)])
    assert "\\begin{table}" in latex.in_document(board, "backward_transfer", Selection(fit="column"))
    whole = latex.in_document(board, "parameter_efficiency", Selection(fit="column"))
    assert "\\begin{table*}" in whole
    assert latex.LEFT_OUT not in whole


def test_tables_side_by_side_have_one_type_size():
    board = leaderboard([*of("individual-svd", 80, 85, 70), *of("agem", 70, 60, 50), *of("individual", 91, 84, 90)])
    parts = [latex.in_document(board, kind, Selection()) for kind in ("accuracy", "backward_transfer")]
    sizes = [re.findall(r"^\\(\w+)\\setlength{\\tabcolsep}{(\d)pt}", text, re.MULTILINE) for text in parts]
    assert sizes[0] != sizes[1]  # control: each by itself
    placed = re.findall(r"^\\(\w+)\\setlength{\\tabcolsep}{(\d)pt}", latex.document("T", "", parts), re.MULTILINE)
    assert placed == 2 * sizes[0]
    assert "\n\\footnotesize\\setlength" in latex.document("T", "", parts[1:])  # alone: small in a paper


def test_the_appendix_of_a_selection_marks_no_best():
    board = leaderboard(five())
    chosen = Selection(rows=(Row(name="er"), Row(name="ewc")))
    for selection, marked in ((Selection(), True), (chosen, False)):
        table, around = latex.board_table(board, "accuracy", selection, ["lwf", "ewc"], "two-column")
        assert ("\\textbf" in table or "\\underline" in table) == marked
        assert ("the best are not marked" in around) == (not marked)


LAYOUTS = {  # class and geometry, the fit of a selection
    "article": (r"\documentclass{article}", "page"),
    "article in two columns": (r"\documentclass[twocolumn]{article}", "column"),
    "article across two columns": (r"\documentclass[twocolumn]{article}", "two-column"),
    "like NeurIPS": (r"\documentclass{article}\usepackage[textwidth=397pt]{geometry}\usepackage{mathptmx}", "page"),
    "like IEEE": (
        r"\documentclass[twocolumn]{article}\usepackage[textwidth=516pt,columnsep=12pt]{geometry}\usepackage{mathptmx}",
        "column",
    ),
}
ASKED = {"accuracy": ("accuracy", "learning_accuracy", "forward_gain", "bwt", "forgetting", "megabytes", "ratio", "held", "peak")}


@COMPILED
@pytest.mark.slow
def test_no_table_is_too_wide(tmp_path):
    """In any layout; what is set in a larger type than the float says is."""

    def varied(method, seed, **changes):
        added = seed + 4000 * (seed == 9)  # spreads of a few per cent, and of four digits
        held = memory([20_000 + 9999 * added] * 2, [90_000 + 7777 * added] * 2, [10_000 + 5555 * added] * 2)
        correct = ((90, None), (70 + seed, 80 + seed))
        return run(method, seed, correct, 1_000_000 + 9_999 * seed, macs=[2_500_000 + seed * 99_999] * 2, **held, **changes)

    names = ["individual", "er", "packnet", "cacl-kronecker", "cacl+hosvd"]
    runs = [varied(name, seed) for name in names for seed in (1, 2, 3, 9)]
    runs += [
        varied("individual-tucker", s, precision="bf16", settings={"epochs": 10, "width": w})
        for s in (1, 2, 3, 9)
        for w in (1, 2)
    ]
    board = leaderboard(runs)
    boards = [board, other_protocol(runs)]
    for layout, (preamble, fit) in LAYOUTS.items():
        chosen = [
            Selection(fit=fit),
            Selection(fit=fit, columns=ASKED, rows=(Row(name="er", ours=True), Row(name="individual-tucker"))),
        ]
        pairs = [latex.board_table(board, kind, selection) for selection in chosen for kind in TITLES]
        pairs += [latex.summary_table(summary(boards), boards, selection) for selection in chosen]
        text = "\n".join(latex.with_tabular(around, table) for table, around in pairs)
        roomy = re.sub(r"\\(small|footnotesize|scriptsize)\\setlength\{\\tabcolsep\}\{.pt\}", r"\\Large", text)  # control
        for body, fits in ((text, True), (roomy, False)):
            (tmp_path / "paper.tex").write_text(
                rf"{preamble}\usepackage{{booktabs,colortbl}}\begin{{document}}{body}\end{{document}}"
            )
            command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
            assert done.returncode == 0, done.stdout[-2000:]
            assert ("Overfull \\hbox" not in done.stdout) is fits, layout
