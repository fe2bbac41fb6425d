"""Images decoded once: at the size that the network sees, and of their labels every pixel."""

import hashlib
import mmap
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from filelock import FileLock
from tqdm import tqdm

from core import process_env
from core.errors import InputError
from core.files import atomic_write, remove_stale_tmp_files
from core.settings import Settings
from data import preprocess
from data.image_io import check_sizes, read_sample_image, read_sample_mask
from data.preprocess import Preprocessing, Size, preprocessing_from
from data.sample import Sample

ImageAndTarget = tuple[np.ndarray, np.ndarray]  # image h×w×3 uint8 RGB, target h×w uint8


def load_image_and_target(row: Sample, given: Preprocessing, label: np.ndarray) -> ImageAndTarget:
    """Image, and its target: the mask's coverage in 0…255, or classes."""
    target = (
        preprocess.mask_to_soft_target if row.class_map.is_binary else preprocess.resize_classes
    )
    return preprocess.preprocess_image(
        read_sample_image(row, given.min_decode_size), given
    ), target(label, given)


class Cache:
    """What was decoded of N rows, in memory or in a mapped file; worker processes share it."""

    def __init__(self, rows: list[Sample], given: Preprocessing, size: Size, pixels: np.ndarray):
        self.at = {row.image_id: i for i, row in enumerate(rows)}
        self.preprocessing, self.size = given, size
        self.pixels = pixels  # N×(4·h·w) uint8: of each row the image, then the target
        self.labels: dict[str, np.ndarray] = {}  # see join()

    def pair(self, row: Sample) -> ImageAndTarget:
        """The row's image and target; not to be written to."""
        record, area = self.pixels[self.at[row.image_id]], self.size[0] * self.size[1]
        return record[: 3 * area].reshape(*self.size, 3), record[3 * area :].reshape(self.size)

    def truth(self, row: Sample) -> np.ndarray:
        """The row's label at the image's own size, H×W bool or uint8."""
        i, kept = self.at[row.image_id], self.labels
        runs = slice(*kept["ends"][i : i + 2])
        label = np.repeat(kept["values"][runs], kept["lengths"][runs])
        label = label.reshape(kept["shapes"][i])
        return label.view(bool) if row.class_map.is_binary else label


def encode_runs(label: np.ndarray) -> dict[str, np.ndarray]:
    """H×W bool or uint8 → its runs of equal pixels, a few kB: their values and lengths."""
    flat = label.reshape(-1).view(np.uint8)
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    lengths = np.diff(starts, append=flat.size).astype(np.int32)
    return {"values": flat[starts], "lengths": lengths, "shapes": np.array([label.shape])}


def concat_runs(packed: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """N packed labels together, and at which run each begins and ends (N+1)."""
    joined = {name: np.concatenate([each[name] for each in packed]) for name in packed[0]}
    return joined | {"ends": np.cumsum([0, *(len(each["values"]) for each in packed)])}


def decode_all(
    rows: list[Sample], given: Preprocessing
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The record and the packed label of each row, in order, behind a bar."""

    def one(row: Sample) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        label = read_sample_mask(row)
        pair = load_image_and_target(row, given, label)
        return np.concatenate([part.reshape(-1) for part in pair]), encode_runs(label)

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(None, "decode", len(rows), unit="image", disable=None) as bar,
    ):
        for start in range(0, len(rows), 64):  # not all at once: a disk may be slower than we
            for found in pool.map(one, rows[start : start + 64]):
                bar.update()
                yield found


# ---------------------------------------------------------------- where it is kept


def build_ram_cache(rows: list[Sample], given: Preprocessing, size: Size) -> Cache:
    """A cache in anonymous memory, and not in /dev/shm, of which a container has only 64 MB."""
    shape = len(rows), 4 * size[0] * size[1]
    pixels = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)
    cache, labels = Cache(rows, given, size, pixels), []
    for i, (record, label) in enumerate(decode_all(rows, given)):
        pixels[i] = record
        labels.append(label)
    cache.labels = concat_runs(labels)
    return cache


def open_disk_cache(rows: list[Sample], given: Preprocessing, size: Size, path: Path) -> Cache:
    """A cache in `path` (pixels, .npy) and beside it (labels, .npz), which are made if they are
    not there. One process makes them, others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            remove_stale_tmp_files(path.parent, path.stem)
            write_disk_cache(rows, given, size, path)
    cache = Cache(rows, given, size, np.load(path, mmap_mode="c"))
    with np.load(path.with_suffix(".npz")) as file:
        cache.labels = dict(file)
    return cache


def write_disk_cache(rows: list[Sample], given: Preprocessing, size: Size, path: Path) -> None:
    """Both files, as a stream; the pixels come last: where they are, both are whole."""
    header = {"descr": "|u1", "fortran_order": False}
    header["shape"] = (len(rows), 4 * size[0] * size[1])
    labels = []
    with atomic_write(path) as partial:
        with open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for record, label in decode_all(rows, given):
                file.write(record)
                labels.append(label)
        with atomic_write(path.with_suffix(".npz")) as beside, open(beside, "wb") as file:
            np.savez(file, **concat_runs(labels))


def cache_key(rows: list[Sample], given: Preprocessing) -> str:
    """Tells what is decoded how: files by name, size and time, and what is made of them."""
    lines = [repr((given, rows[0].dataset_format, rows[0].class_map))]
    for row in rows:
        for path in filter(None, (row.image, row.mask)):
            stat = path.stat() if path.exists() else path.lstat()  # a link to nowhere
            lines.append(f"{path.name},{stat.st_size},{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def make_cache(settings: Settings, rows: list[Sample]) -> Cache | None:
    """The cache that `cache` asks for; None where images are to be decoded every time. Says so."""
    given = preprocessing_from(settings)
    sizes = {given.size} if given.size else check_sizes(rows)
    if len(sizes) > 1 and settings.cache in ("ram", "disk"):
        raise InputError(f"cache={settings.cache}: images of several sizes; say size=[h,w]")
    size = min(sizes)
    name = f"{settings.dataset_name}_{size[0]}x{size[1]}_{cache_key(rows, given)}.npy"
    path = Path(settings.output_dir) / "cache" / name
    needed = len(rows) * size[0] * size[1] * 4
    each = psutil.virtual_memory().available // process_env.local_world_size()
    free = {"ram": each, "disk": free_disk_bytes(path.parent)}
    place = "none" if len(sizes) > 1 else settings.cache
    if place == "auto":
        places = ("ram", "disk") if process_env.local_world_size() == 1 else ("disk", "ram")
        roomy = [where for where in places if needed < free[where] / 2]
        place = "disk" if path.exists() else next(iter(roomy), "none")
    if place != "none" and needed > free[place] and not path.exists():
        raise InputError(
            f"cache={place}: needs {needed / 2**30:.1f} GiB and {free[place] / 2**30:.1f} are "
            "free; say cache=none or a smaller size"
        )
    told = {"ram": "in memory", "disk": f"in {path}", "none": "nowhere: every epoch decodes again"}
    print(f"decoded images, {needed / 2**30:.1f} GiB, are kept {told[place]}")
    if place == "none":
        return None
    return (
        build_ram_cache(rows, given, size)
        if place == "ram"
        else open_disk_cache(rows, given, size, path)
    )


def free_disk_bytes(folder: Path) -> int:
    """Bytes free where the folder is, or will be."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(there).free
