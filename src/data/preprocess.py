"""A photograph → what a network sees of it, and back."""

from typing import NamedTuple

import cv2
import numpy as np

from core.settings import Settings
from data.classes import IGNORE

Size = tuple[int, int]  # height, width
KMEANS_SAMPLES = 1000  # pixels that k-means looks at
COLOR_CELL = 8  # RGB steps within which colours share a centre


class Preprocessing(NamedTuple):
    """How images are prepared for a network."""

    size: Size | None  # None: as they are
    letterbox: bool = False  # keep proportions and fill the rest, instead of stretching
    n_colors: int = 0  # reduced to so many of its own colours; 0: all
    scaled_decode: bool = False  # a JPEG is decoded no larger than needed

    @property
    def min_decode_size(self) -> Size | None:
        """The size above which decoding need not go; None: the whole image."""
        return self.size if self.scaled_decode else None


def preprocessing_from(settings: Settings) -> Preprocessing:
    """What the network of these settings is trained on."""
    size = tuple(settings.size) if settings.size else None
    scaled = settings.jpeg_decode == "scaled" and settings.resize_mode == "stretch"
    return Preprocessing(size, settings.resize_mode == "letterbox", settings.reduce_colors, scaled)


def letterbox_region(native: Size, given: Preprocessing) -> tuple[slice, slice]:
    """The part of the prepared image that shows the photograph."""
    if not given.letterbox or given.size is None:
        return slice(None), slice(None)
    scale = min(side / full for side, full in zip(given.size, native, strict=True))
    sides = [max(1, round(full * scale)) for full in native]
    starts = [(side - part) // 2 for side, part in zip(given.size, sides, strict=True)]
    return tuple(slice(at, at + part) for at, part in zip(starts, sides, strict=True))


def preprocess_image(pixels: np.ndarray, given: Preprocessing) -> np.ndarray:
    """H×W×3 uint8 RGB → h×w×3 uint8 RGB; a letterbox is black."""
    small = _resize(pixels, given, None, 0)
    return reduce_colors(small, given.n_colors) if given.n_colors else small


def mask_to_soft_target(mask: np.ndarray, given: Preprocessing) -> np.ndarray:
    """H×W bool → h×w uint8: how much of each pixel the mask covers, 0…255."""
    return _resize(mask.astype(np.uint8) * 255, given, None, 0)


def resize_classes(label: np.ndarray, given: Preprocessing) -> np.ndarray:
    """H×W uint8 classes → h×w; of each pixel the class in its middle."""
    return _resize(label, given, cv2.INTER_NEAREST_EXACT, IGNORE)


def _resize(pixels: np.ndarray, given: Preprocessing, method: int | None, fill: int) -> np.ndarray:
    """Resize by `method`; None: by area where it shrinks, else linearly."""
    if given.size is None or pixels.shape[:2] == given.size:
        return pixels
    part = letterbox_region(pixels.shape[:2], given)
    box = np.full((*given.size, *pixels.shape[2:]), fill, np.uint8)
    height, width = box[part].shape[:2]
    if method is None:
        shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    small = cv2.resize(pixels, (width, height), interpolation=method)
    if small.shape == box.shape:
        return small
    box[part] = small
    return box


def reduce_colors(pixels: np.ndarray, colours: int) -> np.ndarray:
    """H×W×3 uint8 → the same with so many colours, the centres of k-means over 1,000 pixels.

    Each pixel takes the centre that is nearest to its cell of 8×8×8 colours: one look-up.
    """
    rng = np.random.default_rng(0)
    flat = pixels.reshape(-1, 3)
    sample = flat[rng.integers(0, len(flat), KMEANS_SAMPLES)].astype(np.float32)
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1.0)
    _, _, centres = cv2.kmeans(sample, colours, None, stop, 1, cv2.KMEANS_PP_CENTERS)
    steps = np.arange(COLOR_CELL // 2, 256, COLOR_CELL, dtype=np.float32)
    cells = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    nearest = ((centres**2).sum(1) - 2 * cells @ centres.T).argmin(1)  # |x − c|², less its |x|²
    palette = np.zeros((len(cells), 4), np.uint8)  # four bytes a colour: looked up as one number
    palette[:, :3] = centres.round()[nearest]
    red, green, blue = (plane.astype(np.uint16) for plane in cv2.split(pixels // COLOR_CELL))
    at = (red * len(steps) + green) * len(steps) + blue
    found = palette.view(np.uint32)[:, 0][at].view(np.uint8)
    return np.ascontiguousarray(found.reshape(*at.shape, 4)[..., :3])
