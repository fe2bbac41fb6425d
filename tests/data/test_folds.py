"""folds.py: balanced folds of whole cars, and the file that it writes."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import REAL, ROOT, assert_input_error, needs_real_data
from tiny_datasets import make_data, write_mask

import folds
from core import config
from data import csv_files, datasets, mask_io
from data.classes import ClassMap


def folds_args(data_dir, *args):
    return [f"data_dir={data_dir}", f"folds_csv={data_dir / 'folds.csv'}", "n_folds=2", *args]


def test_assign_folds_balances_counts_and_areas():
    rng = np.random.default_rng(0)
    areas = pd.Series(rng.uniform(0.1, 0.3, 103), index=[f"car{i:03}" for i in range(103)])
    assigned = folds.assign_folds(areas, 5)
    assert sorted(assigned.value_counts()) == [20, 20, 21, 21, 21]
    means = areas.groupby(assigned).mean()
    assert means.max() - means.min() < 0.005


def test_assign_folds_does_not_depend_on_order():
    areas = pd.Series({"b": 0.2, "a": 0.2, "c": 0.1, "d": 0.4})
    assert folds.assign_folds(areas, 2).equals(folds.assign_folds(areas.iloc[::-1], 2))


def test_assign_folds_spreads_each_stratum():
    areas = pd.Series({"a_1": 0.1, "a_2": 0.9, "b_1": 0.2, "b_2": 0.8})
    assigned = folds.assign_folds(areas, 2, stratify_by=lambda group: group[0])
    assert assigned["a_1"] != assigned["a_2"] and assigned["b_1"] != assigned["b_2"]


def test_main_writes_a_row_per_car_and_keeps_other_datasets(data_dir, capsys):
    folds.main(folds_args(data_dir, "dataset_name=other"))
    table = pd.read_csv(data_dir / "folds.csv")
    assert table["dataset"].value_counts().to_dict() == {"tiny": 4, "other": 4}
    assert sorted(table[table["dataset"] == "other"]["fold"]) == [0, 0, 1, 1]
    assert "4 groups of dataset other in 2 folds" in capsys.readouterr().out


def test_main_warns_of_an_image_in_two_groups(data_dir, capsys):
    train_dir = data_dir / "train"
    args = [f"data_dir={data_dir}", "dataset_name=tiny", f"folds_csv={data_dir / 'new.csv'}"]
    folds.main([*args, "n_folds=2"])
    assert "several times" not in capsys.readouterr().out
    shutil.copy(train_dir / "000000000000_01.jpg", train_dir / "000000000002_03.jpg")
    (data_dir / "new.csv").unlink()
    folds.main([*args, "n_folds=2"])
    expected = (
        "warning: images that occur more than once: 1, for example in groups 000000000000 and "
    )
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "typed", "is_warned"),
    [
        ("group_regex: (.+)\nn_folds: 4", [], True),
        ("group_regex: (.+)\nn_folds: 5", [], True),
        ("n_folds: 4", [], False),  # grouped by car
        ("n_folds: 4", ["group_regex=(.+)"], False),  # on purpose
    ],
)
def test_main_warns_if_numbered_images_are_groups(
    data_dir, tmp_path, capsys, recipe, typed, is_warned
):
    shutil.copy(data_dir / "train/000000000000_01.jpg", data_dir / "train/logo.jpg")
    write_mask(data_dir / "train_masks/logo_mask.gif", np.ones((48, 72), bool))
    path = tmp_path / "numbered.yaml"
    path.write_text(f"{recipe}\n")
    if "(.+)" not in recipe + "".join(typed):
        (data_dir / "train/logo.jpg").unlink()
        (data_dir / "train_masks/logo_mask.gif").unlink()
    args = [f"recipe={path}", f"data_dir={data_dir}", "dataset_name=tiny"]
    folds.main([*args, f"folds_csv={tmp_path / 'new.csv'}", *typed])
    printed = capsys.readouterr().out
    found = "warning: 000000000000_01 and 000000000000_02 are in different groups"
    assert (found in printed) == is_warned
    if is_warned:  # the suggested expression also matches a name without a number
        [regex] = re.findall("group_regex='(.+)'", printed)
        folds.main([*args, f"folds_csv={tmp_path / 'grouped.csv'}", f"group_regex={regex}"])
        table = pd.read_csv(tmp_path / "grouped.csv", dtype=str)
        assert table["group"].tolist() == sorted([*(f"{i:012}" for i in range(4)), "logo"])


def test_main_does_not_warn_of_numbers_after_a_single_name(data_dir, tmp_path, capsys):
    for folder in ("train", "train_masks"):
        for i, path in enumerate(sorted((data_dir / folder).iterdir()), 1):
            suffix = "_mask.gif" if folder == "train_masks" else ".jpg"
            path.rename(path.with_name(f"photo_{i}{suffix}"))
    args = [f"data_dir={data_dir}", "dataset_name=tiny", f"folds_csv={tmp_path / 'new.csv'}"]
    (tmp_path / "photos.yaml").write_text("group_regex: (.+)\n")
    folds.main([f"recipe={tmp_path / 'photos.yaml'}", *args])
    assert "different groups" not in capsys.readouterr().out


def test_main_does_not_overwrite_the_folds_of_other_cars(data_dir, tmp_path):
    other = make_data(tmp_path / "other", cars=6)
    shutil.copy(other / "folds.csv", data_dir / "folds.csv")
    before = (data_dir / "folds.csv").read_bytes()
    args = folds_args(data_dir, "dataset_name=tiny")
    assert_input_error(folds.main, args, "has 6 groups of dataset tiny, ", "folds_csv=<new file>")
    assert (data_dir / "folds.csv").read_bytes() == before


def test_main_rejects_fewer_groups_than_folds(data_dir):
    args = [*folds_args(data_dir)[:2], "dataset_name=new", "n_folds=5"]
    line = assert_input_error(folds.main, args)
    assert line == (
        "n_folds=5: group_regex=(.+)_\\d+ makes only 4 groups of 12 images in "
        f"{data_dir}: 000000000000, 000000000001, 000000000002, 000000000003; "
        "set n_folds=4 or group_regex='(.+)' if no two images show the same object"
    )


def test_main_suggests_independent_images_for_names_of_a_phone(tmp_path):
    data_dir = make_data(tmp_path / "tiny", cars=1, views=4)
    args = folds_args(data_dir, "dataset_name=new")
    line = assert_input_error(folds.main, args, "makes only 1 group of 4 images")
    assert line.endswith("set group_regex='(.+)' if no two images show the same object")


def test_main_rejects_a_single_image(tmp_path):
    data_dir = make_data(tmp_path / "tiny", cars=1, views=1)
    line = assert_input_error(folds.main, folds_args(data_dir, "dataset_name=new"))
    assert line.startswith(f"{data_dir}: has a single training image, 000000000000_01; at least")


def test_main_prints_empty_and_full_masks(data_dir, capsys):
    for view, value in ((1, 0), (2, 1)):
        path = data_dir / f"train_masks/000000000001_0{view}_mask.gif"
        write_mask(path, np.full((48, 72), value, bool))
    folds.main(folds_args(data_dir, "dataset_name=new"))
    printed = capsys.readouterr().out
    assert "masks that show only background: 1, such as 000000000001_01\n" in printed
    assert "masks that cover the whole image: 1, such as 000000000001_02\n" in printed


def test_committed_folds_are_those_of_the_competition():
    table = csv_files.read_csv_strict(ROOT / "folds.csv", folds.COLUMNS)
    assert len(table) == table["group"].nunique() == 318
    assert sorted(table["fold"].value_counts()) == [63, 63, 64, 64, 64]


@needs_real_data
def test_assign_folds_reproduces_the_committed_folds():
    cars = pd.read_csv(REAL / "carvana/train_cars.csv", index_col="car_id")
    committed = pd.read_csv(ROOT / "folds.csv", index_col="group")["fold"]
    assert folds.assign_folds(cars["mean_mask_area"], 5).equals(
        committed.rename(None).rename_axis(None)
    )


@needs_real_data
def test_foreground_fraction_of_real_masks_has_the_published_mean():
    settings = config.load_settings([f"data_dir={REAL / 'carvana'}"])
    areas = pd.read_csv(REAL / "carvana/train_cars.csv", index_col="car_id")["mean_mask_area"]
    samples = datasets.load_samples(settings, "train")[:32]
    for group in {sample.group for sample in samples}:
        fractions = [folds.foreground_fraction(s) for s in samples if s.group == group]
        assert len(fractions) == 16
        assert np.mean(fractions) == pytest.approx(areas[group], abs=5.1e-7)


def test_main_does_not_overwrite_folds_that_were_edited(data_dir):
    args = folds_args(data_dir, "dataset_name=new")
    folds.main(args)
    folds.main(args)
    path = data_dir / "folds.csv"
    lines = path.read_text().splitlines()
    lines[-1] = lines[-1][:-1] + str(1 - int(lines[-1][-1]))
    path.write_text("\n".join(lines) + "\n")
    assert_input_error(
        folds.main, args, "has other folds of dataset new: n_folds or masks have changed"
    )


def test_main_warns_of_masks_of_the_background(data_dir, tmp_path, capsys):
    for path in (data_dir / "train_masks").iterdir():
        write_mask(path, ~mask_io.read_mask(path))
    folds.main(folds_args(data_dir, "dataset_name=new"))
    assert "of the images on average; the object must be white" in capsys.readouterr().out


def test_assign_folds_takes_turns_in_snake_order():
    areas = pd.Series({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.5})
    assert folds.assign_folds(areas, 2).to_dict() == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 0}


def test_mean_mask_area_is_rounded_to_6_digits(data_dir):
    samples = datasets.load_samples(config.load_settings(folds_args(data_dir)), "train")
    areas = folds.mean_mask_area(samples)
    fractions = [folds.foreground_fraction(s) for s in samples if s.group == areas.index[0]]
    assert areas.iloc[0] == round(np.mean(fractions), 6) != np.mean(fractions)


@pytest.mark.parametrize("names", [("background", "car", "road"), ("sky", "car", "road")])
def test_mean_mask_area_reports_masks_of_background_only_if_there_is_a_background(
    data_dir, capsys, monkeypatch, names
):
    [sample, *_] = datasets.load_samples(config.load_settings(folds_args(data_dir)), "train")
    sample = replace(sample, class_map=ClassMap(names, ((0, 0, 0),) * 3))
    monkeypatch.setattr(datasets, "read_sample_mask", lambda sample: np.zeros((4, 4), np.uint8))
    folds.mean_mask_area([sample])
    printed = "masks that show only background: 1" in capsys.readouterr().out
    assert printed == (names[0] == "background")


def test_main_makes_as_many_folds_as_there_are_groups(data_dir):
    folds.main([*folds_args(data_dir)[:2], "dataset_name=new", "n_folds=4"])
    table = pd.read_csv(data_dir / "folds.csv")
    assert sorted(table[table["dataset"] == "new"]["fold"]) == [0, 1, 2, 3]


def test_foreground_fraction_counts_no_ignored_pixel(monkeypatch):
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    monkeypatch.setattr(folds.datasets, "read_sample_mask", lambda sample: mask)
    assert folds.foreground_fraction(None) == 0.5
