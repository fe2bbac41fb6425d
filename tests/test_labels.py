"""What label files mean: colours and values → classes, and back."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import REAL, needs_real_data

from core.errors import InputError
from core.settings import Settings
from data import classes, image_io
from data.classes import CITYSCAPES_CLASSES, CITYSCAPES_COLORS, IGNORE

ALL = classes.cityscapes_class_map(Settings(cityscapes_classes=34))
EVALUATED = classes.cityscapes_class_map(Settings(cityscapes_classes=19))


def one_by_one(label):
    """Nearest colour by a loop over all of them; the first of equal ones."""
    away = [((label.astype(int) - colour) ** 2).sum(-1) for colour in CITYSCAPES_COLORS]
    return np.argmin(away, axis=0), np.sqrt(np.min(away, axis=0))


def blurred(seed):
    """Patches of label colours with noise, as JPEG leaves them."""
    rng = np.random.default_rng(seed)
    patches = CITYSCAPES_COLORS[rng.integers(0, 34, (6, 8))].repeat(5, 0).repeat(5, 1)
    return (patches + rng.normal(0, 12, patches.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_colours_become_the_nearest_class_as_a_loop_finds_it(seed):
    label = blurred(seed)
    nearest, away = one_by_one(label)
    assert np.array_equal(classes.decode_colors(label, ALL, "x"), nearest)
    assert np.array_equal(classes.decode_colors(label, ALL, "x"), nearest)  # now all is known
    unsure = classes.decode_colors(
        label,
        classes.cityscapes_class_map(Settings(cityscapes_classes=34, label_color_tolerance=20)),
        "x",
    )
    assert np.array_equal(unsure, np.where(away > 20, IGNORE, nearest))


def test_threads_that_meet_new_colours_at_once_agree(monkeypatch):
    monkeypatch.setattr(labels, "NEAREST", np.zeros(2**24, np.uint16))
    many = [blurred(seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda label: classes.decode_colors(label, ALL, "x"), many))
    for label, classes in zip(many, found, strict=True):
        assert np.array_equal(classes, one_by_one(label)[0])


def test_the_19_classes_are_those_that_cityscapes_evaluates():
    assert EVALUATED.names[:3] == ("road", "sidewalk", "building")
    assert EVALUATED.names[-1] == "bicycle" and len(EVALUATED.names) == 19
    label = CITYSCAPES_COLORS[None].astype(np.uint8)
    expected = [number for _, _, number in CITYSCAPES_CLASSES]
    expected[17:19] = [5, 5]  # pole and polegroup have one colour: the first is taken
    assert classes.decode_colors(label, EVALUATED, "x")[0].tolist() == expected


def test_an_unknown_colour_is_told():
    label = np.full((10, 10, 3), 70, np.uint8)
    label[:4] = 0, 255, 0
    with pytest.raises(InputError, match=r"label.png: holds the colour \[0, 255, 0\]"):
        classes.decode_colors(label, ALL, "label.png")


@pytest.mark.parametrize(
    ("border", "names", "expected"),
    [
        ("pet", ("pet",), [1, 0, 1]),
        ("background", ("pet",), [1, 0, 0]),
        ("ignore", ("background", "pet"), [1, 0, IGNORE]),
        ("class", ("background", "pet", "border"), [1, 0, 2]),
    ],
)
def test_the_border_of_a_trimap_counts_as_the_setting_says(border, names, expected):
    scheme = classes.pets_class_map(Settings(trimap_border=border))
    assert scheme.names == names
    trimap = np.array([[1, 2, 3]], np.uint8)
    assert classes.decode_values(trimap, scheme, "x")[0].tolist() == expected


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_value_that_means_nothing_is_told(value):
    with pytest.raises(InputError, match=f"t.png: holds the value {value}; labels here hold 1, 2"):
        classes.decode_values(
            np.array([[1, value]], np.uint8), classes.pets_class_map(Settings()), "t.png"
        )


def test_classes_become_colours_and_back():
    classes = np.arange(34, dtype=np.uint8)[None]
    picture = classes.colorize(classes, ALL)
    again = classes.decode_colors(picture, ALL, "x")
    assert np.array_equal(classes.colorize(again, ALL), picture)
    assert not classes.colorize(np.full((2, 2), IGNORE, np.uint8), ALL).any()
    mask = np.array([[True, False]])
    assert classes.colorize(mask, classes.pets_class_map(Settings())).tolist() == [
        [[240, 150, 40], [0] * 3]
    ]


@needs_real_data
def test_real_labels_become_the_nearest_class_as_a_loop_finds_it():
    for path in sorted((REAL / "cityscapes" / "train").iterdir())[:3]:
        label = image_io.read_image(path)[:, 256:]
        assert np.array_equal(classes.decode_colors(label, ALL, "x"), one_by_one(label)[0])
