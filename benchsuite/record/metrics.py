"""Continual-learning metrics, computed from the accuracy matrix.

R is a T x T array: R[t, i] is the accuracy in per cent on the test set of task i after learning task t, NaN where it
was not measured (a task not learned yet). Rows and columns follow the order of learning. A statistic that needs a
missing entry is NaN, "not applicable", never 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def accuracy_matrix(correct: Sequence[Sequence[int | None]], test: Sequence[int]) -> np.ndarray:
    """R (T x T, per cent): 100 correct[t][i] / test[i], the number of test images of task i; None becomes NaN."""
    return 100 * np.array(correct, dtype=float) / np.array(test, dtype=float)


def average_accuracy(R: np.ndarray) -> float:
    """ACC = 1/T sum_i R[T, i], in per cent, each task weighing the same (Lopez-Paz and Ranzato 2017, GEM)."""
    return float(R[-1].mean())


def backward_transfer(R: np.ndarray) -> float:
    """BWT = 1/(T-1) sum_{i<T} (R[T, i] - R[i, i]), in percentage points (Lopez-Paz and Ranzato 2017, GEM).

    Negative is forgetting. NaN for a single task, and when a task was not measured right after it was learned.
    """
    if len(R) == 1:
        return np.nan
    return float((R[-1, :-1] - R.diagonal()[:-1]).mean())


def forgetting(R: np.ndarray) -> float:
    """F = 1/(T-1) sum_{i<T} (max_{i<=t<T} R[t, i] - R[T, i]), in percentage points (Chaudhry et al. 2018, RWalk).

    Only rows since the task was learned count: before that its head is untrained. NaN for a single task, and when a
    task was not measured after every task since.
    """
    if len(R) == 1:
        return np.nan
    since = np.where(np.tri(len(R) - 1, dtype=bool), R[:-1, :-1], -np.inf)
    return float((since.max(axis=0) - R[-1, :-1]).mean())


def learning_accuracy(R: np.ndarray) -> float:
    """LA = 1/T sum_i R[i, i], in per cent: how well each task is learned in its turn (Riemer et al. 2019, MER)."""
    return float(R.diagonal().mean())


def forward_gain(R: np.ndarray, R_individual: np.ndarray) -> float:
    """FG = 1/(T-1) sum_{j>=2} (R[j, j] - S[j, j]), in percentage points, S the matrix of one separate model per task.

    What the earlier tasks give to a new one. It stands where GEM has forward transfer, which needs the accuracy on a
    task before it is learned: with one head per task that head is then untrained. NaN for a single task, and when a
    task was not measured right after it was learned, the first one included: such a run has no earlier task.
    """
    gain = R.diagonal() - R_individual.diagonal()
    if len(R) == 1 or np.isnan(gain).any():
        return np.nan
    return float(gain[1:].mean())


def accuracy_after_each_task(R: np.ndarray) -> np.ndarray:
    """A_k = 1/k sum_{j<=k} R[k, j] for k = 1..T, in per cent (Lopez-Paz and Ranzato 2017); the last one is ACC."""
    return np.array([R[k, : k + 1].mean() for k in range(len(R))])


def anytime_accuracy(R: np.ndarray) -> float:
    """AAA = 1/T sum_k A_k, in per cent: `accuracy_after_each_task`, averaged over the sequence (Caccia et al. 2022, ICLR).

    Measured at the ends of tasks only, so it is the average incremental accuracy of Rebuffi et al. 2017 (iCaRL). NaN when a task
    was not measured after every task since it was learned.
    """
    return float(accuracy_after_each_task(R).mean())


def forgetting_after_each_task(R: np.ndarray) -> np.ndarray:
    """F_k = 1/(k-1) sum_{i<k} (max_{i<=t<k} R[t, i] - R[k, i]) for k = 1..T, in percentage points: F_1 is NaN, F_T is F."""
    return np.array([forgetting(R[: k + 1, : k + 1]) for k in range(len(R))])
