"""The history.csv of the folds of a run."""

from pathlib import Path

import pandas as pd

from core import run_folder
from core.errors import InputError


def load_histories(run_dir: Path) -> dict[int, pd.DataFrame]:
    """Return fold → history.csv, indexed by epoch, of the finished folds that have this file.
    Column names of the first release are renamed."""
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
    """Return the seconds of all finished folds, in all stages of training, and the median of the
    images per second in the last stage; NaN if the history.csv of a fold is missing."""
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
