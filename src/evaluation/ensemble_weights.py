"""Weights of an ensemble's runs: a grid search on compressed out-of-fold probabilities."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from data.sample import Sample
from evaluation import oof
from evaluation.metrics import best_threshold_index, cross_fitted_dice, dice_curve
from evaluation.postprocess_choice import dice_after_each_step
from evaluation.statistics import paired_bootstrap_interval
from inference.pipeline import map_in_threads
from inference.predictor import Prediction

MAX_RUNS = 3  # the grid has 11 weightings of 2 runs, 67 of 3, and 287 of 4
GRID_STEPS = 10
# If all runs are below CERTAIN_BELOW or all above CERTAIN_ABOVE, no weighting can move the pixel
# across a threshold in between.
CERTAIN_BELOW, CERTAIN_ABOVE = 1 / 16, 15 / 16


class RunProbabilities:
    """Probabilities of R runs on N images, compressed so that any weighting can be scored.

    Stores 16-bit probabilities of the pixels where a weighting can matter, and the number of all
    others. Dice is exact for all weights and all thresholds in [CERTAIN_BELOW, CERTAIN_ABOVE].
    """

    def __init__(self):
        self.uncertain: list[tuple[np.ndarray, np.ndarray]] = []  # U×R uint16, U bool of the mask
        self.certain_counts: list[np.ndarray] = []  # 2×2 pixels: outside, inside mask × low, high

    def add_image(self, probabilities: Tensor, mask: np.ndarray) -> None:
        """Add the R×H×W float32 probabilities of an image and its H×W bool mask."""
        inside = torch.from_numpy(mask).to(probabilities.device)
        high = (probabilities >= CERTAIN_ABOVE).all(0)
        certain = high | (probabilities < CERTAIN_BELOW).all(0)
        values = (probabilities[:, ~certain] * 65536).clamp_(max=65535).cpu().numpy()
        self.uncertain.append((values.T.astype(np.uint16), inside[~certain].cpu().numpy()))
        counts = torch.bincount((2 * inside + high)[certain], minlength=4)
        self.certain_counts.append(counts.reshape(2, 2).cpu().numpy())

    def histograms(self, weights: tuple[float, ...]) -> np.ndarray:
        """Return N×2×256 int64 histograms of the weighted mean (see
        pixel_counts.probability_histograms). Certain pixels are in the first and last bin."""
        scale = np.array(weights, np.float32) / 256
        histograms = np.empty((len(self.uncertain), 2, 256), np.int64)
        for i, (values, inside) in enumerate(self.uncertain):
            levels = (values @ scale + 0.5 / 256).astype(np.int64)  # center of the 16-bit bin
            counts = np.bincount(levels + 256 * inside, minlength=512)
            histograms[i] = counts.reshape(2, 256)
            histograms[i][:, [0, 255]] += self.certain_counts[i]
        return histograms


def weight_grid(n_runs: int) -> list[tuple[float, ...]]:
    """Return equal weights, then all others in steps of 0.1 whose sum is 1."""
    grid = [
        tuple(step / GRID_STEPS for step in steps)
        for steps in product(range(GRID_STEPS + 1), repeat=n_runs)
        if sum(steps) == GRID_STEPS
    ]
    return list(dict.fromkeys([(1 / n_runs,) * n_runs, *grid]))


class WeightSearch:
    """Grid search for the weights with the highest mean Dice at its best threshold."""

    def __init__(self, probabilities: RunProbabilities, folds: np.ndarray, n_runs: int):
        self.probabilities, self.folds, self.fold_ids = probabilities, folds, np.unique(folds)
        self.grid = weight_grid(n_runs)
        curves = (dice_curve(probabilities.histograms(weights)) for weights in self.grid)
        # W×F×255 for W weightings, F folds and the thresholds: the sums of the images' Dice.
        self.dice_sums = np.array(
            [[curve[folds == fold].sum(axis=0) for fold in self.fold_ids] for curve in curves]
        )

    def best_weights(self, fold_mask: np.ndarray) -> tuple[tuple[float, ...], int]:
        """Return the best weights and threshold index on the folds selected by F bools.

        Of weights with the same Dice it takes the first, so equal ones if they are among the best.
        """
        totals = self.dice_sums[:, fold_mask].sum(axis=1)
        indices = [best_threshold_index(total) for total in totals]
        best = int(np.argmax(totals[np.arange(len(totals)), indices]))
        return self.grid[best], indices[best]

    def cross_fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return N×2×256 histograms and N Dice scores, where each fold has the weights and the
        threshold that are best on the other folds."""
        histograms = np.empty((len(self.folds), 2, 256), np.int64)
        dice = np.empty(len(self.folds))
        for fold in self.fold_ids:
            weights, threshold_index = self.best_weights(self.fold_ids != fold)
            held_out = self.folds == fold
            histograms[held_out] = self.probabilities.histograms(weights)[held_out]
            dice[held_out] = dice_curve(histograms[held_out])[:, threshold_index]
        return histograms, dice


# ---------------------------------------------------------------- choice


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
    predictions: Iterable[Prediction], samples: list[Sample], runs: list[str]
) -> WeightChoice:
    """Return cross-fitted weights if they beat equal weights out of fold, else equal weights.

    `predictions` hold the probabilities of each run, R×1×H×W, in the order of `samples`, which are
    in two or more folds.
    """

    def measure_steps(prediction: Prediction) -> tuple[Prediction, np.ndarray]:
        predicted = (prediction.probability.mean(0)[0] >= 0.5).numpy()
        return prediction, dice_after_each_step(predicted, prediction.loaded.mask)

    probabilities, step_dice = RunProbabilities(), []
    for prediction, dice in map_in_threads(measure_steps, predictions):
        probabilities.add_image(prediction.probability[:, 0], prediction.loaded.mask)
        step_dice.append(dice)
    folds = np.array([sample.fold for sample in samples])
    search = WeightSearch(probabilities, folds, len(runs))
    weights = search.grid[0]  # equal
    histograms = probabilities.histograms(weights)
    fitted_histograms, fitted_dice = search.cross_fitted()
    differences = fitted_dice - cross_fitted_dice(histograms, folds)
    gain = float(differences.mean())
    if gain > 0:
        weights, _ = search.best_weights(np.full(len(search.fold_ids), True))
        histograms = fitted_histograms
    images = zip(histograms, step_dice, strict=True)
    scores = oof.to_scores(samples, [{"histograms": h, "step_dice": dice} for h, dice in images])
    interval = paired_bootstrap_interval(differences, scores.groups)
    return WeightChoice(dict(zip(runs, weights, strict=True)), scores, gain, interval)
