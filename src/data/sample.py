"""One image of a dataset with its mask, group and fold."""

from dataclasses import dataclass
from pathlib import Path

from data.classes import ClassMap


@dataclass(frozen=True)
class Sample:
    """One image of a dataset. Samples of one group (a car) are never split between folds."""

    image: Path
    group: str
    mask: Path | None  # None: no mask is known
    fold: int  # -1: none
    dataset_format: str  # key of data.datasets.FORMATS
    class_map: ClassMap

    @property
    def image_id(self) -> str:
        """Stem of the image file, unique within a dataset."""
        return self.image.stem

    @property
    def view(self) -> str:
        """Stem without the group: "01" for "00087a6bd4dc_01" of group "00087a6bd4dc"."""
        around_group = self.image_id.partition(self.group)[::2]
        return "_".join(filter(None, (part.strip("_-") for part in around_group)))
