"""Runs that vote together: which of their networks may judge what, and what was found out."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core import cli, config, run_folder
from core.errors import InputError
from core.run_folder import finished_folds, read_run_settings
from core.settings import MODEL_SETTINGS, Settings
from data.classes import get_class_map
from evaluation import oof
from evaluation.oof import Scores
from inference.predictor import EnsembleMember, make_member
from models import checkpoint
from models.checkpoint import read_metadata

# ---------------------------------------------------------------- out of fold


def common_folds(settings: Settings) -> list[int]:
    """The folds that every run has finished."""
    finished = {}
    for run in settings.runs:
        finished[run] = set(run_folder.finished_folds(Path(settings.output_dir) / run))
        if not finished[run]:
            raise InputError(f"{settings.output_dir}/{run}: has no trained fold; see train.sh")
    common = set.intersection(*finished.values())
    if not common:
        have = ", ".join(f"{run}: {sorted(folds)}" for run, folds in finished.items())
        raise InputError(f"runs={settings.runs}: no fold is trained in all of them ({have})")
    return sorted(common)


def load_oof_members(
    settings: Settings, fold: int, data: str, device: torch.device
) -> list[EnsembleMember]:
    """Each run's network that never saw this fold; InputError if it was trained on other data."""
    members = []
    for run in settings.runs:
        path = Path(settings.output_dir) / run / f"fold{fold}" / "best.safetensors"
        network, trained, about = checkpoint.load_model(path, device)
        if about.get("fold") != fold:
            raise InputError(f"{path}: held out fold {about.get('fold')}, not {fold}; it was moved")
        if about.get("data") != data:
            limited = f" (say max_images={trained.max_images}, as in training)"
            raise InputError(
                f"{path}: was trained on other images or folds than {settings.data_dir} and "
                f"{settings.folds_csv} hold now; its score would not be out of fold"
                + (limited if trained.max_images != settings.max_images else "")
            )
        members.append(make_member(network, trained))
    return members


# ---------------------------------------------------------------- on other images


def weights_and_scores(settings: Settings) -> tuple[dict[str, float], Scores]:
    """Each run's weight, and the out-of-fold scores that decide the rest.

    Runs that were not judged together, or not as they are now, are judged first.
    """
    if len(settings.runs) == 1:
        folds = run_folder.finished_folds(settings.run_dir)
        scores = oof.load_scores([settings.run_dir / f"fold{k}" for k in folds])
        return {settings.runs[0]: 1.0}, scores
    folder = settings.run_dir
    if not (folder / "ensemble.json").exists() or not is_up_to_date(folder):
        print(f"{settings.run}: not judged together yet; `python src/leaderboard.py` does it now")
        words = [w for w in cli.to_cli_args(settings) if w.split("=")[0] not in MODEL_SETTINGS]
        cli.run_script_in_subprocess("leaderboard.py", words)
    return read_ensemble(folder)["runs"], oof.load_scores([folder])


def load_members(
    settings: Settings, weights: dict[str, float], device: torch.device
) -> dict[str, EnsembleMember]:
    """Every trained network of the runs, by its path. A run's folds share its weight."""
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
            path = run_dir / f"fold{fold}" / "best.safetensors"
            network, trained, _ = checkpoint.load_model(path, device)
            members[str(path)] = make_member(network, trained, weight / len(folds))
    return {path: voter for path, voter in members.items() if voter.weight}


# ---------------------------------------------------------------- a folder output/a+b


def weight_file_hashes(output: Path, runs: list[str]) -> dict[str, str]:
    """sha256 of the weights of every finished fold of the runs."""
    paths = []
    for run in sorted(runs):
        folds = run_folder.finished_folds(output / run)
        paths += [f"{run}/fold{k}/best.safetensors" for k in folds]
    return {path: hashlib.sha256((output / path).read_bytes()).hexdigest() for path in paths}


def is_up_to_date(folder: Path) -> bool:
    """Whether the runs are still those that were judged."""
    known = read_ensemble(folder)
    return known["networks"] == weight_file_hashes(folder.parent, list(known["runs"]))


def read_ensemble(folder: Path) -> dict[str, Any]:
    """What judge() wrote of runs together."""
    path = folder / "ensemble.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete its folder") from None


# What a run remembers and a prediction does not take over: where and on what it was trained.
NOT_INHERITED_BY_PREDICTION = {
    "device",
    "amp",
    "compile",
    "workers",
    "cache",
    "fold",
    "resume",
    "limit",
    "output_dir",
}
NOT_INHERITED_BY_PREDICTION |= {"run", "runs"}


def settings_for_prediction(words: list[str]) -> Settings:
    """The words over the first run's settings; what the weights know may not be said again.

    The `run` of several runs a and b is `a+b`, in whatever order they are named.
    """
    typed = config.parse_overrides(words)
    known = [key for key in typed if key in MODEL_SETTINGS]
    settings = config.load_settings(words)
    if known:
        raise InputError(f"{known[0]}=: is stored with the weights; leave it out")
    first = Path(settings.output_dir) / min(settings.runs)  # in whatever order they are named
    if not finished_folds(first):
        raise InputError(
            f"{first}: has no trained fold; `bash train.sh recipe={settings.recipe}` trains them, "
            "run= or runs=[a,b] name others"
        )
    stored = read_run_settings(first)
    kept = {key: value for key, value in stored.items() if key not in NOT_INHERITED_BY_PREDICTION}
    kept |= {"run": settings.run}
    together = config.load_settings(words, kept)
    for run in together.runs:
        check_classes_match(together, Path(together.output_dir) / run)
    return replace(together, run="+".join(sorted(together.runs)))


def check_classes_match(settings: Settings, run_dir: Path) -> None:
    """InputError where a run tells other classes apart than the settings' labels."""
    for fold in finished_folds(run_dir)[:1]:
        path, wanted = run_dir / f"fold{fold}" / "best.safetensors", get_class_map(settings).names
        names = tuple(read_metadata(path).get("names", ()))
        if names != wanted and (len(names) > 1 or len(wanted) > 1):
            raise InputError(
                f"{path}: tells {len(names)} classes apart ({', '.join(names[:3])}, ...), the "
                f"labels {len(wanted)} ({', '.join(wanted[:3])}, ...): dataset_format=, cityscapes_classes= and "
                "trimap_border= must be as in training"
            )
