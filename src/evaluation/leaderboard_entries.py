"""Entries of the leaderboard: runs and ensembles with their out-of-fold scores and costs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from core import run_folder
from core.errors import InputError
from data.fingerprint import combine_fingerprints, complete_fingerprint
from evaluation import ensemble, oof
from evaluation.history import training_costs
from models import checkpoint


@dataclass
class LeaderboardEntry:
    """A run or an ensemble."""

    name: str
    scores: oof.Scores
    columns: dict[str, Any]  # further columns of leaderboard.csv: TTA, costs and origin
    data: str  # from combine_fingerprints(); only entries with equal data are comparable


def load_run(run_dir: Path) -> LeaderboardEntry:
    """Load a run that has a finished fold; InputError if one of its files is damaged."""
    run_folder.read_run_settings(run_dir)  # InputError if unreadable: predictor.json needs it
    folds = run_folder.finished_folds(run_dir)
    scores = oof.load_scores([run_folder.fold_dir(run_dir, fold) for fold in folds])
    metadata = [checkpoint.read_metadata(path) for path in run_folder.finished_weights(run_dir)]
    fold_sizes = [np.count_nonzero(scores.folds == fold) for fold in folds]
    dice_without_tta = np.average([fold["val_dice"] for fold in metadata], weights=fold_sizes)
    columns = {
        "tta": metadata[0]["settings"]["tta"],
        "tta_gain": scores.dice.mean() - dice_without_tta,
        "parameters": metadata[0]["parameters"],
        **training_costs(run_dir),
        "commit": metadata[0]["commit"],
        "command": metadata[0]["command"],
    }
    data = combine_fingerprints([fold.get("data", "?") for fold in metadata])
    return LeaderboardEntry(run_dir.name, scores, columns, data)


def load_ensemble(ensemble_dir: Path, runs: list[LeaderboardEntry]) -> LeaderboardEntry:
    """Load an ensemble; its parameters and training time are the sums over its runs.

    Raises InputError if one of its runs is not among `runs`, or has changed since the scoring.
    """
    stored = ensemble.read_ensemble(ensemble_dir)
    is_complete = {*stored["runs"]} <= {run.name for run in runs}
    if not is_complete or not ensemble.is_up_to_date(ensemble_dir):
        raise InputError(
            "it was scored with other networks or by an earlier version; score it again "
            f"with `python src/leaderboard.py runs={','.join(stored['runs'])}`, or delete it"
        )
    costs = [run.columns for run in runs if run.name in stored["runs"]]
    columns = {
        "tta": stored["tta"],
        "tta_gain": np.nan,
        "parameters": sum(run["parameters"] for run in costs),
        "seconds": sum(run["seconds"] for run in costs),
        "images_per_second": np.nan,
        "commit": stored["commit"],
        "command": f"python src/leaderboard.py runs={','.join(stored['runs'])}",
    }
    scores = oof.load_scores([ensemble_dir])
    return LeaderboardEntry(
        ensemble_dir.name, scores, columns, combine_fingerprints([stored["data"]])
    )


def load_entries(output_dir: Path) -> list[LeaderboardEntry]:
    """Load all runs and ensembles in `output_dir`.

    Leaves out, with a message, runs with a damaged file and ensembles whose runs have changed since
    the scoring. Raises InputError if no run is left.
    """
    trained = run_folder.trained_runs(output_dir)
    runs = load_intact(load_run, trained)
    if not runs:
        found = "no run could be loaded, see above" if trained else "no run has a finished fold"
        raise InputError(f"{output_dir}: {found}; train one with `bash train.sh`")
    ensembles = [path.parent for path in output_dir.glob("*/ensemble.json")]
    entries = runs + load_intact(partial(load_ensemble, runs=runs), ensembles)
    known = [entry.data for entry in entries]
    return [replace(entry, data=complete_fingerprint(entry.data, known)) for entry in entries]


def load_intact(
    load: Callable[[Path], LeaderboardEntry], folders: list[Path]
) -> list[LeaderboardEntry]:
    """Load each folder. Leave out a folder that cannot be loaded, and print the reason."""
    entries = []
    for folder in sorted(folders):
        try:
            entries.append(load(folder))
        except InputError as error:
            print(f"{folder.name}: left out; {error}")
    return entries
