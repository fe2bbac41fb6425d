"""oof.py and score_text.py: statistics of predictions, stored scores, and their printed form."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import InputError
from core.settings import Settings
from data.classes import ClassMap
from data.loaders import LoadedSample
from data.sample import Sample
from evaluation import oof, score_text
from evaluation.metrics import best_threshold, mask_dice
from evaluation.pixel_counts import count_pixels
from inference.postprocess import STEPS
from inference.predictor import Prediction

CAR = ClassMap(("car",), ((60, 220, 90),))
THREE_CLASSES = ClassMap(("a", "b", "c"), ((0, 0, 0), (9, 0, 0), (0, 9, 0)))


def make_sample(i, class_map):
    car = f"00{i // 2}"  # leading zeros
    return Sample(Path(f"{car}_0{i % 2 + 1}.jpg"), car, None, i % 3, "carvana", class_map)


def make_prediction(i, n_classes=1):
    """A random prediction of 8×9 pixels and its mask."""
    rng = np.random.default_rng(i)
    if n_classes == 1:
        sample, mask = make_sample(i, CAR), rng.random((8, 9)) < 0.6
        probability = (0.3 * mask + 0.6 * rng.random((8, 9)))[None]
    else:
        sample = make_sample(i, THREE_CLASSES)
        mask = rng.choice([0, 1, 2, 255], (8, 9)).astype(np.uint8)
        probability = rng.dirichlet([1] * n_classes, (8, 9)).transpose(2, 0, 1)
    loaded = LoadedSample(sample, (8, 9), mask)
    probability = torch.from_numpy(probability).float()
    counts = count_pixels(probability, torch.from_numpy(mask))
    return Prediction(loaded, counts | {"probability": probability})


def make_scores(n_images, n_classes=1):
    predictions = [make_prediction(i, n_classes) for i in range(n_images)]
    statistics = [oof.image_statistics(prediction) for prediction in predictions]
    return predictions, oof.to_scores([p.sample for p in predictions], statistics)


@pytest.mark.parametrize(("area", "text"), [(0.0, "0.0%"), (1.0, "100.0%"), (0.2, "20.0%")])
def test_warn_of_constant_masks_prints_one_line(capsys, area, text):
    _, scores = make_scores(2)
    scores.table["predicted_area"] = area
    score_text.warn_of_constant_masks(scores)
    line = capsys.readouterr().out
    start = "warning: at threshold 0.5, the masks of all 2 images cover the same area"
    assert line.startswith(f"{start} ({text})")
    assert line.count("\n") == 1


@pytest.mark.parametrize("n_classes", [1, 3])
def test_warn_of_constant_masks_is_silent_for_different_masks(capsys, n_classes):
    _, scores = make_scores(4, n_classes)
    score_text.warn_of_constant_masks(scores)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("area", "warns"), [(0.0, True), (0.3, False), (0.7, True)])
def test_report_test_scores_warns_of_empty_and_inverted_true_masks(capsys, area, warns):
    _, scores = make_scores(2)
    scores.table["area"] = area
    score_text.report_test_scores(scores)
    printed = capsys.readouterr().out
    assert printed.startswith(f"test dice {score_text.format_mean_dice(scores)} on 2 images; IoU ")
    assert (f"warning: the true masks cover {area:.0%} of the test images" in printed) == warns


def test_report_test_scores_averages_the_iou_of_the_images(capsys):
    _, scores = make_scores(3)
    scores.table["dice"] = [0.2, 0.5, 1.0]
    score_text.report_test_scores(scores)
    iou = np.mean([0.2 / 1.8, 0.5 / 1.5, 1.0])
    assert f"IoU {iou:.5f};" in capsys.readouterr().out


def test_warn_of_constant_masks_compares_all_classes(capsys):
    _, scores = make_scores(3, n_classes=3)
    scores.per_image["confusion"][:] = [[0, 9, 0], [0, 5, 0], [0, 1, 0]]
    score_text.warn_of_constant_masks(scores)
    assert "all 3 images cover the same area (0.0%, 100.0%, 0.0%)" in capsys.readouterr().out


# ---------------------------------------------------------------- statistics


def test_binary_scores_are_dice_and_areas_of_thresholded_masks():
    predictions, scores = make_scores(6)
    assert scores.is_binary and scores.histograms.shape == (6, 2, 256)
    assert scores.step_dice.shape == (6, 1 + len(STEPS))
    best, _ = best_threshold(scores.histograms)
    for row, prediction in zip(scores.table.itertuples(), predictions, strict=True):
        probability, mask = prediction.probability[0].numpy(), prediction.loaded.mask
        assert row.dice == pytest.approx(mask_dice(probability >= 0.5, mask))
        assert row.dice_best_threshold == pytest.approx(mask_dice(probability >= best, mask))
        assert row.area == pytest.approx(mask.mean())
        assert row.predicted_area == pytest.approx((probability >= 0.5).mean())
    assert scores.table["dice_best_threshold"].mean() > scores.dice.mean()
    assert np.array_equal(scores.step_dice[:, 0], scores.dice)


def test_multiclass_scores_are_those_of_the_argmax_without_ignored_pixels():
    predictions, scores = make_scores(4, n_classes=3)
    assert not scores.is_binary and scores.per_image["confusion"].shape == (4, 3, 3)
    for row, prediction in zip(scores.table.itertuples(), predictions, strict=True):
        mask = prediction.loaded.mask
        predicted, valid = prediction.probability.argmax(0).numpy(), mask != 255
        dice = [mask_dice((predicted == c) & valid, mask == c) for c in range(3)]
        assert row.dice == pytest.approx(np.mean(dice))
        assert row.accuracy == pytest.approx((predicted == mask)[valid].mean())
        assert row.iou == pytest.approx(np.mean([d / (2 - d) for d in dice]))


@pytest.mark.parametrize("n_classes", [1, 3])
def test_validation_scores_equal_out_of_fold_scores_at_half(n_classes):
    predictions, scores = make_scores(4, n_classes)
    validation = pd.DataFrame([oof.validation_scores(prediction) for prediction in predictions])
    assert list(validation) == ["val_dice", "val_accuracy"]
    assert validation["val_dice"].tolist() == pytest.approx(scores.dice.tolist())
    assert validation["val_accuracy"].tolist() == pytest.approx(scores.table["accuracy"])
    if n_classes == 1:
        masks = [p.loaded.mask for p in predictions]
        right = [
            ((p.probability[0].numpy() >= 0.5) == mask).mean()
            for p, mask in zip(predictions, masks, strict=True)
        ]
        assert validation["val_accuracy"].tolist() == pytest.approx(right)


def test_to_scores_leaves_out_images_of_ignored_pixels_only(capsys):
    predictions, scores = make_scores(3, n_classes=3)
    samples = [prediction.sample for prediction in predictions]
    statistics = [oof.image_statistics(prediction) for prediction in predictions]
    statistics[1] = {"confusion": np.zeros((3, 3), np.int64)}
    kept = oof.to_scores(samples, statistics)
    assert kept.table["image_id"].tolist() == [samples[0].image_id, samples[2].image_id]
    assert kept.dice.tolist() == scores.dice[[0, 2]].tolist()
    assert len(kept.per_image["confusion"]) == 2
    expected = f"not scored, as all pixels are ignored: {samples[1].image_id}\n"
    assert capsys.readouterr().out == expected
    with pytest.raises(InputError, match="only ignored pixels; no image is scored"):
        oof.to_scores(samples[1:2], statistics[1:2])


def test_score_summary_names_the_best_threshold_or_the_pooled_scores():
    _, binary = make_scores(6)
    assert score_text.score_summary(binary).startswith("best threshold 0.")
    _, multiclass = make_scores(4, n_classes=3)
    accuracy = np.trace(multiclass.confusion) / multiclass.confusion.sum()
    assert score_text.score_summary(multiclass).endswith(f"accuracy {accuracy:.4f}")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("n_classes", [1, 3])
def test_load_scores_returns_what_save_scores_wrote(tmp_path, n_classes):
    _, scores = make_scores(6, n_classes)
    oof.save_scores(tmp_path, scores)
    loaded = oof.load_scores([tmp_path])
    pd.testing.assert_frame_equal(loaded.table, scores.table, rtol=1e-7)
    assert loaded.per_image.keys() == scores.per_image.keys()
    for name, array in scores.per_image.items():
        assert np.array_equal(loaded.per_image[name], array)
    with np.load(tmp_path / "oof.npz") as file:
        assert file["image_id"].tolist() == scores.table["image_id"].tolist()


@pytest.mark.parametrize("name", ["oof", "test"])
def test_save_scores_names_columns_after_the_split(tmp_path, name):
    oof.save_scores(tmp_path, make_scores(2)[1], name)
    columns = pd.read_csv(tmp_path / f"{name}.csv").columns
    scores = [f"{name}_dice", f"{name}_dice_best_threshold", "area", "predicted_area", "accuracy"]
    assert columns.tolist() == ["image_id", "group", "view", "fold", *scores]


def test_load_scores_concatenates_folders(tmp_path):
    parts = [make_scores(2)[1], make_scores(3)[1]]
    for i, scores in enumerate(parts):
        scores.table["image_id"] += f" of fold {i}"
        oof.save_scores(tmp_path / str(i), scores)
    loaded = oof.load_scores([tmp_path / "0", tmp_path / "1"])
    assert loaded.dice.tolist() == pytest.approx([*parts[0].dice, *parts[1].dice], abs=1e-8)
    assert len(loaded.histograms) == 5


def test_load_scores_of_an_image_in_two_folds_is_rejected(tmp_path):
    for name in "ab":
        oof.save_scores(tmp_path / name, make_scores(2)[1])
    with pytest.raises(InputError, match="is held out in two folds: folds_csv has changed"):
        oof.load_scores([tmp_path / "a", tmp_path / "b"])


def test_load_scores_of_rows_in_another_order_is_rejected(tmp_path):
    oof.save_scores(tmp_path, make_scores(3)[1])
    pd.read_csv(tmp_path / "oof.csv")[::-1].to_csv(tmp_path / "oof.csv", index=False)
    with pytest.raises(InputError, match=r"oof\.csv lists other images, or in another order"):
        oof.load_scores([tmp_path])


def write_first_release(folder, n_images):
    """Write oof.csv and oof.npz as the first release did; return the Dice after sets of steps."""
    _, scores = make_scores(n_images)
    subsets = np.random.default_rng(0).random((n_images, 16))  # bit s of the index is step s
    old_names = {"dice_best_threshold": "dice_at_best"}
    scores.table.rename(columns=old_names).to_csv(folder / "oof.csv", index=False)
    image_id = scores.table["image_id"].to_numpy(str)
    np.savez(folder / "oof.npz", image_id=image_id, counts=scores.histograms, trials=subsets)
    return scores, subsets


def test_load_scores_reads_files_of_the_first_release(tmp_path):
    scores, subsets = write_first_release(tmp_path, 4)
    loaded = oof.load_scores([tmp_path])
    assert list(loaded.table) == list(scores.table)
    assert loaded.dice.tolist() == pytest.approx(scores.dice.tolist())
    assert np.array_equal(loaded.histograms, scores.histograms)
    assert np.array_equal(loaded.step_dice, subsets[:, [0, 1, 2, 4]])


def test_load_scores_leaves_out_a_step_that_no_longer_exists(tmp_path):
    _, scores = make_scores(4)
    step_dice = scores.step_dice
    scores.per_image["step_dice"] = np.concatenate([step_dice, np.ones((4, 1))], axis=1)
    oof.save_scores(tmp_path, scores)
    assert np.array_equal(oof.load_scores([tmp_path]).step_dice, step_dice)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("oof.csv", b""),
        ("oof.csv", b"image_id,group,view,fold\na,a,1,0\n"),
        ("oof.npz", b"not a zip"),
        ("oof.npz", b""),
        ("oof.npz", None),
    ],
)
def test_load_scores_of_damaged_file_is_an_input_error(tmp_path, name, data):
    oof.save_scores(tmp_path, make_scores(2)[1])
    if data is None:
        np.savez(tmp_path / name, image_id=["a"], something=[1])
    else:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=r"oof.csv or oof.npz cannot be read \("):
        oof.load_scores([tmp_path])


# ---------------------------------------------------------------- threshold and steps


def test_choose_binarizer_takes_settings_before_the_best_out_of_fold():
    _, scores = make_scores(6)
    best, _ = best_threshold(scores.histograms)
    auto = oof.choose_binarizer(Settings(postprocess="none"), scores)
    assert auto.threshold == best != 0.5 and auto.steps == []
    chosen = oof.choose_binarizer(Settings(threshold=0.25, postprocess="fill"), scores)
    assert (chosen.threshold, chosen.steps) == (0.25, ["fill"])


def test_choose_binarizer_takes_one_half_if_a_threshold_gains_nothing_on_other_folds():
    """Each fold has another best threshold, which loses on the other fold."""
    histograms = np.zeros((4, 2, 256), int)
    for i, level in enumerate((60, 60, 200, 200)):
        histograms[i, 0, [0, level - 1]], histograms[i, 1, [level, 255]] = (100, 50), (50, 100)
    _, scores = make_scores(4)
    scores.per_image["histograms"] = histograms
    scores.table["fold"] = [0, 0, 1, 1]
    assert best_threshold(histograms)[0] != 0.5
    assert oof.choose_binarizer(Settings(postprocess="none"), scores).threshold == 0.5


def test_choose_binarizer_of_several_classes_has_no_steps():
    _, scores = make_scores(4, n_classes=3)
    assert oof.choose_binarizer(Settings(postprocess="fill"), scores).steps == []


def test_image_statistics_apply_the_steps_to_the_prediction():
    predicted = np.zeros((12, 12), bool)
    predicted[2:10, 2:10] = True
    true = predicted.copy()
    predicted[5, 5] = False  # a hole, which only `fill` closes
    counts = count_pixels(torch.from_numpy(predicted)[None].float(), torch.from_numpy(true))
    prediction = Prediction(LoadedSample(None, (12, 12), true), counts)
    step_dice = oof.image_statistics(prediction)["step_dice"]
    expected = dict.fromkeys(STEPS, mask_dice(predicted, true)) | {"fill": 1.0}
    assert step_dice[1:].tolist() == pytest.approx([expected[name] for name in STEPS])


def test_load_scores_keeps_names_that_pandas_takes_for_missing_values(tmp_path):
    _, scores = make_scores(3)
    scores.table["group"] = ["NA", "null", "None"]
    scores.table["image_id"] = ["NA_1", "null", "nan"]
    oof.save_scores(tmp_path, scores)
    loaded = oof.load_scores([tmp_path])
    assert loaded.groups.tolist() == ["NA", "null", "None"]
    assert loaded.table["image_id"].tolist() == ["NA_1", "null", "nan"]


def test_load_scores_of_a_csv_that_is_cut_off_is_an_input_error(tmp_path):
    oof.save_scores(tmp_path, make_scores(2)[1])
    path = tmp_path / "oof.csv"
    text = path.read_text()
    for length in range(text.rindex("\n", 0, -1), len(text)):  # within the last row
        path.write_text(text[:length])
        with pytest.raises(InputError, match=r"oof.csv or oof.npz cannot be read \("):
            oof.load_scores([tmp_path])
