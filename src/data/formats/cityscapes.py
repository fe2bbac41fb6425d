"""Cityscapes in two layouts: the original one, and the image pairs of the pix2pix datasets.

Class table: Cordts et al. 2016, arXiv:1604.01685, and cityscapesScripts. The labels of the official
test split are not published, so the val split is used as the test split.
"""

from pathlib import Path

import numpy as np

from core.errors import InputError
from core.settings import Settings
from data import image_io
from data.classes import IGNORE, ClassMap, decode_colors
from data.formats.base import DatasetFormat, FilePairs
from data.image_files import list_images, require_paths
from data.sample import Sample

# Name, RGB, train id (IGNORE: not among the 19 evaluated classes) of label ids 0 to 33.
CITYSCAPES_LABELS = [
    ("unlabeled", (0, 0, 0), IGNORE),
    ("ego vehicle", (0, 0, 0), IGNORE),
    ("rectification border", (0, 0, 0), IGNORE),
    ("out of roi", (0, 0, 0), IGNORE),
    ("static", (0, 0, 0), IGNORE),
    ("dynamic", (111, 74, 0), IGNORE),
    ("ground", (81, 0, 81), IGNORE),
    ("road", (128, 64, 128), 0),
    ("sidewalk", (244, 35, 232), 1),
    ("parking", (250, 170, 160), IGNORE),
    ("rail track", (230, 150, 140), IGNORE),
    ("building", (70, 70, 70), 2),
    ("wall", (102, 102, 156), 3),
    ("fence", (190, 153, 153), 4),
    ("guard rail", (180, 165, 180), IGNORE),
    ("bridge", (150, 100, 100), IGNORE),
    ("tunnel", (150, 120, 90), IGNORE),
    ("pole", (153, 153, 153), 5),
    ("polegroup", (153, 153, 153), IGNORE),
    ("traffic light", (250, 170, 30), 6),
    ("traffic sign", (220, 220, 0), 7),
    ("vegetation", (107, 142, 35), 8),
    ("terrain", (152, 251, 152), 9),
    ("sky", (70, 130, 180), 10),
    ("person", (220, 20, 60), 11),
    ("rider", (255, 0, 0), 12),
    ("car", (0, 0, 142), 13),
    ("truck", (0, 0, 70), 14),
    ("bus", (0, 60, 100), 15),
    ("caravan", (0, 0, 90), IGNORE),
    ("trailer", (0, 0, 110), IGNORE),
    ("train", (0, 80, 100), 16),
    ("motorcycle", (0, 0, 230), 17),
    ("bicycle", (119, 11, 32), 18),
]
CITYSCAPES_COLORS = np.array([color for _, color, _ in CITYSCAPES_LABELS])
SPLIT_FOLDERS = {"train": "train", "test": "val"}


class Cityscapes(DatasetFormat):
    """leftImg8bit/<split>/<city>/*_leftImg8bit.png, gtFine/<split>/<city>/*_gtFine_labelIds.png."""

    def list_files(self, settings: Settings, split: str) -> FilePairs:
        images_dir, labels_dir = (
            Path(settings.data_dir) / kind / SPLIT_FOLDERS[split]
            for kind in ("leftImg8bit", "gtFine")
        )
        require_paths(images_dir, labels_dir)
        files = []
        for city in sorted(images_dir.glob("[!.]*/")):
            for image in list_images(city):
                name = image.stem.removesuffix("_leftImg8bit") + "_gtFine_labelIds.png"
                files.append((image, labels_dir / city.name / name))
        if not files:
            raise InputError(f"{images_dir}: contains no city folders")
        require_paths(*(label for _, label in files))
        return files

    def find_test_images_dir(self, settings: Settings) -> Path:
        return Path(settings.data_dir) / "leftImg8bit" / SPLIT_FOLDERS["test"]

    def make_class_map(self, settings: Settings) -> ClassMap:
        """Return the class map: all 34 label ids, or the 19 evaluated classes, others ignored."""
        if settings.cityscapes_classes == 34:
            rows, value_to_class = CITYSCAPES_LABELS, tuple(range(34))
        else:
            rows = [row for row in CITYSCAPES_LABELS if row[2] != IGNORE]
            value_to_class = tuple(train_id for _, _, train_id in CITYSCAPES_LABELS)
        names, colors, _ = zip(*rows, strict=True)
        return ClassMap(names, colors, value_to_class, settings.label_color_tolerance)


class CityscapesPairs(Cityscapes):
    """train/ and val/: square images with their label, in colors, to the right of the image."""

    def list_files(self, settings: Settings, split: str) -> FilePairs:
        folder = Path(settings.data_dir) / SPLIT_FOLDERS[split]
        return [(pair, pair) for pair in list_images(folder)]

    def find_test_images_dir(self, settings: Settings) -> Path:
        return Path(settings.data_dir) / SPLIT_FOLDERS["test"]

    def read_image(self, sample: Sample) -> np.ndarray:
        pair = image_io.read_image(sample.image)
        return pair[:, : pair.shape[1] // 2]

    def read_mask(self, sample: Sample) -> np.ndarray:
        pair = image_io.read_image(sample.mask)
        label = pair[:, pair.shape[1] // 2 :]
        return decode_colors(label, CITYSCAPES_COLORS, sample.class_map, str(sample.mask))

    def read_native_size(self, sample: Sample) -> tuple[int, int]:
        height, width = image_io.read_image_size(sample.image)
        return height, width // 2

    def read_checked_size(self, sample: Sample) -> tuple[int, int]:
        height, width = image_io.read_image_size(sample.image)
        if width != 2 * height:
            raise InputError(f"{sample.image}: is {width}×{height}, expected twice as wide as tall")
        return height, height
