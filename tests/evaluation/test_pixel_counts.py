"""Counts of pixels against NumPy and brute force, also as a GPU makes them."""

import numpy as np
import pytest
import torch

from evaluation.pixel_counts import (
    confusion_matrix,
    count_pixels,
    count_values,
    probability_histograms,
)
from inference.combine import quantize_probability


def random_tensor(shape, high, dtype, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, high, shape)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_count_values_equals_numpy(dtype):
    values = random_tensor((40, 50), 17, dtype)
    counts = count_values(values, 20)
    assert counts.dtype == torch.int64
    assert counts.tolist() == np.bincount(values.numpy().ravel(), minlength=20).tolist()


def test_probability_histograms_count_levels_outside_and_inside():
    levels, true = random_tensor((30, 40), 256, torch.uint8), random_tensor((30, 40), 2, torch.bool)
    outside, inside = probability_histograms(levels, true).numpy()
    for counts, side in ((outside, ~true), (inside, true)):
        assert np.array_equal(counts, np.bincount(levels[side].numpy(), minlength=256))


@pytest.mark.parametrize("n_classes", [3, 34, 255])
def test_confusion_matrix_counts_pairs_without_ignored_pixels(n_classes):
    predicted = random_tensor((30, 40), n_classes, torch.int64)
    true = random_tensor((30, 40), n_classes, torch.uint8, seed=1)
    true[:5] = 255
    expected = np.zeros((n_classes, n_classes), int)
    np.add.at(expected, (true[5:].numpy(), predicted[5:].numpy()), 1)
    assert np.array_equal(confusion_matrix(predicted, true, n_classes), expected)


def test_count_pixels_of_one_class_keeps_the_mask_at_one_half():
    probability, true = torch.rand(1, 8, 9), random_tensor((8, 9), 2, torch.bool)
    probability[0, 0, :3] = torch.tensor([0.49, 0.5, 0.51])
    counts = count_pixels(probability, true)
    levels = quantize_probability(probability)
    assert torch.equal(counts["histograms"], probability_histograms(levels, true))
    assert torch.equal(counts["mask_at_half"], levels >= 128)
    assert counts["mask_at_half"][0, :3].tolist() == [False, True, True]


def test_count_pixels_of_several_classes_counts_the_most_probable():
    probability, true = torch.rand(3, 8, 9), random_tensor((8, 9), 3, torch.uint8)
    counts = count_pixels(probability, true)
    assert torch.equal(counts["confusion"], confusion_matrix(probability.argmax(0), true, 3))
