"""The competition's score, and what is needed to know it at every threshold."""

import numpy as np
from scipy import stats

# ---------------------------------------------------------------- what a mean is worth


def clustered_standard_error(scores: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of the mean score, where the images of one group (a car) hang together.

    Cluster-robust: sqrt(G/(G-1) · Σ_g (Σ_{i∈g} (x_i − mean))²) / N; nan for a single group.
    Cameron & Miller 2015, A Practitioner's Guide to Cluster-Robust Inference.
    """
    names, member = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return float("nan")
    sums = np.bincount(member, weights=scores - scores.mean())
    return float(np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()) / len(scores))


def paired_bootstrap_interval(
    differences: np.ndarray, groups: np.ndarray, draws: int = 10_000
) -> tuple[float, float]:
    """95% interval of the mean difference between two runs on the same N images.

    Percentile bootstrap that draws whole groups (cars), the same ones every time. (nan, nan) for
    a single group. Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    names, member = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    sums, sizes = np.bincount(member, weights=differences), np.bincount(member)
    low, high = np.percentile(drawn @ sums / (drawn @ sizes), [2.5, 97.5])
    return float(low), float(high)


def prediction_interval(
    scores: np.ndarray, groups: np.ndarray, others: float = np.inf
) -> tuple[float, float]:
    """95% interval of the mean score of another set of `others` groups, drawn as these were.

    mean ± t·error·sqrt(1 + G/others), t of G−1 degrees of freedom; for infinitely many groups it
    is the interval of the mean itself.
    """
    count = len(np.unique(groups))
    if count < 2:
        return float("nan"), float("nan")
    error = clustered_standard_error(scores, groups) * np.sqrt(1 + count / others)
    half = stats.t.ppf(0.975, count - 1) * error
    return float(scores.mean() - half), float(scores.mean() + half)
