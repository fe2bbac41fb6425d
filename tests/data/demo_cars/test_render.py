"""Rendered cars: reproducible, inside the frame, of plausible size, with gaps between spokes."""

import cv2
import numpy as np
import pytest

from data.demo_cars.cars import build_car
from data.demo_cars.designs import BODIES, PAINTS
from data.demo_cars.render import FRAME_SIZE, N_VIEWS, camera_axes, project, render_view

SIZE = (320, 480)


def make_car(seed, body="sedan", color="red"):
    return build_car(np.random.default_rng(seed), BODIES[body], PAINTS[color])


@pytest.fixture(scope="module")
def reference():
    return render_view(make_car(5), 3, SIZE)


def test_render_view_same_seed_same_pixels(reference):
    again = render_view(make_car(5), 3, SIZE)
    assert all(np.array_equal(a, b) for a, b in zip(reference, again, strict=True))


@pytest.mark.parametrize(("seed", "view"), [(6, 3), (5, 4)])
def test_render_view_other_car_or_view_differs(reference, seed, view):
    image, mask = render_view(make_car(seed), view, SIZE)
    assert (image != reference[0]).mean() > 0.1
    assert (mask != reference[1]).any()


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("view", [1, 4, 5])
def test_render_view_returns_image_and_mask_of_plausible_area(body, view):
    image, mask = render_view(make_car(1, body), view, SIZE)
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
    assert mask.shape == SIZE and mask.dtype == bool
    assert 0.05 < mask.mean() < 0.40


@pytest.mark.parametrize("body", BODIES)
def test_project_all_views_inside_frame(body):
    height, width = FRAME_SIZE
    for seed in range(3):
        car = make_car(seed, body)
        for view in range(1, N_VIEWS + 1):
            corners = project(car.quads @ camera_axes(view), width)
            assert corners.min() > 2
            assert corners[..., 0].max() < width - 2
            assert corners[..., 1].max() < height - 2


@pytest.mark.parametrize("body", BODIES)
def test_render_view_wheels_have_gaps(body):
    _, mask = render_view(make_car(2, body), 5, FRAME_SIZE)
    outer, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(mask.astype(np.uint8), outer, -1, 1, cv2.FILLED)
    rows, columns = np.nonzero((filled > 0) & ~mask)
    bottom = np.nonzero(mask.any(1))[0].max()
    wheels = rows > bottom - 130  # below the sill
    assert wheels.sum() > 100
    assert (columns[wheels] < 900).any() and (columns[wheels] > 1000).any()
