"""Photographs that belong to no data set: one file, or a folder of them."""

import difflib
from pathlib import Path

from core.errors import InputError
from data.formats.base import list_images
from data.image_io import read_image_size


def find_photographs(path: Path) -> list[Path]:
    """Return the image at `path`, or the images in the folder `path`, sorted by name.

    Reads their headers only. Raises InputError if there is none, or if a file is no image.
    """
    if not path.exists():
        raise InputError(f"{path.absolute()}: no such file or folder{_suggest(path)}")
    images = list_images(path) if path.is_dir() else [path]
    for image in images:
        read_image_size(image)
    return images


def _suggest(path: Path) -> str:
    """Return "; did you mean ...?" if a file of a similar name is there, else ""."""
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    similar = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {similar[0]}?" if similar else ""
