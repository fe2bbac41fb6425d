"""Pixel counts by predicted and true value, counted on the device of the prediction."""

import torch
from torch import Tensor

from data.classes import IGNORE
from evaluation.metrics import BINS
from inference.combine import quantize_probability


def count_pixels(probability: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Count the pixels of a C×H×W probability by prediction and truth.

    Binary: `histograms`, see probability_histograms(), and `mask_at_half`, the H×W bool mask.
    Several classes: `confusion`, see confusion_matrix().
    """
    if len(probability) > 1:
        return {"confusion": confusion_matrix(probability.argmax(0), true, len(probability))}
    histograms = probability_histograms(quantize_probability(probability), true)
    return {"histograms": histograms, "mask_at_half": probability[0] >= 0.5}


def probability_histograms(levels: Tensor, true: Tensor) -> Tensor:
    """Count pixels by level, outside and inside the true H×W bool mask: 2×256 int64.

    `levels`, H×W uint8, is floor(256·probability), at most 255. Then `levels >= i` if and only if
    `probability >= i/256`, so the histograms give the exact Dice at all 255 thresholds.
    """
    pairs = levels.to(torch.int16) + BINS * true.to(torch.int16)
    return count_values(pairs, 2 * BINS).view(2, BINS)


def confusion_matrix(predicted: Tensor, true: Tensor, n_classes: int) -> Tensor:
    """Count pixels by true class (rows; not IGNORE) and predicted class: C×C int64."""
    n_pairs = n_classes**2
    pairs = true.int() * n_classes + predicted.int()
    pairs = pairs.masked_fill_(true == IGNORE, n_pairs)
    return count_values(pairs, n_pairs + 1)[:-1].view(n_classes, n_classes)


def count_values(values: Tensor, n_values: int) -> Tensor:
    """Count each of 0, 1, …, n_values - 1 in a tensor of integers: n_values int64."""
    if values.is_cuda:  # bincount would wait for the GPU, to read the largest value
        # Bins of width 1; n_values itself, which the last bin includes, does not occur.
        return torch.histc(values.int(), n_values, 0, n_values).long()
    return torch.bincount(values.ravel(), minlength=n_values)
