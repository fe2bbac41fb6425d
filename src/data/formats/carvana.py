"""The Carvana Image Masking Challenge, and any dataset in its layout.

The layout is train/<car>_<view>.jpg, train_masks/<car>_<view>_mask.gif, test/ and
sample_submission.csv. Images may have other names and types. train_masks.csv may replace
train_masks/. The masks of test/ may be in test_masks/ or test_masks.csv. With a classes.csv, masks
have several classes.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

from core.environment import ROOT
from core.errors import InputError
from core.settings import FIELDS, Settings
from data import mask_io
from data.classes import ClassMap
from data.csv_files import (
    decode_mask,
    read_class_map,
    read_csv_strict,
    read_submission_names,
    require_distinct,
    require_row_major,
)
from data.formats.base import DatasetFormat, FilePairs
from data.image_files import list_images, require_paths, to_nfc
from data.sample import Sample

IMAGE_SIZE = (1280, 1918)  # height and width of all images of the competition
DOWNLOAD_REMEDY = (
    "; download the competition's data with the commands of input/README.md, set data_dir=..., "
    "or use recipe=demo, which needs no data"
)


class Carvana(DatasetFormat):
    def list_files(self, settings: Settings, split: str) -> FilePairs:
        """Pair the images with their masks; test/ may have no masks.

        Lists test/ in the order of sample_submission.csv, or by name if there is no such file.
        """
        images_dir, masks = images_dir_of(settings, split), masks_path(settings, split)
        if split == "train":
            require_paths(images_dir, masks, remedy=download_remedy(settings))
            return pair_images_with_masks(list_images(images_dir), masks, settings.mask_name)
        others = "; predict.sh predicts other photographs with images=<photograph or folder>"
        require_paths(images_dir, remedy=download_remedy(settings) + others)
        images = list_images(images_dir)
        if (names := read_submission_names(settings)) is not None:
            images = order_by_names(images, names)
        if not self.has_test_masks(settings):
            return [(image, None) for image in images]
        remedy = "; or rename it, to predict without a score"
        return pair_images_with_masks(images, masks, settings.mask_name, remedy)

    def make_class_map(self, settings: Settings) -> ClassMap:
        path = Path(settings.data_dir) / "classes.csv"
        if path.exists():
            if settings.mask_threshold:
                raise InputError(
                    f"mask_threshold={settings.mask_threshold}: is for masks of one class, but "
                    f"there is {path}; leave it out, or delete the file"
                )
            return read_class_map(path)
        for name in ("Classes.csv", "classes.CSV", "class.csv"):
            if path.with_name(name).exists():
                raise InputError(f"{path.with_name(name)}: rename it to classes.csv")
        name = "car" if settings.dataset_name in ("carvana", "demo") else "object"
        return ClassMap((name,), ((60, 220, 90),), mask_threshold=settings.mask_threshold)

    def find_test_images_dir(self, settings: Settings) -> Path:
        return images_dir_of(settings, "test")

    def has_test_masks(self, settings: Settings) -> bool:
        return not settings.truth_csv and masks_path(settings, "test").exists()

    def read_mask(self, sample: Sample) -> np.ndarray:
        is_csv = sample.mask.suffix == ".csv"
        if not sample.class_map.is_binary:
            if is_csv:
                raise InputError(
                    f"{sample.mask}: holds masks of one class; save masks of several classes as "
                    f"PNG files in {sample.mask.stem}/, or delete classes.csv"
                )
            return super().read_mask(sample)
        if is_csv:
            text = read_encoded_masks(sample.mask)[to_nfc(sample.image_id)]
            source = f"{sample.mask}: {sample.image.name}"
            return decode_mask(text, self.read_native_size(sample), source)
        return mask_io.read_mask(sample.mask, sample.class_map.mask_threshold)

    def read_checked_size(self, sample: Sample) -> tuple[int, int]:
        if sample.mask.suffix == ".csv":
            size = self.read_mask(sample).shape
            text = read_encoded_masks(sample.mask)[to_nfc(sample.image_id)]
            require_row_major(text, size, f"{sample.mask}: {sample.image.name}")
            return size
        return super().read_checked_size(sample)


def images_dir_of(settings: Settings, split: str) -> Path:
    """Return data_dir/train or data_dir/test, or their _hq versions."""
    return Path(settings.data_dir) / (f"{split}_hq" if settings.use_hq_images else split)


def masks_path(settings: Settings, split: str) -> Path:
    """Return data_dir/<split>_masks, or <split>_masks.csv if only that exists."""
    folder = Path(settings.data_dir) / f"{split}_masks"
    csv = folder.with_suffix(".csv")
    return csv if csv.exists() and not folder.exists() else folder


def download_remedy(settings: Settings) -> str:
    """Return what to do if data_dir lacks files.

    Suggests a download only for the competition's folder.
    """
    is_default = Path(settings.data_dir).absolute() == ROOT / FIELDS["data_dir"].default
    if is_default and settings.dataset_name == "carvana":
        return DOWNLOAD_REMEDY
    return "; set data_dir=..., see docs/own-images.md"


# ---------------------------------------------------------------- pairing images with masks


def pair_images_with_masks(
    images: list[Path], masks: Path, mask_name: str, remedy: str = ""
) -> FilePairs:
    """Return (image, mask) for each image.

    Raises InputError if files are unpaired. The message counts them and ends with `remedy`.
    """
    if masks.suffix == ".csv":
        patterns, unused = ["{stem}"], dict.fromkeys(read_encoded_masks(masks), masks)
    else:
        patterns = [mask_name] if mask_name else ["{stem}_mask", "{stem}"]
        files = list_images(masks)
        has_suffix = Path(mask_name).suffix in {path.suffix for path in files}
        unused = {to_nfc(path.name if has_suffix else path.stem): path for path in files}
    pairs, unpaired, problems = [], [], []
    for image in images:
        names = [to_nfc(pattern.replace("{stem}", image.stem)) for pattern in patterns]
        if name := next((name for name in names if name in unused), None):
            pairs.append((image, unused.pop(name)))
        else:
            unpaired.append((image, names))
    if unpaired:
        image, names = unpaired[0]
        problems.append(
            f"no mask for {len(unpaired)} of {len(images)} images, the first is {image.name}, "
            f"whose mask must be named {' or '.join(names)}"
        )
        if similar := [stem for stem in unused if image.stem in stem]:
            problems.append(f"set mask_name='{similar[0].replace(image.stem, '{stem}')}'")
    if unused:
        first = min(path.name if path != masks else stem for stem, path in unused.items())
        problems.append(
            f"{len(unused)} of the masks match no image, or one that already has a mask, the "
            f"first is {first}" + ("" if unpaired else "; rename or remove them")
        )
    if problems:
        raise InputError(f"{masks.absolute()}: {'; '.join(problems)}{remedy}")
    return pairs


def order_by_names(images: list[Path], names: list[str]) -> list[Path]:
    """Return the images in the order of `names`. Raises InputError if the two differ."""
    by_name = {image.name: image for image in images}
    missing = [name for name in names if name not in by_name]
    extra = by_name.keys() - set(names)
    if missing or extra:
        path = images[0].parent / (missing[0] if missing else min(extra))
        problem = "is missing" if missing else "is not in sample_submission.csv"
        composed = {to_nfc(image.name): image for image in images}
        if missing and (image := composed.get(to_nfc(missing[0]))):
            raise InputError(
                f"{image}: sample_submission.csv spells this name with other Unicode characters "
                "that look the same (NFC or NFD); rename the file to match"
            )
        raise InputError(
            f"{path}: {problem}; the folder and sample_submission.csv differ by "
            f"{len(missing)} missing and {len(extra)} extra images"
        )
    return [by_name[name] for name in names]


# ---------------------------------------------------------------- masks in a csv


def read_encoded_masks(path: Path) -> dict[str, str]:
    """Return image stem → run lengths from a csv in the submission's format.

    The latest csv stays in memory. It is read again if its size or modification time changes.
    """
    stat = path.stat()
    return _read_encoded_masks(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def _read_encoded_masks(path: Path, size: int, mtime_ns: int) -> dict[str, str]:
    table = read_csv_strict(path, ["img", "rle_mask"])
    stems = table["img"].map(lambda name: to_nfc(Path(name).stem))
    require_distinct(path, stems)
    return dict(zip(stems, table["rle_mask"], strict=True))
