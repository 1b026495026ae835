import numpy as np
import pytest
from records import COMPLETE, run

from benchsuite.analysis.ledger import VERDICTS, ledger, summary
from benchsuite.protocol import Published, protocols
from benchsuite.report.latex import ledger_table
from benchsuite.report.tables import ledger_markdown

FIGURE = Published(method="X", ours="x", accuracy=80.0, source="their paper")


def paper(*accuracies, **changes):
    return [run("x", seed, ((a, None), (a, a)), **{"tier": "paper", **changes}) for seed, a in enumerate(accuracies, 1)]


def verdicts(records, *figures):
    frame = ledger(records, {"split-digits": figures or (FIGURE,)})
    return list(zip(frame["verdict"], frame["reason"], strict=True))


def test_one_seed_is_judged_by_the_tolerance():
    assert verdicts(paper(81)) == [("one run within", "one seed, off by 1.00 points, within 1.5 points")]
    assert verdicts(paper(82)) == [("not reproduced", "one seed, off by 2.00 points, beyond 1.5 points")]


def test_further_off_several_seeds_are_judged_by_their_interval():
    # 79, 80, 82: mean 80.33, s = 1.53, half-width 3.79
    near = "off by 0.33 points, within 1.5 points, inside our interval of ± 3.79"
    assert verdicts(paper(79, 80, 82)) == [("reproduced", near)]
    far = "off by 10.33 points, beyond 1.5 points, outside our interval of ± 1.43"
    assert verdicts(paper(90, 90, 91)) == [("not reproduced", far)]
    ((verdict, reason),) = verdicts(paper(70, 95))  # an interval that holds everything shows nothing
    assert verdict == "undecided"
    assert "more seeds" in reason
    (row,) = ledger(paper(79, 80, 82), {"split-digits": [FIGURE]}).to_dict("records")
    assert (row["value"], row["n"], row["tier"], row["precision"]) == (80, 3, "paper", "fp32")
    assert (row["mean"], row["ci"]) == pytest.approx((241 / 3, 4.302653 * 1.527525 / 3**0.5))


@pytest.mark.parametrize(
    ("seeds", "within"), [(1, "one run within"), (2, "two runs within"), (3, "reproduced"), (5, "reproduced")]
)
def test_it_takes_three_seeds_to_reproduce_a_figure_and_more_never_turn_the_verdict(seeds, within):
    assert [v for v, _ in verdicts(paper(*[81] * seeds))] == [within]
    assert [v for v, _ in verdicts(paper(*[82] * seeds))] == ["not reproduced"]  # control
    figure = Published(method="X", ours="x", megabytes=8.5)
    for size, verdict in ((8_550_000, within), (10_000_000, "not reproduced")):
        assert [v for v, _ in verdicts(paper(*[80] * seeds, size=size), figure)] == [verdict]


def test_sizes_and_backward_transfer_are_judged_too():
    figure = Published(method="X", ours="x", bwt=-10.0, megabytes=1.1)
    records = [run("x", seed, tier="paper", correct=((90, None), (80, 90)), size=1_000_000) for seed in (1, 2, 3)]
    assert [v for v, _ in verdicts(records, figure)] == ["reproduced", "reproduced"]
    records = [run("x", tier="paper", correct=((90, None), (85, 90)), size=900_000)]
    assert [v for v, _ in verdicts(records, figure)] == ["not reproduced", "not reproduced"]
    joint = [run("x", tier="paper", correct=((None, None), (85, 90)))]
    assert verdicts(joint, Published(method="X", ours="x", bwt=0.0)) == [("not comparable", "not measured after every task")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tier": "lite"}, "tier lite"),
        ({"origins": {"epochs": "command line"}}, "settings changed: epochs"),
        ({"origins": {"strength": "command line"}}, "settings changed: strength"),
        ({"data": [{**COMPLETE, "complete": False}]}, "incomplete images"),
        ({"method_source": "abc"}, "user-defined method"),
    ],
)
def test_other_runs_never_count(changes, reason):
    assert verdicts(paper(80)) == [("one run within", "one seed, off by 0.00 points, within 1.5 points")]  # control
    none = ("no run yet", "no `paper` run with the published settings")
    assert verdicts(paper(80, **changes)) == [("not comparable", reason), none]
    assert summary(ledger(paper(80, **changes), {"split-digits": [FIGURE]}))[0].startswith("no run to compare with: 1 of 1")
    both = verdicts([*paper(80, **changes), *paper(80, precision="bf16")])
    assert [verdict for verdict, _ in both].count("one run within") == 1
    assert none not in both


def test_a_value_of_its_own_from_the_command_line_changes_nothing():
    same = [*paper(80, 80), *[run("x", 3, ((80, None), (80, 80)), tier="paper", origins={"epochs": "command line"})]]
    assert [v for v, _ in verdicts(same)] == ["reproduced"]


def test_what_no_run_can_show_is_said():
    none = ("no run yet", "no `paper` run with the published settings")
    assert verdicts([run("y", tier="paper")]) == [none]
    assert verdicts(paper(80), Published(method="Z", accuracy=1.0)) == [("no run yet", "no such method here")]
    elsewhere = Published(method="X", ours="x", accuracy=80.0, comparable=False)
    assert verdicts(paper(80), elsewhere) == [("not comparable", "measured under another protocol")]
    assert verdicts([run("x+hosvd", tier="paper")]) == [none]  # a modifier makes another method


def test_the_summary_says_what_is_not_reproduced_first_and_plainly():
    figures = [FIGURE, Published(method="Y", ours="y", accuracy=80.0), Published(method="Z", accuracy=1.0)]
    frame = ledger([*paper(95), run("y", tier="paper", correct=((80, None), (80, 80)))], {"split-digits": figures})
    assert summary(frame) == [
        "not reproduced: 1 of 3 figures (X on split-digits: accuracy)",
        "one run within: 1 of 3 figures (Y on split-digits: accuracy)",
        "no run to compare with: 1 of 3 figures (Z on split-digits: accuracy)",
    ]
    # a second configuration that fits hides nothing
    both = ledger([*paper(95), *paper(80, precision="bf16")], {"split-digits": [FIGURE]})
    assert sorted(both["verdict"]) == ["not reproduced", "one run within"]
    assert summary(both)[0].startswith("not reproduced: 1 of 1")
    text = ledger_markdown(frame)
    assert "| X, split-digits | accuracy | 80.00 | x, paper, fp32 | 95.00 | 1 | not reproduced |" in text
    assert "their paper" in text
    assert r"\toprule" in ledger_table(frame)


def test_every_figure_of_every_protocol_is_in_the_ledger():
    published = {name: protocol.published for name, protocol in protocols.all().items()}
    frame = ledger([], published)
    held = [v for figures in published.values() for f in figures for v in (f.accuracy, f.bwt, f.megabytes) if v is not None]
    assert frame["value"].tolist() == held
    assert set(frame["verdict"]) <= set(VERDICTS)
    assert np.isnan(frame["mean"]).all()
    ours = {f.method: f.ours for f in published["split-cifar100"]}
    assert ours == {"CACL": "cacl", "HAT": "hat", "A-GEM": "agem", "ER-RES": "er", "ACL": ""}
    assert [f.method for f in published["split-cifar100"] if f.comparable] == ["CACL"]


def test_a_ledger_without_figures_is_empty():
    assert ledger(paper(80), {}).empty
    assert "Reproduction ledger" in ledger_markdown(ledger([], {}))
