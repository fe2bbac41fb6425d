"""Choice of the post-processing steps by out-of-fold scores.

`step_dice`, N×(1+S) float64, holds the Dice of N images. Column 0 is without post-processing; each
other column is after one of the S steps alone, in the order of STEPS. `folds` holds the fold of
each image.
"""

import numpy as np
import pandas as pd

from evaluation.metrics import dice_from_counts
from evaluation.statistics import format_gain
from inference.postprocess import STEPS, region_of

ALTERNATIVES = ("specks", "largest")


def dice_after_each_step(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return one row of `step_dice` (1+S float64) from two H×W bool masks."""
    region, true_area = region_of(predicted), np.count_nonzero(true)
    predicted, true = np.ascontiguousarray(predicted[region]), true[region]
    masks = [predicted, *(step(predicted) for step in STEPS.values())]
    counts = np.array([(np.count_nonzero(each & true), np.count_nonzero(each)) for each in masks])
    return dice_from_counts(*counts.T, true_area)


def requested_steps(setting: str, step_dice: np.ndarray, folds: np.ndarray) -> list[str]:
    """Return the steps that `setting` lists, in the order of STEPS; `auto` chooses them."""
    if setting == "auto":
        return choose_steps(step_dice, folds)
    names = [] if setting == "none" else setting.split(",")
    return [name for name in STEPS if name in names]


def gains_per_fold(step_dice: np.ndarray, folds: np.ndarray) -> pd.DataFrame:
    """Return what each step alone adds to the mean Dice: a row per fold, a column per step."""
    gains = pd.DataFrame(step_dice[:, 1:] - step_dice[:, :1], columns=list(STEPS))
    return gains.groupby(folds).mean()


def choose_steps(step_dice: np.ndarray, folds: np.ndarray) -> list[str]:
    """Return the steps whose mean gain is positive on every fold; none if there is one fold.

    The steps specks and largest remove the same components, so only the better one is returned.
    The gains of the returned steps can therefore be added up.
    """
    gains = gains_per_fold(step_dice, folds)
    chosen = [name for name in STEPS if len(gains) > 1 and gains[name].min() > 0]
    if {*ALTERNATIVES} <= {*chosen}:
        chosen.remove(min(ALTERNATIVES, key=gains.mean().get))
    return chosen


def cross_fitted_gain(step_dice: np.ndarray, folds: np.ndarray) -> float:
    """Return the gain in mean Dice if each fold takes the steps chosen on the other folds."""
    gains = pd.DataFrame(step_dice[:, 1:] - step_dice[:, :1], columns=list(STEPS))
    total = 0.0
    for fold in np.unique(folds):
        others = folds != fold
        steps = choose_steps(step_dice[others], folds[others])
        total += gains.loc[~others, steps].to_numpy().sum()
    return total / len(folds)


def explain_steps(step_dice: np.ndarray, folds: np.ndarray) -> list[str]:
    """Return one line per step: its gain on each fold, and whether it is used."""
    gains, lines = gains_per_fold(step_dice, folds), []
    chosen = choose_steps(step_dice, folds)
    for name, gain in gains.items():
        if name in chosen:
            verdict = "used"
        elif gain.min() <= 0:
            verdict = "not used"
        else:
            verdict = f"not used: {'only one fold' if len(gains) == 1 else 'another gains more'}"
        lines.append(f"{name}: {' '.join(map(format_gain, gain))} ({verdict})")
    return lines
