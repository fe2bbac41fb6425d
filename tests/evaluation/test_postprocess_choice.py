"""The Dice of each post-processing step, and which steps are used."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from evaluation import postprocess_choice
from evaluation.metrics import mask_dice
from inference.postprocess import STEPS

random_masks = arrays(bool, (9, 12))


@given(random_masks, random_masks)
def test_dice_after_each_step_equals_steps_on_the_whole_image(predicted, true):
    candidates = [predicted, *(step(predicted) for step in STEPS.values())]
    expected = [mask_dice(candidate, true) for candidate in candidates]
    result = postprocess_choice.dice_after_each_step(predicted, true)
    assert result == pytest.approx(expected, abs=1e-12)


def make_step_dice(*gains):
    """Make the Dice of 8 images in 2 folds from each step's gains on the two folds."""
    step_dice = np.full((8, 1 + len(STEPS)), 0.9)
    step_dice[:, 1:] += np.repeat(np.transpose(gains), 4, axis=0)
    return step_dice, np.repeat([0, 1], 4)


def test_choose_steps_takes_those_that_gain_on_every_fold():
    step_dice, folds = make_step_dice((0.01, 0.01), (0.05, -0.01), (0.001, 0.02))
    assert postprocess_choice.choose_steps(step_dice, folds) == ["specks", "fill"]
    assert postprocess_choice.explain_steps(step_dice, folds) == [
        "specks: +0.01000 +0.01000 (used)",
        "largest: +0.05000 -0.01000 (not used)",
        "fill: +0.00100 +0.02000 (used)",
    ]


@pytest.mark.parametrize(("largest", "chosen"), [(0.02, "largest"), (0.005, "specks")])
def test_choose_steps_takes_the_better_of_two_that_remove_components(largest, chosen):
    step_dice, folds = make_step_dice((0.01, 0.01), (largest, largest), (0.01, 0.01))
    assert postprocess_choice.choose_steps(step_dice, folds) == [chosen, "fill"]
    not_used = [
        line for line in postprocess_choice.explain_steps(step_dice, folds) if "not" in line
    ]
    assert len(not_used) == 1 and not_used[0].endswith("(not used: another gains more)")


def test_choose_steps_of_one_fold_takes_none():
    step_dice, folds = make_step_dice(*[(0.01, 0.01)] * len(STEPS))
    assert len(postprocess_choice.choose_steps(step_dice, folds)) == 2
    one_fold = np.zeros(8)
    assert postprocess_choice.choose_steps(step_dice, one_fold) == []
    lines = postprocess_choice.explain_steps(step_dice, one_fold)
    assert lines[0] == "specks: +0.01000 (not used: only one fold)"


def test_cross_fitted_gain_of_a_fold_is_that_of_the_steps_of_the_other_folds():
    step_dice = np.full((6, 1 + len(STEPS)), 0.9)
    folds = np.repeat([0, 1, 2], 2)
    step_dice[:, 1] += np.repeat([-0.3, 0.1, 0.1], 2)  # chosen by folds 1 and 2, loses on fold 0
    step_dice[:, 3] += 0.2  # chosen by all
    gain = postprocess_choice.cross_fitted_gain(step_dice, folds)
    assert gain == pytest.approx(0.2 - 0.3 / 3)


def test_requested_steps_follows_the_setting():
    step_dice, folds = make_step_dice(*[(0.01, 0.01)] * len(STEPS))
    requested_steps = postprocess_choice.requested_steps
    assert requested_steps("fill,specks", step_dice, folds) == ["specks", "fill"]
    assert requested_steps("none", step_dice, folds) == []
    assert requested_steps("specks,largest", step_dice, folds) == ["specks", "largest"]
    assert requested_steps("auto", step_dice, folds) == ["largest", "fill"]


def test_gains_per_fold_are_means_over_images():
    step_dice, folds = np.full((6, 1 + len(STEPS)), 0.9), np.repeat([0, 1], 3)
    step_dice[[0, 3], 1] -= 0.3  # one image of each fold loses what the two others do not gain
    step_dice[[1, 2, 4, 5], 1] += 0.1
    gains = postprocess_choice.gains_per_fold(step_dice, folds)
    assert gains["specks"].tolist() == pytest.approx([-0.1 / 3] * 2)
    assert postprocess_choice.choose_steps(step_dice, folds) == []


def test_explain_steps_of_a_step_without_gain_agrees_with_choose_steps():
    step_dice, folds = np.full((4, 1 + len(STEPS)), 0.9), np.repeat([0, 1], 2)
    lines = postprocess_choice.explain_steps(step_dice, folds)
    assert postprocess_choice.choose_steps(step_dice, folds) == []
    assert all(line.endswith("(not used)") for line in lines)
