"""Errors and power of the test behind the daggers (`analysis.significance`), on simulated boards.

An error is a board of equal rows on which any two are called different. Every row has its own noise, and all share an effect of
the seed, as task orders have. Boards count twice: with all pairs as one family, and with the first row as a size reference, whose
pairs are a second family. Power is the share of the other rows that are told from the one best row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from ..analysis.significance import ALPHA, moderated_t, pairwise_p
from . import script

NOISE: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda draw, shape: draw.standard_normal(shape),
    "exponential": lambda draw, shape: draw.standard_exponential(shape) - 1,
}
DEVIATIONS: dict[str, Callable[[int], np.ndarray]] = {
    "1": np.ones,
    "0.3 to 3": lambda rows: np.geomspace(0.3, 3, rows),
    "0.3 or 3": lambda rows: np.where(np.arange(rows) % 2, 0.3, 3.0),
}
SEED_EFFECT = 2.0  # its deviation, in row deviations
LEADS = {"3": 3.0, "3 of a paired difference": 3 * 2**0.5, "5": 5.0, "5 of a paired difference": 5 * 2**0.5}


def shares(
    seeds: int, rows: int, noise: str = "normal", deviations: str = "1", *, draws: int, lead: float = 0.0
) -> tuple[float, float, float, float]:
    """Shares: of boards with any pair called different; the same where the first row is a size reference; without Holm's
    correction; and of rows told from the first one, which is no reference.

    lead: what the mean of the first row has over all others.
    """
    draw, spread = np.random.default_rng(seeds), DEVIATIONS[deviations](rows)[:, None]
    i, j = np.triu_indices(rows, 1)
    first = np.arange(rows) == 0
    found = np.zeros(4)
    for _ in range(draws):
        values = NOISE[noise](draw, (rows, seeds)) * spread + SEED_EFFECT * draw.standard_normal(seeds)
        values[0] += lead
        different, alone = pairwise_p(values) <= ALPHA, moderated_t(values[i] - values[j], rows) <= ALPHA
        found += different.any(), (pairwise_p(values, first) <= ALPHA).any(), alone.any(), different[0, 1:].mean()
    errors, referred, uncorrected, told = (found / draws).tolist()
    return errors, referred, uncorrected, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000, help="boards for each line; a fifth of them for power (default: 2000)")
    draws = parser.parse_args().draws
    print("| seeds | rows | noise | deviations of rows | boards with an error (%) | with a reference (%) | without correction (%) |")
    print("|---:|---:|---|---|---:|---:|---:|")
    cases = [(seeds, 30, noise, spread) for noise in NOISE for spread in DEVIATIONS for seeds in (3, 5, 10)]
    for case in [(5, 20, "normal", "1"), *cases]:
        errors, referred, uncorrected, _ = shares(*case, draws=draws)
        print(f"| {' | '.join(map(str, case))} | {100 * errors:.1f} | {100 * referred:.1f} | {100 * uncorrected:.0f} |", flush=True)
    print("\n| lead of the best of 30 rows (standard deviations) | rows told from it (%): 3 seeds | 5 seeds | 10 seeds |")
    print("|---|---:|---:|---:|")
    for words, lead in LEADS.items():
        told = [shares(seeds, 30, draws=draws // 5, lead=lead)[3] for seeds in (3, 5, 10)]
        print(f"| {words} | {' | '.join(f'{100 * share:.0f}' for share in told)} |", flush=True)


if __name__ == "__main__":
    script(main)
