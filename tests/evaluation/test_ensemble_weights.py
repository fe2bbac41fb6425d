"""ensemble_weights.py: exact scores for any weights, and no reward for weights that were lucky."""

from pathlib import Path
from types import SimpleNamespace

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
    best_weighting,
    choose_weights,
    cross_fit,
    keep_weightings,
    weight_grid,
)
from evaluation.metrics import THRESHOLDS, cross_fitted_dice, dice_curve, mask_dice
from evaluation.pixel_counts import count_pixels, probability_histograms
from inference.combine import quantize_probability
from inference.predictor import Prediction

EQUAL = (0.5, 0.5)


def weightings_of(probabilities, mask):
    """What keep_weightings() keeps of R×H×W probabilities and their H×W bool mask."""
    each = torch.from_numpy(probabilities).float()[:, None]
    return keep_weightings(SimpleNamespace(each=lambda: each, mask=torch.from_numpy(mask)))


def histograms_of(images):
    """N×W×2×256 histograms of pairs of R×H×W probabilities and their mask."""
    return np.stack([weightings_of(*image)["histograms"].numpy() for image in images])


# ---------------------------------------------------------------- histograms


@given(st.integers(0, 2**32 - 1), st.sampled_from(weight_grid(3)))
def test_histograms_give_dice_of_weighted_mean_at_every_threshold(seed, weights):
    rng = np.random.default_rng(seed)
    # Like a network's: most probabilities near 0 or 1. They are (n + 1/7)/256, so that their mean
    # by any weights of the grid is at least 1e-4 from every threshold.
    probabilities = (np.floor(rng.beta(0.2, 0.2, (3, 7, 9)) * 255) + 1 / 7) / 256
    mask = rng.random((7, 9)) < 0.5
    mean = np.tensordot(weights, probabilities, 1)
    assert np.abs(mean[..., None] - THRESHOLDS).min() > 1e-4
    curve = dice_curve(histograms_of([(probabilities, mask)])[0, weight_grid(3).index(weights)])
    expected = [mask_dice(mean >= threshold, mask) for threshold in THRESHOLDS]
    assert np.allclose(curve, expected, rtol=0, atol=1e-12)


def test_histograms_of_one_run_are_those_of_its_levels():
    rng = np.random.default_rng(0)
    probabilities = rng.random((2, 20, 30)).astype(np.float32)
    mask = rng.random((20, 30)) < 0.3
    kept = weightings_of(probabilities, mask)
    levels = quantize_probability(torch.from_numpy(probabilities[1:]))
    alone = probability_histograms(levels, torch.from_numpy(mask))
    assert torch.equal(kept["histograms"][weight_grid(2).index((0.0, 1.0))].long(), alone)
    assert np.array_equal(kept["half_mask"].numpy(), probabilities.mean(0) >= 0.5)


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
    selected = [image for image, fold in zip(images, folds, strict=True) if fold_mask[fold]]
    mean_dice = {
        (weights, index): np.mean(
            [mask_dice(np.tensordot(weights, p, 1) >= threshold, mask) for p, mask in selected]
        )
        for weights in weight_grid(2)
        for index, threshold in enumerate(THRESHOLDS)
    }
    weighting, index = best_weighting(dice_curve(histograms_of(selected)))
    best = weight_grid(2)[weighting], index
    assert best[0] not in (EQUAL, (0.0, 1.0), (1.0, 0.0))
    assert mean_dice[best] == pytest.approx(max(mean_dice.values()), abs=1e-3)


def test_best_weights_of_identical_runs_are_equal():
    images = [
        (np.stack([p[0] > 0.5] * 2), mask) for p, mask in noisy_images(np.random.default_rng(0), 4)
    ]
    assert best_weighting(dice_curve(histograms_of(images)))[0] == 0


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
    return histograms_of(images), np.repeat([0, 1], [14, 4])


def test_cross_fit_does_not_reward_weights_that_were_lucky_on_one_fold():
    histograms, folds = alternating_runs()
    curves = dice_curve(histograms)
    weighting, index = best_weighting(curves)
    equal = cross_fitted_dice(histograms[:, 0], folds).mean()
    # Scored where they were chosen, the weights seem to gain; on the other fold, they lose.
    assert curves[:, weighting, index].mean() > equal + 0.05
    assert cross_fit(curves, folds)[1].mean() < equal


def test_cross_fit_rewards_weights_that_help_on_every_fold():
    rng, images = np.random.default_rng(1), []
    for _ in range(12):
        mask = rng.random((20, 20)) < 0.5
        good = np.where(mask, 0.6, 0.4) + rng.normal(0, 0.05, mask.shape)
        images.append((np.stack([good, rng.random(mask.shape)]).astype(np.float32), mask))
    histograms, folds = histograms_of(images), np.repeat([0, 1, 2], 4)
    curves = dice_curve(histograms)
    _, dice = cross_fit(curves, folds)
    assert dice.mean() > cross_fitted_dice(histograms[:, 0], folds).mean() + 0.05
    assert weight_grid(2)[best_weighting(curves)[0]][1] <= 0.2


def test_cross_fit_scores_each_fold_with_weights_of_the_others():
    histograms, folds = alternating_runs()
    curves = dice_curve(histograms)
    chosen, dice = cross_fit(curves, folds)
    for fold, other in ((0, 1), (1, 0)):
        weighting, index = best_weighting(curves[folds == other])
        assert (chosen[folds == fold] == weighting).all()
        assert np.array_equal(dice[folds == fold], curves[folds == fold, weighting, index])


# ---------------------------------------------------------------- choice of weights


def statistics_of(probabilities_and_masks):
    """Statistics of each weighting and of equal weights, and the samples: three images of a car, a
    car a fold."""
    weightings, equal, samples = [], [], []
    for i, (probabilities, mask) in enumerate(probabilities_and_masks):
        image, car, fold = Path(f"{i // 3}_{i % 3}.jpg"), f"{i // 3}", i // 3
        sample = Sample(image, car, None, fold, "carvana", ClassMap(("car",), ((0, 0, 0),)))
        loaded = LoadedSample(sample, mask.shape, mask)
        mean = torch.from_numpy(probabilities.mean(0, keepdims=True)).float()
        for statistics, values in (
            (weightings, weightings_of(probabilities, mask)),
            (equal, count_pixels(mean, torch.from_numpy(mask))),
        ):
            statistics.append(oof.image_statistics(Prediction(loaded, values)))
        samples.append(sample)
    return weightings, equal, samples


def noisy_probabilities(noise_of_image):
    """Probabilities of two runs whose noise may differ by image, and the masks."""
    rng = np.random.default_rng(0)
    for i in range(12):
        mask = rng.random((20, 20)) < 0.5
        runs = [np.where(mask, 0.6, 0.4) + rng.normal(0, s, (20, 20)) for s in noise_of_image(i)]
        yield np.stack(runs).clip(0, 1), mask


def test_choose_weights_takes_weights_that_gain_on_every_fold():
    weightings, equal, samples = statistics_of(noisy_probabilities(lambda i: (0.05, 0.5)))
    choice = choose_weights(weightings, samples, ["good", "bad"])
    equal = oof.to_scores(samples, equal)
    assert choice.weights["good"] >= 0.8 and sum(choice.weights.values()) == pytest.approx(1)
    assert choice.gain > 0.01 and choice.interval[0] > 0
    best_dice = "dice_best_threshold"
    gain = choice.scores.table[best_dice].mean() - equal.table[best_dice].mean()
    assert gain == pytest.approx(choice.gain, abs=0.01)
    assert choice.describe().startswith(f"weights: good {choice.weights['good']:.2f}, bad ")


def test_choose_weights_keeps_equal_weights_if_the_better_run_differs_by_fold():
    noise = {0: (0.05, 0.5), 1: (0.5, 0.05), 2: (0.05, 0.5), 3: (0.5, 0.05)}
    weightings, _, samples = statistics_of(noisy_probabilities(lambda i: noise[i // 3]))
    choice = choose_weights(weightings, samples, ["x", "y"])
    assert choice.weights == {"x": 0.5, "y": 0.5}
    assert choice.gain <= 0 and choice.interval[0] <= choice.gain <= choice.interval[1]
