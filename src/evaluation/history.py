"""The history.csv of the folds of a run."""

from pathlib import Path

import pandas as pd

from core import run_folder
from core.errors import InputError


def load_histories(run_dir: Path) -> dict[int, pd.DataFrame]:
    """Return fold → table of history.csv, indexed by epoch, for all finished folds with this file.

    Renames columns of the first release. Raises InputError if a file is damaged.
    """
    renamed = {"dice": "val_dice", "accuracy": "val_accuracy"}
    histories = {}
    for fold in run_folder.finished_folds(run_dir):
        path = run_folder.history_path(run_dir, fold)
        if not path.exists():
            continue
        try:
            histories[fold] = pd.read_csv(path, index_col="epoch").rename(columns=renamed)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{path}: not a history of epochs: {reason}; delete it") from None
    return histories


def training_costs(run_dir: Path) -> dict[str, float]:
    """Return the training time of a run in seconds, and its images per second.

    The time is the sum over all finished folds and all stages. The speed is the median over the
    epochs of the last stage. Both are NaN if the history.csv of a finished fold is missing.
    """
    histories = load_histories(run_dir)
    if len(histories) < len(run_folder.finished_folds(run_dir)):
        return {"seconds": float("nan"), "images_per_second": float("nan")}
    # In output/<run>/stage<n> an earlier stage of training is a run of its own.
    stages = [histories, *map(load_histories, run_dir.glob("stage[0-9]*"))]
    finished = [(stage, fold) for stage in stages for fold in histories.keys() & stage]
    speeds = pd.concat(histories.values())["images_per_second"]
    return {
        "seconds": round(sum(stage[fold]["seconds"].sum() for stage, fold in finished)),
        "images_per_second": round(speeds.median(), 1),
    }
