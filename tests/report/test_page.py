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
from benchsuite.record.schema import FORMS
from benchsuite.record.store import read_all, write
from benchsuite.report import tables
from benchsuite.report.latex import board_table, latex_text
from benchsuite.report.looks import STROKES, labels_of
from benchsuite.report.page import page
from benchsuite.report.selection import Row, Selection

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


def shown_of(made, tier="lite", **options):
    """What the page has of the board of one tier."""
    return next(board for board in content(page(made, **options))["boards"] if board["tier"] == tier)


def named(labels):
    """What the page calls rows: the label of the method, and what follows its name."""
    names = {"er": "ER", "finetune": "Fine-tuning", "hat": "HAT", "individual": "Individual", "joint": "Joint"}
    return [re.sub(r"^[a-z]+", lambda name: names.get(name[0], name[0]), label) for label in labels]


def stored(*correct, size=1_000_000, names=FORMS):
    """Storage forms of two tasks; each is half as large as the one before."""
    forms = {}
    for i, (name, right) in enumerate(zip(names, correct, strict=True)):
        forms[name] = {"sizes": {"weights": size // 2**i - 1000, "heads": 1000, "masks": 0, "other": 0}, "correct": list(right)}
    return forms


# ---- what is in the page


@pytest.mark.slow
def test_no_torch_is_needed():
    code = (
        "import sys, benchsuite.report.page\n"
        "assert not {'torch', 'torchvision', 'avalanche', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", tables.TITLES)
@pytest.mark.slow
def test_tables_hold_the_numbers_of_the_board_and_the_text_of_the_printed_one(kind):
    made = boards()
    for board in made:
        shown = shown_of(made, board.tier)
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
            texts[0] = named([texts[0]])[0]
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
    latex = board_table(board, "accuracy", Selection())[0].replace(r"\allowbreak{}", "")
    for mark, wrap in (("best", r"\textbf"), ("second", r"\underline")):
        (row,) = (shown["rows"][i]["label"] for i in columns["accuracy"][mark])
        called = labels_of(board)[row]
        assert re.search(rf"^(\\raggedright )?{re.escape(latex_text(called))} & {re.escape(wrap)}{{", latex, re.MULTILINE)
        assert row != "joint"  # which does not compete
    assert columns["n"]["best"] == columns["n"]["second"] == []
    assert shown["captions"]["accuracy"] == tables.caption(board, "accuracy")


def test_behind_each_row_are_its_runs_each_with_its_own_numbers():
    shown = shown_of(boards(), base="..")
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
    rows = {row["label"]: row for row in shown_of(boards(), "paper")["rows"]}
    assert (rows["CACL (published)"]["families"], rows["CACL (published)"]["runs"]) == (["published"], [])
    assert rows["A-GEM (published)"]["look"][1] in STROKES
    assert [label for label, row in rows.items() if row["published"]] == ["CACL (published)", "A-GEM (published)"]


def test_a_row_has_the_family_of_its_method_and_a_modifier_adds_one():
    rows = {row["label"]: row["families"] for row in shown_of(boards())["rows"]}
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
    assert any("</script>" in note["text"] for note in shown_of(boards())["notes"])
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


def test_the_most_informative_board_comes_first():
    partial = {"name": "digits", "digest": "d" * 64, "complete": False, "note": ""}

    def made(tier, *methods, seeds=(1,), **changes):
        of = [run(method, seed, **changes) for method in methods for seed in seeds]
        return leaderboard([changed(record, job=changed(record.job, tier=tier)) for record in of])

    ordered = [
        made("paper", "er", "lwf", seeds=(1, 2)),
        made("lite", "er", "lwf", "hat"),
        made("smoke", "er", "lwf", "hat", "ewc", seeds=(1, 2, 3)),
    ]
    assert [board["tier"] for board in content(page(ordered[::-1]))["boards"]] == ["paper", "lite", "smoke"]
    incomplete = made("paper", "er", "lwf", seeds=(1, 2), data=[partial])
    assert [board["tier"] for board in content(page([incomplete, *ordered[1:]]))["boards"]] == ["lite", "smoke", "paper"]

    def elsewhere(name, board):
        of = [changed(record, job=changed(record.job, protocol=name)) for group in board.runs.values() for record in group]
        return leaderboard(of)

    more = [
        elsewhere("rows", made("lite", "er", "lwf")),
        elsewhere("seeds", made("lite", "er", seeds=(1, 2))),
        made("lite", "er"),
    ]
    assert [board["protocol"] for board in content(page(more))["boards"]] == ["seeds", "rows", "split-digits"]


@cache
def two_protocols():
    """lwf is better than er on one of two protocols; hat is on one only."""
    few = [run(name, correct=((90, None), (last, 80)), forms=stored((last, 80), (last - 5, 80), (last - 5, 70), (0, 0), (0, 0)))
           for name, last in (("er", 70), ("lwf", 60))]  # fmt: skip
    other = [run("er", correct=((90, None), (50, 80))), run("lwf", correct=((90, None), (60, 80))), run("hat")]
    renamed = [changed(record, job=changed(record.job, protocol="<b>other")) for record in other]
    return [leaderboard(few), leaderboard(renamed)]


def test_a_summary_puts_protocols_side_by_side():
    made = content(page(two_protocols()))
    summary, boards_of = made["summary"], made["boards"]
    assert [column["heading"] for column in summary["columns"]][:3] == ["Method", "Average rank", "Accuracy (%)"]
    assert [column.get("group") for column in summary["columns"]][1:] == [
        "All",
        *["<b>other, tier lite"] * 4,
        *["split-digits, tier lite"] * 4,
    ]
    cells = {summary["of"][row["row"]]["name"]: [text for _, text, *_ in row["cells"]] for row in summary["rows"]}
    assert cells["ER"][1:] == ["1.50", "65.00", "-40.00", "1.00", "n/a: no storage forms on record", "75.00", "-20.00", "1.00",
                               "0.250"]  # fmt: skip
    assert [texts[1] for texts in cells.values()] == ["1.50", "1.50", "n/a: no runs on split-digits/lite"]
    assert {mark: [summary["of"][row]["name"] for row in summary["columns"][1][mark]] for mark in ("best", "second")} == {
        "best": list(cells)[:2],  # level
        "second": [],
    }
    for place, board in enumerate(boards_of):  # where each of its rows is on the boards
        for said in summary["of"]:
            assert said["on"].get(str(place)) in (
                None,
                *[i for i, row in enumerate(board["rows"]) if row["name"] == said["name"]],
            )
    assert content(page([two_protocols()[0]]))["summary"] is None  # control


def test_a_row_has_its_size_and_accuracy_in_every_storage_form():
    board, _ = two_protocols()
    (shown,) = content(page([board]))["boards"]
    assert list(shown["forms"]) == list(FORMS)
    labels = [row["label"] for row in shown["rows"]]
    size, accuracy = (shown["forms"]["fp16"][name] for name in ("megabytes", "accuracy"))
    assert (size["heading"], accuracy["heading"]) == ("Size (MB), fp16", "Accuracy (%), fp16")
    assert {labels[int(i)]: cell for i, cell in size["cells"].items()} == {key: [0.5, "0.500", None] for key in ("er", "lwf")}
    assert {labels[int(i)]: cell[1] for i, cell in accuracy["cells"].items()} == {"er": "72.50", "lwf": "67.50"}
    assert ([labels[i] for i in accuracy["best"]], [labels[i] for i in accuracy["second"]]) == (["er"], ["lwf"])
    (of_run,) = shown["rows"][labels.index("er")]["runs"]
    assert (of_run["values"]["accuracy fp16"], of_run["values"]["megabytes int8"]) == ("72.50", "0.250")
    assert shown_of(boards())["forms"] == {}


def test_each_task_has_its_accuracy_right_after_learning_and_at_the_end():
    shown = shown_of(boards())
    labels = [row["label"] for row in shown["rows"]]
    texts = {
        moment: {labels[row["row"]]: [cell[1] for cell in row["cells"]] for row in table["rows"]}
        for moment, table in shown["tasks"].items()
    }
    assert [column["heading"] for column in shown["tasks"]["final"]["columns"]] == [
        "Method",
        "Task 1: task 0",
        "Task 2: task 1",
        "Family",
    ]
    assert texts["learned"]["finetune"] == ["Fine-tuning", "90.00 ± 0.00", "80.00 ± 0.00", "reference"]
    assert texts["final"]["finetune"][1:3] == ["73.00 ± 12.71", "80.00 ± 0.00"]
    assert texts["change"]["finetune"][1:3] == ["-17.00 ± 12.71", "0.00 ± 0.00"]
    assert texts["learned"]["joint"][1:3] == ["n/a: joint training"] * 2 != texts["final"]["joint"][1:3]
    best = shown["tasks"]["final"]["columns"][1]["best"]
    assert [labels[i] for i in best] == ["individual"]  # joint training does not compete


def test_a_method_of_ones_own_has_the_family_and_label_of_its_record():
    own = run("anchor", method_source="f" * 64, family="replay", label="Anchor++", marker="*")
    (row,) = content(page([leaderboard([own])]))["boards"][0]["rows"]
    assert (row["families"], row["name"], row["look"][1]) == (["replay"], "Anchor++", "*")


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
    assert ranked == named(boards()[0].accuracy["method"])
    states = []
    for _ in range(3):
        press(browser, "Learning accuracy", "thead button")
        assert browser.switch_to.active_element.text.startswith("Learning accuracy")  # ready to be pressed again
        state = find(browser, "#board thead th:nth-child(3)")[0].get_attribute("aria-sort")
        states.append((state, column(browser, "Learning accuracy (%)")))
    (down, largest), (up, smallest), (none, _) = states
    assert (down, up, none) == ("descending", "ascending", "none")
    numbers = [float(text.split(" ")[0]) for text in largest[:-1]]
    assert numbers == sorted(numbers, reverse=True) != sorted(numbers)
    assert [float(text.split(" ")[0]) for text in smallest[:-1]] == sorted(numbers)
    assert largest[-1][:3] == smallest[-1][:3] == "n/a"  # last, whichever way
    assert column(browser, "Method") == ranked
    press(browser, "Method", "thead button")
    assert column(browser, "Method") == named(sorted(boards()[0].accuracy["method"]))


def test_the_reason_of_what_is_not_applicable_stands_below(browser):
    assert find(browser, "#board-section .reasons")[0].text == "a n/a: joint training. b n/a: no matching run of individual."
    assert column(browser, "Learning accuracy (%)")[0] == "n/aa"
    find(browser, "#search")[0].send_keys("finetune")  # where nothing needs a reason there is none
    assert find(browser, "#board-section .reasons")[0].text == ""


def test_families_and_names_filter_the_table_and_the_figures(browser):
    everything = column(browser, "Method")
    press(browser, "parameter isolation", "#families button")
    isolated = [name for name in everything if name.startswith("HAT")]
    assert column(browser, "Method") == isolated
    assert sorted(named(points(browser))) == sorted(isolated)
    assert find(browser, "#count")[0].text == f"2 of {len(everything)} rows"
    press(browser, "compressed", "#families button")
    assert set(column(browser, "Method")) == {*isolated, "Fine-tuning+hosvd"}
    find(browser, "#search")[0].send_keys("HOSVD")  # capitals make no difference
    assert points(browser) == points(browser, 2) == ["finetune+hosvd"]
    assert column(browser, "Method") == ["Fine-tuning+hosvd"]
    press(browser, "Backward transfer", "#kinds button")
    assert column(browser, "Method") == ["Fine-tuning+hosvd"]
    find(browser, "#search")[0].send_keys("x")
    assert "No row matches these filters." in find(browser, "#board")[0].text
    assert points(browser) == []
    press(browser, "parameter isolation", "#families button")
    press(browser, "compressed", "#families button")
    find(browser, "#search")[0].clear()
    find(browser, "#search")[0].send_keys("mine, Finetune")  # a whole name is that row alone
    assert column(browser, "Method") == ["mine", "Fine-tuning"]
    find(browser, "#search")[0].send_keys("+")
    assert column(browser, "Method") == ["mine", "Fine-tuning+hosvd"]


def test_each_tier_has_tables_of_its_own(browser):
    options = [option.text for option in find(browser, "#tier option")]
    assert options == ["paper", "lite"]
    assert "(published)" not in find(browser, "#board")[0].text
    find(browser, "#tier option")[0].click()
    assert "CACL (published)" in column(browser, "Method")
    assert find(browser, "#title")[0].text == "Accuracy on split-digits, tier paper"
    assert find(browser, "#provenance")[0].text == boards()[1].provenance
    board = boards()[1]
    notes = [note.calling(labels_of(board)) for note in tables.notes_of(board)]
    assert [note.text for note in find(browser, "#notes li")] == notes
    styles = {
        row.text.split("\n")[0]: row.find_element("css selector", "th").value_of_css_property("font-style")
        for row in find(browser, "#board tbody tr")
    }
    assert styles["CACL (published)"] == "italic" != styles["Joint"]
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


LINES = "const r = document.createRange(); r.selectNodeContents(arguments[0]); return r.getClientRects().length"


def test_a_cell_opens_the_runs_behind_it(browser):
    at = column(browser, "Method").index("Fine-tuning") + 1
    find(browser, f"#board tbody tr:nth-child({at}) td:nth-child(2) button")[0].click()
    panel = find(browser, "#runs")[0]
    assert panel.is_displayed()
    assert browser.execute_script(LINES, find(browser, "#runs thead th")[0]) == 1  # once it was broken into letters
    assert "Accuracy (%): 76.50 ± 6.35" in panel.text
    assert [row.text.split()[:3] for row in find(browser, "#runs tbody tr")] == [
        ["1", "record.json", "76.00"],
        ["2", "record.json", "77.00"],
    ]
    files = [Path(unquote(urlsplit(link.get_attribute("href")).path)) for link in find(browser, "#runs a")]
    assert [json.loads(file.read_text())["job"]["seed"] for file in files] == [1, 2]
    keys(browser, "ESCAPE")
    assert not panel.is_displayed()


def test_a_run_without_a_partner_of_its_seed_says_so(browser):
    few = [individual(), *(run(seed=seed) for seed in (1, 2))]
    (browser.folder / "few.html").write_text(page([leaderboard(few)]))
    show(browser, view="split-digits/lite/parameter_efficiency", file="few.html")
    at = column(browser, "Method").index("Fine-tuning") + 1
    x = [h.text for h in find(browser, "#board thead th")].index("Size ratio") + 1
    find(browser, f"#board tbody tr:nth-child({at}) td:nth-child({x}) button")[0].click()
    assert [row.text.split()[:3] for row in find(browser, "#runs tbody tr")] == [
        ["1", "record.json", "0.500"],
        ["2", "record.json", "n/a:"],
    ]


@pytest.mark.parametrize("view", ["%", "split-digits/%zz/accuracy", "no/such/board"])
def test_an_address_that_cannot_be_read_shows_the_first_board(browser, view):
    show(browser, view=view)
    assert find(browser, "#title")[0].text == "Accuracy on split-digits, tier paper"
    assert column(browser, "Method")


def test_the_text_of_records_is_never_markup(browser):
    at = column(browser, "Method").index("mine") + 1
    find(browser, f"#board tbody tr:nth-child({at}) button")[0].click()
    said = [note.text for note in find(browser, "#runs .note")]
    assert "mine: <b>not bold</b></script>" in said
    assert "Settings: epochs = 10 (of the paper)" in said
    keys(browser, "ESCAPE")


def test_the_keyboard_moves_between_cells_and_opens_them(browser):
    browser.execute_script("document.querySelector('#board tbody button').focus()")
    keys(browser, "ARROW_UP")  # above the first row there is none
    keys(browser, "ARROW_DOWN", "ARROW_RIGHT", "ENTER")
    assert find(browser, "#runs")[0].is_displayed()
    assert f"{column(browser, 'Accuracy (%)')[1]}" in find(browser, "#runs p")[0].text
    keys(browser, "ESCAPE")
    assert browser.switch_to.active_element.text == column(browser, "Accuracy (%)")[1]
    assert len(find(browser, "#board tbody button[tabindex='0']")) == 1


def test_a_point_has_a_tooltip_for_mouse_and_keyboard_and_opens_its_runs(browser):
    from selenium.webdriver import ActionChains

    tooltip = find(browser, "#tooltip")[0]
    point = find(browser, "figure:first-child [data-row='finetune']")[0]
    assert not tooltip.is_displayed()
    ActionChains(browser).scroll_to_element(point).move_to_element(point).perform()
    assert tooltip.text.split("\n") == ["Fine-tuning", "Accuracy (%): 76.50 ± 6.35", "Size (MB): 1.000", "n = 2"]
    ActionChains(browser).move_to_element(find(browser, "h1")[0]).perform()
    assert not tooltip.is_displayed()
    browser.execute_script("arguments[0].previousSibling.focus()", point)
    keys(browser, "TAB")
    assert browser.switch_to.active_element == point
    assert tooltip.text.startswith("Fine-tuning\n")
    keys(browser, "ESCAPE")
    assert not tooltip.is_displayed()
    keys(browser, "ENTER")
    assert find(browser, "#runs-title")[0].text == "Fine-tuning"
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
        (path,) = find(browser, "figure:first-child path[data-front]")
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
    assert named(row["method"] for row in rows) == names != sorted(names)
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
    every = {"accuracy": ("accuracy", "learning_accuracy", "forward_gain")}  # whether they fit or not
    expected, _ = board_table(boards()[0], "accuracy", Selection(columns=every))

    def numbers(table):
        found = table.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
        return [re.findall(r"(?:\$-\$)?\d+\.\d+", re.sub(r"\\phantom{[^}]*}", "", row)) for row in found]

    assert numbers(text) == numbers(expected)
    assert any("$-$" in number for row in numbers(text) for number in row)
    assert r"\par\raggedright\footnotesize n/a: joint training (Joint)" in text


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


def choose(chrome, select, text):
    next(option for option in find(chrome, f"#{select} option") if option.text == text).click()


@pytest.fixture
def several(browser):
    """Two protocols, one of them with storage forms."""
    (browser.folder / "several.html").write_text(page(two_protocols()))
    show(browser, view="split-digits/lite/parameter_efficiency", file="several.html")
    return browser


def test_the_storage_form_is_chosen_for_the_table_the_figure_and_the_runs(several):
    def words():
        return [point.get_attribute("aria-label") for point in find(several, "figure:first-child [data-row]")]

    assert column(several, "Size (MB)") == ["1.00", "1.00"]
    assert "Size (MB): 1.00" in words()[0]
    choose(several, "form", "int8")
    assert column(several, "Size (MB), int8") == ["0.250", "0.250"]
    assert dict(zip(column(several, "Method"), column(several, "Accuracy (%), int8"), strict=True)) == {
        "ER": "67.50",
        "LwF": "62.50",
    }
    assert not {"Size ratio", "Pareto", "8-bit size (MB)"} & {h.text for h in find(several, "#board thead th")}  # of another file
    assert all("Size (MB), int8: 0.250" in text for text in words())
    find(several, "#board tbody td button")[0].click()
    assert find(several, "#runs tbody td")[1].text == "0.250"
    keys(several, "ESCAPE")
    press(several, "Accuracy", "#kinds button")
    assert column(several, "Accuracy (%), int8") == ["67.50", "62.50"]
    choose(several, "protocol", "<b>other")  # which has no such form
    assert column(several, "Accuracy (%)") == ["75.00", "70.00", "65.00"]
    assert not find(several, "#form")[0].is_displayed()


def test_a_link_restores_the_view(several):
    choose(several, "form", "int6")
    press(several, "Accuracy", "#board thead button")
    press(several, "Average rank", "#summary thead button")
    press(several, "regularisation", "#families button")
    press(several, "replay", "#families button")
    find(several, "#search")[0].send_keys("lwf, er")
    find(several, "#choose summary")[0].click()
    press(several, "Family", "#columns label")
    press(several, "MACs", "#columns label")

    def view():
        pressed = [button.text for button in find(several, "button[aria-pressed=true]")]
        return [table.text for table in find(several, "#board, #summary")], find(several, "#count")[0].text, pressed

    before, address = view(), several.execute_script("return location.hash.slice(1)")
    assert find(several, "#count")[0].text == "2 rows, sorted by Accuracy (%), int6, largest first"
    show(several, view=address, file="several.html")
    assert view() == before
    assert find(several, "#search")[0].get_attribute("value") == "lwf, er"
    show(several, view=address.split("?")[0], file="several.html")  # control
    assert view() != before
    press(several, "Per task", "#kinds button")
    choose(several, "moment", "right after learning")
    before, address = view(), several.execute_script("return location.hash.slice(1)")
    show(several, view=address, file="several.html")
    assert view() == before
    show(several, view="split-digits/lite/toString?form=constructor&sort=-no&family=none&columns=x&moment=y", file="several.html")
    assert column(several, "Size (MB)" if "Parameter" in find(several, "#title")[0].text else "Accuracy (%)")


def test_a_summary_stands_above_the_board_and_opens_runs_of_both(several):
    assert find(several, "#over-title")[0].text == "Summary over 2 protocols"
    assert [th.text for th in find(several, "#summary thead th[scope=colgroup]")] == [
        "All",
        "<b>other, tier lite",
        "split-digits, tier lite",
    ]
    assert [row.text.split()[0] for row in find(several, "#summary tbody tr")] == ["ER", "LwF", "HAT"]
    for nth, where, value in ((3, "<b>other", "65.00"), (7, "split-digits", "75.00")):
        find(several, f"#summary tbody tr:first-child > :nth-child({nth}) button")[0].click()
        said = find(several, "#runs")[0].text
        assert where in said
        assert f"Accuracy (%): {value}" in said
        keys(several, "ESCAPE")
    find(several, "#search")[0].send_keys("hat")
    assert [row.text.split()[0] for row in find(several, "#summary tbody tr")] == ["HAT"]


def test_each_task_is_shown_in_a_table_and_a_panel_for_each_row(browser):
    press(browser, "Per task", "#kinds button")
    assert column(browser, "Task 1: task 0")[:2] == ["95.00", "90.00 ± 0.00"]
    panels = {point.get_attribute("data-row"): point.get_attribute("aria-label") for point in find(browser, "figure [data-row]")}
    assert named(panels) == column(browser, "Method")
    assert panels["finetune"] == (
        "Fine-tuning; Task 1: task 0: 90.00 ± 0.00 right after learning, 73.00 ± 12.71 at the end;"
        " Task 2: task 1: 80.00 ± 0.00 right after learning, 80.00 ± 0.00 at the end"
    )
    choose(browser, "moment", "at the end minus right after")
    assert column(browser, "Task 1: task 0")[column(browser, "Method").index("Fine-tuning")] == "-17.00 ± 12.71"
    assert find(browser, "figure [data-row='finetune']")[0].get_attribute("aria-label") == panels["finetune"]
    find(browser, "#search")[0].send_keys("hat")
    assert len(find(browser, "figure [data-row]")) == 2


def test_assistive_technology_is_told_what_the_eye_sees(several):
    caption = find(several, "#board caption")[0].get_attribute("textContent")
    assert caption == "Parameter efficiency on split-digits, tier lite: 2 rows"
    assert {th.get_attribute("scope") for th in find(several, "#board th")} == {"col", "row"}
    assert find(several, "#count")[0].get_attribute("role") == "status"
    (svg,) = find(several, "figure:first-child svg[role=group]")
    says = find(several, f"#{svg.get_attribute('aria-describedby')}")[0].text
    assert "Pareto front of the whole board (LwF, ER)" in says
    press(several, "Accuracy", "#kinds button")
    assert [cell.get_attribute("aria-label") for cell in find(several, "#board tbody td:nth-child(2) button")] == [
        "75.00, best",
        "70.00, second",
    ]
    unnamed = """
        const all = document.querySelectorAll("button, select, input, table, svg[role], dialog, section");
        const named = e => e.textContent.trim() || e.ariaLabel || e.labels?.length || e.getAttribute("aria-labelledby");
        return [...all].filter(e => e.checkVisibility() && !named(e)).map(e => e.outerHTML);
    """
    assert several.execute_script(unnamed) == []
    several.execute_script(
        "document.querySelector('#search').parentNode.replaceWith(document.querySelector('#search'))"
    )  # control
    assert len(several.execute_script(unnamed)) == 1


def test_a_selection_is_a_filter_that_the_page_opens_with(browser):
    rows = (Row(name="hat", label="HAT*"), Row(name="mine", label="Our method", ours=True))
    (browser.folder / "selected.html").write_text(page(boards(), selection=Selection(rows=rows)))
    show(browser, view="", file="selected.html")
    assert [name.split(" ")[0] for name in column(browser, "Method")] == ["HAT*", "HAT*", "Our"]
    weights = [
        row.find_element("css selector", "th").value_of_css_property("font-weight") for row in find(browser, "#board tbody tr")
    ]
    assert weights == ["400", "400", "600"]
    address = browser.execute_script("return location.hash.slice(1)")
    press(browser, "selected", "#families button")
    assert len(column(browser, "Method")) > 3
    everything = browser.execute_script("return location.hash.slice(1)")
    for view, several in ((address, False), (everything, True)):
        show(browser, view=view, file="selected.html")
        assert (len(column(browser, "Method")) > 3) == several
    assert "selected" not in column(browser, "Family")


def test_on_paper_there_are_tables_and_figures_but_no_controls(several):
    controls = "input, select, #kinds, #families, #downloads, #link, details, #all"
    assert any(element.is_displayed() for element in find(several, controls))
    several.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not any(element.is_displayed() for element in find(several, controls))
        assert all(
            element.is_displayed() for element in find(several, "#board, #summary, figure svg[role=group], #notes, #provenance")
        )
        assert {box.value_of_css_property("overflow-x") for box in find(several, "main .scroll")} == {"visible"}
    finally:
        several.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


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
    for kind in (*tables.TITLES, "tasks"):
        show(browser, width, view=f"split-digits/paper/{kind}")
        for box in find(browser, "#columns input:not(:checked)"):
            browser.execute_script("arguments[0].click()", box)
        find(browser, "#choose summary")[0].click()  # the open list of columns has to fit as well
        wide, inner, outer = browser.execute_script(
            "const box = document.querySelector('#board').parentNode;"
            "return [document.documentElement.scrollWidth, box.scrollWidth, box.clientWidth]"
        )
        assert wide <= width
        if width == 400 and kind != "tasks":
            assert inner > outer  # the table scrolls in its own box
        browser.execute_script("document.querySelector('#board tbody td button').click()")
        left, right = browser.execute_script(
            "const b = document.getElementById('runs').getBoundingClientRect(); return [b.left, b.right]"
        )
        assert 0 <= left < right <= width
        assert browser.execute_script(CROWDED) == []
    show(browser, width, view="split-digits/paper/accuracy")
    browser.execute_script(
        "document.querySelector('#board').parentNode.style.overflow = 'visible'"
    )  # control: without the box it would
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
        show(browser, width, view="split-cifar100/lite/tasks", file="results.html")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert find(browser, "figure [data-row]")
        show(browser, width, view="", file="results.html")
        assert find(browser, "#title")[0].text == "Accuracy on rotated-digits, tier paper"  # three seeds, and the larger tier
        show(browser, width, view="split-cifar100/lite/accuracy", file="results.html")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script(CROWDED) == []
        assert len(find(browser, "#board tbody tr")) == len(configurations(groups["split-cifar100", "lite"]))
    press(browser, "rotated-digits", "#protocol option")  # a board that the tier at hand does not have: its own is shown
    assert find(browser, "#title")[0].text == "Accuracy on rotated-digits, tier paper"
    assert len(find(browser, "#board tbody tr")) == len(configurations(groups["rotated-digits", "paper"]))
    press(browser, "split-cifar100", "#protocol option")
    assert find(browser, "#title")[0].text == "Accuracy on split-cifar100, tier lite"
    links = [r["record"] for board in content(html)["boards"] for row in board["rows"] for r in row["runs"]]
    assert len(links) == len(found)
    assert all(Path(unquote(link)).is_file() for link in links)
