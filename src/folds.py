"""Writes folds.csv: which group (car) is held out in which fold.

The 16 views of a car share the car and the studio. A split by image would put some of them on
either side and score the network on cars it knows, so the file has one row per car.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from core import cli, config
from core.errors import InputError
from core.files import atomic_write
from core.settings import Settings
from data import csv_files, datasets, image_io
from data.sample import Sample

if __name__ == "__main__":  # help, wrong words and Ctrl-C are answered before the heavy imports
    cli.run_main(lambda: config.load_settings(sys.argv[1:]))


def mean_mask_area(settings: Settings) -> pd.Series:
    """Group → mean part of the frame that its masks cover, rounded to 6 digits."""
    rows = datasets.load_samples(settings, "train")
    with ProcessPoolExecutor() as pool:
        masks = pool.map(foreground_fraction, rows, chunksize=16)
        areas = list(tqdm(masks, "mask areas", len(rows), unit="mask", disable=None))
    empty = [row.image_id for row, area in zip(rows, areas, strict=True) if not area]
    if empty:
        print(f"nothing but background in {len(empty)} labels: {', '.join(empty[:5])}")
    table = pd.DataFrame({"group": [row.group for row in rows], "area": areas})
    return table.groupby("group")["area"].mean().round(6)


def foreground_fraction(row: Sample) -> float:
    """The part of the frame that is not background (or class 0), in [0, 1]."""
    return float(np.mean(image_io.read_sample_mask(row) != 0))


def breed_of(name: str) -> str:
    """'Great_Pyrenees' of 'Great_Pyrenees_100', as the pets are named."""
    return name.rpartition("_")[0]


def assign_folds(
    areas: pd.Series, k: int, stratum: Callable[[str], str] = lambda name: ""
) -> pd.Series:
    """Group → fold, stratified by area: of each k groups of like area, every fold gets one.

    Down the list sorted by stratum and area the folds take turns, forth and back (0 1 2, 2 1 0,
    0 1 2), so that none always gets the larger one. It depends on names and areas alone.
    """
    names = sorted(areas.index, key=lambda name: (stratum(name), areas[name], name))
    turns = [*range(k), *reversed(range(k))]
    return pd.Series({name: turns[i % (2 * k)] for i, name in enumerate(names)}).sort_index()


def main() -> None:
    settings = config.load_settings(sys.argv[1:])
    path = Path(settings.folds_csv)
    areas = mean_mask_area(settings)
    if len(areas) < settings.n_folds:
        raise InputError(
            f"n_folds={settings.n_folds}: {settings.data_dir} has only {len(areas)} groups"
        )
    folds = assign_folds(
        areas, settings.n_folds, *([breed_of] if settings.dataset_format == "pets" else [])
    )
    table = pd.DataFrame(
        {"dataset": settings.dataset_name, "group": folds.index, "fold": folds.values}
    )
    if path.exists():
        others = csv_files.read_csv_strict(path, ["dataset", "group", "fold"])
        mine = others[others["dataset"] == settings.dataset_name]
        others = others[others["dataset"] != settings.dataset_name]
        if len(mine) and set(mine["group"]) != set(folds.index):
            raise InputError(
                f"{path}: has {len(mine)} groups of dataset {settings.dataset_name}, and "
                f"{settings.data_dir} {len(folds)}; say folds_csv=<new file> or dataset_name=<new name>"
            )
        table = pd.concat([others, table], ignore_index=True)
    with atomic_write(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")
    for fold, group in areas.groupby(folds):
        print(f"fold {fold}: {len(group)} groups, mean area {group.mean():.4f}")
    print(
        f"{path}: {len(folds)} groups of dataset {settings.dataset_name} in {settings.n_folds} folds"
    )


if __name__ == "__main__":
    cli.run_main(main)
