"""Ensembles: settings for prediction, members of each fold, weights of the runs."""

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from core import config, run_folder
from core.errors import InputError
from core.settings import MODEL_SETTINGS, Settings
from data.datasets import get_class_map
from inference.predictor import EnsembleMember, make_member
from models import checkpoint

# ---------------------------------------------------------------- settings

# Settings of a run that prediction does not inherit: those of the machine, and of the selection.
NOT_INHERITED_BY_PREDICTION = {
    *("device", "precision", "compile", "num_workers", "cache"),
    *("run", "runs", "fold", "resume", "max_images", "output_dir"),
}


def settings_for_prediction(args: list[str]) -> Settings:
    """Return the settings for prediction: `args` on top of those that the first run was trained
    with. Model settings cannot be overridden.

    The `run` of several runs a and b is `a+b`, whatever their order in `runs`.
    """
    settings = config.load_settings(args)
    overridden = [name for name in config.parse_overrides(args) if name in MODEL_SETTINGS]
    if overridden:
        raise InputError(f"{overridden[0]} cannot be changed at prediction; leave it out")
    first_run = Path(settings.output_dir) / min(settings.runs)
    if not run_folder.finished_folds(first_run):
        raise InputError(
            f"{first_run}: has no trained fold; train it with "
            f"`bash train.sh recipe={settings.recipe}`, or set run= or runs=[a,b]"
        )
    stored = run_folder.read_run_settings(first_run)
    inherited = {k: v for k, v in stored.items() if k not in NOT_INHERITED_BY_PREDICTION}
    selected = {"run": settings.run, "runs": settings.runs}
    merged = config.load_settings(args, inherited | selected)
    for run in merged.runs:
        check_classes_match(merged, Path(merged.output_dir) / run)
    return replace(merged, run="+".join(sorted(merged.runs)))


def check_classes_match(settings: Settings, run_dir: Path) -> None:
    """Raise InputError if the run was trained with other classes than the settings select."""
    for fold in run_folder.finished_folds(run_dir)[:1]:
        path, names = run_folder.weights_path(run_dir, fold), get_class_map(settings).names
        trained = tuple(checkpoint.read_metadata(path).get("names", ()))
        if trained != names and (len(trained) > 1 or len(names) > 1):
            raise InputError(
                f"{path}: was trained with {_format_classes(trained)}, the settings select "
                f"{_format_classes(names)}: set dataset_format=, cityscapes_classes= and "
                "trimap_border= as in training"
            )


def _format_classes(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


# ---------------------------------------------------------------- members


def common_folds(settings: Settings) -> list[int]:
    """Return the folds that all runs have finished; InputError if there is none."""
    finished = {}
    for run in settings.runs:
        finished[run] = set(run_folder.finished_folds(Path(settings.output_dir) / run))
        if not finished[run]:
            raise InputError(f"{settings.output_dir}/{run}: has no trained fold; see train.sh")
    common = set.intersection(*finished.values())
    if not common:
        by_run = ", ".join(f"{run}: {sorted(folds)}" for run, folds in finished.items())
        raise InputError(f"runs={settings.runs}: no fold is trained in all of them ({by_run})")
    return sorted(common)


def load_oof_members(
    settings: Settings, fold: int, data_fingerprint: str, device: torch.device
) -> list[EnsembleMember]:
    """Load each run's network that held out `fold`.

    Raises InputError if a network held out another fold or was trained on other data, since its
    scores would not be out of fold.
    """
    members = []
    for run in settings.runs:
        path = run_folder.weights_path(Path(settings.output_dir) / run, fold)
        network, trained, metadata = checkpoint.load_model(path, device)
        if metadata.get("fold") != fold:
            raise InputError(
                f"{path}: held out fold {metadata.get('fold')}, not {fold}; the file was moved"
            )
        if metadata.get("data") != data_fingerprint:
            hint = f" (set max_images={trained.max_images}, as in training)"
            raise InputError(
                f"{path}: was trained on other images or folds than {settings.data_dir} and "
                f"{settings.folds_csv} hold now; its score would not be out of fold"
                + (hint if trained.max_images != settings.max_images else "")
            )
        members.append(make_member(network, trained))
    return members


def load_members(
    settings: Settings, weights: dict[str, float], device: torch.device
) -> dict[str, EnsembleMember]:
    """Load the trained networks of all runs with a weight above 0, by their path.

    The folds of a run share its weight equally.
    """
    members = {}
    for run, weight in weights.items():
        run_dir = Path(settings.output_dir) / run
        folds = run_folder.finished_folds(run_dir)
        if settings.fold is not None:
            folds = [fold for fold in folds if fold == settings.fold]
        if not folds:
            lack = "has no trained fold" if settings.fold is None else f"lacks fold {settings.fold}"
            raise InputError(f"{run_dir}: {lack}; train it with `bash train.sh`")
        for fold in folds:
            path = run_folder.weights_path(run_dir, fold)
            network, trained, _ = checkpoint.load_model(path, device)
            members[str(path)] = make_member(network, trained, weight / len(folds))
    return {path: member for path, member in members.items() if member.weight}


# ---------------------------------------------------------------- output/<run>+<run>/ensemble.json


def weight_file_hashes(output_dir: Path, runs: list[str]) -> dict[str, str]:
    """Return the SHA-256 of the weights of every finished fold of the runs, by relative path."""
    hashes = {}
    for run in sorted(runs):
        for fold in run_folder.finished_folds(output_dir / run):
            path = run_folder.weights_path(output_dir / run, fold)
            stat = path.stat()
            digest = _file_hash(path, stat.st_size, stat.st_mtime_ns)
            hashes[path.relative_to(output_dir).as_posix()] = digest
    return hashes


@cache
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file, computed once per process as long as its size and time do not change."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_up_to_date(ensemble_dir: Path) -> bool:
    """Whether the runs still have the weights that the ensemble was scored with."""
    data = read_ensemble(ensemble_dir)
    return data["networks"] == weight_file_hashes(ensemble_dir.parent, list(data["runs"]))


def read_ensemble(ensemble_dir: Path) -> dict[str, Any]:
    """Read ensemble.json, as `score_ensemble` has written it."""
    path = run_folder.ensemble_path(ensemble_dir)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete its folder") from None
