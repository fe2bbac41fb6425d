"""The csv files of a dataset: folds, names of the submission, run-length masks, metadata."""

from pathlib import Path

import numpy as np
import pandas as pd

from core.errors import InputError
from core.settings import Settings
from data import rle
from data.classes import IGNORE, ClassMap, parse_color
from data.image_files import require_paths, to_nfc


def read_csv_strict(path: Path | str, columns: list[str]) -> pd.DataFrame:
    """Read a csv with exactly these columns as strings; empty cells are ''."""
    require_paths(Path(path))
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        if not isinstance(table.index, pd.RangeIndex):  # pandas took the first cells as the index
            raise ValueError("the rows have more cells than the header; quote cells with commas")
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a csv: {str(error).strip().splitlines()[0]}") from None
    if list(table.columns) != columns:
        header = ",".join(table.columns)[:80]
        raise InputError(f"{path}: expected the header {','.join(columns)}, found {header}")
    return table


def require_distinct(path: Path | str, names: pd.Series) -> None:
    """Raise InputError if two rows of a csv have the same name."""
    repeated = names[names.duplicated()]
    if len(repeated):
        raise InputError(f"{path}: {repeated.iloc[0]} is listed twice; remove one of the rows")


def read_car_metadata(settings: Settings) -> pd.DataFrame | None:
    """Return the make and car ("year make model") of each group, as a table.

    They come from the competition's metadata.csv. Returns None if there is no such file, or if it
    has other columns.
    """
    path = Path(settings.data_dir) / "metadata.csv"
    columns = ["id", "year", "make", "model", "trim1", "trim2"]
    if not path.exists():
        return None
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        if file.readline().strip() != ",".join(columns):
            return None
    cars = read_csv_strict(path, columns)
    require_distinct(path, cars["id"])
    cars = cars.set_index("id")
    return cars.assign(car=cars["year"] + " " + cars["make"] + " " + cars["model"])[["make", "car"]]


def read_folds(settings: Settings) -> dict[str, int]:
    """Return group → fold of this dataset in folds_csv.

    Raises InputError unless the folds are 0…k−1 without gaps.
    """
    path = settings.folds_csv
    require_paths(Path(path), remedy="; write it with `python src/folds.py`")
    table = read_csv_strict(path, ["dataset", "group", "fold"])
    table = table[table["dataset"] == settings.dataset_name]
    if table.empty:
        raise InputError(
            f"{path}: has no row of dataset {settings.dataset_name}; write its rows with "
            "`python src/folds.py` and the same settings, or set dataset_name=..."
        )
    table["group"] = table["group"].map(to_nfc)
    require_distinct(path, table["group"])
    non_numeric = table["fold"][~table["fold"].str.fullmatch(r"\d{1,3}")]
    if len(non_numeric):
        raise InputError(f"{path}: fold {non_numeric.iloc[0]!r}: folds must be numbers from 0")
    folds = dict(zip(table["group"], table["fold"].astype(int), strict=True))
    missing_folds = sorted(set(range(max(folds.values()))) - set(folds.values()))
    if missing_folds:
        raise InputError(
            f"{path}: no group is in fold {missing_folds[0]}; folds must be 0, 1, ... without gaps"
        )
    return folds


def read_submission_names(settings: Settings) -> list[str] | None:
    """Return the image names of sample_submission.csv in order, or None if it does not exist."""
    path = Path(settings.data_dir) / "sample_submission.csv"
    if not path.exists():
        return None
    names = read_csv_strict(path, ["img", "rle_mask"])["img"]
    require_distinct(path, names)
    return names.tolist()


def decode_mask(text: str, size: tuple[int, int], source: str) -> np.ndarray:
    """Decode the run lengths of a csv to an H×W bool mask.

    Raises InputError for invalid run lengths. Its message begins with `source`.
    """
    try:
        return rle.decode(text, size)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def require_row_major(text: str, size: tuple[int, int], source: str) -> None:
    """Raise InputError if valid run lengths look counted down the columns of an H×W mask."""
    if rle.is_counted_down_columns(text, size):
        raise InputError(
            f"{source}: its pixels seem to be counted down the columns; expected along the rows "
            "of the upright image"
        )


def read_class_map(path: Path) -> ClassMap:
    """Read classes.csv: the value in label files, name and color of each class.

    Label files may hold the colors instead of the values. The class "background" gets id 0. Pixels
    of the class "ignore" are neither trained on nor scored; this class needs no color.
    """
    table, rows = read_csv_strict(path, ["value", "name", "color"]), []
    for cells in table.itertuples(index=False):
        value, name, color = map(str.strip, cells)
        name = name.lower() if name.lower() in ("background", "ignore") else name
        if value not in map(str, range(256)) or int(value) in [row[0] for row in rows]:
            raise InputError(f"{path}: value {value!r}; expected different numbers, 0 to 255")
        rows.append((int(value), name, color))
    classes = [row for row in rows if row[1] != "ignore"]
    classes.sort(key=lambda row: row[1] != "background")  # stable: otherwise in the file's order
    names = tuple(name for _, name, _ in classes)
    if len(names) > IGNORE:
        raise InputError(f"{path}: has {len(names)} classes; expected at most {IGNORE}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"{path}: expected two or more different names; delete it for one class")
    rgb = _parse_colors(path, rows)
    colors = tuple(rgb[value] for value, _, _ in classes)
    value_to_class = [-1] * 256
    for value, name, _ in rows:
        value_to_class[value] = IGNORE if name == "ignore" else names.index(name)
    color_values = tuple((int.from_bytes(color), value) for value, color in rgb.items())
    return ClassMap(names, colors, tuple(value_to_class), color_values=color_values)


def _parse_colors(path: Path, rows: list[tuple[int, str, str]]) -> dict[int, tuple[int, int, int]]:
    """Return value → RGB for the rows (value, name, color) of classes.csv.

    Leaves out the class "ignore" if it has no color. Raises InputError for other classes without a
    valid color, and for a color that two classes have.
    """
    rgb, name_of_color = {}, {}
    for value, name, text in rows:
        if name == "ignore" and not text:
            continue
        color = parse_color(text)
        if color is None:
            found = f"{text!r} is not a color" if text else "has no color"
            raise InputError(
                f"{path}: {name}: {found}; write one as #ff8000 or orange (only ignore needs none)"
            )
        if color in name_of_color:
            raise InputError(
                f"{path}: {name_of_color[color]} and {name} have the same color, {text}; expected "
                "a different one for each class (ignore needs none)"
            )
        rgb[value], name_of_color[color] = color, name
    return rgb
