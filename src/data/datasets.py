"""Where a data set keeps images and labels, and whose they are.

The layout `carvana` is the competition's: train/<car>_<view>.jpg, its mask in train_masks/ as
<car>_<view>_mask.gif, test/, sample_submission.csv. Other endings and names will do.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import InputError
from core.settings import Settings
from data import image_io
from data.classes import IGNORE, get_class_map
from data.csv_files import read_folds, read_submission_names
from data.sample import Sample

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}
MASK_SUFFIXES = {".gif", ".png"}


# ---------------------------------------------------------------- the competition's layout


def images_dir(settings: Settings, part: str) -> Path:
    """data_dir/train or data_dir/test, or their _hq twins; InputError says how to get the data."""
    path = Path(settings.data_dir) / (f"{part}_hq" if settings.use_hq_images else part)
    if not path.is_dir():
        raise InputError(
            f"{path}: no such folder; say data_dir=..., or get the competition's data with "
            "`kaggle competitions download -c carvana-image-masking-challenge` and unzip it as "
            "input/README.md tells, or take recipe=demo, which needs none"
        )
    return path


def group_from_stem(stem: str, group_by: str) -> str:
    """The group (car) that a file's stem names."""
    match = re.fullmatch(group_by, stem, re.DOTALL)
    if not match:
        raise InputError(f"{stem}: this file name does not fit group_regex={group_by}")
    return match[1]


def list_images(path: Path, group_by: str) -> list[Sample]:
    """One row per image file in `path`, sorted by name."""
    rows: dict[str, Sample] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith("."):
            continue
        if file.stem in rows:
            raise InputError(f"{file}: {rows[file.stem].image.name} has the same stem; remove one")
        rows[file.stem] = Sample(file, group_from_stem(file.stem, group_by))
    if not rows:
        raise InputError(f"{path}: holds no {', '.join(sorted(IMAGE_SUFFIXES))} file")
    return list(rows.values())


def pair_images_with_masks(settings: Settings) -> list[Sample]:
    """The training images with their masks, paired by name; no file is opened."""
    masks_dir = Path(settings.data_dir) / "train_masks"
    files = sorted(masks_dir.iterdir()) if masks_dir.is_dir() else []
    masks: dict[str, Path] = {}
    for file in files:
        if file.suffix.lower() in MASK_SUFFIXES and not file.name.startswith("."):
            stem = file.stem.removesuffix("_mask")
            if stem in masks:
                raise InputError(f"{file}: {masks[stem].name} is a mask of the same image")
            masks[stem] = file
    rows = list_images(images_dir(settings, "train"), settings.group_regex)
    without = [row for row in rows if row.image_id not in masks]
    if without:
        name = masks_dir / f"{without[0].image_id}_mask.gif"
        raise InputError(f"{name}: missing ({len(without)} of {len(rows)} images have no mask)")
    orphans = sorted(masks.keys() - {row.image_id for row in rows})
    if orphans:
        raise InputError(f"{masks[orphans[0]]}: a mask without an image ({len(orphans)} such)")
    return [replace(row, mask=masks[row.image_id]) for row in rows]


def carvana_samples(settings: Settings, part: str) -> list[Sample]:
    """train/ with train_masks/, or test/ in sample_submission.csv's order, by name without one."""
    if part == "train":
        return pair_images_with_masks(settings)
    rows = {
        row.image.name: row
        for row in list_images(images_dir(settings, "test"), settings.group_regex)
    }
    names = read_submission_names(settings)
    if names is None:
        names = list(rows)
    missing = [name for name in names if name not in rows]
    extra = rows.keys() - set(names)
    if missing or extra:
        name, why = (missing[0], "is missing") if missing else (min(extra), "is not in the sample")
        raise InputError(
            f"{images_dir(settings, 'test') / name}: {why}; sample_submission.csv and the folder "
            f"differ by {len(missing)} missing and {len(extra)} extra images"
        )
    return [rows[name] for name in names]


# ---------------------------------------------------------------- other layouts


def require_path(path: Path, what: str) -> Path:
    """`path` if it is there; InputError with what it should be."""
    if not path.exists():
        raise InputError(f"{path}: missing; {what} (see input/README.md), or say data_dir=...")
    return path


def cityscapes_pairs_samples(settings: Settings, part: str) -> list[Sample]:
    """train/ and val/: each file a photograph and, right of it, its label in colours."""
    path = Path(settings.data_dir) / ("train" if part == "train" else "val")
    files = list_images(
        require_path(path, "the folder of Cityscapes image pairs"), settings.group_regex
    )
    return [replace(row, mask=row.image) for row in files]


def cityscapes_samples(settings: Settings, part: str) -> list[Sample]:
    """leftImg8bit/<part>/<city>/*_leftImg8bit.png, gtFine/<part>/<city>/*_gtFine_labelIds.png.

    The labels of the official test set are not published: val takes its place.
    """
    part, root = "train" if part == "train" else "val", Path(settings.data_dir)
    rows = []
    for city in sorted(
        require_path(root / "leftImg8bit" / part, "Cityscapes' photographs").iterdir()
    ):
        for row in list_images(city, settings.group_regex) if city.is_dir() else []:
            name = row.image_id.removesuffix("_leftImg8bit") + "_gtFine_labelIds.png"
            label = require_path(root / "gtFine" / part / city.name / name, "the label of an image")
            rows.append(replace(row, mask=label))
    if not rows:
        raise InputError(f"{root / 'leftImg8bit' / part}: holds no folder of a city")
    return rows


def pets_samples(settings: Settings, part: str) -> list[Sample]:
    """images/, annotations/trimaps/, and the list annotations/trainval.txt or test.txt."""
    root = Path(settings.data_dir)
    listed = root / "annotations" / ("trainval.txt" if part == "train" else "test.txt")
    rows = []
    for line in require_path(listed, "the list of images").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name = line.split()[0]
            image = require_path(root / "images" / f"{name}.jpg", f"{listed.name} names it")
            label = require_path(root / "annotations" / "trimaps" / f"{name}.png", "its trimap")
            rows.append(Sample(image, group_from_stem(name, settings.group_regex), label))
    if not rows:
        raise InputError(f"{listed}: names no image")
    return rows


def has_test_images(settings: Settings) -> bool:
    """Whether data_dir holds images to predict."""
    places = {"carvana": "test_hq" if settings.use_hq_images else "test", "pairs": "val"}
    places |= {"cityscapes": "leftImg8bit/val", "pets": "annotations/test.txt"}
    return (Path(settings.data_dir) / places[settings.dataset_format]).exists()


SampleLoader = Callable[
    [Settings, str], list[Sample]
]  # (settings, "train" or "test") → rows in order
FORMATS: dict[str, SampleLoader] = {
    "carvana": carvana_samples,
    "pairs": cityscapes_pairs_samples,
    "cityscapes": cityscapes_samples,
    "pets": pets_samples,
}


# ---------------------------------------------------------------- rows


def load_samples(settings: Settings, part: str) -> list[Sample]:
    """All rows of a part, with what their labels mean."""
    scheme = get_class_map(settings)
    rows = FORMATS[settings.dataset_format](settings, part)
    return [replace(row, dataset_format=settings.dataset_format, class_map=scheme) for row in rows]


def load_training_samples(settings: Settings) -> list[Sample]:
    """All training images with mask and fold; `limit` takes the first of each fold."""
    rows = load_samples(settings, "train")
    folds = read_folds(settings)
    unknown = sorted({row.group for row in rows} - folds.keys())
    if unknown:
        raise InputError(
            f"{settings.folds_csv}: has no row for {unknown[0]} ({len(unknown)} such) of dataset "
            f"{settings.dataset_name}; write one with `python src/folds.py recipe={settings.recipe} "
            f"data_dir={settings.data_dir} folds_csv=<new file>` and train with the same words"
        )
    rows = [replace(row, fold=folds[row.group]) for row in rows]
    if settings.skip_empty:
        rows = drop_empty_masks(rows)
    if settings.max_images:
        held = [[row for row in rows if row.fold == k] for k in range(max(folds.values()) + 1)]
        rows = sorted(
            (r for part in held for r in part[: settings.max_images]), key=lambda r: r.image
        )
    return rows


def drop_empty_masks(rows: list[Sample]) -> list[Sample]:
    """The rows whose label shows something; says which are left out. Every label is read."""
    nothing = [0, IGNORE] if rows[0].class_map.has_background else [IGNORE]
    shows = [not np.isin(label, nothing).all() for label in map(image_io.read_sample_mask, rows)]
    empty = [row.image_id for row, something in zip(rows, shows, strict=True) if not something]
    print(f"skip_empty: {len(empty)} labels show nothing but background: {', '.join(empty[:5])}")
    return [row for row, something in zip(rows, shows, strict=True) if something]


def dataset_fingerprint(rows: list[Sample]) -> str:
    """Which images, in which folds, with which masks: scores compare where it is the same."""
    lines = sorted(f"{r.image_id},{r.group},{r.fold},{r.mask.stat().st_size}" for r in rows)
    if rows[0].dataset_format != "carvana":
        lines.append(repr(rows[0].class_map))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def load_test_samples(settings: Settings) -> list[Sample]:
    """The images to predict, in order; with their labels where the layout has them."""
    return load_samples(settings, "test")[: settings.max_images or None]


def describe_dataset(settings: Settings, rows: list[Sample]) -> dict[str, Any]:
    """Which images: how many, how large, and digests of their names and sizes and of the folds."""
    sizes = [(row.image.name, row.image.stat().st_size) for row in rows]
    return {
        "fingerprint": dataset_fingerprint(rows),
        "images": len(rows),
        "bytes": sum(size for _, size in sizes),
        "names_and_sizes": hashlib.sha256(repr(sorted(sizes)).encode()).hexdigest(),
        "folds_csv": hashlib.sha256(Path(settings.folds_csv).read_bytes()).hexdigest(),
    }
