"""Classes of a dataset, and conversion between label files, class ids and colors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ImageColor

from core.errors import InputError

IGNORE = 255  # class id of pixels that are neither trained on nor scored


def parse_color(text: str) -> tuple[int, ...] | None:
    """Return the RGB values of a color such as #ff8000 or orange.

    Returns None if `text` is not a color, is out of range or has an opacity.
    """
    try:
        color = ImageColor.getrgb(text)
    except ValueError:
        return None
    return color if len(color) == 3 and max(color) <= 255 else None


@dataclass(frozen=True)
class ClassMap:
    """Classes of a dataset; a single name means binary segmentation against background."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]  # RGB of each class in pictures
    # Class (or IGNORE) of each value, or palette index, of a label file; -1: invalid value.
    value_to_class: tuple[int, ...] = ()
    # Pixels farther than this RGB distance from every palette color are ignored; 0: off.
    max_color_distance: int = 0
    mask_threshold: int = 0  # see mask_io.read_mask
    # Label value of each color 0xRRGGBB, for label files in colors; see mask_io.read_label_values.
    color_values: tuple[tuple[int, int], ...] = ()

    @property
    def is_binary(self) -> bool:
        return len(self.names) == 1

    @property
    def valid_values(self) -> list[int]:
        """The values of a label file that have a class or are ignored."""
        return [value for value, class_id in enumerate(self.value_to_class) if class_id >= 0]

    @property
    def ignored_values(self) -> list[int]:
        """The values of a label file that are neither trained on nor scored."""
        return [value for value, class_id in enumerate(self.value_to_class) if class_id == IGNORE]

    @property
    def label_values(self) -> list[int]:
        """The value of each class in a label file; the first one if it has several."""
        return [self.value_to_class.index(i) for i in range(len(self.names))]

    @property
    def metadata(self) -> dict[str, Any]:
        """What is stored with the weights of a network that was trained on these classes."""
        return {
            "classes": len(self.names),
            "names": list(self.names),
            "label_values": {str(v): self.value_to_class[v] for v in self.valid_values},
            "label_colors": {f"#{color:06x}": value for color, value in self.color_values},
        }

    @property
    def has_background(self) -> bool:
        """Whether 0 is background rather than one of the classes of interest."""
        return self.is_binary or self.names[0] in ("background", "unlabeled")


def decode_values(values: np.ndarray, class_map: ClassMap, name: str) -> np.ndarray:
    """Convert the H×W values of label file `name`, 0…65535, to H×W uint8 class ids.

    Raise InputError at a value that the class map does not contain.
    """
    valid = class_map.valid_values
    invalid = values[~np.isin(values, valid)]
    if invalid.size:
        found, listed = invalid[0].item(), ", ".join(map(str, valid))
        raise InputError(f"{name}: contains the value {found}; expected only {listed}")
    return np.array(class_map.value_to_class).astype(np.uint8)[values.astype(np.uint8)]


def encode_values(classes: np.ndarray, class_map: ClassMap) -> np.ndarray:
    """Convert H×W uint8 class ids to the values of a label file, H×W uint8.

    This is the inverse of decode_values().
    """
    return np.array(class_map.label_values, np.uint8)[classes]


# JPEG compression moves 0.1% of a label's pixels this far from every color, but never 1%.
MAX_JPEG_COLOR_ERROR = 100
MAX_OUTLIER_FRACTION = 0.01


def decode_colors(
    label: np.ndarray, palette: np.ndarray, class_map: ClassMap, name: str
) -> np.ndarray:
    """Convert H×W×3 uint8 RGB label colors, as JPEG leaves them, to H×W uint8 class ids.

    Each pixel takes the nearest color of `palette`, K×3. If several are equally near, it takes the
    first one. `class_map.value_to_class` maps the index of the color to a class. Raises InputError
    if too many pixels of the label file `name` are far from every color.
    """
    from scipy.cluster.vq import vq  # imported here, as it takes half a second

    nearest, distance = vq(label.reshape(-1, 3).astype(np.float32), palette.astype(np.float32))
    distance = distance.reshape(label.shape[:2])
    is_outlier = distance > MAX_JPEG_COLOR_ERROR
    if is_outlier.mean() > MAX_OUTLIER_FRACTION:
        color = label[is_outlier][0].tolist()
        raise InputError(f"{name}: contains the color {color}, which is not a label color")
    classes = np.array(class_map.value_to_class, np.uint8)[nearest].reshape(distance.shape)
    if class_map.max_color_distance:
        classes[distance > class_map.max_color_distance] = IGNORE
    return classes


def colorize(classes: np.ndarray, class_map: ClassMap) -> np.ndarray:
    """Convert an H×W bool mask or uint8 class ids to H×W×3 uint8 RGB; ignored pixels are black."""
    lookup = np.zeros((256, 3), np.uint8)
    first = 1 if class_map.is_binary else 0
    lookup[first : first + len(class_map.colors)] = class_map.colors
    return lookup[classes.astype(np.uint8)]
