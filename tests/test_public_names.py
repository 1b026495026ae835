"""The public names: what `benchsuite.` shows to dir(), tab completion, help(), a type checker and `from benchsuite import`."""

import ast
import inspect
import pydoc
import rlcompleter
from importlib.metadata import version
from pathlib import Path

import pytest

import benchsuite

SOURCE = Path(benchsuite.__file__).read_text()


def seen_by_a_type_checker(source):
    """name -> module, of `from .module import name as name` under TYPE_CHECKING; other names are not exported."""
    (block,) = [n for n in ast.parse(source).body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    imports = [n for n in block.body if isinstance(n, ast.ImportFrom)]
    found = {a.name: n.module for n in imports for a in n.names if a.asname == a.name and n.level == 1}
    annotated = {n.target.id: None for n in block.body if isinstance(n, ast.AnnAssign)}
    return found | annotated


def differences(source):
    wanted = benchsuite._PUBLIC | {"__version__": None}
    seen = seen_by_a_type_checker(source)
    return {name for name in wanted.keys() | seen.keys() if wanted.get(name, "") != seen.get(name, "")}


def test_a_type_checker_sees_the_names_that_are_imported_on_use():
    assert differences(SOURCE) == set()


@pytest.mark.parametrize("line", ["    from .training.runner import run as run\n", "    __version__: str\n"])
def test_a_name_that_a_type_checker_misses_is_found(line):
    """Control."""
    assert line in SOURCE
    assert len(differences(SOURCE.replace(line, ""))) == 1


def test_a_type_checker_does_not_see_the_import_on_use():
    """It would take any name for a public one."""
    functions = [n.name for n in ast.parse(SOURCE).body if isinstance(n, ast.FunctionDef)]
    assert [name for name in functions if name.startswith("__")] == ["__dir__"]


def test_dir_and_tab_completion_show_the_public_names_only():
    assert dir(benchsuite) == sorted(benchsuite.__all__)
    complete, found = rlcompleter.Completer({"benchsuite": benchsuite}).complete, []
    while (name := complete("benchsuite.", len(found))) is not None:
        found.append(name)
    assert {name.removeprefix("benchsuite.").rstrip("()") for name in found} >= set(benchsuite.__all__) - {"__version__"}
    assert complete("benchsuite.leader", 0) == "benchsuite.leaderboard("


def test_help_shows_every_public_name():
    text = pydoc.render_doc(benchsuite, renderer=pydoc.plaintext)
    for name in benchsuite.__all__:
        if name != "__version__":
            kind = "class" if inspect.isclass(getattr(benchsuite, name)) else ""
            assert f"{kind} {name}(" in text, name
    assert version("benchsuite") in text


def test_every_public_name_is_what_it_says_and_has_a_docstring():
    import benchsuite.analysis.leaderboard  # the module of the same name hides nothing
    from benchsuite import leaderboard

    assert inspect.isfunction(leaderboard)
    assert benchsuite.__version__ == version("benchsuite")
    for name in benchsuite._PUBLIC:
        thing = getattr(benchsuite, name)
        assert thing.__name__ == name
        assert thing.__module__.startswith("benchsuite.")
        assert (inspect.getdoc(thing) or "").strip(), name
        assert not (Path(benchsuite.__file__).parent / name).exists()
        assert not (Path(benchsuite.__file__).parent / f"{name}.py").exists()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="leaderbord"):
        _ = benchsuite.leaderbord
    with pytest.raises(ImportError):
        from benchsuite import leaderbord  # noqa: F401
