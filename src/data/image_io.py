"""Files → pixels: photographs and what their labels say."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core.errors import InputError
from data import classes
from data.sample import Sample

# What Pillow raises on files that are cut off, altered, or never were images.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error)
# What stands near the end of a whole file. Of one that breaks off, OpenCV gives the upper part
# over grey, and no error.
END_MARKERS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}
MAX_PIXELS = 2**28  # pixels; a file of a few kB may claim more than fit any memory
Image.MAX_IMAGE_PIXELS = None  # that is checked here
EXIF_TRANSPOSED = {5, 6, 7, 8}  # values of the EXIF tag Orientation, 0x0112


def read_image_size(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """(height, width) as the image is shown, from the header of the file, or of its `data`; nothing
    is decoded."""
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            return _size_after_exif(image, path)
    except DECODE_ERRORS as error:
        raise _unreadable_error(path, error) from None


def _size_after_exif(image: Image.Image, path: Path) -> tuple[int, int]:
    (width, height), exif = image.size, Image.Exif()
    if height * width > MAX_PIXELS:
        raise InputError(f"{path}: claims {width}×{height} pixels, 2²⁸ are allowed; cut it up")
    exif.load(image.info.get("exif"))  # image.getexif() decodes a whole PNG to find it
    return (width, height) if exif.get(0x0112) in EXIF_TRANSPOSED else (height, width)


def _unreadable_error(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: cannot be read as an image ({_short_reason(error)}); get the file again"
    )


def read_sample_image(row: Sample, enough: tuple[int, int] | None = None) -> np.ndarray:
    """The row's image, H×W×3 uint8 RGB; where so many pixels are `enough` (h, w), a JPEG is
    decoded at a half, a quarter or an eighth, as far as it stays above that."""
    if row.dataset_format == "pairs":
        image = read_image(row.image, enough and (enough[0], enough[1] * 2))
        return image[:, : image.shape[1] // 2]
    return read_image(row.image, enough)


def read_native_size(row: Sample) -> tuple[int, int]:
    """(height, width) of the row's image, from the file's header."""
    height, width = read_image_size(row.image)
    return (height, width // 2) if row.dataset_format == "pairs" else (height, width)


def read_sample_mask(row: Sample) -> np.ndarray:
    """The row's label, H×W: bool where there is one class, else uint8 classes and IGNORE."""
    if row.dataset_format == "carvana":
        return read_mask(row.mask)
    if row.dataset_format == "pairs":
        label = read_image(row.mask)
        classes = classes.decode_colors(
            label[:, label.shape[1] // 2 :], row.class_map, str(row.mask)
        )
    else:
        classes = classes.decode_values(read_label_values(row.mask), row.class_map, str(row.mask))
    return classes == 1 if row.class_map.is_binary else classes


REDUCED_FLAGS = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


def read_image(path: Path, enough: tuple[int, int] | None = None) -> np.ndarray:
    """H×W×3 uint8 RGB, turned as EXIF says; of a JPEG smaller, but not below `enough` (h, w)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable_error(path, error) from None
    native = read_image_size(path, data)
    end = next((end for start, end in END_MARKERS.items() if data.startswith(start)), b"")
    image = None
    if data.startswith(b"GIF8"):  # among the pets some are, whatever their name says
        image = _decode_gif(data)
    elif end in data[-4096:]:
        flag = cv2.IMREAD_COLOR
        if enough and data.startswith(b"\xff\xd8"):
            times = min(side // less for side, less in zip(native, enough, strict=True))
            flag = next((REDUCED_FLAGS[n] for n in REDUCED_FLAGS if n <= times), flag)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise InputError(f"{path}: cannot be decoded as an image; get the file again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_gif(data: bytes) -> np.ndarray | None:
    """H×W×3 uint8 BGR of a GIF's first picture; None where it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))[..., ::-1]
    except DECODE_ERRORS:
        return None


def read_mask(path: Path) -> np.ndarray:
    """H×W bool: value > 0, whether the file says 0/1 or 0/255. A third value is an InputError."""
    values = read_label_values(path)
    mask = values > 0
    top = values.max()
    if top > 0 and np.count_nonzero(values == top) != np.count_nonzero(mask):
        raise InputError(f"{path}: a mask holds 0 and one other value, this one holds more")
    return mask


def read_label_values(path: Path) -> np.ndarray:
    """H×W uint8 (or bool): the values that a label file holds, its palette left aside."""
    try:
        image = Image.open(path)
    except DECODE_ERRORS as error:
        raise _unreadable_error(path, error) from None
    try:
        with image:
            _size_after_exif(image, path)
            return np.asarray(image if image.mode in ("1", "L", "P") else image.convert("L"))
    except DECODE_ERRORS as error:
        raise InputError(
            f"{path}: cannot be read as a mask ({_short_reason(error)}); make it again"
        ) from None


def _short_reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0].split(": '")[0]


def check_sizes(rows: list[Sample]) -> set[tuple[int, int]]:
    """The sizes (h, w) there are; InputError at the first file that is no image, or mask of
    another size than its image."""
    sizes = set()
    for row in rows:
        image = read_image_size(row.image)
        if row.dataset_format == "pairs":
            if image[1] != 2 * image[0]:
                raise InputError(
                    f"{row.image}: is {image[1]}×{image[0]}, not twice as wide as high"
                )
            sizes.add((image[0], image[0]))
            continue
        mask = read_image_size(row.mask)
        if image != mask:
            raise InputError(
                f"{row.mask}: is {mask[1]}×{mask[0]} but {row.image.name} is {image[1]}×{image[0]}"
            )
        sizes.add(image)
    return sizes
