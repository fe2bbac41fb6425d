"""The EXIF orientation of images, and turning pixels upright."""

import os
import struct
from contextlib import suppress

import numpy as np
from PIL import Image

EXIF_ORIENTATION = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1…8; see turn_upright().

    Returns 1 for a TIFF, because Pillow itself turns a TIFF upright.
    """
    exif = Image.Exif()
    if image.format != "TIFF":
        with suppress(SyntaxError, struct.error):  # a damaged header of an intact image
            data = image.info.get("exif")
            exif.load(_find_late_exif(image) if image.format == "PNG" and not data else data)
    orientation = exif.get(EXIF_ORIENTATION)
    return orientation if orientation in range(1, 9) else 1


def _find_late_exif(image: Image.Image) -> bytes | None:
    """Return the eXIf chunk after the pixels of a PNG, as ImageMagick writes it; None without one.

    Pillow would decode the image to find it.
    """
    file, position = image.fp, image.fp.tell()
    file.seek(len(PNG_SIGNATURE))
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"eXIf":
            break
        file.seek(length + 4, os.SEEK_CUR)  # the chunk and its checksum
    data = file.read(length) if len(header) == 8 else None
    file.seek(position)
    return data


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Mirror and turn H×W or H×W×C pixels as the EXIF orientation requires."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])
