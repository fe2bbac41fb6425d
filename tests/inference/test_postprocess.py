"""Each post-processing step by hand or against scipy, and the Binarizer."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from inference import postprocess
from inference.postprocess import STEPS, Binarizer

random_levels = arrays(np.uint8, (9, 12), elements=st.sampled_from([0, 127, 128, 255]))


def parse_mask(*lines):
    return np.array([[c == "#" for c in line] for line in lines])


def to_probability(levels):
    return torch.from_numpy(levels / np.float32(256))[None]


# ---------------------------------------------------------------- steps


def test_remove_small_components_removes_below_two_thousandths_of_the_mask():
    mask = np.zeros((100, 100), bool)
    mask[:30, :40] = mask[60:65, 60:65] = True
    speck = mask.copy()
    speck[90, 90:92] = True  # 2 of 1,227 pixels
    assert np.array_equal(postprocess.remove_small_components(speck), mask)
    assert np.array_equal(postprocess.remove_small_components(mask), mask)


def test_keep_largest_component_keeps_one():
    mask = parse_mask("##...", "##..#", ".....", "#....")
    expected = parse_mask("##...", "##...", ".....", ".....")
    assert np.array_equal(postprocess.keep_largest_component(mask), expected)


@pytest.mark.parametrize("step", ["specks", "largest"])
def test_components_are_connected_along_diagonals(step):
    mask = np.zeros((60, 60), bool)
    mask[:50, :50] = mask[50, 50] = True
    assert np.array_equal(STEPS[step](mask), mask)


@given(random_levels)
def test_fill_holes_equals_scipy(levels):
    mask = levels >= 128
    assert np.array_equal(postprocess.fill_holes(mask), ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("step", STEPS.values())
@pytest.mark.parametrize("value", [False, True])
def test_steps_leave_empty_and_full_masks_unchanged(step, value):
    mask = np.full((5, 7), value)
    assert np.array_equal(step(mask), mask)


# ---------------------------------------------------------------- Binarizer


@given(random_levels, st.sets(st.sampled_from([*STEPS])), st.sampled_from([32, 128, 200]))
def test_binarizer_applies_steps_in_order_on_the_whole_image(levels, names, threshold):
    """Every step on the whole image gives the mask that the Binarizer computes on a part of it."""
    mask = levels >= threshold
    expected = mask.copy()
    for name, step in STEPS.items():
        expected = step(expected) if name in names else expected
    result = Binarizer(threshold / 256, sorted(names))(to_probability(levels))
    assert np.array_equal(result, expected)


def test_binarizer_includes_the_threshold():
    levels = np.array([[127, 128, 129]], np.uint8)
    mask = Binarizer(0.5, [])(to_probability(levels))
    assert mask.dtype == bool and mask.tolist() == [[False, True, True]]


def test_binarizer_of_several_classes_returns_the_most_probable():
    probability = torch.tensor([[[0.2, 0.5]], [[0.3, 0.1]], [[0.5, 0.4]]])
    class_map = Binarizer(0.9, ["fill"])(probability)
    assert class_map.dtype == np.uint8 and class_map.tolist() == [[2, 0]]


def test_binarizer_applies_steps_in_the_order_of_steps_whatever_their_order_in_the_list():
    mask = np.zeros((120, 120), bool)
    mask[10:110, 10:110] = True
    mask[11:109, 11:109] = False  # 396 pixels, 10,000 once it is filled
    mask[2, 2] = True  # a fraction above 0.002 only before filling
    probability = torch.from_numpy(mask.astype(np.float32))[None]
    for steps in (["specks", "fill"], ["fill", "specks"]):
        assert Binarizer(0.5, steps)(probability).sum() == 100**2 + 1


def test_remove_small_components_keeps_one_of_exactly_the_fraction():
    mask = np.zeros((60, 60), bool)
    mask[:20, :50] = True
    mask[19, 48:50] = False
    mask[50, 50:52] = True  # 2 of 1,000 pixels
    assert mask.sum() == 1000
    assert np.array_equal(postprocess.remove_small_components(mask), mask)


def test_apply_steps_leaves_its_mask_unchanged():
    mask = np.ones((5, 7), bool)
    mask[2, 3] = False
    filled = postprocess.apply_steps(mask, ["fill"])
    assert filled.all() and not mask[2, 3]
