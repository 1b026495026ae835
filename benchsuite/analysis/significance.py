"""Which rows of a board differ? Moderated paired t-tests of all pairs of rows, with Holm's correction."""

from __future__ import annotations

import numpy as np
from scipy.special import digamma, stdtr, zeta

ALPHA = 0.05


def pairwise_p(values: np.ndarray, apart: np.ndarray | None = None, exact: np.ndarray | None = None) -> np.ndarray:
    """Adjusted p-values (m, m) of "the two rows have the same mean", two-sided, for `values` (m, n): m rows, n seeds, NaN where a
    row has no run of a seed. NaN for a pair that shares fewer than two seeds.

    A pair's differences d by shared seed have the mean d and the variance s^2. Its variance is moderated (Smyth 2004, limma):
    with the prior d0, s0^2 of all pairs (`prior`), v = (d0 s0^2 + (n - 1) s^2) / (d0 + n - 1), and t = d / sqrt(v / n) has
    d0 + n - 1 degrees of freedom. The variances of pairs that share a row depend on each other, so of d0 only half is used, and
    at most (n - 1)(m - 2) / 2, n the smallest number of shared seeds. Two rows alone give the plain paired t.

    Why all pairs: the best row is picked from the same data, so its comparisons are not m - 1 tests chosen in advance. Holm's
    correction over all pairs covers every choice. `benchsuite.measure.significance` simulates errors and power: with a size
    reference, so two families, at most 5.5 % of boards of equal rows have an error if noise is normal, up to 20 % at ten seeds if
    it is exponential and rows vary unequally.

    Rows with the same values count once; they and other pairs without any difference have p = 1. So has every pair if nothing
    measures a spread, because all differences are constant.
    apart: (m,) rows whose pairs with any row have a correction of their own (references).
    exact: (m,) rows known without error; of two such rows p is 0 or 1 and takes no part in the tests.
    """
    count = len(values)
    apart = np.zeros(count, bool) if apart is None else apart
    exact = np.zeros(count, bool) if exact is None else exact
    values = values.round(9)  # sums in another order differ in their last bits, which is no difference
    keys = np.column_stack([np.nan_to_num(values, nan=np.inf), apart, exact])
    _, first, member = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    rows = values[first]
    i, j = np.triu_indices(len(first), 1)
    differences = (rows[i] - rows[j]).round(9)
    there = ~np.isnan(differences)
    n, known = there.sum(1), exact[first][i] & exact[first][j]
    same = (np.where(there, differences, 0) == 0).all(1)

    p = np.full(len(i), np.nan)
    p[same & (n > 1)] = 1
    tested = (n > 1) & ~same & ~known
    p[tested] = moderated_t(differences[tested], len(np.union1d(i[tested], j[tested])))
    reference = apart[first][i] | apart[first][j]
    for family in (tested & ~reference, tested & reference):
        p[family] = holm(p[family])
    level = np.nanmax(rows, axis=1, initial=-np.inf)
    p[known] = level[i[known]] == level[j[known]]

    found = np.full((len(first), len(first)), np.nan)
    found[i, j] = found[j, i] = p
    np.fill_diagonal(found, np.where(((~np.isnan(rows)).sum(1) > 1) | exact[first], 1.0, np.nan))  # of rows with the same values
    return found[np.ix_(member, member)]


def moderated_t(differences: np.ndarray, rows: int) -> np.ndarray:
    """p-values (k,) of k pairs of `rows` rows for `differences` (k, n), at least two seeds each, NaN for seeds not shared."""
    n = (~np.isnan(differences)).sum(1)
    free = n - 1
    if not len(n):
        return np.empty(0)
    mean, s2 = np.nanmean(differences, axis=1), np.nanvar(differences, axis=1, ddof=1)
    d0, prior_s2 = prior(s2, free)
    d0 = min(d0 / 2, free.min() * (rows - 2) / 2)
    variance = (d0 * prior_s2 + free * s2) / (d0 + free)
    size = np.where(variance > 0, np.abs(mean) / np.sqrt(np.where(variance > 0, variance, 1) / n), 0)
    return 2 * stdtr(d0 + free, -size)


def prior(s2: np.ndarray, free: np.ndarray) -> tuple[float, float]:
    """d0 and s0^2 of the inverse chi-square law of which `s2` (k,), on `free` degrees of freedom each, are estimates.

    By the moments of log s^2, as limma's `fitFDist`: trigamma(d0 / 2) = var(log s^2) - mean(trigamma(free / 2)). d0 is infinite
    if the s^2 vary no more than estimates of one variance would.
    """
    floor = 1e-5 * (np.median(s2) or s2.mean())
    if not floor:
        return np.inf, 0.0
    e = np.log(np.maximum(s2, floor)) - digamma(free / 2) + np.log(free / 2)
    excess = (e.var(ddof=1) if len(e) > 1 else 0.0) - zeta(2, free / 2).mean()  # trigamma(x) = zeta(2, x)
    if excess <= 0:
        return np.inf, float(s2.mean())
    half = trigamma_inverse(excess)
    return 2 * half, float(np.exp(e.mean() + digamma(half) - np.log(half)))


def trigamma_inverse(x: float) -> float:
    """y > 0 with trigamma(y) = x > 0, by Newton's method on 1 / trigamma, which is nearly linear (as in limma)."""
    y = 0.5 + 1 / x
    for _ in range(50):
        value = zeta(2, y)
        step = value * (1 - value / x) / (-2 * zeta(3, y))
        y += step
        if abs(step) < 1e-10 * y:
            break
    return float(y)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values of k tests: the r-th smallest times k - r + 1, never below one before it, at most 1."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted
