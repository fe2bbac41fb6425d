"""Dice at every threshold, and scores of several classes from a confusion matrix."""

import numpy as np

BINS = 256
THRESHOLDS = np.arange(1, BINS) / BINS  # 1/256 … 255/256
HALF_INDEX = int(np.searchsorted(THRESHOLDS, 0.5))  # THRESHOLDS[HALF_INDEX] is 0.5


def dice_from_counts(
    intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray
) -> np.ndarray:
    """Return 2·|A∩B| / (|A| + |B|), element by element, from pixel counts; 1 if both are empty.

    Dice 1945, Measures of the amount of ecologic association between species.
    """
    total = np.asarray(predicted + true, dtype=np.float64)
    return np.where(total == 0, 1.0, 2.0 * intersection / np.maximum(total, 1))


def mask_dice(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the Dice of two H×W masks, bool or 0 and any other value, in [0, 1]."""
    predicted, true = predicted.astype(bool, copy=False), true.astype(bool, copy=False)
    return float(dice_from_counts(np.count_nonzero(predicted & true), predicted.sum(), true.sum()))


# ---------------------------------------------------------------- every threshold


def dice_curve(histograms: np.ndarray) -> np.ndarray:
    """Return the Dice at each of THRESHOLDS: …×2×256 histograms → …×255 float64.

    histograms: pixels by level of the probability, outside (0) and inside (1) the true mask; see
    pixel_counts.py.
    """
    at_least = histograms[..., ::-1].cumsum(axis=-1)[..., ::-1]  # pixels of level i or more
    outside, inside = at_least[..., 0, :], at_least[..., 1, :]
    true = inside[..., :1]  # all true pixels, as every level is 0 or more
    return dice_from_counts(inside, inside + outside, true)[..., 1:]  # level 0 is not a threshold


def threshold_index(threshold: float) -> int:
    """Return the index of the value in THRESHOLDS that is nearest to `threshold`."""
    return int(np.abs(THRESHOLDS - threshold).argmin())


def best_threshold(histograms: np.ndarray) -> tuple[float, float]:
    """Return the threshold with the highest mean Dice on N×2×256 histograms, and this Dice."""
    mean_curve = dice_curve(histograms).mean(axis=0)
    best = best_threshold_index(mean_curve)
    return float(THRESHOLDS[best]), float(mean_curve[best])


def best_threshold_index(mean_curve: np.ndarray) -> int:
    """Return the index of the highest value in a curve over THRESHOLDS (255 values).

    Among equal values, the threshold nearest to 0.5 wins.
    """
    ties = np.flatnonzero(mean_curve == mean_curve.max())
    return int(ties[np.argmin(np.abs(ties - HALF_INDEX))])


def cross_fitted_dice(histograms: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the cross-fitted Dice of N images: N×2×256 histograms → N float64.

    Each image is scored at the threshold that is best on the other folds, so no image helps to
    choose its own threshold. All values are NaN if there is only one fold.
    """
    curve, scores = dice_curve(histograms), np.full(len(histograms), np.nan)
    for fold in np.unique(folds):
        others = folds != fold
        if others.any():
            scores[~others] = curve[~others, best_threshold_index(curve[others].mean(axis=0))]
    return scores


def choose_threshold(histograms: np.ndarray, folds: np.ndarray) -> tuple[float, float]:
    """Return the best threshold and its mean cross-fitted gain in Dice over threshold 0.5.

    Returns 0.5 and 0 if there is no gain. With a single fold, returns the best threshold on it, and
    NaN as the gain.
    """
    best, _ = best_threshold(histograms)
    at_half = dice_curve(histograms)[:, HALF_INDEX]
    gain = (cross_fitted_dice(histograms, folds) - at_half).mean()  # NaN for a single fold
    return (0.5, 0.0) if gain <= 0 else (best, gain)


# ---------------------------------------------------------------- several classes


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return "accuracy" (recall), "iou" and "dice" (F1) of each class: …×C×C → …×C float64.

    Accuracy is NaN for a class that is not present. IoU and Dice are NaN for a class that is
    neither present nor predicted.
    """
    correct = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "accuracy": correct / true,
            "iou": correct / (true + predicted - correct),
            "dice": 2 * correct / (true + predicted),
        }


def mean_over_classes(confusion: np.ndarray, score: str) -> np.ndarray:
    """Return the mean of a per_class() score over the classes, ignoring NaN: …×C×C → …

    The mean is NaN if the score of every class is NaN.
    """
    values = per_class(confusion)[score]
    n_valid = (~np.isnan(values)).sum(-1)
    return np.where(n_valid > 0, np.nansum(values, -1) / np.maximum(n_valid, 1), np.nan)


def pixel_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the fraction of correct pixels: …×C×C → …; NaN if no pixel is counted."""
    total = confusion.sum(axis=(-2, -1))
    correct = np.trace(confusion, axis1=-2, axis2=-1)
    return np.where(total > 0, correct / np.maximum(total, 1), np.nan)


def dataset_scores(confusion: np.ndarray) -> dict[str, float]:
    """Return the scores of a C×C confusion matrix; all are NaN if no pixel is counted.

    The scores are pixel accuracy, the three means over classes (see mean_over_classes), and
    frequency-weighted IoU: Long, Shelhamer & Darrell 2015, Fully Convolutional Networks, section 5.
    """
    total, iou = confusion.sum(), per_class(confusion)["iou"]
    return {
        "accuracy": float(pixel_accuracy(confusion)),
        "class_accuracy": float(mean_over_classes(confusion, "accuracy")),
        "iou": float(mean_over_classes(confusion, "iou")),
        "dice": float(mean_over_classes(confusion, "dice")),
        "weighted_iou": float(np.nansum(confusion.sum(axis=-1) * iou) / total if total else np.nan),
    }
