"""What a network sees of a photograph, and back."""

import numpy as np
import pytest
import torch
from conftest import draw_car
from hypothesis import given
from hypothesis import strategies as st

from data import preprocess
from data.classes import IGNORE
from data.preprocess import Preprocessing
from inference import predictor

sides = st.integers(8, 60)


@given(st.tuples(sides, sides), st.tuples(sides, sides))
def test_a_letterbox_holds_the_whole_image_in_its_proportions(native, size):
    box = Preprocessing(size, letterbox=True)
    rows, columns = preprocess.letterbox_region(native, box)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    assert rows.start >= 0 and rows.stop <= size[0] and columns.start >= 0
    assert columns.stop <= size[1] and (height == size[0] or width == size[1])
    scale = min(size[0] / native[0], size[1] / native[1])
    assert abs(height - scale * native[0]) <= 1 and abs(width - scale * native[1]) <= 1
    image = preprocess.preprocess_image(np.full((*native, 3), 200, np.uint8), box)
    assert image.shape == (*size, 3) and (image[rows, columns] == 200).all()
    assert image.sum() == 600 * height * width  # black around it
    label = preprocess.resize_classes(np.full(native, 3, np.uint8), box)
    assert (label[rows, columns] == 3).all() and (label == IGNORE).sum() == label.size - (
        height * width
    )


def test_what_comes_back_from_a_letterbox_lies_where_it_was():
    _, mask = draw_car(0, 0, (80, 120))
    box = Preprocessing((64, 64), letterbox=True)
    small = torch.from_numpy(preprocess.mask_to_soft_target(mask, box) / np.float32(255))[None]
    again = predictor.resize_to_original(small, mask.shape, box)[0].numpy() >= 0.5
    assert (again != mask).mean() < 0.01


def test_classes_are_never_mixed():
    label = np.random.default_rng(0).choice([0, 5, 18, IGNORE], (40, 60)).astype(np.uint8)
    for size in ((16, 24), (80, 90)):
        assert set(np.unique(preprocess.resize_classes(label, Preprocessing(size)))) <= {
            0,
            5,
            18,
            IGNORE,
        }


def test_quantizing_keeps_few_colours_each_near_what_was_there():
    image, _ = draw_car(1, 1, (80, 120))
    few = preprocess.reduce_colors(image, 8)
    colours = np.unique(few.reshape(-1, 3), axis=0).astype(int)
    assert 2 <= len(colours) <= 8 and few.dtype == np.uint8
    away = ((image.reshape(-1, 1, 3).astype(int) - colours) ** 2).sum(-1)
    taken = ((image.astype(int) - few) ** 2).sum(-1).ravel()
    # A cell of 8×8×8 colours shares its centre: at most 2·7 further than the nearest.
    assert (np.sqrt(taken) <= np.sqrt(away.min(1)) + 14).all()
    assert np.array_equal(few, preprocess.reduce_colors(image, 8))


@pytest.mark.parametrize("colour", [0, 255])
def test_an_image_of_one_colour_can_be_quantized(colour):
    image = np.full((20, 30, 3), colour, np.uint8)
    assert np.abs(preprocess.reduce_colors(image, 8).astype(int) - colour).max() <= 1
