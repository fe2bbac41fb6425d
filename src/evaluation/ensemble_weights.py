"""Out-of-fold scores of an ensemble and the weights of its runs, chosen by cross-fitting."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import provenance, run_folder
from core.device import pick_device
from core.errors import InputError
from core.files import atomic_write
from core.settings import Settings
from data.datasets import dataset_fingerprint, load_training_samples
from data.sample import Sample
from evaluation import ensemble, oof
from evaluation.metrics import cross_fitted_dice
from evaluation.oof import Scores
from evaluation.postprocess_choice import dice_after_each_step
from evaluation.statistics import paired_bootstrap_interval
from evaluation.weight_search import RunProbabilities, WeightSearch
from inference import predictor
from inference.predictor import Prediction, quantize_probability

MAX_RUNS = 3  # the grid has 11 weightings of 2 runs, 66 of 3, and 286 of 4


@dataclass
class WeightChoice:
    """The weights of an ensemble's runs, and its out-of-fold scores with them."""

    weights: dict[str, float]
    scores: Scores
    gain: float = 0.0  # mean Dice of chosen minus equal weights, cross-fitted
    interval: tuple[float, float] | None = None  # 95%, of the gain; None if nothing was chosen

    def describe(self) -> str:
        """Format the weights and their gain."""
        weights = ", ".join(f"{run} {weight:.2f}" for run, weight in self.weights.items())
        if self.interval is None:
            limits = f"for 2 or {MAX_RUNS} runs with one class and two or more folds"
            return f"equal weights: {weights} (others are tried only {limits})"
        low, high = self.interval
        gain = f"gain over equal weights, cross-fitted: {self.gain:+.6f} [{low:+.6f}, {high:+.6f}]"
        return f"weights: {weights}; {gain}"


def weights_and_scores(settings: Settings) -> tuple[dict[str, float], Scores]:
    """Return the weight of each run and the out-of-fold scores of all runs together.

    Scores the ensemble first if that has not been done, or if a run has changed since.
    """
    run_dir = settings.run_dir
    if len(settings.runs) == 1:
        folders = [run_folder.fold_dir(run_dir, k) for k in run_folder.finished_folds(run_dir)]
        return {settings.runs[0]: 1.0}, oof.load_scores(folders)
    if not run_folder.ensemble_path(run_dir).exists() or not ensemble.is_up_to_date(run_dir):
        print(f"{settings.run}: ensemble not scored yet; predicting the training images")
        score_ensemble(settings, load_training_samples(settings), pick_device(settings))
    return ensemble.read_ensemble(run_dir)["runs"], oof.load_scores([run_dir])


def score_ensemble(
    settings: Settings, samples: list[Sample], device: torch.device
) -> dict[str, Any]:
    """Score the runs together out of fold, choose their weights, and write both.

    Returns the content of ensemble.json.
    """
    if run_folder.config_path(settings.run_dir).exists():
        raise InputError(
            f"{settings.run_dir}: this name is reserved for the ensemble; rename the run"
        )
    choice = _weight_runs(settings, samples, device)
    data = {
        "runs": choice.weights,
        "gain_over_equal_weights": choice.gain,
        "interval": choice.interval,
        "folds": ensemble.common_folds(settings),
        "data": dataset_fingerprint(samples),
        "tta": settings.tta,
        "networks": ensemble.weight_file_hashes(Path(settings.output_dir), settings.runs),
        "commit": provenance.current_commit(),
    }
    oof.save_scores(settings.run_dir, choice.scores)
    with atomic_write(run_folder.ensemble_path(settings.run_dir)) as tmp_path:
        tmp_path.write_text(json.dumps(data, indent=2) + "\n")
    print(f"{settings.run}: {choice.describe()}")
    return data


def _weight_runs(settings: Settings, samples: list[Sample], device: torch.device) -> WeightChoice:
    """Predict fold by fold, each with the networks that held it out, and weight the runs.

    Weights are chosen for up to MAX_RUNS runs with one class and two or more common folds; other
    ensembles have equal weights.
    """
    folds, fingerprint = ensemble.common_folds(settings), dataset_fingerprint(samples)
    few_runs = len(settings.runs) <= MAX_RUNS
    if samples[0].class_map.is_binary and few_runs and len(folds) > 1:
        predict, choose = predictor.predict_each_member, choose_weights
    else:
        predict, choose = predictor.predict, equal_weights

    def predict_fold(fold: int, held_out: list[Sample]) -> Iterable[Prediction]:
        members = ensemble.load_oof_members(settings, fold, fingerprint, device)
        predictions = predict(members, held_out, settings, with_mask=True)
        return oof.with_progress_bar(predictions, held_out, f"fold {fold}")

    held_out = {k: [sample for sample in samples if sample.fold == k] for k in folds}
    predictions = chain.from_iterable(predict_fold(*item) for item in held_out.items())
    return choose(predictions, list(chain(*held_out.values())), settings.runs)


def choose_weights(
    predictions: Iterable[Prediction], samples: list[Sample], runs: list[str]
) -> WeightChoice:
    """Return cross-fitted weights if they beat equal weights out of fold, else equal weights.

    `predictions` hold the probabilities of each run, R×1×H×W, in the order of `samples`, which are
    in two or more folds.
    """
    probabilities, step_dice = RunProbabilities(), []
    for prediction in predictions:
        mask = prediction.loaded.mask
        probabilities.add_image(prediction.probability[:, 0], mask)
        mean_levels = quantize_probability(prediction.probability.mean(0))
        step_dice.append(dice_after_each_step(mean_levels, mask))
    folds = np.array([sample.fold for sample in samples])
    groups = np.array([sample.group for sample in samples])
    search = WeightSearch(probabilities, folds, len(runs))
    weights = search.grid[0]  # equal
    histograms = probabilities.histograms(weights)
    fitted_histograms, fitted_dice = search.cross_fitted()
    differences = fitted_dice - cross_fitted_dice(histograms, folds)
    gain, interval = float(differences.mean()), paired_bootstrap_interval(differences, groups)
    if gain > 0:
        histograms = fitted_histograms
        weights, _ = search.best_weights(np.full(len(search.fold_ids), True))
    statistics = [
        {"histograms": histogram, "step_dice": dice}
        for histogram, dice in zip(histograms, step_dice, strict=True)
    ]
    scores = oof.to_scores(samples, statistics)
    return WeightChoice(dict(zip(runs, weights, strict=True)), scores, gain, interval)


def equal_weights(
    predictions: Iterable[Prediction], samples: list[Sample], runs: list[str]
) -> WeightChoice:
    """Return equal weights. `predictions` hold the mean probability of the runs, C×H×W, in the
    order of `samples`."""
    scores = oof.to_scores(
        samples, [oof.image_statistics(prediction) for prediction in predictions]
    )
    return WeightChoice(dict.fromkeys(runs, 1 / len(runs)), scores)
