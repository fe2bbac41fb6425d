"""Visualization: the largest error is in the zoom, colors mean what the captions say."""

import base64

import cv2
import numpy as np
import pytest

from evaluation import visualize


def test_largest_error_window_holds_the_largest_component_in_the_images_proportions():
    true = np.zeros((100, 150), bool)
    true[20:60, 30:90] = True
    predicted = true.copy()
    predicted[80:95, 120:150] = True  # false positives in the corner
    predicted[20:22, 30:40] = False  # fewer false negatives
    rows, columns = visualize.largest_error_window(predicted, true)
    assert rows.stop <= 100 and columns.stop == 150
    assert rows.start <= 80 and rows.stop >= 95 and columns.start <= 120
    assert (columns.stop - columns.start) / (rows.stop - rows.start) == pytest.approx(1.5, abs=0.1)


def test_largest_error_window_without_errors_is_the_image():
    true = np.zeros((100, 150), bool)
    assert visualize.largest_error_window(true, true) == (slice(0, 100), slice(0, 150))


def test_error_map_draws_false_negatives_and_false_positives_on_the_dimmed_image():
    image = np.full((40, 60, 3), 200, np.uint8)
    true, predicted = np.zeros((2, 40, 60), bool)
    true[:20], predicted[10:30] = True, True
    errors = visualize.error_map(image, predicted, true)
    assert tuple(errors[5, 5]) == visualize.FALSE_NEGATIVE_COLOR
    assert tuple(errors[25, 5]) == visualize.FALSE_POSITIVE_COLOR
    assert tuple(errors[15, 5]) == tuple(errors[35, 5]) == (100, 100, 100)
    highlighted = visualize.highlight_mask(image, predicted)
    assert tuple(highlighted[15, 5]) == (200, 200, 200) and tuple(highlighted[35, 5]) < (100,) * 3


def test_disagreement_heatmap_is_bright_only_where_votes_are_split():
    share = np.zeros((40, 60))
    share[0], share[1] = 0.5, 1.0
    heatmap = visualize.disagreement_heatmap(np.full((40, 60, 3), 200, np.uint8), share)
    assert heatmap[0].mean() > heatmap[1].mean() == heatmap[2].mean() == 100


def test_jpeg_data_uri_holds_the_downscaled_image():
    image = np.zeros((100, 300, 3), np.uint8)
    image[..., 0] = 255
    uri, width, height = visualize.jpeg_data_uri(image, 150)
    jpeg = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
    decoded = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
    assert decoded.shape == (height, width, 3) == (50, 150, 3)
    assert decoded[..., 0].mean() > 240 and decoded[..., 2].mean() < 15
