"""From probability to mask: the threshold and post-processing steps, or argmax of several classes.

A step takes and returns a mask, H×W bool. Whether it is used is decided in
evaluation/postprocess_choice.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

MIN_COMPONENT_FRACTION = 2e-3  # of the mask's area: for a car on 1918×1280, about 30×30 pixels


@dataclass
class Binarizer:
    """Converts a probability to a mask (binary) or class ids (several classes).

    Several steps are applied one after the other, in the order of STEPS.
    """

    threshold: float
    steps: list[str]  # names of STEPS

    def __call__(self, probability: Tensor) -> np.ndarray:
        """Convert a C×H×W probability to an H×W bool mask if C is 1, else to uint8 class ids."""
        return self.postprocess(self.to_mask(probability).cpu())

    def to_mask(self, probability: Tensor) -> Tensor:
        """Return the mask or class ids without post-processing, on the device of `probability`."""
        if len(probability) > 1:
            return probability.argmax(0).to(torch.uint8)
        return probability[0] >= self.threshold

    def postprocess(self, mask: Tensor) -> np.ndarray:
        """Apply the steps to a mask of to_mask(), on the host; class ids are returned unchanged."""
        array = mask.numpy()
        return apply_steps(array, self.steps) if array.dtype == bool else array


def apply_steps(mask: np.ndarray, names: list[str]) -> np.ndarray:
    """Apply the named steps to an H×W bool mask, in the order of STEPS."""
    if not names:
        return mask
    region = region_of(mask)
    mask, cropped = mask.copy(), np.ascontiguousarray(mask[region])
    for name, step in STEPS.items():
        if name in names:
            cropped = step(cropped)
    mask[region] = cropped
    return mask


def region_of(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the bounding box of an H×W bool mask, plus 1 pixel on each side.

    No step changes a pixel outside this box, so steps run on the box alone, which is faster.
    """
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)


# ---------------------------------------------------------------- steps


def remove_small_components(mask: np.ndarray) -> np.ndarray:
    """Remove 8-connected components below MIN_COMPONENT_FRACTION of the mask's area."""
    labels, areas = _connected_components(mask)
    return mask & (areas >= MIN_COMPONENT_FRACTION * areas[1:].sum())[labels]


def keep_largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest 8-connected component, as an image shows one car."""
    labels, areas = _connected_components(mask)
    return labels == 1 + areas[1:].argmax() if len(areas) > 1 else mask


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill 4-connected parts of the background that do not touch the image's border."""
    outside = np.pad(mask.view(np.uint8), 1)
    cv2.floodFill(outside, None, (0, 0), 1)  # from the padding
    return mask | (outside[1:-1, 1:-1] == 0)


def _connected_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (H×W int32, 0 is the background) and the area of each label."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return labels, stats[:, cv2.CC_STAT_AREA]


Step = Callable[[np.ndarray], np.ndarray]
STEPS: dict[str, Step] = {
    "specks": remove_small_components,
    "largest": keep_largest_component,
    "fill": fill_holes,
}
