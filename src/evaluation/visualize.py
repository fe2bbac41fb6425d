"""Images to inspect, H×W×3 uint8 RGB: masks over photographs, errors, disagreement of networks."""

import base64

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data import classes
from data.classes import ClassMap
from data.datasets import read_sample_image
from inference.postprocess import Binarizer
from inference.predictor import Prediction

FALSE_NEGATIVE_COLOR = (255, 60, 60)
FALSE_POSITIVE_COLOR = (70, 110, 255)
OUTLINE_COLOR = (60, 220, 90)
MAX_ZOOM = 5
THUMBNAIL_WIDTH = 480  # pixels


def draw_overlay(
    image: np.ndarray, predicted: np.ndarray, true: np.ndarray | None = None
) -> np.ndarray:
    """Draw the outline of the predicted mask in green and, if the true mask is known, false
    negatives in red and false positives in blue."""
    overlay = image.copy()
    if true is not None:
        overlay[true & ~predicted] = FALSE_NEGATIVE_COLOR
        overlay[predicted & ~true] = FALSE_POSITIVE_COLOR
    mask, width = predicted.astype(np.uint8), max(1, round(image.shape[0] / 600))
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=width)
    # There is no outline along the image's border: erode() counts pixels outside as mask.
    overlay[inner < mask] = OUTLINE_COLOR
    return overlay


def dim_gray(image: np.ndarray) -> np.ndarray:
    """Return the image in gray at half brightness, as background for colors."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 2, cv2.COLOR_GRAY2RGB)


def highlight_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image with all pixels outside the H×W bool mask dark and gray."""
    return np.where(mask[..., None], image, dim_gray(image) // 2)


def error_map(image: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Draw false negatives in red and false positives in blue on the dimmed image, both dilated so
    that they stay visible after downscaling."""
    errors = dim_gray(image)
    kernel = np.ones((max(1, image.shape[0] // 320),) * 2, np.uint8)
    for wrong, color in (
        (true & ~predicted, FALSE_NEGATIVE_COLOR),
        (predicted & ~true, FALSE_POSITIVE_COLOR),
    ):
        errors[cv2.dilate(wrong.view(np.uint8), kernel).view(bool)] = color
    return errors


def largest_error_window(predicted: np.ndarray, true: np.ndarray) -> tuple[slice, slice]:
    """Return (rows, columns) of a window around the largest connected region of wrong pixels.

    The window has the image's aspect ratio and at least 1/MAX_ZOOM of its height.
    """
    wrong = (predicted ^ true).view(np.uint8)
    height, width = wrong.shape
    _, _, stats, _ = cv2.connectedComponentsWithStats(wrong, connectivity=8)
    x, y, w, h = 0, 0, width, height
    if len(stats) > 1:  # label 0 is the background
        x, y, w, h = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax(), :4]
    fraction = min(1.0, max(1 / MAX_ZOOM, 1.3 * w / width, 1.3 * h / height))
    n_rows, n_columns = round(fraction * height), round(fraction * width)
    top = int(np.clip(y + h / 2 - n_rows / 2, 0, height - n_rows))
    left = int(np.clip(x + w / 2 - n_columns / 2, 0, width - n_columns))
    return slice(top, top + n_rows), slice(left, left + n_columns)


def zoom_on_error(image: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Crop the image around the largest error, with translucent colors."""
    window = largest_error_window(predicted, true)
    crop = np.ascontiguousarray(image[window])
    overlay = draw_overlay(crop, predicted[window], true[window])
    return cv2.addWeighted(crop, 0.55, overlay, 0.45, 0)


def disagreement_heatmap(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Draw how evenly the members of an ensemble are divided, on the dimmed image.

    Yellow marks pixels on which the members are divided in half. `share`, H×W in [0, 1], is the
    fraction of members, by weight, that predict foreground (one class) or the class of the ensemble
    (several classes).
    """
    division = (4 * share * (1 - share) * 255).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(division, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    background = dim_gray(image)
    return np.where(division[..., None] > 0, np.maximum(heat, background), background)


def draw_legend(class_map: ClassMap) -> np.ndarray:
    """Draw color, label value and name of each class, as wide as the longest name.

    The font has Latin letters only.
    """
    font = ImageFont.load_default(16)
    values = class_map.label_values
    texts = [f"{value} {name}" for value, name in zip(values, class_map.names, strict=True)]
    width = 58 + int(max(map(font.getlength, texts))) + 16
    legend = Image.new("RGB", (width, 28 * len(texts) + 8), "white")
    draw = ImageDraw.Draw(legend)
    for i, (text, color) in enumerate(zip(texts, class_map.colors, strict=True)):
        top = 8 + 28 * i
        draw.rectangle((8, top, 47, top + 19), fill=color)
        draw.text((58, top + 10), text, "black", font, anchor="lm")
    return np.array(legend)


def shrink(image: np.ndarray) -> np.ndarray:
    """Downscale an image to at most THUMBNAIL_WIDTH pixels, keeping its aspect ratio."""
    height, width = image.shape[:2]
    new_width = min(THUMBNAIL_WIDTH, width)
    size = (new_width, max(1, round(height * new_width / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def jpeg_data_uri(image: np.ndarray) -> tuple[str, int, int]:
    """Return the image, shrunk, as a JPEG data URI, and its width and height."""
    small = shrink(image)
    _, jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return uri, small.shape[1], small.shape[0]


def draw_batch(images: Tensor, targets: Tensor, class_map: ClassMap) -> np.ndarray:
    """Draw the first 16 images of a training batch with their targets, four in a row.

    images: uint8 B×3×h×w. targets: uint8 B×1×h×w. One class is drawn by darkening everything else,
    several classes are drawn in color over the image.
    """
    pictures = []
    for image, target in zip(
        images[:16].movedim(1, 3).numpy(), targets[:16, 0].numpy(), strict=True
    ):
        if class_map.is_binary:
            picture = highlight_mask(image, target > 127)
        else:
            picture = cv2.addWeighted(image, 0.5, classes.colorize(target, class_map), 0.5, 0)
        pictures.append(shrink(picture))
    columns = min(4, len(pictures))
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % columns)
    rows = [np.hstack(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]
    return np.vstack(rows)


def thumbnail(prediction: Prediction) -> np.ndarray:
    """Draw a prediction, at most THUMBNAIL_WIDTH pixels wide.

    One class: outline and errors of the mask over the image. Several classes: class ids in color.
    """
    sample, predicted = prediction.sample, Binarizer(0.5, [])(prediction.probability)
    if sample.class_map.is_binary:
        image = draw_overlay(read_sample_image(sample), predicted, prediction.loaded.mask)
    else:
        image = classes.colorize(predicted, sample.class_map)
    return shrink(image)
