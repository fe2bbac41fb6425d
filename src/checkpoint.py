"""Weights with all that is needed to use them."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

import config
from config import InputError
from files import replacing
from labels import scheme_of
from models import Segmenter, build
from settings import NETWORK, Settings


def fold_dir(settings: Settings, fold: int) -> Path:
    """output/<run>/fold<k>"""
    return settings.run_dir / f"fold{fold}"


def weights_path(settings: Settings, fold: int) -> Path:
    """output/<run>/fold<k>/best.safetensors"""
    return fold_dir(settings, fold) / "best.safetensors"


def save_weights(path: Path, network: Segmenter, settings: Settings, about: dict[str, Any]) -> None:
    """One safetensors file: the weights, the settings that made them, and facts `about` them."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    about = {**about, "settings": asdict(settings)}
    data = save(tensors, metadata={"about": json.dumps(about)})  # several would be in any order
    with replacing(path, len(data)) as partial:
        partial.write_bytes(data)


def about_weights(path: Path) -> dict[str, Any]:
    """What save_weights was told, from the file's header alone; InputError if it is not ours."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as weights ({error}); train them again") from None
    missing = {"settings", "classes"} - about.keys()
    if missing:
        raise InputError(f"{path}: holds no {min(missing)}; train.py did not write it")
    return about


def load_weights(path: Path, device: torch.device) -> tuple[Segmenter, Settings, dict[str, Any]]:
    """The network in evaluation mode, the settings that made it, and facts about it."""
    about = about_weights(path)
    try:
        settings = Settings(**about["settings"])
    except TypeError as error:
        raise InputError(f"{path}: holds settings of another version ({error})") from None
    network = build(settings, about["classes"], pretrained=False)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{path}: holds numbers that are not finite; train them again")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: does not fit its own settings ({reason})") from None
    return network.to(device).eval(), settings, about


def trained_folds(run_dir: Path) -> list[int]:
    """The folds of which a run has weights and out-of-fold scores, in order."""
    folders = [p.parent for p in run_dir.glob("fold*/oof.npz")]
    finished = [p.name for p in folders if (p / "best.safetensors").exists()]
    return sorted(int(name[4:]) for name in finished if name[4:].isdecimal())


def stored_settings(run_dir: Path) -> dict[str, Any]:
    """What the run was trained with, as config.yaml holds it."""
    path = run_dir / "config.yaml"
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        raise InputError(f"{path}: missing or unreadable; train the run first") from None


# What a run remembers and a prediction does not take over: where and on what it was trained.
HERE = {"device", "amp", "compile", "workers", "cache", "fold", "resume", "limit", "output_dir"}
HERE |= {"run", "runs"}


def settings_of_runs(words: list[str]) -> Settings:
    """The words over the first run's settings; what the weights know may not be said again.

    The `run` of several runs a and b is `a+b`, in whatever order they are named.
    """
    typed = config.parse(words)
    known = [key for key in typed if key in NETWORK]
    settings = config.load(words)
    if known:
        raise InputError(f"{known[0]}=: is stored with the weights; leave it out")
    first = Path(settings.output_dir) / min(settings.runs)  # in whatever order they are named
    if not trained_folds(first):
        raise InputError(
            f"{first}: has no trained fold; `bash train.sh recipe={settings.recipe}` trains them, "
            "run= or runs=[a,b] name others"
        )
    stored = stored_settings(first)
    kept = {key: value for key, value in stored.items() if key not in HERE}
    kept |= {"run": settings.run}
    together = config.load(words, kept)
    for run in together.runs:
        check_classes(together, Path(together.output_dir) / run)
    return replace(together, run="+".join(sorted(together.runs)))


def check_classes(settings: Settings, run_dir: Path) -> None:
    """InputError where a run tells other classes apart than the settings' labels."""
    for fold in trained_folds(run_dir)[:1]:
        path, wanted = run_dir / f"fold{fold}" / "best.safetensors", scheme_of(settings).names
        names = tuple(about_weights(path).get("names", ()))
        if names != wanted and (len(names) > 1 or len(wanted) > 1):
            raise InputError(
                f"{path}: tells {len(names)} classes apart ({', '.join(names[:3])}, ...), the "
                f"labels {len(wanted)} ({', '.join(wanted[:3])}, ...): layout=, classes= and "
                "border= must be as in training"
            )


def save_settings(settings: Settings) -> None:
    """Write config.yaml into the run's folder."""
    with replacing(settings.run_dir / "config.yaml") as partial:
        partial.write_text(yaml.safe_dump(asdict(settings), sort_keys=False), encoding="utf-8")
