"""The interface of a dataset format."""

from pathlib import Path

import numpy as np

from core.errors import InputError
from core.settings import Settings
from data import image_io, mask_io
from data.classes import ClassMap, decode_values
from data.sample import Sample

FilePairs = list[tuple[Path, Path | None]]  # image and mask file (None: unknown)


class DatasetFormat:
    """How the files of one dataset are found and read.

    A subclass implements the first three methods. The defaults of the other methods suit label
    files that have the size of their images and hold values of the class map. If the masks are not
    image files, override read_mask() and read_checked_size(), as Carvana does for a csv.
    """

    def list_files(self, settings: Settings, split: str) -> FilePairs:
        """Return the files of each sample of the split "train" or "test", in order.

        Opens no image.
        """
        raise NotImplementedError

    def make_class_map(self, settings: Settings) -> ClassMap:
        raise NotImplementedError

    def find_test_images_dir(self, settings: Settings) -> Path:
        """Return the folder of the images that predict.py predicts by default."""
        raise NotImplementedError

    def has_test_masks(self, settings: Settings) -> bool:
        """Whether the split "test" has masks to score predictions with."""
        return True

    def read_image(self, sample: Sample) -> np.ndarray:
        return image_io.read_image(sample.image)

    def read_mask(self, sample: Sample) -> np.ndarray:
        """Read the mask at native size: H×W bool for one class, else uint8 class ids or IGNORE."""
        class_map = sample.class_map
        values = mask_io.read_label_values(sample.mask, class_map)
        classes = decode_values(values, class_map, str(sample.mask))
        return classes == 1 if class_map.is_binary else classes

    def read_native_size(self, sample: Sample) -> tuple[int, int]:
        return image_io.read_image_size(sample.image)

    def read_checked_size(self, sample: Sample) -> tuple[int, int]:
        """Return (height, width) from the headers.

        Raises InputError if image and mask differ in size.
        """
        size, mask_size = self.read_native_size(sample), image_io.read_image_size(sample.mask)
        if mask_size != size:
            hint = "; save both at one size, the mask without interpolation"
            if mask_size[::-1] == size:
                hint = "; one of them is rotated, perhaps by EXIF; rotate the other to match"
            raise InputError(
                f"{sample.mask}: is {mask_size[1]}×{mask_size[0]} but {sample.image.name} is "
                f"{size[1]}×{size[0]}{hint}"
            )
        return size

    def fold_stratum(self, group: str) -> str:
        """Return the stratum of a group: folds.py spreads each stratum evenly over the folds."""
        return ""
