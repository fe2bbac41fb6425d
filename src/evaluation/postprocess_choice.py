"""Choice of the post-processing steps by out-of-fold scores.

`step_dice` is N×(1+S) float64, the Dice of N images: without post-processing, then after each of
the S steps alone, in the order of STEPS. `folds` are the N folds of the images.
"""

import numpy as np

from core.errors import InputError
from evaluation.metrics import dice_from_counts
from inference.postprocess import MIN_HULL_LEVEL, STEPS, changeable_region

HALF_LEVEL = 128  # probability 0.5


def dice_after_each_step(levels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the Dice at threshold 0.5: without post-processing, then after each step alone.

    `levels` is H×W uint8, floor(256·probability), and `mask` the true H×W bool mask; the result
    is 1+S float64.
    """
    region, true_area = changeable_region(levels >= MIN_HULL_LEVEL), np.count_nonzero(mask)
    levels, mask = np.ascontiguousarray(levels[region]), mask[region]
    predicted = levels >= HALF_LEVEL
    candidates = [predicted, *(step(predicted, levels) for step in STEPS.values())]
    intersections = np.array([np.count_nonzero(each & mask) for each in candidates])
    areas = np.array([np.count_nonzero(each) for each in candidates])
    return dice_from_counts(intersections, areas, true_area)


def requested_steps(setting: str, step_dice: np.ndarray, folds: np.ndarray) -> list[str]:
    """Return the steps that `setting` lists, in the order of STEPS; `auto` chooses them."""
    if setting == "auto":
        return choose_steps(step_dice, folds)
    names = [] if setting == "none" else setting.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        raise InputError(
            f"postprocess: {unknown[0]} is unknown; there are auto, none and [{','.join(STEPS)}]"
        )
    return [name for name in STEPS if name in names]


def choose_steps(step_dice: np.ndarray, folds: np.ndarray) -> list[str]:
    """Return the steps whose mean gain is positive on every fold; none if there is one fold."""
    if len(np.unique(folds)) < 2:
        return []
    gains = gains_per_fold(step_dice, folds)
    return [name for name, gain in zip(STEPS, gains, strict=True) if gain.min() > 0]


def gains_per_fold(step_dice: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return what each step alone adds to the mean Dice of each fold, S×(number of folds)."""
    gains = step_dice[:, 1:] - step_dice[:, :1]
    return np.stack([gains[folds == fold].mean(axis=0) for fold in np.unique(folds)], axis=1)


def explain_steps(step_dice: np.ndarray, folds: np.ndarray) -> list[str]:
    """Return one line per step: its gain on each fold, and whether it is used."""
    chosen = choose_steps(step_dice, folds)
    lines = []
    for name, gain in zip(STEPS, gains_per_fold(step_dice, folds), strict=True):
        verdict = "used" if name in chosen else "not used"
        if name not in chosen and gain.min() > 0:
            verdict += ": only one fold"
        numbers = " ".join(f"{g:+.5f}" for g in np.round(gain, 5) + 0.0)  # + 0.0: no -0.00000
        lines.append(f"{name}: {numbers} ({verdict})")
    return lines
