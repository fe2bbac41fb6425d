"""Reading of images and masks: valid, unusual and damaged files."""

import cv2
import numpy as np
import pytest
from byte_edits import EDITS, apply_edits
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_datasets import draw_car, write_mask

from core.errors import InputError
from data import image_io


@pytest.mark.parametrize(
    ("min_size", "expected"),
    [((60, 90), (60, 90)), ((61, 90), (120, 180)), ((15, 20), (15, 23))],
)
def test_read_image_decodes_a_jpeg_no_larger_than_needed(tmp_path, min_size, expected):
    path = tmp_path / "a.jpg"
    Image.fromarray(cv2.resize(draw_car(0, 1, (48, 72))[0], (180, 120))).save(path, quality=95)
    image, full_image = image_io.read_image(path, min_size), image_io.read_image(path)
    assert image.shape[:2] == expected and full_image.shape[:2] == (120, 180)
    resized = cv2.resize(full_image, expected[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(image.astype(int) - resized).mean() < 5


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_read_image_rejects_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), draw_car(0, 1, (48, 72))[0])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=f"a{suffix}: cannot be decoded"):
        image_io.read_image(path)


@pytest.mark.parametrize("foreground", [1, 255])
def test_read_mask_is_true_above_zero(tmp_path, foreground):
    values = np.array([[0, foreground], [foreground, 0]], np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png")
    assert (image_io.read_mask(tmp_path / "m.png") == (values > 0)).all()


def test_read_mask_rejects_three_values(tmp_path):
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png: .*found more values"):
        image_io.read_mask(tmp_path / "m.png")


# ---------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("image_io")


@given(st.sampled_from(["gif", "png"]), EDITS)
def test_read_mask_of_damaged_file_has_the_declared_size_or_is_one_line(folder, suffix, edits):
    path = folder / f"mask.{suffix}"
    write_mask(path, draw_car(0, 1, (24, 36))[1])
    path.write_bytes(apply_edits(path.read_bytes(), edits))
    try:
        size = image_io.read_image_size(path)
        mask = image_io.read_mask(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert mask.dtype == bool and mask.shape == size


@given(st.sampled_from([".jpg", ".png"]), EDITS)
def test_read_image_of_damaged_file_has_the_declared_size_or_is_one_line(folder, suffix, edits):
    data = cv2.imencode(suffix, draw_car(0, 1, (24, 36))[0])[1].tobytes()
    path = folder / f"image{suffix}"
    path.write_bytes(apply_edits(data, edits))
    try:
        image = image_io.read_image(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert image.dtype == np.uint8 and image.shape == (*image_io.read_image_size(path), 3)
