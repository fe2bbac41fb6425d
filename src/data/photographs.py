"""Photographs that belong to no data set: one file, or a folder of them."""

from pathlib import Path

from data.image_files import list_images, require_paths
from data.image_io import read_image_size


def find_photographs(path: Path, check_headers: bool = True) -> list[Path]:
    """Return the image at `path`, or the images in the folder `path`, sorted by name.

    Raises InputError if there is none or, with `check_headers`, if the header of a file is not that
    of an image.
    """
    require_paths(path)
    images = list_images(path) if path.is_dir() else [path]
    for image in images if check_headers else []:
        read_image_size(image)
    return images
