"""Weights of runs that vote together, chosen out of fold where they are not scored."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import provenance
from core.errors import InputError
from core.files import atomic_write
from core.settings import Settings
from data.datasets import dataset_fingerprint
from data.sample import Sample
from evaluation import oof, postprocess_choice
from evaluation.ensemble import common_folds, load_oof_members, weight_file_hashes
from evaluation.metrics import best_threshold_index, cross_fitted_dice, dice_curve
from evaluation.statistics import paired_bootstrap_interval
from inference.predictor import predict, quantize_probability

# Where every run is as sure as this, no weights can bring a pixel over a threshold between.
CERTAIN_BELOW, CERTAIN_ABOVE = 1 / 16, 15 / 16
INITIAL_WEIGHT, MAX_WEIGHT = (
    4,
    12,
)  # a run's share of the votes, at the start of the search and at most

IntegerWeights = tuple[int, ...]


# ---------------------------------------------------------------- what the runs say


class RunProbabilities:
    """What R runs say of N images, kept so that any weights can be tried afterwards.

    Kept are only the pixels of which some run is unsure, as 16-bit probabilities; the others are
    counted. Dice is exact for all weights and for all thresholds from LOW to HIGH.
    """

    def __init__(self):
        self.unsure: list[tuple[np.ndarray, np.ndarray]] = []  # U×R uint16, U bool (the truth)
        self.sure: list[np.ndarray] = []  # 2×2 pixels: outside, inside the truth × low, high

    def add(self, probabilities: Tensor, truth: np.ndarray) -> None:
        """An image's R×H×W probabilities and its mask, H×W bool."""
        true = torch.from_numpy(truth).to(probabilities.device)
        low, high = (probabilities < CERTAIN_BELOW).all(0), (probabilities >= CERTAIN_ABOVE).all(0)
        unsure = ~(low | high)
        kept = (probabilities[:, unsure] * 65536).clamp_(max=65535).cpu().numpy()
        self.unsure.append((kept.T.astype(np.uint16), true[unsure].cpu().numpy()))
        pixels = [(part & side).sum().item() for side in (~true, true) for part in (low, high)]
        self.sure.append(np.reshape(pixels, (2, 2)))

    def histograms(self, shares: IntegerWeights) -> np.ndarray:
        """N×2×256 of the mean with these shares, as metrics.histograms; the sure pixels stand
        in the first and the last bin."""
        weights = np.array(shares, np.float32) / (256 * sum(shares))
        counts = np.empty((len(self.unsure), 2, 256), np.int64)
        for i, (values, true) in enumerate(self.unsure):
            level = (values @ weights + 0.5 / 256).astype(np.int64)  # the middle of its 1/65536
            counts[i] = np.bincount(level + 256 * true, minlength=512).reshape(2, 256)
            counts[i][:, [0, 255]] += self.sure[i]
        return counts


def collect_probabilities(
    settings: Settings, rows: list[Sample], device: torch.device
) -> tuple[RunProbabilities, np.ndarray]:
    """One pass over the rows, which come sorted by fold: the runs' votes, and N×2^steps Dice of
    post-processing their plain mean (see postprocess.trials)."""
    votes, trials, data = RunProbabilities(), [], dataset_fingerprint(rows)
    for fold in common_folds(settings):
        held_out = [row for row in rows if row.fold == fold]
        members = load_oof_members(settings, fold, data, device)
        predictions = predict(members, held_out, settings, with_truth=True, apart=True)
        for prediction in oof.with_progress_bar(predictions, held_out, f"fold {fold}"):
            truth = prediction.loaded.truth
            votes.add(prediction.probability[:, 0], truth)
            trials.append(
                postprocess_choice.dice_of_all_step_subsets(
                    quantize_probability(prediction.probability.mean(0)), truth
                )
            )
    return votes, np.stack(trials)


# ---------------------------------------------------------------- weights


def hill_climb(value: Callable[[IntegerWeights], float], runs: int) -> IntegerWeights:
    """The shares from which no single vote more or less raises `value`, starting with equal ones.

    In the manner of Caruana et al. 2004, Ensemble Selection from Libraries of Models, with
    removal beside addition.
    """
    best = (INITIAL_WEIGHT,) * runs
    while True:
        near = [
            (*best[:i], best[i] + step, *best[i + 1 :]) for i, step in product(range(runs), (1, -1))
        ]
        near = [
            shares
            for shares in near
            if min(shares) >= 0 < sum(shares) and max(shares) <= MAX_WEIGHT
        ]
        top = max(near, key=value)
        if value(top) <= value(best):
            return best
        best = top


class WeightSearch:
    """Shares of R runs that raise the mean Dice at its best threshold, for any set of folds."""

    def __init__(self, votes: RunProbabilities, folds: np.ndarray):
        self.votes, self.folds, self.names = votes, folds, np.unique(folds)
        self.runs = votes.unsure[0][0].shape[1]
        self.known: dict[IntegerWeights, np.ndarray] = {}

    def curves(self, shares: IntegerWeights) -> np.ndarray:
        """Sum of the images' Dice at each threshold, F×255 for F folds."""
        if shares not in self.known:
            curve = dice_curve(self.votes.histograms(shares))
            self.known[shares] = np.stack([curve[self.folds == k].sum(axis=0) for k in self.names])
        return self.known[shares]

    def best(self, use: np.ndarray) -> tuple[IntegerWeights, int]:
        """The best shares on the marked folds, and where in THRESHOLDS they are best."""

        def value(shares: IntegerWeights) -> float:
            total = self.curves(shares)[use].sum(axis=0)
            return total[best_threshold_index(total)]

        shares = hill_climb(value, self.runs)
        return shares, best_threshold_index(self.curves(shares)[use].sum(axis=0))

    def cross_fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """Histograms N×2×256 and N Dice of each fold with the shares and the threshold that the
        other folds choose."""
        counts, scores = self.votes.histograms((1,) * self.runs), np.empty(len(self.folds))
        for k in self.names:
            shares, at = self.best(self.names != k)
            here = self.folds == k
            counts[here] = self.votes.histograms(shares)[here]
            scores[here] = dice_curve(counts[here])[:, at]
        return counts, scores


def score_ensemble(settings: Settings, rows: list[Sample], device: torch.device) -> dict[str, Any]:
    """Score the runs together out of fold, choose their weights, write both; what was chosen.

    Weights are chosen for one class; runs of several classes have equal ones.
    """
    if (settings.run_dir / "config.yaml").exists():
        raise InputError(f"{settings.run_dir}: is a run's folder; rename it, it is the ensemble's")
    decide = choose_weights if rows[0].class_map.is_binary else equal_weights
    scores, shares, gain, interval = decide(settings, rows, device)
    about = {
        "runs": {run: n / sum(shares) for run, n in zip(settings.runs, shares, strict=True)},
        "gain_over_equal_weights": gain,
        "interval": interval,
        "folds": common_folds(settings),
        "data": dataset_fingerprint(rows),
        "tta": settings.tta,
        "networks": weight_file_hashes(Path(settings.output_dir), settings.runs),
        "commit": provenance.current_commit(),
    }
    oof.save_scores(settings.run_dir, scores)
    with atomic_write(settings.run_dir / "ensemble.json") as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")
    return about


WeightChoice = tuple[
    oof.Scores, IntegerWeights, float, tuple[float, float]
]  # …, gain and its 95% interval


def choose_weights(settings: Settings, rows: list[Sample], device: torch.device) -> WeightChoice:
    """The weights that the other folds choose, where they beat equal ones on the folds that did
    not choose them; else equal ones."""
    folds = common_folds(settings)
    held_out = [row for fold in folds for row in rows if row.fold == fold]
    votes, trials = collect_probabilities(settings, rows, device)
    where = np.array([row.fold for row in held_out])
    groups = np.array([row.group for row in held_out])
    shares = (1,) * len(settings.runs)
    counts = equal = votes.histograms(shares)
    gain, interval = 0.0, (0.0, 0.0)
    if len(folds) > 1:
        hunt = WeightSearch(votes, where)
        fitted, scores = hunt.cross_fitted()
        difference = scores - cross_fitted_dice(equal, where)
        gain, interval = float(difference.mean()), paired_bootstrap_interval(difference, groups)
        if gain > 0:
            counts, shares = fitted, hunt.best(np.full(len(folds), True))[0]
    arrays = {"counts": counts, "trials": trials}
    return oof.Scores(oof.score_table(held_out, arrays), arrays), shares, gain, interval


def equal_weights(settings: Settings, rows: list[Sample], device: torch.device) -> WeightChoice:
    """One pass over the rows, fold by fold, by the networks that never saw them."""
    data, parts, measured = dataset_fingerprint(rows), [], []
    for fold in common_folds(settings):
        held_out = [row for row in rows if row.fold == fold]
        predictions = predict(
            load_oof_members(settings, fold, data, device), held_out, settings, True
        )
        measured += [
            oof.image_statistics(p)
            for p in oof.with_progress_bar(predictions, held_out, f"fold {fold}")
        ]
        parts += held_out
    return oof.to_scores(parts, measured), (1,) * len(settings.runs), 0.0, (0.0, 0.0)
