"""What may be done to a mask after its threshold. Whether it is, out-of-fold scores decide.

A step takes the mask (H×W bool) and the levels it was cut from (H×W uint8, floor(256·probability))
and gives a mask; it gives back the very object it took where it changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inference.predictor import quantize_probability

MIN_COMPONENT_FRACTION = 2e-3  # of the mask's area: of a car on 1918×1280 some 30×30 pixels
MIN_HULL_LEVEL = (
    64  # the level from which a pixel of a roof may belong to the car: a probability of 1/4
)


def remove_small_components(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Remove components of less than SPECK of the mask."""
    labels, areas = _components(mask)
    small = areas < MIN_COMPONENT_FRACTION * areas[1:].sum()
    return mask & ~small[labels] if small[1:].any() else mask


def keep_largest_component(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Keep the largest component: there is one car."""
    labels, areas = _components(mask)
    return labels == 1 + areas[1:].argmax() if len(areas) > 2 else mask


def fill_holes(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Fill holes: background that cannot be reached from the image's edge."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=4)
    x, y, width, height = stats[:, :4].T
    inner = (x > 0) & (y > 0) & (x + width < mask.shape[1]) & (y + height < mask.shape[0])
    inner[0] = False  # label 0 is the mask itself
    return mask | inner[labels] if inner.any() else mask


def fill_roof_hull(mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
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
    added = inside.view(bool) & ~mask & (levels >= MIN_HULL_LEVEL)
    return mask | added if added.any() else mask


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels H×W int32 (0: background) and the area of each."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return labels, stats[:, cv2.CC_STAT_AREA]


Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
STEPS: dict[str, Step] = {
    "specks": remove_small_components,
    "largest": keep_largest_component,
    "fill": fill_holes,
    "hull": fill_roof_hull,
}


def changeable_region(levels: np.ndarray) -> tuple[slice, slice]:
    """The part of the image that steps can change, with a pixel around it: steps take less time."""
    x, y, width, height = cv2.boundingRect((levels >= MIN_HULL_LEVEL).view(np.uint8))
    return slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)


def apply_steps(mask: np.ndarray, levels: np.ndarray, names: list[str]) -> np.ndarray:
    """The mask after the named steps, in the order of STEPS."""
    if not names or not mask.any():
        return mask
    part = changeable_region(np.maximum(levels, mask.view(np.uint8) * 255))
    small = np.ascontiguousarray(mask[part])
    for name in STEPS:
        small = STEPS[name](small, levels[part]) if name in names else small
    mask = mask.copy()
    mask[part] = small
    return mask


@dataclass
class Binarizer:
    """How a probability becomes a mask, or classes."""

    threshold: float
    steps: list[str]  # see postprocess

    def mask(self, probability: Tensor) -> np.ndarray:
        """C×H×W probability → H×W bool of the one class, H×W uint8 of several."""
        if len(probability) > 1:
            return probability.argmax(0).to(torch.uint8).cpu().numpy()
        mask = to_host(probability[0] >= self.threshold)
        return (
            apply_steps(mask, quantize_probability(probability), self.steps) if self.steps else mask
        )


def to_host(mask: Tensor) -> np.ndarray:
    """H×W bool on any device → H×W bool in memory; from a GPU come bits, not bytes."""
    if mask.device.type == "cpu":
        return mask.numpy()
    bits = np.unpackbits(pack(mask).cpu().numpy(), count=mask.numel())
    return bits.view(bool).reshape(mask.shape)


def pack(mask: Tensor) -> Tensor:
    """Bool of any shape → uint8, eight pixels in each, the first one highest, as np.packbits."""
    flat = F.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8)
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=mask.device)
    return (flat * places).sum(1, dtype=torch.uint8)
