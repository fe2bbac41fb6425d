"""ensemble_weights.py: exact scores for any weights, and no reward for weights that were lucky."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.classes import ClassMap
from data.loaders import LoadedSample
from data.sample import Sample
from evaluation import oof
from evaluation.ensemble_weights import (
    CERTAIN_ABOVE,
    CERTAIN_BELOW,
    RunProbabilities,
    WeightSearch,
    choose_weights,
    weight_grid,
)
from evaluation.metrics import (
    THRESHOLDS,
    cross_fitted_dice,
    dice_curve,
    mask_dice,
)
from evaluation.pixel_counts import count_pixels, probability_histograms
from inference.combine import quantize_probability
from inference.predictor import Prediction

IN_BETWEEN = (THRESHOLDS >= CERTAIN_BELOW) & (THRESHOLDS <= CERTAIN_ABOVE)
EQUAL = (0.5, 0.5)


def compress(images):
    """RunProbabilities of pairs of R×H×W float32 probabilities and their H×W bool mask."""
    compressed = RunProbabilities()
    for probabilities, mask in images:
        compressed.add_image(torch.from_numpy(probabilities), mask)
    return compressed


# ---------------------------------------------------------------- histograms


@given(st.integers(0, 2**32 - 1), st.sampled_from(weight_grid(3)))
def test_histograms_give_dice_of_weighted_mean_at_every_threshold_in_between(seed, weights):
    rng = np.random.default_rng(seed)
    # Like a network's: most probabilities near 0 or 1. They are (n + 1/7)/256, so that their mean
    # by any weights of the grid is at least 1e-4 from every threshold.
    probabilities = (np.floor(rng.beta(0.2, 0.2, (3, 7, 9)) * 255) + 1 / 7) / 256
    mask = rng.random((7, 9)) < 0.5
    mean = np.tensordot(weights, probabilities, 1)
    assert np.abs(mean[..., None] - THRESHOLDS).min() > 1e-4
    compressed = compress([(probabilities.astype(np.float32), mask)])
    curve = dice_curve(compressed.histograms(weights))[0]
    expected = [mask_dice(mean >= threshold, mask) for threshold in THRESHOLDS[IN_BETWEEN]]
    assert np.allclose(curve[IN_BETWEEN], expected, rtol=0, atol=1e-12)


def test_histograms_of_one_run_are_those_of_its_levels():
    rng = np.random.default_rng(0)
    probabilities = rng.random((2, 20, 30)).astype(np.float32)
    mask = rng.random((20, 30)) < 0.3
    curve = dice_curve(compress([(probabilities, mask)]).histograms((0.0, 1.0))[0])
    levels = quantize_probability(torch.from_numpy(probabilities[1:]))
    alone = dice_curve(probability_histograms(levels, torch.from_numpy(mask)).numpy())
    assert np.allclose(curve[IN_BETWEEN], alone[IN_BETWEEN], atol=1e-12)


def test_histograms_count_every_pixel():
    rng = np.random.default_rng(0)
    images = [
        (rng.beta(0.1, 0.1, (2, 8, 9)).astype(np.float32), rng.random((8, 9)) < 0.5)
        for _ in range(3)
    ]
    compressed = compress(images)
    assert 0 < sum(len(inside) for _, inside in compressed.uncertain) < 3 * 72  # it does compress
    histograms = compressed.histograms(EQUAL)
    assert histograms.sum(axis=(1, 2)).tolist() == [72] * 3
    assert histograms[:, 1].sum(axis=1).tolist() == [mask.sum() for _, mask in images]


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(("n_runs", "count"), [(2, 11), (3, 67)])
def test_weight_grid_starts_with_equal_weights(n_runs, count):
    grid = weight_grid(n_runs)
    assert grid[0] == (1 / n_runs,) * n_runs
    assert len(grid) == len(set(grid)) == count
    assert [sum(weights) for weights in grid] == pytest.approx([1] * count)


def noisy_images(rng, n_images, n_runs=2):
    """Images of which each run has a probability with noise of its own, which grows by run."""
    images = []
    for _ in range(n_images):
        mask = rng.random((12, 12)) < 0.5
        noise = [rng.normal(0, 0.2 + 0.1 * run, mask.shape) for run in range(n_runs)]
        probabilities = (np.where(mask, 0.6, 0.4) + noise).clip(0, 1).astype(np.float32)
        images.append((probabilities, mask))
    return images


@pytest.mark.parametrize("fold_mask", [(True, True), (False, True)])
def test_best_weights_are_those_of_an_exhaustive_search(fold_mask):
    images, folds = noisy_images(np.random.default_rng(0), 6), np.repeat([0, 1], 3)
    search = WeightSearch(compress(images), folds, n_runs=2)
    selected = [image for image, fold in zip(images, folds, strict=True) if fold_mask[fold]]
    mean_dice = {
        (weights, index): np.mean(
            [mask_dice(np.tensordot(weights, p, 1) >= threshold, mask) for p, mask in selected]
        )
        for weights in weight_grid(2)
        for index, threshold in enumerate(THRESHOLDS)
        if IN_BETWEEN[index]
    }
    best = search.best_weights(np.array(fold_mask))
    assert best[0] not in (EQUAL, (0.0, 1.0), (1.0, 0.0))
    assert mean_dice[best] == pytest.approx(max(mean_dice.values()), abs=1e-3)


def test_best_weights_of_identical_runs_are_equal():
    images = [
        (np.stack([p[0], p[0]]), mask) for p, mask in noisy_images(np.random.default_rng(0), 4)
    ]
    search = WeightSearch(compress(images), np.array([0, 0, 1, 1]), n_runs=2)
    assert search.best_weights(np.array([True, True]))[0] == EQUAL


# ---------------------------------------------------------------- cross-fitting


def alternating_runs():
    """Two runs: on the 14 images of fold 0 the first is mostly right and the second mostly wrong,
    on the 4 images of fold 1 it is the other way round."""
    rng, images = np.random.default_rng(0), []
    for i in range(18):
        mask = rng.random((20, 20)) < 0.5
        right, wrong = (rng.normal(0.5 + shift * (2 * mask - 1), 0.2) for shift in (0.3, -0.3))
        probabilities = np.stack([right, wrong] if i < 14 else [wrong, right])
        images.append((probabilities.clip(0, 1).astype(np.float32), mask))
    return compress(images), np.repeat([0, 1], [14, 4])


def test_cross_fitted_does_not_reward_weights_that_were_lucky_on_one_fold():
    compressed, folds = alternating_runs()
    search = WeightSearch(compressed, folds, n_runs=2)
    weights, index = search.best_weights(np.array([True, True]))
    in_sample = dice_curve(compressed.histograms(weights))[:, index].mean()
    equal = cross_fitted_dice(compressed.histograms(EQUAL), folds).mean()
    assert in_sample > equal + 0.05  # scored where they were chosen, the weights seem to gain
    _, dice = search.cross_fitted()
    assert dice.mean() < equal  # scored on the other fold, they lose


def test_cross_fitted_rewards_weights_that_help_on_every_fold():
    rng, images = np.random.default_rng(1), []
    for _ in range(12):
        mask = rng.random((20, 20)) < 0.5
        good = np.where(mask, 0.6, 0.4) + rng.normal(0, 0.05, mask.shape)
        images.append((np.stack([good, rng.random(mask.shape)]).astype(np.float32), mask))
    compressed, folds = compress(images), np.repeat([0, 1, 2], 4)
    search = WeightSearch(compressed, folds, n_runs=2)
    histograms, dice = search.cross_fitted()
    assert dice.mean() > cross_fitted_dice(compressed.histograms(EQUAL), folds).mean() + 0.05
    assert search.best_weights(np.full(3, True))[0][1] <= 0.2
    assert histograms.sum() == 12 * 400


def test_cross_fitted_scores_each_fold_with_weights_of_the_others():
    compressed, folds = alternating_runs()
    search = WeightSearch(compressed, folds, n_runs=2)
    histograms, dice = search.cross_fitted()
    for fold, other in ((0, 1), (1, 0)):
        weights, index = search.best_weights(search.fold_ids == other)
        expected = compressed.histograms(weights)[folds == fold]
        assert np.array_equal(histograms[folds == fold], expected)
        assert np.array_equal(dice[folds == fold], dice_curve(expected)[:, index])


# ---------------------------------------------------------------- choice of weights


def predictions_of(probabilities_and_masks):
    """Predictions of each run, R×1×H×W, and their samples: three images of a car, a car a fold."""
    predictions = []
    for i, (probabilities, mask) in enumerate(probabilities_and_masks):
        image, car, fold = Path(f"{i // 3}_{i % 3}.jpg"), f"{i // 3}", i // 3
        sample = Sample(image, car, None, fold, "carvana", ClassMap(("car",), ((0, 0, 0),)))
        loaded = LoadedSample(sample, mask.shape, mask)
        probability = torch.from_numpy(probabilities)[:, None].float()
        predictions.append(Prediction(loaded, {"probability": probability}))
    return predictions, [prediction.sample for prediction in predictions]


def noisy_probabilities(noise_of_image):
    """Probabilities of two runs whose noise may differ by image, and the masks."""
    rng = np.random.default_rng(0)
    for i in range(12):
        mask = rng.random((20, 20)) < 0.5
        runs = [np.where(mask, 0.6, 0.4) + rng.normal(0, s, (20, 20)) for s in noise_of_image(i)]
        yield np.stack(runs).clip(0, 1), mask


def test_choose_weights_takes_weights_that_gain_on_every_fold():
    predictions, samples = predictions_of(noisy_probabilities(lambda i: (0.05, 0.5)))
    choice = choose_weights(predictions, samples, ["good", "bad"])
    means = [
        Prediction(p.loaded, count_pixels(p.probability.mean(0), torch.from_numpy(p.loaded.mask)))
        for p in predictions
    ]
    equal = oof.to_scores(samples, list(map(oof.image_statistics, means)))
    assert choice.weights["good"] >= 0.8 and sum(choice.weights.values()) == pytest.approx(1)
    assert choice.gain > 0.01 and choice.interval[0] > 0
    best_dice = "dice_best_threshold"
    gain = choice.scores.table[best_dice].mean() - equal.table[best_dice].mean()
    assert gain == pytest.approx(choice.gain, abs=0.01)
    assert choice.describe().startswith(f"weights: good {choice.weights['good']:.2f}, bad ")


def test_choose_weights_keeps_equal_weights_if_the_better_run_differs_by_fold():
    noise = {0: (0.05, 0.5), 1: (0.5, 0.05), 2: (0.05, 0.5), 3: (0.5, 0.05)}
    predictions, samples = predictions_of(noisy_probabilities(lambda i: noise[i // 3]))
    choice = choose_weights(predictions, samples, ["x", "y"])
    assert choice.weights == {"x": 0.5, "y": 0.5}
    assert choice.gain <= 0 and choice.interval[0] <= choice.gain <= choice.interval[1]
