"""Trains one fold, or every fold in turn; scores each out of fold; then the leaderboard."""

import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

from core import cli, config, distributed, process_env, provenance, run_folder
from core.device import compile_obstacle, pick_device
from core.files import atomic_write
from core.settings import Settings
from core.signals import DeferSignals, StopRequested
from data import datasets
from data.cache import Cache, make_cache
from data.datasets import dataset_fingerprint
from data.sample import Sample
from evaluation import oof, visualize
from evaluation.statistics import clustered_standard_error
from inference.predictor import make_member, predict
from models import checkpoint
from models.segmenter import count_parameters
from training import preflight, snapshots
from training.state import FoldTrainer, make_accelerator
from training.trainer import progress_text, train_epoch

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    cli.run_main(lambda: config.load_settings(sys.argv[1:]))


def train_fold(
    settings: Settings, fold: int, rows: list[Sample], cache: Cache | None, engine: Accelerator
) -> None:
    """Train one fold from its last snapshot or from scratch, then score what it held out."""
    state = FoldTrainer(settings, fold, rows, cache, engine)
    resume = run_folder.snapshot_dir(settings.run_dir, fold)
    if (stored := snapshots.load_snapshot(resume)) is not None:
        state.restore(stored)
        inside = f" and step {state.step} of {len(state.batches)}" if state.step else ""
        print(f"fold {fold}: going on after epoch {state.epoch} of {settings.epochs}{inside}")
    if process_env.is_main_process():
        provenance.append_run_record(resume.parent, settings, rows, engine.device)
    images = len(state.batches.dataset)
    title, done = f"fold {fold}", state.epoch * images + state.sums.images
    with tqdm(
        None, title, settings.epochs * images, unit="image", initial=done, disable=None
    ) as bar:
        while state.epoch < settings.epochs:
            entry = train_epoch_with_snapshots(state, bar)
            if (state.epoch + 1) % settings.validate_every_epochs == 0 or state.last_epoch:
                save_fold_snapshot(state)
                entry |= validate(state)
            log_epoch(state, entry, bar)
            state.end_epoch()
            save_fold_snapshot(state)
    if process_env.is_main_process():
        state.writer.close()
    score_fold(settings, fold, state.held_out, engine.device, cache)
    if process_env.is_main_process():
        snapshots.remove_snapshots(resume)
    engine.free_memory()


def save_fold_snapshot(state: FoldTrainer) -> None:
    """Take a snapshot; all processes have a part in it, the first one writes it."""
    everything = state.state()
    if process_env.is_main_process():
        snapshots.save_snapshot(run_folder.snapshot_dir(state.settings.run_dir, state.fold), everything)


def train_epoch_with_snapshots(state: FoldTrainer, bar: tqdm) -> dict[str, float]:
    """An epoch, with a snapshot now and then, and before a signal ends it after an update. What
    one process is told, all do after the same one."""
    taken = time.monotonic()
    with DeferSignals() as asked:

        def updated() -> None:
            nonlocal taken
            due = time.monotonic() - taken > state.settings.snapshot_seconds
            due, stop = distributed.all_reduce_any([due, bool(asked.number)])
            if due or stop:
                save_fold_snapshot(state)
                taken = time.monotonic()
            if stop:
                raise StopRequested(asked.number or signal.SIGTERM)

        return train_epoch(state, bar, updated)


def validate(state: FoldTrainer) -> dict[str, float]:
    """Mean Dice and accuracy of the held-out images at native size, without TTA; the weights that
    are best by `best_by` are kept. Several processes share the images."""
    distributed.broadcast_module(state.average.module)
    scores = distributed.map_sharded(state.held_out, lambda mine: score_samples(state, mine))
    means = pd.DataFrame(scores).mean().to_dict()
    best_by = means[state.settings.checkpoint_metric]
    if isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step(best_by)
    if best_by > state.best:
        state.best = best_by
        path, network = run_folder.weights_path(state.settings.run_dir, state.fold), state.average.module
        if process_env.is_main_process():
            checkpoint.save_model(path, network, state.settings, checkpoint_metadata(state) | means)
    return means


def score_samples(state: FoldTrainer, rows: list[Sample]) -> Iterator[dict[str, float]]:
    """Scores of each row without TTA; TensorBoard gets pictures of the first three."""
    plain = replace(state.settings, tta="none")
    predictions = predict([state.member()], rows, plain, True, cache=state.cache)
    for i, prediction in enumerate(oof.with_progress_bar(predictions, rows, "validate")):
        if i < 3 and process_env.is_main_process():
            picture = visualize.thumbnail(prediction)
            state.writer.add_image(f"held_out/{i}", picture, state.epoch + 1, dataformats="HWC")
        yield oof.validation_scores(prediction)


def checkpoint_metadata(state: FoldTrainer) -> dict[str, Any]:
    """Facts that are stored with the weights."""
    return {
        "classes": len(state.class_map.names),
        "names": state.class_map.names,
        "fold": state.fold,
        "data": state.data,
        "epoch": state.epoch + 1,
        "parameters": count_parameters(state.average.module),
        "precision": state.engine.mixed_precision,
        "command": provenance.train_command(),
        "commit": provenance.current_commit(),
    }


def log_epoch(state: FoldTrainer, entry: dict[str, Any], bar: tqdm) -> None:
    """A line to read, a row of history.csv, a point on TensorBoard's curves."""
    state.history.append(entry)
    if not process_env.is_main_process():
        return
    with atomic_write(run_folder.fold_dir(state.settings.run_dir, state.fold) / "history.csv") as partial:
        pd.DataFrame(state.history).to_csv(partial, index=False)
    for name, value in entry.items():
        if name != "epoch":
            state.writer.add_scalar(name, value, entry["epoch"])
    dice = f"dice {entry['dice']:.5f}  " if "dice" in entry else ""
    bar.set_postfix_str(progress_text(state, entry["loss"]))
    tqdm.write(
        f"fold {state.fold}  epoch {entry['epoch']:>3}/{state.settings.epochs}  "
        f"loss {entry['loss']:.4f}  {dice}lr {entry['lr']:.2e}  "
        f"{entry['images_per_second']:.1f} images/s"
    )


def score_fold(
    settings: Settings, fold: int, held_out: list[Sample], device: torch.device, cache: Cache | None
) -> None:
    """Score the kept weights out of fold, with TTA; write oof.csv and oof.npz; say it."""
    path = run_folder.weights_path(settings.run_dir, fold)
    distributed.barrier()
    network, _, _ = checkpoint.load_model(path, device)
    voters = [make_member(network, settings)]
    scores = oof.score_out_of_fold(voters, held_out, settings, f"fold {fold} oof", cache)
    if process_env.is_main_process():
        oof.save_scores(path.parent, scores)
    error = clustered_standard_error(scores.dice, scores.groups)
    print(
        f"fold {fold}: out-of-fold dice {scores.dice.mean():.5f} ± {error:.5f} on {len(held_out)} "
        f"images (tta={settings.tta}); {oof.score_summary(scores)}"
    )


def train_folds(settings: Settings) -> None:
    """Train the folds that are asked for and not done; of several processes, each its part."""
    rows = datasets.load_training_samples(settings)
    folds = preflight.folds_to_train(settings, preflight.check_data(settings, rows))
    engine = make_accelerator(settings)
    if folds:
        preflight.check_folds(settings, folds, rows)
        known = {"data_dir": dataset_fingerprint(rows), "commit": provenance.current_commit()}
        distributed.assert_equal_on_all_ranks(known)
        if reason := compile_obstacle(settings, engine.device):
            print(f"compile={settings.compile}: trained without compiling, {reason}")
        if process_env.is_main_process():
            run_folder.save_run_settings(replace(settings, fold=None, resume=False))
        cache = make_cache(settings, rows)
    for fold in folds:
        with preflight.lock_fold(settings, fold):
            train_fold(settings, fold, rows, cache, engine)
    distributed.destroy_process_group()


def main() -> None:
    settings = preflight.load_run_settings(sys.argv[1:])
    preflight.prepare_data(settings)
    if distributed.requested_processes() > 1:
        preflight.preflight_checks(settings)
        distributed.launch_processes(pick_device(settings))
        return
    train_folds(settings)
    if process_env.is_main_process():
        cli.run_script_in_subprocess("leaderboard.py", [f"output_dir={settings.output_dir}"])


if __name__ == "__main__":
    cli.run_main(main, "the same command with resume=true goes on")
