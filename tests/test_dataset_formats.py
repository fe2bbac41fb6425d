"""Layouts beside the competition's, and several classes, through the commands a person types."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import REAL, draw_car, needs_real_data, refused, run_script
from PIL import Image

from core import config
from core.errors import InputError
from data import classes, datasets, image_io

COLOURS = [tuple(colour) for _, colour, _ in classes.CITYSCAPES_CLASSES]
ROAD, CAR = 7, 26


def make_pets(folder, count=9):
    """Oxford-IIIT Pet in small: images, trimaps with a border, and the two lists."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    names = [
        f"{breed}_{i}" for breed in ("Pug", "Basset_Hound", "Bombay") for i in range(count // 3)
    ]
    for i, name in enumerate(names):
        image, mask = draw_car(i, 0, (40, 48 + i))
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) > 0
        trimap = np.where(inner, 1, np.where(mask, 3, 2)).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"{name}.jpg"), image)
        Image.fromarray(trimap).save(folder / "annotations" / "trimaps" / f"{name}.png")
    for file, part in (("trainval.txt", names[:-2]), ("test.txt", names[-2:])):
        (folder / "annotations" / file).write_text("".join(f"{n} 1 1 1\n" for n in part))
    return folder


def make_pairs(folder):
    """Cityscapes image pairs in small: a car on a road, its label in colours right of it."""
    for part, count in (("train", 4), ("val", 2)):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            image, mask = draw_car(i, 0, (48, 48))
            label = np.where(mask[..., None], COLOURS[CAR], COLOURS[ROAD]).astype(np.uint8)
            both = np.concatenate([image, label], axis=1)
            cv2.imwrite(str(folder / part / f"{i}.jpg"), both[..., ::-1])
    return folder


def make_cityscapes(folder):
    """Cityscapes' own form in small: two cities, labels of ids."""
    for part in ("train", "val"):
        for i in range(4):
            image, mask = draw_car(i, 0, (32, 64))
            city, name = f"city{i % 2}", f"city{i % 2}_{i:06d}_000019"
            for kind, file, data in (
                ("leftImg8bit", "leftImg8bit", image),
                ("gtFine", "gtFine_labelIds", np.where(mask, CAR, ROAD).astype(np.uint8)),
            ):
                (folder / kind / part / city).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / kind / part / city / f"{name}_{file}.png"), data)
    return folder


def settings_of(layout, folder, *words):
    return config.load_settings(
        [f"dataset_format={layout}", f"data_dir={folder}", "group_regex=(.+)", *words]
    )


def test_pets_follow_their_lists_and_disguised_files_are_read(tmp_path):
    folder = make_pets(tmp_path / "pets")
    settings = settings_of("pets", folder, "trimap_border=class")
    rows = datasets.load_samples(settings, "train")
    assert len(rows) == 7 and [r.image_id for r in datasets.load_test_samples(settings)] == [
        "Bombay_1",
        "Bombay_2",
    ]
    picture = image_io.read_image(rows[0].image)
    for form in ("GIF", "PNG"):
        Image.fromarray(picture).save(rows[0].image, format=form)
        assert np.abs(image_io.read_sample_image(rows[0]).astype(int) - picture).mean() < 12
    assert set(np.unique(image_io.read_sample_mask(rows[0]))) == {0, 1, 2}
    assert (
        image_io.read_sample_mask(
            datasets.load_samples(settings_of("pets", folder), "train")[0]
        ).dtype
        == bool
    )


def test_pairs_are_cut_in_the_middle(tmp_path):
    folder = make_pairs(tmp_path / "pairs")
    rows = datasets.load_samples(settings_of("pairs", folder, "cityscapes_classes=19"), "train")
    image, mask = draw_car(0, 0, (48, 48))
    assert np.abs(image_io.read_sample_image(rows[0]).astype(int) - image).mean() < 8
    assert (image_io.read_sample_mask(rows[0]) == np.where(mask, 13, 0)).mean() > 0.95
    assert image_io.check_sizes(rows) == {(48, 48)}


def test_cityscapes_pairs_photographs_with_label_ids(tmp_path):
    folder = make_cityscapes(tmp_path / "city")
    settings = settings_of("cityscapes", folder, "cityscapes_classes=19", "group_regex=([^_]+)_.+")
    rows = datasets.load_samples(settings, "train")
    assert [row.group for row in rows] == ["city0", "city0", "city1", "city1"]
    assert np.array_equal(
        image_io.read_sample_mask(rows[0]), np.where(draw_car(0, 0, (32, 64))[1], 13, 0)
    )
    assert len(datasets.load_test_samples(settings)) == 4


def spoil_list(folder):
    with open(folder / "annotations" / "trainval.txt", "a") as file:
        file.write("Sphynx_1 1 1 1\n")


def spoil_trimap(folder):
    path = folder / "annotations" / "trimaps" / "Pug_0.png"
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save(path)


def spoil_size(folder):
    path = folder / "annotations" / "trimaps" / "Pug_0.png"
    Image.fromarray(np.ones((40, 40), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (spoil_list, ["Sphynx_1.jpg: missing", "trainval.txt"]),
        (spoil_trimap, ["Pug_0.png", "value 7", "1, 2, 3"]),
        (spoil_size, ["Pug_0.png", "40×40", "Pug_0.jpg", "48×40"]),
    ],
)
def test_bad_pets_are_told_in_one_line(tmp_path, spoil, parts):
    folder = make_pets(tmp_path / "pets")
    words = [
        f"data_dir={folder}",
        f"folds_csv={tmp_path / 'folds.csv'}",
        "n_folds=2",
        "size=[32,32]",
    ]
    words += [f"output_dir={tmp_path / 'output'}", "recipe=pets_fcn", "device=cpu"]
    assert run_script("folds.py", *words).returncode == 0
    spoil(folder)
    refused(run_script("train.py", *words), *parts)


def test_bad_pairs_are_told_in_one_line(tmp_path):
    folder = make_pairs(tmp_path / "pairs")
    path = folder / "train" / "1.jpg"
    rows = datasets.load_samples(settings_of("pairs", folder), "train")
    cv2.imwrite(str(path), np.zeros((48, 90, 3), np.uint8))
    with pytest.raises(InputError, match=r"1.jpg: is 90×48, not twice as wide as high"):
        image_io.check_sizes(rows)
    cv2.imwrite(str(path), np.full((48, 96, 3), (0, 255, 0), np.uint8))
    with pytest.raises(InputError, match=r"1.jpg: holds the colour"):
        image_io.read_sample_mask(rows[1])


# ---------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two runs of three classes on tiny pets, judged together and predicted."""
    folder = tmp_path_factory.mktemp("classes")
    data = make_pets(folder / "pets", 12)
    words = [
        f"data_dir={data}",
        f"folds_csv={folder / 'folds.csv'}",
        "n_folds=2",
        "recipe=pets_fcn",
    ]
    words += [f"output_dir={folder / 'output'}", "device=cpu", "precision=fp32", "num_workers=0"]
    more = ["size=[32,32]", "channels=[8,16]", "batch_size=4", "epochs=6", "lr=0.01"]
    for run in ("a", "b"):
        seed = f"seed={'ab'.index(run)}"
        done = run_script("train.py", *words, *more, f"run={run}", seed, "validate_every_epochs=3")
        assert done.returncode == 0, done.stderr
    where = [f"output_dir={folder / 'output'}"]
    done = run_script("predict.py", *where, "runs=[a,b]")
    assert done.returncode == 0, done.stderr
    return folder, where, done.stdout


def test_folds_are_written_once_and_every_breed_is_in_both(classes):
    table = pd.read_csv(classes[0] / "folds.csv")
    breeds = table["group"].str.rpartition("_")[0]
    assert table.groupby(breeds)["fold"].nunique().eq(2).all()


def test_out_of_fold_scores_are_those_of_the_confusion(classes):
    folder = classes[0] / "output" / "a" / "fold0"
    table = pd.read_csv(folder / "oof.csv")
    with np.load(folder / "oof.npz") as file:
        confusion = file["confusion"]
    assert confusion.shape == (len(table), 3, 3)
    right = np.trace(confusion, axis1=1, axis2=2) / confusion.sum((1, 2))
    assert table["accuracy"].tolist() == pytest.approx(right.tolist(), abs=1e-6)


def test_the_leaderboard_tells_mean_iou(classes):
    folder, where, _ = classes
    done = run_script("leaderboard.py", *where)
    assert done.returncode == 0 and "mean IoU" in done.stdout and "threshold" not in done.stdout
    table = pd.read_csv(folder / "output" / "leaderboard.csv")
    assert set(table["run"]) == {"a", "b", "a+b"} and table["pixel_iou"].between(0, 1).all()


def test_prediction_writes_colours_a_legend_and_scores(classes):
    folder, _, said = classes
    run = folder / "output" / "a+b"
    scheme = classes.pets_class_map(config.load_settings(["trimap_border=class"]))
    for name in ("Bombay_2", "Bombay_3"):
        picture = cv2.imread(str(run / "masks" / f"{name}.png"), cv2.IMREAD_COLOR_RGB)
        original = cv2.imread(str(folder / "pets" / "images" / f"{name}.jpg"))
        assert picture.shape == original.shape
        assert {tuple(c) for c in np.unique(picture.reshape(-1, 3), axis=0)} <= set(scheme.colors)
    assert (run / "masks" / "legend.png").exists()
    table = pd.read_csv(run / "test.csv")
    assert table["image_id"].tolist() == ["Bombay_2", "Bombay_3"] and "mean IoU" in said
    assert json.loads((run / "submission.json").read_text())["runs"] == {"a": 0.5, "b": 0.5}


def test_the_report_of_classes_has_their_confusion_and_no_threshold(classes):
    folder, where, _ = classes
    done = run_script("report.py", *where, "runs=[a,b]")
    assert done.returncode == 0, done.stderr
    page = (folder / "output" / "report.html").read_text(encoding="utf-8")
    assert "what it is taken for" in page and "where networks differ" in page
    assert "<td>border</td>" in page and "threshold" not in page.split("<script>")[0].lower()


@pytest.mark.parametrize("script", ["predict.py", "report.py"])
def test_other_classes_than_the_weights_know_are_refused(classes, script):
    refused(
        run_script(script, *classes[1], "runs=[b,a]", "trimap_border=pet"),
        "3 classes",
        "trimap_border=",
    )


def test_a_loss_for_one_class_is_refused(classes, tmp_path):
    folder = classes[0]
    words = [f"data_dir={folder / 'pets'}", f"folds_csv={folder / 'folds.csv'}", "run=c"]
    words += [f"output_dir={tmp_path}", "recipe=pets_fcn", "loss=bce", "device=cpu"]
    refused(run_script("train.py", *words), "loss=bce", "3 classes", "ce, ce_dice")


@needs_real_data
def test_real_pets_are_read_with_the_bad_apple_among_them():
    settings = settings_of("pets", REAL / "pets")
    rows = datasets.load_samples(settings, "train") + datasets.load_samples(settings, "test")
    assert len(rows) == 184
    gif = next(row for row in rows if row.image_id == "Abyssinian_34")
    assert image_io.read_sample_image(gif).ndim == 3 and not image_io.read_sample_mask(gif).any()
    kept = datasets.drop_empty_masks(rows)
    assert len(kept) == 183 and gif not in kept
