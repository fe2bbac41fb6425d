"""Oxford-IIIT Pet: images/<Breed>_<n>.jpg, annotations/trimaps/<Breed>_<n>.png, and the lists
annotations/trainval.txt and annotations/test.txt."""

from pathlib import Path

from core.errors import InputError
from core.settings import Settings
from data.classes import IGNORE, ClassMap
from data.formats.base import DatasetFormat, FilePairs
from data.image_files import require_paths

PET_COLOR, BACKGROUND_COLOR, BORDER_COLOR = (240, 150, 40), (40, 60, 90), (240, 240, 240)
LISTS = {"train": "trainval.txt", "test": "test.txt"}


class Pets(DatasetFormat):
    def list_files(self, settings: Settings, split: str) -> FilePairs:
        root = Path(settings.data_dir)
        list_path = root / "annotations" / LISTS[split]
        require_paths(root / "images", list_path)
        try:
            lines = list_path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{list_path}: is not UTF-8 text ({error.reason})") from None
        names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
        if not names:
            raise InputError(f"{list_path}: lists no image")
        images = [root / "images" / f"{name}.jpg" for name in names]
        trimaps = [root / "annotations" / "trimaps" / f"{name}.png" for name in names]
        for paths in (images, trimaps):
            require_paths(*paths, remedy=f"; {list_path} lists it")
        return list(zip(images, trimaps, strict=True))

    def make_class_map(self, settings: Settings) -> ClassMap:
        """Return the class map of trimaps: 1 is pet, 2 is background, 3 is border.

        The setting trimap_border chooses the class of the border.
        """
        if settings.trimap_border in ("pet", "background"):
            border = int(settings.trimap_border == "pet")
            return ClassMap(("pet",), (PET_COLOR,), (-1, 1, 0, border))
        names = ("background", "pet", "border")
        colors = (BACKGROUND_COLOR, PET_COLOR, BORDER_COLOR)
        if settings.trimap_border == "ignore":
            return ClassMap(names[:2], colors[:2], (-1, 1, 0, IGNORE))
        return ClassMap(names, colors, (-1, 1, 0, 2))

    def find_test_images_dir(self, settings: Settings) -> Path:
        return Path(settings.data_dir) / "images"

    def fold_stratum(self, group: str) -> str:
        """Return the breed: "Great_Pyrenees" for "Great_Pyrenees_100"."""
        return group.rpartition("_")[0]
