"""Runs that vote together: which of their networks may judge what, and what was found out."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

import checkpoint
import config
import oof
from config import InputError
from infer import Member, member
from oof import Scores
from settings import NETWORK, Settings

# ---------------------------------------------------------------- out of fold


def common_folds(settings: Settings) -> list[int]:
    """The folds that every run has finished."""
    finished = {}
    for run in settings.runs:
        finished[run] = set(checkpoint.trained_folds(Path(settings.output_dir) / run))
        if not finished[run]:
            raise InputError(f"{settings.output_dir}/{run}: has no trained fold; see train.sh")
    common = set.intersection(*finished.values())
    if not common:
        have = ", ".join(f"{run}: {sorted(folds)}" for run, folds in finished.items())
        raise InputError(f"runs={settings.runs}: no fold is trained in all of them ({have})")
    return sorted(common)


def judges(settings: Settings, fold: int, data: str, device: torch.device) -> list[Member]:
    """Each run's network that never saw this fold; InputError if it was trained on other data."""
    members = []
    for run in settings.runs:
        path = Path(settings.output_dir) / run / f"fold{fold}" / "best.safetensors"
        network, trained, about = checkpoint.load_weights(path, device)
        if about.get("fold") != fold:
            raise InputError(f"{path}: held out fold {about.get('fold')}, not {fold}; it was moved")
        if about.get("data") != data:
            limited = f" (say limit={trained.limit}, as in training)"
            raise InputError(
                f"{path}: was trained on other images or folds than {settings.data_dir} and "
                f"{settings.folds_csv} hold now; its score would not be out of fold"
                + (limited if trained.limit != settings.limit else "")
            )
        members.append(member(network, trained))
    return members


# ---------------------------------------------------------------- on other images


def choices(settings: Settings) -> tuple[dict[str, float], Scores]:
    """Each run's weight, and the out-of-fold scores that decide the rest.

    Runs that were not judged together, or not as they are now, are judged first.
    """
    if len(settings.runs) == 1:
        folds = checkpoint.trained_folds(settings.run_dir)
        scores = oof.load([settings.run_dir / f"fold{k}" for k in folds])
        return {settings.runs[0]: 1.0}, scores
    folder = settings.run_dir
    if not (folder / "ensemble.json").exists() or not is_current(folder):
        print(f"{settings.run}: not judged together yet; `python src/leaderboard.py` does it now")
        words = [w for w in config.as_words(settings) if w.split("=")[0] not in NETWORK]
        config.run_script("leaderboard.py", words)
    return read(folder)["runs"], oof.load([folder])


def voters(
    settings: Settings, weights: dict[str, float], device: torch.device
) -> dict[str, Member]:
    """Every trained network of the runs, by its path. A run's folds share its weight."""
    members = {}
    for run, weight in weights.items():
        run_dir = Path(settings.output_dir) / run
        folds = checkpoint.trained_folds(run_dir)
        if settings.fold is not None:
            folds = [fold for fold in folds if fold == settings.fold]
        if not folds:
            lack = "has no trained fold" if settings.fold is None else f"lacks fold {settings.fold}"
            raise InputError(f"{run_dir}: {lack}; train it with `bash train.sh`")
        for fold in folds:
            path = run_dir / f"fold{fold}" / "best.safetensors"
            network, trained, _ = checkpoint.load_weights(path, device)
            members[str(path)] = member(network, trained, weight / len(folds))
    return {path: voter for path, voter in members.items() if voter.weight}


# ---------------------------------------------------------------- a folder output/a+b


def networks(output: Path, runs: list[str]) -> dict[str, str]:
    """sha256 of the weights of every finished fold of the runs."""
    paths = []
    for run in sorted(runs):
        folds = checkpoint.trained_folds(output / run)
        paths += [f"{run}/fold{k}/best.safetensors" for k in folds]
    return {path: hashlib.sha256((output / path).read_bytes()).hexdigest() for path in paths}


def is_current(folder: Path) -> bool:
    """Whether the runs are still those that were judged."""
    known = read(folder)
    return known["networks"] == networks(folder.parent, list(known["runs"]))


def read(folder: Path) -> dict[str, Any]:
    """What judge() wrote of runs together."""
    path = folder / "ensemble.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete its folder") from None
