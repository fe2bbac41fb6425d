"""Training end to end on the tiny dataset: the files of a run, its scores, and exact resume."""

import json
import os
import shlex
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_input_error, prediction_args, tiny_settings_args
from kill_test import TIMES
from safetensors.torch import load_file

import predict
import score
import train
from core import config
from core.errors import InputError
from core.signals import StopRequested
from data import csv_files
from data.datasets import load_training_samples
from data.fingerprint import dataset_fingerprint
from evaluation import metrics, oof
from inference.load_runs import load_oof_members
from models import checkpoint
from training.optim import ModelEMA
from training.trainer import FoldTrainer

RUNS = ("narrow", "wide")


def read_oof(run, name="oof.csv"):
    """Return the out-of-fold scores of both folds as one table."""
    folds = [run.output_dir / "tiny" / f"fold{k}" / name for k in (0, 1)]
    return pd.concat([pd.read_csv(path, dtype={"group": str}) for path in folds])


# ---------------------------------------------------------------- runs


def test_recipe_of_two_runs_trains_both_and_predict_averages_them(data_dir, tmp_path, capsys):
    for name, width in (("narrow", 4), ("wide", 8)):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(f"runs: [narrow, wide]\nchannels: [{width}, {2 * width}]\n")
    kept = [arg for arg in tiny_settings_args(data_dir, tmp_path) if not arg.startswith("run=")]
    args = [arg for arg in kept if not arg.startswith(("channels=", "epochs="))]
    args += [f"recipe={tmp_path / 'narrow.yaml'}", f"truth_csv={data_dir / 'test_truth.csv'}"]
    train.main([*args, "epochs=1"])
    widths = [config.read_recipe(str(tmp_path / run / "config.yaml"))["channels"] for run in RUNS]
    assert widths == [[4, 8], [8, 16]]
    predict.main([args[-2], *prediction_args(args)])
    assert (tmp_path / "narrow+wide" / "submission.csv").exists()
    assert "narrow+wide" in capsys.readouterr().out
    score.main(args)
    assert "mean dice" in capsys.readouterr().out.lower()
    again = [*args, "epochs=1", "run=again", "fold=0"]
    train.main(again)
    expected = "is for the runs narrow, wide; training only again, with the network of this"
    assert expected in capsys.readouterr().out
    [record] = json.loads((tmp_path / "again/fold0/provenance.json").read_text())
    assert record["command"] == shlex.join(["bash", "train.sh", *again])


def test_run_of_a_recipe_file_that_is_gone_resumes_by_its_name(run_copy, capsys):
    path = run_copy.output_dir / "tiny/config.yaml"
    path.write_text(path.read_text().replace("recipe: carvana", "recipe: gone.yaml"))
    args = [arg for arg in run_copy.args if arg.startswith(("run=", "output_dir="))]
    train.main([*args, "resume=true"])
    assert "are finished; nothing to train" in capsys.readouterr().out


def test_command_in_the_weights_is_that_which_trained_them(data_dir, tmp_path, monkeypatch):
    """An attempt that fails before its first snapshot may be repeated with other settings."""
    args = [*tiny_settings_args(data_dir, tmp_path), "fold=0", "epochs=1"]

    def fail(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for batch_size, fit in ((4, fail), (2, FoldTrainer.fit)):
        attempt = [*args, f"batch_size={batch_size}"]
        monkeypatch.setattr(sys, "argv", ["train.py", *attempt])
        monkeypatch.setattr(FoldTrainer, "fit", fit)
        with pytest.raises(InputError) if fit is fail else nullcontext():
            train.main(attempt)
    weights = tmp_path / "tiny/fold0/best.safetensors"
    assert checkpoint.read_metadata(weights)["command"].endswith("batch_size=2")


# ---------------------------------------------------------------- a trained run


def test_train_writes_the_files_of_a_run(trained_run):
    names = {path.name for path in (trained_run.output_dir / "tiny").iterdir()}
    assert names == {"config.yaml", "predictor.json", "fold0", "fold1"}
    for fold in (0, 1):
        folder = trained_run.output_dir / "tiny" / f"fold{fold}"
        assert {path.name for path in folder.iterdir()} == {
            *("best.safetensors", "history.csv", "oof.csv", "oof.npz", "tensorboard"),
            *("provenance.json", "first_batch.jpg", ".lock"),
        }
        history = pd.read_csv(folder / "history.csv")
        assert list(history["epoch"]) == list(range(1, 9))
        assert history["loss"].iloc[-1] < history["loss"].iloc[0]
        assert history["val_dice"].between(0, 1).all()
        assert f"fold {fold}: out-of-fold dice" in trained_run.printed


def test_out_of_fold_scores_are_those_of_the_network_that_held_out_the_fold_with_flips(trained_run):
    settings = config.load_settings(trained_run.args)
    samples = load_training_samples(settings)
    fingerprint = dataset_fingerprint(samples)
    for fold in (0, 1):
        held_out = [sample for sample in samples if sample.fold == fold]
        members = load_oof_members(settings, fold, fingerprint)
        with np.load(trained_run.output_dir / f"tiny/fold{fold}/oof.npz") as file:
            stored = file["histograms"]
        for tta, is_equal in (("hflip", True), ("none", False)):
            scores = oof.score_out_of_fold(members, held_out, replace(settings, tta=tta), "")
            assert np.array_equal(scores.histograms, stored) == is_equal


def test_stages_start_when_the_main_process_has_written_the_one_before(
    shared_data_dir, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(train, "train_folds", lambda stage, *_: calls.append(stage.run))
    monkeypatch.setattr(train.distributed, "barrier", lambda: calls.append("barrier"))
    args = [*tiny_settings_args(shared_data_dir, tmp_path), "stages=[{epochs: 1}, {epochs: 2}]"]
    train.train_stages(config.load_settings(args))
    assert calls == ["tiny/stage1", "barrier", "tiny", "barrier"]


def test_train_scores_every_image_once_in_the_fold_that_held_it_out(trained_run):
    folds = csv_files.read_folds(config.load_settings(trained_run.args))
    table = read_oof(trained_run)
    assert len(table) == table["image_id"].nunique() == 12
    assert [folds[group] for group in table["group"]] == table["fold"].tolist()


def test_train_oof_dice_is_that_of_masks_thresholded_at_half(trained_run):
    with np.load(trained_run.output_dir / "tiny/fold0/oof.npz") as file:
        histograms = file["histograms"]
    intersection, predicted = histograms[:, 1, 128:].sum(1), histograms[:, :, 128:].sum((1, 2))
    expected = metrics.dice_from_counts(intersection, predicted, histograms[:, 1].sum(1))
    dice = pd.read_csv(trained_run.output_dir / "tiny/fold0/oof.csv")["oof_dice"]
    assert np.allclose(dice, expected, atol=1e-7)
    assert dice.mean() > 0.8  # the network has learned the task


def test_train_updates_the_leaderboard(trained_run):
    row = pd.read_csv(trained_run.output_dir / "leaderboard.csv").iloc[0]
    mean = read_oof(trained_run)["oof_dice"].mean()
    assert row["oof_dice"] == pytest.approx(mean, abs=1e-6)
    assert row["folds"] == "0 1" and row["images"] == 12 and row["parameters"] > 0
    assert "tiny" in trained_run.printed.split("fold 1: out-of-fold dice")[1]


def test_train_prints_the_command_that_predicts(trained_run):
    line = trained_run.printed.splitlines()[-1]
    assert line == f"next: bash predict.sh run=tiny output_dir={trained_run.output_dir}"


@pytest.mark.parametrize(
    ("args", "folder", "command"),
    [
        ([], "test", "run=carvana"),
        (["run=a"], "", "run=a images=<a photograph or a folder>"),
        (["runs=a,b", "output_dir=other"], "test", "runs=a,b output_dir=other"),
        (["run=a", "output_dir=a b"], "test", "run=a 'output_dir=a b'"),
        (["run=a", "dataset_format=cityscapes"], "leftImg8bit/val", "run=a"),
        (["run=a", "dataset_format=pairs"], "val", "run=a"),
    ],
)
def test_suggest_prediction_names_what_differs_from_the_defaults(tmp_path, args, folder, command):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)  # of test images
    settings = config.load_settings([*args, f"data_dir={tmp_path}"])
    runs = [replace(settings, run=run) for run in settings.runs]
    assert train.suggest_prediction(runs) == f"bash predict.sh {command}"


def test_train_of_a_finished_run_overwrites_nothing(run_copy):
    weights = run_copy.output_dir / "tiny/fold0/best.safetensors"
    before = weights.read_bytes()
    assert_input_error(train.main, run_copy.args, "already exists", "resume=true", "run=")
    args = [*run_copy.args, "epochs=9", "resume=true"]
    assert_input_error(train.main, args, "has epochs=8, not 9")
    # All other settings are in the run's config.yaml.
    train.main([f"output_dir={run_copy.output_dir}", "run=tiny", "resume=true"])
    assert weights.read_bytes() == before


def test_train_with_a_loss_that_becomes_nan_stops_without_weights(data_dir, tmp_path):
    args = tiny_settings_args(data_dir, tmp_path)
    args += ["fold=0", "lr=1e38", "optimizer=sgd", "grad_clip=0", "batch_size=2"]
    assert_input_error(train.main, args, "the loss is", "no weights were saved", "lower lr")
    assert not (tmp_path / "tiny/fold0/best.safetensors").exists()


def test_train_in_bf16_learns_too(data_dir, tmp_path):
    args = tiny_settings_args(data_dir, tmp_path)
    train.main([*args, "fold=0", "precision=bf16", "epochs=8"])
    assert pd.read_csv(tmp_path / "tiny/fold0/oof.csv")["oof_dice"].mean() > 0.8


# ---------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory, trained_run):
    """The fold that the interrupted runs below are compared with: arguments and folder."""
    output_dir = tmp_path_factory.mktemp("uninterrupted")
    args = tiny_settings_args(trained_run.data_dir, output_dir)
    # Two steps an update, so that an interruption falls between gradients of one update as well.
    args += ["fold=0", "epochs=4", "batch_size=1", "grad_accumulation=2", "dropout=[0,0.2]"]
    args += ["snapshot_seconds=0"]
    train.main(args)
    return args, output_dir / "tiny/fold0"


def stop_after(monkeypatch, updates, signum):
    """Send this process a signal after so many updates of the weights."""
    update, count = ModelEMA.update, iter(range(1, 1000))

    def update_and_signal(self, model):
        update(self, model)
        if next(count) == updates:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(ModelEMA, "update", update_and_signal)


@pytest.mark.parametrize(
    ("updates", "signum"),
    [(2, signal.SIGTERM), (3, signal.SIGINT), (8, signal.SIGTERM)],
    ids=["within_epoch_1", "end_of_epoch_1", "within_epoch_3"],
)
def test_resumed_run_equals_the_uninterrupted_one(
    uninterrupted_run, tmp_path, monkeypatch, capsys, restored_handlers, updates, signum
):
    args, expected = uninterrupted_run
    args = [*args, f"output_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        stop_after(patch, updates, signum)
        with pytest.raises(StopRequested) as stop:
            train.main(args)
    assert stop.value.exit_code == 128 + signum
    train.main([*args, "resume=true"])
    assert "resuming after epoch" in capsys.readouterr().out
    resumed = tmp_path / "tiny/fold0"
    before, after = (load_file(f / "best.safetensors") for f in (expected, resumed))
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("oof.csv", "oof.npz"):
        assert (expected / name).read_bytes() == (resumed / name).read_bytes()
    before, after = (pd.read_csv(f / "history.csv") for f in (expected, resumed))
    assert before.drop(columns=TIMES).equals(after.drop(columns=TIMES))


def test_resume_with_other_settings_of_the_machine_is_allowed(
    uninterrupted_run, tmp_path, monkeypatch, restored_handlers
):
    args, expected = uninterrupted_run
    args = [*args, f"output_dir={tmp_path}"]
    with monkeypatch.context() as patch, pytest.raises(StopRequested):
        stop_after(patch, 2, signal.SIGTERM)
        train.main(args)
    assert_input_error(train.main, [*args, "resume=true", "lr=0.02"], "has lr=0.01, not 0.02")
    train.main([*args, "resume=true", "num_workers=1", "cache=none", "snapshot_seconds=60"])
    assert (tmp_path / "tiny/fold0/oof.csv").read_bytes() == (expected / "oof.csv").read_bytes()


def test_train_on_a_cpu_warns_that_the_default_recipe_needs_a_gpu(data_dir, tmp_path, capsys):
    args = tiny_settings_args(data_dir, tmp_path)
    others = [arg for arg in args if not arg.startswith("size=")]
    for words, is_warned in ((others, True), (args, False), ([*others, "recipe=carvana"], False)):
        with pytest.raises(InputError):
            train.main([*words, "fold=9"])
        assert ("carvana, the default recipe, needs a GPU" in capsys.readouterr().out) == is_warned
