"""What may be done to a mask after its threshold. Whether it is, out-of-fold scores decide.

A step takes the mask (H×W bool) and the levels it was cut from (H×W uint8, floor(256·probability))
and gives a mask; it gives back the very object it took where it changes nothing.
"""

from collections.abc import Callable

import cv2
import numpy as np

from config import InputError
from metrics import dice

SPECK = 2e-3  # of the mask's area: of a car on 1918×1280 some 30×30 pixels
UNSURE = 64  # the level from which a pixel of a roof may belong to the car: a probability of 1/4


def specks(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Remove components of less than SPECK of the mask."""
    labels, areas = _components(mask)
    small = areas < SPECK * areas[1:].sum()
    return mask & ~small[labels] if small[1:].any() else mask


def largest(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Keep the largest component: there is one car."""
    labels, areas = _components(mask)
    return labels == 1 + areas[1:].argmax() if len(areas) > 2 else mask


def fill(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Fill holes: background that cannot be reached from the image's edge."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=4)
    x, y, width, height = stats[:, :4].T
    inner = (x > 0) & (y > 0) & (x + width < mask.shape[1]) & (y + height < mask.shape[0])
    inner[0] = False  # label 0 is the mask itself
    return mask | inner[labels] if inner.any() else mask


def hull(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Where the network is unsure (UNSURE or more) of the upper half, glass and racks that the
    convex hull of the rest encloses belong to the roof."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return mask
    left = mask[rows].argmax(axis=1)
    right = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([left, rows], 1), np.stack([right, rows], 1)])
    inside = np.zeros(mask.shape, np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(ends.astype(np.int32)), 1)
    inside[(rows[0] + rows[-1]) // 2 :] = 0
    added = inside.view(bool) & ~mask & (levels >= UNSURE)
    return mask | added if added.any() else mask


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels H×W int32 (0: background) and the area of each."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return labels, stats[:, cv2.CC_STAT_AREA]


Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
STEPS: dict[str, Step] = {"specks": specks, "largest": largest, "fill": fill, "hull": hull}


def asked(postprocess: str, trials: np.ndarray, folds: np.ndarray) -> list[str]:
    """The steps that the setting names, in the order of STEPS; `auto`: what decide() says."""
    if postprocess == "auto":
        return decide(trials, folds)
    names = [] if postprocess == "none" else postprocess.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise InputError(
            f"postprocess: {unknown[0]} is unknown; there are auto, none and [{','.join(STEPS)}]"
        )
    return [name for name in STEPS if name in names]


def box(levels: np.ndarray) -> tuple[slice, slice]:
    """The part of the image that steps can change, with a pixel around it: steps take less time."""
    x, y, width, height = cv2.boundingRect((levels >= UNSURE).view(np.uint8))
    return slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)


def apply(mask: np.ndarray, levels: np.ndarray, names: list[str]) -> np.ndarray:
    """The mask after the named steps, in the order of STEPS."""
    if not names or not mask.any():
        return mask
    part = box(np.maximum(levels, mask.view(np.uint8) * 255))
    small = np.ascontiguousarray(mask[part])
    for name in STEPS:
        small = STEPS[name](small, levels[part]) if name in names else small
    mask = mask.copy()
    mask[part] = small
    return mask


def trials(levels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice of the mask at 0.5 after every set of steps: bit s of the index is step s of STEPS."""
    part, true = box(levels), int(truth.sum())
    levels, truth = np.ascontiguousarray(levels[part]), truth[part]
    masks = [levels >= 128]
    for step in STEPS.values():
        after = {id(mask): step(mask, levels) for mask in masks}  # most steps change nothing
        masks += [after[id(mask)] for mask in masks]
    score = {id(m): dice(np.count_nonzero(m & truth), np.count_nonzero(m), true) for m in masks}
    return np.array([score[id(mask)] for mask in masks])


def gains(trials: np.ndarray, folds: np.ndarray, step: int, base: int = 0) -> np.ndarray:
    """What a step adds to the mean Dice of each fold, on top of the steps in `base`."""
    gain = trials[:, base | 1 << step] - trials[:, base]
    return np.array([gain[folds == fold].mean() for fold in np.unique(folds)])


def decide(trials: np.ndarray, folds: np.ndarray) -> list[str]:
    """The steps to use: again and again the one that gains most, if it gains on every fold.

    `trials` is N×2^steps as of trials(), `folds` N. One fold alone is no evidence.
    """
    chosen = 0
    while len(np.unique(folds)) > 1:
        left = [step for step in range(len(STEPS)) if not chosen >> step & 1]
        each = {step: gains(trials, folds, step, chosen) for step in left}
        good = {step: gain.mean() for step, gain in each.items() if gain.min() > 0}
        if not good:
            break
        chosen |= 1 << max(good, key=good.get)
    return [name for step, name in enumerate(STEPS) if chosen >> step & 1]


def chosen_gain(trials: np.ndarray, names: list[str]) -> float:
    """What the named steps together add to the mean Dice."""
    at = sum(1 << step for step, name in enumerate(STEPS) if name in names)
    return float((trials[:, at] - trials[:, 0]).mean())


def why(trials: np.ndarray, folds: np.ndarray) -> list[str]:
    """A line for each step: what it gains alone on each fold, and what follows."""
    chosen = decide(trials, folds)
    lines = []
    for step, name in enumerate(STEPS):
        gain = gains(trials, folds, step)
        verdict = "used" if name in chosen else "not used"
        if name not in chosen and gain.min() > 0:
            verdict += ": no gain on every fold beside the others" if chosen else ": only one fold"
        numbers = " ".join(f"{g:+.5f}" for g in np.round(gain, 5) + 0.0)  # no -0.00000
        lines.append(f"{name}: {numbers} ({verdict})")
    return lines
