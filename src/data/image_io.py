"""Image, mask and label files to arrays, upright as their EXIF orientation demands."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core.errors import InputError
from data.image_files import foreign_file_remedy

# Exceptions that Pillow raises for files that are truncated, damaged or not images.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error)
FORMATS_READ = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # EPS would run a program
OPENCV_FORMATS = ("JPEG", "MPO", "PNG")  # decoded by OpenCV, which is faster than Pillow
MAX_PIXELS = 2**28  # a file of a few kB can declare more pixels than fit into memory
Image.MAX_IMAGE_PIXELS = None  # replaced by MAX_PIXELS
warnings.filterwarnings("ignore", module="PIL")  # on odd metadata; what matters is an error
EXIF_ORIENTATION = 0x0112
MAX_12_BITS = 15  # highest byte of 16-bit values of which only 12 bits are used
REDUCED_FLAGS = {n: getattr(cv2, f"IMREAD_REDUCED_COLOR_{n}") for n in (8, 4, 2)}


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """Open a file of one picture, not decoded yet. Errors here and in the with block become an
    InputError that names the file."""
    try:
        # Not Image.open(path): Pillow 12.3 garbles turned TIFFs that it maps into memory.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS_READ) as image:
            width, height = image.size
            if height * width > MAX_PIXELS:
                raise InputError(
                    f"{path}: header declares {width}×{height} pixels, the limit is 2^28"
                )
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise InputError(
                    f"{path}: contains {image.n_frames} pictures; save the one you want, for "
                    "example with `ffmpeg -i <file> frame_%04d.png`"
                )
            yield image
    except DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.splitlines()[0].split(": '")[0].partition(" file <")[0]
        remedy = foreign_file_remedy(path) or "; download it again"
        raise InputError(f"{path}: cannot be read as an image ({reason}){remedy}") from None


# ---------------------------------------------------------------- orientation


def read_image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the upright image from the file's header."""
    with _open_image(path) as image:
        width, height = image.size
        return (width, height) if _exif_orientation(image) >= 5 else (height, width)


def _exif_orientation(image: Image.Image) -> int:
    """Return 1…8, see _turn_upright. Pillow itself turns a TIFF upright."""
    exif = Image.Exif()
    if image.format != "TIFF":
        exif.load(image.info.get("exif"))  # image.getexif() would decode a whole PNG to find it
    orientation = exif.get(EXIF_ORIENTATION)
    return orientation if orientation in range(1, 9) else 1


def _turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Mirror and turn H×W or H×W×C pixels as the EXIF orientation demands."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])


# ---------------------------------------------------------------- images


def read_image(path: Path, min_size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image as H×W×3 uint8 RGB; an alpha channel is ignored.

    With `min_size` (h, w), a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, the smallest that is
    not below `min_size`. Raises InputError if the file is damaged or truncated.
    """
    with _open_image(path) as image:
        orientation, has_16_bits = _exif_orientation(image), ";16" in str(image.tile)
        if image.format in OPENCV_FORMATS:
            turned = min_size[::-1] if min_size and orientation >= 5 else min_size
            pixels = _decode_by_opencv(path.read_bytes(), image.size[::-1], turned)
        else:
            pixels = _to_rgb(image)
    if has_16_bits and 0 < pixels.max() <= MAX_12_BITS:
        raise InputError(
            f"{path}: its 16-bit values use 12 bits or fewer, so that it looks black; multiply "
            "them by 16, or save it with 8 bits"
        )
    return _turn_upright(pixels, orientation)


def _decode_by_opencv(
    data: bytes, size: tuple[int, int], min_size: tuple[int, int] | None
) -> np.ndarray:
    """Decode a JPEG or PNG of `size` (h, w), not turned. Raises ValueError if it is truncated,
    which OpenCV does not report."""
    is_jpeg = data.startswith(b"\xff\xd8")
    if not (_has_jpeg_end(data) if is_jpeg else b"IEND" in data[-4096:]):
        raise ValueError("the file is truncated")
    flag = cv2.IMREAD_COLOR
    if min_size and is_jpeg:
        downscale = min(side // least for side, least in zip(size, min_size, strict=True))
        flag = next((REDUCED_FLAGS[n] for n in REDUCED_FLAGS if n <= downscale), flag)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("the file is damaged")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _has_jpeg_end(data: bytes) -> bool:
    """Whether an end marker follows the first scan. Phones append videos and other pictures after
    it; the thumbnail before it has an end marker as well."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.find(b"\xff\xd9", position) >= 0


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise ValueError("values of 32 bits; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.dstack([gray] * 3)
    return np.asarray(image.convert("RGB"))


# ---------------------------------------------------------------- masks and labels


def read_mask(path: Path, threshold: int = 0) -> np.ndarray:
    """Read a mask as H×W bool: what a viewer shows in white, or in one other color, on black.

    The value of the object may be 1 as well as 255. If all that is visible has one color, the
    alpha channel is the mask. With `threshold` 1…255 the object is where the brightest channel
    reaches it. Raises InputError for files of more than two values, unless there is a threshold.
    """
    with _open_image(path) as image:
        orientation, pixels = _exif_orientation(image), _shown_pixels(image)
    is_gray = pixels.ndim == 2
    mask = _to_mask(path, pixels, threshold) if is_gray else _rgba_mask(path, pixels, threshold)
    return _turn_upright(mask, orientation)


def _shown_pixels(image: Image.Image) -> np.ndarray:
    """Return what a viewer shows: gray values H×W of any type, or H×W×4 uint8 RGBA."""
    if "transparency" not in image.info:
        if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
            return np.asarray(image)
        if image.mode == "P":
            palette = np.zeros((256, 3), np.uint8)
            colors = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette[: len(colors)] = colors
            if (palette == palette[:, :1]).all():
                return cv2.LUT(np.asarray(image), palette[:, 0])
    return np.asarray(image.convert("RGBA"))


def _to_mask(path: Path, values: np.ndarray, threshold: int) -> np.ndarray:
    """Convert H×W values, 0 for black, to bool; InputError for more than black and one other."""
    if threshold:
        full_scale = {"bool": 1, "uint16": 65535}.get(str(values.dtype), 255)
        return values >= threshold / 255 * full_scale
    mask = values != 0
    if mask.any() and np.count_nonzero(values == values.max()) != np.count_nonzero(mask):
        raise InputError(
            f"{path}: shows {len(np.unique(values))} values or colors; expected black and one "
            "other, the object; set mask_threshold=128 to read soft edges and lossy files"
        )
    return mask


def _rgba_mask(path: Path, rgba: np.ndarray, threshold: int) -> np.ndarray:
    """Convert H×W×4 to bool from the alpha channel if all visible colors are equal, from the colors
    if alpha is constant, else from both, which must agree."""
    colors, alpha = rgba.view("<u4")[..., 0] & 0xFFFFFF, rgba[..., 3]
    values = rgba[..., :3].max(axis=2) if threshold else colors
    if alpha.min() == alpha.max() > 0:
        return _to_mask(path, values, threshold)
    mask = _to_mask(path, alpha if threshold else alpha - alpha.min(), threshold)
    visible, hidden = colors[alpha > 0], colors[alpha == 0]
    if _is_constant(visible):
        agrees = visible.any() or _is_constant(hidden)
    else:
        shown = np.where(alpha > 0, values, 0)
        same = (shown >= threshold) == mask if threshold else shown == mask * shown.max()
        agrees = same.all()
    if not agrees:
        raise InputError(
            f"{path}: its colors and its alpha channel show different shapes; save it without "
            "alpha, or in one color"
        )
    return mask


def _is_constant(values: np.ndarray) -> bool:
    return not values.size or bool(values.min() == values.max())


def read_label_values(path: Path) -> np.ndarray:
    """Read the values of a label file as H×W integers; of a palette file, the indices."""
    with _open_image(path) as image:
        orientation = _exif_orientation(image)
        if image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16"):
            return _turn_upright(np.asarray(image), orientation)
        colors = np.asarray(image.convert("RGB"))
    values = colors[..., 0]
    if (colors != values[..., None]).any():
        raise InputError(f"{path}: shows colors; expected a gray or palette file of class values")
    return _turn_upright(values, orientation)
