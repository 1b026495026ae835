"""The speed of artifacts as served: a table beside the records, matched to them by the artifact."""

import json
import math
import re

import pytest
from records import individual, rows, run

from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.errors import UserError
from benchsuite.record.served import COLUMNS, SERVED, ServedSpeeds, read_served
from benchsuite.report import tables
from benchsuite.report.page import page

ONE, OTHER, THIRD = ("a" * 64, "b" * 64, "c" * 64)


def line(sha=ONE, speed="0.5", how="64 images at once"):
    return f"finetune,1,{sha},{speed},0.4,0.6,{how}\n"


HEAD = ",".join(COLUMNS)


def written(folder, *lines, head=HEAD):
    (folder / SERVED).write_text("".join([f"{head}\n", *lines]))
    return read_served(folder)


def test_speeds_are_found_by_the_digest_of_the_artifact(tmp_path):
    assert read_served(tmp_path) == ServedSpeeds()  # nothing was measured
    found = written(tmp_path, line(), line(OTHER, "1.5"))
    assert found == ServedSpeeds({ONE: 0.5, OTHER: 1.5}, "64 images at once")
    assert found.of(run(artifact_sha256=OTHER)) == 1.5
    assert math.isnan(found.of(run(artifact_sha256=THIRD)))
    assert math.isnan(found.of(run())), "a record of an earlier version"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [line(speed="nan")],
        [line(speed="0")],
        [line(speed="fast")],
        [line(sha="a")],
        [line(), line(OTHER, how="elsewhere")],
        ["a\n"],
    ],
)
def test_a_table_that_is_wrong_is_named(tmp_path, lines):
    with pytest.raises(UserError, match="is no table of served speeds"):
        written(tmp_path, *lines)


def test_other_columns_are_no_table_of_speeds(tmp_path):
    written(tmp_path, line())  # control
    with pytest.raises(UserError, match="is no table of served speeds"):
        written(tmp_path, line(), head="method,seed,sha,speed,lowest,highest,how")


def test_a_board_shows_the_speed_of_what_its_records_describe():
    pair = [run(seed=1, artifact_sha256=ONE), run(seed=2, artifact_sha256=OTHER), individual(artifact_sha256=THIRD)]
    board = leaderboard(pair, served=ServedSpeeds({ONE: 0.5, OTHER: 0.7}, "64 images at once"))
    found = rows(board.parameter_efficiency)
    assert found["finetune"]["served_speed"] == pytest.approx(0.6)
    assert math.isnan(found["individual"]["served_speed"]), "its artifact was made again since"
    assert "served speed: 64 images at once" in board.size_notes
    text = tables.to_markdown(board, "parameter_efficiency")
    assert "| Served speed (x dense) |" in text
    assert "Served speed: images per second" in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page([board]), re.DOTALL)[1])
    (row,) = (row for row in data["boards"][0]["rows"] if row["label"] == "finetune")
    assert [one["values"]["served_speed"] for one in row["runs"]] == ["0.50", "0.70"]
    for none in (leaderboard(pair), leaderboard(pair, served=ServedSpeeds({"d" * 64: 1.0}, "64 images at once"))):
        assert "erved speed" not in tables.to_markdown(none, "parameter_efficiency")
