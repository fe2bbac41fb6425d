"""The commands as a person types them, on a tiny data set: train, resume, leaderboard, predict."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, make_data, place, refused, run_script, words_for
from safetensors.torch import load_file

from core import config
from core.device import explain_out_of_memory
from core.errors import InputError
from data import csv_files, image_io
from evaluation import metrics
from inference import rle
from training import trainer
from training.optim import make_optimizer, make_schedule


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both folds of the tiny data set, trained by the real command: (words, output folder)."""
    folder = tmp_path_factory.mktemp("trained")
    words = words_for(make_data(folder / "data"), folder / "out")
    done = run_script("train.py", *words, "dropout=[0,0.2]", "epochs=8")
    assert done.returncode == 0, done.stderr
    return words, folder / "out", done.stdout


def test_training_leaves_the_files_of_a_run(trained):
    _, out, printed = trained
    for fold in (0, 1):
        folder = out / "tiny" / f"fold{fold}"
        names = {path.name for path in folder.iterdir()}
        assert names == {
            *("best.safetensors", "history.csv", "oof.csv", "oof.npz", "tensorboard"),
            *("about.json", ".lock"),
        }
        history = pd.read_csv(folder / "history.csv")
        assert list(history["epoch"]) == list(range(1, 9))
        assert history["loss"].iloc[-1] < history["loss"].iloc[0]
        assert f"fold {fold}: out-of-fold dice" in printed
    assert not list(out.rglob("*.partial"))


def test_oof_holds_every_image_once_under_the_fold_that_held_it_out(trained):
    words, out, _ = trained
    folds = csv_files.read_folds(config.load_settings(words))
    parts = [pd.read_csv(out / "tiny" / f"fold{k}" / "oof.csv", dtype=str) for k in (0, 1)]
    table = pd.concat(parts)
    assert len(table) == table["image_id"].nunique() == 12
    assert all(
        folds[group] == int(fold) for group, fold in zip(table["group"], table["fold"], strict=True)
    )


def test_oof_dice_is_that_of_masks_thresholded_at_half(trained):
    _, out, _ = trained
    with np.load(out / "tiny/fold0/oof.npz") as file:
        counts = file["counts"]
    inside, predicted = counts[:, 1, 128:].sum(1), counts[:, :, 128:].sum((1, 2))
    expected = metrics.dice_from_counts(inside, predicted, counts[:, 1].sum(1))
    scores = pd.read_csv(out / "tiny/fold0/oof.csv")["dice"]
    assert np.allclose(scores, expected, atol=1e-7)
    assert scores.mean() > 0.8  # it has learned what a car is


def test_leaderboard_has_a_row_for_the_run(trained):
    _, out, printed = trained
    row = pd.read_csv(out / "leaderboard.csv").iloc[0]
    scores = pd.concat(pd.read_csv(out / "tiny" / f"fold{k}" / "oof.csv") for k in (0, 1))
    assert row["dice"] == pytest.approx(scores["dice"].mean(), abs=1e-6)
    assert row["folds"] == "0 1" and row["images"] == 12 and row["parameters"] > 0
    assert "oof dice" in printed and "tiny" in printed


def test_prediction_writes_a_checked_submission(trained, tmp_path):
    words, out, _ = trained
    data = words[0].split("=")[1]
    target = f"submission_csv={tmp_path / 's.csv'}"
    done = run_script(
        "predict.py", *place(words), target, f"truth_csv={data}/test_truth.csv", "save_masks=true"
    )
    assert done.returncode == 0, done.stderr
    assert "6 rows, no fault" in done.stdout and "mean dice 0." in done.stdout
    table = pd.read_csv(tmp_path / "s.csv", keep_default_na=False)
    sample = pd.read_csv(f"{data}/sample_submission.csv")
    assert list(table["img"]) == list(sample["img"])
    about = json.loads((tmp_path / "s.json").read_text())
    assert len(about["weights"]) == 2 and about["rows"] == 6
    name, text = table.iloc[0]
    mask = image_io.read_mask(out / "tiny/masks" / f"{name.removesuffix('.jpg')}_mask.png")
    assert (rle.decode(text, (48, 72)) == mask).all()


def test_the_submission_does_not_depend_on_batch_or_workers(trained, tmp_path):
    words, _, _ = trained
    texts = []
    for batch, workers in ((1, 0), (4, 2)):
        path = tmp_path / f"{batch}.csv"
        more = [f"submission_csv={path}", f"batch_size={batch}", f"num_workers={workers}"]
        assert run_script("predict.py", *place(words), *more).returncode == 0
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]


def test_what_exists_is_not_overwritten_and_a_run_is_not_mixed(trained):
    words, out, _ = trained
    before = (out / "tiny/fold0/best.safetensors").read_bytes()
    refused(run_script("train.py", *words, "dropout=[0,0.2]", "epochs=8"), "resume=true", "run=")
    refused(
        run_script("train.py", *words, "dropout=[0,0.2]", "epochs=9", "resume=true"), "epochs=8"
    )
    done = run_script("train.py", *place(words), "resume=true")  # the run knows the rest
    assert done.returncode == 0, done.stderr
    assert (out / "tiny/fold0/best.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("script", "words", "parts"),
    [
        ("predict.py", ["channels=[8,16]"], ["channels", "stored with the weights"]),
        ("predict.py", ["run=other"], ["other", "train.sh"]),
        ("predict.py", ["fold=7"], ["lacks fold 7", "train.sh"]),
        ("train.py", ["run=new", "fold=2"], ["fold=2", "folds 0 to 1"]),
        ("train.py", ["run=new", "device=cuda"], ["no GPU"]),
        ("train.py", ["run=new", "data_dir=/nowhere"], ["/nowhere", "recipe=demo"]),
    ],
)
def test_wrong_words_are_one_line(trained, script, words, parts):
    if "device=cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    base = place(trained[0]) if script == "predict.py" else trained[0]
    refused(run_script(script, *base, *words), *parts)


INTERRUPT = """
import os, signal, sys
sys.path.insert(0, "src")
updates = int(sys.argv.pop(1))
import config, train, trainer
update = trainer.update
def update_and_stop(fold):
    global updates
    update(fold)
    updates -= 1
    if not updates:
        os.kill(os.getpid(), signal.SIGTERM)
trainer.update = update_and_stop
config.run(train.main, "the same command with resume=true goes on")
"""


def same(folders, names):
    """Whether these files of two folders are the same, byte for byte."""
    return all(len({(folder / name).read_bytes() for folder in folders}) == 1 for name in names)


@pytest.mark.parametrize("updates", [2, 3, 8])
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(data, tmp_path, updates):
    """Interrupted within an epoch and at its end, with gradients of two steps in each update."""
    more = [
        "dropout=[0,0.2]",
        "batch_size=1",
        "grad_accumulation=2",
        "epochs=4",
        "fold=0",
        "snapshot_seconds=0",
    ]
    outs = [tmp_path / "whole", tmp_path / "broken"]
    whole, broken = ([*words_for(data, out), *more] for out in outs)
    assert run_script("train.py", *whole).returncode == 0
    stopped = subprocess.run(
        [sys.executable, "-c", INTERRUPT, str(updates), *broken], cwd=ROOT, capture_output=True
    )
    assert stopped.returncode == 143, stopped.stderr
    assert b"resume=true goes on" in stopped.stderr
    done = run_script("train.py", *broken, "resume=true")
    assert "going on after epoch" in done.stdout, done.stderr
    folders = [out / "tiny/fold0" for out in outs]
    tensors = [load_file(folder / "best.safetensors") for folder in folders]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert same(folders, ["oof.csv", "oof.npz"])
    times = ["seconds", "images_per_second", "peak_gb"]
    tables = [pd.read_csv(folder / "history.csv").drop(columns=times) for folder in folders]
    assert tables[0].equals(tables[1])


def test_a_loss_that_is_no_number_stops_and_keeps_nothing_bad(data, tmp_path):
    words = [*words_for(data, tmp_path), "fold=0", "lr=1e38", "optimizer=sgd", "grad_clip=0"]
    refused(run_script("train.py", *words), "loss became", "lower lr")
    assert not (tmp_path / "tiny/fold0/best.safetensors").exists()


@pytest.mark.parametrize("setting", ["optimizer=sgd", "optimizer=rmsprop", "optimizer=adam"])
@pytest.mark.parametrize("schedule", ["onecycle", "plateau", "constant"])
def test_every_optimizer_and_schedule_makes_updates(setting, schedule):
    settings = config.load_settings([setting, f"lr_schedule={schedule}", "lr=0.1"])
    network = torch.nn.Conv2d(1, 1, 1)
    before = network.weight.detach().clone()
    optimizer = make_optimizer(settings, network)
    rule = make_schedule(settings, optimizer, updates=3)
    for _ in range(3):
        network(torch.ones(1, 1, 1, 1)).sum().backward()
        optimizer.step()
        rule.step(0.5) if schedule == "plateau" else rule.step()
    assert not torch.equal(network.weight, before)


def test_cosine_rises_then_falls_to_nothing():
    settings = config.load_settings(["lr=1", "warmup=0.2"])
    optimizer = make_optimizer(settings, torch.nn.Conv2d(1, 1, 1))
    rule, rates = make_schedule(settings, optimizer, updates=10), []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rule.step()
    assert rates[:3] == [0.5, 1, 1] and rates[3:] == sorted(rates[3:], reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("words", "lr"),
    [
        ([], 0.1),
        (["lr_reference_batch=4"], 0.2),
        (["lr_reference_batch=4", "lr_scaling=linear"], 0.4),
    ],
)
def test_lr_grows_with_the_batch_where_that_is_asked_for(words, lr):
    settings = config.load_settings(["lr=0.1", "batch_size=8", "grad_accumulation=2", *words])
    optimizer = make_optimizer(settings, torch.nn.Conv2d(1, 1, 1))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)


def test_out_of_memory_names_the_batch_and_what_to_try():
    settings = config.load_settings(["batch_size=8", "size=[256,384]"])
    with (
        pytest.raises(InputError, match=r"batch_size=8.*batch_size=4 grad_accumulation=2"),
        explain_out_of_memory(settings),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="other"), explain_out_of_memory(settings):
        raise RuntimeError("other")


@pytest.mark.parametrize("classes", [1, 4])
def test_training_scores_are_those_of_the_metrics(classes):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(3, classes, 6, 7)).astype(np.float32))
    targets = rng.integers(0, classes, (3, 6, 7)).astype(np.uint8)
    dice, accuracy = [], []
    if classes == 1:
        targets = rng.choice([0, 90, 200, 255], (3, 6, 7)).astype(np.uint8)
        for each, target in zip(logits[:, 0].numpy() > 0, targets > 127, strict=True):
            dice.append(metrics.mask_dice(each, target))
            accuracy.append((each == target).mean())
    else:
        targets[rng.random(targets.shape) < 0.2] = 255
        for each, target in zip(logits.argmax(1).numpy(), targets, strict=True):
            matrix = metrics.confusion_matrix(each, target, classes)
            dice.append(float(metrics.mean_class_dice(matrix)))
            accuracy.append(np.trace(matrix) / matrix.sum())
    found = trainer.batch_metrics(logits, torch.from_numpy(targets)[:, None])
    assert found.tolist() == pytest.approx([sum(dice), sum(accuracy)], rel=1e-5)
