import dataclasses
import os
import re

import pytest
from records import run

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.cli.arguments import parser
from benchsuite.cli.main import main
from benchsuite.cli.results import selected
from benchsuite.errors import UserError
from benchsuite.report.selection import MOST, Row, Selection, read_selection

EXAMPLE = """
protocols = ["split-digits"]
tiers = ["lite"]
rows = ["finetune", {name = "agem", label = "A-GEM"}, {name = "ewc", ours = true}]
compare = ["agem", "ewc"]
boards = ["accuracy"]
fit = "column"
siunitx = true

[columns]
accuracy = ["accuracy", "bwt"]

[digits]
accuracy = 1
"""


def written(tmp_path, text):
    path = tmp_path / "paper.toml"
    path.write_text(text)
    return path


def test_a_file_says_what_python_says(tmp_path):
    assert read_selection(written(tmp_path, EXAMPLE)) == Selection(
        protocols=("split-digits",),
        tiers=("lite",),
        rows=(Row(name="finetune"), Row(name="agem", label="A-GEM"), Row(name="ewc", ours=True)),
        compare=("agem", "ewc"),
        boards=("accuracy",),
        columns={"accuracy": ("accuracy", "bwt")},
        digits={"accuracy": 1},
        fit="column",
        siunitx=True,
    )
    assert read_selection(written(tmp_path, "")) == Selection()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("protocol = ['a']", "unknown key 'protocol'; did you mean 'protocols'?"),
        ("rows = [{name = 'a', lable = 'A'}]", "unknown key 'lable'; did you mean 'label'?"),
        ("rows = ['a', 'a']", "row 'a' is named twice; name it once"),
        ("rows = 'a'", "rows must be a list, got 'a'; write rows = "),
        ("rows = [{label = 'A'}]", "a row must be a name, or a table with one, got {'label': 'A'}; write"),
        ("rows = [{name = 'a', ours = 2}]", "ours of row 'a' must be true or false, got 2"),
        ("boards = ['acuracy']", "no board is called 'acuracy'; did you mean 'accuracy'?"),
        ("[columns]\naccuracy = ['bwtt']", "no column is called 'bwtt'; did you mean 'bwt'?"),
        ("columns = ['bwt']", "columns must be a table, got ['bwt']; write it below [columns]"),
        ("[digits]\nbwt = 99", "digits of bwt must be 0 to 6, got 99"),
        ("[digits]\nbwt = 'two'", "digits.bwt must be a whole number, got 'two'"),
        ("fit = 'wide'", "fit must be one of column, two-column, page, got 'wide'"),
        ("tiers = ['a", "cannot be read as TOML: "),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_with_its_name(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_selection(path)
    assert str(error.value).startswith(f"{path}: {said}")
    assert "\n" not in str(error.value)


def test_a_pipe_or_folder_in_place_of_a_selection_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(UserError, match=r"pipe\.toml: cannot be read: Not a regular file"):
        read_selection(tmp_path / "pipe.toml")
    with pytest.raises(UserError, match=r"cannot be read: (Is a directory|Not a regular file)"):
        read_selection(tmp_path)


def test_a_file_that_is_not_there_can_be_made(tmp_path):
    with pytest.raises(UserError, match=r"no such file; .*--example paper.toml"):
        read_selection(tmp_path / "paper.toml")


def test_rows_stand_in_the_order_of_the_selection_on_every_board():
    board = leaderboard([run(name, correct=((90, None), (70, last))) for name, last in (("a", 80), ("b", 90), ("c", 60))])
    chosen = Selection(rows=(Row(name="c"), Row(name="a", label="A", ours=True), Row(name="elsewhere")))
    for kind in ("accuracy", "parameter_efficiency"):
        assert chosen.frame(board, kind)["method"].tolist() == ["c", "a"]
        assert sorted(Selection().frame(board, kind)["method"]) == ["a", "b", "c"]
    assert chosen.rows_on(board) == {"c": Row(name="c", label="c"), "a": Row(name="a", label="A", ours=True)}
    assert chosen.others_on(board) == ["b"]
    assert Selection().frame(board, "accuracy")["method"].tolist() == ["b", "a", "c"]  # as ranked


def test_a_method_stands_for_its_rows_and_a_label_for_one():
    runs = [run("a", settings={"epochs": 10, "width": w}) for w in (0.5, 1.0)]
    board = leaderboard([*runs, run("b")])
    both = Selection(rows=(Row(name="a", label="A"),)).rows_on(board)
    assert [row.label for row in both.values()] == ["A [width=0.5]", "A [width=1.0]"]
    one = Selection(rows=(Row(name="a [width=1.0]", label="A"), Row(name="a"))).rows_on(board)
    assert {label: row.label for label, row in one.items()} == {"a [width=1.0]": "A", "a [width=0.5]": "a [width=0.5]"}


def test_a_row_that_no_board_has_is_an_error():
    boards = [leaderboard([run("ewc")]), leaderboard([run("lwf")])]
    Selection(rows=(Row(name="ewc"), Row(name="lwf"))).check_rows(boards)
    with pytest.raises(UserError, match="no row is called 'lwff'; did you mean 'lwf'"):
        Selection(rows=(Row(name="lwff"),)).check_rows(boards)


FAMILIES = {
    "reference": ["finetune", "individual", "joint", "transfer"],
    "replay": ["er", "agem"],
    "regularisation": ["ewc", "si", "mas", "lwf"],
    "factorised": ["cacl", "cacl-cp", "delta-svd", "individual-svd"],
    "parameter isolation": ["hat", "packnet"],
}


def large(own=()):
    """A board of 17 rows, and the user's own, which are the worst."""
    names = [name for family in FAMILIES.values() for name in family]
    runs = [run(name, correct=((90, None), (80, 95 - i))) for i, name in enumerate(names)]
    runs += [run("cacl+hosvd", correct=((99, None), (99, 99)))]
    return leaderboard([*runs, *(run(name, correct=((9, None), (1, 1)), method_source="ab" * 20) for name in own)])


def test_without_a_selection_at_most_twelve_rows_are_shown():
    board = large()
    shown = list(Selection().rows_on(board))
    assert len(shown) == MOST == 12
    assert {*FAMILIES["reference"], "er", "ewc", "cacl", "hat"} <= {*shown}  # references, and the best of each family
    assert {"agem", "si", "cacl-cp", "packnet"} <= {*shown}  # then the second best
    assert "cacl+hosvd" in Selection().others_on(board)  # the most accurate row, but a variant
    assert shown == [name for name in board.accuracy["method"] if name in shown]
    small = leaderboard([run(f"m{i}") for i in range(12)])
    assert Selection().others_on(small) == []  # control: there is room for all


@pytest.mark.parametrize("count", [1, 14])
def test_the_users_own_methods_are_always_shown(count):
    own = [f"mine{i}" for i in range(count)]
    shown = Selection().rows_on(large(own))
    assert {*own} <= {*shown}
    assert len(shown) == max(12, count)


def test_a_selection_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Selection().fit = "page"


def given(*arguments):
    return selected(parser().parse_args(["report", "out", *arguments]))


def test_options_say_the_same_as_a_file_and_go_before_it(tmp_path):
    file = written(tmp_path, EXAMPLE)
    rows = ("--row", "finetune", "--row", "agem=A-GEM", "--row", "ewc", "--ours", "ewc")
    more = ("--compare", "agem,ewc", "--boards", "accuracy", "--columns", "accuracy=accuracy,bwt", "--digits", "accuracy=1")
    said = given("--protocol", "split-digits", "--tier", "lite", *rows, *more, "--fit", "column", "--siunitx")
    assert said == read_selection(file)
    both = given("--select", str(file), "--row", "a [lr=0.1]=A=1", "--fit", "page", "--digits", "bwt=0")
    assert both.rows == (Row(name="a [lr=0.1]", label="A=1"),)
    assert (both.fit, both.digits, both.boards) == ("page", {"accuracy": 1, "bwt": 0}, ("accuracy",))
    assert given() == Selection()
    for wrong, said in (
        (("--ours", "ewc"), "--ours ewc: is no row that was selected; add --row ewc"),
        (("--digits", "bwt=x"), "digits of bwt must be a whole number, got 'x'"),
        (("--columns", "acc=bwt"), "no board is called 'acc'"),
    ):
        with pytest.raises(UserError, match=said):
            given(*wrong)


def test_the_example_is_a_selection_with_every_key(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--example", "paper.toml"]) == 0
    assert "benchsuite report DIR --select paper.toml" in capsys.readouterr().out
    assert read_selection(tmp_path / "paper.toml").rows[-1] == Row(name="hat", label="HAT", ours=True)
    text = (tmp_path / "paper.toml").read_text()
    assert [f.name for f in dataclasses.fields(Selection) if not re.search(rf"^(# |\[)?{f.name}\b", text, re.MULTILINE)] == []
    everything = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)  # what is commented out is right, too
    assert read_selection(written(tmp_path, everything)).columns["summary"] == ("accuracy", "megabytes")
    assert main(["report", "--example", "paper.toml"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "report needs a folder to write to" in capsys.readouterr().err
