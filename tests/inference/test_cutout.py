"""Soft opacity, colors at the edge, and other backgrounds."""

import numpy as np
import pytest
from PIL import Image

from core.errors import InputError
from data.preprocess import Preprocessing
from inference import cutout
from inference.postprocess import Binarizer
from inference.segmentation import Segmentation

EDGE = np.arange(40) >= 20  # a mask whose outline runs between the columns 19 and 20


def to_rows(values):
    return np.tile(np.asarray(values, np.float32), (8, 1))


def alpha_of(probability, threshold=0.5, radius=4.0, mask=None):
    probability = to_rows(probability)
    mask = probability >= threshold if mask is None else np.tile(mask, (8, 1))
    return cutout.soft_alpha(probability, mask, threshold, radius)[4]


def test_soft_alpha_is_0_and_255_away_from_the_outline():
    alpha = alpha_of(np.where(EDGE, 0.7, 0.3))  # an uncertain network
    assert (alpha[:16] == 0).all() and (alpha[24:] == 255).all()
    assert ((alpha[17:23] > 0) & (alpha[17:23] < 255)).all()


def test_soft_alpha_follows_the_probability_at_the_outline():
    ramp = np.clip((np.arange(40) - 17.5) / 4, 0, 1)  # 0.375 and 0.625 at the outline
    alpha = alpha_of(ramp) / 255
    assert alpha[19] == pytest.approx(0.375, abs=0.06) and alpha[20] == pytest.approx(
        0.625, abs=0.06
    )
    assert (np.diff(alpha) >= 0).all()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_soft_alpha_is_one_half_at_the_threshold(threshold):
    alpha = alpha_of(np.where(EDGE, threshold, threshold - 1e-3), threshold, radius=1000)
    assert abs(alpha[19:21].astype(int) - 127.5).max() <= 1


def test_soft_alpha_follows_the_mask_where_post_processing_changed_it():
    alpha = alpha_of(np.full(40, 0.9), mask=EDGE)  # a piece was removed
    assert (alpha[:16] == 0).all() and (alpha[24:] == 255).all()


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0), (1.0, 255)])
def test_soft_alpha_of_an_empty_and_of_a_full_mask_is_constant(value, expected):
    assert (alpha_of(np.full(40, value)) == expected).all()


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (Preprocessing(None), 2),
        (Preprocessing((100, 100)), 8),  # 200×400 seen at 100×100: 4 pixels in one
        (Preprocessing((100, 100), letterbox=True), 8),  # at 50×100
        (Preprocessing((400, 800)), 2),
    ],
)
def test_edge_radius_is_two_pixels_of_the_network(preprocessing, expected):
    assert cutout.edge_radius((200, 400), [preprocessing]) == expected
    assert cutout.edge_radius((200, 400), [Preprocessing(None), preprocessing]) == expected


# ---------------------------------------------------------------- colors


def test_clean_edge_colors_removes_the_old_background():
    red, white = np.array([200, 0, 0]), np.array([255, 255, 255])
    alpha = np.tile(np.clip((np.arange(40) - 17) * 51, 0, 255), (8, 1)).astype(np.uint8)
    opacity = alpha[..., None] / 255
    photograph = (opacity * red + (1 - opacity) * white).astype(np.uint8)
    clean = cutout.clean_edge_colors(photograph, alpha)
    assert (clean[alpha == 255] == red).all() and (clean[alpha == 0] == 0).all()
    soft = (alpha > 0) & (alpha < 255)
    error_before = np.abs(photograph[soft].astype(int) - red).max(axis=1)
    error = np.abs(clean[soft].astype(int) - red).max(axis=1)
    assert (error <= error_before * opacity[soft][:, 0] + 2).all()


def test_clean_edge_colors_keeps_a_photograph_without_a_soft_edge():
    image = np.full((4, 4, 3), 7, np.uint8)
    for alpha in (0, 100, 255):
        clean = cutout.clean_edge_colors(image, np.full((4, 4), alpha, np.uint8))
        assert (clean == (7 if alpha else 0)).all()


def test_put_on_background_blends_linearly():
    object_pixel = np.array([[[200, 100, 0, 51]]], np.uint8)  # opacity 0.2
    blended = cutout.put_on_background(object_pixel, np.array([[[0, 100, 250]]], np.uint8))
    assert blended.tolist() == [[[40, 100, 200]]]
    object_pixel[..., 3] = 255
    blended = cutout.put_on_background(object_pixel, np.zeros((1, 1, 3), np.uint8))
    assert blended.tolist() == [[[200, 100, 0]]]


@pytest.mark.parametrize("text", ["#ff8000", "#FF8000", "#f80", "darkorange"])
def test_read_background_reads_colors(text):
    background = cutout.read_background(text, (2, 3))
    expected = {"#f80": (255, 136, 0), "darkorange": (255, 140, 0)}.get(text, (255, 128, 0))
    assert background.shape == (2, 3, 3) and (background == expected).all()


@pytest.mark.parametrize("size", [(30, 40), (40, 20), (300, 100), (50, 100)])
def test_read_background_covers_the_size_with_the_center_of_a_picture(tmp_path, size):
    picture = np.zeros((50, 100, 3), np.uint8)
    picture[:, 40:60] = (0, 200, 0)
    Image.fromarray(picture).save(tmp_path / "hall.png")
    background = cutout.read_background(tmp_path / "hall.png", size)
    assert background.shape == (*size, 3)
    assert (background[:, size[1] // 2] == (0, 200, 0)).all()


@pytest.mark.parametrize("text", ["#ffff", "whit", "/nowhere/hall.jpg", ".", "rgb(300,0,0)"])
def test_read_background_rejects_other_texts_in_one_line(text):
    with pytest.raises(InputError, match="neither an existing picture file nor a color") as error:
        cutout.read_background(text, (2, 3))
    assert text in str(error.value)


def test_clean_edge_colors_takes_the_nearest_opaque_color():
    colors = np.repeat(np.arange(0, 240, 30), 40).reshape(8, 40)  # another color in each row
    photograph = np.stack([colors] * 3, -1).astype(np.uint8)
    alpha = np.tile(np.where(np.arange(40) < 20, 255, 128), (8, 1)).astype(np.uint8)
    alpha[:, 22:] = 0
    photograph[:, 20:22] = 255
    clean = cutout.clean_edge_colors(photograph, alpha)[:, 20:22, 0].astype(int)
    expected = 255 * 128 / 255 + (1 - 128 / 255) * colors[:, 20:22]
    assert np.abs(clean - expected).max() <= 1


def test_alpha_of_a_segmentation_is_one_half_where_the_probability_is_the_threshold():
    probability = np.full((1, 40), 0.9, np.float32)
    probability[0, 20], probability[0, 21:] = 0.8, 0.1
    result = Segmentation(np.zeros((1, 40, 3), np.uint8), probability, Binarizer(0.8, []), 1e6)
    assert result.mask[0, 20] and abs(int(result.alpha[0, 20]) - 128) <= 1
