"""Conversion of label values and colors to class ids, and of class ids to colors."""

import numpy as np
import pytest
from conftest import REAL, needs_real_data

from core.errors import InputError
from core.settings import Settings
from data import image_io
from data.classes import IGNORE, colorize, decode_colors, decode_values
from data.formats.cityscapes import CITYSCAPES_COLORS, CITYSCAPES_LABELS, Cityscapes
from data.formats.pets import Pets

ALL_IDS = Cityscapes().make_class_map(Settings(cityscapes_classes=34))
EVALUATED = Cityscapes().make_class_map(Settings(cityscapes_classes=19))


def nearest_by_loop(label):
    """Return the index of the nearest color (the first of equally near ones) and its distance."""
    squared = [((label.astype(int) - color) ** 2).sum(-1) for color in CITYSCAPES_COLORS]
    return np.argmin(squared, axis=0), np.sqrt(np.min(squared, axis=0))


def noisy_label(seed):
    """Patches of label colors with noise, as JPEG compression leaves them."""
    rng = np.random.default_rng(seed)
    patches = CITYSCAPES_COLORS[rng.integers(0, 34, (6, 8))].repeat(5, 0).repeat(5, 1)
    return (patches + rng.normal(0, 12, patches.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_decode_colors_takes_the_nearest_color(seed):
    label = noisy_label(seed)
    nearest, _ = nearest_by_loop(label)
    classes = decode_colors(label, CITYSCAPES_COLORS, ALL_IDS, "x")
    assert classes.dtype == np.uint8 and np.array_equal(classes, nearest)


@pytest.mark.parametrize("tolerance", [5, 20])
def test_decode_colors_ignores_pixels_beyond_the_tolerance(tolerance):
    settings = Settings(cityscapes_classes=34, label_color_tolerance=tolerance)
    label = noisy_label(0)
    nearest, distance = nearest_by_loop(label)
    expected = np.where(distance > tolerance, IGNORE, nearest)
    assert 0.01 < (expected == IGNORE).mean() < 0.99
    class_map = Cityscapes().make_class_map(settings)
    assert np.array_equal(decode_colors(label, CITYSCAPES_COLORS, class_map, "x"), expected)


def test_decode_colors_maps_to_the_19_evaluated_classes():
    assert EVALUATED.names[:3] == ("road", "sidewalk", "building")
    assert EVALUATED.names[-1] == "bicycle" and len(EVALUATED.names) == 19
    label = CITYSCAPES_COLORS[None].astype(np.uint8)
    expected = [train_id for _, _, train_id in CITYSCAPES_LABELS]
    expected[17:19] = [5, 5]  # pole and polegroup have the same color: the first is taken
    classes = decode_colors(label, CITYSCAPES_COLORS, EVALUATED, "x")
    assert classes[0].tolist() == expected


@pytest.mark.parametrize(("n_outliers", "is_valid"), [(1, True), (2, False)])
def test_decode_colors_rejects_more_than_one_percent_of_unknown_colors(n_outliers, is_valid):
    label = np.full((10, 10, 3), 70, np.uint8)
    label[0, :n_outliers] = 0, 255, 0
    if is_valid:
        assert (decode_colors(label, CITYSCAPES_COLORS, ALL_IDS, "x")[1:] == 11).all()
    else:
        with pytest.raises(InputError, match=r"label.png: contains the color \[0, 255, 0\]"):
            decode_colors(label, CITYSCAPES_COLORS, ALL_IDS, "label.png")


@pytest.mark.parametrize(
    ("trimap_border", "names", "expected"),
    [
        ("pet", ("pet",), [1, 0, 1]),
        ("background", ("pet",), [1, 0, 0]),
        ("ignore", ("background", "pet"), [1, 0, IGNORE]),
        ("class", ("background", "pet", "border"), [1, 0, 2]),
    ],
)
def test_pets_class_map_follows_trimap_border(trimap_border, names, expected):
    class_map = Pets().make_class_map(Settings(trimap_border=trimap_border))
    assert class_map.names == names and class_map.has_background
    assert class_map.is_binary == (len(names) == 1)
    trimap = np.array([[1, 2, 3]], np.uint8)
    assert decode_values(trimap, class_map, "x")[0].tolist() == expected


@pytest.mark.parametrize("value", [0, 7, 255])
def test_decode_values_rejects_values_outside_the_class_map(value):
    class_map = Pets().make_class_map(Settings())
    with pytest.raises(InputError, match=f"t.png: contains the value {value}; expected only 1, 2"):
        decode_values(np.array([[1, value]], np.uint8), class_map, "t.png")


@pytest.mark.parametrize("value", [65537, 1.5])  # 1 as uint16
def test_decode_values_rejects_values_that_are_no_ids(value):
    class_map = Pets().make_class_map(Settings())
    with pytest.raises(InputError, match=f"contains the value {value}; expected"):
        decode_values(np.array([[1, value]]), class_map, "t.tif")


def test_colorize_is_inverted_by_decode_colors():
    colors = colorize(np.arange(34, dtype=np.uint8)[None], ALL_IDS)
    classes = decode_colors(colors, CITYSCAPES_COLORS, ALL_IDS, "x")
    assert np.array_equal(colorize(classes, ALL_IDS), colors)


def test_colorize_leaves_background_and_ignored_pixels_black():
    assert not colorize(np.full((2, 2), IGNORE, np.uint8), ALL_IDS).any()
    colors = colorize(np.array([[True, False]]), Pets().make_class_map(Settings()))
    assert colors.tolist() == [[[240, 150, 40], [0, 0, 0]]]


@needs_real_data
def test_decode_colors_takes_the_nearest_color_in_real_labels():
    for path in sorted((REAL / "cityscapes" / "train").iterdir())[:3]:
        label = image_io.read_image(path)[:, 256:]
        classes = decode_colors(label, CITYSCAPES_COLORS, ALL_IDS, "x")
        assert np.array_equal(classes, nearest_by_loop(label)[0])
