"""Standard errors and intervals of mean scores, for images that come in groups (cars)."""

import numpy as np


def clustered_standard_error(scores: np.ndarray, groups: np.ndarray) -> float:
    """Return the cluster-robust standard error of the mean of N scores; NaN for a single group.

    For G groups, it is sqrt(G/(G-1) · Σ_g (Σ_{i∈g} (x_i − mean))²) / N. Deviations are summed over
    each group before squaring, because the images of a group are not independent.
    Cameron & Miller 2015, A Practitioner's Guide to Cluster-Robust Inference.
    """
    group_ids, group_index = np.unique(groups, return_inverse=True)
    if len(group_ids) < 2:
        return float("nan")
    sums = np.bincount(group_index, weights=scores - scores.mean())
    return float(np.sqrt(len(group_ids) / (len(group_ids) - 1) * (sums**2).sum()) / len(scores))


def prediction_interval(
    scores: np.ndarray, groups: np.ndarray, n_new_groups: float = np.inf
) -> tuple[float, float]:
    """Return the 95% prediction interval of the mean score of `n_new_groups` unseen groups.

    The interval is mean ± t·error·sqrt(1 + G/n_new_groups), where t has G−1 degrees of freedom.
    For infinitely many new groups, it is the confidence interval of the mean. For a single group,
    it is (NaN, NaN).
    """
    from scipy.special import stdtrit  # imported here, as it takes a third of a second

    n_groups, mean = len(np.unique(groups)), float(scores.mean())
    error = clustered_standard_error(scores, groups) * np.sqrt(1 + n_groups / n_new_groups)
    half_width = float(stdtrit(n_groups - 1, 0.975) * error)  # NaN for a single group
    return mean - half_width, mean + half_width


def format_mean(mean: float, standard_error: float, digits: int = 5) -> str:
    """Format a mean score ± its standard error, which is NaN for a single group."""
    if np.isnan(standard_error):
        return f"{mean:.{digits}f} (one group, no standard error)"
    return f"{mean:.{digits}f} ± {standard_error:.{digits}f}"


def format_gain(gain: float) -> str:
    """Format a difference of scores; NaN gives an empty text."""
    return "" if np.isnan(gain) else f"{round(gain, 5) + 0.0:+.5f}"  # + 0.0: no -0.00000
