"""Resizing, letterbox, soft targets and color reduction."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_datasets import draw_car

from core.settings import Settings
from data import preprocess
from data.classes import IGNORE
from data.preprocess import Preprocessing
from inference import combine

sides = st.integers(8, 60)


@given(st.tuples(sides, sides), st.tuples(sides, sides))
def test_letterbox_contains_the_whole_image_in_its_proportions(native_size, size):
    preprocessing = Preprocessing(size, letterbox=True)
    rows, columns = preprocess.letterbox_region(native_size, preprocessing)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    assert rows.start >= 0 and rows.stop <= size[0]
    assert columns.start >= 0 and columns.stop <= size[1]
    assert height == size[0] or width == size[1]
    scale = min(size[0] / native_size[0], size[1] / native_size[1])
    assert abs(height - scale * native_size[0]) <= 1 and abs(width - scale * native_size[1]) <= 1
    white = np.full((*native_size, 3), 200, np.uint8)
    image = preprocess.preprocess_image(white, preprocessing)
    assert image.shape == (*size, 3) and (image[rows, columns] == 200).all()
    assert image.sum() == 600 * height * width  # black around it
    classes = preprocess.preprocess_mask(np.full(native_size, 3, np.uint8), preprocessing)
    assert (classes[rows, columns] == 3).all()
    assert (classes == IGNORE).sum() == classes.size - height * width


def test_resize_to_native_inverts_the_letterbox():
    _, mask = draw_car(0, 0, (80, 120))
    preprocessing = Preprocessing((64, 64), letterbox=True)
    target = preprocess.preprocess_mask(mask, preprocessing) / np.float32(255)
    probability = torch.from_numpy(target)[None]
    restored = combine.resize_to_native(probability, mask.shape, preprocessing)[0].numpy()
    assert ((restored >= 0.5) != mask).mean() < 0.01


def test_target_of_a_bool_mask_is_the_covered_fraction_of_each_pixel():
    mask = np.random.default_rng(0).integers(0, 2, (12, 18)) > 0
    target = preprocess.preprocess_mask(mask, Preprocessing((4, 6)))
    covered = mask.reshape(4, 3, 6, 3).mean(axis=(1, 3))
    assert target.dtype == np.uint8 and np.abs(target - covered * 255).max() <= 0.5


def test_target_is_the_covered_fraction_along_the_axis_that_shrinks_if_the_other_one_grows():
    columns = np.random.default_rng(0).integers(0, 2, 60) > 0
    covered = columns.reshape(12, 5).mean(axis=1) * 255
    mask = np.tile(columns, (8, 1))
    for pixels, size in ((mask, (16, 12)), (mask.T, (12, 16))):
        target = preprocess.preprocess_mask(pixels, Preprocessing(size))
        expected = covered if size == (16, 12) else covered[:, None]
        assert target.shape == size and np.abs(target - expected).max() <= 1


@pytest.mark.parametrize("size", [(16, 24), (80, 90)])
def test_target_of_classes_has_no_new_class(size):
    ids = {0, 5, 18, IGNORE}
    classes = np.random.default_rng(0).choice(list(ids), (40, 60)).astype(np.uint8)
    assert set(np.unique(preprocess.preprocess_mask(classes, Preprocessing(size)))) == ids


def test_reduce_colors_takes_the_nearest_of_few_colors():
    image, _ = draw_car(1, 1, (80, 120))
    reduced = preprocess.reduce_colors(image, 8)
    colors = np.unique(reduced.reshape(-1, 3), axis=0).astype(int)
    assert 2 <= len(colors) <= 8 and reduced.dtype == np.uint8
    nearest = ((image.reshape(-1, 1, 3).astype(int) - colors) ** 2).sum(-1).min(1)
    taken = ((image.astype(int) - reduced) ** 2).sum(-1).ravel()
    # The centers are rounded after the nearest one is chosen.
    assert (np.sqrt(taken) <= np.sqrt(nearest) + 2).all()
    assert np.array_equal(reduced, preprocess.reduce_colors(image, 8))


@pytest.mark.parametrize("value", [0, 255])
def test_reduce_colors_of_one_color_keeps_it(value):
    image = np.full((20, 30, 3), value, np.uint8)
    assert np.abs(preprocess.reduce_colors(image, 8).astype(int) - value).max() <= 1


def test_preprocessing_from_takes_all_settings_of_the_images():
    settings = Settings(size=[8, 16], resize_mode="letterbox", reduce_colors=8)
    assert preprocess.preprocessing_from(settings) == preprocess.Preprocessing((8, 16), True, 8)


@pytest.mark.parametrize("native_size", [(1, 1000), (1000, 1)])
def test_letterbox_of_an_image_of_one_row_or_column_keeps_a_pixel(native_size):
    image = np.full((*native_size, 3), 200, np.uint8)
    boxed = preprocess.preprocess_image(image, Preprocessing((64, 64), letterbox=True))
    assert (boxed == 200).all(-1).sum() == 64


def test_target_of_classes_is_the_class_at_the_center_of_each_pixel():
    classes = np.arange(81, dtype=np.uint8).reshape(9, 9)
    target = preprocess.preprocess_mask(classes, Preprocessing((3, 3)))
    assert np.array_equal(target, classes[1::3, 1::3])


def test_letterbox_puts_an_odd_padding_row_at_the_bottom():
    rows, columns = preprocess.letterbox_region((6, 12), Preprocessing((9, 12), letterbox=True))
    assert (rows, columns) == (slice(1, 7), slice(0, 12))


def test_letterbox_does_not_count_among_the_reduced_colors():
    image = np.repeat(np.arange(8, dtype=np.uint8) * 30 + 20, 16)[None, :, None]
    image = np.tile(image, (32, 1, 3))
    original = image.copy()
    boxed = preprocess.preprocess_image(image, Preprocessing((128, 128), True, n_colors=8))
    assert np.unique(boxed.reshape(-1, 3), axis=0).shape == (9, 3)
    same_size = preprocess.preprocess_image(image, Preprocessing((32, 128), True, n_colors=2))
    assert len(np.unique(same_size)) == 2 and np.array_equal(image, original)


def test_preprocess_image_reduces_the_colors_of_the_resized_image():
    image, _ = draw_car(1, 1, (80, 120))
    small = preprocess.preprocess_image(image, Preprocessing((16, 24)))
    reduced = preprocess.preprocess_image(image, Preprocessing((16, 24), n_colors=8))
    assert np.array_equal(reduced, preprocess.reduce_colors(small, 8))
