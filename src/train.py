"""Trains one fold, or every fold in turn; scores each out of fold; then the leaderboard."""

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import config
from config import InputError
from settings import FREE, Settings

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
import pixels
import tables
from cache import Cache, make_cache
from device import why_not_compiled
from files import replacing
from infer import member, predict
from labels import Scheme
from losses import OF_CLASSES, OF_ONE
from metrics import clustered_error
from models import build, parameters
from row import Row
from trainer import Fold, make_engine, shown, train_epoch

# ---------------------------------------------------------------- a fold


def train_fold(
    settings: Settings, fold: int, rows: list[Row], cache: Cache | None, engine: Accelerator
) -> None:
    """Train one fold from its snapshot or from scratch, then score what it held out."""
    state = Fold(settings, fold, rows, cache, engine)
    snapshot = checkpoint.snapshot_path(settings, fold)
    if snapshot.exists():
        state.restore(checkpoint.load_snapshot(snapshot))
        print(f"fold {fold}: going on after epoch {state.epoch} of {settings.epochs}")
    images = len(state.batches.dataset)
    writer = SummaryWriter(checkpoint.fold_dir(settings, fold) / "tensorboard")
    title, done = f"fold {fold}", state.epoch * images
    with tqdm(
        None, title, settings.epochs * images, unit="image", initial=done, disable=None
    ) as bar:
        while state.epoch < settings.epochs:
            entry = train_epoch(state, bar)
            state.epoch += 1
            if state.epoch % settings.validate_every == 0 or state.epoch == settings.epochs:
                entry |= validate(state, writer)
            report(state, entry, bar, writer)
            checkpoint.save_snapshot(snapshot, state.state())
    writer.close()
    score_fold(settings, fold, state.held_out, engine.device, cache)
    snapshot.unlink()
    snapshot.parent.rmdir()
    engine.free_memory()


def validate(state: Fold, writer: SummaryWriter) -> dict[str, float]:
    """Mean Dice and accuracy of the held-out images at native size, without TTA; the weights that
    are best by `best_by` are kept."""
    plain = replace(state.settings, tta="none")
    predictions = predict([state.member()], state.held_out, plain, True, cache=state.cache)
    scores = []
    for prediction in oof.progress(predictions, state.held_out, "validate"):
        if len(scores) < 3:
            picture = gallery.small_picture(prediction)
            writer.add_image(f"held_out/{len(scores)}", picture, state.epoch, dataformats="HWC")
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
        "epoch": state.epoch,
        "parameters": parameters(state.average.module),
        "precision": state.engine.mixed_precision,
        "command": shlex.join(["bash", "train.sh", *sys.argv[1:]]),
        "commit": checkpoint.commit(),
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


# ---------------------------------------------------------------- a run


def load_settings(words: list[str]) -> Settings:
    """The words' settings; a run that is resumed brings its own, below the words."""
    settings = config.load(words)
    path = settings.run_dir / "config.yaml"
    if not checkpoint.begun(settings.run_dir):
        return settings
    stored = checkpoint.stored_settings(settings.run_dir)
    if settings.resume:
        settings = config.load(words, {**stored, "fold": None})
    differ = [k for k, v in asdict(settings).items() if k not in FREE and v != stored.get(k)]
    if differ:
        key = differ[0]
        raise InputError(
            f"{path}: this run has {key}={stored.get(key)}, not {getattr(settings, key)}; "
            "name another with run=..."
        )
    return settings


def folds_to_train(settings: Settings, folds: int) -> list[int]:
    """The folds that are asked for and not finished; what exists is never overwritten."""
    if settings.fold is not None and settings.fold >= folds:
        raise InputError(f"fold={settings.fold}: {settings.folds_csv} has folds 0 to {folds - 1}")
    wanted = list(range(folds)) if settings.fold is None else [settings.fold]
    for fold in wanted:
        weights = checkpoint.weights_path(settings, fold)
        snapshot = checkpoint.snapshot_path(settings, fold)
        if not settings.resume and (weights.exists() or snapshot.exists()):
            raise InputError(f"{weights.parent}: exists; say resume=true to go on, or another run=")
    finished = checkpoint.trained_folds(settings.run_dir)
    return [fold for fold in wanted if fold not in finished]


def make_data(settings: Settings) -> None:
    """Where data_dir is missing, let the scripts that the recipe names make it; where only the
    folds are, write them."""
    if not Path(settings.data_dir).exists():
        for script in settings.prepare:
            config.run_script(script, sys.argv[1:])
    elif "folds.py" in settings.prepare and not Path(settings.folds_csv).exists():
        config.run_script("folds.py", sys.argv[1:])


def describe(settings: Settings, rows: list[Row]) -> int:
    """Say what there is to train on; the number of folds. InputError where it cannot work."""
    groups = {row.group: row.fold for row in rows}
    known = tables.read_folds(settings)
    folds = max(known.values()) + 1
    sizes = pixels.check_headers(rows)
    if settings.size is None and len(sizes) > 1 and settings.batch > 1:
        raise InputError(f"{settings.data_dir}: holds images of {len(sizes)} sizes; say size=[h,w]")
    shapes = " and ".join(f"{w}×{h}" for h, w in sorted(sizes)[:3])
    print(
        f"{settings.data_dir}: {len(rows)} images with masks, {shapes}; {len(groups)} of the "
        f"{len(known)} groups in {settings.folds_csv}, {folds} folds of "
        + "+".join(str(list(groups.values()).count(k)) for k in range(folds))
    )
    return folds


def check_loss(settings: Settings, scheme: Scheme) -> None:
    """InputError where the loss is not for as many classes as the labels have."""
    fit, classes = (OF_ONE if scheme.binary else OF_CLASSES), len(scheme.names)
    if settings.loss not in fit:
        raise InputError(
            f"loss={settings.loss}: is not for {classes} class{'' if scheme.binary else 'es'}; "
            f"there are {', '.join(fit)}"
        )


def main() -> None:
    settings = load_settings(sys.argv[1:])
    make_data(settings)
    rows = datasets.training_rows(settings)
    folds = folds_to_train(settings, describe(settings, rows))
    for fold in folds:
        if len({row.fold == fold for row in rows}) < 2:
            raise InputError(
                f"fold={fold}: needs groups inside and outside it in {settings.data_dir}"
            )
    engine = make_engine(settings)
    if folds:
        check_loss(settings, rows[0].scheme)
        build(settings)  # an unknown encoder is told now, not after minutes of decoding
        if reason := why_not_compiled(settings, engine.device):
            print(f"compile={settings.compile}: trained without compiling, {reason}")
        checkpoint.save_settings(replace(settings, fold=None, resume=False))
        cache = make_cache(settings, rows)
    for fold in folds:
        train_fold(settings, fold, rows, cache, engine)
    config.run_script("leaderboard.py", [f"output_dir={settings.output_dir}"])


if __name__ == "__main__":
    config.run(main, "stopped; the same command with resume=true goes on")
