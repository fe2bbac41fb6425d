"""Text about scores that the scripts print: means, and warnings about probably wrong masks."""

import numpy as np

from evaluation import metrics
from evaluation.oof import Scores
from evaluation.statistics import clustered_standard_error, format_mean


def format_mean_dice(scores: Scores) -> str:
    """Format the mean Dice ± its standard error, which is clustered by group."""
    return format_mean(scores.dice.mean(), clustered_standard_error(scores.dice, scores.groups))


def score_summary(scores: Scores) -> str:
    """Format what is printed after the mean Dice."""
    if scores.is_binary:
        threshold, dice = metrics.best_threshold(scores.histograms)
        return f"best threshold {threshold:.3f} gives {dice:.5f} on the same images"
    pooled = metrics.dataset_scores(scores.confusion)
    return f"of all pixels: mean IoU {pooled['iou']:.4f}, accuracy {pooled['accuracy']:.4f}"


def warn_of_constant_masks(scores: Scores) -> None:
    """Print a warning if every image has the same predicted area of each class: the network
    probably predicts one mask for all images."""
    if scores.is_binary:
        areas = scores.table[["predicted_area"]].to_numpy()
    else:
        confusion = scores.per_image["confusion"]
        areas = confusion.sum(axis=1) / np.maximum(confusion.sum(axis=(1, 2)), 1)[:, None]
    if len(areas) > 1 and (areas == areas[0]).all():
        same = ", ".join(f"{area:.1%}" for area in areas[0])
        at_half = "at threshold 0.5, " if scores.is_binary else ""
        print(
            f"warning: {at_half}the masks of all {len(areas)} images cover the same area ({same}); "
            "check the training masks, train longer, or change lr"
        )


def report_test_scores(scores: Scores) -> None:
    """Print the scores of a test split, and warnings of its predicted and true masks."""
    others = score_summary(scores)
    if scores.is_binary:
        iou = (scores.dice / (2 - scores.dice)).mean()  # image by image
        others = f"IoU {iou:.5f}; both at threshold 0.5 without post-processing"
    print(f"test dice {format_mean_dice(scores)} on {len(scores.dice)} images; {others}")
    warn_of_constant_masks(scores)
    if scores.is_binary and not 0 < (area := scores.table["area"].mean()) <= 0.5:
        print(
            f"warning: the true masks cover {area:.0%} of the test images on average; the "
            "object must be white, the background black; if it is not, invert the masks"
        )
