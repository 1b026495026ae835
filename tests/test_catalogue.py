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
        name: MethodEntry(name, catalogue.first_line(cls.__doc__), cls.family, cls.forgetting, cls.label, cls.marker)
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
        ('label = "Fine-tuning"', 'label = "FT"'),
        ('marker = "v"', ""),
        ("@register\n", ""),
    ],
)
@pytest.mark.slow
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
    """distribution(*texts): a package of somebody else's with an entry point for each of these modules."""

    def install(*texts):
        package = tmp_path / "their_package"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "ancestor.py").write_text(ANCESTOR)
        points = []
        for i, text in enumerate(texts):
            (package / f"method{i}.py").write_text(text)
            points.append(EntryPoint(f"from-elsewhere-{i}", f"their_package.method{i}", "benchsuite.methods"))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(catalogue, "entry_points", lambda group: points if group == "benchsuite.methods" else [])

    return install


def test_what_a_method_inherits_is_found_through_every_kind_of_import(distribution):
    texts = []
    for i, lines in enumerate(BASES):
        above, _, line = lines.rpartition("\n")
        body = f"    'One line.\\n\\nMore.'\n    name = 'mine{i}'"
        texts.append(f"{above}\nfrom benchsuite import register\n@register\n{line}\n{body}")
    distribution(*texts)
    before, found = set(sys.modules), catalogue.methods()
    for i, (lines, says) in enumerate(BASES.items()):
        assert found[f"mine{i}"] == MethodEntry(f"mine{i}", "One line.", *says, label=f"mine{i}"), lines
    assert not {name for name in set(sys.modules) - before if name.startswith("their_package")}


def test_an_entry_point_that_cannot_be_read_is_listed_as_it_is(distribution):
    distribution("import benchsuite\nbenchsuite.register(make())", "")
    found = catalogue.methods()
    for i in range(2):
        assert f"their_package.method{i}" in found[f"from-elsewhere-{i}"].summary


def test_a_module_without_source_is_not_found():
    assert catalogue.find_source("sys") is None
    assert catalogue.find_source("no_such_package.module") is None
    assert catalogue.find_source("json.no_such_module") is None
    assert catalogue.find_source("json.decoder").name == "decoder.py"
