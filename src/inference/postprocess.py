"""From probability to mask: the threshold and post-processing steps, or argmax of several classes.

A step takes a mask (H×W bool) and the levels of its probability (H×W uint8, floor(256·p)) and
returns the changed mask. Whether a step is used is decided in evaluation/postprocess_choice.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from inference.combine import quantize_probability

MIN_COMPONENT_FRACTION = 2e-3  # of the mask's area: for a car on 1918×1280, about 30×30 pixels
MIN_HULL_LEVEL = 64  # probability 1/4: the lowest at which a pixel of the roof may be added


@dataclass
class Binarizer:
    """Converts a probability to a mask (binary) or a class map (several classes)."""

    threshold: float
    steps: list[str]  # names of STEPS

    def __call__(self, probability: Tensor) -> np.ndarray:
        """Convert a C×H×W probability to an H×W bool mask if C is 1, else to uint8 class ids."""
        return self.finish({name: x.cpu() for name, x in self.reduce(probability).items()})

    def reduce(self, probability: Tensor) -> dict[str, Tensor]:
        """Return what finish() needs, computed on the device of the probability."""
        if len(probability) > 1:
            return {"mask": probability.argmax(0).to(torch.uint8)}
        mask = {"mask": probability[0] >= self.threshold}
        return mask | {"levels": quantize_probability(probability)} if self.steps else mask

    def finish(self, values: dict[str, Tensor]) -> np.ndarray:
        """Return the mask or class map; `values` on the host."""
        mask = values["mask"].numpy()
        if not self.steps or mask.dtype != bool:
            return mask
        return apply_steps(mask, values["levels"].numpy(), self.steps)


def apply_steps(mask: np.ndarray, levels: np.ndarray, names: list[str]) -> np.ndarray:
    """Apply the named steps to the mask, in the order of STEPS."""
    if not mask.any():
        return mask
    region = changeable_region(mask | (levels >= MIN_HULL_LEVEL))
    mask, cropped = mask.copy(), np.ascontiguousarray(mask[region])
    for name, step in STEPS.items():
        if name in names:
            cropped = step(cropped, levels[region])
    mask[region] = cropped
    return mask


def changeable_region(candidates: np.ndarray) -> tuple[slice, slice]:
    """Return the bounding box of the H×W bool candidates, plus 1 pixel.

    No step changes a pixel outside the box, if the candidates include the mask and all levels
    from MIN_HULL_LEVEL; on a part of the image the steps take less time.
    """
    x, y, width, height = cv2.boundingRect(candidates.view(np.uint8))
    return slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)


# ---------------------------------------------------------------- steps


def remove_small_components(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Remove 8-connected components below MIN_COMPONENT_FRACTION of the mask's area."""
    labels, areas = _connected_components(mask)
    return mask & (areas >= MIN_COMPONENT_FRACTION * areas[1:].sum())[labels]


def keep_largest_component(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Keep the largest 8-connected component, as an image shows one car."""
    labels, areas = _connected_components(mask)
    return labels == 1 + areas[1:].argmax() if len(areas) > 1 else mask


def fill_holes(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Fill 4-connected parts of the background that do not touch the image's border."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=4)
    x, y, width, height = stats[:, :4].T
    hole = (x > 0) & (y > 0) & (x + width < mask.shape[1]) & (y + height < mask.shape[0])
    hole[0] = False  # label 0 is the mask itself
    return mask | hole[labels]


def fill_roof_hull(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Add pixels of the upper half that the mask's convex hull encloses, from MIN_HULL_LEVEL.

    Glass and roof racks, where the network is uncertain, belong to the car.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return mask
    left = mask[rows].argmax(axis=1)
    right = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    outline = np.concatenate([np.stack([left, rows], 1), np.stack([right, rows], 1)])
    hull = np.zeros(mask.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(outline.astype(np.int32)), 1)
    hull[(rows[0] + rows[-1]) // 2 :] = 0
    return mask | (hull.view(bool) & (levels >= MIN_HULL_LEVEL))


def _connected_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (H×W int32, 0 is the background) and the area of each label."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return labels, stats[:, cv2.CC_STAT_AREA]


Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
STEPS: dict[str, Step] = {
    "specks": remove_small_components,
    "largest": keep_largest_component,
    "fill": fill_holes,
    "hull": fill_roof_hull,
}
