"""What is to be trained, on what: found out and checked before the first step."""

import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path

from core import cli, config, distributed, process_env, run_folder
from core.errors import InputError
from core.files import folder_lock
from core.settings import MAY_DIFFER_ON_RESUME, Settings
from data import csv_files, datasets, image_io
from data.classes import ClassMap
from data.sample import Sample
from models.build import build_model
from training import snapshots
from training.losses import BINARY_LOSSES, MULTICLASS_LOSSES


def load_run_settings(words: list[str]) -> Settings:
    """The words' settings; a run that is resumed brings its own, below the words. What torchrun
    starts anew is resumed."""
    words = [*words, "resume=true"] if process_env.restart_count() else words
    settings = config.load_settings(words)
    path = settings.run_dir / "config.yaml"
    if not run_folder.has_started(settings.run_dir):
        return settings
    stored = run_folder.read_run_settings(settings.run_dir)
    if settings.resume:
        settings = config.load_settings(words, {**stored, "fold": None})
    differ = [
        k
        for k, v in asdict(settings).items()
        if k not in MAY_DIFFER_ON_RESUME and v != stored.get(k)
    ]
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
        weights = run_folder.weights_path(settings.run_dir, fold)
        begun = weights.exists() or any(run_folder.snapshot_dir(settings.run_dir, fold).glob("*.pt"))
        if begun and not settings.resume:
            raise InputError(f"{weights.parent}: exists; say resume=true to go on, or another run=")
    finished = run_folder.finished_folds(settings.run_dir)
    for fold in (
        finished if process_env.is_main_process() else []
    ):  # a kill may have come before this
        snapshots.remove_snapshots(run_folder.snapshot_dir(settings.run_dir, fold))
    return [fold for fold in wanted if fold not in finished]


def prepare_data(settings: Settings) -> None:
    """Where data_dir is missing, let the scripts that the recipe names make it; where only the
    folds are, write them."""
    if process_env.is_distributed():  # several processes would make it several times
        return
    if not Path(settings.data_dir).exists():
        for script in settings.prepare_scripts:
            cli.run_script_in_subprocess(script, sys.argv[1:])
    elif "folds.py" in settings.prepare_scripts and not Path(settings.folds_csv).exists():
        cli.run_script_in_subprocess("folds.py", sys.argv[1:])


def check_data(settings: Settings, rows: list[Sample]) -> int:
    """Say what there is to train on; the number of folds. InputError where it cannot work."""
    groups = {row.group: row.fold for row in rows}
    known = csv_files.read_folds(settings)
    folds = max(known.values()) + 1
    sizes = image_io.check_sizes(rows)
    if settings.size is None and len(sizes) > 1 and settings.batch_size > 1:
        raise InputError(f"{settings.data_dir}: holds images of {len(sizes)} sizes; say size=[h,w]")
    shapes = " and ".join(f"{w}×{h}" for h, w in sorted(sizes)[:3])
    print(
        f"{settings.data_dir}: {len(rows)} images with masks, {shapes}; {len(groups)} of the "
        f"{len(known)} groups in {settings.folds_csv}, {folds} folds of "
        + "+".join(str(list(groups.values()).count(k)) for k in range(folds))
    )
    return folds


def check_loss_fits_classes(settings: Settings, scheme: ClassMap) -> None:
    """InputError where the loss is not for as many classes as the labels have."""
    fit, classes = (BINARY_LOSSES if scheme.is_binary else MULTICLASS_LOSSES), len(scheme.names)
    if settings.loss not in fit:
        raise InputError(
            f"loss={settings.loss}: is not for {classes} class{'' if scheme.is_binary else 'es'}; "
            f"there are {', '.join(fit)}"
        )


def check_folds(settings: Settings, folds: list[int], rows: list[Sample]) -> None:
    """InputError where these folds, or this network, cannot be trained on these rows."""
    processes = max(distributed.requested_processes(), process_env.world_size())
    if settings.batch_size < processes:
        raise InputError(f"batch_size={settings.batch_size}: is of all {processes} GPUs together")
    for fold in folds:
        if len({row.fold == fold for row in rows}) < 2:
            raise InputError(
                f"fold={fold}: needs groups inside and outside it in {settings.data_dir}"
            )
    check_loss_fits_classes(settings, rows[0].class_map)
    build_model(settings)  # an unknown encoder is told now, not after minutes of decoding


def preflight_checks(settings: Settings) -> None:
    """All of this, without a word: before several processes are started that would say it."""
    with redirect_stdout(None):
        rows = datasets.load_training_samples(settings)
        folds = folds_to_train(settings, check_data(settings, rows))
        check_folds(settings, folds, rows)


def lock_fold(settings: Settings, fold: int) -> AbstractContextManager:
    """Keeps other runs out of the fold's folder; of several processes the first one does."""
    if not process_env.is_main_process():
        return nullcontext()
    folder = run_folder.fold_dir(settings.run_dir, fold)
    return folder_lock(folder, "wait, or name another with run=...")
