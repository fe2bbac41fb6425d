"""Per-image statistics, score columns and summaries of binary and of multiclass segmentation."""

from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from evaluation.metrics import (
    THRESHOLDS,
    best_threshold,
    best_threshold_index,
    confusion_matrix,
    cross_fitted_dice,
    dataset_scores,
    dice_curve,
    mask_dice,
    mean_class_dice,
    mean_over_classes,
    pixel_accuracy,
    probability_histograms,
)
from evaluation.postprocess_choice import choose_steps, dice_after_each_step, explain_steps
from inference.postprocess import STEPS
from inference.predictor import quantize_probability

HALF_INDEX = int(np.searchsorted(THRESHOLDS, 0.5))

# Arrays by name, from which any threshold or post-processing step can be scored later. Of one
# image as `image_statistics` returns them, or stacked along a first dimension of N images.
ImageStatistics = dict[str, np.ndarray]


class BinaryTask:
    """One foreground class.

    Statistics: `histograms`, 2×256 int64 (see metrics.probability_histograms), and `step_dice`,
    1+S float64 for S post-processing steps (see postprocess_choice.dice_after_each_step).
    """

    array_names = frozenset({"histograms", "step_dice"})

    @staticmethod
    def image_statistics(probability: Tensor, mask: np.ndarray) -> ImageStatistics:
        """Measure a probability, 1×H×W float32 in [0, 1], against the H×W bool mask."""
        levels = quantize_probability(probability)
        return {
            "histograms": probability_histograms(levels, mask),
            "step_dice": dice_after_each_step(levels, mask),
        }

    @staticmethod
    def validation_scores(probability: Tensor, mask: np.ndarray) -> dict[str, float]:
        """Return Dice and pixel accuracy at threshold 0.5."""
        predicted = quantize_probability(probability) >= 128
        return {
            "val_dice": mask_dice(predicted, mask),
            "val_accuracy": float((predicted == mask).mean()),
        }

    @staticmethod
    def score_columns(statistics: ImageStatistics) -> dict[str, np.ndarray]:
        """Return Dice at 0.5 and at the threshold with the best mean, and the true and predicted
        area as fractions of the image; N values each."""
        histograms = statistics["histograms"]
        curve, pixels = dice_curve(histograms), histograms.sum(axis=(1, 2))
        return {
            "dice": curve[:, HALF_INDEX],
            "dice_best_threshold": curve[:, best_threshold_index(curve.mean(axis=0))],
            "area": histograms[:, 1].sum(axis=1) / pixels,
            "predicted_area": histograms[:, :, 128:].sum(axis=(1, 2)) / pixels,
        }

    @staticmethod
    def summarize(statistics: ImageStatistics) -> str:
        """Format the best threshold and its mean Dice."""
        threshold, dice = best_threshold(statistics["histograms"])
        return f"best threshold {threshold:.3f} gives {dice:.5f}"

    @staticmethod
    def leaderboard_columns(statistics: ImageStatistics, folds: np.ndarray) -> dict[str, Any]:
        """Return what the threshold and post-processing add to the mean Dice at 0.5.

        The threshold's gain is cross-fitted: each fold is scored at the threshold that the other
        folds choose. The gain of several post-processing steps is the sum of their single gains.
        """
        histograms, step_dice = statistics["histograms"], statistics["step_dice"]
        gain = cross_fitted_dice(histograms, folds) - dice_curve(histograms)[:, HALF_INDEX]
        steps = choose_steps(step_dice, folds)
        columns = [1 + list(STEPS).index(step) for step in steps]
        step_gain = (step_dice[:, columns] - step_dice[:, :1]).mean(axis=0).sum()
        return {
            "threshold": best_threshold(histograms)[0],
            "threshold_gain": gain.mean(),
            "postprocess": ",".join(steps) or "none",
            "postprocess_gain": step_gain,
            "postprocess_why": "; ".join(explain_steps(step_dice, folds)),
        }

    @staticmethod
    def leaderboard_cells(row: pd.Series) -> dict[str, str]:
        """Format the leaderboard columns of this task."""
        return {
            "threshold": f"{row['threshold']:.3f} {format_gain(row['threshold_gain'])}",
            "postprocess": f"{row['postprocess']} {format_gain(row['postprocess_gain'])}",
        }


class MulticlassTask:
    """Several classes. Statistics: `confusion`, C×C int64 (see metrics.confusion_matrix)."""

    array_names = frozenset({"confusion"})

    @staticmethod
    def image_statistics(probability: Tensor, mask: np.ndarray) -> ImageStatistics:
        """Measure a probability, C×H×W float32, against the H×W uint8 class map."""
        predicted = probability.argmax(0).cpu().numpy()
        return {"confusion": confusion_matrix(predicted, mask, len(probability))}

    @staticmethod
    def validation_scores(probability: Tensor, mask: np.ndarray) -> dict[str, float]:
        """Return the mean Dice over the image's classes, and pixel accuracy."""
        confusion = MulticlassTask.image_statistics(probability, mask)["confusion"]
        return {
            "val_dice": float(mean_class_dice(confusion)),
            "val_accuracy": float(pixel_accuracy(confusion)),
        }

    @staticmethod
    def score_columns(statistics: ImageStatistics) -> dict[str, np.ndarray]:
        """Return Dice and IoU, both as means over an image's classes, and pixel accuracy; N
        values each."""
        confusion = statistics["confusion"]
        return {
            "dice": mean_class_dice(confusion),
            "iou": mean_over_classes(confusion, "iou"),
            "accuracy": pixel_accuracy(confusion),
        }

    @staticmethod
    def summarize(statistics: ImageStatistics) -> str:
        """Format mean IoU and accuracy of the pooled confusion matrix."""
        pooled = dataset_scores(statistics["confusion"].sum(axis=0))
        return f"of all pixels: mean IoU {pooled['iou']:.4f}, accuracy {pooled['accuracy']:.4f}"

    @staticmethod
    def leaderboard_columns(statistics: ImageStatistics, folds: np.ndarray) -> dict[str, Any]:
        """Return the scores of the pooled confusion matrix."""
        pooled = dataset_scores(statistics["confusion"].sum(axis=0))
        return {f"pixel_{name}": value for name, value in pooled.items()}

    @staticmethod
    def leaderboard_cells(row: pd.Series) -> dict[str, str]:
        """Format the leaderboard columns of this task."""
        return {
            "mean IoU": f"{row['pixel_iou']:.4f}",
            "accuracy": f"{row['pixel_accuracy']:.4f}",
        }


def get_task(is_binary: bool) -> type[BinaryTask] | type[MulticlassTask]:
    """Return the functions for one class or for several."""
    return BinaryTask if is_binary else MulticlassTask


def format_gain(gain: float) -> str:
    """Format a difference of Dice; NaN gives an empty text."""
    return "" if pd.isna(gain) else f"{round(gain, 5) + 0.0:+.5f}"  # + 0.0: no -0.00000
