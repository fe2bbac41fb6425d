"""Which files there are, whose they are, and how a spoiled data set is answered."""

import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import REAL, ROOT, make_data, needs_real_data, run_script
from PIL import Image

import folds
from core import config
from core.errors import InputError
from data import datasets, image_io


def settings_of(data, *words):
    folds_csv = data / "folds.csv"
    return config.load_settings(
        [f"data_dir={data}", f"folds_csv={folds_csv}", "dataset_name=tiny", *words]
    )


def test_rows_pair_by_name_and_carry_group_view_and_fold(data):
    rows = datasets.load_training_samples(settings_of(data))
    assert len(rows) == 12
    for row in rows:
        assert row.mask.name == f"{row.image_id}_mask.gif"
        assert row.image_id == f"{row.group}_{row.view}"
        assert row.fold == int(row.group, 16) % 2


def test_no_group_is_on_both_sides_of_a_fold(data):
    rows = datasets.load_training_samples(settings_of(data))
    for fold in (0, 1):
        inside = {row.group for row in rows if row.fold == fold}
        assert inside and not inside & {row.group for row in rows if row.fold != fold}


def test_limit_takes_the_first_images_of_each_fold(data):
    rows = datasets.load_training_samples(settings_of(data, "max_images=2"))
    assert [row.fold for row in rows].count(0) == 2 and len(rows) == 4


def test_test_rows_follow_the_sample(data):
    sample = data / "sample_submission.csv"
    header, *lines = sample.read_text().splitlines()
    sample.write_text("\n".join([header, *reversed(lines)]) + "\n")
    names = [row.image.name for row in datasets.load_test_samples(settings_of(data))]
    assert names == [line.split(",")[0] for line in reversed(lines)]


def test_hq_reads_the_other_folders(data):
    shutil.copytree(data / "train", data / "train_hq")
    rows = datasets.load_training_samples(settings_of(data, "use_hq_images=true"))
    assert {row.image.parent.name for row in rows} == {"train_hq"}


def spoil_missing_mask(data):
    (data / "train_masks/000000000001_02_mask.gif").unlink()


def spoil_orphan(data):
    (data / "train/000000000001_02.jpg").unlink()


def spoil_size(data):
    Image.new("P", (72, 40)).save(data / "train_masks/000000000001_02_mask.gif")


def spoil_not_an_image(data):
    (data / "train/000000000001_02.jpg").write_text("hello")


def spoil_unknown_car(data):
    for part, ending in (("train", ".jpg"), ("train_masks", "_mask.gif")):
        shutil.copy(
            data / part / f"000000000001_02{ending}", data / part / f"ffffffffffff_02{ending}"
        )


def spoil_name(data):
    shutil.move(data / "train/000000000001_02.jpg", data / "train/car.jpg")
    shutil.move(data / "train_masks/000000000001_02_mask.gif", data / "train_masks/car_mask.gif")


def spoil_twin(data):
    image = cv2.imread(str(data / "train/000000000001_02.jpg"))
    cv2.imwrite(str(data / "train/000000000001_02.png"), image)


def spoil_folds_twice(data):
    with (data / "folds.csv").open("a") as file:
        file.write("tiny,000000000001,0\n")


def spoil_folds_hole(data):
    text = (data / "folds.csv").read_text()
    (data / "folds.csv").write_text(text.replace(",1\n", ",2\n"))


def spoil_folds_header(data):
    (data / "folds.csv").write_text("group,fold\na,0\n")


def spoil_folds_number(data):
    (data / "folds.csv").write_text("dataset,group,fold\ntiny,000000000000,one\n")


def spoil_folder(data):
    shutil.rmtree(data / "train")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (spoil_missing_mask, ["000000000001_02_mask.gif", "missing"]),
        (spoil_orphan, ["000000000001_02_mask.gif", "without an image"]),
        (spoil_size, ["000000000001_02_mask.gif", "72×40", "72×48"]),
        (spoil_not_an_image, ["000000000001_02.jpg", "cannot be read"]),
        (spoil_unknown_car, ["ffffffffffff", "python src/folds.py"]),
        (spoil_name, ["car", "group_by"]),
        (spoil_twin, ["000000000001_02", "same stem"]),
        (spoil_folds_twice, ["000000000001", "twice"]),
        (spoil_folds_hole, ["fold 1"]),
        (spoil_folds_header, ["dataset,group,fold"]),
        (spoil_folds_number, ["'one'"]),
        (spoil_folder, ["kaggle competitions download", "recipe=demo"]),
    ],
)
def test_a_spoiled_data_set_is_one_line(data, spoil, parts):
    spoil(data)
    with pytest.raises(InputError) as error:
        image_io.check_sizes(datasets.load_training_samples(settings_of(data)))
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_test_folder_that_differs_from_the_sample_is_refused(data, change):
    image = data / "test/000000000004_01.jpg"
    image.unlink() if change == "missing" else shutil.copy(image, data / "test/00000000000f_01.jpg")
    with pytest.raises(InputError, match=change):
        datasets.load_test_samples(settings_of(data))


@pytest.mark.parametrize("high", [1, 255])
def test_a_mask_is_what_is_above_zero(tmp_path, high):
    values = np.array([[0, high], [high, 0]], np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png")
    assert (image_io.read_mask(tmp_path / "m.png") == (values > 0)).all()


def test_a_mask_of_three_values_is_refused(tmp_path):
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png"):
        image_io.read_mask(tmp_path / "m.png")


# ---------------------------------------------------------------- folds.py


def test_folds_are_even_in_count_and_area():
    rng = np.random.default_rng(0)
    areas = pd.Series(rng.uniform(0.1, 0.3, 103), index=[f"car{i:03}" for i in range(103)])
    assigned = folds.assign_folds(areas, 5)
    assert sorted(assigned.value_counts()) == [20, 20, 21, 21, 21]
    means = areas.groupby(assigned).mean()
    assert means.max() - means.min() < 0.005


def test_folds_do_not_depend_on_the_order_of_the_cars():
    areas = pd.Series({"b": 0.2, "a": 0.2, "c": 0.1, "d": 0.4})
    assert folds.assign_folds(areas, 2).equals(folds.assign_folds(areas.iloc[::-1], 2))


def test_folds_py_writes_a_row_per_car_and_keeps_other_data_sets(data):
    path = data / "folds.csv"
    done = run_script(
        "folds.py", f"data_dir={data}", f"folds_csv={path}", "dataset_name=other", "n_folds=2"
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(path)
    assert table["dataset"].value_counts().to_dict() == {"tiny": 4, "other": 4}
    assert sorted(table[table["dataset"] == "other"]["fold"]) == [0, 0, 1, 1]


def test_folds_py_does_not_overwrite_the_folds_of_other_cars(data, tmp_path):
    more = make_data(tmp_path / "more", cars=6)
    shutil.copy(more / "folds.csv", data / "folds.csv")
    before = (data / "folds.csv").read_bytes()
    words = [
        f"data_dir={data}",
        f"folds_csv={data / 'folds.csv'}",
        "dataset_name=tiny",
        "n_folds=2",
    ]
    assert run_script("folds.py", *words).returncode == 2
    assert (data / "folds.csv").read_bytes() == before


def test_the_committed_folds_are_the_competitions():
    table = pd.read_csv(ROOT / "folds.csv")
    assert list(table.columns) == ["dataset", "group", "fold"]
    assert len(table) == table["group"].nunique() == 318
    assert sorted(table["fold"].value_counts()) == [63, 63, 64, 64, 64]


@needs_real_data
def test_the_committed_folds_are_what_folds_py_gives_for_all_318_cars():
    cars = pd.read_csv(REAL / "carvana/train_cars.csv", index_col="car_id")
    table = pd.read_csv(ROOT / "folds.csv", index_col="group")
    assert folds.assign_folds(cars["mean_mask_area"], 5).equals(
        table["fold"].rename(None).rename_axis(None)
    )


@needs_real_data
def test_areas_of_real_masks_are_those_of_the_whole_set():
    settings = config.load_settings([f"data_dir={REAL / 'carvana'}"])
    cars = pd.read_csv(REAL / "carvana/train_cars.csv", index_col="car_id")["mean_mask_area"]
    rows = datasets.pair_images_with_masks(settings)[:48]
    for car in {row.group for row in rows}:
        mean = np.mean([folds.foreground_fraction(row) for row in rows if row.group == car])
        assert round(mean, 6) == cars[car]
