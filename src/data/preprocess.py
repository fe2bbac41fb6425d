"""Convert image and mask at native size to the network's input and target."""

from typing import NamedTuple

import cv2
import numpy as np

from core.settings import Settings
from data.classes import IGNORE

Size = tuple[int, int]  # height, width
# Part of the names of caches and unfinished predictions. Increase it if files yield other pixels.
VERSION = 3
KMEANS_SAMPLES = 1000  # pixels from which k-means finds the colors


class Preprocessing(NamedTuple):
    """How images are prepared for a network."""

    size: Size | None  # None: native size
    letterbox: bool = False  # keep the aspect ratio and pad, instead of stretching
    n_colors: int = 0  # colors of an image after reduce_colors; 0: off


def preprocessing_from(settings: Settings) -> Preprocessing:
    size = tuple(settings.size) if settings.size else None
    return Preprocessing(size, settings.resize_mode == "letterbox", settings.reduce_colors)


def letterbox_region(native_size: Size, preprocessing: Preprocessing) -> tuple[slice, slice]:
    """Return the rows and columns of the preprocessed image that contain the original image."""
    size = preprocessing.size or native_size
    if not preprocessing.letterbox:
        return slice(0, size[0]), slice(0, size[1])
    scale = min(side / native for side, native in zip(size, native_size, strict=True))
    inner = [max(1, round(native * scale)) for native in native_size]
    starts = [(side - length) // 2 for side, length in zip(size, inner, strict=True)]
    return tuple(slice(at, at + length) for at, length in zip(starts, inner, strict=True))


def preprocess_image(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Convert H×W×3 to h×w×3 uint8 RGB; a letterbox is padded with black."""
    resized = _resize(image, preprocessing, interpolation=None, fill=0)
    if preprocessing.n_colors:  # without the black of the letterbox
        region = letterbox_region(image.shape[:2], preprocessing)
        resized = resized.copy()
        resized[region] = reduce_colors(resized[region], preprocessing.n_colors)
    return resized


def preprocess_mask(mask: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Resize an H×W mask to the h×w uint8 target.

    A bool mask becomes the covered fraction of each pixel, 0…255. Class ids are sampled by nearest
    neighbor, and letterbox padding is IGNORE.
    """
    if mask.dtype == bool:
        return _resize(mask.astype(np.uint8) * 255, preprocessing, interpolation=None, fill=0)
    return _resize(mask, preprocessing, cv2.INTER_NEAREST_EXACT, IGNORE)


def _resize(
    pixels: np.ndarray, preprocessing: Preprocessing, interpolation: int | None, fill: int
) -> np.ndarray:
    """Resize H×W or H×W×C pixels to the network size; a letterbox is padded with `fill`.

    interpolation=None means area for an axis that shrinks and bilinear for one that grows.
    """
    size = preprocessing.size
    if size is None or pixels.shape[:2] == size:
        return pixels
    region = letterbox_region(pixels.shape[:2], preprocessing)
    canvas = np.full((*size, *pixels.shape[2:]), fill, np.uint8)
    height, width = canvas[region].shape[:2]
    if interpolation is None:
        shrunk = min(width, pixels.shape[1]), min(height, pixels.shape[0])
        pixels = cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA)
        interpolation = cv2.INTER_LINEAR
    resized = cv2.resize(pixels, (width, height), interpolation=interpolation)
    if resized.shape == canvas.shape:
        return resized
    canvas[region] = resized
    return canvas


def reduce_colors(image: np.ndarray, n_colors: int) -> np.ndarray:
    """Replace each pixel of an H×W×3 uint8 image with the nearest of `n_colors` colors.

    The colors are the centers of k-means over 1,000 random pixels. The result depends on the image
    alone.
    """
    from scipy.cluster.vq import vq  # imported here, as it takes half a second

    pixels = image.reshape(-1, 3).astype(np.float32)
    chosen = np.random.default_rng(0).integers(0, len(pixels), KMEANS_SAMPLES)
    cv2.setRNGSeed(0)
    # 20 iterations, or until no center moves by more than 1.
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1.0)
    _, _, centers = cv2.kmeans(
        pixels[chosen], n_colors, None, stop, attempts=1, flags=cv2.KMEANS_PP_CENTERS
    )
    nearest, _ = vq(pixels, centers)
    return centers.round().astype(np.uint8)[nearest].reshape(image.shape)
