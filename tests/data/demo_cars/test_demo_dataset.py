"""The demo dataset: the competition's layout, exact masks, complete or absent."""

import csv
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

import numpy as np
import pytest
from browser import wait_for
from conftest import ROOT
from PIL import Image

import demo
from core.errors import InputError
from core.files import folder_lock
from data import rle
from data.demo_cars import dataset
from data.demo_cars.cars import build_car
from data.demo_cars.designs import BODIES, PAINTS
from data.demo_cars.render import render_view

SIZE = (64, 96)


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "data"
    dataset.write_demo_dataset(path, 1, 1, seed=3, size=SIZE)
    return path


def test_write_demo_dataset_layout_is_the_competitions(folder):
    train_car, test_car = (car.id for car in dataset.draw_cars(2, seed=3))
    views = [f"{view:02d}" for view in range(1, 17)]
    expected = {
        "train": [f"{train_car}_{view}.jpg" for view in views],
        "train_masks": [f"{train_car}_{view}_mask.gif" for view in views],
        "test": [f"{test_car}_{view}.jpg" for view in views],
    }
    for name, files in expected.items():
        assert sorted(path.name for path in (folder / name).iterdir()) == files
    sample_submission = read_csv(folder / "sample_submission.csv")
    assert sample_submission == [
        ["img", "rle_mask"],
        *([name, "1 1"] for name in expected["test"]),
    ]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_write_demo_dataset_metadata_has_all_cars(folder):
    header, *rows = read_csv(folder / "metadata.csv")
    assert header == ["id", "year", "make", "model", "trim1", "trim2"]
    assert {row[0] for row in rows} == {car.id for car in dataset.draw_cars(2, seed=3)}
    assert all(len(row[0]) == 12 and int(row[0], 16) >= 0 for row in rows)


def test_write_demo_dataset_masks_are_palette_gifs_of_image_size(folder):
    for path in (folder / "train_masks").iterdir():
        image_path = folder / "train" / path.name.replace("_mask.gif", ".jpg")
        with Image.open(path) as mask, Image.open(image_path) as image:
            assert mask.mode == "P" and mask.size == image.size == SIZE[::-1]
            assert set(np.unique(np.array(mask))) == {0, 1}
            assert mask.getpalette()[:6] == [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize("view", [1, 7])
def test_write_demo_dataset_truth_equals_rendered_masks(folder, view):
    demo_car = dataset.draw_cars(2, seed=3)[1]
    rng = np.random.default_rng([3, demo_car.number, 1])
    car = build_car(rng, BODIES[demo_car.body], PAINTS[demo_car.color])
    header, *rows = read_csv(folder / "test_masks.csv")
    assert header == ["img", "rle_mask"] and len(rows) == 16
    file_name, runs = rows[view - 1]
    assert file_name == f"{demo_car.id}_{view:02d}.jpg"
    assert np.array_equal(rle.decode(runs, SIZE), render_view(car, view, SIZE)[1])


def test_write_demo_dataset_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def write_one_file_and_stop(folder, *_):
        (folder / "metadata.csv").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "write_files", write_one_file_and_stop)
    with pytest.raises(KeyboardInterrupt):
        dataset.write_demo_dataset(tmp_path / "data", 1, 0, 3, SIZE)
    assert list(tmp_path.iterdir()) == []


def test_write_demo_dataset_replaces_what_a_killed_process_left(tmp_path):
    left = tmp_path / "data.tmp" / "train" / "half.jpg"
    left.parent.mkdir(parents=True)
    left.touch()
    dataset.write_demo_dataset(tmp_path / "data", 1, 0, 3, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    names = {path.name for path in (tmp_path / "data").rglob("*")}
    assert "half.jpg" not in names and ".lock" not in names


def test_write_demo_dataset_while_another_process_does_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("core.files.LOCK_WAIT_S", 0)
    with (
        folder_lock(tmp_path / "data.tmp", ""),
        pytest.raises(InputError, match="another process is using this folder; wait until"),
    ):
        dataset.write_demo_dataset(tmp_path / "data", 1, 0, 3, SIZE)


def test_stopped_rendering_does_not_render_the_other_views(tmp_path, monkeypatch):
    def stop(futures):
        next(as_completed(futures)).result()
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "as_completed", stop)
    monkeypatch.setattr(dataset, "ProcessPoolExecutor", partial(ProcessPoolExecutor, 2))
    cars = dataset.draw_cars(2, seed=3)
    with pytest.raises(KeyboardInterrupt):
        dataset.write_files(tmp_path, cars, 2, 3, SIZE)
    assert len(list((tmp_path / "train").iterdir())) < 16


@pytest.mark.slow
def test_stopped_train_script_leaves_nothing_of_the_demo_that_it_renders(tmp_path):
    args = ["recipe=demo", f"data_dir={tmp_path / 'data'}", f"output_dir={tmp_path / 'output'}"]
    command = [sys.executable, str(ROOT / "src" / "train.py"), *args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: list(tmp_path.glob("data.tmp/train/*.jpg")))
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in stderr
    assert not list(tmp_path.glob("data*"))


def test_write_demo_dataset_rejects_a_link_before_rendering(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(InputError, match="link: choose a folder that can be created"):
        dataset.write_demo_dataset(tmp_path / "link", 1, 0, 3, SIZE)


@pytest.mark.parametrize("occupied", ["a folder with a file", "a file"])
def test_main_occupied_data_dir_is_refused(tmp_path, occupied):
    data_dir = tmp_path / "data"
    if occupied == "a file":
        data_dir.touch()
    else:
        data_dir.mkdir()
        (data_dir / "mine.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        demo.main(["recipe=demo", f"data_dir={data_dir}"])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
