"""Dice, at one threshold and at all, against brute force."""

import cv2
import numpy as np
import pytest
import torch
from conftest import REAL, needs_real_data

from data import image_io
from data.preprocess import Preprocessing
from evaluation import metrics, statistics
from inference.predictor import quantize_probability, resize_to_original


def brute_dice(a, b):
    pairs = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    total = sum(x for x, _ in pairs) + sum(y for _, y in pairs)
    return 1.0 if total == 0 else 2 * sum(x and y for x, y in pairs) / total


def random_case(seed):
    """Probabilities, some of them exactly on a threshold, and a truth."""
    rng = np.random.default_rng(seed)
    probability = rng.random((9, 11)).astype(np.float32)
    probability.ravel()[:40] = rng.integers(0, 257, 40) / 256
    return probability, rng.random((9, 11)) < rng.uniform(0.1, 0.9)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([0, 0], [0, 0], 1), ([1, 0], [0, 0], 0), ([1, 0], [0, 1], 0), ([1, 1], [1, 0], 2 / 3)],
)
def test_dice_by_hand(a, b, expected):
    assert metrics.mask_dice(np.array(a, bool), np.array(b, bool)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_histograms_give_the_exact_dice_at_every_threshold(seed):
    probability, truth = random_case(seed)
    counts = metrics.probability_histograms(
        quantize_probability(torch.from_numpy(probability)[None]), truth
    )
    curve = metrics.dice_curve(counts)
    assert curve.shape == (255,)
    for threshold, dice in zip(metrics.THRESHOLDS, curve, strict=True):
        assert dice == pytest.approx(brute_dice(probability >= threshold, truth), abs=1e-12)


def test_an_empty_truth_has_a_curve_without_nan():
    levels_ = np.array([[0, 0, 10]], np.uint8)
    curve = metrics.dice_curve(metrics.probability_histograms(levels_, np.zeros((1, 3), bool)))
    assert curve[:10].tolist() == [0] * 10 and curve[10:].tolist() == [1] * 245


def test_best_threshold_is_the_best_of_the_mean_and_near_half_where_equal():
    cases = [random_case(seed) for seed in range(4)]
    counts = np.stack(
        [
            metrics.probability_histograms(quantize_probability(torch.from_numpy(p)[None]), t)
            for p, t in cases
        ]
    )
    threshold, dice = metrics.best_threshold(counts)
    sought = np.arange(16, 241) / 256
    means = [np.mean([brute_dice(p >= t, truth) for p, truth in cases]) for t in sought]
    assert dice == pytest.approx(max(means)) and means[round(threshold * 256) - 16] == max(means)
    sure = metrics.probability_histograms(np.array([[0, 200]], np.uint8), np.array([[False, True]]))
    assert metrics.best_threshold(sure[None]) == (0.5, 1.0)


def test_clustered_error_of_single_images_is_the_usual_one():
    scores = np.random.default_rng(0).random(50)
    error = statistics.clustered_standard_error(scores, np.arange(50))
    assert error == pytest.approx(scores.std(ddof=1) / np.sqrt(50))


def test_copies_of_an_image_in_its_group_add_no_certainty():
    scores, groups = np.random.default_rng(1).random(20), np.arange(20)
    once = statistics.clustered_standard_error(scores, groups)
    copies = np.repeat(scores, 16)
    assert statistics.clustered_standard_error(copies, np.repeat(groups, 16)) == pytest.approx(once)
    apart = statistics.clustered_standard_error(copies, np.arange(320))
    assert apart < once / 3


def test_one_group_has_no_error_to_tell():
    assert np.isnan(statistics.clustered_standard_error(np.array([0.5, 0.7]), np.array(["a", "a"])))


def test_cross_fitting_scores_a_threshold_where_it_was_not_chosen():
    """On fold 0 the best threshold is low, on fold 1 high: each is scored at the other's."""
    truth = np.repeat([True, False], 50)[None]
    low, high = np.where(truth, 60, 40), np.where(truth, 210, 190)
    counts = np.stack(
        [metrics.probability_histograms(x.astype(np.uint8), truth) for x in (low, high)]
    )
    at_half = metrics.dice_curve(counts)[:, 127]
    assert metrics.cross_fitted_dice(counts, np.array([0, 1])).tolist() == [
        0.0,
        pytest.approx(2 / 3),
    ]
    assert at_half.tolist() == [0.0, pytest.approx(2 / 3)]
    assert np.isnan(metrics.cross_fitted_dice(counts, np.array([0, 0]))).all()
    same = metrics.cross_fitted_dice(counts[[0, 0]], np.array([0, 1]))
    assert same.tolist() == [1.0, 1.0]


def test_paired_interval_agrees_with_the_normal_one_and_sees_clusters():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 16)
    differences = np.repeat(rng.normal(0.001, 0.002, 60), 16)
    low, high = statistics.paired_bootstrap_interval(differences, groups)
    error = statistics.clustered_standard_error(differences, groups)
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=2e-4)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=2e-4)
    apart = statistics.paired_bootstrap_interval(differences, np.arange(len(groups)))
    assert apart[1] - apart[0] < (high - low) / 3
    assert statistics.paired_bootstrap_interval(differences, groups) == (low, high)
    assert np.isnan(statistics.paired_bootstrap_interval(differences, groups * 0)).all()


def test_expected_interval_holds_the_mean_of_other_groups_as_often_as_it_says():
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        seen, others = rng.normal(0.9, 0.02, 20), rng.normal(0.9, 0.02, 8)
        low, high = statistics.prediction_interval(
            np.repeat(seen, 4), np.repeat(np.arange(20), 4), 8
        )
        held.append(low <= others.mean() <= high)
    assert 0.92 < np.mean(held) < 0.98
    low, high = statistics.prediction_interval(seen, np.arange(20))
    assert low < seen.mean() < high


@needs_real_data
def test_the_sweep_is_brute_force_on_real_masks():
    """A network's place is taken by the mask itself, shrunk and enlarged on the one road."""
    masks = sorted((REAL / "carvana" / "train_masks").iterdir())[:2]
    for path in masks:
        truth = image_io.read_mask(path)
        small = cv2.resize(truth.astype(np.float32), (96, 64), interpolation=cv2.INTER_AREA)
        probability = resize_to_original(
            torch.from_numpy(small)[None], truth.shape, Preprocessing(None)
        )
        curve = metrics.dice_curve(
            metrics.probability_histograms(quantize_probability(probability), truth)
        )
        for i in range(0, 255, 6):
            predicted = probability[0].numpy() >= metrics.THRESHOLDS[i]
            both = np.logical_and(predicted, truth).sum()
            brute = 2 * both / (predicted.sum() + truth.sum())
            assert curve[i] == pytest.approx(brute, abs=1e-12)


# ---------------------------------------------------------------- several classes


def test_confusion_and_its_scores_by_hand():
    true = np.array([[0, 0, 1, 1, 2, 255]], np.uint8)
    predicted = np.array([[0, 1, 1, 1, 0, 2]])
    matrix = metrics.confusion_matrix(predicted, true, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    each = metrics.per_class(matrix)
    assert each["iou"][:3].tolist() == pytest.approx([1 / 3, 2 / 3, 0]) and np.isnan(each["iou"][3])
    assert each["dice"][:3].tolist() == pytest.approx([1 / 2, 4 / 5, 0])
    assert each["accuracy"][:3].tolist() == pytest.approx([1 / 2, 1, 0])
    nothing = np.zeros_like(matrix)
    assert metrics.pixel_accuracy(np.stack([matrix, nothing])).tolist() == [3 / 5, 1]
    found = metrics.dataset_scores(matrix)
    assert found["accuracy"] == pytest.approx(3 / 5) and found["iou"] == pytest.approx(1 / 3)
    assert found["class_accuracy"] == pytest.approx(1 / 2)
    assert found["weighted_iou"] == pytest.approx(2 / 5 / 3 + 2 / 5 * 2 / 3)
    assert metrics.mean_class_dice(matrix) == pytest.approx(1.3 / 3)


def test_dice_of_classes_is_that_of_masks():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 3, (2, 9, 11))
    matrix = metrics.confusion_matrix(predicted, true.astype(np.uint8), 3)
    dice = metrics.per_class(matrix)["dice"]
    assert dice.tolist() == pytest.approx([brute_dice(predicted == c, true == c) for c in range(3)])


def test_an_image_of_ignored_pixels_has_no_error():
    matrix = metrics.confusion_matrix(np.zeros((2, 2), int), np.full((2, 2), 255, np.uint8), 3)
    assert not matrix.any() and metrics.mean_class_dice(matrix) == 1
    assert np.isnan(metrics.dataset_scores(matrix)["iou"])
