"""Weights of an ensemble's runs: a grid search on out-of-fold histograms of every weighting."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from data.sample import Sample
from evaluation import oof
from evaluation.metrics import BINS, best_threshold_index, cross_fitted_dice, dice_curve
from evaluation.pixel_counts import probability_histograms
from evaluation.statistics import prediction_interval
from inference.combine import ImageProbabilities, quantize_probability

MAX_RUNS = 3  # the grid has 11 weightings of 2 runs, 67 of 3, and 287 of 4
GRID_STEPS = 10


def weight_grid(n_runs: int) -> list[tuple[float, ...]]:
    """Return equal weights, then all others in steps of 0.1 whose sum is 1."""
    grid = [
        tuple(step / GRID_STEPS for step in steps)
        for steps in product(range(GRID_STEPS + 1), repeat=n_runs)
        if sum(steps) == GRID_STEPS
    ]
    return list(dict.fromkeys([(1 / n_runs,) * n_runs, *grid]))


def keep_weightings(image: ImageProbabilities) -> dict[str, Tensor]:
    """Keep, for each of the W weightings of weight_grid(), the histograms of the weighted mean of
    the R runs, W×2×256 int32 (see probability_histograms), and the H×W bool mask of the equally
    weighted mean at 0.5."""
    runs, mask = image.each()[:, 0], image.mask
    grid, half_mask, certain = weight_grid(len(runs)), runs.mean(0) >= 0.5, 0
    if not runs.is_cuda:  # a GPU is fast, and would have to be waited for
        # Pixels in the first bin of all runs, or in the last one, are there with all weights.
        low, high = (runs < 1 / BINS).all(0), (runs >= 1 - 1 / BINS).all(0)
        certain = probability_histograms(high[low | high] * (BINS - 1), mask[low | high])
        runs, mask = runs[:, ~(low | high)], mask[~(low | high)]

    def count(weights: tuple[float, ...]) -> Tensor:
        mean = sum(weight * run for weight, run in zip(weights, runs, strict=True))
        return probability_histograms(quantize_probability(mean[None]), mask) + certain

    histograms = torch.stack([count(weights) for weights in grid]).int()
    return {"histograms": histograms, "half_mask": half_mask}


# ---------------------------------------------------------------- choice


def best_weighting(curves: np.ndarray) -> tuple[int, int]:
    """Return the weighting and the threshold, as indices, with the highest mean of N×W×255 Dice
    scores; of equally good weightings the first, so equal weights if they are among the best."""
    means = curves.mean(axis=0)
    thresholds = [best_threshold_index(mean) for mean in means]
    best = int(np.argmax(means[np.arange(len(means)), thresholds]))
    return best, thresholds[best]


def cross_fit(curves: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighting (an index) and the Dice of N images, where each fold has the weighting
    and the threshold that are best on the other folds."""
    chosen, dice = np.empty(len(folds), int), np.empty(len(folds))
    for fold in np.unique(folds):
        held_out = folds == fold
        weighting, threshold = best_weighting(curves[~held_out])
        chosen[held_out], dice[held_out] = weighting, curves[held_out, weighting, threshold]
    return chosen, dice


@dataclass
class WeightChoice:
    """The weights of an ensemble's runs, and its out-of-fold scores with them."""

    weights: dict[str, float]
    scores: oof.Scores
    gain: float = 0.0  # mean Dice of fitted minus equal weights, cross-fitted; used if above 0
    interval: tuple[float, float] | None = None  # 95%, of the gain; None if nothing was chosen

    def describe(self) -> str:
        weights = ", ".join(f"{run} {weight:.2f}" for run, weight in self.weights.items())
        if self.interval is None:
            limits = f"for 2 or {MAX_RUNS} runs with one class and two or more folds"
            return f"equal weights: {weights} (others are tried only {limits})"
        low, high = self.interval
        gain = f"gain of fitted weights, cross-fitted: {self.gain:+.6f} [{low:+.6f}, {high:+.6f}]"
        return f"{'' if self.gain > 0 else 'equal '}weights: {weights}; {gain}"


def choose_weights(
    statistics: list[dict[str, np.ndarray]], samples: list[Sample], runs: list[str]
) -> WeightChoice:
    """Return cross-fitted weights if they beat equal weights out of fold, else equal weights.

    `statistics` are image_statistics() of predictions by keep_weightings(), in the order of
    `samples`, which are in two or more folds.
    """
    folds = np.array([sample.fold for sample in samples])
    histograms = np.stack([image["histograms"] for image in statistics])  # N×W×2×256
    curves = np.stack([dice_curve(image) for image in histograms])
    best, chosen = 0, np.zeros(len(samples), int)  # equal weights
    fitted, dice = cross_fit(curves, folds)
    differences = dice - cross_fitted_dice(histograms[:, 0], folds)
    gain = float(differences.mean())
    if gain > 0:
        chosen, (best, _) = fitted, best_weighting(curves)
    kept = zip(histograms[np.arange(len(samples)), chosen], statistics, strict=True)
    scores = oof.to_scores(samples, [image | {"histograms": h} for h, image in kept])
    weights = dict(zip(runs, weight_grid(len(runs))[best], strict=True))
    return WeightChoice(weights, scores, gain, prediction_interval(differences, scores.groups))
