import io
import json
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from records import changed, individual, joint, memory, run

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.analysis.rows import configurations
from benchsuite.catalogue import MARKERS
from benchsuite.errors import UserError
from benchsuite.method import Method, methods
from benchsuite.protocol import Published
from benchsuite.record.store import read_all, write
from benchsuite.report import tables
from benchsuite.report.latex import board_table, latex_text
from benchsuite.report.looks import STROKES, labels_of
from benchsuite.report.page import page
from benchsuite.report.selection import Selection

PUBLISHED = [
    Published(method="CACL", accuracy=86.58, megabytes=1.5, source="its README"),
    Published(method="A-GEM", accuracy=54.4),
]
LONG = {"epochs": 10, "a_setting_with_a_long_name": "and_a_long_value_that_has_no_place_to_break"}


def records(tier="lite"):
    held = memory([4_000_000] * 2, [6_000_000] * 2)
    found = [joint()]
    for seed in (1, 2):
        found += [
            individual(seed, **held),
            run(seed=seed, correct=((90, None), (70 + 2 * seed, 80)), **held),
            run(
                "finetune+hosvd",
                seed,
                ((88, None), (66 + seed, 79)),
                settings={"epochs": 10, "epsilon": 0.8},
                origins={"epochs": "of the paper"},
                **memory([900_000] * 2, [6_000_000] * 2, [100_000] * 2),
            ),
            run("hat", seed, ((88, None), (88, 79)), 400_000, settings=LONG, **held),
            run("hat", seed, ((89, None), (89, 80 + seed)), 800_000, settings={"epochs": 10, "width": 2.0}, **held),
            run(
                "mine",
                seed,
                ((60, None), (60, 60 + seed)),
                700_000,
                origins={"epochs": "of the paper"},
                diagnostics={"remarks": ["<b>not bold</b></script>"]},
            ),
        ]
    return [changed(record, job=changed(record.job, tier=tier)) for record in found]


@cache
def boards():
    return [leaderboard(records()), leaderboard(records("paper"), PUBLISHED)]


def content(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


# ---- what is in the page


def test_no_torch_is_needed():
    code = (
        "import sys, benchsuite.report.page\n"
        "assert not {'torch', 'torchvision', 'avalanche', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", tables.TITLES)
def test_tables_hold_the_numbers_of_the_board_and_the_text_of_the_printed_one(kind):
    made = boards()
    for board, shown in zip(made, content(page(made))["boards"], strict=True):
        frame, table = getattr(board, kind), shown["tables"][kind]
        printed = [
            line.strip("| ").split(" | ") for line in tables.to_markdown(board, kind).splitlines() if line.startswith("| ")
        ]
        names = [column["name"] for column in table["columns"]]
        assert [column["heading"] for column in table["columns"][:-1]] == printed[0]
        for row, expected, texts in zip(table["rows"], frame.to_dict("records"), printed[2:], strict=True):
            cells = dict(zip(names, row["cells"], strict=True))
            assert shown["rows"][row["row"]]["label"] == expected["method"] == cells["method"][0]
            texts = [re.sub(r"\*\*|</?ins>", "", text) for text in texts]
            # why a number is not there stands below a printed table
            assert [re.sub("^n/a: .*", "n/a", text) for _, text, *_ in row["cells"][:-1]] == [
                *texts,
                *[""] * (len(names) - 1 - len(texts)),
            ]
            for name, (value, _, *half) in list(cells.items())[1:-1]:
                assert value == expected[name] or (value is None and pd.isna(expected[name]))
                wanted = expected.get(f"{name}_ci")
                assert half[0] == wanted or (half[0] is None and (wanted is None or pd.isna(wanted)))


def test_the_best_of_a_column_is_marked_as_in_latex():
    board, _ = boards()
    shown = content(page([board]))["boards"][0]
    columns = {column["name"]: column for column in shown["tables"]["accuracy"]["columns"]}
    latex, _ = board_table(board, "accuracy", Selection())
    for mark, wrap in (("best", r"\textbf"), ("second", r"\underline")):
        (row,) = (shown["rows"][i]["label"] for i in columns["accuracy"][mark])
        called = labels_of(board)[row]
        assert re.search(rf"^{re.escape(latex_text(called))} & {re.escape(wrap)}{{", latex, re.MULTILINE)
        assert row != "joint"  # which does not compete
    assert columns["n"]["best"] == columns["n"]["second"] == []
    assert shown["captions"]["accuracy"] == tables.caption(board, "accuracy")


def test_behind_each_row_are_its_runs_each_with_its_own_numbers():
    shown = content(page(boards(), base=".."))["boards"][0]
    rows = {row["label"]: row for row in shown["rows"]}
    assert set(rows) == set(configurations(records()))
    finetune = rows["finetune"]["runs"]
    assert [r["seed"] for r in finetune] == [1, 2]
    assert [r["values"]["accuracy"] for r in finetune] == ["76.00", "77.00"]
    assert [r["values"]["bwt"] for r in finetune] == ["-18.00", "-16.00"]
    assert [r["values"]["forward_gain"] for r in finetune] == ["-5.00", "-5.00"]  # against `individual` of the same seed
    assert "n" not in finetune[0]["values"]
    assert rows["joint"]["runs"][0]["values"]["bwt"] == "n/a: joint training"
    assert (finetune[0]["device"], finetune[0]["revision"], finetune[0]["date"]) == (
        "cpu (Model X), fp32",
        "abcdef0",
        "2026-01-02",
    )
    assert rows["finetune"]["settings"] == "epochs = 10"
    assert finetune[1]["record"] == f"../{run(seed=2).job.folder.as_posix()}/record.json"


def test_published_rows_are_marked_and_have_no_runs_of_ours():
    rows = {row["label"]: row for row in content(page(boards()))["boards"][1]["rows"]}
    assert (rows["CACL (published)"]["families"], rows["CACL (published)"]["runs"]) == (["published"], [])
    assert rows["A-GEM (published)"]["look"] is None  # without a size it is no point of a figure
    assert [label for label, row in rows.items() if row["published"]] == ["CACL (published)", "A-GEM (published)"]


def test_a_row_has_the_family_of_its_method_and_a_modifier_adds_one():
    rows = {row["label"]: row["families"] for row in content(page(boards()))["boards"][0]["rows"]}
    assert rows["mine"] == ["other"]
    assert rows["finetune+hosvd"] == ["reference", "compressed activations"]
    assert [families for label, families in rows.items() if label.startswith("hat [")] == [["parameter isolation"]] * 2


def test_every_method_of_ours_says_its_family_and_others_need_not():
    ours = {name: cls.family for name, cls in methods.all().items() if cls.__module__.startswith("benchsuite.methods.")}
    assert [name for name, family in ours.items() if family == "other"] == []
    assert Counter(ours.values())["reference"] == 4
    assert type("Theirs", (Method,), {}).family == "other"
    assert methods.get("er+hosvd").family == "replay"


def test_rows_of_a_method_at_several_widths_are_one_series():
    runs = [run("wide", settings={"epochs": 10, "width": width}, size=int(1e6 * width)) for width in (1.0, 2.0)]
    rows = content(page([leaderboard(runs)]))["boards"][0]["rows"]
    assert [row["series"] for row in rows] == ["wide", "wide"]
    assert rows[0]["look"] == rows[1]["look"]


def test_the_page_can_draw_every_marker_and_leaves_none_to_an_older_one():
    html = page(boards())
    assert [marker for marker in (*MARKERS, *STROKES) if f'"{marker}": "M' not in html] == []


def test_no_text_of_a_record_ends_the_element_that_it_stands_in():
    html = page(boards())
    assert any("</script>" in note for note in content(html)["boards"][0]["notes"])
    assert html.count("</script>") == 2


def test_the_page_loads_nothing():
    html = page(boards())
    assert not re.search(r"\ssrc=|@import|url\((?!#)|\bfetch\(|XMLHttpRequest|innerHTML", html)
    assert set(re.findall(r"https?://[^\"'\s]+", html)) == {"http://www.w3.org/2000/svg"}  # the name of a format
    assert "default-src 'none'" in html


def test_the_same_records_give_the_same_page():
    assert page(boards()) == page(boards())


def test_nothing_to_show_and_two_boards_of_one_tier_are_refused():
    with pytest.raises(UserError, match=r"no finished runs.*benchsuite leaderboard"):
        page([])
    with pytest.raises(UserError, match="two boards of split-digits, tier lite; rank their records together"):
        page([boards()[0], boards()[0]])


# ---- in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    pytest.importorskip("selenium", reason="selenium is not installed; pip install benchsuite[test]")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium import webdriver

    folder = tmp_path_factory.mktemp("page")
    made = boards()
    for group in (group for board in made for group in board.runs.values()):
        for record in group:
            write(record, folder / "runs" / record.job.folder / "record.json")
    (folder / "index.html").write_text(page(made, "runs"))
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    words = "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update disable-sync"
    for word in [*words.split(), "hide-scrollbars", f"user-data-dir={folder / 'profile'}"]:
        options.add_argument(f"--{word}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.folder = folder
    downloads = {"behavior": "allow", "downloadPath": str(folder / "downloads")}
    chrome.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    yield chrome
    chrome.quit()


@pytest.fixture
def browser(chromium):
    """The page as it is first opened, 1600 pixels wide and light. Whatever a test does, the console stays empty."""
    show(chromium)
    yield chromium
    assert chromium.get_log("browser") == []


def show(chrome, width=1600, scheme="light", view="split-digits/lite/accuracy", file="index.html"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    chrome.get("about:blank")
    chrome.get(f"{(chrome.folder / file).as_uri()}#{view}")


def find(chrome, selector):
    return chrome.find_elements("css selector", selector)


def press(chrome, text, within="button"):
    next(element for element in find(chrome, within) if element.text.startswith(text)).click()


def column(chrome, heading):
    """The texts of a column, top to bottom."""
    code = """
        const {rows} = document.getElementById("board");
        const x = [...rows[0].cells].findIndex(cell => cell.innerText.replace(/ [▲▼]$/, "") === arguments[0]);
        return [...rows].slice(1).map(row => row.cells[x].innerText);
    """
    return chrome.execute_script(code, heading)


def points(chrome, figure=1):
    return [point.get_attribute("data-row") for point in find(chrome, f"figure:nth-child({figure}) [data-row]")]


def keys(chrome, *names):
    from selenium.webdriver import ActionChains, Keys

    for name in names:
        ActionChains(chrome).send_keys(getattr(Keys, name)).perform()


def test_a_heading_sorts_and_says_so(browser):
    ranked = column(browser, "Method")
    assert ranked == boards()[0].accuracy["method"].tolist()
    states = []
    for _ in range(3):
        press(browser, "Learning accuracy", "thead button")
        assert browser.switch_to.active_element.text.startswith("Learning accuracy")  # ready to be pressed again
        state = find(browser, "thead th:nth-child(4)")[0].get_attribute("aria-sort")
        states.append((state, column(browser, "Learning accuracy (%)")))
    (down, largest), (up, smallest), (none, _) = states
    assert (down, up, none) == ("descending", "ascending", "none")
    numbers = [float(text.split(" ")[0]) for text in largest[:-1]]
    assert numbers == sorted(numbers, reverse=True) != sorted(numbers)
    assert [float(text.split(" ")[0]) for text in smallest[:-1]] == sorted(numbers)
    assert largest[-1][:3] == smallest[-1][:3] == "n/a"  # last, whichever way
    assert column(browser, "Method") == ranked
    press(browser, "Method", "thead button")
    assert column(browser, "Method") == sorted(ranked)


def test_the_reason_of_what_is_not_applicable_stands_below(browser):
    assert find(browser, "#reasons")[0].text == "a n/a: joint training. b n/a: no matching run of individual."
    assert column(browser, "Learning accuracy (%)")[0] == "n/aa"
    find(browser, "#search")[0].send_keys("finetune")  # where nothing needs a reason there is none
    assert find(browser, "#reasons")[0].text == ""


def test_families_and_names_filter_the_table_and_the_figures(browser):
    everything = column(browser, "Method")
    press(browser, "parameter isolation", "#families button")
    isolated = [name for name in everything if name.startswith("hat")]
    assert column(browser, "Method") == isolated
    assert sorted(points(browser)) == sorted(isolated)
    assert find(browser, "#count")[0].text == f"2 of {len(everything)} rows"
    press(browser, "compressed", "#families button")
    assert set(column(browser, "Method")) == {*isolated, "finetune+hosvd"}
    find(browser, "#search")[0].send_keys("HOSVD")  # capitals make no difference
    assert column(browser, "Method") == points(browser) == points(browser, 2) == ["finetune+hosvd"]
    press(browser, "Backward transfer", "#kinds button")
    assert column(browser, "Method") == ["finetune+hosvd"]
    find(browser, "#search")[0].send_keys("x")
    assert "No row matches these filters." in find(browser, "#board")[0].text
    assert points(browser) == []


def test_each_tier_has_tables_of_its_own(browser):
    options = [option.text for option in find(browser, "#tier option")]
    assert options == ["lite", "paper"]
    assert "(published)" not in find(browser, "#board")[0].text
    find(browser, "#tier option")[1].click()
    assert "CACL (published)" in column(browser, "Method")
    assert find(browser, "#title")[0].text == "Accuracy on split-digits, tier paper"
    assert find(browser, "#provenance")[0].text == boards()[1].provenance
    assert [note.text for note in find(browser, "#notes li")] == boards()[1].footnotes
    styles = {
        row.text.split("\n")[0]: row.find_element("css selector", "th").value_of_css_property("font-style")
        for row in find(browser, "tbody tr")
    }
    assert styles["CACL (published)"] == "italic" != styles["joint"]
    show(browser, view="split-digits/paper/training_memory")  # the address says what is shown
    assert find(browser, "#title")[0].text == "Training memory on split-digits, tier paper"


def test_columns_can_be_shown_and_hidden(browser):
    press(browser, "Parameter efficiency", "#kinds button")
    assert "Weights (MB)" not in find(browser, "#board thead")[0].text
    find(browser, "summary")[0].click()
    press(browser, "Weights (MB)", "#columns label")
    press(browser, "Family", "#columns label")
    assert column(browser, "Weights (MB)")[0] == "0.399"
    assert "Family" not in find(browser, "#board thead")[0].text
    keys(browser, "ESCAPE")
    assert not find(browser, "#columns")[0].is_displayed()


def test_a_cell_opens_the_runs_behind_it(browser):
    at = column(browser, "Method").index("finetune") + 1
    find(browser, f"tbody tr:nth-child({at}) td:nth-child(2) button")[0].click()
    panel = find(browser, "#runs")[0]
    assert panel.is_displayed()
    assert "Accuracy (%): 76.50 ± 6.35" in panel.text
    assert [row.text.split()[:3] for row in find(browser, "#runs tbody tr")] == [
        ["1", "record.json", "76.00"],
        ["2", "record.json", "77.00"],
    ]
    files = [Path(unquote(urlsplit(link.get_attribute("href")).path)) for link in find(browser, "#runs a")]
    assert [json.loads(file.read_text())["job"]["seed"] for file in files] == [1, 2]
    keys(browser, "ESCAPE")
    assert not panel.is_displayed()


def test_a_run_without_a_partner_of_its_seed_has_a_dash(browser):
    few = [individual(), *(run(seed=seed) for seed in (1, 2))]
    (browser.folder / "few.html").write_text(page([leaderboard(few)]))
    show(browser, view="split-digits/lite/parameter_efficiency", file="few.html")
    at = column(browser, "Method").index("finetune") + 1
    x = [h.text for h in find(browser, "#board thead th")].index("Size ratio") + 1
    find(browser, f"tbody tr:nth-child({at}) td:nth-child({x}) button")[0].click()
    assert [row.text.split()[:3] for row in find(browser, "#runs tbody tr")] == [
        ["1", "record.json", "0.500"],
        ["2", "record.json", "–"],
    ]


@pytest.mark.parametrize("view", ["%", "split-digits/%zz/accuracy", "no/such/board"])
def test_an_address_that_cannot_be_read_shows_the_first_board(browser, view):
    show(browser, view=view)
    assert find(browser, "#title")[0].text == "Accuracy on split-digits, tier lite"
    assert column(browser, "Method")


def test_the_text_of_records_is_never_markup(browser):
    at = column(browser, "Method").index("mine") + 1
    find(browser, f"tbody tr:nth-child({at}) button")[0].click()
    said = [note.text for note in find(browser, "#runs .note")]
    assert "<b>not bold</b></script>" in said
    assert "epochs = 10 (of the paper)" in said  # a note of several rows
    keys(browser, "ESCAPE")


def test_the_keyboard_moves_between_cells_and_opens_them(browser):
    browser.execute_script("document.querySelector('tbody button').focus()")
    keys(browser, "ARROW_UP")  # above the first row there is none
    keys(browser, "ARROW_DOWN", "ARROW_RIGHT", "ENTER")
    assert find(browser, "#runs")[0].is_displayed()
    assert f"{column(browser, 'Accuracy (%)')[1]}" in find(browser, "#runs p")[0].text
    keys(browser, "ESCAPE")
    assert browser.switch_to.active_element.text == column(browser, "Accuracy (%)")[1]
    assert len(find(browser, "tbody button[tabindex='0']")) == 1


def test_a_point_has_a_tooltip_for_mouse_and_keyboard_and_opens_its_runs(browser):
    from selenium.webdriver import ActionChains

    tooltip = find(browser, "#tooltip")[0]
    point = find(browser, "figure:first-child [data-row='finetune']")[0]
    assert not tooltip.is_displayed()
    ActionChains(browser).scroll_to_element(point).move_to_element(point).perform()
    assert tooltip.text.split("\n") == ["finetune", "Accuracy (%): 76.50 ± 6.35", "Size (MB): 1.00", "n = 2"]
    ActionChains(browser).move_to_element(find(browser, "h1")[0]).perform()
    assert not tooltip.is_displayed()
    browser.execute_script("arguments[0].previousSibling.focus()", point)
    keys(browser, "TAB")
    assert browser.switch_to.active_element == point
    assert tooltip.text.startswith("finetune\n")
    keys(browser, "ESCAPE")
    assert not tooltip.is_displayed()
    keys(browser, "ENTER")
    assert find(browser, "#runs-title")[0].text == "finetune"
    keys(browser, "ESCAPE")


def test_a_tooltip_names_the_points_that_hide_one_another(browser):
    twins = [run("upper"), run("lower"), run("other", correct=((20, None), (20, 20)))]
    (browser.folder / "twins.html").write_text(page([leaderboard(twins)]))
    show(browser, file="twins.html")
    said = {p.get_attribute("data-row"): p.get_attribute("aria-label") for p in find(browser, "figure:first-child [data-row]")}
    assert said["upper"].endswith("nearby: lower")
    assert said["lower"].endswith("nearby: upper")
    assert "nearby" not in said["other"]


def test_the_figure_draws_the_front_of_the_whole_board(browser):
    board = boards()[0].parameter_efficiency
    front = board[board["pareto"]]

    def corners():
        (path,) = find(browser, "figure:first-child path[stroke-dasharray]")
        return path.get_attribute("d").count("H")

    assert corners() == len(front) - 1 > 0
    press(browser, "other", "#families button")
    assert corners() == len(front) - 1


def saved(chrome, name):
    file = chrome.folder / "downloads" / name
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline, f"{name} was not saved"
        time.sleep(0.05)
    text = file.read_text()
    file.unlink()
    return text


def test_what_is_shown_can_be_saved(browser):
    show(browser, view="split-digits/paper/parameter_efficiency")
    name = "split-digits-paper-parameter_efficiency"
    press(browser, "CSV", "#downloads button")
    frame, board = pd.read_csv(io.StringIO(saved(browser, f"{name}.csv"))), boards()[1]
    expected = board.parameter_efficiency
    assert frame["method"].tolist() == expected["method"].tolist()
    for statistic in ("megabytes", "accuracy", "accuracy_ci", "ratio"):
        assert frame[statistic].to_numpy() == pytest.approx(expected[statistic].to_numpy(dtype=float), rel=1e-15, nan_ok=True)
    assert set(frame["provenance"]) == {board.provenance}
    assert "weights" not in frame  # not among the columns shown

    find(browser, "#search")[0].send_keys("h")
    press(browser, "Accuracy", "thead button")
    names = column(browser, "Method")
    press(browser, "JSON", "#downloads button")
    rows = json.loads(saved(browser, f"{name}.json"))
    assert [row["method"] for row in rows] == names != sorted(names)
    assert rows[-1]["n"] == 2
    press(browser, "LaTeX", "#downloads button")
    text = saved(browser, f"{name}.tex")
    assert [line.split(" & ")[0] for line in text.splitlines() if " & " in line] == [
        "Method",
        *(n.replace("_", r"\_") for n in names),
    ]
    assert r"$\pm$" in text
    assert "n/a: " not in text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert r"\textbf{0.400}" in text
    compile_latex(text, browser.folder)


def test_the_latex_of_the_page_is_that_of_the_report(browser):
    press(browser, "LaTeX", "#downloads button")
    text = saved(browser, "split-digits-lite-accuracy.tex")
    expected, _ = board_table(boards()[0], "accuracy", Selection())

    def numbers(table):
        found = table.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
        return [re.findall(r"(?:\$-\$)?\d+\.\d+", re.sub(r"\\phantom{[^}]*}", "", row)) for row in found]

    assert numbers(text) == numbers(expected)
    assert any("$-$" in number for row in numbers(text) for number in row)
    assert r"\par\raggedright\footnotesize n/a: joint training (joint)" in text


def compile_latex(table, folder):
    if not shutil.which("pdflatex"):
        return
    (folder / "paper.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{table}\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_svg_stands_alone(browser):
    find(browser, "figure:first-child button")[0].click()
    tree = ET.fromstring(saved(browser, "split-digits-lite-accuracy_vs_size.svg"))
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    assert len([e for e in tree.iter() if e.get("data-row")]) == len(boards()[0].parameter_efficiency)
    assert not any(e.get("class") or e.get("style") for e in tree.iter())
    assert "split-digits, tier lite" in "".join(tree.itertext())


CROWDED = """
// Texts that reach out of their cell, or over a neighbour on an axis.
const cells = [...document.querySelectorAll("#board button")];
const found = cells.filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent);
for (const figure of document.querySelectorAll("figure")) {
  const boxes = [...figure.querySelectorAll("svg text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  boxes.forEach(([name, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
    const beside = a.left >= b.right - 1 || b.left >= a.right - 1, above = a.top >= b.bottom - 3 || b.top >= a.bottom - 3;
    if (!beside && !above) found.push(`${name} | ${other}`);
  }));
}
return found;
"""


@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_overflows_the_page_sideways(browser, width):
    for kind in tables.TITLES:
        show(browser, width, view=f"split-digits/paper/{kind}")
        for box in find(browser, "#columns input:not(:checked)"):
            browser.execute_script("arguments[0].click()", box)
        find(browser, "summary")[0].click()  # the open list of columns has to fit as well
        wide, inner, outer = browser.execute_script(
            "const box = document.querySelector('.scroll');"
            "return [document.documentElement.scrollWidth, box.scrollWidth, box.clientWidth]"
        )
        assert wide <= width
        if width == 400:
            assert inner > outer  # the table scrolls in its own box
        browser.execute_script("document.querySelector('tbody td button').click()")
        left, right = browser.execute_script(
            "const b = document.getElementById('runs').getBoundingClientRect(); return [b.left, b.right]"
        )
        assert 0 <= left < right <= width
        assert browser.execute_script(CROWDED) == []
    browser.execute_script("document.querySelector('.scroll').style.overflow = 'visible'")  # control: without the box it would
    assert width > 400 or browser.execute_script("return document.documentElement.scrollWidth") > width


CONTRAST = """
function channels(colour) { return colour.match(/[\\d.]+/g).map(Number); }
function luminance([r, g, b]) {
  const [x, y, z] = [r, g, b].map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
  return .2126 * x + .7152 * y + .0722 * z;
}
function behind(element) {
  for (; element; element = element.parentElement) {
    const colour = channels(getComputedStyle(element).backgroundColor);
    if (colour[3] !== 0) return colour;
  }
}
const found = {};
for (const element of document.querySelectorAll("body *")) {
  if (![...element.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const [a, b] = [luminance(channels(style.color)), luminance(behind(element))].sort((a, b) => b - a);
  found[element.tagName + "." + element.className] = (a + .05) / (b + .05);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_both_schemes(browser, scheme):
    show(browser, scheme=scheme, view="split-digits/paper/accuracy")
    press(browser, "published", "#families button")
    press(browser, "reference", "#families button")
    found = browser.execute_script(CONTRAST)
    assert len(found) > 8
    assert min(found.values()) >= 4.5, found
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    browser.execute_script("document.documentElement.style.setProperty('--soft', '#888')")  # control
    assert min(browser.execute_script(CONTRAST).values()) < (4.5 if scheme == "light" else 7)


def test_a_script_that_is_not_the_pages_own_is_refused(chromium):
    html = (chromium.folder / "index.html").read_text()
    (chromium.folder / "changed.html").write_text(html.replace('"use strict";', '"use strict"; '))
    show(chromium, file="changed.html")
    assert find(chromium, "#board tbody") == []
    assert any("Content Security Policy" in entry["message"] for entry in chromium.get_log("browser"))


def test_the_published_records_make_a_page(browser):
    results = Path(__file__).parents[2] / "results"
    found = [*read_all(results / "split-cifar100"), *read_all(results / "rotated-digits")]
    groups = {}
    for record in found:
        groups.setdefault((record.job.protocol, record.job.tier), []).append(record)
    html = page([leaderboard(group) for group in groups.values()], base=results.as_posix())
    (browser.folder / "results.html").write_text(html)
    for width in (400, 1600):
        show(browser, width, view="split-cifar100/lite/accuracy", file="results.html")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert len(find(browser, "tbody tr")) == len(configurations(groups["split-cifar100", "lite"]))
    press(browser, "rotated-digits", "#protocol option")  # a board that the tier at hand does not have: its own is shown
    assert find(browser, "#title")[0].text == "Accuracy on rotated-digits, tier paper"
    assert len(find(browser, "tbody tr")) == len(configurations(groups["rotated-digits", "paper"]))
    press(browser, "split-cifar100", "#protocol option")
    assert find(browser, "#title")[0].text == "Accuracy on split-cifar100, tier lite"
    links = [r["record"] for board in content(html)["boards"] for row in board["rows"] for r in row["runs"]]
    assert len(links) == len(found)
    assert all(Path(unquote(link)).is_file() for link in links)
