"""The documentation says what the software does: its commands and snippets run, its links resolve."""

import argparse
import re
import shlex
from glob import glob
from pathlib import Path

import pytest

from benchsuite import resolve, run
from benchsuite.cli.arguments import parser
from benchsuite.cli.main import main
from benchsuite.data import datasets
from benchsuite.fields import field_types
from benchsuite.method import methods
from benchsuite.nn.modifiers import MODIFIERS
from benchsuite.protocol import Recipe, protocols

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "results" / "README.md", *ROOT.glob("C*.md")]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!http)([^)\s]*)\)|src=\"([^\"]+)\"")
FOLDERS = ("benchsuite/", "methods/", "protocols/", "results/", "docs/", "tests/")  # what a code span may name of the repository


def commands(page):
    """The words after `benchsuite` of each of its command lines in the blocks of a page."""
    for language, block in BLOCK.findall(page):
        if language == "sh":
            for line in re.split(r"\n|&&|\|\|", block.replace("\\\n", " ")):
                words = shlex.split(line, comments=True)
                starts = [i for i, word in enumerate(words) if Path(word).name == "benchsuite"]
                if starts:
                    yield words[starts[0] + 1 :]


def subparsers():
    found = {}

    def walk(name, top):
        found[name] = top
        for action in top._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, sub in action.choices.items():
                    walk(f"{name} {word}".strip(), sub)

    walk("", parser())
    return found


def wrong_commands(page, capsys):
    """What is wrong with the commands on a page: those of its blocks are parsed, of those in a sentence the words are known."""
    wrong, known = [], subparsers()
    for words in commands(page):
        try:
            parser().parse_args(words)
        except SystemExit as stop:
            if stop.code:
                wrong.append(f"benchsuite {' '.join(words)}: {capsys.readouterr().err.strip()}")
    for span in SPAN.findall(BLOCK.sub("", page)):
        words = span.split()
        options = {option for sub in known.values() for option in sub._option_string_actions}
        if words[0] == "benchsuite":
            name = next((name for n in (2, 1) if (name := " ".join(words[1 : 1 + n])) in known), None)
            if len(words) > 1 and not words[1].startswith("-") and name is None:
                wrong.append(f"{span}: no such command")
            options = set(known[name or ""]._option_string_actions)
        if words[0] == "benchsuite" or words[0].startswith("--"):
            wrong += [f"{span}: no option {word}" for word in words if word.startswith("--") and word not in options]
    for module, rest in re.findall(r"python -m benchsuite\.([\w.]+)([^`\n]*)", page):
        file = ROOT / "benchsuite" / f"{module.replace('.', '/')}.py"
        text = file.read_text() if file.exists() else ""
        wrong += [f"{module}: no {word}" for word in ["main()", *re.findall(r"--[\w-]+", rest)] if word not in text]
    return wrong


def wrong_names(page):
    """Settings, methods and protocols that a page names in its commands and that do not exist."""
    settings = {*field_types(Recipe), *(name for cls in methods.all().values() for name in field_types(cls))}
    settings |= {name for modifier in MODIFIERS.values() for name in field_types(modifier)}
    wrong = [name for name in re.findall(r"--set ([a-z]\w*)=", page) if name not in settings]
    for name in re.findall(r"--method ([a-z][\w+-]*)(?![\w.+-])", page):
        base, _, modifier = name.partition("+")
        if base not in methods.all() or (modifier and modifier not in MODIFIERS):
            wrong.append(name)
    return wrong + [name for name in re.findall(r"--protocol ([a-z][\w-]+)", page) if name not in protocols.all()]


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page, folder):
    """Links and file names on a page of `folder` that lead nowhere."""
    broken = []
    for link in (link or image for link, image in LINK.findall(page)):
        path, _, anchor = link.partition("#")
        file = folder / path
        if not file.exists() or (anchor and anchor not in headings(file.read_text() if path else page)):
            broken.append(link)
    names = [name for name in SPAN.findall(BLOCK.sub("", page)) if name.startswith(FOLDERS) and not re.search(r"[\s<*]", name)]
    return broken + [name for name in names if not (ROOT / name).exists()]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.relative_to(ROOT).as_posix())
class TestPage:
    def test_its_commands_exist_with_their_options(self, file, capsys):
        assert wrong_commands(file.read_text(), capsys) == []

    def test_its_methods_protocols_and_settings_exist(self, file):
        assert wrong_names(file.read_text()) == []

    def test_its_links_resolve(self, file):
        assert broken_links(file.read_text(), file.parent) == []


@pytest.mark.parametrize(
    "planted",
    [
        "```sh\nbenchsuite report paper --colour red\n```",
        "```sh\nsource x && .venv/bin/benchsuite ranks\n```",
        "```sh\nbenchsuite verify --device cpu  # no run\n```",
        "With `benchsuite leaderboard --colour` it",
        "`benchsuite ranks` it",
        "`--colour red` does",
        "`python -m benchsuite.measure.colour`",
        "`python -m benchsuite.measure.records --colour`",
    ],
)
def test_control_a_wrong_command_is_found(planted, capsys):
    assert len(wrong_commands(planted, capsys)) == 1


@pytest.mark.parametrize("planted", ["--set colour=1", "--method caql --seed 1", "--method cacl+x", "--protocol split-x"])
def test_control_a_wrong_name_is_found(planted):
    assert len(wrong_names(planted)) == 1


@pytest.mark.parametrize("planted", ["[x](colours.md)", "[x](README.md#colours)", '<img src="x.png">', "`benchsuite/colours.py`"])
def test_control_a_broken_link_is_found(planted):
    assert len(broken_links(planted, ROOT)) == 1


def test_the_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize(("heading", "known"), [("## Methods", methods), ("## Protocols", protocols)])
def test_the_readme_names_every_method_and_protocol(heading, known):
    section = README.split(f"{heading}\n")[1].split("\n## ")[0]
    cells = " ".join(row.split("|")[1] for row in section.splitlines() if row.startswith("| `"))
    assert {*SPAN.findall(cells)} - {"METHOD+hosvd"} == {*known.all()}


def test_every_page_is_linked_from_the_readme():
    linked = {link for link, _ in LINK.findall(README)}
    assert {file.relative_to(ROOT).as_posix() for file in PAGES[1:]} <= linked


def typed_in(folder, monkeypatch, page):
    """The snippets and commands of a page, one after another as a reader would type them in an empty folder."""
    monkeypatch.chdir(folder)
    names = {"__name__": "snippet"}
    for language, block in BLOCK.findall(page):
        if language == "python":
            exec(compile(block, "snippet", "exec"), names)
        for words in commands(f"```{language}\n{block}```"):
            assert main([file for word in words for file in (glob(word) or [word])]) == 0
    return names


def test_the_method_of_the_readme_runs(tmp_path, own_methods):
    (block,) = [block for _, block in BLOCK.findall(README) if block.startswith("# anchor.py")]
    (tmp_path / "anchor.py").write_text(block)
    name = own_methods.load_file(tmp_path / "anchor.py")
    record = run(resolve("split-digits", "smoke", name, 1, overrides={"strength": "0.5"}), results=tmp_path)
    assert (record.job.method, record.job.settings["strength"]) == ("anchor", 0.5)


def test_the_protocol_of_the_docs_runs(tmp_path, monkeypatch):
    for known in (protocols, datasets):
        monkeypatch.setattr(known, "_known", dict(known.all()))
        monkeypatch.setattr(known, "_origins", dict(known._origins))
    names = typed_in(tmp_path, monkeypatch, (ROOT / "docs" / "adding-a-protocol.md").read_text())
    assert (names["record"].job.protocol, len(names["record"].tasks)) == ("digit-halves", 2)
    (block,) = [block for _, block in BLOCK.findall(README) if "ImageFolder" in block]
    datasets.remove("photos")
    exec(compile(block, "snippet", "exec"), {"__name__": "snippet"})
    diary = BLOCK.findall((ROOT / "docs" / "own-photos.md").read_text())
    exec(compile(next(text for _, text in diary if "ImageFolder" in text), "snippet", "exec"), {"__name__": "snippet"})
    for name in ("photos", "split-photos"):
        assert [task.classes for task in protocols.get(name).tasks] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]


@pytest.mark.slow
def test_the_python_snippets_run(tmp_path, monkeypatch):
    names = typed_in(tmp_path, monkeypatch, (ROOT / "docs" / "python-api.md").read_text())
    assert names["failed"] == {}
    assert {*names["board"].accuracy["method"]} == {"finetune", "cacl"}
    assert {int(label) for label in names["classes"]} <= {*names["served"].tasks[0]["classes"]}
    (board,) = [block for _, block in BLOCK.findall(README) if "benchsuite.plan" in block]
    again = typed_in(tmp_path, monkeypatch, f"```python\n{board}```")
    assert again["plan"].missing() == []
