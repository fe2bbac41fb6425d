"""Weights of runs: exact scores for any weights, and no reward for luck."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation import ensemble_weights, metrics
from evaluation.ensemble_weights import CERTAIN_ABOVE, CERTAIN_BELOW, RunProbabilities, WeightSearch
from inference.predictor import quantize_probability


def votes_of(images):
    """Votes of (R×H×W float32 probabilities, H×W truth) pairs."""
    votes = RunProbabilities()
    for probabilities, truth in images:
        votes.add(torch.from_numpy(probabilities), truth)
    return votes


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(0, 12)] * 3).filter(any))
def test_histograms_give_the_dice_of_the_mean_at_every_threshold_in_between(seed, shares):
    rng = np.random.default_rng(seed)
    # Like a network's: most pixels near 0 or 1; on multiples of 1/4096, where float32 is exact.
    probabilities = np.floor(rng.beta(0.2, 0.2, (3, 7, 9)) * 4096).astype(np.float32) / 4096
    truth = rng.random((7, 9)) < 0.5
    curve = metrics.dice_curve(votes_of([(probabilities, truth)]).histograms(shares))[0]
    mean = np.tensordot(np.array(shares, np.float64), probabilities, 1) / sum(shares)
    inside = (metrics.THRESHOLDS >= CERTAIN_BELOW) & (metrics.THRESHOLDS <= CERTAIN_ABOVE)
    for threshold, dice in zip(metrics.THRESHOLDS[inside], curve[inside], strict=True):
        clear = np.abs(mean - threshold) > 1e-4  # on the very threshold float32 may go either way
        if clear.all():
            assert dice == pytest.approx(metrics.mask_dice(mean >= threshold, truth), abs=1e-12)


def test_a_run_alone_has_the_histograms_of_its_levels():
    rng = np.random.default_rng(0)
    probabilities = rng.random((2, 20, 30)).astype(np.float32)
    truth = rng.random((20, 30)) < 0.3
    curve = metrics.dice_curve(votes_of([(probabilities, truth)]).histograms((0, 5))[0])
    alone = metrics.probability_histograms(
        quantize_probability(torch.from_numpy(probabilities[1:])), truth
    )
    inside = (metrics.THRESHOLDS >= CERTAIN_BELOW) & (metrics.THRESHOLDS <= CERTAIN_ABOVE)
    assert np.allclose(curve[inside], metrics.dice_curve(alone)[inside], atol=1e-12)


def test_climbing_finds_the_peak():
    peak = np.array([0.5, 0.3, 0.2])
    shares = ensemble_weights.hill_climb(lambda s: -np.abs(np.array(s) / sum(s) - peak).sum(), 3)
    assert np.allclose(np.array(shares) / sum(shares), peak, atol=0.07)


def fickle_runs():
    """Two runs that take turns: on fold 0's fourteen images the first is mostly right and the
    second mostly wrong, on fold 1's four it is the other way round."""
    rng, images = np.random.default_rng(0), []
    for i in range(18):
        truth = rng.random((20, 20)) < 0.5
        right, wrong = (rng.normal(0.5 + shift * (2 * truth - 1), 0.2) for shift in (0.3, -0.3))
        images.append((np.stack([right, wrong] if i < 14 else [wrong, right]), truth))
    votes = votes_of([(p.clip(0, 1).astype(np.float32), t) for p, t in images])
    return votes, np.repeat([0, 1], [14, 4])


def test_cross_fitting_does_not_reward_weights_that_were_lucky_on_one_fold():
    votes, folds = fickle_runs()
    hunt = WeightSearch(votes, folds)
    equal = votes.histograms((1, 1))
    naive, at = hunt.best(np.array([True, True]))
    flattered = metrics.dice_curve(votes.histograms(naive))[:, at].mean()
    base = metrics.cross_fitted_dice(equal, folds).mean()
    assert flattered > base + 0.05  # scored where they were chosen, the weights look like a gain
    _, scores = hunt.cross_fitted()
    assert scores.mean() < base  # each fold with what the other chose: they are none


def test_cross_fitting_grants_weights_that_help_everywhere():
    rng, images = np.random.default_rng(1), []
    for _ in range(12):
        truth = rng.random((20, 20)) < 0.5
        good = np.where(truth, 0.6, 0.4) + rng.normal(0, 0.05, truth.shape)
        images.append((np.stack([good, rng.random(truth.shape)]).astype(np.float32), truth))
    votes, folds = votes_of(images), np.repeat([0, 1, 2], 4)
    hunt = WeightSearch(votes, folds)
    counts, scores = hunt.cross_fitted()
    assert scores.mean() > metrics.cross_fitted_dice(votes.histograms((1, 1)), folds).mean() + 0.05
    assert hunt.best(np.full(3, True))[0][1] <= 1
    assert counts.sum() == 12 * 400
