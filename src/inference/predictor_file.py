"""output/<run>/predictor.json: networks of a run or ensemble, TTA, threshold, steps and tiles."""

import os
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from core import run_folder
from core.errors import InputError
from core.files import atomic_write_json, file_sha256, read_json
from core.settings import Settings
from inference.postprocess import Binarizer


@dataclass
class StoredNetwork:
    """The weights file of one network, relative to the folder of the run, and its weight."""

    path: str
    weight: float
    sha256: str


@dataclass
class PredictorFile:
    """Everything besides the weights that masks depend on."""

    networks: list[StoredNetwork]
    tta: str
    threshold: float
    postprocess: list[str]
    tiles: dict[str, Any] = field(default_factory=dict)  # of tile_settings(); earlier files: {}


def tile_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings for prediction in tiles, as a dict."""
    return {"tile_size": settings.tile_size, "tile_overlap": settings.tile_overlap}


def write_predictor(
    run_dir: Path,
    ensemble_weights: dict[Path, float],
    tta: str,
    binarizer: Binarizer,
    tiles: dict[str, Any],
) -> None:
    """Write predictor.json. `ensemble_weights`: weights file → its network's weight in the mean."""
    networks = [
        StoredNetwork(os.path.relpath(path, run_dir), weight, file_sha256(path))
        for path, weight in ensemble_weights.items()
    ]
    stored = PredictorFile(networks, tta, binarizer.threshold, binarizer.steps, tiles)
    atomic_write_json(run_folder.predictor_path(run_dir), asdict(stored))


def read_predictor(run_dir: Path) -> PredictorFile:
    """Read predictor.json. Raises InputError if it is missing or does not match the networks."""
    path = run_folder.predictor_path(run_dir)
    command = ["python", "src/leaderboard.py", f"output_dir={run_dir.parent}"]
    if run_folder.ensemble_path(run_dir).exists():
        command.insert(2, f"runs={run_dir.name.replace('+', ',')}")
    fix = f"write it with `{shlex.join(command)}`"
    if not path.exists():
        raise InputError(_explain_missing(run_dir, fix))
    try:
        stored = PredictorFile(**read_json(path, [], fix))
        stored.networks = [StoredNetwork(**network) for network in stored.networks]
    except TypeError as error:  # a key is missing or unknown
        raise InputError(f"{path}: cannot be read ({error}); {fix}") from None
    paths = [(run_dir / network.path).resolve() for network in stored.networks]
    if missing := [network for network in paths if not network.exists()]:
        raise InputError(f"{path}: lists {missing[0]}, which does not exist; restore it, or {fix}")
    if not _is_current(run_dir, stored.networks):
        raise InputError(f"{path}: does not match the run's current networks; {fix}")
    return stored


def select_fold(run_dir: Path, networks: list[StoredNetwork], fold: int) -> list[StoredNetwork]:
    """Return the network of each run that held out `fold`, with the weight of the run.

    Raises InputError if a run has no such network.
    """
    by_run: dict[Path, list[StoredNetwork]] = {}
    for network in networks:
        by_run.setdefault(Path(network.path).parent.parent, []).append(network)
    selected = []
    for run, members in by_run.items():
        own = [member for member in members if Path(member.path).parent.name == f"fold{fold}"]
        if not own:
            folder = os.path.normpath(run_dir / run)
            raise InputError(f"{folder}: has no network of fold {fold}")
        weight = sum(member.weight for member in members)
        selected.append(replace(own[0], weight=weight))
    return selected


def _explain_missing(run_dir: Path, fix: str) -> str:
    if run_folder.finished_folds(run_dir) or run_folder.ensemble_path(run_dir).exists():
        return f"{run_folder.predictor_path(run_dir)}: is missing; {fix}"
    if not run_dir.is_dir():
        found = "no such folder" if not run_dir.exists() else "is a file"
        ensemble_dir = run_dir.with_name(run_folder.ensemble_name(run_dir.name.split("+")))
        if ensemble_dir != run_dir and ensemble_dir.exists():
            return f"{run_dir}: {found}; the ensemble is {ensemble_dir}"
        return f"{run_dir}: {found}; expected the folder of a trained run, such as output/carvana"
    return f"{run_dir}: has no trained fold; train it with `bash train.sh`"


def _is_current(run_dir: Path, networks: list[StoredNetwork]) -> bool:
    """Whether `networks` lists every finished fold of their runs, with the current weights."""
    listed = {(run_dir / network.path).resolve(): network.sha256 for network in networks}
    runs = {path.parent.parent for path in listed}
    finished = {path for run in runs for path in run_folder.finished_weights(run)}
    return finished <= listed.keys() and all(
        file_sha256(path) == sha256 for path, sha256 in listed.items()
    )
