"""The rendered cars: whole, repeatable, in the competition's layout, with masks which are exact."""

import csv

import cv2
import numpy as np
import pytest
from PIL import Image

import demo
from core import errors
from data.demo_cars import cars, render
from inference import rle

SMALL = (320, 480)


def car(seed=0, body="sedan", colour="red"):
    rng = np.random.default_rng(seed)
    return cars.build_car(rng, demo.BODIES[body], demo.PAINTS[colour])


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "data"
    demo.render_dataset(path, 1, 1, seed=3, size=SMALL)
    return path


def test_a_seed_fixes_the_bytes():
    first, again = (render.render_view(car(5), 3, SMALL) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("other", [(6, 3), (5, 4)])
def test_cars_and_views_differ(other):
    image, mask = render.render_view(car(5), 3, SMALL)
    seed, view = other
    image2, mask2 = render.render_view(car(seed), view, SMALL)
    assert (image != image2).mean() > 0.1
    assert (mask != mask2).any()


@pytest.mark.parametrize("body", demo.BODIES)
def test_masks_have_the_size_of_cars(body):
    for view in (1, 4, 5):
        image, mask = render.render_view(car(1, body), view, SMALL)
        assert image.shape == (*SMALL, 3) and image.dtype == np.uint8
        assert mask.shape == SMALL and mask.dtype == bool
        assert 0.05 < mask.mean() < 0.40


@pytest.mark.parametrize("body", demo.BODIES)
def test_no_view_cuts_a_car(body):
    for seed in range(3):
        made = car(seed, body)
        for view in range(1, render.N_VIEWS + 1):
            corners = render.project(made.quads @ render.camera_axes(view), render.FRAME_WIDTH)
            assert corners.min() > 2
            assert corners[..., 0].max() < render.FRAME_WIDTH - 2
            assert corners[..., 1].max() < 1280 - 2


@pytest.mark.parametrize("body", demo.BODIES)
def test_one_sees_through_the_wheels(body):
    _, mask = render.render_view(car(2, body), 5, (1280, render.FRAME_WIDTH))
    outer, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(mask.astype(np.uint8), outer, -1, 1, cv2.FILLED)
    holes = (filled > 0) & ~mask
    rows, columns = np.nonzero(holes)
    bottom = np.nonzero(mask.any(1))[0].max()
    # Below the sill, within the wheels' height, left and right of the middle.
    low = rows > bottom - 130
    assert low.sum() > 100
    assert (columns[low] < 900).any() and (columns[low] > 1000).any()


def test_the_layout_is_the_competitions(folder):
    trained, tested = (entry.id for entry in demo.draw_cars(2, seed=3))
    views = [f"{view:02d}" for view in range(1, 17)]
    names = {
        "train": [f"{trained}_{view}.jpg" for view in views],
        "train_masks": [f"{trained}_{view}_mask.gif" for view in views],
        "test": [f"{tested}_{view}.jpg" for view in views],
    }
    for part, expected in names.items():
        assert sorted(path.name for path in (folder / part).iterdir()) == expected
    rows = table(folder / "sample_submission.csv")
    assert rows == [["img", "rle_mask"], *([name, "1 1"] for name in names["test"])]
    head, *models = table(folder / "metadata.csv")
    assert head == ["id", "year", "make", "model", "trim1", "trim2"]
    assert {row[0] for row in models} == {trained, tested}
    assert all(len(row[0]) == 12 and int(row[0], 16) >= 0 for row in models)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_masks_are_palette_gifs_of_the_photographs_size(folder):
    for path in (folder / "train_masks").iterdir():
        with (
            Image.open(path) as mask,
            Image.open(folder / "train" / path.name.replace("_mask.gif", ".jpg")) as photo,
        ):
            assert mask.mode == "P" and mask.size == photo.size == SMALL[::-1]
            assert set(np.unique(np.array(mask))) == {0, 1}
            assert mask.getpalette()[:6] == [0, 0, 0, 255, 255, 255]


def test_truth_is_the_masks(folder):
    entry = demo.draw_cars(2, seed=3)[1]
    rng = np.random.default_rng([3, entry.number, 1])
    made = cars.build_car(rng, demo.BODIES[entry.body], demo.PAINTS[entry.colour])
    head, *rows = table(folder / "test_truth.csv")
    assert head == ["img", "rle_mask"] and len(rows) == 16
    for view in (1, 7):
        name, text = rows[view - 1]
        assert name == f"{entry.id}_{view:02d}.jpg"
        assert np.array_equal(rle.decode(text, SMALL), render.render_view(made, view, SMALL)[1])


def test_a_filled_folder_is_refused(folder):
    with pytest.raises(errors.InputError, match="not empty"):
        demo.render_dataset(folder, 1, 1, seed=3, size=SMALL)


def test_an_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.render_dataset(tmp_path / "data", 1, 0, seed=3, size=(64, 96))
    assert list(tmp_path.iterdir()) == []
