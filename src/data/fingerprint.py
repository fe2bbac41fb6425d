"""Identity of a dataset and of files: scores are compared, and caches used, only on equal data."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import InputError
from core.files import file_sha256
from core.threads import map_in_threads
from data.image_files import IMAGE_SUFFIXES
from data.preprocess import VERSION, Preprocessing
from data.sample import Sample


def dataset_fingerprint(samples: Sequence[Sample]) -> str:
    """Return the fingerprint "<h>-<m>-<i>" of a dataset.

    h is a hash of image names, groups, folds, sizes of mask files, and classes. m is a hash of the
    content of the mask files. i is a hash of the names of the image files, their sizes, and some of
    their bytes if they are uncompressed. Scores are comparable only if h and m are equal. A run
    trains all folds on equal h, m and i.
    """
    lines = sorted(f"{s.image_id},{s.group},{s.fold},{mask_identity(s.mask)}" for s in samples)
    classes = samples[0].class_map
    if classes.value_to_class:
        # Keep the names of the first release, where ClassMap was Scheme: its runs stay comparable.
        lines.append(
            f"Scheme(names={classes.names}, colours={classes.colors}, "
            f"table={classes.value_to_class}, unsure={classes.max_color_distance})"
        )
    if classes.mask_threshold:
        lines.append(f"mask_threshold={classes.mask_threshold}")
    masks = sorted({sample.mask for sample in samples})
    hashes = dict(zip(masks, map_in_threads(file_sha256, masks), strict=True))
    truth = sorted((sample.image_id, hashes[sample.mask]) for sample in samples)
    images = sorted((sample.image.name, image_identity(sample.image)) for sample in samples)
    return "-".join([short_hash("\n".join(lines), 12), short_hash(truth), short_hash(images)])


def short_hash(value: Any, n_digits: int = 6) -> str:
    """Return the first hex digits of the SHA-256 of str(value)."""
    return hashlib.sha256(str(value).encode()).hexdigest()[:n_digits]


def is_same_dataset(stored: str | None, fingerprint: str) -> bool:
    """Whether a stored fingerprint belongs to the dataset with this fingerprint.

    Earlier versions stored only the first part, <h>.
    """
    return stored in (fingerprint, fingerprint.partition("-")[0])


def combine_fingerprints(stored: Sequence[str]) -> str:
    """Return the "<h>-<m>" that the folds of a run share.

    If the folds differ, returns all of their "<h>-<m>", separated by spaces.
    """
    parts = ["-".join(fingerprint.split("-")[:2]) for fingerprint in stored]
    return " ".join(sorted({complete_fingerprint(part, parts) for part in parts}))


def complete_fingerprint(part: str, known: Sequence[str]) -> str:
    """Return the first known fingerprint that begins with `part`, or `part` if there is none.

    Earlier versions stored only the part <h>.
    """
    return next((f for f in known if f.startswith(f"{part}-")), part)


def mask_identity(path: Path) -> str:
    """Return the size of a mask's file, or its hash if the size says too little.

    The hash is used where other masks may have files of the same size: in uncompressed formats, and
    for a file that holds all masks, such as a csv.
    """
    size = file_size(path)
    return str(size) if is_compressed(path) else file_sha256(path)


def image_identity(path: Path) -> int | str:
    """Return the size of an image's file; if it is uncompressed, with a hash of some bytes."""
    size = file_size(path)
    return size if is_compressed(path) else f"{size},{short_hash(read_probe(path, size))}"


def is_compressed(path: Path) -> bool:
    """Whether two image files of this type and of the same size are unlikely to differ."""
    return path.suffix.lower() in {*IMAGE_SUFFIXES} - {".bmp", ".tif", ".tiff"}


def file_size(path: Path) -> int:
    """Return the size of a file in bytes. Raises InputError if there is no such file."""
    if not path.exists():
        raise InputError(f"{path}: is missing, or a link to a missing file")
    return path.stat().st_size


def files_hash(samples: Sequence[Sample], preprocessing: Preprocessing | None = None) -> str:
    """Return a hash of the files and of their preprocessing.

    A file is identified by name, size, modification time and some of its bytes: files with the same
    name, size and time in different folders are different ones, and a folder may be moved, or
    unpacked again from the same archive.
    """
    lines = [repr((VERSION, preprocessing, samples[0].dataset_format, samples[0].class_map))]
    for sample in samples:
        lines += map(file_identity, filter(None, (sample.image, sample.mask)))
    return short_hash("\n".join(lines), 12)


def file_identity(path: Path) -> str:
    """Return the name, size, modification time and a hash of some bytes of a file."""
    stat = path.stat() if path.exists() else path.lstat()  # lstat: a dangling link
    probe = hashlib.sha256(read_probe(path, stat.st_size)).hexdigest()
    return f"{path.name},{stat.st_size},{stat.st_mtime_ns},{probe}"


def read_probe(path: Path, n_bytes: int) -> bytes:
    """Return four blocks of 4 KiB of a file of `n_bytes` bytes, spread evenly; or the whole file.

    Returns no bytes if the file is unreadable; the error is reported when the image is loaded.
    """
    count, block_size = 4, 4096
    try:
        with open(path, "rb", buffering=0) as file:
            if n_bytes <= count * block_size:
                return file.read()
            blocks = []
            for i in range(count):
                file.seek((i + 1) * (n_bytes - block_size) // (count + 1))
                blocks.append(file.read(block_size))
            return b"".join(blocks)
    except OSError:
        return b""
