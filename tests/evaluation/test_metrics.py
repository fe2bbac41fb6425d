"""Dice at one threshold and at all, and scores of several classes, against brute force."""

import cv2
import numpy as np
import pytest
import torch
from conftest import REAL, needs_real_data

from data import mask_io
from data.preprocess import Preprocessing
from evaluation import metrics
from evaluation.pixel_counts import confusion_matrix, probability_histograms
from inference.combine import quantize_probability, resize_to_native


def brute_force_dice(a, b):
    pairs = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    total = sum(x for x, _ in pairs) + sum(y for _, y in pairs)
    return 1.0 if total == 0 else 2 * sum(x and y for x, y in pairs) / total


def random_case(seed):
    """Return a probability, some pixels exactly at a threshold, and a true mask."""
    rng = np.random.default_rng(seed)
    probability = rng.random((9, 11)).astype(np.float32)
    probability.ravel()[:40] = rng.integers(0, 257, 40) / 256
    return probability, rng.random((9, 11)) < rng.uniform(0.1, 0.9)


def histograms_of(probability, true):
    return histograms_of_levels(quantize_probability(torch.from_numpy(probability)[None]), true)


def histograms_of_levels(levels, true):
    levels, true = torch.as_tensor(levels), torch.from_numpy(true)
    return probability_histograms(levels, true).numpy()


def confusion_of(predicted, true, n_classes):
    return confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(true), n_classes).numpy()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([0, 0], [0, 0], 1), ([1, 0], [0, 0], 0), ([1, 0], [0, 1], 0), ([1, 1], [1, 0], 2 / 3)],
)
def test_mask_dice_by_hand(a, b, expected):
    assert metrics.mask_dice(np.array(a, bool), np.array(b, bool)) == pytest.approx(expected)


# ---------------------------------------------------------------- every threshold


@pytest.mark.parametrize("seed", range(3))
def test_dice_curve_is_exact_at_every_threshold(seed):
    probability, true = random_case(seed)
    curve = metrics.dice_curve(histograms_of(probability, true))
    assert curve.shape == (255,)
    for threshold, dice in zip(metrics.THRESHOLDS, curve, strict=True):
        assert dice == pytest.approx(brute_force_dice(probability >= threshold, true), abs=1e-12)


def test_dice_curve_of_empty_mask_has_no_nan():
    levels = np.array([[0, 0, 10]], np.uint8)
    curve = metrics.dice_curve(histograms_of_levels(levels, np.zeros((1, 3), bool)))
    assert curve[:10].tolist() == [0] * 10 and curve[10:].tolist() == [1] * 245


@needs_real_data
def test_dice_curve_of_real_masks_equals_brute_force():
    """Masks of cars, shrunk and enlarged as a network's probability would be."""
    for path in sorted((REAL / "carvana" / "train_masks").iterdir())[:2]:
        true = mask_io.read_mask(path)
        small = cv2.resize(true.astype(np.float32), (96, 64), interpolation=cv2.INTER_AREA)
        small = torch.from_numpy(small)[None]
        probability = resize_to_native(small, true.shape, Preprocessing(None))[0].numpy()
        curve = metrics.dice_curve(histograms_of(probability, true))
        for i in range(0, 255, 6):
            predicted = probability >= metrics.THRESHOLDS[i]
            intersection = np.logical_and(predicted, true).sum()
            expected = 2 * intersection / (predicted.sum() + true.sum())
            assert curve[i] == pytest.approx(expected, abs=1e-12)


def test_best_threshold_maximizes_the_mean_dice():
    cases = [random_case(seed) for seed in range(4)]
    threshold, dice = metrics.best_threshold(np.stack([histograms_of(*case) for case in cases]))
    searched = np.arange(1, 256) / 256
    means = [np.mean([brute_force_dice(p >= t, true) for p, true in cases]) for t in searched]
    assert dice == pytest.approx(max(means)) and means[round(threshold * 256) - 1] == max(means)


def test_best_threshold_of_ties_is_nearest_to_half():
    levels, true = np.array([[0, 200]], np.uint8), np.array([[False, True]])
    assert metrics.best_threshold(histograms_of_levels(levels, true)[None]) == (0.5, 1.0)


def test_cross_fitted_dice_takes_the_threshold_of_all_other_folds_together():
    histograms = np.random.default_rng(0).integers(0, 50, (9, 2, 256))
    folds = np.array([0, 0, 1, 2, 2, 2, 1, 0, 1])
    curve = metrics.dice_curve(histograms)
    expected = [
        curve[i, curve[folds != fold].mean(axis=0).argmax()] for i, fold in enumerate(folds)
    ]
    assert metrics.cross_fitted_dice(histograms, folds).tolist() == pytest.approx(expected)


def test_cross_fitted_dice_uses_the_threshold_of_the_other_fold():
    """On fold 0 the best threshold is low, on fold 1 high: each is scored at the other's."""
    true = np.repeat([True, False], 50)[None]
    low, high = np.where(true, 60, 40), np.where(true, 210, 190)
    histograms = np.stack([histograms_of_levels(x.astype(np.uint8), true) for x in (low, high)])
    expected = [0.0, pytest.approx(2 / 3)]
    assert metrics.cross_fitted_dice(histograms, np.array([0, 1])).tolist() == expected
    assert metrics.dice_curve(histograms)[:, 127].tolist() == expected  # at 0.5
    same = metrics.cross_fitted_dice(histograms[[0, 0]], np.array([0, 1]))
    assert same.tolist() == [1.0, 1.0]
    assert np.isnan(metrics.cross_fitted_dice(histograms, np.array([0, 0]))).all()


def test_choose_threshold_is_the_best_one_unless_other_folds_lose_by_it():
    true = np.repeat([True, False], 50)[None]
    low, high = np.where(true, 60, 40), np.where(true, 210, 190)
    histograms = np.stack([histograms_of_levels(x.astype(np.uint8), true) for x in (low, high)])
    threshold, gain = metrics.choose_threshold(histograms[[0, 0]], np.array([0, 1]))
    assert 40 / 255 < threshold <= 60 / 255 and gain == 1.0
    assert metrics.choose_threshold(histograms, np.array([0, 1])) == (0.5, 0.0)
    threshold, gain = metrics.choose_threshold(histograms[:1], np.array([0]))
    assert 40 / 255 < threshold <= 60 / 255 and np.isnan(gain)


# ---------------------------------------------------------------- several classes


def test_scores_of_a_confusion_matrix_by_hand():
    true = np.array([[0, 0, 1, 1, 2, 255]], np.uint8)
    predicted = np.array([[0, 1, 1, 1, 0, 2]])
    confusion = confusion_of(predicted, true, 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    scores = metrics.per_class(confusion)
    assert scores["iou"][:3].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert np.isnan(scores["iou"][3])
    assert scores["dice"][:3].tolist() == pytest.approx([1 / 2, 4 / 5, 0])
    assert scores["accuracy"][:3].tolist() == pytest.approx([1 / 2, 1, 0])
    both = np.stack([confusion, np.zeros_like(confusion)])
    nan = pytest.approx(np.nan, nan_ok=True)
    assert metrics.pixel_accuracy(both).tolist() == [3 / 5, nan]
    assert metrics.mean_over_classes(both, "dice").tolist() == [pytest.approx(1.3 / 3), nan]


def test_dataset_scores_by_hand():
    scores = metrics.dataset_scores(np.array([[1, 1, 0], [0, 2, 0], [1, 0, 0]]))
    assert scores["accuracy"] == pytest.approx(3 / 5) and scores["iou"] == pytest.approx(1 / 3)
    assert scores["dice"] == pytest.approx(1.3 / 3)
    assert scores["class_accuracy"] == pytest.approx(1 / 2)
    assert scores["weighted_iou"] == pytest.approx(2 / 5 / 3 + 2 / 5 * 2 / 3)


def test_per_class_dice_equals_the_dice_of_masks():
    true, predicted = np.random.default_rng(0).integers(0, 3, (2, 9, 11))
    confusion = confusion_of(predicted, true.astype(np.uint8), 3)
    expected = [brute_force_dice(predicted == c, true == c) for c in range(3)]
    assert metrics.per_class(confusion)["dice"].tolist() == pytest.approx(expected)


def test_scores_of_ignored_pixels_only_are_nan():
    ignored = np.full((2, 2), 255, np.uint8)
    confusion = confusion_of(np.zeros((2, 2), int), ignored, 3)
    assert not confusion.any() and np.isnan(metrics.mean_over_classes(confusion, "dice"))
    assert np.isnan(list(metrics.dataset_scores(confusion).values())).all()


def test_dataset_scores_leave_out_a_class_that_is_not_present():
    confusion = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    scores = metrics.dataset_scores(confusion)
    assert scores["class_accuracy"] == pytest.approx((8 / 10 + 9 / 10) / 2)
    assert scores["iou"] == pytest.approx((8 / 11 + 9 / 12) / 2)
    assert scores["dice"] == pytest.approx((16 / 19 + 18 / 21) / 2)
    assert scores["weighted_iou"] == pytest.approx((8 / 11 + 9 / 12) / 2)
