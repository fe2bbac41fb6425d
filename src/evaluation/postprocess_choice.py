"""What may be done to a mask after its threshold. Whether it is, out-of-fold scores decide.

A step takes the mask (H×W bool) and the levels it was cut from (H×W uint8, floor(256·probability))
and gives a mask; it gives back the very object it took where it changes nothing.
"""

import numpy as np

from core.errors import InputError
from evaluation.metrics import dice_from_counts
from inference.postprocess import STEPS, changeable_region


def requested_steps(postprocess: str, trials: np.ndarray, folds: np.ndarray) -> list[str]:
    """The steps that the setting names, in the order of STEPS; `auto`: what decide() says."""
    if postprocess == "auto":
        return choose_steps(trials, folds)
    names = [] if postprocess == "none" else postprocess.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise InputError(
            f"postprocess: {unknown[0]} is unknown; there are auto, none and [{','.join(STEPS)}]"
        )
    return [name for name in STEPS if name in names]


def dice_of_all_step_subsets(levels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice of the mask at 0.5 after every set of steps: bit s of the index is step s of STEPS."""
    part, true = changeable_region(levels), int(truth.sum())
    levels, truth = np.ascontiguousarray(levels[part]), truth[part]
    masks = [levels >= 128]
    for step in STEPS.values():
        after = {id(mask): step(mask, levels) for mask in masks}  # most steps change nothing
        masks += [after[id(mask)] for mask in masks]
    score = {
        id(m): dice_from_counts(np.count_nonzero(m & truth), np.count_nonzero(m), true)
        for m in masks
    }
    return np.array([score[id(mask)] for mask in masks])


def gain_per_fold(trials: np.ndarray, folds: np.ndarray, step: int, base: int = 0) -> np.ndarray:
    """What a step adds to the mean Dice of each fold, on top of the steps in `base`."""
    gain = trials[:, base | 1 << step] - trials[:, base]
    return np.array([gain[folds == fold].mean() for fold in np.unique(folds)])


def choose_steps(trials: np.ndarray, folds: np.ndarray) -> list[str]:
    """The steps to use: again and again the one that gains most, if it gains on every fold.

    `trials` is N×2^steps as of trials(), `folds` N. One fold alone is no evidence.
    """
    chosen = 0
    while len(np.unique(folds)) > 1:
        left = [step for step in range(len(STEPS)) if not chosen >> step & 1]
        each = {step: gain_per_fold(trials, folds, step, chosen) for step in left}
        good = {step: gain.mean() for step, gain in each.items() if gain.min() > 0}
        if not good:
            break
        chosen |= 1 << max(good, key=good.get)
    return [name for step, name in enumerate(STEPS) if chosen >> step & 1]


def total_gain(trials: np.ndarray, names: list[str]) -> float:
    """What the named steps together add to the mean Dice."""
    at = sum(1 << step for step, name in enumerate(STEPS) if name in names)
    return float((trials[:, at] - trials[:, 0]).mean())


def explain_steps(trials: np.ndarray, folds: np.ndarray) -> list[str]:
    """A line for each step: what it gains alone on each fold, and what follows."""
    chosen = choose_steps(trials, folds)
    lines = []
    for step, name in enumerate(STEPS):
        gain = gain_per_fold(trials, folds, step)
        verdict = "used" if name in chosen else "not used"
        if name not in chosen and gain.min() > 0:
            verdict += ": no gain on every fold beside the others" if chosen else ": only one fold"
        numbers = " ".join(f"{g:+.5f}" for g in np.round(gain, 5) + 0.0)  # no -0.00000
        lines.append(f"{name}: {numbers} ({verdict})")
    return lines
