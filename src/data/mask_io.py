"""Mask and label files to arrays, rotated according to EXIF."""

from pathlib import Path

import numpy as np
from PIL import Image

from core.errors import InputError
from data.classes import ClassMap
from data.exif import exif_orientation, turn_upright
from data.image_files import list_names
from data.image_io import has_16_bits, open_image, read_16_bits

GRAY_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
MAX_CLASS_VALUES = 64  # a mask with more values probably has soft edges
FULL_SCALES = (1, 255, 65535)  # of float, 8-bit and 16-bit files; beyond: the maximum


def read_mask(path: Path, threshold: int = 0) -> np.ndarray:
    """Read a mask as H×W bool: True where it is not black.

    The mask must show one color on black. The value of the object may be 1 as well as 255. If all
    visible pixels have one color, the alpha channel is the mask. In lossy files, and in files with
    more values, the object is where the brightest channel reaches `threshold`, 1…255. Without a
    threshold, more values raise InputError.
    """
    with open_image(path) as image:
        orientation, pixels = exif_orientation(image), _shown_pixels(path, image)
        lossy = is_lossy(path, image)
    is_gray = pixels.ndim == 2
    is_opaque = is_gray or pixels[..., 3].min() == 255
    if lossy and is_opaque and threshold > 1:  # noise on black may have a single value
        mask = (pixels if is_gray else pixels[..., :3].max(axis=2)) >= threshold
    else:
        mask = _to_mask(path, pixels, threshold) if is_gray else _rgba_mask(path, pixels, threshold)
    return turn_upright(mask, orientation)


def _shown_pixels(path: Path, image: Image.Image) -> np.ndarray:
    """Return what a viewer shows: gray values H×W of any type, or H×W×4 uint8 RGBA."""
    if "transparency" not in image.info:
        if image.mode in GRAY_MODES:
            return np.asarray(image)
        if image.mode == "P":
            colors = np.array(image.getpalette("RGB")).reshape(-1, 3)
            if (colors == colors[:, :1]).all():
                return np.asarray(image.convert("L"))
    return _to_rgba(path, image)


def _to_rgba(path: Path, image: Image.Image) -> np.ndarray:
    is_16_bit = has_16_bits(image)
    rgba = np.asarray(image.convert("RGBA"))  # fails if the file is truncated
    return read_16_bits(path) if is_16_bit else rgba


def _to_mask(path: Path, values: np.ndarray, threshold: int) -> np.ndarray:
    """Convert H×W values, 0 for black, to bool.

    If there are more values than black and one other, the object is where `threshold` is reached.
    Without a threshold, such values raise InputError.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{path}: contains NaN or inf; replace them with 0")
    mask, largest = values != 0, values.max()
    if threshold == 1 or not mask.any():
        return mask
    has_one_value = values[mask].min() == largest
    may_be_background = threshold and mask.all()  # of a lossy file, whose black is not exact
    if has_one_value and not may_be_background:
        return mask
    if threshold:
        full_scale = min((s for s in FULL_SCALES if largest <= s), default=largest)
        return values >= threshold / 255 * full_scale
    raise InputError(f"{path}: {_explain_values(np.unique(values))}")


def _explain_values(found: np.ndarray) -> str:
    """Return an error message for a mask that shows more than black and one other value.

    `found` are its sorted values. uint32 values are colors with the bytes R, G, B, 0.
    """
    is_gray = found.dtype != np.uint32
    names = [f"{v:g}" if is_gray else f"#{v.to_bytes(3, 'little').hex()}" for v in found.tolist()]
    classes = "list them in classes.csv if they are classes"
    soft = "set mask_threshold=128 to read soft edges and lossy files"
    if len(found) == 2:
        fix = "make the background black, or list both in classes.csv"
    elif len(found) > 256:
        fix = f"{soft}; if it is a photograph: train/ holds photographs, train_masks/ their masks"
    elif is_gray and 1 < found[-1] < 128:  # numbers of classes or of single objects
        fix = classes
        if found[0] == 0:
            fix += ", or set mask_threshold=1 if each object has its own number"
    elif is_gray and found[-2] < 32 and found[-1] == 255:  # classes, and a border to ignore
        fix = f"{classes}, as in `255,ignore,`"
    elif len(found) <= MAX_CLASS_VALUES:
        fix = f"{classes}, or {soft}"
    else:
        fix = soft
    return f"shows {list_names(names)}; expected black and one other, the object; {fix}"


def _rgba_mask(path: Path, rgba: np.ndarray, threshold: int) -> np.ndarray:
    """Convert H×W×4 RGBA to an H×W bool mask.

    If alpha is constant and above 0, the mask comes from the colors. If all visible colors are
    equal, it comes from alpha. Otherwise colors and alpha must show the same mask. Raises
    InputError if they disagree.
    """
    rgb, colors, alpha = rgba[..., :3], rgba.view("<u4")[..., 0] & 0xFFFFFF, rgba[..., 3]
    is_gray = (rgb == rgb[..., :1]).all()
    values = rgb.max(axis=2) if threshold or is_gray else colors
    if alpha.min() == alpha.max() > 0:
        return _to_mask(path, values, threshold)
    mask = _to_mask(path, alpha if threshold else alpha - alpha.min(), threshold)
    visible, hidden = colors[alpha > 0], colors[alpha == 0]
    if _is_constant(visible):
        agrees = visible.any() or _is_constant(hidden)
    else:
        shown = np.where(alpha > 0, values, 0)
        same = _to_mask(path, shown, threshold) if threshold else shown == shown.max()
        agrees = (same == mask).all()
    if not agrees:
        raise InputError(
            f"{path}: its colors and its alpha channel show different shapes; if it is a cutout, "
            "save its alpha channel as a gray image, else save it without alpha"
        )
    return mask


def _is_constant(values: np.ndarray) -> bool:
    return not values.size or bool(values.min() == values.max())


def read_label_values(path: Path, class_map: ClassMap) -> np.ndarray:
    """Read a label file as H×W integers: its gray values or its palette indices.

    If all colors of the file are in `class_map.color_values`, returns the values of these colors.
    Raises InputError for other colors. Raises InputError also for an ambiguous file: a palette file
    if the values of its colors differ from its indices, or if its colors are grays among
    `class_map.valid_values` that differ from its indices; an RGB or gray file if its colors are
    such grays that differ from the values of these colors.
    """
    with open_image(path) as image:
        if is_lossy(path, image):
            raise InputError(
                f"{path}: lossy compression changes the classes along their edges; save it as PNG"
            )
        orientation = exif_orientation(image)
        values = np.asarray(image) if image.mode in ("P", *GRAY_MODES) else None
        rgba = None if image.mode in GRAY_MODES else _to_rgba(path, image)
    if rgba is None:
        _check_gray_levels(path, values, class_map)
    elif values is None:
        values = _values_of_colors(path, _opaque_colors(path, rgba), class_map)
    else:
        _check_palette(path, rgba[..., :3], values, class_map)
    return turn_upright(values, orientation)


def _check_gray_levels(path: Path, values: np.ndarray, class_map: ClassMap) -> None:
    """Raise InputError if the levels of a gray file mean other classes as values than as colors."""
    if values.dtype == np.uint8:
        levels = np.flatnonzero(np.bincount(values.ravel())).astype(np.uint8)
        _values_of_colors(path, np.stack([levels] * 3, axis=-1), class_map)


def _opaque_colors(path: Path, rgba: np.ndarray) -> np.ndarray:
    """Return the RGB of an RGBA label file; raise InputError if colors are partly transparent.

    An image editor erases by alpha and keeps the colors. Transparent black is accepted.
    """
    rgb = rgba[..., :3]
    if rgb[rgba[..., 3] < 255].any():
        raise InputError(f"{path}: has transparent pixels with a color; save it without alpha")
    return rgb


def _check_palette(path: Path, rgb: np.ndarray, indices: np.ndarray, class_map: ClassMap) -> None:
    """Raise InputError if colors and indices of a palette file mean different classes.

    Such a file is ambiguous. Gray levels and indices differ if a program that writes GIFs has
    reordered the palette.
    """
    colors = np.zeros((256, 3), np.uint8)  # of each index: check it once, not for each pixel
    colors[indices] = rgb
    indices = np.flatnonzero(np.bincount(indices.ravel())).astype(np.uint8)
    rgb = colors[indices]
    if (rgb == indices[..., None]).all():  # a palette of all grays in order: the file is gray
        _check_gray_levels(path, indices, class_map)
        return
    if _are_gray_values(rgb, class_map) and (rgb[..., 0] != indices).any():
        raise InputError(
            f"{path}: its palette's gray levels and its palette indices mean different classes in "
            "classes.csv; save it as gray PNG"
        )
    values, _ = _look_up_colors(rgb, class_map)
    is_listed = values >= 0
    differs = is_listed & (values != indices)
    # A palette with colors of classes.csv at their values: other colors are not these classes.
    # Black does not show this, because it is at index 0 of most palettes.
    has_own_colors = (is_listed & ~differs & rgb.any(axis=-1)).any()
    of_classes = [v for _, v in class_map.color_values if v not in class_map.ignored_values]
    is_foreign = ~is_listed & np.isin(indices, of_classes)
    if differs.any() or (has_own_colors and is_foreign.any()):
        raise InputError(
            f"{path}: its palette's colors and its palette indices mean different classes in "
            "classes.csv; save it as RGB, in a PNG, or write its palette's colors into classes.csv"
        )


def _are_gray_values(rgb: np.ndarray, class_map: ClassMap) -> bool:
    """Whether all colors are gray, with levels that are values of the class map."""
    gray = rgb[..., 0]
    return (rgb == gray[..., None]).all() and np.isin(gray, class_map.valid_values).all()


def is_lossy(path: Path, image: Image.Image) -> bool:
    """Whether the file's compression changes pixels."""
    is_lossy_webp = image.format == "WEBP" and b"VP8L" not in path.read_bytes()
    is_jpeg_in_tiff = image.info.get("compression") in ("jpeg", "tiff_jpeg")
    return image.format in ("JPEG", "MPO") or is_lossy_webp or is_jpeg_in_tiff


def _look_up_colors(rgb: np.ndarray, class_map: ClassMap) -> tuple[np.ndarray, np.ndarray]:
    """Return the H×W values of the colors, −1 for unlisted colors, and the unlisted colors."""
    packed = rgb @ np.array([1 << 16, 1 << 8, 1])
    values = np.full(packed.shape, -1)
    for color, value in class_map.color_values:
        values[packed == color] = value
    return values, packed[values < 0]


def _values_of_colors(path: Path, rgb: np.ndarray, class_map: ClassMap) -> np.ndarray:
    """Return the H×W values of an RGB file.

    These are the values of its colors if the class map lists all of them, else its gray levels.
    Raises InputError for unlisted colors that are not gray, and for grays that mean other classes
    as gray levels than as colors.
    """
    values, unlisted = _look_up_colors(rgb, class_map)
    if not unlisted.size:
        if _are_gray_values(rgb, class_map) and (rgb[..., 0] != values).any():
            raise InputError(
                f"{path}: its grays mean different classes in classes.csv as values and as colors; "
                "choose other colors in classes.csv"
            )
        return values
    if (rgb == rgb[..., :1]).all():
        return rgb[..., 0]
    message = f"{path}: shows colors; expected a gray or palette file of class values"
    if class_map.color_values:
        listed = list_names([f"#{color:06x}" for color, _ in class_map.color_values])
        message += f", or only the colors of classes.csv, {listed}; found #{unlisted[0]:06x}"
    raise InputError(message)
