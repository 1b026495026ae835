"""The test behind the daggers: by its definition, by hand and by simulation."""

import numpy as np
import pytest
from scipy import special, stats

from benchsuite.analysis import significance
from benchsuite.analysis.significance import holm, moderated_t, pairwise_p, prior, trigamma_inverse
from benchsuite.measure.significance import shares

NAN = np.nan


def board(*rows):
    return np.array(rows, dtype=float)


@pytest.fixture
def noisy():
    """Six rows of five seeds, with means of their own."""
    draw = np.random.default_rng(5)
    return draw.normal(size=(6, 5)) * np.linspace(0.5, 2, 6)[:, None] + 3 * np.arange(6)[:, None]


def test_two_rows_alone_give_the_paired_t_test():
    a, b = [3.0, 5.0, 4.0, 6.5], [2.0, 4.5, 2.0, 6.0]
    assert pairwise_p(board(a, b))[0, 1] == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert pairwise_p(board(a, b))[0, 1] < stats.ttest_ind(a, b).pvalue / 3, "control: unpaired it would be another"


@pytest.mark.parametrize("x", [1e-9, 1e-3, 0.3, 1.0, 40.0, 1e6])
def test_the_inverse_of_the_trigamma_function(x):
    assert special.polygamma(1, trigamma_inverse(x)) == pytest.approx(x, rel=1e-8)


@pytest.mark.parametrize("free", [2, np.arange(20_000) % 4 + 1])
def test_the_prior_is_found_from_variances_of_its_law(free):
    draw = np.random.default_rng(2)
    true = 3.0 * 8 / draw.chisquare(8, size=20_000)  # d0 = 8, s0^2 = 3
    d0, s2 = prior(true * draw.chisquare(free, size=20_000) / free, np.broadcast_to(free, 20_000))
    assert (d0, s2) == (pytest.approx(8, rel=0.2), pytest.approx(3, rel=0.05))
    same = 3.0 * draw.chisquare(free, size=20_000) / free  # control: of one variance
    d0, s2 = prior(same, np.broadcast_to(free, 20_000))
    assert (d0 > 50, s2) == (True, pytest.approx(3, rel=0.05))


def test_every_pair_by_the_definition(noisy):
    m, n = noisy.shape
    pairs = [(i, j) for i in range(m) for j in range(i + 1, m)]
    differences = np.array([noisy[i] - noisy[j] for i, j in pairs])
    s2 = differences.var(axis=1, ddof=1)
    e = np.log(s2) - special.digamma((n - 1) / 2) + np.log((n - 1) / 2)
    half = trigamma_inverse(e.var(ddof=1) - special.polygamma(1, (n - 1) / 2))
    s02 = np.exp(e.mean() + special.digamma(half) - np.log(half))
    d0 = min(2 * half / 2, (n - 1) * (m - 2) / 2)
    assert 0 < d0 < (n - 1) * (m - 2) / 2, "here the halved d0 counts"
    t = differences.mean(1) / np.sqrt((d0 * s02 + (n - 1) * s2) / (d0 + n - 1) / n)
    expected = 2 * stats.t.sf(np.abs(t), d0 + n - 1)
    assert moderated_t(differences, m) == pytest.approx(expected)
    found = pairwise_p(noisy)
    assert [found[i, j] for i, j in pairs] == pytest.approx(holm(expected))
    assert np.array_equal(found, found.T)


def test_the_prior_never_counts_more_than_the_rows_can_tell(monkeypatch):
    values = np.random.default_rng(3).normal(size=(4, 3))
    found = moderated_t(values[:1] - values[1:], 4)
    monkeypatch.setattr(significance, "prior", lambda s2, free: (np.inf, float(s2.mean())))
    capped = moderated_t(values[:1] - values[1:], 4)
    differences = values[:1] - values[1:]
    s2 = differences.var(axis=1, ddof=1)
    t = differences.mean(1) / np.sqrt((2 * s2.mean() + 2 * s2) / 4 / 3)  # d0 = (n - 1)(m - 2) / 2 = 2
    assert capped == pytest.approx(2 * stats.t.sf(np.abs(t), 4))
    assert found != pytest.approx(2 * stats.norm.sf(np.abs(t))), "control"


def test_pairs_have_as_many_seeds_as_they_share(noisy):
    values = noisy.copy()
    values[1, 3:], values[2, :4], values[3, 1:] = NAN, NAN, NAN
    found = pairwise_p(values)
    differences = values[[0, 0, 4, 1, 1, 0]] - values[[1, 4, 5, 4, 5, 5]]  # of the rows that share at least two
    s2, free = np.nanvar(differences, axis=1, ddof=1), np.array([2, 4, 4, 2, 2, 4])
    d0, s02 = prior(s2, free)
    d0 = min(d0 / 2, 2 * (4 - 2) / 2)
    t = np.nanmean(differences, axis=1) / np.sqrt((d0 * s02 + free * s2) / (d0 + free) / (free + 1))
    expected = holm(2 * stats.t.sf(np.abs(t), d0 + free))
    assert [found[0, 1], found[0, 4], found[4, 5], found[1, 4], found[1, 5], found[0, 5]] == pytest.approx(expected)
    assert np.isnan([found[0, 2], found[1, 2], found[0, 3], found[2, 3]]).all(), "one shared seed, or none"
    assert np.isnan(pairwise_p(noisy[:, :1])).all()


def test_rows_with_the_same_values_count_once(noisy):
    found, twice = pairwise_p(noisy), pairwise_p(np.vstack([noisy, noisy[2] + 1e-12, noisy[2]]))
    assert np.array_equal(twice[:6, :6], found, equal_nan=True), "equal but for rounding"
    assert np.array_equal(twice[6], twice[2])
    assert twice[2, 6] == twice[6, 7] == 1
    other = pairwise_p(np.vstack([noisy, noisy[2] + [0.1, -0.1, 0.2, 0, 0]]))
    assert not np.allclose(other[:6, :6], found), "control: a row of its own makes more pairs"


def test_pairs_with_a_reference_have_a_correction_of_their_own(noisy):
    apart = np.arange(6) == 5
    together, found = pairwise_p(noisy), pairwise_p(noisy, apart)
    i, j = np.triu_indices(6, 1)
    raw = moderated_t(noisy[i] - noisy[j], 6)
    assert found[i, j][j < 5] == pytest.approx(holm(raw[j < 5]))
    assert found[i, j][j == 5] == pytest.approx(holm(raw[j == 5]))
    assert (found[i, j] <= together[i, j] + 1e-12).all()
    assert (found[i, j] < together[i, j] - 1e-12).any(), "control: together there are more tests"
    twins = pairwise_p(np.vstack([noisy, noisy[0]]), np.arange(7) == 6)
    assert twins[0, 6] == 1, "a method with the values of a reference"


def test_rows_known_without_error_are_compared_without_a_test(noisy):
    known = board([5] * 5, [7] * 5, [5, 5, NAN, NAN, NAN])
    found = pairwise_p(np.vstack([noisy, known]), exact=np.arange(9) > 5)
    assert (found[6, 7], found[6, 8], found[7, 8]) == (0, 1, 0)
    assert 0 < found[0, 6] < 1, "a learned size against a fixed one is tested"


def test_differences_that_leave_no_scale():
    assert pairwise_p(board([1, 2, 3], [3, 4, 5]))[0, 1] == 1  # agreeing by chance is no proof
    assert pairwise_p(board([1, 2, 3], [1, 2, 3]))[0, 1] == 1
    values = board([1, 2, 3], [3, 4, 5], [9, 7, 6])
    assert pairwise_p(values)[0, 1] < 1, "others give one"


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; the last is lifted to the one before it
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.9])).tolist() == [1, 1]
    assert holm(np.array([])).tolist() == []


@pytest.mark.parametrize("deviations", ["1", "0.3 to 3"])
def test_few_boards_of_equal_rows_have_an_error(deviations):
    errors, referred, uncorrected, _ = shares(3, 20, deviations=deviations, draws=150)
    assert errors <= significance.ALPHA
    assert errors < referred <= significance.ALPHA, "pairs with a size reference are a second family of tests"
    assert uncorrected > 0.5, "control: every pair at 5 %"


def test_a_lead_of_five_deviations_is_found_by_three_seeds():
    assert shares(3, 20, draws=40, lead=5.0)[3] > 0.75
    assert shares(3, 20, draws=40)[3] < 0.05, "control"
