"""Color profiles (ICC) of photographs."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from data.image_io import open_image

SRGB = ImageCms.createProfile("sRGB")
COLOR_SPACE = slice(16, 20)  # of a profile, a field of its header


def convert_to_srgb(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Convert H×W×3 uint8 pixels from the RGB profile of their file, such as Display P3, to sRGB.

    Returns the same pixels if the file has no RGB profile, or a damaged one.
    """
    with open_image(path) as image:
        data = image.info.get("icc_profile", b"")
    if data[COLOR_SPACE] != b"RGB ":
        return pixels
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return pixels
        return np.asarray(ImageCms.profileToProfile(Image.fromarray(pixels), profile, SRGB))
    except (ImageCms.PyCMSError, OSError):
        return pixels
