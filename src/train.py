"""Trains one fold, or every fold in turn; scores each out of fold; then the leaderboard."""

import sys
import time
from dataclasses import replace
from typing import Any

import config
from config import InputError
from settings import Settings

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    config.run(lambda: config.load(sys.argv[1:]))

import pandas as pd
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import checkpoint
import datasets
import gallery
import oof
import plan
import provenance
import snapshots
from cache import Cache, make_cache
from device import why_not_compiled
from files import only_one, replacing
from infer import member, predict
from metrics import clustered_error
from models import build, parameters
from row import Row
from stopping import AfterStep
from trainer import Fold, make_engine, shown, train_epoch


def train_fold(
    settings: Settings, fold: int, rows: list[Row], cache: Cache | None, engine: Accelerator
) -> None:
    """Train one fold from its last snapshot or from scratch, then score what it held out."""
    state = Fold(settings, fold, rows, cache, engine)
    resume = snapshots.folder(settings, fold)
    if (stored := snapshots.load(resume)) is not None:
        state.restore(stored)
        inside = f" and step {state.step} of {len(state.batches)}" if state.step else ""
        print(f"fold {fold}: going on after epoch {state.epoch} of {settings.epochs}{inside}")
    provenance.record(resume.parent, settings, rows, engine.device)
    images = len(state.batches.dataset)
    writer = SummaryWriter(resume.parent / "tensorboard")
    title, done = f"fold {fold}", state.epoch * images + state.sums.images
    with tqdm(
        None, title, settings.epochs * images, unit="image", initial=done, disable=None
    ) as bar:
        while state.epoch < settings.epochs:
            entry = train_safely(state, bar)
            if (state.epoch + 1) % settings.validate_every == 0 or state.last_epoch:
                snapshots.save(resume, state.state())
                entry |= validate(state, writer)
            report(state, entry, bar, writer)
            state.end_epoch()
            snapshots.save(resume, state.state())
    writer.close()
    score_fold(settings, fold, state.held_out, engine.device, cache)
    snapshots.remove(resume)
    engine.free_memory()


def train_safely(state: Fold, bar: tqdm) -> dict[str, float]:
    """An epoch, with a snapshot now and then, and before a signal ends it after an update."""
    resume, taken = snapshots.folder(state.settings, state.fold), time.monotonic()
    with AfterStep() as asked:

        def updated() -> None:
            nonlocal taken
            if asked.number or time.monotonic() - taken > state.settings.snapshot_every:
                snapshots.save(resume, state.state())
                taken = time.monotonic()
            asked.check()

        return train_epoch(state, bar, updated)


def validate(state: Fold, writer: SummaryWriter) -> dict[str, float]:
    """Mean Dice and accuracy of the held-out images at native size, without TTA; the weights that
    are best by `best_by` are kept."""
    plain = replace(state.settings, tta="none")
    predictions = predict([state.member()], state.held_out, plain, True, cache=state.cache)
    scores = []
    for prediction in oof.progress(predictions, state.held_out, "validate"):
        if len(scores) < 3:
            picture = gallery.small_picture(prediction)
            writer.add_image(f"held_out/{len(scores)}", picture, state.epoch + 1, dataformats="HWC")
        scores.append(oof.plain_scores(prediction))
    means = pd.DataFrame(scores).mean().to_dict()
    best_by = means[state.settings.best_by]
    if isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step(best_by)
    if best_by > state.best:
        state.best = best_by
        path = checkpoint.weights_path(state.settings, state.fold)
        network = state.average.module
        checkpoint.save_weights(path, network, state.settings, about(state) | means)
    return means


def about(state: Fold) -> dict[str, Any]:
    """Facts that are stored with the weights."""
    return {
        "classes": len(state.scheme.names),
        "names": state.scheme.names,
        "fold": state.fold,
        "data": state.data,
        "epoch": state.epoch + 1,
        "parameters": parameters(state.average.module),
        "precision": state.engine.mixed_precision,
        "command": provenance.command(),
        "commit": provenance.commit(),
    }


def report(state: Fold, entry: dict[str, Any], bar: tqdm, writer: SummaryWriter) -> None:
    """A line to read, a row of history.csv, a point on TensorBoard's curves."""
    state.history.append(entry)
    with replacing(checkpoint.fold_dir(state.settings, state.fold) / "history.csv") as partial:
        pd.DataFrame(state.history).to_csv(partial, index=False)
    for name, value in entry.items():
        if name != "epoch":
            writer.add_scalar(name, value, entry["epoch"])
    dice = f"dice {entry['dice']:.5f}  " if "dice" in entry else ""
    bar.set_postfix_str(shown(state, entry["loss"]))
    tqdm.write(
        f"fold {state.fold}  epoch {entry['epoch']:>3}/{state.settings.epochs}  "
        f"loss {entry['loss']:.4f}  {dice}lr {entry['lr']:.2e}  "
        f"{entry['images_per_second']:.1f} images/s"
    )


def score_fold(
    settings: Settings, fold: int, held_out: list[Row], device: torch.device, cache: Cache | None
) -> None:
    """Score the kept weights out of fold, with TTA; write oof.csv and oof.npz; say it."""
    path = checkpoint.weights_path(settings, fold)
    network, _, _ = checkpoint.load_weights(path, device)
    voters = [member(network, settings)]
    scores = oof.score(voters, held_out, settings, f"fold {fold} oof", cache)
    oof.save(path.parent, scores)
    error = clustered_error(scores.dice, scores.groups)
    print(
        f"fold {fold}: out-of-fold dice {scores.dice.mean():.5f} ± {error:.5f} on {len(held_out)} "
        f"images (tta={settings.tta}); {oof.beside(scores)}"
    )


def main() -> None:
    settings = plan.load_settings(sys.argv[1:])
    plan.make_data(settings)
    rows = datasets.training_rows(settings)
    folds = plan.folds_to_train(settings, plan.describe(settings, rows))
    for fold in folds:
        if len({row.fold == fold for row in rows}) < 2:
            raise InputError(
                f"fold={fold}: needs groups inside and outside it in {settings.data_dir}"
            )
    engine = make_engine(settings)
    if folds:
        plan.check_loss(settings, rows[0].scheme)
        build(settings)  # an unknown encoder is told now, not after minutes of decoding
        if reason := why_not_compiled(settings, engine.device):
            print(f"compile={settings.compile}: trained without compiling, {reason}")
        checkpoint.save_settings(replace(settings, fold=None, resume=False))
        cache = make_cache(settings, rows)
    for fold in folds:
        with only_one(checkpoint.fold_dir(settings, fold), "wait, or name another with run=..."):
            train_fold(settings, fold, rows, cache, engine)
    config.run_script("leaderboard.py", [f"output_dir={settings.output_dir}"])


if __name__ == "__main__":
    config.run(main, "the same command with resume=true goes on")
