"""What training prints about its data beforehand, and folds that do not fit together."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
from conftest import assert_input_error, tiny_settings_args

import train
from core import config, run_folder
from core.errors import InputError
from core.signals import StopRequested
from data import datasets
from training import preflight
from training.trainer import FoldTrainer


@pytest.mark.parametrize(
    ("size", "is_turned"), [("32,48", False), ("48x32", True), ("48,48", False), ("null", False)]
)
def test_check_data_warns_of_width_and_height_in_the_wrong_order(data_dir, capsys, size, is_turned):
    args = [*tiny_settings_args(data_dir, data_dir), f"size={size}"]  # of images 72 wide, 48 high
    settings = config.load_settings(args)
    preflight.check_data(settings, datasets.load_training_samples(settings))
    lines = capsys.readouterr().out.splitlines()
    assert "12 images with masks, 72×48" in lines[0]
    warning = (
        "warning: size=48,32 is height,width, but no image is taller than wide; try size=32,48"
    )
    assert lines[1:] == [warning] * is_turned


@pytest.mark.parametrize(
    ("size", "crop_size", "found"),
    [("32,48", "32,56", "32,48"), ("32,48", "40,48", "32,48"), ("null", "48,80", "48,72")],
)
def test_check_data_rejects_a_crop_larger_than_the_images(data_dir, size, crop_size, found):
    args = [*tiny_settings_args(data_dir, data_dir), f"size={size}", f"crop_size={crop_size}"]
    settings = config.load_settings(args)
    with pytest.raises(InputError, match=rf"crop_size={crop_size}: images are {found} \(height,wi"):
        preflight.check_data(settings, datasets.load_training_samples(settings))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"batch_size": 1}, "batch_size=1: is the total over 2 GPUs"),
        ({"loss": "ce"}, "loss=ce: not for one class"),
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


def test_check_before_launch_of_a_finished_run_checks_its_data(run_copy):
    settings = config.load_settings([*run_copy.args, "resume=true"])
    preflight.check_before_launch(settings)
    image = next(run_copy.data_dir.glob("train/*_01.jpg"))
    image.unlink()
    (run_copy.data_dir / "train_masks" / f"{image.stem}_mask.gif").unlink()
    with pytest.raises(InputError, match="was trained on other images, masks or folds"):
        preflight.check_before_launch(settings)


def test_check_before_launch_leaves_it_to_training_to_print(data_dir, tmp_path, capsys):
    (data_dir / "train" / "notes.txt").touch()
    settings = config.load_settings(tiny_settings_args(data_dir, tmp_path))
    preflight.check_before_launch(settings)
    assert not capsys.readouterr().out
    datasets.load_training_samples(settings)
    assert "left out 1 .txt" in capsys.readouterr().out


def test_train_another_fold_on_changed_folds_is_rejected(run_copy):
    """An image could be held out in two folds, or in none."""
    shutil.rmtree(run_copy.output_dir / "tiny/fold1")
    path = run_copy.data_dir / "folds.csv"
    table = pd.read_csv(path, dtype=str)
    table["fold"] = table["fold"].to_numpy()[::-1]
    table.to_csv(path, index=False)
    message = "fold0/best.safetensors: was trained on other images, masks or folds"
    assert_input_error(train.main, [*run_copy.args, "fold=1"], message)


def test_resume_of_a_finished_run_on_other_data_is_rejected(run_copy, capsys):
    train.main([*run_copy.args, "resume=true"])
    assert (
        f"{run_copy.output_dir}/tiny: the requested folds are finished" in capsys.readouterr().out
    )
    image = next(run_copy.data_dir.glob("train/*_01.jpg"))
    image.unlink()
    (run_copy.data_dir / "train_masks" / f"{image.stem}_mask.gif").unlink()
    message = "fold0/best.safetensors: was trained on other images, masks or folds"
    assert_input_error(train.main, [*run_copy.args, "resume=true"], message, "or set another run=")


def test_resume_prints_what_the_recipe_has_changed_since(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("epochs: 40\nlr: 1.0e-3\n")
    args = [f"recipe={recipe}", f"output_dir={tmp_path}"]
    run_folder.save_run_settings(config.load_settings(args))
    run_folder.weights_path(tmp_path / "mine", 0).parent.mkdir()
    run_folder.weights_path(tmp_path / "mine", 0).touch()
    assert preflight.load_run_settings([*args, "resume=true"]).epochs == 40
    assert not capsys.readouterr().out
    recipe.write_text("epochs: 80\nlr: 1.0e-3\n")
    assert preflight.load_run_settings([*args, "resume=true"]).epochs == 40
    assert f"resuming with epochs=40, unlike recipe={recipe}" in capsys.readouterr().out


def test_same_command_resumes_a_run_with_weights_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["model=smp", "encoder_weights=w.pth", "run=a", f"output_dir={tmp_path}"]
    settings = config.load_settings(args)
    run_folder.save_run_settings(settings)
    weights = run_folder.weights_path(settings.run_dir, 0)
    weights.parent.mkdir()
    weights.touch()
    assert preflight.load_run_settings([*args, "fold=1"]).encoder_weights == "w.pth"
    assert preflight.load_run_settings([*args, "resume=true"]).encoder_weights == "w.pth"
    with pytest.raises(InputError, match=f"this run has encoder_weights={tmp_path}/w.pth, not"):
        preflight.load_run_settings([*args, "encoder_weights=other.pth"])
    with pytest.raises(InputError, match="this run has channels="):
        preflight.load_run_settings([*args, "resume=true", "channels=8,16"])


def test_lock_fold_rejects_a_fold_that_another_process_has_finished(run_copy):
    settings = config.load_settings(run_copy.args)
    (run_copy.output_dir / "tiny/fold1/oof.npz").unlink()
    with preflight.lock_fold(settings, 1):
        pass
    with (
        pytest.raises(InputError, match="fold0: another process has trained it"),
        preflight.lock_fold(settings, 0),
    ):
        pass


def test_lock_fold_rejects_settings_that_another_process_has_replaced(run_copy):
    settings = config.load_settings(run_copy.args)
    (run_copy.output_dir / "tiny/fold1/oof.npz").unlink()
    run_folder.save_run_settings(replace(settings, lr=0.5))
    with (
        pytest.raises(InputError, match=r"another process has started this run with lr=0\.5, not"),
        preflight.lock_fold(settings, 1),
    ):
        pass


def test_resume_does_not_replace_weights_whose_scores_were_deleted(run_copy):
    (run_copy.output_dir / "tiny/fold1/oof.npz").unlink()
    message = "fold1: has weights, but neither oof.npz nor a snapshot"
    assert_input_error(train.main, [*run_copy.args, "resume=true"], message)


def test_resume_of_a_run_that_does_not_exist_is_announced(tmp_path, capsys):
    preflight.load_run_settings(["run=carvna", f"output_dir={tmp_path}", "resume=true"])
    assert f"{tmp_path}/carvna: nothing to resume" in capsys.readouterr().out


def test_prepare_data_rejects_another_number_of_folds_than_the_file_has(data_dir, tmp_path):
    args = [*tiny_settings_args(data_dir, tmp_path), "n_folds=3"]
    with pytest.raises(InputError, match=r"n_folds=3: .*has 2 folds"):
        preflight.prepare_data(config.load_settings(args), args)


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
