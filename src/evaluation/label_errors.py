"""Suspected label errors in the training masks, from out-of-fold scores."""

import numpy as np
import pandas as pd

from evaluation.oof import Scores

# A probability below 1/16, or of 15/16 or more, is confident.
CONFIDENT_LEVELS = 16
LEAST_AREA = 0.01  # fraction of the image
ERROR_RATIO = 5  # times the typical fraction of confident errors
MAX_ROBUST_Z = 5.0  # robust standard deviations
MIN_GROUP_SIZE = 5  # images in a group for a group median
MIN_COMPLETE_GROUPS = 8  # for the comparison of neighboring views


def find_label_errors(scores: Scores) -> pd.DataFrame:
    """Return the images on which mask and network disagree strongly, most suspicious first.

    The table has columns image_id, group, view, fold, dice and reason.
    """
    errors, z_scores = confident_errors(scores.histograms), turntable_outliers(scores.table)
    ratios = errors.sum(axis=1) / typical_error(errors.sum(axis=1), scores.groups)
    reasons = []
    rows = zip(errors, ratios, z_scores, scores.table["area"], strict=True)
    for (false_positive, false_negative), ratio, z, area in rows:
        reason, whole = [], "the mask" if area >= LEAST_AREA else f"{LEAST_AREA:.0%} of the image"
        if ratio > ERROR_RATIO:
            reason.append(
                f"confident false positives {false_positive:.1%}, "
                f"false negatives {false_negative:.1%} of {whole}"
            )
        if abs(z) > MAX_ROBUST_Z:
            relation = "larger" if z > 0 else "smaller"
            reason.append(
                f"the mask is {relation} than the neighboring views suggest ({z:+.1f} sd)"
            )
        reasons.append("; ".join(reason))
    table = scores.table[["image_id", "group", "view", "fold", "dice"]]
    table = table.assign(reason=reasons, suspicion=ratios + np.abs(z_scores))
    table = table[table["reason"] != ""].sort_values("suspicion", ascending=False)
    return table.drop(columns="suspicion").reset_index(drop=True)


def confident_errors(histograms: np.ndarray) -> np.ndarray:
    """Return confident false positives and false negatives, relative to the true area.

    Takes N×2×256 histograms (see pixel_counts.probability_histograms) and returns N×2 float64. The
    fraction LEAST_AREA of the image takes the place of a smaller true area.
    """
    false_positives = histograms[:, 0, -CONFIDENT_LEVELS:].sum(axis=1)
    false_negatives = histograms[:, 1, :CONFIDENT_LEVELS].sum(axis=1)
    # Without a minimum, a single wrong pixel on an empty mask would be the largest error.
    least_area = LEAST_AREA * histograms.sum(axis=(1, 2))
    true_area = np.maximum(histograms[:, 1].sum(axis=1), least_area)
    return np.stack([false_positives, false_negatives], axis=1) / true_area[:, None]


def typical_error(errors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the typical confident error for each image, N values.

    This is the larger of two medians: over all images, and over the image's group (if it has at
    least MIN_GROUP_SIZE images). A car that is hard in every view is not a label error.
    """
    series = pd.Series(errors)
    median, size = (series.groupby(groups).transform(name) for name in ("median", "size"))
    group_median = median.where(size >= MIN_GROUP_SIZE, 0)
    return np.maximum(max(series.median(), 1e-3), group_median).to_numpy()


def turntable_outliers(table: pd.DataFrame) -> np.ndarray:
    """Return how unusual the area of each mask is: N robust z-scores.

    The deviation of a mask is the logarithm of its area, minus the mean logarithm of the two
    neighboring views of the same group. The z-score compares it with the deviations of the same
    view in all complete groups: those with views 1 … n. The values of other groups are 0. All are 0
    with fewer than 5 views or 8 complete groups, or if most groups are incomplete.
    """
    views = pd.to_numeric(table["view"], errors="coerce")
    numbered = table.assign(view=views, log_area=np.log(table["area"].clip(lower=1e-6)))
    by_view = numbered.pivot_table("log_area", index="group", columns="view")
    log_area, n_views = by_view.dropna(), by_view.shape[1]
    is_ring = list(by_view) == list(range(1, n_views + 1)) and len(log_area) > len(by_view) / 2
    if numbered.duplicated(["group", "view"]).any() or not is_ring:
        return np.zeros(len(table))
    if n_views < MIN_GROUP_SIZE or len(log_area) < MIN_COMPLETE_GROUPS:
        return np.zeros(len(table))
    neighbors = (np.roll(log_area, 1, axis=1) + np.roll(log_area, -1, axis=1)) / 2
    deviation = log_area - neighbors
    deviation -= deviation.median()
    z = deviation / (1.4826 * deviation.abs().median()).clip(lower=0.005)
    return numbered.join(z.stack().rename("z"), on=["group", "view"])["z"].fillna(0).to_numpy()
