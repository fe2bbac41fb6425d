"""What may be done to a mask: each step by hand and against scipy, all together, and the choice."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from core.errors import InputError
from evaluation import metrics, postprocess_choice
from inference import postprocess
from inference.postprocess import STEPS, Binarizer

random_levels = arrays(np.uint8, (9, 12), elements=st.sampled_from([0, 63, 64, 127, 128, 255]))


def mask_of(*lines):
    return np.array([[c == "#" for c in line] for line in lines])


def nothing(mask):
    return np.zeros(mask.shape, np.uint8)


def test_specks_go_and_parts_stay():
    mask = np.zeros((100, 100), bool)
    mask[:30, :40] = mask[60:65, 60:65] = True
    speck = mask.copy()
    speck[90, 90:92] = True  # 2 of 1,227 pixels: below 0.2%
    assert np.array_equal(postprocess.remove_small_components(speck, nothing(mask)), mask)
    assert postprocess.remove_small_components(mask, nothing(mask)) is mask


def test_only_the_largest_part_stays():
    mask = mask_of("##...", "##..#", ".....", "#....")
    assert (
        postprocess.keep_largest_component(mask, nothing(mask)).tolist()
        == mask_of("##...", "##...", ".....", ".....").tolist()
    )


@given(random_levels)
def test_fill_is_scipys(levels):
    mask = levels >= 128
    assert np.array_equal(postprocess.fill_holes(mask, levels), ndimage.binary_fill_holes(mask))


def test_hull_adds_unsure_pixels_of_the_upper_half_alone():
    mask = mask_of("#...#", "#...#", "#####", "#...#", "#...#")
    levels = np.where(mask, 200, 0).astype(np.uint8)
    levels[1, 1:4] = postprocess.MIN_HULL_LEVEL, postprocess.MIN_HULL_LEVEL - 1, 127
    levels[3, 2] = 127
    after = postprocess.fill_roof_hull(mask, levels)
    assert np.argwhere(after & ~mask).tolist() == [[1, 1], [1, 3]]


@pytest.mark.parametrize("step", STEPS.values())
@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks_stay(step, value):
    mask = np.full((5, 7), value)
    assert step(mask, nothing(mask)) is mask


@given(random_levels, random_levels)
def test_trials_are_the_dice_of_every_set_of_steps(levels, other):
    truth = other >= 128
    scores = postprocess_choice.dice_of_all_step_subsets(levels, truth)
    for chosen in range(2 ** len(STEPS)):
        mask = levels >= 128
        for bit, step in enumerate(STEPS.values()):
            mask = step(mask, levels) if chosen >> bit & 1 else mask
        assert scores[chosen] == pytest.approx(metrics.mask_dice(mask, truth), abs=1e-12)
        names = [name for bit, name in enumerate(STEPS) if chosen >> bit & 1]
        probability = torch.from_numpy(levels / np.float32(256))
        assert np.array_equal(Binarizer(0.5, names).mask(probability[None]), mask)


def trials_of(gains):
    """Trials of 8 images in 2 folds where each step gains what `gains` says on each fold."""
    scores = np.full((8, 16), 0.9)
    for bit, by_fold in enumerate(gains):
        has = np.arange(16) >> bit & 1
        scores += np.repeat(by_fold, 4)[:, None] * has
    return scores, np.repeat([0, 1], 4)


def test_a_step_is_used_where_it_gains_on_every_fold():
    trials, folds = trials_of([(0.01, 0.01), (0.05, -0.01), (0.0, 0.02), (0.001, 0.02)])
    assert postprocess_choice.choose_steps(trials, folds) == ["specks", "hull"]
    assert postprocess_choice.total_gain(trials, ["specks", "hull"]) == pytest.approx(0.0205)
    assert "largest: +0.05000 -0.01000 (not used)" in postprocess_choice.explain_steps(
        trials, folds
    )


def test_one_fold_is_no_evidence():
    trials, folds = trials_of([(0.01, 0.01)] * 4)
    assert postprocess_choice.choose_steps(trials, folds) == list(STEPS)
    assert postprocess_choice.choose_steps(trials, np.zeros(8)) == []


def test_a_step_that_gains_alone_but_not_beside_a_better_one_is_left_out():
    trials, folds = trials_of([(0.01, 0.01), (0.02, 0.02), (0, 0), (0, 0)])
    both = (np.arange(16) & 3) == 3
    trials[:, both] -= 0.02
    assert postprocess_choice.choose_steps(trials, folds) == ["largest"]


def test_the_setting_names_steps():
    trials, folds = trials_of([(0.01, 0.01)] * 4)
    assert postprocess_choice.requested_steps("fill,specks", trials, folds) == ["specks", "fill"]
    assert postprocess_choice.requested_steps("none", trials, folds) == []
    assert postprocess_choice.requested_steps("auto", trials, folds) == list(STEPS)
    with pytest.raises(InputError, match="polish is unknown"):
        postprocess_choice.requested_steps("fill,polish", trials, folds)
