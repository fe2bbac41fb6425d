"""Where a data set keeps images and masks, whose they are, and how a file is read.

The layout is the competition's: train/<car>_<view>.jpg, train_masks/<car>_<view>_mask.gif,
test/, sample_submission.csv. Other endings and other names do as well (`group_by`).
"""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from config import InputError
from settings import Settings

IMAGES = {".jpg", ".jpeg", ".png"}
MASKS = {".gif", ".png"}


@dataclass(frozen=True)
class Row:
    """One image: its file, its mask's file (None in a test set), and the group it hangs with."""

    image: Path
    group: str
    mask: Path | None = None
    fold: int = -1

    @property
    def image_id(self) -> str:
        """The file's name without its ending, unique in a data set."""
        return self.image.stem

    @property
    def view(self) -> str:
        """What the file's stem adds to its group: '01' of '00087a6bd4dc_01'."""
        return self.image_id.removeprefix(self.group).lstrip("_-")


# ---------------------------------------------------------------- which files there are


def folder(settings: Settings, part: str) -> Path:
    """data_dir/train or data_dir/test, or their _hq twins; InputError says how to get the data."""
    path = Path(settings.data_dir) / (f"{part}_hq" if settings.hq else part)
    if not path.is_dir():
        raise InputError(
            f"{path}: no such folder; say data_dir=..., or get the competition's data with "
            "`kaggle competitions download -c carvana-image-masking-challenge` and unzip it as "
            "input/README.md tells, or take recipe=demo, which needs none"
        )
    return path


def group_of(stem: str, group_by: str) -> str:
    """The group (car) that a file's stem names."""
    match = re.fullmatch(group_by, stem)
    if not match:
        raise InputError(f"{stem}: this file name does not fit group_by={group_by}")
    return match[1]


def rows_in(path: Path, group_by: str) -> list[Row]:
    """One row per image file in `path`, sorted by name."""
    rows: dict[str, Row] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() not in IMAGES or file.name.startswith("."):
            continue
        if file.stem in rows:
            raise InputError(f"{file}: {rows[file.stem].image.name} has the same stem; remove one")
        rows[file.stem] = Row(file, group_of(file.stem, group_by))
    if not rows:
        raise InputError(f"{path}: holds no {', '.join(sorted(IMAGES))} file")
    return list(rows.values())


def paired_rows(settings: Settings) -> list[Row]:
    """The training images with their masks, paired by name; no file is opened."""
    masks_dir = Path(settings.data_dir) / "train_masks"
    files = sorted(masks_dir.iterdir()) if masks_dir.is_dir() else []
    masks: dict[str, Path] = {}
    for file in files:
        if file.suffix.lower() in MASKS and not file.name.startswith("."):
            stem = file.stem.removesuffix("_mask")
            if stem in masks:
                raise InputError(f"{file}: {masks[stem].name} is a mask of the same image")
            masks[stem] = file
    rows = rows_in(folder(settings, "train"), settings.group_by)
    without = [row for row in rows if row.image_id not in masks]
    if without:
        name = masks_dir / f"{without[0].image_id}_mask.gif"
        raise InputError(f"{name}: missing ({len(without)} of {len(rows)} images have no mask)")
    orphans = sorted(masks.keys() - {row.image_id for row in rows})
    if orphans:
        raise InputError(f"{masks[orphans[0]]}: a mask without an image ({len(orphans)} such)")
    return [replace(row, mask=masks[row.image_id]) for row in rows]


def check_headers(rows: list[Row]) -> set[tuple[int, int]]:
    """The sizes (h, w) there are; InputError at the first file that is no image, or mask of
    another size than its image."""
    sizes = set()
    for row in rows:
        image, mask = header_size(row.image), header_size(row.mask)
        if image != mask:
            raise InputError(
                f"{row.mask}: is {mask[1]}×{mask[0]} but {row.image.name} is {image[1]}×{image[0]}"
            )
        sizes.add(image)
    return sizes


def training_rows(settings: Settings) -> list[Row]:
    """All training images with mask and fold; `limit` takes the first of each fold."""
    rows = paired_rows(settings)
    folds = read_folds(settings)
    unknown = sorted({row.group for row in rows} - folds.keys())
    if unknown:
        raise InputError(
            f"{settings.folds_csv}: has no row for {unknown[0]} ({len(unknown)} such) of dataset "
            f"{settings.dataset}; write one with `python src/folds.py recipe={settings.recipe} "
            f"data_dir={settings.data_dir} folds_csv=<new file>` and train with the same words"
        )
    rows = [replace(row, fold=folds[row.group]) for row in rows]
    if settings.limit:
        held = [[row for row in rows if row.fold == k] for k in range(max(folds.values()) + 1)]
        rows = sorted((r for part in held for r in part[: settings.limit]), key=lambda r: r.image)
    return rows


def fingerprint(rows: list[Row]) -> str:
    """Which images, in which folds, with which masks: scores compare where it is the same."""
    lines = sorted(f"{r.image_id},{r.group},{r.fold},{r.mask.stat().st_size}" for r in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def test_rows(settings: Settings) -> list[Row]:
    """The test images in sample_submission.csv's order, or by name where there is none."""
    rows = {row.image.name: row for row in rows_in(folder(settings, "test"), settings.group_by)}
    names = sample_names(settings)
    if names is None:
        names = list(rows)
    missing = [name for name in names if name not in rows]
    extra = rows.keys() - set(names)
    if missing or extra:
        name, why = (missing[0], "is missing") if missing else (min(extra), "is not in the sample")
        raise InputError(
            f"{folder(settings, 'test') / name}: {why}; sample_submission.csv and the folder "
            f"differ by {len(missing)} missing and {len(extra)} extra images"
        )
    return [rows[name] for name in names][: settings.limit or None]


def sample_names(settings: Settings) -> list[str] | None:
    """The image names that a submission must hold, in order; None without a sample file."""
    path = Path(settings.data_dir) / "sample_submission.csv"
    return read_table(path, ["img", "rle_mask"])["img"].tolist() if path.exists() else None


# ---------------------------------------------------------------- tables


def read_table(path: Path | str, columns: list[str]) -> pd.DataFrame:
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


def metadata(settings: Settings) -> pd.DataFrame | None:
    """make and car (year, make, model) of each group, of metadata.csv; None where there is none."""
    path = Path(settings.data_dir) / "metadata.csv"
    if not path.exists():
        return None
    cars = read_table(path, ["id", "year", "make", "model", "trim1", "trim2"]).set_index("id")
    return cars.assign(car=cars["year"] + " " + cars["make"] + " " + cars["model"])[["make", "car"]]


def read_folds(settings: Settings) -> dict[str, int]:
    """Group → fold, of this data set's rows in folds_csv; folds count 0, 1, … without a hole."""
    path = settings.folds_csv
    table = read_table(path, ["dataset", "group", "fold"])
    table = table[table["dataset"] == settings.dataset]
    if table.empty:
        raise InputError(
            f"{path}: has no row of dataset {settings.dataset}; see `python src/folds.py`"
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


# ---------------------------------------------------------------- pixels


def header_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file's header; nothing is decoded."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path}: cannot be read as an image ({_short(error)})") from None


def read_image(path: Path) -> np.ndarray:
    """H×W×3 uint8 RGB."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({_short(error)})") from None
    # Of a JPEG that breaks off, OpenCV gives the upper part over grey, and no error.
    broken_off = data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-4096:]
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if image is None or broken_off:
        raise InputError(f"{path}: cannot be decoded as an image; get the file again")
    return image


def read_mask(path: Path) -> np.ndarray:
    """H×W bool: value > 0, whether the file says 0/1 or 0/255. A third value is an InputError."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image if image.mode in ("1", "L", "P") else image.convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a mask ({_short(error)})") from None
    mask = values > 0
    top = values.max()
    if top > 0 and np.count_nonzero(values == top) != np.count_nonzero(mask):
        raise InputError(f"{path}: a mask holds 0 and one other value, this one holds more")
    return mask


def _short(error: Exception) -> str:
    return str(error).splitlines()[0].split(": '")[0] if str(error) else type(error).__name__
