"""Masks of the training set that may be wrong themselves: where to look before training again."""

import numpy as np
import pandas as pd

from evaluation.oof import Scores

CONFIDENT_LEVELS = (
    16  # levels: sure is below 16/256 = 1/16 and from 15/16 on; of runs together no more is kept
)
ERROR_RATIO = 5  # times the usual share of confident errors
MAX_ROBUST_Z = 5.0  # robust standard deviations
MIN_GROUP_SIZE = 5  # images of a group that say what is usual for it


def confident_errors(counts: np.ndarray) -> np.ndarray:
    """N×2 shares of the true area: background by the mask that the network is sure is object, and
    object that it is sure is background. `counts` is N×2×256, see metrics.histograms."""
    extra, lost = (
        counts[:, 0, -CONFIDENT_LEVELS:].sum(axis=1),
        counts[:, 1, :CONFIDENT_LEVELS].sum(axis=1),
    )
    return np.stack([extra, lost], axis=1) / np.maximum(counts[:, 1].sum(axis=1), 1)[:, None]


def typical_error(total: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """What confident errors are usual for each image: the median of all, or of its own group
    where that is more: a car that is hard in every view is the network's fault."""
    shares = pd.Series(total)
    own, size = (shares.groupby(groups).transform(what) for what in ("median", "size"))
    return np.maximum(max(shares.median(), 1e-3), own.where(size >= MIN_GROUP_SIZE, 0)).to_numpy()


def turntable_outliers(table: pd.DataFrame) -> np.ndarray:
    """How many robust standard deviations each image's log area is from what its two neighbours
    on the turntable suggest, compared with the same view of the other groups.

    0 where the views are not numbered 1 … n in every group, or groups or views are too few.
    """
    views = pd.to_numeric(table["view"], errors="coerce")
    places = table.assign(view=views, area=np.log(table["area"].clip(lower=1e-6)))
    turns = places.groupby("group")["view"].agg(lambda v: sorted(v) == list(range(1, len(v) + 1)))
    sizes = places.groupby("group").size()
    if not turns.all() or sizes.nunique() > 1 or sizes.iloc[0] < MIN_GROUP_SIZE or len(sizes) < 8:
        return np.zeros(len(table))
    area = places.pivot(index="group", columns="view", values="area")
    around = (np.roll(area, 1, axis=1) + np.roll(area, -1, axis=1)) / 2
    off = area - around
    off = off - off.median()
    far = off / (1.4826 * off.abs().median()).clip(lower=0.005)
    return far.stack().loc[list(zip(places["group"], places["view"], strict=True))].to_numpy()


def find_label_errors(scores: Scores) -> pd.DataFrame:
    """The images worth a labeller's look, most suspicious first: image_id, group, view, fold,
    dice and `reason`. It names what does not fit, which may yet be the network's fault."""
    wrong, far = confident_errors(scores.counts), turntable_outliers(scores.table)
    times = wrong.sum(axis=1) / typical_error(wrong.sum(axis=1), scores.groups)
    reasons = []
    for (extra, lost), much, z in zip(wrong, times, far, strict=True):
        reason = []
        if much > ERROR_RATIO:
            reason.append(
                f"the network is sure of {extra:.1%} more object and {lost:.1%} less than the mask"
            )
        if abs(z) > MAX_ROBUST_Z:
            side = "larger" if z > 0 else "smaller"
            reason.append(f"the mask is {side} than the neighbouring views suggest ({z:+.1f} sd)")
        reasons.append("; ".join(reason))
    columns = ["image_id", "group", "view", "fold", "dice"]
    table = scores.table[columns].assign(reason=reasons, weight=times + np.abs(far))
    table = table[table["reason"] != ""].sort_values("weight", ascending=False)
    return table.drop(columns="weight").reset_index(drop=True)
