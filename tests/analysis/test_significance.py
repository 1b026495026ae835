import math
import statistics
from itertools import product

import numpy as np
import pytest

from benchsuite.analysis import significance
from benchsuite.analysis.significance import bootstrap_p, holm


def p_of(*differences):
    return float(bootstrap_p(np.array(differences, dtype=float)[:, None])[0])


@pytest.fixture
def drawn(monkeypatch):
    """Puts resamples of one's own in place of the random ones."""

    def put(seeds, noise):
        monkeypatch.setattr(significance, "draws", lambda n: (np.array(seeds), np.array(noise, dtype=float)))
        significance._resamples.cache_clear()

    yield put
    significance._resamples.cache_clear()


def test_all_resamples_without_noise_by_hand(drawn):
    def everything(n):
        drawn(list(product(range(n), repeat=n)), np.zeros((n**n, n)))

    everything(2)
    # (1, 3): t = 2. Of 4 resamples (1, 1) and (3, 3) have no spread and count; (1, 3) and (3, 1) have t* = 0.
    assert p_of(1, 3) == pytest.approx((2 + 1) / (4 + 1))
    everything(3)
    # (1, 2, 3): t = 3.46. Of 27 resamples 3 have no spread; among the others |t*| is 2 at most, of (1, 1, 2).
    assert p_of(1, 2, 3) == pytest.approx((3 + 1) / (27 + 1))
    # (-1, 2, 2): t = 1. Of 27 resamples 1 + 8 have no spread, 6 are of (-1, -1, 2) with t* = -1, 12 of (-1, 2, 2) with t* = 0.
    assert p_of(-1, 2, 2) == p_of(1, -2, -2) == pytest.approx((1 + 8 + 6 + 1) / (27 + 1))


def test_noise_by_the_definition(drawn):
    generator = np.random.default_rng(1)
    seeds, noise = generator.integers(4, size=(50, 4)), generator.normal(size=(50, 4))
    drawn(seeds, noise)
    for differences in generator.normal(0.7, 1, size=(5, 4)).tolist():
        mean, s, h = statistics.fmean(differences), statistics.stdev(differences), (4 / 12) ** 0.2
        count = 0
        for places, z in zip(seeds.tolist(), noise.tolist(), strict=True):
            resample = [differences[i] + h * s * x for i, x in zip(places, z, strict=True)]
            count += abs(statistics.fmean(resample) - mean) / statistics.stdev(resample) >= abs(mean) / s
        assert p_of(*differences) == pytest.approx((count + 1) / 51)


def test_differences_without_spread():
    assert p_of(0, 0, 0) == 1
    assert p_of(2, 2, 2) == pytest.approx(1 / 9)  # agreeing by chance is no proof
    assert p_of(0.1 + 0.2, 0.3, 0.3) == pytest.approx(1 / 9)  # equal but for rounding
    with pytest.raises(ValueError, match="fewer than two"):
        p_of(1)


def percentile_p(differences):
    """The plain bootstrap: the share of resampled means on the other side of 0, twice."""
    counts, *_ = significance._resamples(len(differences))
    means = counts @ differences / len(differences)
    return 2 * np.minimum((means <= 0).mean(axis=0), (means >= 0).mean(axis=0))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_equal_methods_are_told_apart_in_about_five_per_cent(n):
    noise = np.random.default_rng(n).normal(size=(n, 1000))
    assert (bootstrap_p(noise) <= 0.05).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert (percentile_p(noise) <= 0.05).mean() > 0.1  # control: the plain bootstrap is far too bold with few seeds
    if n == 5:
        assert (bootstrap_p(noise + 3) <= 0.05).mean() > 0.95  # and what differs is found,
        assert (bootstrap_p(noise + 10) <= 0.05 / 20).mean() > 0.95  # also among twenty methods


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; the last is lifted to the one before it
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.9])).tolist() == [1, 1]
    assert holm(np.array([])).tolist() == []


def test_holm_keeps_the_errors_of_a_whole_table_at_five_per_cent():
    p = bootstrap_p(np.random.default_rng(7).normal(size=(5, 2000))).reshape(200, 10)
    assert (np.array([holm(row) for row in p]) <= 0.05).any(axis=1).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert (p <= 0.05).any(axis=1).mean() > 0.2  # control: uncorrected, among ten equal methods
