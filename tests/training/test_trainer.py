"""FoldTrainer: seeds of the steps, accumulation, validation, resume, and the time of an epoch."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import tiny_settings_args
from tqdm import tqdm

from core import run_folder
from core.config import load_settings
from core.errors import InputError
from data.datasets import load_training_samples
from models import checkpoint
from training import epoch_metrics, trainer
from training.epoch_metrics import synchronized_time
from training.train_state import TrainState
from training.trainer import FoldTrainer


@pytest.fixture
def make_trainer(shared_data_dir, tmp_path):
    """Make the FoldTrainer of fold 0 of the tiny dataset, whose other fold has 6 images."""

    def make(*args):
        settings = load_settings([*tiny_settings_args(shared_data_dir, tmp_path), *args])
        return FoldTrainer(settings, 0, load_training_samples(settings), None)

    return make


def test_trainer_trains_on_the_other_folds_and_validates_on_its_own(make_trainer):
    fold = make_trainer()
    assert {sample.fold for sample in fold.train_samples} == {1}
    assert {sample.fold for sample in fold.val_samples} == {0}
    assert fold.loader.dataset.samples == fold.train_samples
    assert not {s.group for s in fold.train_samples} & {s.group for s in fold.val_samples}


def step_seed(seed=0, fold=0, epoch=0, step=0):
    position = SimpleNamespace(
        settings=SimpleNamespace(seed=seed), fold=fold, epoch=epoch, step=step
    )
    return FoldTrainer.step_seed(position)


def test_step_seed_differs_for_every_seed_fold_epoch_and_step():
    values = (0, 1, 2, 1000, 100_000)
    seeds = {
        step_seed(seed, fold, epoch, step)
        for seed in values
        for fold in (0, 1, 4)
        for epoch in values
        for step in values
    }
    assert len(seeds) == 3 * 5**3
    assert step_seed(seed=1000, step=0) != step_seed(seed=0, step=1)


def test_step_seed_differs_between_ranks_and_not_between_calls(monkeypatch):
    assert step_seed(step=3) == step_seed(step=3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    seeds = set()
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        seeds |= {step_seed(step=step) for step in range(4)}
    assert len(seeds) == 8


@pytest.mark.parametrize("loss", ["bce", "bce_dice"])
def test_train_step_accumulating_two_half_batches_equals_one_batch(loss):
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    targets = torch.randint(0, 2, (4, 1, 16, 16), dtype=torch.uint8) * 255
    weights = []
    for accumulation in (1, 2):
        torch.manual_seed(0)
        args = ["channels=[4,8]", "norm=none", "size=[16,16]", "device=cpu", "precision=fp32"]
        args += [f"grad_accumulation={accumulation}", f"loss={loss}", "optimizer=sgd"]
        settings = load_settings(args)
        state = TrainState(settings, 1, updates=2, image_pixels=1, device=torch.device("cpu"))
        for part in range(accumulation):
            chunk = slice(part * 4 // accumulation, (part + 1) * 4 // accumulation)
            state.train_step(
                images[chunk], targets[chunk], 1 / accumulation, part + 1 == accumulation
            )
        weights.append([p.detach().clone() for p in state.model.parameters()])
        assert all(p.grad is None for p in state.model.parameters())
    for one, two in zip(*weights, strict=True):
        assert torch.allclose(one, two, atol=1e-4)


def test_update_of_accumulated_steps_is_that_of_one_batch(make_trainer):
    weights = []
    for accumulation in (1, 3):  # of 6 images, two updates of 3
        args = [f"batch_size={3 // accumulation}", f"grad_accumulation={accumulation}"]
        args += ["norm=none", "augmentation=none", "optimizer=sgd", "grad_clip=0", "warmup=0"]
        fold = make_trainer(*args)
        assert len(fold.train_samples) == 6
        fold.train_epoch(tqdm(disable=True))
        weights.append([p.detach().clone() for p in fold.state.model.parameters()])
    for one, two in zip(*weights, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_history_has_the_learning_rate_of_the_last_update(make_trainer):
    fold = make_trainer("epochs=1", "batch_size=2", "warmup=0", "lr=1")  # three updates
    row = fold.train_epoch(tqdm(disable=True))
    rates = [fold.state.lr_schedule.lr_lambdas[0](update) for update in range(4)]
    assert row["lr"] == pytest.approx(rates[2]) and rates[2] > rates[3]


def test_steps_of_each_update_weigh_one_together_also_in_the_last_update(make_trainer):
    fold, steps = make_trainer("batch_size=1", "grad_accumulation=4"), []
    train_step = fold.state.train_step

    def record(images, targets, weight, is_update):
        steps.append((weight, is_update))
        return train_step(images, targets, weight, is_update)

    fold.state.train_step = record
    fold.train_epoch(tqdm(disable=True))
    assert steps == [(1 / 4, False)] * 3 + [(1 / 4, True), (1 / 2, False), (1 / 2, True)]


def test_learning_rate_ends_at_zero_if_the_last_update_of_an_epoch_has_fewer_steps(make_trainer):
    args = ["batch_size=2", "grad_accumulation=2", "epochs=2", "warmup=0"]  # 2 updates an epoch
    fold, rates = make_trainer(*args), []
    fold.state.lr_schedule.step = lambda: rates.append(None)
    assert len(fold.loader) == 3
    for _ in range(2):
        fold.train_epoch(tqdm(disable=True))
        fold.next_epoch()
    factor = fold.state.lr_schedule.lr_lambdas[0]
    assert len(rates) == 4 and factor(4) == pytest.approx(0) and factor(3) > 0.1


# ---------------------------------------------------------------- validation


@pytest.fixture
def validate_with(make_trainer, monkeypatch):
    """Train three epochs whose validation has the scores that are passed; return the trainer."""

    def train(*args, scores=((0.5, 0.5), (0.9, 0.6), (0.7, 0.8))):
        fold = make_trainer(*args)
        remaining = [dict(zip(("val_dice", "val_accuracy"), pair, strict=True)) for pair in scores]
        monkeypatch.setattr(
            fold, "score_samples", lambda samples: iter([remaining.pop(0)] * len(samples))
        )
        fold.fit()
        return fold

    return train


@pytest.mark.parametrize(("metric", "epoch"), [("dice", 2), ("accuracy", 3)])
def test_saved_network_is_the_average_of_the_epoch_with_the_best_metric(
    validate_with, tmp_path, metric, epoch
):
    fold = validate_with(f"checkpoint_metric={metric}")
    path = run_folder.weights_path(fold.settings.run_dir, 0)
    assert checkpoint.read_metadata(path)["epoch"] == epoch
    if epoch == 3:
        saved, _ = checkpoint.load_model(path, torch.device("cpu"))
        models = (saved, fold.state.ema.module, fold.state.model)
        first, average, last = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
        assert torch.equal(first, average) and not torch.equal(first, last)


def test_saved_network_is_of_the_first_of_equally_good_epochs(validate_with):
    fold = validate_with(scores=((0.5, 0.5), (0.9, 0.5), (0.9, 0.5)))
    path = run_folder.weights_path(fold.settings.run_dir, 0)
    assert checkpoint.read_metadata(path)["epoch"] == 2


def test_fit_validates_every_so_many_epochs_and_after_the_last(validate_with):
    fold = validate_with("validate_every_epochs=2", scores=((0.5, 0.5), (0.6, 0.6)))
    history = pd.read_csv(run_folder.history_path(fold.settings.run_dir, 0))
    assert history["val_dice"].notna().tolist() == [False, True, True]


def test_first_batch_is_drawn_once(validate_with, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        trainer.EpochLog, "save_first_batch", lambda log, *batch: drawn.append(batch)
    )
    fold = validate_with()
    [(images, targets, class_map)] = drawn
    first_images, first_targets = next(iter(fold.loader))
    assert images.dtype == torch.uint8 and class_map == fold.class_map
    assert images.shape == first_images.shape and targets.shape == first_targets.shape


# ---------------------------------------------------------------- resume


def test_resume_with_an_image_moved_to_another_fold_is_rejected(make_trainer):
    fold = make_trainer()
    fold.save_snapshot()
    fold.snapshots.wait()
    make_trainer().resume()
    first, *others = load_training_samples(fold.settings)
    moved = [replace(first, fold=1 - first.fold), *others]
    with pytest.raises(InputError, match="other images, masks or folds"):
        FoldTrainer(fold.settings, 0, moved, None).resume()


def test_resumed_run_keeps_a_network_that_no_later_epoch_improves(make_trainer, monkeypatch):
    def score(fold, value):
        scores = {"val_dice": value, "val_accuracy": value}
        monkeypatch.setattr(fold, "score_samples", lambda samples: iter([scores] * len(samples)))

    fold = make_trainer()
    score(fold, 0.9)
    fold.validate()
    fold.next_epoch()
    fold.save_snapshot()
    fold.snapshots.wait()
    resumed = make_trainer()
    resumed.resume()
    score(resumed, 0.8)
    resumed.validate()
    path = run_folder.weights_path(fold.settings.run_dir, 0)
    assert checkpoint.read_metadata(path)["epoch"] == 1
    score(resumed, 0.95)
    resumed.validate()
    assert checkpoint.read_metadata(path)["epoch"] == 2


# ---------------------------------------------------------------- time and memory


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless `seconds` is changed."""
    clock = SimpleNamespace(seconds=0.0)
    for module in (trainer, epoch_metrics):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def taking(clock, seconds, function):
    """Return `function`, made to take some seconds on the clock."""

    def slow(*args):
        clock.seconds += seconds
        return function(*args)

    return slow


def test_synchronized_time_includes_what_the_gpu_has_queued(clock, monkeypatch):
    synchronize = taking(clock, 7, lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert synchronized_time(torch.device("cuda", 0)) == 7
    assert synchronized_time(torch.device("cpu")) == 7  # waits for no GPU


def test_images_per_second_counts_loading_steps_and_reading_the_loss(make_trainer, clock):
    fold = make_trainer("batch_size=2")
    fold.loader.collate_fn = taking(clock, 0.5, fold.loader.collate_fn)
    fold.state.train_step = taking(clock, 1, fold.state.train_step)
    fold.require_finite = taking(clock, 10, fold.require_finite)  # at step 1 and at the end
    row = fold.train_epoch(tqdm(disable=True))
    assert len(fold.train_samples) == 6 and len(fold.loader) == 3
    assert row["seconds"] == 3 * 1.5 + 10
    assert row["images_per_second"] == round(6 / 14.5, 2)


def test_snapshots_do_not_count_as_training_time(make_trainer, clock):
    fold = make_trainer("batch_size=2", "snapshot_seconds=0")
    fold.state.train_step = taking(clock, 1, fold.state.train_step)
    fold.save_snapshot = taking(clock, 100, fold.save_snapshot)
    assert fold.train_epoch(tqdm(disable=True))["seconds"] == 3
    fold.snapshots.wait()


def test_a_snapshot_is_saved_when_snapshot_seconds_are_over(make_trainer, clock):
    fold, saved = make_trainer("batch_size=1", "snapshot_seconds=2"), []
    fold.state.train_step = taking(clock, 1, fold.state.train_step)
    fold.save_snapshot = lambda: saved.append(fold.step)
    fold.train_epoch(tqdm(disable=True))
    assert saved == [3, 6]


def test_every_fold_has_a_peak_of_memory_of_its_own(make_trainer, monkeypatch):
    """torch keeps one peak for the whole process."""
    reset = []
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(trainer, "EpochMetrics", lambda device: None)
    monkeypatch.setattr(trainer, "TrainState", lambda *args: None)
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        monkeypatch.setattr(trainer, "pick_device", lambda settings, device=device: device)
        make_trainer()
    assert reset == [torch.device("cuda", 0)]


@pytest.mark.parametrize("tta", ["hflip", "flips"])
def test_network_trains_in_training_mode_and_is_validated_without_tta(
    make_trainer, monkeypatch, tta
):
    fold = make_trainer(f"tta={tta}")
    before = fold.state.model.network.encoder_blocks[0][1].running_mean.clone()
    fold.train_epoch(tqdm(disable=True))
    after = fold.state.model.network.encoder_blocks[0][1].running_mean
    assert not torch.equal(before, after)
    used, predict = [], trainer.predict

    def record(members, samples, settings, *args, **options):
        used.append(settings.tta)
        return predict(members, samples, settings, *args, **options)

    monkeypatch.setattr(trainer, "predict", record)
    fold.validate()
    assert used == ["none"]


def test_weights_are_saved_after_the_snapshot_before_them(make_trainer, monkeypatch):
    """A kill must not leave new weights without a snapshot."""
    fold, calls = make_trainer(), []
    monkeypatch.setattr(fold.snapshots, "wait", lambda: calls.append("wait"))
    monkeypatch.setattr(checkpoint, "save_model", lambda *_: calls.append("save"))
    fold.validate()
    assert calls == ["wait", "save"]
