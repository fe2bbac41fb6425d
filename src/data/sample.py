"""One image of a data set: its files, and whose it is."""

from dataclasses import dataclass
from pathlib import Path

from data.classes import ClassMap


@dataclass(frozen=True)
class Sample:
    """One image: its file, its label's file (None: not known), and the group it hangs with."""

    image: Path
    group: str
    mask: Path | None = None
    fold: int = -1
    dataset_format: str = "carvana"
    class_map: ClassMap = ClassMap(("car",), ((60, 220, 90),))

    @property
    def image_id(self) -> str:
        """The file's name without its ending, unique in a data set."""
        return self.image.stem

    @property
    def view(self) -> str:
        """What the file's stem adds to its group: '01' of '00087a6bd4dc_01'."""
        return self.image_id.removeprefix(self.group).lstrip("_-")
