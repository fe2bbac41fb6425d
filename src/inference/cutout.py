"""Cutouts: soft alpha at the edge of a mask, clean colors there, and another background."""

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from core.errors import InputError
from data.classes import parse_color
from data.color_profile import convert_to_srgb
from data.image_io import read_image
from data.preprocess import Preprocessing, Size, letterbox_region

EDGE_WIDTH = 2  # of the soft edge on each side of the outline, in pixels of the network's input


def edge_radius(native_size: Size, preprocessings: Iterable[Preprocessing]) -> float:
    """Return the width in native pixels of the soft edge on each side of the outline.

    The width is EDGE_WIDTH pixels of the coarsest network's input, because a network locates the
    outline only to within a few of its input pixels.
    """
    scale = 1.0
    for preprocessing in preprocessings:
        rows, columns = letterbox_region(native_size, preprocessing)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        scale = max(scale, native_size[0] / height, native_size[1] / width)
    return EDGE_WIDTH * scale


def soft_alpha(
    probability: np.ndarray, mask: np.ndarray, threshold: float, radius: float
) -> np.ndarray:
    """Return the opacity of each pixel, H×W uint8: 255 inside the mask, 0 outside, with soft edges.

    On the outline the opacity follows the probability, and the threshold maps to one half. Over
    `radius` pixels on each side, it fades into the mask's 255 or 0.

    Args:
        probability: H×W float32 in [0, 1].
        mask: H×W bool.
        threshold: The threshold that produced the mask, above 0 and below 1.
        radius: Width of the soft edge on each side, in native pixels.
    """
    below = probability * np.float32(0.5 / threshold)
    above = 1 - (1 - probability) * np.float32(0.5 / (1 - threshold))
    opacity = np.where(probability < threshold, below, above)
    fade = np.minimum(_distance_to_outline(mask) / radius, 1)
    opacity += fade * (mask - opacity)
    return (opacity * 255).round().astype(np.uint8)


def _distance_to_outline(mask: np.ndarray) -> np.ndarray:
    """Return each pixel's distance to the outline, in pixels: H×W float32.

    The outline runs between pixels, so a pixel next to it has a distance of 0.5.
    """
    distances = [
        cv2.distanceTransform(side.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for side in (mask, ~mask)
    ]
    return np.maximum(*distances) - 0.5


def clean_edge_colors(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Remove the old background's color from the soft edge; return H×W×3 uint8 RGB.

    A pixel of opacity a becomes a · its color + (1 − a) · the nearest opaque color. Transparent
    pixels become black.
    """
    opaque = alpha == 255
    clean = np.where(alpha[..., None] > 0, image, 0)
    soft = (alpha > 0) & ~opaque
    if not opaque.any() or not soft.any():
        return clean
    _, labels = cv2.distanceTransformWithLabels(
        (~opaque).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    color_of_label = np.zeros((labels.max() + 1, 3), np.uint8)
    color_of_label[labels[opaque]] = image[opaque]
    opacity = alpha[soft, None] / 255
    nearest = color_of_label[labels[soft]]
    clean[soft] = (opacity * image[soft] + (1 - opacity) * nearest).round()
    return clean


# ---------------------------------------------------------------- another background


def read_background(background: str | os.PathLike, size: Size) -> np.ndarray:
    """Return a background of `size`, H×W×3 uint8 RGB, from a color or a picture file.

    A picture is scaled to cover `size` and cropped around its center. Raises InputError if
    `background` is neither a color (#rrggbb or a name) nor a picture file.
    """
    text = os.path.expanduser(background)
    if color := parse_color(text):
        return np.full((*size, 3), color, np.uint8)
    if not Path(text).is_file():
        raise InputError(
            f"background={text}: neither an existing picture file nor a color; write a color as "
            "'#ffffff' or as a name such as white"
        )
    picture = Image.fromarray(convert_to_srgb(Path(text), read_image(Path(text))))
    return np.asarray(ImageOps.fit(picture, size[::-1]))


def put_on_background(cutout: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Blend a cutout (H×W×4 RGBA) over a background (H×W×3 RGB), both uint8; return H×W×3 uint8.

    Computes a · object + (1 − a) · background on the sRGB values, without linearizing them.
    """
    opacity = cutout[..., 3:].astype(np.float32) / 255
    blended = opacity * cutout[..., :3] + (1 - opacity) * background
    return blended.round().astype(np.uint8)
