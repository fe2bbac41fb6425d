"""Paths of the files under output/<run>, and the run's config.yaml."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from core.config import to_stored_settings
from core.errors import InputError, did_you_mean
from core.files import atomic_write_text, is_locked, read_complete_text
from core.old_settings import rename_old_settings
from core.overrides import YAML_ERRORS
from core.settings import Settings


def fold_dir(run_dir: Path, fold: int) -> Path:
    """output/<run>/fold<k>"""
    return run_dir / f"fold{fold}"


def weights_path(run_dir: Path, fold: int) -> Path:
    """output/<run>/fold<k>/best.safetensors"""
    return fold_dir(run_dir, fold) / "best.safetensors"


def history_path(run_dir: Path, fold: int) -> Path:
    """output/<run>/fold<k>/history.csv"""
    return fold_dir(run_dir, fold) / "history.csv"


def snapshot_dir(run_dir: Path, fold: int) -> Path:
    """output/<run>/fold<k>/resume: files <epoch>-<step>-<checksum>.pt"""
    return fold_dir(run_dir, fold) / "resume"


def has_snapshot(run_dir: Path, fold: int) -> bool:
    """Whether the fold has a snapshot to resume from."""
    return any(snapshot_dir(run_dir, fold).glob("*.pt"))


def ensemble_path(run_dir: Path) -> Path:
    """output/<run>+<run>/ensemble.json"""
    return run_dir / "ensemble.json"


def predictor_path(run_dir: Path) -> Path:
    """output/<run>/predictor.json"""
    return run_dir / "predictor.json"


def masks_dir(run_dir: Path) -> Path:
    """output/<run>/masks: PNG masks and overlays of the test images"""
    return run_dir / "masks"


def test_scores_stem(settings: Settings) -> Path:
    """output/<run>/test, or <name>_test for submission_csv=<name>.csv: a path without suffix"""
    path = settings.submission_path
    named = path.with_name(f"{path.stem}_test")
    return named if settings.submission_csv else settings.run_dir / "test"


def ensemble_name(runs: Sequence[str]) -> str:
    """Return an ensemble's name: its runs joined by + in alphabetical order."""
    return "+".join(sorted(runs))


def photographs_dir(run_dir: Path, name: str) -> Path:
    """Return output/<run>/<name>, the folder for masks and cutouts of photographs.

    Raises InputError if the run uses this name for its own files.
    """
    is_reserved = name in ("", ".", "..", masks_dir(run_dir).name) or (run_dir / name).is_file()
    if is_reserved or re.fullmatch(r"(fold|stage)\d+|.*\.chunks", name):
        raise InputError(
            f"images: {run_dir / name} is reserved for the run's own files; rename the folder "
            "or file that images= names"
        )
    return run_dir / name


def config_path(run_dir: Path) -> Path:
    """output/<run>/config.yaml"""
    return run_dir / "config.yaml"


def finished_folds(run_dir: Path) -> list[int]:
    """Return the sorted folds that have weights and out-of-fold scores."""
    folders = [path.parent for path in run_dir.glob("fold*/oof.npz")]
    names = [folder.name for folder in folders if (folder / "best.safetensors").exists()]
    return sorted(int(name[4:]) for name in names if name[4:].isdecimal())


def finished_weights(run_dir: Path) -> list[Path]:
    """Return the weights files of the finished folds, in the order of the folds."""
    return [weights_path(run_dir, fold) for fold in finished_folds(run_dir)]


def trained_runs(output_dir: Path) -> list[Path]:
    """Return the sorted folders of the runs that have a finished fold."""
    return sorted(folder for folder in output_dir.glob("*/") if finished_folds(folder))


def similar_run(run_dir: Path) -> str:
    """Return " (did you mean x?)" with the most similar name beside `run_dir`; "" if none is."""
    return did_you_mean(run_dir.name, [folder.name for folder in run_dir.parent.glob("*/")])


def has_started(run_dir: Path) -> bool:
    """Whether the run or a stage of it is training, or has weights or a snapshot of any fold."""
    folders = [*run_dir.glob("fold*"), *run_dir.glob("stage*/fold*")]
    if config_path(run_dir).exists() and any(map(is_locked, folders)):
        return True
    return any((f / "best.safetensors").exists() or any(f.glob("resume/*.pt")) for f in folders)


def read_run_settings(run_dir: Path) -> dict[str, Any]:
    """Read the settings of the run from its config.yaml."""
    path = config_path(run_dir)
    if not path.exists():
        if ensemble_path(run_dir).exists():
            raise InputError(f"{run_dir}: is an ensemble; set run= to one of its runs")
        if not run_dir.exists():
            raise InputError(f"{run_dir}: no such run{similar_run(run_dir)}")
    try:
        return rename_old_settings(yaml.safe_load(read_complete_text(path)))
    except (OSError, AttributeError, *YAML_ERRORS) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(
            f"{path}: missing or unreadable ({reason}); restore it, or train the run as another "
            "run=..."
        ) from None


def save_run_settings(settings: Settings) -> None:
    """Write config.yaml into the run's folder."""
    text = yaml.safe_dump(to_stored_settings(settings), sort_keys=False)
    atomic_write_text(config_path(settings.run_dir), text)
