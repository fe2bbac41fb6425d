"""Arrays to image files."""

from pathlib import Path

import cv2
import numpy as np

from core.errors import InputError
from core.files import atomic_write

CHANNEL_ORDER = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}  # RGB, RGBA → OpenCV's BGR, BGRA


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 gray H×W, RGB H×W×3 or RGBA H×W×4 in the file format of the path's suffix."""
    if image.ndim == 3:
        image = image[..., CHANNEL_ORDER[image.shape[2]]]
    encoded, data = cv2.imencode(path.suffix, image)
    if not encoded:
        height, width = image.shape[:2]
        raise InputError(f"{path}: {width}×{height} pixels are too large for {path.suffix}")
    with atomic_write(path, len(data)) as tmp_path:
        tmp_path.write_bytes(data)
