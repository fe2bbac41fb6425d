"""Pictures to look at: a mask over its photograph."""

import cv2
import numpy as np

RED, GREEN, BLUE = (255, 60, 60), (60, 220, 90), (70, 110, 255)


def overlay(image: np.ndarray, mask: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """H×W×3 uint8 RGB with the mask's outline in green; against a truth also its errors.

    Red: missed pixels. Blue: invented pixels.
    """
    picture = image.copy()
    if truth is not None:
        for wrong, colour in ((truth & ~mask, RED), (mask & ~truth, BLUE)):
            picture[wrong] = colour
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(image.shape[0] / 600))
    return cv2.drawContours(picture, contours, -1, GREEN, width)
