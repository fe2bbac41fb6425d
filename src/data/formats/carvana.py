"""The Carvana Image Masking Challenge, and any data set in its layout.

train/<car>_<view>.jpg with train_masks/<car>_<view>_mask.gif, test/, sample_submission.csv; other
names and suffixes are accepted.
"""

from pathlib import Path

import numpy as np

from core.errors import InputError
from core.settings import Settings
from data import image_io
from data.classes import ClassMap
from data.csv_files import read_submission_names
from data.formats.base import DatasetFormat, FilePairs, list_images
from data.sample import Sample

MASK_SUFFIXES = {".gif", ".png"}


class Carvana(DatasetFormat):
    def list_files(self, settings: Settings, split: str) -> FilePairs:
        """Pair train/ with train_masks/; list test/ in the order of sample_submission.csv, or by
        name if there is no such file."""
        images = list_images(require_images_dir(settings, split))
        if split == "train":
            return pair_images_with_masks(images, Path(settings.data_dir) / "train_masks")
        names = read_submission_names(settings)
        ordered = images if names is None else order_by_names(images, names)
        return [(image, None) for image in ordered]

    def make_class_map(self, settings: Settings) -> ClassMap:
        return ClassMap(("car",), ((60, 220, 90),))

    def find_test_images_dir(self, settings: Settings) -> Path:
        return images_dir(settings, "test")

    def read_mask(self, sample: Sample) -> np.ndarray:
        return image_io.read_mask(sample.mask)


def images_dir(settings: Settings, split: str) -> Path:
    """Return data_dir/train or data_dir/test, or their _hq versions."""
    return Path(settings.data_dir) / (f"{split}_hq" if settings.use_hq_images else split)


def require_images_dir(settings: Settings, split: str) -> Path:
    path = images_dir(settings, split)
    if not path.is_dir():
        raise InputError(
            f"{path}: no such folder; set data_dir=..., or download the competition's data with "
            "`kaggle competitions download -c carvana-image-masking-challenge` and unzip it as "
            "input/README.md describes, or use recipe=demo, which needs no data"
        )
    return path


def pair_images_with_masks(images: list[Path], masks_dir: Path) -> FilePairs:
    """Return (image, mask) of each image; InputError if one of the two is missing."""
    masks: dict[str, Path] = {}
    for path in sorted(masks_dir.iterdir()) if masks_dir.is_dir() else []:
        if path.suffix.lower() in MASK_SUFFIXES and not path.name.startswith("."):
            stem = path.stem.removesuffix("_mask")
            if stem in masks:
                raise InputError(f"{path}: {masks[stem].name} is a mask of the same image")
            masks[stem] = path
    unpaired = [image.stem for image in images if image.stem not in masks]
    if unpaired:
        path = masks_dir / f"{unpaired[0]}_mask.gif"
        raise InputError(
            f"{path}: is missing ({len(unpaired)} of {len(images)} images have no mask)"
        )
    orphans = sorted(masks.keys() - {image.stem for image in images})
    if orphans:
        raise InputError(
            f"{masks[orphans[0]]}: is a mask without an image ({len(orphans)} in total)"
        )
    return [(image, masks[image.stem]) for image in images]


def order_by_names(images: list[Path], names: list[str]) -> list[Path]:
    """Return the images in the order of `names`; InputError if the two differ."""
    by_name = {image.name: image for image in images}
    missing = [name for name in names if name not in by_name]
    extra = by_name.keys() - set(names)
    if missing or extra:
        path = images[0].parent / (missing[0] if missing else min(extra))
        problem = "is missing" if missing else "is not in sample_submission.csv"
        raise InputError(
            f"{path}: {problem}; the folder and sample_submission.csv differ by "
            f"{len(missing)} missing and {len(extra)} extra images"
        )
    return [by_name[name] for name in names]
