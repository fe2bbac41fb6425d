"""Image and label files to arrays."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core.errors import InputError

# Exceptions that Pillow raises for files that are truncated, damaged or not images.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error)
# Magic bytes → end marker of a complete file. OpenCV decodes truncated files without an error and
# fills the rest with gray.
END_MARKERS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}
MAX_PIXELS = 2**28  # a file of a few kB can declare more pixels than fit into memory
Image.MAX_IMAGE_PIXELS = None  # replaced by MAX_PIXELS
EXIF_TRANSPOSED = {5, 6, 7, 8}  # values of the EXIF tag Orientation that swap height and width
EXIF_ORIENTATION = 0x0112
REDUCED_FLAGS = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


def read_image_size(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """Return (height, width) after EXIF rotation from the header of a file, or of its `data`;
    no pixel is decoded."""
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            return _size_after_exif(image, path)
    except DECODE_ERRORS as error:
        raise _unreadable_error(path, error) from None


def _size_after_exif(image: Image.Image, path: Path) -> tuple[int, int]:
    (width, height), exif = image.size, Image.Exif()
    if height * width > MAX_PIXELS:
        raise InputError(f"{path}: header declares {width}×{height} pixels, the limit is 2^28")
    exif.load(image.info.get("exif"))  # image.getexif() would decode a whole PNG to find it
    return (width, height) if exif.get(EXIF_ORIENTATION) in EXIF_TRANSPOSED else (height, width)


def _unreadable_error(path: Path, error: Exception, kind: str = "an image") -> InputError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    reason = reason.splitlines()[0].split(": '")[0]
    return InputError(f"{path}: cannot be read as {kind} ({reason}); download it again")


def read_image(path: Path, min_size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image as H×W×3 uint8 RGB, rotated by its EXIF orientation.

    With `min_size` (h, w), a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, the smallest that is
    not below `min_size`. Raise InputError if the file is damaged or truncated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable_error(path, error) from None
    native_size = read_image_size(path, data)
    end_marker = next((end for start, end in END_MARKERS.items() if data.startswith(start)), b"")
    image = None
    if data.startswith(b"GIF8"):  # some ".jpg" files of Oxford-IIIT Pet are GIFs
        image = _decode_gif(data)
    elif end_marker in data[-4096:]:
        flag = cv2.IMREAD_COLOR
        if min_size and data.startswith(b"\xff\xd8"):
            downscale = min(
                side // least for side, least in zip(native_size, min_size, strict=True)
            )
            flag = next((REDUCED_FLAGS[n] for n in REDUCED_FLAGS if n <= downscale), flag)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise InputError(f"{path}: cannot be decoded as an image; download it again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_gif(data: bytes) -> np.ndarray | None:
    """Decode the first frame of a GIF as H×W×3 uint8 BGR; return None if that fails."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))[..., ::-1]
    except DECODE_ERRORS:
        return None


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as H×W bool: value > 0, for files of 0/1 as well as 0/255.

    Raise InputError if the file contains more than two values.
    """
    values = read_label_values(path)
    mask = values > 0
    highest = values.max()
    if highest > 0 and np.count_nonzero(values == highest) != np.count_nonzero(mask):
        raise InputError(f"{path}: expected a mask of 0 and one other value, found more values")
    return mask


def read_label_values(path: Path) -> np.ndarray:
    """Read the values of a label file as H×W uint8 (or bool); of a palette file, the indices."""
    try:
        image = Image.open(path)
    except DECODE_ERRORS as error:
        raise _unreadable_error(path, error) from None
    try:
        with image:
            _size_after_exif(image, path)
            return np.asarray(image if image.mode in ("1", "L", "P") else image.convert("L"))
    except DECODE_ERRORS as error:
        raise _unreadable_error(path, error, "a mask") from None
