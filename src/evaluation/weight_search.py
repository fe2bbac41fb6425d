"""Grid search for ensemble weights, on compressed out-of-fold probabilities."""

from itertools import product

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics import best_threshold_index, dice_curve

GRID_STEPS = 10
# If all runs are below CERTAIN_BELOW or all above CERTAIN_ABOVE, no weighting can move the pixel
# across a threshold in between.
CERTAIN_BELOW, CERTAIN_ABOVE = 1 / 16, 15 / 16

Weights = tuple[float, ...]  # one weight per run, their sum is 1


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
        low = (probabilities < CERTAIN_BELOW).all(0)
        high = (probabilities >= CERTAIN_ABOVE).all(0)
        uncertain = ~(low | high)
        values = (probabilities[:, uncertain] * 65536).clamp_(max=65535).cpu().numpy()
        self.uncertain.append((values.T.astype(np.uint16), inside[uncertain].cpu().numpy()))
        counts = [
            [(certain & side).sum().item() for certain in (low, high)] for side in (~inside, inside)
        ]
        self.certain_counts.append(np.array(counts))

    def histograms(self, weights: Weights) -> np.ndarray:
        """Return N×2×256 int64 histograms of the weighted mean (see
        metrics.probability_histograms). Certain pixels are in the first and last bin."""
        scale = np.array(weights, np.float32) / 256
        histograms = np.empty((len(self.uncertain), 2, 256), np.int64)
        for i, (values, inside) in enumerate(self.uncertain):
            levels = (values @ scale + 0.5 / 256).astype(np.int64)  # center of the 16-bit bin
            counts = np.bincount(levels + 256 * inside, minlength=512)
            histograms[i] = counts.reshape(2, 256)
            histograms[i][:, [0, 255]] += self.certain_counts[i]
        return histograms


def weight_grid(n_runs: int) -> list[Weights]:
    """Return equal weights, then all others in steps of 0.1 whose sum is 1."""
    equal = (1 / n_runs,) * n_runs
    grid = [
        tuple(step / GRID_STEPS for step in steps)
        for steps in product(range(GRID_STEPS + 1), repeat=n_runs)
        if sum(steps) == GRID_STEPS
    ]
    return list(dict.fromkeys([equal, *grid]))


class WeightSearch:
    """Grid search for the weights with the highest mean Dice at its best threshold."""

    def __init__(self, probabilities: RunProbabilities, folds: np.ndarray, n_runs: int):
        self.probabilities, self.folds, self.fold_ids = probabilities, folds, np.unique(folds)
        self.grid = weight_grid(n_runs)
        # Sums of the images' Dice: W×F×255 for W weightings, F folds and the thresholds.
        self.dice_sums = np.stack([self._sum_dice_per_fold(weights) for weights in self.grid])

    def _sum_dice_per_fold(self, weights: Weights) -> np.ndarray:
        curve = dice_curve(self.probabilities.histograms(weights))
        return np.stack([curve[self.folds == fold].sum(axis=0) for fold in self.fold_ids])

    def best_weights(self, fold_mask: np.ndarray) -> tuple[Weights, int]:
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
