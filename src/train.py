"""Trains one fold, or every fold in turn; scores each out of fold; then the leaderboard."""

import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import config
from settings import Settings

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    config.run(lambda: config.load(sys.argv[1:]))

import pandas as pd
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

import checkpoint
import datasets
import gallery
import oof
import plan
import provenance
import ranks
import snapshots
import together
from cache import Cache, make_cache
from datasets import fingerprint
from device import pick_device, why_not_compiled
from files import replacing
from infer import member, predict
from metrics import clustered_error
from models import parameters
from row import Row
from state import Fold, make_engine
from stopping import AfterStep, Stopped
from trainer import shown, train_epoch


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
    if ranks.first():
        provenance.record(resume.parent, settings, rows, engine.device)
    images = len(state.batches.dataset)
    title, done = f"fold {fold}", state.epoch * images + state.sums.images
    with tqdm(
        None, title, settings.epochs * images, unit="image", initial=done, disable=None
    ) as bar:
        while state.epoch < settings.epochs:
            entry = train_safely(state, bar)
            if (state.epoch + 1) % settings.validate_every == 0 or state.last_epoch:
                keep(state)
                entry |= validate(state)
            report(state, entry, bar)
            state.end_epoch()
            keep(state)
    if ranks.first():
        state.writer.close()
    score_fold(settings, fold, state.held_out, engine.device, cache)
    if ranks.first():
        snapshots.remove(resume)
    engine.free_memory()


def keep(state: Fold) -> None:
    """Take a snapshot; all processes have a part in it, the first one writes it."""
    everything = state.state()
    if ranks.first():
        snapshots.save(snapshots.folder(state.settings, state.fold), everything)


def train_safely(state: Fold, bar: tqdm) -> dict[str, float]:
    """An epoch, with a snapshot now and then, and before a signal ends it after an update. What
    one process is told, all do after the same one."""
    taken = time.monotonic()
    with AfterStep() as asked:

        def updated() -> None:
            nonlocal taken
            due = time.monotonic() - taken > state.settings.snapshot_every
            due, stop = together.any_of([due, bool(asked.number)])
            if due or stop:
                keep(state)
                taken = time.monotonic()
            if stop:
                raise Stopped(asked.number or signal.SIGTERM)

        return train_epoch(state, bar, updated)


def validate(state: Fold) -> dict[str, float]:
    """Mean Dice and accuracy of the held-out images at native size, without TTA; the weights that
    are best by `best_by` are kept. Several processes share the images."""
    together.from_first(state.average.module)
    scores = together.of_each(state.held_out, lambda mine: scored(state, mine))
    means = pd.DataFrame(scores).mean().to_dict()
    best_by = means[state.settings.best_by]
    if isinstance(state.schedule, ReduceLROnPlateau):
        state.schedule.step(best_by)
    if best_by > state.best:
        state.best = best_by
        path, network = checkpoint.weights_path(state.settings, state.fold), state.average.module
        if ranks.first():
            checkpoint.save_weights(path, network, state.settings, about(state) | means)
    return means


def scored(state: Fold, rows: list[Row]) -> Iterator[dict[str, float]]:
    """Scores of each row without TTA; TensorBoard gets pictures of the first three."""
    plain = replace(state.settings, tta="none")
    predictions = predict([state.member()], rows, plain, True, cache=state.cache)
    for i, prediction in enumerate(oof.progress(predictions, rows, "validate")):
        if i < 3 and ranks.first():
            picture = gallery.small_picture(prediction)
            state.writer.add_image(f"held_out/{i}", picture, state.epoch + 1, dataformats="HWC")
        yield oof.plain_scores(prediction)


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


def report(state: Fold, entry: dict[str, Any], bar: tqdm) -> None:
    """A line to read, a row of history.csv, a point on TensorBoard's curves."""
    state.history.append(entry)
    if not ranks.first():
        return
    with replacing(checkpoint.fold_dir(state.settings, state.fold) / "history.csv") as partial:
        pd.DataFrame(state.history).to_csv(partial, index=False)
    for name, value in entry.items():
        if name != "epoch":
            state.writer.add_scalar(name, value, entry["epoch"])
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
    together.wait()
    network, _, _ = checkpoint.load_weights(path, device)
    voters = [member(network, settings)]
    scores = oof.score(voters, held_out, settings, f"fold {fold} oof", cache)
    if ranks.first():
        oof.save(path.parent, scores)
    error = clustered_error(scores.dice, scores.groups)
    print(
        f"fold {fold}: out-of-fold dice {scores.dice.mean():.5f} ± {error:.5f} on {len(held_out)} "
        f"images (tta={settings.tta}); {oof.beside(scores)}"
    )


def train_folds(settings: Settings) -> None:
    """Train the folds that are asked for and not done; of several processes, each its part."""
    rows = datasets.training_rows(settings)
    folds = plan.folds_to_train(settings, plan.describe(settings, rows))
    engine = make_engine(settings)
    if folds:
        plan.check_folds(settings, folds, rows)
        known = {"data_dir": fingerprint(rows), "commit": provenance.commit()}
        together.check_alike(known)
        if reason := why_not_compiled(settings, engine.device):
            print(f"compile={settings.compile}: trained without compiling, {reason}")
        if ranks.first():
            checkpoint.save_settings(replace(settings, fold=None, resume=False))
        cache = make_cache(settings, rows)
    for fold in folds:
        with plan.held(settings, fold):
            train_fold(settings, fold, rows, cache, engine)
    together.leave()


def main() -> None:
    settings = plan.load_settings(sys.argv[1:])
    plan.make_data(settings)
    if together.wanted() > 1:
        plan.check(settings)
        together.launch(pick_device(settings))
        return
    train_folds(settings)
    if ranks.first():
        config.run_script("leaderboard.py", [f"output_dir={settings.output_dir}"])


if __name__ == "__main__":
    config.run(main, "the same command with resume=true goes on")
