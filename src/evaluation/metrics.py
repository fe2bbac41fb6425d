"""The competition's score, and what is needed to know it at every threshold."""

import numpy as np

BINS = 256
THRESHOLDS = np.arange(1, BINS) / BINS  # 1/256 … 255/256; 0.5 is THRESHOLDS[127]


def dice_from_counts(inside: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """2·|A∩B| / (|A| + |B|) from pixel counts of any one shape; both empty is 1.

    Dice 1945, Measures of the amount of ecologic association between species.
    """
    total = np.asarray(predicted + true, dtype=np.float64)
    return np.where(total == 0, 1.0, 2.0 * inside / np.maximum(total, 1))


def mask_dice(predicted: np.ndarray, true: np.ndarray) -> float:
    """Dice of two H×W bool masks, in [0, 1]."""
    return float(dice_from_counts(np.count_nonzero(predicted & true), predicted.sum(), true.sum()))


def probability_histograms(levels: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Pixels by level, outside and inside the truth: 2×256 int64.

    `levels` is H×W uint8, floor(256·probability) at most 255, so that `probability >= i/256` is
    exactly `levels >= i`: the histograms give the exact Dice at all 255 thresholds.
    """
    inside = np.bincount(levels[true], minlength=BINS)
    return np.stack([np.bincount(levels.ravel(), minlength=BINS) - inside, inside])


def dice_curve(counts: np.ndarray) -> np.ndarray:
    """Histograms (…×2×256) → Dice at each of THRESHOLDS (…×255)."""
    at_least = counts[..., ::-1].cumsum(axis=-1)[..., ::-1]  # pixels whose level is i or more
    outside, inside = at_least[..., 0, :], at_least[..., 1, :]
    return dice_from_counts(inside, inside + outside, inside[..., :1])[..., 1:]


def best_threshold(counts: np.ndarray) -> tuple[float, float]:
    """Histograms (N×2×256) → (threshold, mean Dice there), of the highest mean Dice.

    Searched from 1/16 to 15/16; of equal ones the nearest to 0.5 is taken.
    """
    mean = dice_curve(counts).mean(axis=0)
    best = best_threshold_index(mean)
    return float(THRESHOLDS[best]), float(mean[best])


def best_threshold_index(mean: np.ndarray) -> int:
    """Where in THRESHOLDS a mean curve (255) is highest, as best_threshold takes it."""
    mean = np.where(np.abs(THRESHOLDS - 0.5) <= 7 / 16, mean, -1)
    top = np.flatnonzero(mean == mean.max())
    return int(top[np.argmin(np.abs(THRESHOLDS[top] - 0.5))])


def cross_fitted_dice(counts: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """N Dice, each at the threshold that is best on the other folds: what a choice is worth.

    A threshold scored on the very images that chose it would flatter. nan for a single fold.
    """
    curve, scores = dice_curve(counts), np.full(len(counts), np.nan)
    for fold in np.unique(folds):
        rest = folds != fold
        if rest.any():
            scores[~rest] = curve[~rest, best_threshold_index(curve[rest].mean(axis=0))]
    return scores


# ---------------------------------------------------------------- several classes


def confusion_matrix(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by true class (rows) and predicted class: C×C int64. A true 255 does not count."""
    counts = true != 255
    pairs = true[counts].astype(np.int64) * classes + predicted[counts]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Confusion (…×C×C) → accuracy (recall), iou and dice (F1) of each class, …×C; nan where a
    class is neither there nor predicted."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    true, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        dice = 2 * hit / (true + predicted)
        return {"accuracy": hit / true, "iou": hit / (true + predicted - hit), "dice": dice}


def mean_over_classes(matrix: np.ndarray, what: str) -> np.ndarray:
    """Confusion …×C×C → the mean of a per_class() score over the classes that are there or
    predicted; 1 where no pixel counts."""
    each = per_class(matrix)[what]
    known = ~np.isnan(each)
    return np.where(known.any(-1), np.nansum(each, -1) / np.maximum(known.sum(-1), 1), 1.0)


def mean_class_dice(matrix: np.ndarray) -> np.ndarray:
    """The mean Dice (F1) of an image's classes: with one class beside background, its Dice."""
    return mean_over_classes(matrix, "dice")


def pixel_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Confusion …×C×C → the part of pixels that are right; 1 where no pixel counts."""
    total = matrix.sum(axis=(-2, -1))
    right = np.trace(matrix, axis1=-2, axis2=-1)
    return np.where(total > 0, right / np.maximum(total, 1), 1.0)


def dataset_scores(matrix: np.ndarray) -> dict[str, float]:
    """Confusion C×C → pixel accuracy, mean class accuracy, mean IoU, mean Dice (F1) over classes
    that are there or predicted, and frequency-weighted IoU. All nan where no pixel counts.

    Long, Shelhamer & Darrell 2015, Fully Convolutional Networks, section 5.
    """
    each, total = per_class(matrix), matrix.sum()
    if not total:
        return dict.fromkeys(["accuracy", "class_accuracy", "iou", "dice", "weighted_iou"], np.nan)
    share = matrix.sum(axis=-1) / total
    return {
        "accuracy": float(np.trace(matrix) / total),
        "class_accuracy": float(np.nanmean(each["accuracy"])),
        "iou": float(np.nanmean(each["iou"])),
        "dice": float(np.nanmean(each["dice"])),
        "weighted_iou": float(np.nansum(share * each["iou"])),
    }
