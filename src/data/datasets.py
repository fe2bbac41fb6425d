"""Samples of the datasets: files, groups, folds, and how to read them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from core import process_env
from core.errors import InputError
from core.progress import image_progress
from core.settings import Settings
from core.text import format_count
from core.threads import map_in_threads
from data import image_io
from data.classes import IGNORE, ClassMap
from data.csv_files import read_folds
from data.formats.base import DatasetFormat
from data.formats.carvana import Carvana
from data.formats.cityscapes import Cityscapes, CityscapesPairs
from data.formats.pets import Pets
from data.image_files import IMAGE_SUFFIXES, to_nfc
from data.sample import Sample

FORMATS: dict[str, DatasetFormat] = {  # values of the setting dataset_format
    "carvana": Carvana(),
    "pairs": CityscapesPairs(),
    "cityscapes": Cityscapes(),
    "pets": Pets(),
}

SKIP_HINT = "; or set skip_unreadable=true"


def get_format(settings: Settings) -> DatasetFormat:
    return FORMATS[settings.dataset_format]


def get_class_map(settings: Settings) -> ClassMap:
    return get_format(settings).make_class_map(settings)


# ---------------------------------------------------------------- reading one sample


def read_sample_image(sample: Sample) -> np.ndarray:
    """Read a sample's image as H×W×3 uint8 RGB."""
    return FORMATS[sample.dataset_format].read_image(sample)


def read_sample_mask(sample: Sample) -> np.ndarray:
    """Read a sample's mask at native size, H×W: bool for one class, else uint8 class ids or
    IGNORE."""
    return FORMATS[sample.dataset_format].read_mask(sample)


def read_native_size(sample: Sample) -> tuple[int, int]:
    """Return (height, width) of a sample's image from the file's header."""
    return FORMATS[sample.dataset_format].read_native_size(sample)


def read_checked_sizes(samples: Sequence[Sample]) -> set[tuple[int, int]]:
    """Return all image sizes (h, w) from the files' headers.

    Raises InputError if a file is not an image, or if a mask and its image differ in size. The
    message names the first such file and counts them. Prints a warning if EXIF rotates images, but
    not their masks.
    """
    sizes, errors = set(), []
    for sample in samples:
        try:
            sizes.add(FORMATS[sample.dataset_format].read_checked_size(sample))
        except InputError as error:
            errors.append(error)
    if errors:
        others = f" ({len(errors)} such files)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{others}")
    if turned := [sample.image.name for sample in samples if exif_rotates_only_image(sample)]:
        process_env.print_once(
            f"warning: EXIF rotates or mirrors {len(turned)} photographs, {turned[0]} for example, "
            "but not their masks; check that the masks are upright"
        )
    return sizes


def check_headers(paths: Sequence[Path]) -> None:
    """Raise InputError if the headers of images show that they cannot be read.

    The message names the first such file and counts them. Threads hide the delay of a network file
    system.
    """

    def find_error(path: Path) -> str:
        try:
            image_io.check_header(path)
        except InputError as error:
            return str(error)
        return ""

    found = map_in_threads(find_error, paths)
    shown = image_progress(found, "headers", len(paths), leave=False)
    if errors := [error for error in shown if error]:
        others = f" ({len(errors)} such files)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{others}{SKIP_HINT}")


def exif_rotates_only_image(sample: Sample) -> bool:
    """Whether EXIF rotates or mirrors a sample's image, but not its mask.

    False if the rotation changes height and width: then the sizes of image and mask show it.
    """
    orientation = image_io.read_orientation(sample.image)
    if orientation == 1 or sample.mask.suffix.lower() not in IMAGE_SUFFIXES:
        return False
    height, width = read_native_size(sample)
    swaps_sides = orientation >= 5  # 5 to 8: rotated by 90°
    keeps_size = not swaps_sides or height == width
    return keeps_size and image_io.read_orientation(sample.mask) == 1


# ---------------------------------------------------------------- lists of samples


def group_from_stem(stem: str, group_regex: str) -> str:
    """Return the group (car) that the stem of an image file names; '' if it names none."""
    match = re.fullmatch(group_regex, to_nfc(stem), re.DOTALL)
    return (match[1] or "") if match else ""


def suggest_regex(group_regex: str, stems: list[str]) -> str:
    """Return "group_regex=..., or " with an extended regex that matches these stems.

    The text is part of an error message. Returns "" if neither extension matches them all.
    """
    for candidate in (f"{group_regex}.*", f".*{group_regex}.*"):
        if all(group_from_stem(stem, candidate) for stem in stems):
            return f"group_regex='{candidate}', or "
    return ""


def load_samples(settings: Settings, split: str) -> list[Sample]:
    """Return all samples of the split "train" or "test", without folds. Opens no image.

    Raises InputError for training images whose names do not match group_regex, and for two images
    of one name.
    """
    class_map, regex = get_class_map(settings), settings.group_regex
    files = get_format(settings).list_files(settings, split)
    groups = [group_from_stem(image.stem, regex) for image, _ in files]
    unmatched = [image.stem for (image, _), group in zip(files, groups, strict=True) if not group]
    if unmatched and split == "train":
        suggested = suggest_regex(regex, unmatched)
        raise InputError(
            f"group_regex={regex}: must match whole names (without suffix), but does not match "
            f"{len(unmatched)} of {len(files)}, the first is {unmatched[0]}; set "
            f"{suggested}group_regex='(.+)' if no two images show the same object"
        )
    by_id: dict[str, Sample] = {}
    for (image, mask), group in zip(files, groups, strict=True):
        sample = Sample(
            image,
            group or image.stem,  # a test image that names no group is one of its own
            mask,
            fold=-1,  # none yet
            dataset_format=settings.dataset_format,
            class_map=class_map,
        )
        if other := by_id.get(sample.image_id):
            raise InputError(
                f"{settings.data_dir}: two {split} images are named {sample.image_id}, "
                f"{other.image} and {image}; rename or remove one"
            )
        by_id[sample.image_id] = sample
    return list(by_id.values())


def load_training_samples(settings: Settings) -> list[Sample]:
    """Return the training samples with their masks and folds.

    skip_empty leaves out samples with empty masks. max_images keeps only the first samples of each
    fold. Raises InputError if folds_csv lacks the group of a sample.
    """
    samples, folds = load_samples(settings, "train"), read_folds(settings)
    unknown = sorted({sample.group for sample in samples} - folds.keys())
    if unknown:
        remedy = (
            "write one with `python src/folds.py folds_csv=<new file>` and the settings of this "
            "command, then train another run= with this folds_csv"
        )
        if not folds.keys() & {sample.group for sample in samples}:
            if settings.dataset_name == "carvana":
                hint = "for your own images, set recipe=own_images"
            else:
                regex = settings.group_regex
                hint = f"if it was written with another group_regex than {regex}, set that again"
            remedy = f"{hint}; or {remedy}"
        raise InputError(
            f"{settings.folds_csv}: has no row for {unknown[0]} ({len(unknown)} in total) of "
            f"dataset {settings.dataset_name}; {remedy}"
        )
    samples = [replace(sample, fold=folds[sample.group]) for sample in samples]
    if settings.skip_empty:
        samples = drop_empty_masks(samples)
    if settings.max_images:
        samples = first_of_each_fold(samples, settings.max_images)
    return samples


def first_of_each_fold(samples: list[Sample], count: int) -> list[Sample]:
    """Return the first `count` samples of each fold, in order."""
    kept, counts = [], Counter()
    for sample in samples:
        if counts[sample.fold] < count:
            kept.append(sample)
            counts[sample.fold] += 1
    return kept


def drop_empty_masks(samples: list[Sample]) -> list[Sample]:
    """Return the samples whose masks show more than background, and print how many do not.

    Reads every mask. Raises InputError if no mask shows more than background.
    """
    empty_values = [0, IGNORE] if samples[0].class_map.has_background else [IGNORE]
    masks = map_in_threads(read_sample_mask, samples)
    are_empty = [np.isin(mask, empty_values).all() for mask in masks]
    empty = [s.image_id for s, is_empty in zip(samples, are_empty, strict=True) if is_empty]
    examples = f": {', '.join(empty[:5])}" if empty else ""
    print(f"skip_empty: {format_count(len(empty), 'mask')} with only background{examples}")
    if len(empty) == len(samples):
        raise InputError(f"skip_empty=true: all {len(samples)} masks show only background")
    empty_ids = set(empty)
    return [sample for sample in samples if sample.image_id not in empty_ids]


def load_test_samples(settings: Settings) -> list[Sample]:
    """Return the samples to predict in order, with masks if the dataset has them."""
    return load_samples(settings, "test")[: settings.max_images or None]
