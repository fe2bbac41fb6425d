"""What training prints about its data beforehand, and folds that do not fit together."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import assert_input_error, tiny_settings_args
from tiny_datasets import draw_car, remove_image, write_mask

import train
from core import config, run_folder
from core.errors import InputError
from core.signals import StopRequested
from data import datasets
from data.classes import IGNORE, ClassMap
from training import preflight
from training.snapshots import save_snapshot
from training.trainer import FoldTrainer


@pytest.mark.parametrize(
    ("size", "is_turned"), [("32,48", False), ("48,32", True), ("48,48", False), ("null", False)]
)
def test_check_sizes_warns_of_swapped_width_and_height(data_dir, capsys, size, is_turned):
    args = [*tiny_settings_args(data_dir, data_dir), f"size={size}"]  # of images 72 wide, 48 high
    settings = config.load_settings(args)
    _, sizes = preflight.check_data(settings, datasets.load_training_samples(settings))
    preflight.check_sizes(settings, sizes)
    lines = capsys.readouterr().out.splitlines()
    assert "12 images with masks, 72×48" in lines[0]
    warning = (
        "warning: size=48,32 is height,width, but no image is taller than wide; try size=32,48"
    )
    assert lines[1:] == [warning] * is_turned


def test_check_sizes_rejects_a_crop_larger_than_the_images():
    settings = config.load_settings(["size=null", "crop_size=48,80"])
    with pytest.raises(InputError, match=r"crop_size=48,80: images are 48,72 \(height,width\);"):
        preflight.check_sizes(settings, {(48, 72)})


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"batch_size": 1}, "batch_size=1: is the total over 2 processes"),
        ({"loss": "ce"}, "loss=ce: does not fit one class; set loss=auto|"),
    ],
)
def test_check_before_launch_checks_later_stages(data_dir, tmp_path, monkeypatch, stage, message):
    monkeypatch.setattr(preflight.distributed, "requested_processes", lambda: 2)
    settings = replace(config.load_settings(tiny_settings_args(data_dir, tmp_path)), **stage)
    settings.stages = [{"batch_size": 4, "loss": "bce_dice"}, stage]
    with pytest.raises(InputError, match=message):
        preflight.check_before_launch(settings)


def test_check_before_launch_tries_the_batches_of_later_stages(data_dir, tmp_path):
    settings = config.load_settings(tiny_settings_args(data_dir, tmp_path))
    last = {"size": [8, 8], "batch_size": 1}
    settings = replace(settings, channels=[2, 2, 2, 2], stages=[{"epochs": 1}, last], **last)
    settings.stages[0] |= {"size": [32, 48], "batch_size": 4}
    with pytest.raises(InputError, match="stage 2: batch_size=1: model=unet"):
        preflight.check_before_launch(settings)


def test_check_before_launch_leaves_it_to_training_to_print(data_dir, tmp_path, capsys):
    (data_dir / "train" / "notes.txt").touch()
    settings = config.load_settings(tiny_settings_args(data_dir, tmp_path))
    preflight.check_before_launch(settings)
    assert not capsys.readouterr().out
    datasets.load_training_samples(settings)
    assert "left out 1 .txt" in capsys.readouterr().out


def change_folds(data_dir):
    table = pd.read_csv(data_dir / "folds.csv", dtype=str)
    table["fold"] = table["fold"].to_numpy()[::-1]
    table.to_csv(data_dir / "folds.csv", index=False)


def replace_photographs(data_dir):
    for image in data_dir.glob("train/*_01.jpg"):
        image.write_bytes(image.read_bytes() + b"another photograph")


@pytest.mark.parametrize("change", [change_folds, replace_photographs])
def test_train_another_fold_on_other_data_is_rejected(run_copy, change):
    """An image could be held out in two folds, or in none."""
    shutil.rmtree(run_copy.output_dir / "tiny/fold1")
    change(run_copy.data_dir)
    message = "fold0/best.safetensors: was trained on other images, masks or folds"
    assert_input_error(train.main, [*run_copy.args, "fold=1"], message)


def test_resume_of_a_finished_run_on_other_data_is_rejected(run_copy, capsys):
    train.main([*run_copy.args, "resume=true"])
    assert (
        f"{run_copy.output_dir}/tiny: the requested folds are finished" in capsys.readouterr().out
    )
    remove_image(run_copy.data_dir)
    message = "fold0/best.safetensors: was trained on other images, masks or folds"
    assert_input_error(train.main, [*run_copy.args, "resume=true"], message, "or set another run=")


def test_resume_does_not_replace_weights_whose_scores_were_deleted(run_copy):
    (run_copy.output_dir / "tiny/fold1/oof.npz").unlink()
    message = "fold1: has weights, but neither oof.npz nor a snapshot"
    assert_input_error(train.main, [*run_copy.args, "resume=true"], message)


def test_fold_whose_weights_were_deleted_is_not_finished_by_its_old_scores(run_copy, monkeypatch):
    def stop_after_validation(trainer):
        shutil.copy(run_copy.output_dir / "tiny/fold1/best.safetensors", folder)
        raise StopRequested(15)

    folder = run_copy.output_dir / "tiny/fold0"
    (folder / "best.safetensors").unlink()
    monkeypatch.setattr(FoldTrainer, "fit", stop_after_validation)
    with pytest.raises(StopRequested):
        train.main([*run_copy.args, "fold=0"])
    assert run_folder.finished_folds(run_copy.output_dir / "tiny") == [1]


# ---------------------------------------------------------------- data and folds


def test_check_sizes_does_not_warn_if_an_image_is_turned_as_size_is(data_dir, capsys):
    turned, mask = draw_car(0, 9, (72, 48))
    cv2.imwrite(str(data_dir / "train/000000000000_09.jpg"), turned)
    write_mask(data_dir / "train_masks/000000000000_09_mask.gif", mask)
    settings = config.load_settings([*tiny_settings_args(data_dir, data_dir), "size=48,32"])
    _, sizes = preflight.check_data(settings, datasets.load_training_samples(settings))
    preflight.check_sizes(settings, sizes)
    out = capsys.readouterr().out
    assert "13 images with masks" in out and "warning" not in out


@pytest.mark.parametrize("args", [["batch_size=1"], ["crop_size=32,48"], ["size=32,48"]])
def test_check_sizes_accepts_images_of_several_sizes_that_can_be_batched(args):
    settings = config.load_settings(["size=null", "batch_size=4", *args])
    preflight.check_sizes(settings, {(48, 72), (40, 60)})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["batch_size=4"], r"has images of 2 sizes; set size=h,w"),
        (["crop_size=44,48"], r"crop_size=44,48: images are 40,60 \(height,width\) or larger; "),
        (
            ["size=32,48", "crop_size=32,56"],
            r"crop_size=32,56: images are 32,48 \(height,width\);",
        ),
        (
            ["size=32,48", "crop_size=40,48"],
            r"crop_size=40,48: images are 32,48 \(height,width\);",
        ),
    ],
)
def test_check_sizes_rejects_images_that_cannot_be_batched_or_cropped(args, message):
    settings = config.load_settings(["size=null", *args])
    with pytest.raises(InputError, match=message):
        preflight.check_sizes(settings, {(48, 72), (40, 60)})


def test_folds_to_train_rejects_a_fold_that_does_not_exist(data_dir, tmp_path):
    settings = config.load_settings([*tiny_settings_args(data_dir, tmp_path), "fold=2"])
    with pytest.raises(InputError, match=r"fold=2: .* has folds 0 to 1"):
        preflight.folds_to_train(settings, 2)
    assert preflight.folds_to_train(replace(settings, fold=1), 2) == [1]


def test_folds_to_train_rejects_an_interrupted_fold_unless_resumed(data_dir, tmp_path):
    settings = config.load_settings(tiny_settings_args(data_dir, tmp_path / "output"))
    save_snapshot(run_folder.snapshot_dir(settings.run_dir, 1), {"epoch": 0, "step": 1})
    with pytest.raises(InputError, match="fold1: already exists; set resume=true"):
        preflight.folds_to_train(settings, 2)
    run_folder.weights_path(settings.run_dir, 1).touch()  # of an epoch before the snapshot
    assert preflight.folds_to_train(replace(settings, resume=True), 2) == [0, 1]


def test_check_folds_rejects_empty_masks_outside_the_fold(data_dir, tmp_path):
    settings = config.load_settings(tiny_settings_args(data_dir, tmp_path))
    samples = datasets.load_training_samples(settings)
    for sample in samples:
        if sample.fold == 1:
            write_mask(sample.mask, np.zeros((48, 72), bool))
    preflight.check_folds(settings, [1], samples, {(48, 72)})
    with pytest.raises(InputError, match="all 6 masks that would be trained on are empty"):
        preflight.check_folds(settings, [0], samples, {(48, 72)})


@pytest.mark.parametrize(
    ("folds", "message"),
    [({0}, "fold=0: needs images in this fold"), ({1, 2}, "only fold 1, 2 has images in")],
)
def test_check_folds_rejects_a_fold_without_images_inside_or_outside(
    data_dir, tmp_path, folds, message
):
    settings = config.load_settings(tiny_settings_args(data_dir, tmp_path))
    sample = datasets.load_training_samples(settings)[0]
    samples = [replace(sample, fold=fold) for fold in folds]
    with pytest.raises(InputError, match=message):
        preflight.check_folds(settings, [0], samples, {(48, 72)})


@pytest.mark.parametrize(
    ("args", "found"),
    [
        # 24 images: an epoch has 3 steps of 8, and 2 updates of up to two steps.
        (["epochs=20", "grad_accumulation=2"], "with 24 images to train on, epochs=20 makes 40 up"),
        (["epochs=199"], "epochs=199 makes 597 updates of the weights; below 600"),
        (["epochs=200"], ""),
        (["epochs=1", "max_images=8"], ""),
        (["epochs=1", "resume=true"], ""),
        (["epochs=1", "init_run=other"], ""),
        (["stages=[{epochs: 1}]"], ""),
    ],
)
def test_warn_of_few_updates_counts_those_of_the_smallest_training_set(capsys, args, found):
    settings = config.load_settings(["batch_size=8", *args])
    samples = [SimpleNamespace(fold=i % 5) for i in range(30)]  # 6 in each fold
    preflight.warn_of_few_updates(settings, [0, 1], samples)
    printed = capsys.readouterr().out
    assert found in printed and bool(printed) == bool(found)
    if "40 up" in found:
        assert printed.endswith("try another run= with epochs=300\n")


def test_require_labels_rejects_a_fold_without_a_labeled_pixel(monkeypatch):
    masks = [np.full((2, 2), IGNORE, np.uint8), np.array([[IGNORE, 1]], np.uint8)]
    samples = [SimpleNamespace(mask=Path(f"{i}.png"), i=i) for i in range(2)]
    monkeypatch.setattr(preflight.datasets, "read_sample_mask", lambda sample: masks[sample.i])
    with pytest.raises(InputError, match=r"fold=2: its masks, such as 0\.png, show only ignored"):
        preflight.require_labels(samples[:1], fold=2)
    preflight.require_labels(samples, fold=2)


def test_require_two_classes_does_not_count_pixels_to_be_ignored(monkeypatch):
    sample = SimpleNamespace(mask=Path("masks/a.png"), class_map=ClassMap(("road", "car"), ()))
    mask = np.array([[IGNORE, 1]], np.uint8)
    monkeypatch.setattr(preflight.datasets, "read_sample_mask", lambda sample: mask)
    with pytest.raises(InputError, match=r"all 2 masks .* are car, a\.png for example"):
        preflight.require_two_classes([sample, sample])


@pytest.mark.parametrize("folder", ["new/stage1", "new"])
def test_check_before_launch_checks_the_data_of_finished_folds_of_all_stages(run_copy, folder):
    output_dir = run_copy.output_dir
    shutil.copytree(output_dir / "tiny/fold0", output_dir / folder / "fold0")
    stages = "stages=[{lr: 0.01}, {lr: 0.02}]"
    args = [arg for arg in run_copy.args if not arg.startswith("lr=")]
    settings = config.load_settings([*args, "run=new", "resume=true", stages])
    preflight.check_before_launch(settings)
    remove_image(run_copy.data_dir)
    with pytest.raises(InputError, match=rf"{folder}/fold0/best\S+: was trained on other"):
        preflight.check_before_launch(settings)


def test_check_folds_requires_labels_in_each_held_out_fold(data_dir, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(
        preflight,
        "require_labels",
        lambda held_out, fold: checked.append((fold, {sample.fold for sample in held_out})),
    )
    settings = config.load_settings(tiny_settings_args(data_dir, tmp_path))
    samples = datasets.load_training_samples(settings)
    preflight.check_folds(settings, [0, 1], samples, {(48, 72)})
    assert checked == [(0, {0}), (1, {1})]
