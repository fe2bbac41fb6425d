"""visualize.py: colors mean what the captions of the report say."""

import base64

import cv2
import numpy as np
import pytest
import torch

from data.classes import ClassMap
from data.loaders import LoadedSample
from data.sample import Sample
from evaluation import visualize
from inference.predictor import Prediction

GRAY = (100, 100, 100)  # of an image of 200 after dim_gray()


@pytest.fixture
def masks():
    """A predicted and a true mask: false negatives in rows 0-9, both true in rows 10-19, false
    positives in rows 20-29, both false in rows 30-39."""
    true, predicted = np.zeros((2, 40, 60), bool)
    true[:20], predicted[10:30] = True, True
    return predicted, true


def gray_image(height=40, width=60):
    return np.full((height, width, 3), 200, np.uint8)


def test_error_map_has_red_false_negatives_and_blue_false_positives(masks):
    errors = visualize.error_map(gray_image(), *masks)
    assert tuple(errors[5, 5]) == visualize.FALSE_NEGATIVE_COLOR == (255, 60, 60)
    assert tuple(errors[25, 5]) == visualize.FALSE_POSITIVE_COLOR == (70, 110, 255)
    assert tuple(errors[15, 5]) == tuple(errors[35, 5]) == GRAY


def test_error_map_dilates_errors_of_large_images():
    true = np.zeros((640, 960), bool)
    predicted = true.copy()
    predicted[320, 480] = True
    errors = visualize.error_map(gray_image(640, 960), predicted, true)
    assert (errors == visualize.FALSE_POSITIVE_COLOR).all(axis=2).sum() == 4


def test_highlight_mask_keeps_the_mask_and_darkens_the_rest(masks):
    highlighted = visualize.highlight_mask(gray_image(), masks[0])
    assert tuple(highlighted[15, 5]) == (200, 200, 200) and tuple(highlighted[5, 5]) == (50, 50, 50)


def test_draw_overlay_outlines_the_prediction_over_errors(masks):
    image = gray_image()
    overlay = visualize.draw_overlay(image, *masks)
    assert tuple(overlay[10, 5]) == tuple(overlay[29, 5]) == visualize.OUTLINE_COLOR
    assert tuple(overlay[5, 5]) == visualize.FALSE_NEGATIVE_COLOR
    assert tuple(overlay[25, 5]) == visualize.FALSE_POSITIVE_COLOR
    without_truth = visualize.draw_overlay(image, masks[0])
    assert tuple(without_truth[5, 5]) == tuple(without_truth[25, 5]) == (200, 200, 200)
    # The border of the image is no outline: the mask may continue beyond it.
    assert tuple(overlay[15, 0]) == tuple(overlay[15, 59]) == (200, 200, 200)
    assert (image == 200).all()


def test_largest_error_window_contains_the_error_in_the_images_aspect_ratio():
    true = np.zeros((100, 150), bool)
    true[20:60, 30:90] = True
    predicted = true.copy()
    predicted[80:95, 120:150] = True  # the largest error
    predicted[20:22, 30:40] = False
    rows, columns = visualize.largest_error_window(predicted, true)
    assert rows.stop <= 100 and columns.stop == 150
    assert rows.start <= 80 and rows.stop >= 95 and columns.start <= 120
    aspect_ratio = (columns.stop - columns.start) / (rows.stop - rows.start)
    assert aspect_ratio == pytest.approx(1.5, abs=0.1)
    zoom = visualize.zoom_on_error(gray_image(100, 150), predicted, true)
    assert zoom.shape == (rows.stop - rows.start, columns.stop - columns.start, 3)


def test_largest_error_window_without_error_is_the_whole_image():
    mask = np.ones((100, 150), bool)
    assert visualize.largest_error_window(mask, mask) == (slice(0, 100), slice(0, 150))


def test_disagreement_heatmap_is_brightest_where_members_are_divided():
    share = np.zeros((40, 60))
    share[0], share[1] = 0.5, 1.0
    heatmap = visualize.disagreement_heatmap(gray_image(), share)
    assert heatmap[0].mean() > heatmap[1].mean() == heatmap[2].mean() == 100


def test_draw_legend_has_the_color_of_each_class():
    colors = (128, 64, 128), (0, 0, 142)
    legend = visualize.draw_legend(ClassMap(("road", "car"), colors, (0, 1)))
    wider = visualize.draw_legend(ClassMap(("Straße", "car with a long name"), colors, (0, 1)))
    assert len(legend) == len(wider) == 64 and legend.shape[1] < wider.shape[1]
    assert tuple(legend[15, 20]) == (128, 64, 128) and tuple(legend[43, 20]) == (0, 0, 142)
    assert (legend[8:28, 58:] < 100).any()  # the name


def test_draw_legend_has_the_values_of_the_label_files():
    colors = (128, 64, 128), (0, 0, 142)
    legend = visualize.draw_legend(ClassMap(("road", "car"), colors, (-1, 1, 0, 0)))
    swapped = visualize.draw_legend(ClassMap(("car", "road"), colors[::-1], (-1, 0, 1)))
    as_index = visualize.draw_legend(ClassMap(("road", "car"), colors, (0, 1)))
    first, second = slice(8, 28), slice(36, 56)
    assert (legend[first] == swapped[second]).all() and (legend[second] == swapped[first]).all()
    assert (legend[first] != as_index[first]).any()


@pytest.mark.parametrize(
    ("size", "expected"), [((200, 960), (100, 480)), ((90, 100), (90, 100)), ((1, 1920), (1, 480))]
)
def test_jpeg_data_uri_is_an_image_of_at_most_thumbnail_width(size, expected):
    image = np.zeros((*size, 3), np.uint8)
    image[..., 0] = 255
    uri, width, height = visualize.jpeg_data_uri(image)
    encoded = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    assert decoded.shape == (height, width, 3) == (*expected, 3)
    assert decoded[..., 0].mean() > 240 and decoded[..., 2].mean() < 15


def test_draw_batch_shows_one_class_bright_on_dark_four_images_in_a_row():
    images = torch.full((6, 3, 40, 60), 200, dtype=torch.uint8)
    targets = torch.zeros(6, 1, 40, 60, dtype=torch.uint8)
    targets[4, 0, :20], targets[4, 0, 20:] = 128, 127  # half covered: the object, or not
    grid = visualize.draw_batch(images, targets, ClassMap(("car",), ((60, 220, 90),)))
    assert grid.shape == (80, 240, 3)
    assert (grid[:40] == 50).all() and (grid[40:, 60:120] == 50).all()
    assert (grid[40:60, :60] == 200).all() and (grid[60:, :60] == 50).all()
    assert (grid[40:, 120:] == 0).all()  # no image


def test_draw_batch_blends_several_classes_with_their_colors_and_shows_16_images():
    images = torch.full((17, 3, 10, 960), 100, dtype=torch.uint8)
    targets = torch.ones(17, 1, 10, 960, dtype=torch.uint8)
    class_map = ClassMap(("road", "car"), ((128, 64, 128), (0, 20, 142)))
    grid = visualize.draw_batch(images, targets, class_map)
    assert grid.shape == (4 * 5, 4 * 480, 3) and (grid == (50, 60, 121)).all()


def predict_image(path, class_map, probability, mask):
    sample = Sample(path, "a", None, 0, "carvana", class_map)
    loaded = LoadedSample(sample, mask.shape, mask)
    return Prediction(loaded, {"probability": torch.from_numpy(probability).float()})


def test_thumbnail_of_binary_prediction_shows_its_errors(tmp_path, masks):
    path = tmp_path / "a_01.png"
    cv2.imwrite(str(path), gray_image())
    predicted, true = masks
    class_map = ClassMap(("car",), ((60, 220, 90),))
    prediction = predict_image(path, class_map, predicted[None] * 0.9, true)
    thumbnail = visualize.thumbnail(prediction)
    assert np.array_equal(thumbnail, visualize.draw_overlay(gray_image(), predicted, true))


def test_thumbnail_of_classes_is_their_colors_at_most_480_pixels_wide(tmp_path):
    class_map = ClassMap(("road", "car"), ((128, 64, 128), (0, 0, 142)))
    probability = np.zeros((2, 40, 960))
    probability[1] = 1
    prediction = predict_image(tmp_path / "a_01.png", class_map, probability, np.ones((40, 960)))
    thumbnail = visualize.thumbnail(prediction)
    assert thumbnail.shape == (20, 480, 3) and (thumbnail == (0, 0, 142)).all()
