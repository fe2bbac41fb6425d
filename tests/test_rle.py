"""Run lengths: lossless, the competition's, and strict."""

import numpy as np
import pytest
from conftest import REAL, needs_real_data
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from data import csv_files, image_io
from inference import rle

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))


def slow_encode(mask):
    """One pixel after the other, along the rows."""
    runs, inside = [], False
    for position, pixel in enumerate(mask.ravel(), start=1):
        if pixel and not inside:
            runs.append([position, 0])
        if pixel:
            runs[-1][1] += 1
        inside = bool(pixel)
    return " ".join(f"{start} {length}" for start, length in runs)


@given(MASKS)
def test_lossless_and_equal_to_the_slow_one(mask):
    text = rle.encode(mask)
    assert text == slow_encode(mask)
    assert (rle.decode(text, mask.shape) == mask).all()


@given(
    st.lists(st.tuples(arrays.arrays(bool, 8), st.integers(1, 5)), max_size=6), st.integers(0, 9)
)
def test_patterns_that_repeat_themselves(parts, rest):
    eights = [np.tile(pattern, times) for pattern, times in parts]
    mask = np.concatenate([*eights, np.ones(rest, bool)])[None]
    assert rle.encode(mask) == slow_encode(mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools beside numpy 2
@given(MASKS)
def test_equal_to_pycocotools_on_the_transpose(mask):
    """pycocotools runs along columns, and counts zeros and ones in turn."""
    counts, value, number = [], False, 0
    for pixel in mask.ravel():
        if pixel != value:
            counts.append(number)
            value, number = pixel, 0
        number += 1
    theirs = coco.encode(np.asfortranarray(mask.T.astype(np.uint8)))
    flipped = {"size": theirs["size"], "counts": [*counts, number]}
    assert coco.frPyObjects(flipped, *theirs["size"])["counts"] == theirs["counts"]
    assert (rle.decode(rle.encode(mask), mask.shape) == coco.decode(theirs).T).all()


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ([[0, 0], [0, 0]], ""),
        ([[1, 1], [1, 1]], "1 4"),
        ([[1, 0], [0, 1]], "1 1 4 1"),
        ([[0, 1], [1, 0]], "2 2"),
        ([[0, 0], [0, 255]], "4 1"),
    ],
)
def test_known_masks(mask, text):
    assert rle.encode(np.array(mask, np.uint8)) == text


@needs_real_data
def test_equal_to_every_row_of_the_competitions_file():
    table = csv_files.read_csv_strict(REAL / "carvana/train_masks.csv", ["img", "rle_mask"])
    assert len(table) == 512
    for name, text in zip(table["img"], table["rle_mask"], strict=True):
        stem = name.removesuffix(".jpg")
        mask = image_io.read_mask(REAL / f"carvana/train_masks/{stem}_mask.gif")
        assert rle.encode(mask) == text, name
        assert (rle.decode(text, mask.shape) == mask).all(), name


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("1", "odd count"),
        ("1 2 3", "odd count"),
        ("a b", "not a number"),
        ("1 x", "not a number"),
        ("1.0 2", "not a number"),
        ("+1 2", "not a number"),
        ("-1 2", "not a number"),
        ("1  2", "not a number"),
        (" 1 2", "not a number"),
        ("1 2 ", "not a number"),
        ("1 2\n", "not a number"),
        ("\u0661 2", "not a number"),
        ("0 2", "below 1"),
        ("1 0", "below 1"),
        ("3 2 4 1", "begins before"),
        ("5 1 1 1", "begins before"),
        ("9 5", "outside"),
        ("13 1", "outside"),
        ("1 99999999999999999999", "too large"),
        ("1 999999999999999999", "outside"),
    ],
)
def test_decoding_is_strict(text, rule):
    with pytest.raises(ValueError, match=rule):
        rle.decode(text, (3, 4))


@given(st.text(alphabet="0123456789 -x\n", max_size=30) | st.text(max_size=10))
def test_any_text_is_either_a_mask_or_a_value_error(text):
    try:
        mask = rle.decode(text, (6, 7))
    except ValueError:
        return
    assert mask.sum() == sum(map(int, text.split(" ")[1::2])) if text else not mask.any()


def test_runs_that_touch_do_not_overlap():
    assert rle.decode("1 2 3 1", (1, 4)).tolist() == [[True, True, True, False]]


def test_the_order_is_that_of_the_rows_however_the_mask_lies_in_memory():
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    assert rle.encode(np.asfortranarray(mask)) == rle.encode(mask) == "2 2 6 1"
    assert rle.encode(-mask.astype(np.int8)) == "2 2 6 1"


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=8))
def test_what_is_written_with_gaps_comes_back(steps):
    numbers, end = [], 1
    for gap, length in steps:
        numbers += [end + gap, length]
        end += gap + length
    text = " ".join(map(str, numbers))
    assert rle.encode(rle.decode(text, (7, 7))) == text
