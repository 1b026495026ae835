"""What is listed without an import is what an import says."""

import sys
from importlib.metadata import EntryPoint

import pytest

from benchsuite import catalogue
from benchsuite.catalogue import MethodEntry
from benchsuite.method import methods
from benchsuite.nn.modifiers import MODIFIERS


def by_import():
    return {
        name: MethodEntry(name, catalogue.first_line(cls.__doc__), cls.family, cls.forgetting)
        for name, cls in methods.all().items()
    }


def test_every_method_is_listed_as_an_import_shows_it():
    listed = catalogue.methods()
    assert list(listed.items()) == list(by_import().items())
    assert all(entry.summary for entry in listed.values())
    assert {entry.forgetting for entry in listed.values()} == {"some", "none"}


def test_every_modifier_is_listed_as_an_import_shows_it():
    listed = catalogue.modifiers()
    assert list(listed.items()) == [(name, catalogue.first_sentence(cls.__doc__)) for name, cls in MODIFIERS.items()]
    assert all(len(summary) > 20 for summary in listed.values())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class Finetune(", "class Retrain("),
        ('    """', '    """Another '),
        ('family = "reference"', 'family = "other words"'),
        ('family = "reference"', 'family = "reference"\n    forgetting = "none"'),
        ("@register\n", ""),
    ],
)
def test_a_source_that_differs_from_what_was_imported_is_found(old, new, monkeypatch, tmp_path):
    """Control: the file of finetune is changed after its import."""
    find, changed = catalogue.find_source, tmp_path / "finetune.py"
    text = find("benchsuite.methods.finetune").read_text()
    assert old in text
    changed.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(catalogue, "find_source", lambda name: changed if name.endswith(".finetune") else find(name))
    assert list(catalogue.methods().items()) != list(by_import().items())


ANCESTOR = """
from benchsuite import Method
class Ancestor(Method):
    family = "moorings"
    forgetting: str = "none"
"""

BASES = {
    "from benchsuite import Method as Base\nclass Theirs(Base):": ("other", "some"),
    "import benchsuite\nclass Theirs(benchsuite.Method):": ("other", "some"),
    "import benchsuite.method as m\nclass Theirs(m.Method):": ("other", "some"),
    "from benchsuite.methods.cacl_cp import CACLCP\nclass Theirs(CACLCP):": ("factorised", "none"),
    "import benchsuite.methods.cacl\nclass Theirs(benchsuite.methods.cacl.CACL):": ("factorised", "none"),
    "from benchsuite.methods import hat as theirs\nclass Theirs(theirs.HAT):": ("parameter isolation", "none"),
    "from .ancestor import Ancestor\nclass Theirs(Ancestor):": ("moorings", "none"),
    "from . import ancestor\nclass Theirs(ancestor.Ancestor):": ("moorings", "none"),
    "from nowhere import Unknown\nclass Theirs(Unknown):": ("other", "some"),
}


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """distribution(text): a package of somebody else's whose entry point is a module with this text."""

    def install(text):
        package = tmp_path / "their_package"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "ancestor.py").write_text(ANCESTOR)
        (package / "method.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        point = EntryPoint("from-elsewhere", "their_package.method", "benchsuite.methods")
        monkeypatch.setattr(catalogue, "entry_points", lambda group: [point] if group == point.group else [])

    return install


@pytest.mark.parametrize(("lines", "says"), BASES.items())
def test_what_a_method_inherits_is_found_through_every_kind_of_import(lines, says, distribution):
    above, _, line = lines.rpartition("\n")
    distribution(f"{above}\nfrom benchsuite import register\n@register\n{line}\n    'One line.\\n\\nMore.'\n    name = 'mine'")
    before = set(sys.modules)
    assert catalogue.methods()["mine"] == MethodEntry("mine", "One line.", *says)
    assert not {name for name in set(sys.modules) - before if name.startswith("their_package")}


@pytest.mark.parametrize("text", ["import benchsuite\nbenchsuite.register(make())", ""])
def test_an_entry_point_that_cannot_be_read_is_listed_as_it_is(text, distribution):
    distribution(text)
    assert "their_package.method" in catalogue.methods()["from-elsewhere"].summary


def test_a_module_without_source_is_not_found():
    assert catalogue.find_source("sys") is None
    assert catalogue.find_source("no_such_package.module") is None
    assert catalogue.find_source("json.no_such_module") is None
    assert catalogue.find_source("json.decoder").name == "decoder.py"
