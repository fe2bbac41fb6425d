"""The submission: writing it, checking it strictly, and scoring it if the true masks are known."""

import csv
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from core import process_env
from core.errors import InputError
from core.files import atomic_write, read_json
from core.progress import image_progress
from core.settings import Settings
from core.text import format_count
from data import csv_files, datasets, image_io, rle
from data.formats.carvana import IMAGE_SIZE
from data.image_files import require_paths
from evaluation.metrics import mask_dice
from evaluation.statistics import clustered_standard_error, format_mean

SUBMISSION_COLUMNS = ["img", "rle_mask"]
MIN_REPEATS = 3  # images with the same mask
MAX_LISTED = 20  # errors or warnings that are printed; the others are only counted


def require_replaceable(settings: Settings, names: list[str]) -> None:
    """Raise InputError if an existing csv is unreadable or has masks of images not in `names`.
    Print a notice if its masks come from other runs."""
    path = settings.submission_path
    if not path.exists():
        return
    fix = "set submission_csv=... or delete that file"
    try:
        existing = csv_files.read_csv_strict(path, SUBMISSION_COLUMNS)["img"]
    except InputError as error:
        raise InputError(f"{error}; it would be replaced: {fix}") from None
    lost = existing[~existing.isin(names)]
    if len(lost):
        raise InputError(
            f"{path}: has masks of other images ({len(lost)}), such as {lost.iloc[0]}; it would be "
            f"replaced by {len(names)} masks of {settings.data_dir}, such as {names[0]}: {fix}"
        )
    with suppress(InputError):  # there is no submission.json, or it is damaged
        runs = read_submission_json(path.with_suffix(".json"))["runs"]
        if runs != sorted(settings.runs):
            process_env.print_once(
                f"{path}: will replace the submission of {', '.join(runs)}; to keep it, set "
                "submission_csv=..."
            )


def write_submission(path: Path, masks: Iterable[tuple[str, str]]) -> None:
    """Write submission.csv from pairs of file name and run-length encoded mask."""
    with atomic_write(path) as tmp_path, open(tmp_path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SUBMISSION_COLUMNS)
        writer.writerows(masks)


def read_submission_json(path: Path) -> dict[str, Any]:
    """Read submission.json, as predict.py has written it."""
    return read_json(path, ["runs"], "predict again")


def check_and_score_submission(settings: Settings) -> None:
    """Check the submission strictly; print warnings and, if the true masks are known, its score.
    Raise InputError if it is invalid, after printing the errors to stderr."""
    path = settings.submission_path
    table = csv_files.read_csv_strict(path, SUBMISSION_COLUMNS)
    sizes = read_image_sizes(settings, table["img"])
    errors = name_errors(table, expected_file_names(settings))
    invalid_masks, statistics = mask_errors(table, sizes)
    errors += invalid_masks
    if errors:
        print_limited(f"{path}: errors", errors, sys.stderr)
        raise InputError(f"{path}: invalid submission, {format_count(len(errors), 'error')}")
    print_limited(f"{path}: warnings", suspicious_masks(table, statistics))
    if settings.max_images:
        print(f"max_images={settings.max_images}: these are not all test images")
    print(f"{path}: {len(table)} rows, valid")
    if true_masks := read_true_masks(settings, table["img"], sizes):
        score_submission(settings, table, sizes, true_masks)


def expected_file_names(settings: Settings) -> list[str]:
    """Return the file names that the csv must hold: those in sample_submission.csv if it exists,
    else those of the test images. Without test images on this machine, use those in `truth_csv`."""
    names = csv_files.read_submission_names(settings)
    folder = datasets.get_format(settings).find_test_images_dir(settings)
    if names is None and settings.truth_csv and not folder.exists():
        names = csv_files.read_csv_strict(settings.truth_csv, SUBMISSION_COLUMNS)["img"].tolist()
    if names is None:
        names = [sample.image.name for sample in datasets.load_test_samples(settings)]
    return names[: settings.max_images or None]


def read_image_sizes(settings: Settings, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Read (height, width) of the test images from their headers.

    The size is IMAGE_SIZE for an image that is not on this machine and, with skip_unreadable=true,
    for an unreadable image. Only with dataset_name=carvana may the images' folder be missing.
    """
    folder = datasets.get_format(settings).find_test_images_dir(settings)
    if settings.dataset_name != "carvana":
        require_paths(folder, remedy="; masks are checked against the size of their images")
    sizes, present = dict.fromkeys(names, IMAGE_SIZE), {path.name for path in folder.glob("*")}
    for name in image_progress(sizes, "sizes", len(sizes), leave=False):
        try:
            if name in present:
                sizes[name] = image_io.read_image_size(folder / name)
        except InputError:
            if not settings.skip_unreadable:
                raise
    return sizes


def name_errors(table: pd.DataFrame, names: list[str]) -> list[str]:
    """Return a line for each file name that is unexpected, listed twice or missing."""
    expected, listed = set(names), set(table["img"])
    rows = enumerate(zip(table["img"], table["img"].duplicated(), strict=True), start=2)
    errors = [
        f"row {row}, {name[:80]}: " + ("is listed twice" if is_duplicate else "is not a test image")
        for row, (name, is_duplicate) in rows
        if is_duplicate or name not in expected
    ]
    return errors + [f"{name}: has no row" for name in names if name not in listed]


def mask_errors(
    table: pd.DataFrame, sizes: dict[str, tuple[int, int]]
) -> tuple[list[str], pd.DataFrame]:
    """Return an error line for each invalid mask, and a table with a row for each mask.

    Column `area` is the fraction of the image that the mask covers. Column `continued` is
    rle.vertical_continuity(). Both are NaN for an invalid mask.
    """
    errors, statistics = [], np.full((len(table), 2), np.nan)
    masks = zip(table["img"], table["rle_mask"], strict=True)
    shown = image_progress(masks, "check", len(table), leave=False)
    for i, (name, text) in enumerate(shown):
        n_pixels = sizes[name][0] * sizes[name][1]
        try:
            starts, lengths = rle.parse_runs(text, n_pixels)
            continued = rle.vertical_continuity(starts, lengths, sizes[name])
            statistics[i] = lengths.sum() / n_pixels, continued
        except ValueError as error:
            errors.append(f"row {i + 2}, {name}: {error}")
    return errors, pd.DataFrame(statistics, columns=["area", "continued"])


def suspicious_masks(table: pd.DataFrame, statistics: pd.DataFrame) -> list[str]:
    """Return a line for each suspicious mask; a repeated mask gets one line, for its first row.

    A mask is suspicious if it is empty, covers nearly all or an unusual fraction of the image,
    looks scattered, or is repeated.
    """
    areas, continued = statistics["area"], statistics["continued"]
    low, median, high = areas.quantile([0.25, 0.5, 0.75])
    is_outlier = (np.abs(areas - median) > 4 * max(high - low, 0.01)) | (areas > 0.99)
    masks = table["rle_mask"]
    repeats = masks.map(masks.value_counts()).where((masks != "") & (areas > 0), 1)
    is_repeated = repeats >= MIN_REPEATS
    is_first = ~(is_repeated & masks.duplicated())
    is_scattered = continued < rle.MIN_CONTINUITY
    lines = []
    for i in np.flatnonzero(is_first & ((areas == 0) | is_outlier | is_repeated | is_scattered)):
        reasons = ["is empty"] if areas[i] == 0 else []
        if is_outlier[i] and areas[i]:
            reasons.append(f"covers {areas[i]:.1%}")
        if is_scattered[i]:
            reasons.append(
                f"is scattered ({continued[i]:.0%} of its pixels have their lower neighbor inside) "
                "as a poor mask is, or one counted down the columns instead of along the rows"
            )
        if is_repeated[i]:
            reasons.append(f"is the same mask as in {repeats[i] - 1} other rows")
        lines.append(f"row {i + 2}, {table['img'][i]}: {'; '.join(reasons)}")
    return lines


def print_limited(title: str, lines: list[str], file: TextIO | None = None) -> None:
    """Print a title and the first MAX_LISTED lines; nothing if there are none."""
    if lines:
        print(f"{title} ({len(lines)}):", file=file)
        print(*(f"  {line}" for line in lines[:MAX_LISTED]), sep="\n", file=file)
        if len(lines) > MAX_LISTED:
            print(f"  ... and {len(lines) - MAX_LISTED} more", file=file)


# ---------------------------------------------------------------- score


def read_true_masks(
    settings: Settings, names: pd.Series, sizes: dict[str, tuple[int, int]]
) -> Iterator[np.ndarray] | None:
    """Return an iterator over the true masks (H×W bool) of the images `names`, from `truth_csv` if
    it is set, else from the test split. Return None if the test split has no masks."""
    if settings.truth_csv:
        truth = read_truth(settings, names)
        return (decode_true_mask(truth[n], sizes[n], f"{settings.truth_csv}: {n}") for n in names)
    if not datasets.get_format(settings).has_test_masks(settings):
        return None
    samples = {sample.image.name: sample for sample in datasets.load_test_samples(settings)}
    return (datasets.read_sample_mask(samples[name]) for name in names)


def decode_true_mask(text: str, size: tuple[int, int], source: str) -> np.ndarray:
    """Decode a true mask; InputError if it is invalid or looks counted down the columns."""
    mask = csv_files.decode_mask(text, size, source)
    csv_files.require_row_major(text, size, source)
    return mask


def score_submission(
    settings: Settings,
    table: pd.DataFrame,
    sizes: dict[str, tuple[int, int]],
    true_masks: Iterator[np.ndarray],
) -> None:
    """Print the mean Dice of the submission, its standard error, and the ten worst images.
    Raise InputError if a true mask and its image differ in size."""
    dice = []
    for name, text, true in zip(table["img"], table["rle_mask"], true_masks, strict=True):
        if text and true.shape != sizes[name]:
            found, size = (f"{width}×{height}" for height, width in (true.shape, sizes[name]))
            raise InputError(f"{name}: is {size}, but its true mask is {found}")
        dice.append(mask_dice(rle.decode(text, true.shape), true))
    scores = pd.Series(dice, index=table["img"])
    worst = [f"{score:.5f} {name}" for name, score in scores.nsmallest(10).items()]
    print_limited("worst images", worst)
    stems, regex = [Path(name).stem for name in table["img"]], settings.group_regex
    groups = np.array([datasets.group_from_stem(stem, regex) or stem for stem in stems])
    mean = format_mean(scores.mean(), clustered_standard_error(scores.to_numpy(), groups), digits=6)
    n_groups = format_count(len({*groups}), "group")
    print(f"mean dice {mean} of the submission, on {len(scores)} images of {n_groups}")


def read_truth(settings: Settings, names: pd.Series) -> pd.Series:
    """Read the encoded true masks from `truth_csv`, by file name.

    Raises InputError if a mask of `names` is missing or, without max_images, if there are others.
    """
    path = settings.truth_csv
    table = csv_files.read_csv_strict(path, SUBMISSION_COLUMNS)
    csv_files.require_distinct(path, table["img"])
    truth = table.set_index("img")["rle_mask"]
    missing = names[~names.isin(truth.index)]
    if len(missing):
        raise InputError(f"{path}: has no mask of {missing.iloc[0]} ({len(missing)} in total)")
    unexpected = truth.index.difference(names)
    if len(unexpected) and not settings.max_images:
        raise InputError(
            f"{path}: has masks that are missing in the submission, such as {unexpected[0]} "
            f"({len(unexpected)} in total): it is for other images"
        )
    return truth
