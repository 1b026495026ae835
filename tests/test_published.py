"""What is published is what the records say: boards, and the tables on pages."""

import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.measure import ablations
from benchsuite.method.registered import methods
from benchsuite.protocol import protocols
from benchsuite.record.served import read_served
from benchsuite.record.store import read_all
from benchsuite.report import tables
from benchsuite.source import stale

ROOT = Path(__file__).parents[1]
BOARDS = sorted(path.parent for path in ROOT.glob("results/**/leaderboard"))
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
BLOCK = re.compile(r"<!-- (results/.*?) -->\n(.*?)<!-- end -->", re.DOTALL)


def rows(markdown):
    """The lines of its tables."""
    return [line for line in markdown.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("folder", BOARDS, ids=lambda folder: "-".join(folder.relative_to(ROOT).parts[1:]))
def test_a_published_board_is_made_of_the_records_beside_it(folder):
    published = protocols.get(folder.parent.name).published
    board = leaderboard(read_all(folder), published, stale=stale, served=read_served(folder))
    for kind in tables.TITLES:
        made = tables.to_markdown(board, kind)
        assert (folder / "leaderboard" / f"{kind}.md").read_text() == made, (
            f"benchsuite leaderboard --no-run --protocol {folder.parent.name} --tier {folder.name} "
            f"--results {folder.parents[1].relative_to(ROOT)}"
        )
        assert rows(made)


def test_the_table_of_the_ablations_is_made_of_the_records_beside_it(tmp_path, monkeypatch):
    published = ROOT / "results/ablations"
    folder = Path(shutil.copytree(published, tmp_path / "ablations", ignore=shutil.ignore_patterns("ablations.*")))

    def tabulate():
        where = ["--results", str(folder), "--references", str(ROOT / "results"), "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["ablations", "--precision", "bf16", "--no-run", *where])
        ablations.main()
        return (tmp_path / "ablations.md").read_text(), (tmp_path / "ablations.csv").read_text()

    shown = (published / "ablations.md").read_text(), (published / "ablations.csv").read_text()
    assert tabulate() == shown
    assert len(rows(shown[0])) == 2 + len(ablations.CHANGES) + 2, "every change has a row, and so has each reference"
    changed = next(path for path in folder.rglob("record.json") if json.loads(path.read_text())["job"]["settings"]["bits"] == 4)
    changed.unlink()
    assert tabulate() != shown, "control: one record fewer"


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "<!-- results/" in text])
def test_the_tables_of_a_page_are_published_ones(page):
    """Between `<!-- results/FILE -->` and `<!-- end -->` stand the rows of that file's tables, and nothing else."""
    blocks = BLOCK.findall(PAGES[page])
    assert len(blocks) == PAGES[page].count("<!-- results/")
    for file, shown in blocks:
        assert shown.splitlines() == rows((ROOT / file).read_text()), file


def test_the_default_board_tells_methods_apart():
    """What `rotated-digits` is for (issue 18): a wide range, room above, and most rows told from the best by three seeds."""
    records = read_all(ROOT / "results/rotated-digits/paper")
    plain = [r for r in records if "+" not in r.job.method and "width" not in r.job.settings]

    def told(runs):
        """The share of the rows that are told from the best, and the board."""
        board = leaderboard(runs).accuracy
        others = board["competes"] & (board["accuracy"] < board.loc[board["competes"], "accuracy"].max())
        return (board.loc[others, "accuracy_p"] <= 0.05).mean(), board.set_index("method")

    share, board = told(plain)
    ranked = board.loc[board["competes"], "accuracy"]
    assert ranked.max() - ranked.min() >= 20
    assert board.at["joint", "accuracy"] < 97
    assert share >= 0.75
    alone, _ = told([r for r in plain if r.job.seed == 1])
    assert alone == 0, "control: one seed tells nothing"


def test_candidates_on_the_page_are_those_on_file():
    """Rows that begin with a method and an energy threshold. Candidates on file may share these and differ in other settings."""
    on_file = set()
    for path in (ROOT / "results/candidates").glob("*.txt"):
        for line in path.read_text().splitlines():
            described, _, found = line.partition(": ")
            threshold = re.search(r"energy_drop=([^,]+)", described).group(1)
            ends = [float(end) for end in re.findall(r"([\d.]+) % at", found)]
            cells = (
                f"`{described.split(',')[0]}`",
                threshold,
                ", ".join(map(str, ends)),
                f"{sum(ends) / len(ends):.1f}",
                found.split()[-1],
            )
            on_file.add(" | ".join(cells))
    shown = re.findall(r"^\| (`cacl[\w-]*` \| [\d.e-]+ \| .*?) \| (?:used )?\|$", PAGES["settings-at-lite.md"], re.MULTILINE)
    assert len(shown) == 27
    assert set(shown) <= on_file
    assert shown[0].replace("0.224", "0.225") not in on_file, "control"


def test_cacls_candidates_at_lite_on_the_page_are_all_those_on_file():
    """Rows lambda_s | e | accuracy after each task | mean | size | settings that differ from the usual ones; a remark."""
    usual = {"orthogonality_weight": "1", "sigma_rate": "20", "fresh_share": "0.2", "prune_at": "0.6", "exact_vectors": "both"}
    on_file = []
    for line in (ROOT / "results/candidates/split-cifar100.txt").read_text().splitlines():
        described, _, found = line.partition(": ")
        if not described.startswith("cacl, "):
            continue
        assert described.startswith("cacl, bf16, seed 4, 3 tasks, ")
        settings = {name: value.removesuffix(".0") for name, value in re.findall(r"(\w+)=([\w.-]+)", described)}
        ends = [float(end) for end in re.findall(r"([\d.]+) % at", found)]
        unusual = ", ".join(f"`{name}={settings[name]}`" for name in usual if settings[name] != usual[name])
        cells = (
            settings["sparsity_weight"],
            settings["energy_drop"],
            ", ".join(map(str, ends)),
            f"{sum(ends) / len(ends):.1f}",
            found.split()[-1],
            unusual,
        )
        on_file.append(" | ".join(cells).strip())
    text = PAGES["settings-at-lite.md"].replace("**", "")
    shown = re.findall(r"^\| ([\d.]+ \| [\d.e-]+ \| .*?, .*?)(?:; [^|]*)? \|$", text, re.MULTILINE)
    assert len(shown) == 22
    assert sorted(shown) == sorted(on_file)
    assert shown[0].replace("0.578", "0.579") not in on_file, "control"


def test_cacls_candidates_on_twenty_tasks_are_on_the_page():
    """Rows lambda_s | e | prune_at | mean | size; the page's size includes heads, which are 0.018 of a bank of this size."""
    text = PAGES["settings-at-lite.md"].replace("**", "")
    shown = {
        tuple(row[:4]): float(row[4])
        for row in re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+\.\d\d) \| ([\d.]+) \|$", text, re.M)
    }
    lines = (ROOT / "results/candidates/split-cifar100-20-tasks.txt").read_text().splitlines()
    assert lines
    for line in lines:
        settings = dict(re.findall(r"(\w+)=([\w.-]+)", line))
        ends = [float(end) for end in re.findall(r"([\d.]+) % at", line)]
        assert len(ends) == 20
        row = (settings["sparsity_weight"], settings["energy_drop"], settings["prune_at"], f"{sum(ends) / 20:.2f}")
        assert shown[row] == pytest.approx(float(line.split()[-1]) + 0.018, abs=0.002)
        assert (*row[:3], f"{ends[0]:.2f}") not in shown, "control: the first task alone"


def test_the_step_times_at_half_the_width_are_those_on_file():
    """Rows method | task 2 | task 20 | speed at task 20 over that at task 2."""
    table = PAGES["speed.md"].split("### Both phases")[1].split("The target for")[0]
    on_file = re.findall(
        r"^\| ([^|]+), task (\d+) \| ([^|]+), task (\d+) \| ([\d.]+) ",
        (ROOT / "results/bench/half-width/bench.md").read_text(),
        re.M,
    )
    ratios = {(name, task, other, base): float(ratio) for name, task, other, base, ratio in on_file}
    shown = re.findall(r"^\| `([\w-]+)`(, [\w ]+)? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", table, re.M)
    assert len(shown) == 15
    for method, second, early, late, speed in shown:
        name = method + (" second phase" if second else "")
        times = [ratios[name, task, "finetune", task] for task in ("2", "20")]
        assert [early, late, speed] == [f"{value:.2f}" for value in (*times, 1 / ratios[name, "20", name, "2"])]
        assert speed != f"{ratios[name, '20', name, '2'] + 0.2:.2f}", "control: another figure"


TUNED = [(name, preset) for name in methods.all() for preset in methods.get(name).settings if preset.origin.startswith("tuned: ")]


@pytest.mark.parametrize(("name", "preset"), TUNED, ids=lambda part: part if isinstance(part, str) else part.protocol)
def test_settings_that_were_tuned_are_the_best_of_a_published_search_in_the_present_space(name, preset):
    study = json.loads((ROOT / "results/tune" / preset.protocol / preset.tier / f"{name}.json").read_text())
    assert (study["best"]["origin"], study["best"]["values"]) == (preset.origin, preset.values)
    space = {setting: {"kind": type(space).__name__, **asdict(space)} for setting, space in methods.get(name).space.items()}
    assert study["space"] == json.loads(json.dumps(space)), "search again, or say which settings were searched"
