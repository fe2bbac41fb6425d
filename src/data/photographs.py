"""Photographs that belong to no data set: one file, or a folder of them."""

from pathlib import Path

from data.image_files import list_images, require_paths
from data.image_io import read_image_size


def find_photographs(path: Path) -> list[Path]:
    """Return the image at `path`, or the images in the folder `path`, sorted by name.

    Reads their headers only. Raises InputError if there is none, or if a file is no image.
    """
    require_paths(path)
    images = list_images(path) if path.is_dir() else [path]
    for image in images:
        read_image_size(image)
    return images
