"""List the image files of a folder, and describe folders in error messages."""

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from core import process_env
from core.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
REMEDIES = {  # first bytes of files that are taken for images → what to do
    re.compile(rb"....ftyp(he|mif1|msf1|avi)", re.DOTALL): (
        "convert HEIC or AVIF to JPEG first, with `sips -s format jpeg` or `heif-convert`"
    ),
    re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL): (
        "extract the frames of a video first, with `ffmpeg -i <video> frame_%04d.jpg`"
    ),
}
N_LISTED = 3  # names of a folder's entries in a message


def list_images(folder: Path) -> list[Path]:
    """Return the image files in `folder`, sorted by name; print what else it holds.

    Raises InputError if there is no image, or if two have the same stem.
    """
    require_paths(folder)
    images: dict[str, Path] = {}
    duplicates, left_out = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            left_out.append(path)
        elif path.stem in images:
            duplicates.append(path)
        else:
            images[path.stem] = path
    if duplicates:
        first = duplicates[0]
        raise InputError(
            f"{first.absolute()}: {images[first.stem].name} has the same stem; remove one "
            f"(pairs in all: {len(duplicates)})"
        )
    for image in images.values():
        if image.name != image.name.encode(errors="ignore").decode():
            raise InputError(f"{image.absolute()}: its name is not UTF-8; rename it")
        if "\r" in image.name:  # a csv would end a line there
            raise InputError(
                f"{str(image.absolute())!r}: its name has a carriage return; rename it"
            )
    remedy = next(filter(None, map(foreign_file_remedy, left_out)), "")
    if not images:
        raise InputError(
            f"{folder.absolute()}: {describe_folder(folder)}; expected images, that is "
            f"{', '.join(IMAGE_SUFFIXES)} files{remedy}"
        )
    if left_out:
        kinds = Counter(map(_kind_of, left_out)).items()
        process_env.print_once(  # scripts list a folder several times
            f"{folder}: {len(images)} images; left out "
            f"{', '.join(f'{count} {kind}' for kind, count in kinds)}, the first is "
            f"{left_out[0].name}{remedy}"
        )
    return list(images.values())


def _kind_of(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    return "folder" if path.is_dir() else path.suffix.lower() or "without suffix"


def foreign_file_remedy(path: Path) -> str:
    """Return what to do about a HEIC or AVIF photograph or a video; "" for other files.

    Recognizes a file by its first bytes, whatever its name. The text is appended to a message.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return ""
    return next((f"; {remedy}" for pattern, remedy in REMEDIES.items() if pattern.match(start)), "")


# ---------------------------------------------------------------- describing folders


def describe_folder(folder: Path, like: str = "") -> str:
    """Return "holds train/, a.jpg, b.jpg and 7 others", with names similar to `like` first."""
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in paths]
    similar = difflib.get_close_matches(like, names, N_LISTED)
    names.sort(key=lambda name: (name not in similar, not name.endswith("/"), name))
    return f"holds {list_names(names)}" if names else "is empty"


def list_names(names: Sequence[str]) -> str:
    """Return "a, b, c and 7 others"."""
    listed = names if len(names) == N_LISTED + 1 else names[:N_LISTED]
    others = f" and {len(names) - len(listed)} others" if len(names) > len(listed) else ""
    return ", ".join(listed) + others


def warn_of_other_files(folder: Path, pattern: str, written: set[str]) -> None:
    """Print a warning if `folder` holds files of an earlier prediction.

    These are the files that match `pattern` and are not in `written`.
    """
    if others := sorted({path.name for path in folder.glob(pattern)} - written):
        print(
            f"warning: {folder} holds files of an earlier prediction: {list_names(others)}; delete "
            "them"
        )


def require_paths(*paths: Path, remedy: str = "") -> None:
    """Raise InputError if one of the paths does not exist.

    The message describes the nearest folder that exists, and lists all that is missing in it.
    """
    missing = [path.absolute() for path in paths if not path.exists()]
    if missing:
        for path in (missing[0], *missing[0].parents):
            if path.is_symlink() and not path.exists():
                raise InputError(f"{path}: is a link to a missing file or folder")
        folder = next(parent for parent in missing[0].parents if parent.exists())
        missing = [path for path in missing if path.is_relative_to(folder)]
        common, found = folder, "is not a folder"
        if folder.is_dir():
            common = Path(os.path.commonpath(missing))  # of a single path, itself
            found = describe_folder(folder, missing[0].relative_to(folder).parts[0])
            if common != folder:
                found = f"does not exist; {folder} {found}"
        names = [path.relative_to(common) for path in missing if path != common]
        listed = list_names([f"{name}{'' if name.suffix else '/'}" for name in names])
        raise InputError(f"{common}: {found}{listed and f'; expected {listed}'}{remedy}")


def to_nfc(name: str) -> str:
    """Return a name with composed letters: macOS decomposes ä into a and its dots."""
    return unicodedata.normalize("NFC", name)
