"""Checks a written submission.csv strictly, and scores it where there is a truth."""

import sys
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
from tqdm import tqdm

from core.errors import InputError
from core.settings import Settings
from data import csv_files, datasets, image_io
from evaluation.metrics import mask_dice
from evaluation.statistics import clustered_standard_error
from inference import rle

SUBMISSION_COLUMNS = ["img", "rle_mask"]
CARVANA_SIZE = (1280, 1918)  # height and width of all the competition's images
MAX_LISTED = 20  # lines that are printed of a kind before the rest is only counted


def expected_file_names(settings: Settings) -> list[str]:
    """The images that the csv must name: the sample's, else the truth's, else the test folder's."""
    names = csv_files.read_submission_names(settings)
    if names is None and settings.truth_csv:
        names = csv_files.read_csv_strict(settings.truth_csv, SUBMISSION_COLUMNS)["img"].tolist()
    if names is None:
        names = [row.image.name for row in datasets.load_test_samples(settings)]
    return names[: settings.max_images or None]


def test_image_size(settings: Settings, name: str) -> tuple[int, int]:
    """(height, width) of a test image, from its header; the competition's where it is not here."""
    folder = (
        "images"
        if settings.dataset_format == "pets"
        else "test_hq"
        if settings.use_hq_images
        else "test"
    )
    path = Path(settings.data_dir) / folder / name
    try:
        return image_io.read_image_size(path) if path.exists() else CARVANA_SIZE
    except InputError:
        if settings.skip_unreadable:
            return CARVANA_SIZE
        raise


def name_errors(table: pd.DataFrame, names: list[str]) -> list[str]:
    """A line for each name that is extra, doubled or missing."""
    wanted, doubled = set(names), table["img"].duplicated()
    lines = enumerate(zip(table["img"], doubled, strict=True), start=2)
    faults = [
        f"row {line}, {name}: " + ("stands here twice" if twice else "is not a test image")
        for line, (name, twice) in lines
        if twice or name not in wanted
    ]
    seen = set(table["img"])
    return faults + [f"{name}: has no row" for name in names if name not in seen]


def mask_errors(settings: Settings, table: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """A line for each mask that breaks a rule, and each mask's part of the frame (nan: broken)."""
    faults, areas = [], np.full(len(table), np.nan)
    rows = zip(table["img"], table["rle_mask"], strict=True)
    bar = tqdm(rows, "check", len(table), leave=False, unit="row", disable=None)
    for i, (name, text) in enumerate(bar):
        height, width = test_image_size(settings, name)
        try:
            _, lengths = rle.parse_runs(text, height * width)
            areas[i] = lengths.sum() / (height * width)
        except ValueError as error:
            faults.append(f"row {i + 2}, {name}: {error}")
    return faults, areas


def suspicious_masks(settings: Settings, names: pd.Series, areas: np.ndarray) -> list[str]:
    """Masks that are allowed and yet suspicious: empty, or far from all others in area."""
    low, middle, high = np.nanquantile(areas, [0.25, 0.5, 0.75])
    far = np.abs(areas - middle) > 4 * max(high - low, 0.01)
    return [
        f"row {i + 2}, {names[i]}: " + (f"covers {areas[i]:.1%}" if areas[i] else "is empty")
        for i in np.flatnonzero(far | (areas == 0))
    ]


def print_limited(title: str, lines: list[str], file: TextIO = sys.stdout) -> None:
    """Print lines under a title; of many only the first."""
    if lines:
        print(f"{title} ({len(lines)}):", file=file)
        print(*(f"  {line}" for line in lines[:MAX_LISTED]), sep="\n", file=file)
        if len(lines) > MAX_LISTED:
            print(f"  ... and {len(lines) - MAX_LISTED} more", file=file)


def score_submission(settings: Settings, table: pd.DataFrame) -> None:
    """Print mean Dice against the truth, its standard error by car, and the ten worst images."""
    truth = csv_files.read_csv_strict(settings.truth_csv, SUBMISSION_COLUMNS).set_index("img")[
        "rle_mask"
    ]
    absent = [name for name in table["img"] if name not in truth.index]
    if absent:
        raise InputError(f"{settings.truth_csv}: has no mask of {absent[0]} ({len(absent)} such)")
    other = sorted(set(truth.index) - set(table["img"]))
    if other and not settings.max_images:
        raise InputError(
            f"{settings.truth_csv}: has masks of {other[0]} ({len(other)} such), which the submission "
            "lacks: it is the truth of other images"
        )
    dice = []
    for name, text in zip(table["img"], table["rle_mask"], strict=True):
        frame = test_image_size(settings, name)
        try:
            true = rle.decode(truth[name], frame)
        except ValueError as error:
            raise InputError(f"{settings.truth_csv}: {name}: {error}") from None
        dice.append(mask_dice(rle.decode(text, frame), true))
    scores = pd.Series(dice, index=table["img"])
    stems = [Path(name).stem for name in table["img"]]
    groups = np.array([datasets.group_from_stem(stem, settings.group_regex) for stem in stems])
    error = clustered_standard_error(scores.to_numpy(), groups)
    print_limited("worst images", [f"{d:.5f} {name}" for name, d in scores.nsmallest(10).items()])
    print(
        f"mean dice {scores.mean():.6f} ± {error:.6f} (standard error over {len(set(groups))} "
        f"groups) on {len(scores)} images"
    )
