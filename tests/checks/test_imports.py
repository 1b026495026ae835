"""Results made elsewhere: unverified rows, marked on every board, never ranked, tested only if asked, never taken for runs."""

import io
import json
import re

import pytest
from records import individual, rows, run

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.cli.main import main
from benchsuite.errors import UserError
from benchsuite.protocol import protocols
from benchsuite.record import imported
from benchsuite.record.imported import IMPORTED, Imported
from benchsuite.record.store import read_all, write
from benchsuite.report import tables
from benchsuite.report.latex import board_table
from benchsuite.report.page import page
from benchsuite.report.selection import Selection
from benchsuite.report.write import write_report

SOURCE = ["--source", "https://example.org/paper", "--by", "Doe et al. 2024"]
ROWS = ["99,,,,", "90,98,,,", "80,90,97,,", "70,80,90,96,", "60,70,80,90,95"]
ORDER = [task.name for task in protocols.get("split-digits").sequence(1, protocols.get("split-digits").recipe("lite"))]


@pytest.fixture
def bring(tmp_path, capsys):
    """Imports a matrix: the exit code and all that is printed."""

    def of(lines, *words, unit="percent", method="magic", source=SOURCE):
        (tmp_path / "R.csv").write_bytes(lines if isinstance(lines, bytes) else "\n".join(lines).encode())
        board = ["--protocol", "split-digits", "--tier", "lite", "--results", str(tmp_path / "runs")]
        code = main(["import", "--matrix", str(tmp_path / "R.csv"), "--unit", unit, "--method", method, *source, *board, *words])
        return code, "".join(capsys.readouterr())

    return of


def result(accuracy=((99, None), (90, 98)), seed=1, tasks=("task 0", "task 1"), **changes):
    return Imported(
        **{
            **{"protocol": "split-digits", "tier": "lite", "method": "magic", "seed": seed, "tasks": list(tasks)},
            **{"accuracy": [list(row) for row in accuracy], "source": "https://example.org/paper", "by": "Doe et al. 2024"},
            **{"date": "2026-01-02", "matrix_sha256": "a" * 64},
            **changes,
        }
    )


def test_a_matrix_becomes_a_result_with_its_provenance_and_no_record(bring, tmp_path):
    (tmp_path / "net").write_bytes(b"x" * 1234)
    code, said = bring(ROWS, "--artifact", str(tmp_path / "net"))
    assert code == 0
    assert "magic (unverified): 5 tasks, ACC 79.00 %, 1,234 bytes" in said
    (path,) = tmp_path.rglob(IMPORTED)
    found = imported.read(path)
    assert found.tasks == ORDER
    assert (found.source, found.by, found.stored_bytes) == ("https://example.org/paper", "Doe et al. 2024", 1234)
    assert found.statistics()["bwt"] == pytest.approx(-22.5)
    assert read_all(tmp_path / "runs") == []
    assert "is here already" in bring(ROWS, "--artifact", str(tmp_path / "net"))[1]
    assert "80.00" in bring([ROWS[0], *ROWS[1:4], "60,70,80,90,100"], "--seed", "2")[1]
    assert len(list(tmp_path.rglob(IMPORTED))) == 2


def test_fractions_names_of_tasks_and_a_table_with_labels_are_read(bring, tmp_path):
    fractions = [",".join(f"{float(cell) / 100}" if cell else "" for cell in row.split(",")) for row in ROWS]
    named = [",".join(["after", *ORDER[::-1]]), *(f"{name},{row}" for name, row in zip(ORDER[::-1], fractions, strict=True))]
    assert "ACC 79.00 %" in bring(named, unit="fraction")[1]
    (path,) = tmp_path.rglob(IMPORTED)
    assert imported.read(path).tasks == ORDER[::-1]
    path.unlink()
    assert bring([",".join(ORDER[3::-1]), *(row[:-1] for row in ROWS[:3]), "70,80,90,96"])[0] == 0  # four tasks, no labels
    (path,) = tmp_path.rglob(IMPORTED)
    assert imported.read(path).tasks == ORDER[3::-1]
    path.unlink()
    assert "ACC 79.00 %" in bring([*[",,,,"] * 4, ROWS[4]])[1]  # trained on all at once


WRONG = {
    "a row too few": (ROWS[:4], [], "has 4 rows of 5 cells"),
    "fewer tasks than the protocol": (["99,", "90,98"], [], "has 2 rows, but split-digits has 5 tasks"),
    "not per cent": ([*ROWS[:4], "60,70,80,90,101"], [], "101 is no accuracy between 0 and 100"),
    "negative": ([*ROWS[:4], "60,70,80,90,-1"], [], "-1 is no accuracy between 0 and 100"),
    "infinite": ([*ROWS[:4], "60,70,80,90,inf"], [], "inf is no accuracy"),
    "fractions as per cent": ([*[",,,,"] * 4, ".6,.7,.8,.9,.95"], [], "they look like fractions"),
    "text": ([ROWS[0], "90,many,,,", *ROWS[2:]], [], "row 2 has 'many', which is no number"),
    "a hole": ([ROWS[0], "90,98,,,", "80,,97,,", *ROWS[3:]], [], "row 3 has no accuracy of one of the first 3 tasks"),
    "no last row": ([*ROWS[:4], "60,70,80,90,"], [], "every task must have been tested after the last one"),
    "a task of nobody": (["a,b,c,d,e", *ROWS], [], "has no task"),
    "a task twice": ([",".join([ORDER[0]] * 5), *ROWS], [], "a task is named twice"),
    "nothing": ([], [], "has 0 rows of no cells"),
    "a NUL": (b"1,2\x003\n", [], "has 1 rows of 2 cells"),
    "another encoding": (b"\xff\xfe\x00", [], "is not a CSV file"),
    "a source without an address": (
        ROWS,
        ["--source", "a friend"],
        "'a friend' is no address of a source; write http(s)://... or doi:...",
    ),
    "a name that leads out": (ROWS, ["--method", "../x"], "cannot name a folder"),
    "a tier of nobody": (ROWS, ["--tier", "light"], "no tier of split-digits"),
    "no artifact": (ROWS, ["--artifact", "nowhere"], "nowhere: cannot be read"),
}


@pytest.mark.parametrize(("lines", "words", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_result_is_refused_in_one_line(lines, words, said, bring, tmp_path):
    code, text = bring(lines, *words)
    assert code == 2
    assert said in text
    assert text.count("\n") == 1
    assert not list(tmp_path.rglob(IMPORTED))


def board_of(*results, compare=()):
    records = [run(seed=seed, correct=((90, None), (70 + seed, 80))) for seed in (1, 2, 3)]
    records += [run("hat", seed, ((88, None), (88, 79 + seed))) for seed in (1, 2, 3)]
    return leaderboard([*records, *map(individual, (1, 2, 3))], imported=results, compare=compare)


def test_an_unverified_row_is_marked_in_every_table_and_is_never_best_ranked_or_tested():
    best = [
        result(seed=seed, accuracy=((100, None), (100, 100 - seed / 10)), stored_bytes=10, artifact_sha256="b" * 64)
        for seed in (1, 2, 3)
    ]
    board, without = board_of(*best), board_of()
    for kind in ("accuracy", "backward_transfer", "parameter_efficiency"):
        frame = getattr(board, kind)
        row = rows(frame)["magic (unverified)"]
        assert (row["competes"], row["published"], row["n"]) == (False, True, 3)
        assert [name for name in frame["method"] if "magic" not in name] == list(getattr(without, kind)["method"])
        marks = tables.best_and_second(board, kind)
        place = list(frame["method"]).index("magic (unverified)")
        assert not any(i == place for i, _ in marks)
        for text in (tables.to_markdown(board, kind), tables.to_csv(board, kind), board_table(board, kind, Selection())[0]):
            assert "magic (unverified)" in text
            assert "magic " not in text.replace("magic (unverified", "")
        assert "results made elsewhere that nobody has verified (magic (unverified))" in tables.caption(board, kind)
    assert "published figures" not in tables.caption(board, "accuracy")
    assert rows(board.accuracy)["magic (unverified)"]["accuracy"] == pytest.approx(99.9)
    ours = [name for name in rows(board.accuracy) if name != "magic (unverified)"]
    for name in ours:
        assert {k: v for k, v in rows(board.accuracy)[name].items() if "_p" in k} == pytest.approx(
            {k: v for k, v in rows(without.accuracy)[name].items() if "_p" in k}, nan_ok=True
        )
    assert not rows(board.parameter_efficiency)["magic (unverified)"]["pareto"]
    assert "magic (unverified)" not in rows(board.training_memory)
    (note,) = [note for note in board.footnotes if note.startswith("magic (unverified): ")]
    for word in (
        "Doe et al. 2024",
        "https://example.org/paper",
        "neither run nor checked",
        "imported 2026-01-02",
        "seeds 1, 2, 3",
    ):
        assert word in note
    assert "magic" not in json.dumps(list(board.runs))


def test_it_is_tested_only_where_it_is_named():
    close = [result(seed=seed, accuracy=((90, None), (88, 80 + seed))) for seed in (1, 2, 3)]
    assert (
        rows(board_of(*close).accuracy)["magic (unverified)"]["accuracy_p"]
        != rows(board_of(*close).accuracy)["hat"]["accuracy_p"]
    )
    board = board_of(*close, compare=["hat", "magic (unverified)"])
    assert board.compared == ["hat", "magic (unverified)"]
    assert rows(board.accuracy)["hat"]["accuracy_p"] >= 0
    assert not any("magic" in list(board.accuracy["method"])[i] for i, _ in tables.best_and_second(board, "accuracy"))
    with pytest.raises(UserError, match="no row is called 'magic'"):
        board_of(*close, compare=["hat", "magic"])


def test_results_that_may_not_be_averaged_have_rows_of_their_own():
    labels = imported.rows_of([result(), result(seed=2), result(by="Roe")])
    assert sorted(map(len, labels.values())) == [1, 2]
    assert all(re.fullmatch(r"magic \(unverified, [0-9a-f]{12}\)", label) for label in labels)
    with pytest.raises(UserError, match="imported twice with the same seed"):
        imported.rows_of([result(), result(accuracy=((98, None), (90, 98)))])
    assert "other tasks than most rows" in " ".join(board_of(result(tasks=("a", "b"))).footnotes)


def test_two_results_of_one_seed_are_left_out_by_name_and_a_second_is_not_brought_in(tmp_path):
    first, second, other = (
        result(accuracy=((a, None), (90.0, 98.0)), seed=seed) for a, seed in ((99.0, 1), (99.0, 2), (98.0, 1))
    )
    assert imported.write(first, tmp_path)
    assert not imported.write(first, tmp_path)
    with pytest.raises(UserError, match="is another result of this method, source and seed"):
        imported.write(other, tmp_path)
    assert imported.write(second, tmp_path)
    imported.write(other, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / other.folder).rename(tmp_path / other.folder)  # as a copy by hand would
    found, refused = imported.read_board(tmp_path / first.folder.parent.parent)
    assert [one.seed for one in found] == [2]
    assert {path.parent.name for path in refused} == {first.folder.name, other.folder.name}


def test_figures_and_the_page_mark_it_too(tmp_path):
    board = board_of(result(stored_bytes=10_000, artifact_sha256="b" * 64))
    text = page([board])
    assert '"families":["unverified"]' in text
    assert "magic (unverified)" in text
    from benchsuite.report import figures

    figure, file = figures.accuracy_vs_size(board).figure, io.BytesIO()
    assert "magic (unverified)" in str([t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))])
    figure.savefig(file, format="svg")
    write_report(board, tmp_path, figures=False)
    assert "magic (unverified)" in (tmp_path / "leaderboard.md").read_text()


def test_a_changed_result_is_left_out_by_name_and_merge_carries_a_sound_one(bring, tmp_path, capsys):
    bring(ROWS)
    (path,) = tmp_path.rglob(IMPORTED)
    write(run(), tmp_path / "runs" / run().job.folder / "record.json")
    board = [
        "leaderboard",
        "--no-run",
        "--no-figures",
        "--results",
        str(tmp_path / "runs"),
        "--protocol",
        "split-digits",
        "--tier",
        "lite",
    ]
    assert main(board) == 0
    assert "magic (unverified)" in capsys.readouterr().out
    elsewhere = tmp_path / "elsewhere"
    imported.write(imported.read(path), elsewhere)
    assert main(["merge", str(elsewhere), "--results", str(tmp_path / "new")]) == 0
    assert "1 added, 0 here already, 0 refused" in capsys.readouterr().out
    assert main(["merge", str(elsewhere), "--results", str(tmp_path / "new")]) == 0
    assert "0 added, 1 here already, 0 refused" in capsys.readouterr().out
    changed = path.read_text().replace("95.0", "99.0")
    assert changed != path.read_text()
    path.write_text(changed)
    assert main(board) == 2
    said = "".join(capsys.readouterr())
    assert "was changed after it was imported" in said
    assert "magic (unverified)" not in said
    assert main(["merge", str(tmp_path / "runs" / "split-digits" / "lite" / "magic"), "--results", str(tmp_path / "new")]) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        {"by": "two\nlines"},
        {"by": "\ud800"},
        {"by": ""},
        {"method": "a/b"},
        {"method": "x" * 300},
        {"seed": -1},
        {"seed": 10**400},
        {"accuracy": [[1.0, None], [2.0, 1e400]]},
        {"accuracy": [[1.0], [2.0]]},
        {"accuracy": []},
        {"tasks": []},
        {"stored_bytes": 5},
        {"more": 1},
        {"schema": True},
    ],
    ids=repr,
)
def test_a_crafted_file_is_refused(spoil, tmp_path):
    content = json.loads(
        json.dumps({"schema": 1, **{name: getattr(result(), name) for name in Imported.__struct_fields__}, **spoil})
    )
    path = tmp_path / IMPORTED
    try:
        content["digest"] = imported.digest(content)
    except ValueError:
        content["digest"] = ""
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(str(path))):
        imported.read(path)


def test_control_the_same_file_without_a_fault_is_read(tmp_path):
    imported.write(result(), tmp_path)
    (path,) = tmp_path.rglob(IMPORTED)
    assert imported.read(path) == result()
