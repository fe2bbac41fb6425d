"""Pictures to look at: masks over photographs, errors in colour, what networks disagree on."""

import base64

import cv2
import numpy as np

from data import classes, image_io
from data.classes import ClassMap
from inference.postprocess import Binarizer
from inference.predictor import Prediction

FALSE_NEGATIVE_COLOR, OUTLINE_COLOR, FALSE_POSITIVE_COLOR = (
    (255, 60, 60),
    (60, 220, 90),
    (70, 110, 255),
)  # missed, outline, invented
MAX_ZOOM = 5  # a zoom shows at least a fifth of the frame's height


def draw_overlay(
    image: np.ndarray, mask: np.ndarray, truth: np.ndarray | None = None
) -> np.ndarray:
    """H×W×3 uint8 RGB with the mask's outline in green; against a truth also its errors.

    Red: missed pixels. Blue: invented pixels.
    """
    picture = image.copy()
    if truth is not None:
        for wrong, colour in (
            (truth & ~mask, FALSE_NEGATIVE_COLOR),
            (mask & ~truth, FALSE_POSITIVE_COLOR),
        ):
            picture[wrong] = colour
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(image.shape[0] / 600))
    return cv2.drawContours(picture, contours, -1, OUTLINE_COLOR, width)


def dim_gray(image: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 RGB without colour and half as bright: a ground for colours with a meaning."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 2, cv2.COLOR_GRAY2RGB)


def highlight_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 RGB: the mask's pixels as they are, the others dark and grey."""
    return np.where(mask[..., None], image, dim_gray(image) // 2)


def error_map(image: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 RGB: the grey photograph, missed pixels red and invented ones blue.

    Wrong regions grow by a pixel of the shrunken picture, or an edge would not be seen.
    """
    picture = dim_gray(image)
    kernel = np.ones((max(1, image.shape[0] // 320),) * 2, np.uint8)
    for wrong, colour in (
        (truth & ~mask, FALSE_NEGATIVE_COLOR),
        (mask & ~truth, FALSE_POSITIVE_COLOR),
    ):
        picture[cv2.dilate(wrong.view(np.uint8), kernel).view(bool)] = colour
    return picture


def error_map_multiclass(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 RGB: the grey photograph, wrong pixels red."""
    picture = dim_gray(image)
    picture[where] = FALSE_NEGATIVE_COLOR
    return picture


def largest_error_window(mask: np.ndarray, truth: np.ndarray) -> tuple[slice, slice]:
    """A window of the frame's proportions around the largest connected region of wrong pixels."""
    wrong = (mask ^ truth).view(np.uint8)
    height, width = wrong.shape
    _, _, stats, _ = cv2.connectedComponentsWithStats(wrong, connectivity=8)
    whole = (0, 0, width, height)
    x, y, w, h = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax(), :4] if len(stats) > 1 else whole
    part = min(1.0, max(1 / MAX_ZOOM, 1.3 * w / width, 1.3 * h / height))
    rows, columns = round(part * height), round(part * width)
    top = int(np.clip(y + h / 2 - rows / 2, 0, height - rows))
    left = int(np.clip(x + w / 2 - columns / 2, 0, width - columns))
    return slice(top, top + rows), slice(left, left + columns)


def zoom_on_error(image: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """h×w×3 uint8 RGB: the largest error from near, its colours translucent over the photograph."""
    part = largest_error_window(mask, truth)
    plain = np.ascontiguousarray(image[part])
    return cv2.addWeighted(plain, 0.55, draw_overlay(plain, mask[part], truth[part]), 0.45, 0)


def disagreement_heatmap(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 RGB: over the grey photograph, from nothing to yellow, how evenly networks are
    split. `share` is H×W in [0, 1]: the part of them that is of one opinion."""
    split = (4 * share * (1 - share) * 255).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(split, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return np.where(split[..., None] > 0, np.maximum(heat, dim_gray(image)), dim_gray(image))


def draw_legend(scheme: ClassMap) -> np.ndarray:
    """H×260×3 uint8 RGB: each class's colour with its name."""
    picture = np.full((28 * len(scheme.names) + 8, 260, 3), 255, np.uint8)
    for i, (name, colour) in enumerate(zip(scheme.names, scheme.colors, strict=True)):
        top = 8 + 28 * i
        picture[top : top + 20, 8:48] = colour
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(picture, f"{i} {name}", (58, top + 15), font, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return picture


def jpeg_data_uri(picture: np.ndarray, width: int) -> tuple[str, int, int]:
    """A JPEG at most `width` pixels wide that stands in the page itself; its width and height."""
    height, full = picture.shape[:2]
    width = min(width, full)
    size = (width, max(1, round(height * width / full)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode(), *size


def thumbnail(prediction: Prediction) -> np.ndarray:
    """At most 480 pixels wide, uint8 RGB: the mask's outline and its errors over the photograph, or
    the classes that are predicted."""
    mask, row = Binarizer(0.5, []).mask(prediction.probability), prediction.sample
    if row.class_map.is_binary:
        picture = draw_overlay(image_io.read_sample_image(row), mask, prediction.loaded.truth)
    else:
        picture = classes.colorize(mask, row.class_map)
    height, width = picture.shape[:2]
    small = (min(width, 480), height * min(width, 480) // width)
    return cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
