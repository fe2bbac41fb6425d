"""The csv files beside the images: folds, the names to submit, what cars they are."""

from pathlib import Path

import pandas as pd

from core.errors import InputError
from core.settings import Settings


def read_csv_strict(path: Path | str, columns: list[str]) -> pd.DataFrame:
    """A csv with exactly these columns, all as text, empty cells as ''."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a csv: {str(error).strip().splitlines()[0]}") from None
    if list(table.columns) != columns:
        header = ",".join(table.columns)[:80]
        raise InputError(f"{path}: the header must be {','.join(columns)}, it is {header}")
    return table


def read_car_metadata(settings: Settings) -> pd.DataFrame | None:
    """make and car (year, make, model) of each group, of metadata.csv; None where there is none."""
    path = Path(settings.data_dir) / "metadata.csv"
    if not path.exists():
        return None
    cars = read_csv_strict(path, ["id", "year", "make", "model", "trim1", "trim2"]).set_index("id")
    return cars.assign(car=cars["year"] + " " + cars["make"] + " " + cars["model"])[["make", "car"]]


def read_folds(settings: Settings) -> dict[str, int]:
    """Group → fold, of this data set's rows in folds_csv; folds count 0, 1, … without a hole."""
    path = settings.folds_csv
    table = read_csv_strict(path, ["dataset", "group", "fold"])
    table = table[table["dataset"] == settings.dataset_name]
    if table.empty:
        raise InputError(
            f"{path}: has no row of dataset {settings.dataset_name}; see `python src/folds.py`"
        )
    twice = table["group"][table["group"].duplicated()]
    if len(twice):
        raise InputError(f"{path}: {twice.iloc[0]} stands in it twice; remove one of the rows")
    bad = table["fold"][~table["fold"].str.fullmatch(r"\d{1,3}")]
    if len(bad):
        raise InputError(f"{path}: fold {bad.iloc[0]!r} is not a number; folds are 0, 1, ...")
    folds = dict(zip(table["group"], table["fold"].astype(int), strict=True))
    holes = sorted(set(range(max(folds.values()))) - set(folds.values()))
    if holes:
        raise InputError(f"{path}: no group is in fold {holes[0]}; folds are 0, 1, ... in a row")
    return folds


def read_submission_names(settings: Settings) -> list[str] | None:
    """The image names that a submission must hold, in order; None without a sample file."""
    path = Path(settings.data_dir) / "sample_submission.csv"
    return read_csv_strict(path, ["img", "rle_mask"])["img"].tolist() if path.exists() else None
