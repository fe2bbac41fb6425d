"""What is to be trained, on what: found out and checked before the first step."""

import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path

import checkpoint
import config
import datasets
import pixels
import ranks
import snapshots
import tables
import together
from config import InputError
from files import only_one
from labels import Scheme
from losses import OF_CLASSES, OF_ONE
from models import build
from row import Row
from settings import FREE, Settings


def load_settings(words: list[str]) -> Settings:
    """The words' settings; a run that is resumed brings its own, below the words. What torchrun
    starts anew is resumed."""
    words = [*words, "resume=true"] if ranks.restarts() else words
    settings = config.load(words)
    path = settings.run_dir / "config.yaml"
    if not snapshots.begun(settings.run_dir):
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
        begun = weights.exists() or any(snapshots.folder(settings, fold).glob("*.pt"))
        if begun and not settings.resume:
            raise InputError(f"{weights.parent}: exists; say resume=true to go on, or another run=")
    finished = checkpoint.trained_folds(settings.run_dir)
    for fold in finished if ranks.first() else []:  # a kill may have come before this
        snapshots.remove(snapshots.folder(settings, fold))
    return [fold for fold in wanted if fold not in finished]


def make_data(settings: Settings) -> None:
    """Where data_dir is missing, let the scripts that the recipe names make it; where only the
    folds are, write them."""
    if ranks.launched():  # several processes would make it several times
        return
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


def check_folds(settings: Settings, folds: list[int], rows: list[Row]) -> None:
    """InputError where these folds, or this network, cannot be trained on these rows."""
    processes = max(together.wanted(), ranks.world())
    if settings.batch < processes:
        raise InputError(f"batch={settings.batch}: is of all {processes} GPUs together")
    for fold in folds:
        if len({row.fold == fold for row in rows}) < 2:
            raise InputError(
                f"fold={fold}: needs groups inside and outside it in {settings.data_dir}"
            )
    check_loss(settings, rows[0].scheme)
    build(settings)  # an unknown encoder is told now, not after minutes of decoding


def check(settings: Settings) -> None:
    """All of this, without a word: before several processes are started that would say it."""
    with redirect_stdout(None):
        rows = datasets.training_rows(settings)
        folds = folds_to_train(settings, describe(settings, rows))
        check_folds(settings, folds, rows)


def held(settings: Settings, fold: int) -> AbstractContextManager:
    """Keeps other runs out of the fold's folder; of several processes the first one does."""
    if not ranks.first():
        return nullcontext()
    folder = checkpoint.fold_dir(settings, fold)
    return only_one(folder, "wait, or name another with run=...")
