"""Standard errors and intervals of images in groups, against formulas and simulations."""

import numpy as np
import pytest

from evaluation.statistics import (
    clustered_standard_error,
    prediction_interval,
)


def test_clustered_standard_error_of_single_images_is_the_usual_one():
    scores = np.random.default_rng(0).random(50)
    error = clustered_standard_error(scores, np.arange(50))
    assert error == pytest.approx(scores.std(ddof=1) / np.sqrt(50))


def test_clustered_standard_error_does_not_shrink_by_copies_within_groups():
    scores, groups = np.random.default_rng(1).random(20), np.arange(20)
    error = clustered_standard_error(scores, groups)
    copies = np.repeat(scores, 16)
    assert clustered_standard_error(copies, np.repeat(groups, 16)) == pytest.approx(error)
    assert clustered_standard_error(copies, np.arange(320)) < error / 3


def test_statistics_of_one_group_are_nan():
    scores, groups = np.array([0.5, 0.7]), np.array(["a", "a"])
    assert np.isnan(clustered_standard_error(scores, groups))
    assert np.isnan(prediction_interval(scores, groups)).all()


def test_prediction_interval_covers_95_percent_of_new_means():
    rng, covered = np.random.default_rng(0), []
    for _ in range(400):
        seen, new = rng.normal(0.9, 0.02, 20), rng.normal(0.9, 0.02, 8)
        low, high = prediction_interval(np.repeat(seen, 4), np.repeat(np.arange(20), 4), 8)
        covered.append(low <= new.mean() <= high)
    assert 0.92 < np.mean(covered) < 0.98
    low, high = prediction_interval(seen, np.arange(20))
    assert low < seen.mean() < high


def test_prediction_interval_of_four_groups_covers_the_mean_in_95_percent():
    rng, covered = np.random.default_rng(0), []
    for _ in range(1000):
        low, high = prediction_interval(np.repeat(rng.normal(0, 1, 4), 16), np.repeat(range(4), 16))
        covered.append(low <= 0 <= high)
    assert 0.93 < np.mean(covered) < 0.97
