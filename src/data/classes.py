"""What the pixels of a label mean: classes with their names and colours, and how they are told."""

from dataclasses import dataclass

import numpy as np

from core.errors import InputError
from core.settings import Settings

IGNORE = 255  # a pixel of no class: it is neither trained on nor scored


@dataclass(frozen=True)
class ClassMap:
    """The classes that a data set's labels tell apart. One class: it, against background."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]  # RGB, for pictures
    value_to_class: tuple[
        int, ...
    ] = ()  # what a file's values 0, 1, … mean: a class or IGNORE; -1: wrong
    max_color_distance: int = (
        0  # RGB distance from every colour beyond which a pixel is ignored; 0: none
    )

    @property
    def is_binary(self) -> bool:
        """Whether there is one class, told by one logit."""
        return len(self.names) == 1

    @property
    def has_background(self) -> bool:
        """Whether 0 stands for what is of no interest, rather than for a class as any other."""
        return self.is_binary or self.names[0] in ("background", "unlabeled")


# The official table of Cityscapes (Cordts et al. 2016, arXiv:1604.01685, and cityscapesScripts):
# name, RGB, the number among the 19 classes that are evaluated. The id is the place in the list.
_VOID = IGNORE
CITYSCAPES_CLASSES = [
    ("unlabeled", (0, 0, 0), _VOID),
    ("ego vehicle", (0, 0, 0), _VOID),
    ("rectification border", (0, 0, 0), _VOID),
    ("out of roi", (0, 0, 0), _VOID),
    ("static", (0, 0, 0), _VOID),
    ("dynamic", (111, 74, 0), _VOID),
    ("ground", (81, 0, 81), _VOID),
    ("road", (128, 64, 128), 0),
    ("sidewalk", (244, 35, 232), 1),
    ("parking", (250, 170, 160), _VOID),
    ("rail track", (230, 150, 140), _VOID),
    ("building", (70, 70, 70), 2),
    ("wall", (102, 102, 156), 3),
    ("fence", (190, 153, 153), 4),
    ("guard rail", (180, 165, 180), _VOID),
    ("bridge", (150, 100, 100), _VOID),
    ("tunnel", (150, 120, 90), _VOID),
    ("pole", (153, 153, 153), 5),
    ("polegroup", (153, 153, 153), _VOID),
    ("traffic light", (250, 170, 30), 6),
    ("traffic sign", (220, 220, 0), 7),
    ("vegetation", (107, 142, 35), 8),
    ("terrain", (152, 251, 152), 9),
    ("sky", (70, 130, 180), 10),
    ("person", (220, 20, 60), 11),
    ("rider", (255, 0, 0), 12),
    ("car", (0, 0, 142), 13),
    ("truck", (0, 0, 70), 14),
    ("bus", (0, 60, 100), 15),
    ("caravan", (0, 0, 90), _VOID),
    ("trailer", (0, 0, 110), _VOID),
    ("train", (0, 80, 100), 16),
    ("motorcycle", (0, 0, 230), 17),
    ("bicycle", (119, 11, 32), 18),
]
CITYSCAPES_COLORS = np.array([colour for _, colour, _ in CITYSCAPES_CLASSES])
PET_COLOR, BACKGROUND_COLOR, BORDER_COLOR = (240, 150, 40), (40, 60, 90), (240, 240, 240)


def carvana_class_map(settings: Settings) -> ClassMap:
    """One class; anything above 0 in a mask."""
    return ClassMap(("car",), ((60, 220, 90),))


def cityscapes_class_map(settings: Settings) -> ClassMap:
    """The 34 ids, or the 19 classes that are evaluated, the rest ignored."""
    if settings.cityscapes_classes == 34:
        names, colours = zip(
            *((name, colour) for name, colour, _ in CITYSCAPES_CLASSES), strict=True
        )
        return ClassMap(names, colours, tuple(range(34)), settings.label_color_tolerance)
    kept = [(name, colour) for name, colour, train_id in CITYSCAPES_CLASSES if train_id != _VOID]
    names, colours = zip(*kept, strict=True)
    return ClassMap(
        names, colours, tuple(t for _, _, t in CITYSCAPES_CLASSES), settings.label_color_tolerance
    )


def pets_class_map(settings: Settings) -> ClassMap:
    """Trimaps hold 1 pet, 2 background, 3 border; `border` says what the third counts as."""
    if settings.trimap_border in ("pet", "background"):
        return ClassMap(("pet",), (PET_COLOR,), (-1, 1, 0, int(settings.trimap_border == "pet")))
    names, colours = ("background", "pet", "border"), (BACKGROUND_COLOR, PET_COLOR, BORDER_COLOR)
    if settings.trimap_border == "ignore":
        return ClassMap(names[:2], colours[:2], (-1, 1, 0, IGNORE))
    return ClassMap(names, colours, (-1, 1, 0, 2))


CLASS_MAPS = {
    "carvana": carvana_class_map,
    "pairs": cityscapes_class_map,
    "cityscapes": cityscapes_class_map,
    "pets": pets_class_map,
}


def get_class_map(settings: Settings) -> ClassMap:
    """The classes of the data set that the settings name."""
    return CLASS_MAPS[settings.dataset_format](settings)


# ---------------------------------------------------------------- values and colours → classes


def decode_values(values: np.ndarray, scheme: ClassMap, name: str) -> np.ndarray:
    """H×W uint8 as in the file → H×W uint8 classes; InputError at a value that means nothing."""
    table = np.full(256, -1, np.int16)
    table[: len(scheme.value_to_class)] = scheme.value_to_class
    classes = table[values.astype(np.uint8)]
    if classes.min(initial=0) < 0:
        wrong = int(values[classes < 0][0])
        known = ", ".join(str(v) for v, c in enumerate(scheme.value_to_class) if c >= 0)
        raise InputError(f"{name}: holds the value {wrong}; labels here hold {known}")
    return classes.astype(np.uint8)


# Of each of the 2^24 colours the nearest id and, times 256, its distance rounded up plus 1; 0 where
# it has not been seen yet. Labels hold few colours, so most are found by one look-up.
NEAREST = np.zeros(2**24, np.uint16)
MAX_JPEG_COLOR_ERROR, MAX_OUTLIER_FRACTION = (
    100,
    0.01,
)  # JPEG brings 0.1% of a label's pixels so far from every colour, not 1%


def decode_colors(label: np.ndarray, scheme: ClassMap, name: str) -> np.ndarray:
    """H×W×3 uint8 RGB of Cityscapes' colours, perhaps blurred by JPEG → H×W uint8 classes.

    Each pixel takes the nearest of the 34 colours, of equal ones the first; then what its id means.
    """
    red, green, blue = np.moveaxis(label.astype(np.uint32), 2, 0)
    colour = red << 16 | green << 8 | blue
    found = NEAREST[colour]
    if not found.all():
        _add_nearest_colors(np.unique(colour[found == 0]))
        found = NEAREST[colour]
    distance = (found >> 8) - 1
    if np.mean(distance > MAX_JPEG_COLOR_ERROR) > MAX_OUTLIER_FRACTION:
        wrong = label[distance > MAX_JPEG_COLOR_ERROR][0].tolist()
        raise InputError(f"{name}: holds the colour {wrong}, which Cityscapes' labels do not have")
    classes = np.array(scheme.value_to_class, np.uint8)[found & 255]
    if scheme.max_color_distance:
        classes[distance > scheme.max_color_distance] = IGNORE
    return classes


def _add_nearest_colors(colours: np.ndarray) -> None:
    """As |x − c|² = |x|² − 2·x·c + |c|², one matrix product finds the nearest, exactly."""
    points = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.int64)
    squares = (
        (points**2).sum(axis=1)[:, None]
        - 2 * points @ CITYSCAPES_COLORS.T
        + (CITYSCAPES_COLORS**2).sum(axis=1)
    )
    ids = squares.argmin(axis=1)
    distance = np.ceil(np.sqrt(squares[np.arange(len(ids)), ids])).astype(np.int64)
    NEAREST[colours] = ids | np.minimum(distance + 1, 255) << 8


def colorize(classes: np.ndarray, scheme: ClassMap) -> np.ndarray:
    """H×W classes (uint8, or bool for one class) → H×W×3 uint8 RGB; ignored pixels are black."""
    table = np.zeros((256, 3), np.uint8)
    first = 1 if scheme.is_binary else 0
    table[first : first + len(scheme.colors)] = scheme.colors
    return table[classes.astype(np.uint8)]
