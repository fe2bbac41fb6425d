"""init_run: fold k starts from the weights of fold k of another run, and never of another fold."""

import shutil

import pandas as pd
import pytest
import torch
from conftest import assert_input_error, smp_args, tiny_settings_args
from safetensors.torch import load_file
from tiny_datasets import remove_image

import train
from core.config import load_settings
from core.errors import InputError
from core.run_folder import ensemble_path, read_run_settings, snapshot_dir, weights_path
from data import datasets
from data.fingerprint import dataset_fingerprint
from models import checkpoint
from models.build import build_model
from training import preflight
from training.initial_weights import find_initial_weights, needs_pretrained
from training.snapshots import save_snapshot
from training.trainer import FoldTrainer

CPU = torch.device("cpu")


def finer_args(run, *args):
    """Arguments of a run that starts from the run `tiny`, at another size."""
    args = [*tiny_settings_args(run.data_dir, run.output_dir), "size=[48,64]", *args]
    return [*args, "run=finer", "init_run=tiny", "dropout=[0,0.2]"]


def make_trainer(args, fold):
    settings = load_settings(args)
    samples = datasets.load_training_samples(settings)
    return FoldTrainer(settings, fold, samples, None)


def weights_of(run, fold):
    return weights_path(run.output_dir / "tiny", fold)


def have_equal_weights(module, tensors):
    state = module.state_dict()
    return state.keys() == tensors.keys() and all(
        torch.equal(state[n], tensors[n]) for n in tensors
    )


@pytest.mark.parametrize("fold", [0, 1])
def test_fold_trainer_starts_network_and_ema_from_the_weights_of_the_same_fold(run_copy, fold):
    state = make_trainer(finer_args(run_copy), fold).state
    same, other = (load_file(weights_of(run_copy, k)) for k in (fold, 1 - fold))
    for module in (state.model, state.ema.module):
        assert have_equal_weights(module, same) and not have_equal_weights(module, other)


@pytest.mark.parametrize("fold", [0, 1])
def test_training_from_marked_networks_keeps_the_mark_of_its_own_fold(run_copy, fold):
    """The bias of fold k's output layer is 100 + k; a tiny learning rate leaves it there."""
    for k in (0, 1):
        model, settings = checkpoint.load_model(weights_of(run_copy, k), CPU)
        metadata = checkpoint.read_metadata(weights_of(run_copy, k))
        model.network.head.bias.data.fill_(100.0 + k)
        checkpoint.save_model(weights_of(run_copy, k), model, settings, metadata)
    train.main(finer_args(run_copy, f"fold={fold}", "epochs=1", "lr=1e-9"))
    trained = load_file(weights_path(run_copy.output_dir / "finer", fold))
    assert trained["network.head.bias"].item() == pytest.approx(100 + fold, abs=1e-3)
    assert read_run_settings(run_copy.output_dir / "finer")["init_run"] == "tiny"


def test_training_from_a_trained_run_is_better_after_one_epoch(run_copy):
    train.main(finer_args(run_copy, "fold=0", "epochs=1", "lr=1e-4"))
    args = [*finer_args(run_copy, "fold=0", "epochs=1", "lr=1e-4"), "init_run=", "run=new"]
    train.main(args)
    dice = [
        pd.read_csv(run_copy.output_dir / run / "fold0" / "oof.csv")["oof_dice"].mean()
        for run in ("finer", "new")
    ]
    assert dice[0] > 0.8 > dice[1]


def test_training_from_initial_weights_needs_no_pretrained_ones(run_copy):
    """They are neither downloaded nor read."""
    args = smp_args(finer_args(run_copy), "tu-mobilenetv3_small_050")
    settings = load_settings([*args, "encoder_weights=missing.pth"])
    samples = datasets.load_training_samples(settings)
    model = build_model(settings, pretrained=False)
    metadata = {"classes": 1, "fold": 0, "data": dataset_fingerprint(samples)}
    checkpoint.save_model(weights_of(run_copy, 0), model, settings, metadata)
    state = FoldTrainer(settings, 0, samples, None).state
    assert have_equal_weights(state.model, model.state_dict())


def test_resuming_from_a_snapshot_needs_no_pretrained_weights(data_dir, tmp_path):
    args = smp_args(tiny_settings_args(data_dir, tmp_path), "tu-mobilenetv3_small_050")
    settings = load_settings([*args, "encoder_weights=missing.pth"])
    assert needs_pretrained(settings, 0)
    save_snapshot(snapshot_dir(settings.run_dir, 0), {"epoch": 0, "step": 1})
    assert not needs_pretrained(settings, 0) and needs_pretrained(settings, 1)
    samples = datasets.load_training_samples(settings)
    preflight.check_folds(settings, [0], samples, {(48, 72)})
    with pytest.raises(InputError, match=r"missing\.pth: no such file"):
        preflight.check_folds(settings, [0, 1], samples, {(48, 72)})


def test_resuming_from_a_snapshot_does_not_need_the_run_of_the_initial_weights(run_copy):
    settings = load_settings(finer_args(run_copy))
    samples = datasets.load_training_samples(settings)
    weights_of(run_copy, 0).unlink()
    with pytest.raises(InputError, match="is missing; train fold=0"):
        find_initial_weights(settings, 0, samples)
    save_snapshot(snapshot_dir(settings.run_dir, 0), {"epoch": 0, "step": 1})
    assert find_initial_weights(settings, 0, samples) is None


# ---------------------------------------------------------------- refusals


def test_find_initial_weights_without_init_run_is_none(trained_run):
    settings = load_settings(trained_run.args)
    assert find_initial_weights(settings, 0, datasets.load_training_samples(settings)) is None


def swap_folds(run):
    """Exchange the files of both folds."""
    first, second = weights_of(run, 0), weights_of(run, 1)
    shutil.move(first, first.with_suffix(".tmp"))
    shutil.move(second, first)
    shutil.move(first.with_suffix(".tmp"), second)


def regroup(run):
    """Assign the cars to other folds."""
    path = run.data_dir / "folds.csv"
    lines = path.read_text().splitlines()
    numbers = {"0": "1", "1": "0"}
    lines[1:] = [line[:-1] + numbers[line[-1]] for line in lines[1:]]
    path.write_text("\n".join(lines) + "\n")


def drop_image(run):
    remove_image(run.data_dir)


def drop_fold(run):
    weights_of(run, 1).unlink()


def interrupt(run):
    folder = snapshot_dir(run.output_dir / "tiny", 1)
    folder.mkdir(exist_ok=True)
    (folder / "00000-0000001-0.pt").touch()


def damage(run):
    weights_of(run, 0).write_bytes(b"no weights")


@pytest.mark.parametrize(
    ("change", "args", "parts"),
    [
        (swap_folds, [], ["fold0/best.safetensors: is in the wrong folder: it held out fold 1"]),
        (regroup, [], ["was trained on other images, masks or folds", "folds_csv"]),
        (drop_image, [], ["was trained on other images, masks or folds"]),
        (None, ["max_images=2"], ["was trained on other images, masks or folds"]),
        (drop_fold, [], ["fold1/best.safetensors is missing; train fold=1 of that run first"]),
        (interrupt, [], ["init_run=tiny: has not finished fold 1; resume it first"]),
        (damage, [], ["best.safetensors: not a weights file"]),
        (None, ["channels=[8,8]"], ["best.safetensors: does not fit the network of this run"]),
        (None, ["norm=none"], ["best.safetensors: does not fit the network of this run"]),
    ],
)
def test_train_from_a_run_that_does_not_fit_raises_one_line(run_copy, change, args, parts):
    if change:
        change(run_copy)
    assert_input_error(train.main, finer_args(run_copy, *args), *parts)
    assert not list(run_copy.output_dir.glob("finer/fold*/best.safetensors"))


def test_train_from_itself_or_a_missing_run_raises_one_line(run_copy):
    args = finer_args(run_copy)
    assert_input_error(train.main, [*args, "run=tiny2", "init_run=tiny2"], "is this run itself")
    message = "init_run=tini: no such run in"
    assert_input_error(train.main, [*args, "init_run=tini"], message, "did you mean tiny?")
    (run_copy.output_dir / "a+b").mkdir()
    ensemble_path(run_copy.output_dir / "a+b").touch()
    message = "init_run=a+b: is an ensemble; choose one of its runs"
    assert_input_error(train.main, [*args, "init_run=a+b"], message)
