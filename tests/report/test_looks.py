"""How a row looks follows from its own method, never from the rows beside it."""

import pytest
from records import changed, run

from benchsuite import catalogue
from benchsuite.analysis.leaderboard import leaderboard
from benchsuite.method import Method, methods, register
from benchsuite.nn.modifiers import MODIFIERS
from benchsuite.protocol import Published
from benchsuite.record.schema import differences
from benchsuite.report import looks
from benchsuite.report.looks import FAMILIES, entry_of, labels_of, look_of, looks_of

OURS = [entry for entry in catalogue.methods().values() if methods.is_built_in(entry.name)]


def shared(entries):
    """Pairs of methods that no reader could tell apart by their points."""
    points = {}
    for entry in entries:
        look = look_of(entry.name, entry.family, entry.marker)
        points.setdefault((FAMILIES[entry.family], look.marker), []).append(entry.name)
    return [names for names in points.values() if len(names) > 1]


def test_no_two_methods_of_ours_look_the_same():
    assert len(OURS) >= 21
    assert shared(OURS) == []
    assert len({look_of(entry.name, entry.family, entry.marker) for entry in OURS}) == len(OURS)
    lines = {(look.colour, look.line) for entry in OURS if (look := look_of(entry.name, entry.family, entry.marker))}
    assert len(lines) == len(OURS)  # where only lines are seen
    twin = catalogue.MethodEntry("twin", "", OURS[0].family, marker=OURS[0].marker)  # control
    assert shared([*OURS, twin]) == [[OURS[0].name, "twin"]]


def test_every_method_of_ours_has_a_label_a_family_and_a_marker():
    assert [entry.name for entry in OURS if entry.family not in FAMILIES or entry.family == "other" or not entry.marker] == []
    assert len({entry.label for entry in OURS}) == len(OURS)
    assert {entry.name: entry.label for entry in OURS}["agem"] == "A-GEM"


def test_a_row_looks_the_same_whatever_other_rows_there_are():
    other = run("er", settings={"budget": 2.0}, origins={"budget": "command line"})
    records = [run("er"), run("zeta"), run("hat"), other, run("aaa"), run("ewc+hosvd"), run("joint")]
    published = [Published(method="CACL", accuracy=80.0, bwt=0.0, megabytes=1.0, source="a paper")]
    whole = leaderboard([changed_tier(record) for record in records], published)
    alone = {}
    for record in map(changed_tier, records):
        (look,) = {label: look for label, look in looks_of(leaderboard([record])).items() if label != "CACL (published)"}.values()
        alone[record.job.config] = look
    looked = looks_of(whole)
    for label, runs in whole.runs.items():
        assert looked[label] == alone[runs[0].job.config], label
    assert looked["CACL (published)"].marker in looks.STROKES
    places, fewer = ({label: i for i, label in enumerate(labels)} for labels in (sorted(whole.runs), sorted(whole.runs)[1:]))
    assert all(places[label] != fewer[label] for label in fewer)  # control: a look by place would shift with every row


def changed_tier(record):
    return changed(record, job=changed(record.job, tier="paper"))


def test_a_variant_keeps_hue_and_marker_and_differs_in_filling_and_line():
    plain = look_of("er", "replay", "o")
    found = {name: look_of(f"er+{name}", "replay", "o") for name in MODIFIERS}
    assert {(look.colour, look.marker) for look in found.values()} == {(plain.colour, plain.marker)}
    assert len({(look.fill, look.line) for look in [plain, *found.values()]}) == len(MODIFIERS) + 1
    assert all(look.fill != "full" and look.line != plain.line for look in found.values())


def test_a_method_from_elsewhere_has_the_look_and_label_of_its_record(monkeypatch):
    record = run("anchor", method_source="f" * 64, family="replay", label="Anchor++", marker="*")
    assert (entry_of(record).family, entry_of(record).label) == ("replay", "Anchor++")
    look = looks_of(leaderboard([record]))["anchor"]
    assert (look.colour[:3], look.marker) == (look_of("x", "replay", "*").colour[:3], "*")
    assert labels_of(leaderboard([record, run("er+hosvd")])) == {"anchor": "Anchor++", "er+hosvd": "ER+hosvd"}
    older = run("anchor", method_source="f" * 64)
    assert (entry_of(older).family, entry_of(older).label) == ("other", "anchor")
    assert look_of("anchor", "other") == look_of("anchor", "other", "no such marker")
    assert entry_of(run("er", label="something", family="reference")).label == "ER"  # an installed one says it today
    assert look_of("anchor", "moorings").colour != look_of("anchor").colour


@pytest.mark.parametrize("text", ["a" * 61, "two\nlines", 3])
@pytest.mark.parametrize("word", ["label", "family", "marker"])
def test_what_cannot_be_shown_is_refused_where_it_is_declared_and_on_record(word, text):
    with pytest.raises(TypeError, match=word):
        register(type("Theirs", (Method,), {word: text, "__annotations__": {}}))
    with pytest.raises(ValueError):  # noqa: PT011
        run("anchor", **{word: text})


def test_a_subclass_inherits_the_family_and_neither_label_nor_marker():
    base = methods.get("er")
    try:
        mine = register(type("Mine_er", (base,), {"__annotations__": {}}))
        assert (mine.label, mine.marker, mine.family) == ("mine_er", "", "replay")
        assert methods.get("mine_er+hosvd").label == "mine_er"
    finally:
        methods.remove("mine_er")


def test_what_a_method_calls_itself_is_no_difference_between_two_runs():
    new, older = run("er", family="replay", label="ER", marker="o"), run("er")
    assert differences(new, older) == []
    assert differences(changed(new, correct=[[1, None], [1, 1]]), older) == ["correct"]  # control
