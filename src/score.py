"""Checks a written submission.csv strictly, and scores it where there is a truth."""

import sys
from pathlib import Path
from typing import TextIO

import config

if __name__ == "__main__":  # help, wrong words and Ctrl-C are answered before the heavy imports
    config.run(lambda: config.load(sys.argv[1:]))

import numpy as np
import pandas as pd
from tqdm import tqdm

import datasets
import pixels
import rle
import tables
from config import InputError
from metrics import clustered_error, mask_dice
from settings import Settings

COLUMNS = ["img", "rle_mask"]
FRAME = (1280, 1918)  # height and width of all the competition's images
SHOWN = 20  # lines that are printed of a kind before the rest is only counted


def expected_names(settings: Settings) -> list[str]:
    """The images that the csv must name: the sample's, else the truth's, else the test folder's."""
    names = tables.sample_names(settings)
    if names is None and settings.truth:
        names = tables.read_table(settings.truth, COLUMNS)["img"].tolist()
    if names is None:
        names = [row.image.name for row in datasets.test_rows(settings)]
    return names[: settings.limit or None]


def frame_of(settings: Settings, name: str) -> tuple[int, int]:
    """(height, width) of a test image, from its header; the competition's where it is not here."""
    folder = "images" if settings.layout == "pets" else "test_hq" if settings.hq else "test"
    path = Path(settings.data_dir) / folder / name
    try:
        return pixels.header_size(path) if path.exists() else FRAME
    except InputError:
        if settings.skip_bad:
            return FRAME
        raise


def name_faults(table: pd.DataFrame, names: list[str]) -> list[str]:
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


def mask_faults(settings: Settings, table: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """A line for each mask that breaks a rule, and each mask's part of the frame (nan: broken)."""
    faults, areas = [], np.full(len(table), np.nan)
    rows = zip(table["img"], table["rle_mask"], strict=True)
    bar = tqdm(rows, "check", len(table), leave=False, unit="row", disable=None)
    for i, (name, text) in enumerate(bar):
        height, width = frame_of(settings, name)
        try:
            _, lengths = rle.parse(text, height * width)
            areas[i] = lengths.sum() / (height * width)
        except ValueError as error:
            faults.append(f"row {i + 2}, {name}: {error}")
    return faults, areas


def oddities(settings: Settings, names: pd.Series, areas: np.ndarray) -> list[str]:
    """Masks that are allowed and yet suspicious: empty, or far from all others in area."""
    low, middle, high = np.nanquantile(areas, [0.25, 0.5, 0.75])
    far = np.abs(areas - middle) > 4 * max(high - low, 0.01)
    return [
        f"row {i + 2}, {names[i]}: " + (f"covers {areas[i]:.1%}" if areas[i] else "is empty")
        for i in np.flatnonzero(far | (areas == 0))
    ]


def say(title: str, lines: list[str], file: TextIO = sys.stdout) -> None:
    """Print lines under a title; of many only the first."""
    if lines:
        print(f"{title} ({len(lines)}):", file=file)
        print(*(f"  {line}" for line in lines[:SHOWN]), sep="\n", file=file)
        if len(lines) > SHOWN:
            print(f"  ... and {len(lines) - SHOWN} more", file=file)


def score(settings: Settings, table: pd.DataFrame) -> None:
    """Print mean Dice against the truth, its standard error by car, and the ten worst images."""
    truth = tables.read_table(settings.truth, COLUMNS).set_index("img")["rle_mask"]
    absent = [name for name in table["img"] if name not in truth.index]
    if absent:
        raise InputError(f"{settings.truth}: has no mask of {absent[0]} ({len(absent)} such)")
    other = sorted(set(truth.index) - set(table["img"]))
    if other and not settings.limit:
        raise InputError(
            f"{settings.truth}: has masks of {other[0]} ({len(other)} such), which the submission "
            "lacks: it is the truth of other images"
        )
    dice = []
    for name, text in zip(table["img"], table["rle_mask"], strict=True):
        frame = frame_of(settings, name)
        try:
            true = rle.decode(truth[name], frame)
        except ValueError as error:
            raise InputError(f"{settings.truth}: {name}: {error}") from None
        dice.append(mask_dice(rle.decode(text, frame), true))
    scores = pd.Series(dice, index=table["img"])
    stems = [Path(name).stem for name in table["img"]]
    groups = np.array([datasets.group_of(stem, settings.group_by) for stem in stems])
    error = clustered_error(scores.to_numpy(), groups)
    say("worst images", [f"{d:.5f} {name}" for name, d in scores.nsmallest(10).items()])
    print(
        f"mean dice {scores.mean():.6f} ± {error:.6f} (standard error over {len(set(groups))} "
        f"groups) on {len(scores)} images"
    )


def main() -> None:
    settings = config.load(sys.argv[1:])
    path = settings.submission_csv
    table = tables.read_table(path, COLUMNS)
    names = expected_names(settings)
    faults = name_faults(table, names)
    broken, areas = mask_faults(settings, table)
    if faults or broken:
        say(f"{path}: faults", faults + broken, sys.stderr)
        raise InputError(f"{path}: not fit to submit, {len(faults + broken)} faults")
    say("worth a look", oddities(settings, table["img"], areas))
    if settings.limit:
        print(f"limit={settings.limit}: these are not all test images")
    print(f"{path}: {len(table)} rows, no fault")
    if settings.truth:
        score(settings, table)


if __name__ == "__main__":
    config.run(main)
