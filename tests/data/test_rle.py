"""The encoder against slow and foreign ones and the competition's file; the strict decoder."""

import numpy as np
import pytest
from conftest import REAL, needs_real_data
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from data import csv_files, mask_io, rle

VALID_TEXT = "1 3 9 2 100 72 3000 1"
masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


def encode_pixel_by_pixel(mask):
    runs, inside = [], False
    for position, pixel in enumerate(mask.ravel(), start=1):
        if pixel and not inside:
            runs.append([position, 0])
        if pixel:
            runs[-1][1] += 1
        inside = bool(pixel)
    return " ".join(f"{start} {length}" for start, length in runs)


# ---------------------------------------------------------------- encode


@given(masks)
def test_encode_equals_slow_encoder_and_is_lossless(mask):
    text = rle.encode(mask)
    assert text == encode_pixel_by_pixel(mask)
    assert (rle.decode(text, mask.shape) == mask).all()


@given(st.lists(st.tuples(arrays(bool, 8), st.integers(1, 5)), max_size=6), st.integers(0, 9))
def test_encode_of_repeated_patterns_equals_slow_encoder(patterns, rest):
    tiled = [np.tile(pattern, times) for pattern, times in patterns]
    mask = np.concatenate([*tiled, np.ones(rest, bool)])[None]
    assert rle.encode(mask) == encode_pixel_by_pixel(mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with numpy 2
@given(masks)
def test_encode_equals_pycocotools_on_the_transpose(mask):
    """pycocotools encodes columns, as the lengths of alternating runs of zeros and ones."""
    counts, value, count = [], False, 0
    for pixel in mask.ravel():
        if pixel != value:
            counts.append(count)
            value, count = pixel, 0
        count += 1
    expected = coco.encode(np.asfortranarray(mask.T.astype(np.uint8)))
    transposed = {"size": expected["size"], "counts": [*counts, count]}
    assert coco.frPyObjects(transposed, *expected["size"])["counts"] == expected["counts"]
    assert (rle.decode(rle.encode(mask), mask.shape) == coco.decode(expected).T).all()


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ([[0, 0], [0, 0]], ""),
        ([[1, 1], [1, 1]], "1 4"),
        ([[1, 0], [0, 1]], "1 1 4 1"),
        ([[0, 1], [1, 0]], "2 2"),
        ([[0, 0], [0, 255]], "4 1"),
        ([[0, -1], [0, 0]], "2 1"),
        (np.zeros((0, 3)), ""),
    ],
)
def test_encode_of_integers_counts_non_zero_pixels(mask, text):
    assert rle.encode(np.array(mask, np.int64)) == text


def test_encode_follows_rows_in_any_memory_layout():
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    assert rle.encode(np.asfortranarray(mask)) == rle.encode(mask) == "2 2 6 1"
    assert rle.encode(-mask.astype(np.int8)) == "2 2 6 1"


@needs_real_data
def test_encode_equals_every_row_of_train_masks_csv():
    table = csv_files.read_csv_strict(REAL / "carvana/train_masks.csv", ["img", "rle_mask"])
    assert len(table) == 512
    for name, text in zip(table["img"][::8], table["rle_mask"][::8], strict=True):
        stem = name.removesuffix(".jpg")
        mask = mask_io.read_mask(REAL / f"carvana/train_masks/{stem}_mask.gif")
        assert rle.encode(mask) == text, name
        assert (rle.decode(text, mask.shape) == mask).all(), name


# ---------------------------------------------------------------- decode


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
def test_decode_of_invalid_text_names_the_broken_rule(text, rule):
    with pytest.raises(ValueError, match=rule):
        rle.decode(text, (3, 4))


def test_decode_accepts_adjacent_runs():
    assert rle.decode("1 2 3 1", (1, 4)).tolist() == [[True, True, True, False]]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=8))
def test_decode_of_separated_runs_encodes_to_the_same_text(gaps_and_lengths):
    numbers, end = [], 1
    for gap, length in gaps_and_lengths:
        numbers += [end + gap, length]
        end += gap + length
    text = " ".join(map(str, numbers))
    assert rle.encode(rle.decode(text, (7, 7))) == text


@st.composite
def altered_texts(draw):
    """A valid text of which a few pieces are replaced."""
    text = VALID_TEXT
    for _ in range(draw(st.integers(0, 4))):
        i, length = draw(st.integers(0, len(text))), draw(st.integers(0, 3))
        piece = draw(st.text("0123456789 -+.ex\n\u0661", max_size=4) | st.text(max_size=4))
        text = text[:i] + piece + text[i + length :]
    return text


def check_decode(text):
    """Assert that `text` raises a ValueError with a message, or decodes to the runs it lists."""
    try:
        mask = rle.decode(text, (48, 72))
    except ValueError as error:
        assert str(error)
    else:
        assert mask.sum() == sum(map(int, text.split(" ")[1::2] if text else []))
        assert (rle.decode(rle.encode(mask), mask.shape) == mask).all()


@given(st.text("0123456789 -x\n", max_size=30) | st.text(max_size=10), altered_texts())
def test_decode_of_any_and_of_altered_text_is_a_mask_or_a_value_error(text, altered):
    check_decode(text)
    check_decode(altered)


# ---------------------------------------------------------------- vertical_continuity


@given(masks)
def test_vertical_continuity_is_that_of_the_decoded_mask(mask):
    starts, lengths = rle.parse_runs(rle.encode(mask), mask.size)
    fraction = rle.vertical_continuity(starts, lengths, mask.shape)
    above = mask[:-1]
    if above.any():
        assert fraction == pytest.approx((above & mask[1:]).sum() / above.sum())
    else:
        assert np.isnan(fraction)


@needs_real_data
def test_vertical_continuity_of_real_masks_is_near_one_and_small_if_counted_down_the_columns():
    table = csv_files.read_csv_strict(REAL / "carvana/train_masks.csv", ["img", "rle_mask"])[::16]
    shape = (1280, 1918)
    for text in table["rle_mask"]:
        assert rle.vertical_continuity(*rle.parse_runs(text, 1280 * 1918), shape) > 0.99
        columns = rle.encode(rle.decode(text, shape).T)
        assert rle.vertical_continuity(*rle.parse_runs(columns, 1280 * 1918), shape) < 0.4


def test_parse_runs_of_numbers_whose_sum_overflows_is_rejected():
    big = "5000000000000000000"
    with pytest.raises(ValueError, match="too large"):
        rle.parse_runs(f"{big} {big}", 12)


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (2, 60), (3, 8), (4, 40), (40, 4)])
@pytest.mark.parametrize("shape", [(48, 72), (72, 72)])
def test_is_counted_down_columns_of_a_thin_object_is_false(rows, columns, shape):
    mask = np.zeros(shape, bool)
    mask[5 : 5 + rows, 7 : 7 + columns] = True
    assert not rle.is_counted_down_columns(rle.encode(mask), shape)


def test_is_counted_down_columns_of_a_mask_scattered_both_ways_is_false():
    noise = np.random.default_rng(0).random((40, 60)) < 0.5
    assert not rle.is_counted_down_columns(rle.encode(noise), noise.shape)
