"""The other dataset formats, and several classes, end to end on small copies of their layouts."""

import contextlib
import io
import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import (
    REAL,
    assert_input_error,
    needs_real_data,
    once_per_session,
    prediction_args,
    tiny_settings_args,
)
from PIL import Image
from tiny_datasets import (
    draw_car,
    make_cityscapes,
    make_cityscapes_pairs,
    make_data,
    make_pets,
    write_test_masks,
)

import folds
import leaderboard
import predict
import report
import train
from core import config
from core.errors import InputError
from data import datasets, image_io
from data.formats import pets

# ---------------------------------------------------------------- files


def load(dataset_format, data_dir, *args, split="train"):
    """Return the samples of a dataset in which each image is a group of its own."""
    args = [f"dataset_format={dataset_format}", f"data_dir={data_dir}", "group_regex=(.+)", *args]
    return datasets.load_samples(config.load_settings(args), split)


def test_pets_samples_follow_the_lists_and_file_types_their_content(tmp_path):
    data_dir = make_pets(tmp_path / "pets")
    samples = load("pets", data_dir, "trimap_border=class")
    assert len(samples) == 7
    assert [s.image_id for s in load("pets", data_dir, split="test")] == ["Bombay_1", "Bombay_2"]
    image = image_io.read_image(samples[0].image)
    for file_type in ("GIF", "PNG"):  # under the name .jpg, as some images of the real dataset
        Image.fromarray(image).save(samples[0].image, format=file_type)
        error = np.abs(datasets.read_sample_image(samples[0]).astype(int) - image).mean()
        assert error < 12
    assert set(np.unique(datasets.read_sample_mask(samples[0]))) == {0, 1, 2}
    assert datasets.read_sample_mask(load("pets", data_dir)[0]).dtype == bool


def test_cityscapes_pairs_are_split_in_the_middle(tmp_path):
    data_dir = make_cityscapes_pairs(tmp_path / "pairs")
    samples = load("pairs", data_dir, "cityscapes_classes=19")
    image, mask = draw_car(0, 0, (48, 48))
    assert np.abs(datasets.read_sample_image(samples[0]).astype(int) - image).mean() < 8
    assert (datasets.read_sample_mask(samples[0]) == np.where(mask, 13, 0)).mean() > 0.95
    assert datasets.read_checked_sizes(samples) == {(48, 48)}


def test_two_images_of_one_name_are_rejected(tmp_path):
    data_dir = make_cityscapes(tmp_path / "cityscapes")
    folder = data_dir / "leftImg8bit/train"
    city = min(folder.iterdir())
    shutil.copytree(city, folder / "other")
    shutil.copytree(data_dir / "gtFine/train" / city.name, data_dir / "gtFine/train/other")
    with pytest.raises(InputError, match=f"two train images are named {city.name}.*; rename or"):
        load("cityscapes", data_dir)


def test_cityscapes_samples_pair_images_with_label_ids(tmp_path):
    data_dir = make_cityscapes(tmp_path / "cityscapes")
    (data_dir / "leftImg8bit/train/.ipynb_checkpoints").mkdir()
    args = ["cityscapes_classes=19", "group_regex=([^_]+)_.+"]
    samples = load("cityscapes", data_dir, *args)
    assert [sample.group for sample in samples] == ["city0", "city0", "city1", "city1"]
    expected = np.where(draw_car(0, 0, (32, 64))[1], 13, 0)
    assert np.array_equal(datasets.read_sample_mask(samples[0]), expected)
    assert len(load("cityscapes", data_dir, *args, split="test")) == 4


def list_a_missing_pet(data_dir):
    with open(data_dir / "annotations" / "trainval.txt", "a") as file:
        file.write("Sphynx_1 1 1 1\n")


def write_an_unknown_trimap_value(data_dir):
    path = data_dir / "annotations" / "trimaps" / "Pug_0.png"
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save(path)


def write_a_trimap_of_another_size(data_dir):
    path = data_dir / "annotations" / "trimaps" / "Pug_0.png"
    Image.fromarray(np.ones((40, 40), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("corrupt", "parts"),
    [
        (
            list_a_missing_pet,
            ["Sphynx_1.jpg: does not exist", "trainval.txt lists it"],
        ),
        (write_an_unknown_trimap_value, ["Pug_0.png", "value 7", "1, 2, 3"]),
        (write_a_trimap_of_another_size, ["Pug_0.png", "40×40", "Pug_0.jpg", "48×40"]),
    ],
)
def test_train_rejects_invalid_pets(tmp_path, corrupt, parts):
    data_dir, folds_csv = make_pets(tmp_path / "pets"), tmp_path / "folds.csv"
    table = [f"pets,{sample.group},{i % 2}" for i, sample in enumerate(load("pets", data_dir))]
    folds_csv.write_text("\n".join(["dataset,group,fold", *table, "pets,Sphynx_1,0"]) + "\n")
    corrupt(data_dir)
    args = [f"data_dir={data_dir}", f"folds_csv={folds_csv}", f"output_dir={tmp_path / 'output'}"]
    args += ["recipe=pets_fcn", "size=[32,32]", "device=cpu"]
    assert_input_error(train.main, args, *parts)


def test_reading_cityscapes_pairs_rejects_other_shapes_and_colors(tmp_path):
    data_dir = make_cityscapes_pairs(tmp_path / "pairs")
    path = data_dir / "train" / "1.jpg"
    samples = load("pairs", data_dir)
    cv2.imwrite(str(path), np.zeros((48, 90, 3), np.uint8))
    with pytest.raises(InputError, match=r"1.jpg: is 90×48, expected twice as wide as tall"):
        datasets.read_checked_sizes(samples)
    cv2.imwrite(str(path), np.full((48, 96, 3), (0, 255, 0), np.uint8))
    with pytest.raises(InputError, match=r"1.jpg: .*color"):
        datasets.read_sample_mask(samples[1])


@needs_real_data
def test_load_samples_reads_real_pets_and_drop_empty_masks_removes_the_empty_one():
    samples = [s for split in ("train", "test") for s in load("pets", REAL / "pets", split=split)]
    assert len(samples) == 184
    gif = next(sample for sample in samples if sample.image_id == "Abyssinian_34")
    assert datasets.read_sample_image(gif).ndim == 3
    assert not datasets.read_sample_mask(gif).any()
    kept = datasets.drop_empty_masks(samples)
    assert len(kept) == 183 and gif not in kept


# ---------------------------------------------------------------- several classes


def call_main(main, args):
    """Call a script's main and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(args)
    return printed.getvalue()


@pytest.fixture(scope="module")
def pets_runs(tmp_path_factory):
    """Folder of two runs with three classes, their ensemble and its prediction. Read-only."""

    def train_and_predict(folder):
        args = [f"data_dir={make_pets(folder / 'pets', 12)}", f"folds_csv={folder / 'folds.csv'}"]
        args += [f"output_dir={folder / 'output'}", "n_folds=2", "recipe=pets_fcn", "device=cpu"]
        args += ["precision=fp32", "num_workers=0", "size=[32,32]", "channels=[8,16]"]
        args += ["batch_size=4", "epochs=6", "lr=0.01", "validate_every_epochs=3"]
        for seed, run in enumerate("ab"):
            train.main([*args, f"run={run}", f"seed={seed}"])
        printed = call_main(predict.main, [f"output_dir={folder / 'output'}", "runs=[a,b]"])
        (folder / "printed.txt").write_text(printed)

    return once_per_session(tmp_path_factory, "pets_runs", train_and_predict)


def test_training_pets_writes_folds_that_hold_every_breed(pets_runs):
    table = pd.read_csv(pets_runs / "folds.csv")
    breeds = table["group"].str.rpartition("_")[0]
    assert table.groupby(breeds)["fold"].nunique().eq(2).all()


def test_multiclass_oof_scores_are_those_of_the_confusion_matrices(pets_runs):
    folder = pets_runs / "output" / "a" / "fold0"
    table = pd.read_csv(folder / "oof.csv")
    with np.load(folder / "oof.npz") as file:
        confusion = file["confusion"]
    assert confusion.shape == (len(table), 3, 3)
    accuracy = np.trace(confusion, axis1=1, axis2=2) / confusion.sum((1, 2))
    assert table["accuracy"].tolist() == pytest.approx(accuracy.tolist(), abs=1e-6)


def test_leaderboard_of_several_classes_shows_mean_iou_and_no_threshold(pets_runs):
    printed = call_main(leaderboard.main, [f"output_dir={pets_runs / 'output'}"])
    assert "mean IoU" in printed and "threshold" not in printed
    table = pd.read_csv(pets_runs / "output" / "leaderboard.csv")
    assert set(table["run"]) == {"a", "b", "a+b"} and table["pixel_iou"].between(0, 1).all()


def test_predict_several_classes_writes_colors_a_legend_and_scores(pets_runs):
    folder = pets_runs / "output" / "a+b"
    class_map = pets.Pets().make_class_map(config.load_settings(["trimap_border=class"]))
    for name in ("Bombay_2", "Bombay_3"):
        colored = cv2.imread(str(folder / "masks" / f"{name}.png"), cv2.IMREAD_COLOR_RGB)
        original = cv2.imread(str(pets_runs / "pets" / "images" / f"{name}.jpg"))
        assert colored.shape == original.shape
        colors = {tuple(c) for c in np.unique(colored.reshape(-1, 3), axis=0)}
        assert colors <= set(class_map.colors)
    assert (folder / "masks" / "legend.png").exists()
    assert pd.read_csv(folder / "test.csv")["image_id"].tolist() == ["Bombay_2", "Bombay_3"]
    assert "mean IoU" in (pets_runs / "printed.txt").read_text()
    metadata = json.loads((folder / "submission.json").read_text())
    assert metadata["runs"] == ["a", "b"]


def test_report_of_several_classes_has_a_confusion_matrix_and_no_threshold(pets_runs):
    suspects = pets_runs / "output/suspects.csv"
    suspects.write_text("of another run")
    report.main([f"output_dir={pets_runs / 'output'}", "runs=[a,b]"])
    page = (pets_runs / "output" / "report.html").read_text(encoding="utf-8")
    assert not suspects.exists()  # such masks are not checked
    assert "<td>border</td>" in page and "threshold" not in page.split("<script>")[0].lower()


def test_classes_csv_trains_and_predicts_several_classes(tmp_path):
    data_dir = make_data(tmp_path / "data")
    (data_dir / "classes.csv").write_text("value,name,color\n1,car,#0a64c8\n0,floor,black\n")
    args = [*tiny_settings_args(data_dir, tmp_path / "output"), "fold=0"]
    assert_input_error(train.main, [*args, "threshold=0.3"], "threshold=0.3: is for one class")
    assert "mean IoU" in call_main(train.main, args)
    write_test_masks(data_dir)
    printed = call_main(predict.main, prediction_args(args))
    assert "test dice" in printed and "mean IoU" in printed
    folder = tmp_path / "output/tiny/masks"
    names = [f"{path.stem}.png" for path in sorted((data_dir / "test").iterdir())]
    assert sorted(path.name for path in folder.glob("[!.]*")) == [*names, "labels", "legend.png"]
    for name in names:
        colors = cv2.imread(str(folder / name), cv2.IMREAD_COLOR_RGB)
        label = cv2.imread(str(folder / "labels" / name), cv2.IMREAD_UNCHANGED)
        assert label.dtype == np.uint8 and {*np.unique(label)} <= {0, 1}
        assert (colors == np.array([(0, 0, 0), (10, 100, 200)])[label]).all()
    classes_csv = data_dir / "classes.csv"
    swapped = classes_csv.read_text().replace("1,car", "2,car")
    classes_csv.write_text(swapped)
    message = f"{classes_csv}: has other values or colors than when"
    assert_input_error(predict.main, prediction_args(args), message)
    recolored = swapped.replace("2,car", "1,car").replace("#0a64c8", "#0a64c9")
    classes_csv.write_text(recolored + "9,ignore,\n")
    assert "test dice" in call_main(predict.main, prediction_args(args))
    classes_csv.write_text(swapped.replace("2,car", "1,car"))
    for name in ("test_masks", "sample_submission.csv"):
        (data_dir / name).rename(data_dir / f"no_{name}")
    image = min((data_dir / "test").iterdir())
    image.rename(image.with_stem("legend"))
    message = "legend: the picture of the colors has this name; rename the test image"
    assert_input_error(predict.main, prediction_args(args), message)


@pytest.mark.parametrize("option", ["threshold=0.3", "postprocess=largest", "truth_csv=t.csv"])
def test_predict_rejects_options_of_one_class_for_several(pets_runs, option):
    args = [f"output_dir={pets_runs / 'output'}", "runs=[b,a]", option]
    assert_input_error(predict.main, args, f"{option}: is for one class", "3 classes", "leave it")


# ---------------------------------------------------------------- tiles


def test_cityscapes_pairs_are_predicted_in_tiles_from_images_to_scores(tmp_path):
    data_dir, output_dir = make_cityscapes_pairs(tmp_path / "pairs", side=144), tmp_path / "output"
    args = [f"data_dir={data_dir}", f"folds_csv={tmp_path / 'folds.csv'}", "n_folds=2"]
    args += [f"output_dir={output_dir}", "recipe=cityscapes_pairs", "run=tiles", "device=cpu"]
    args += ["precision=fp32", "num_workers=0", "size=null", "channels=[4,8]", "dropout=[]"]
    call_main(folds.main, args)  # train.py would start it in a process
    call_main(train.main, [*args, "batch_size=2", "fold=0", "epochs=1"])
    scores = []
    for tile_size in (0, 128):
        tiles = [f"tile_size={tile_size}", f"output_dir={output_dir}", "run=tiles", "device=cpu"]
        assert "test dice" in call_main(predict.main, tiles)
        scores.append(pd.read_csv(output_dir / "tiles" / "test.csv")["test_dice"])
        assert scores[-1].between(0, 1).all()
    assert np.allclose(*scores, atol=0.2)  # the network sees less than a tile


@pytest.mark.parametrize("breed", ["Bombay", "Great_Pyrenees"])
def test_stratum_of_a_pet_is_its_breed(breed):
    assert pets.Pets().fold_stratum(f"{breed}_100") == breed


def test_groups_of_cityscapes_are_cities():
    regex = config.load_settings(["recipe=cityscapes_unet"]).group_regex
    assert datasets.group_from_stem("aachen_000000_000019_leftImg8bit", regex) == "aachen"
