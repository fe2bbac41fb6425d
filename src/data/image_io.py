"""Read image files as arrays, rotated according to EXIF, and write arrays to image files."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from core.errors import InputError
from core.files import atomic_write
from data.exif import exif_orientation, turn_upright
from data.image_files import foreign_file_remedy, list_images, require_paths

# Exceptions that Pillow and OpenCV raise for files that are truncated, damaged or not images.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError)
DECODE_ERRORS += (struct.error, cv2.error)
FORMATS_READ = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # EPS would run a program
OPENCV_FORMATS = ("JPEG", "MPO", "PNG")  # decoded by OpenCV, which is faster than Pillow
MAX_PIXELS = 2**28  # a file of a few kB can declare more pixels than fit into memory
Image.MAX_IMAGE_PIXELS = None  # replaced by MAX_PIXELS
warnings.filterwarnings("ignore", module="PIL")  # about odd metadata; real problems raise errors
NEW_SUBFILE_TYPE, REDUCED_OR_MASK = 254, 1 | 4  # a tag of a TIFF's page, and two of its bits
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # another tag, and one of its values
PNG_END = b"IEND\xaeB`\x82"  # with its checksum; other data may follow
TO_OPENCV = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}  # by the number of channels
MAX_JPEG_SIDE = 65_500  # in pixels; a limit of OpenCV and libjpeg
MAX_12_BITS = 15  # largest upper byte of 16-bit values that use only 12 bits


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open a file with one picture, without decoding it.

    Errors here and in the with block become an InputError that names the file. Raises InputError
    also for a file with several pictures or more than MAX_PIXELS pixels.
    """
    try:
        # Not Image.open(path): Pillow 12.3 maps TIFFs into memory and garbles rotated ones.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS_READ) as image:
            width, height = image.size
            if height * width > MAX_PIXELS:
                raise InputError(
                    f"{path}: header declares {width}×{height} pixels, the limit is 2^28; "
                    "scale it down or cut it into tiles"
                )
            if (n_pictures := count_pictures(image)) > 1:
                fix = "ffmpeg -i <file> frame_%04d.png"
                if image.format == "TIFF":
                    fix = "magick '<file>[0]' page.tif"
                raise InputError(
                    f"{path}: contains {n_pictures} pictures; save the one you want, for example "
                    f"with `{fix}`"
                )
            is_inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
            if is_inverted and has_16_bits(image):  # Pillow inverts only 1 and 8 bits
                raise InputError(f"{path}: is a 16-bit TIFF in which 0 is white; invert it")
            yield image
    except DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.splitlines()[0].split(": '")[0].partition(" file <")[0]
        remedy = foreign_file_remedy(path) or _remedy(error)
        raise InputError(f"{path}: cannot be read as an image ({reason}){remedy}") from None


def count_pictures(image: Image.Image) -> int:
    """Return the number of frames or pages of a file.

    Counts only the first JPEG of an MPO. Does not count the reduced copies and transparency masks
    of a TIFF, such as a GeoTIFF.
    """
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return 1
    n_copies = 0
    if image.format == "TIFF":
        for page in range(1, image.n_frames):
            image.seek(page)
            n_copies += bool(image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & REDUCED_OR_MASK)
        image.seek(0)
    return image.n_frames - n_copies


def _remedy(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "; download it again, or save it as JPEG or PNG"
    return "" if getattr(error, "strerror", None) else "; download it again"


# ---------------------------------------------------------------- headers


def read_image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the upright image from the file's header."""
    with open_image(path) as image:
        width, height = image.size
        return (width, height) if exif_orientation(image) >= 5 else (height, width)


def read_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image, 1…8, from the file's header."""
    with open_image(path) as image:
        return exif_orientation(image)


# ---------------------------------------------------------------- images


def find_photographs(path: Path) -> list[Path]:
    """Return the image at `path`, or the images in the folder `path`, sorted by name.

    Raises InputError if there is none.
    """
    require_paths(path, remedy="; images= is one photograph or one folder")
    return list_images(path) if path.is_dir() else [path]


def read_image(path: Path) -> np.ndarray:
    """Read an image as H×W×3 uint8 RGB; an alpha channel is ignored.

    Raises InputError if the file is damaged or truncated, or if its pixel values use 32 bits or
    only 12 of 16 bits.
    """
    with open_image(path) as image:
        orientation, is_16_bit = exif_orientation(image), has_16_bits(image)
        require_8_or_16_bits(path, image)
        if image.format in OPENCV_FORMATS:
            pixels = _decode_by_opencv(path.read_bytes())
        elif image.mode.startswith("I;16"):  # convert() would clip the values
            pixels = np.dstack([(np.asarray(image) >> 8).astype(np.uint8)] * 3)
        else:
            pixels = np.asarray(image.convert("RGB"))
        if is_16_bit and not pixels.any():
            pixels = read_16_bits(path)[..., :3]
    if is_16_bit and 0 < pixels.max() <= MAX_12_BITS:
        raise InputError(
            f"{path}: its 16-bit values use 12 bits or fewer, so the image looks black; multiply "
            "them by 16, or save it with 8 bits"
        )
    return turn_upright(pixels, orientation)


def require_8_or_16_bits(path: Path, image: Image.Image) -> None:
    """Raise InputError for pixel values of 32 bits, whose range is unknown."""
    if image.mode in ("I", "F"):
        raise InputError(f"{path}: has values of 32 bits; save it with 8 or 16 bits")


def check_header(path: Path) -> None:
    """Raise InputError if the file's header shows that read_image() would fail.

    Decodes nothing.
    """
    with open_image(path) as image:
        require_8_or_16_bits(path, image)


def _decode_by_opencv(data: bytes) -> np.ndarray:
    """Decode a JPEG or PNG without rotating it.

    Raises ValueError if it is damaged or truncated. OpenCV does not report a truncated file.
    """
    is_jpeg = data.startswith(b"\xff\xd8")
    if not (_has_jpeg_end(data) if is_jpeg else PNG_END in data):
        raise ValueError("the file is truncated")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError("the file is damaged")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _has_jpeg_end(data: bytes) -> bool:
    """Whether an end marker follows the start of the first scan.

    The header before it may hold a thumbnail, which has an end marker as well. Phones append videos
    and other pictures after the marker.
    """
    position = 2
    while (marker := data[position : position + 2]).startswith(b"\xff") and marker != b"\xff\xda":
        length = 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if marker == b"\xff\xff" else length  # fill bytes may precede a marker
    return data.find(b"\xff\xd9", position) >= 0


def has_16_bits(image: Image.Image) -> bool:
    """Whether a file that is not decoded yet has 16 bits per channel.

    Pillow keeps only the upper 8 of them.
    """
    return ";16" in str(image.tile)


def read_16_bits(path: Path) -> np.ndarray:
    """Read a 16-bit file as H×W×4 uint8 RGBA.

    Takes the upper byte of each color value, or the lower byte if all upper bytes are 0. Does the
    same for the alpha channel, independently of the colors.
    """
    values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("an unsupported kind of 16-bit image")
    if values.ndim == 2:
        values = np.dstack([values] * 3)
    colors, alpha = _to_8_bits(values[..., 2::-1]), _to_8_bits(values[..., 3:])
    opaque = np.full((*values.shape[:2], 1), 255, np.uint8)
    return np.dstack([colors, alpha if alpha.size else opaque])


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    return (values if values.max(initial=0) < 256 else values >> 8).astype(np.uint8)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a uint8 image in the file format of the path's suffix.

    The image is gray H×W, RGB H×W×3 or RGBA H×W×4. An image that is too large for a JPEG is scaled
    down. Raises InputError if an image is too large for another format.
    """
    longest = max(image.shape[:2])
    if path.suffix == ".jpg" and longest > MAX_JPEG_SIDE:
        scale = MAX_JPEG_SIDE / longest
        width, height = (max(1, int(scale * side)) for side in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        print(f"{path}: scaled down to {width}×{height} pixels, as JPEGs cannot be larger")
    if image.ndim == 3:
        image = cv2.cvtColor(image, TO_OPENCV[image.shape[2]])
    encoded, data = cv2.imencode(path.suffix, image)
    if not encoded:
        height, width = image.shape[:2]
        raise InputError(f"{path}: {width}×{height} pixels are too large for {path.suffix}")
    with atomic_write(path) as tmp_path:
        tmp_path.write_bytes(data)
