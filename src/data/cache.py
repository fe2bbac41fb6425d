"""Cache of decoded images and targets at network size, and of masks at native size."""

import mmap
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from core import machine, process_env
from core.errors import InputError
from core.files import acquire_lock, atomic_write, remove_stale_tmp_files
from core.progress import image_progress
from core.settings import Settings
from core.threads import map_in_threads
from data.datasets import read_checked_sizes, read_sample_image, read_sample_mask
from data.fingerprint import files_hash
from data.preprocess import (
    Preprocessing,
    Size,
    preprocess_image,
    preprocess_mask,
    preprocessing_from,
)
from data.sample import Sample

ImageAndTarget = tuple[np.ndarray, np.ndarray]  # h×w×3 RGB and h×w, both uint8


def load_sample(
    sample: Sample, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a sample's image, its target, and its mask at native size.

    The image is h×w×3 uint8 RGB. The target is h×w uint8: coverage 0…255, or class ids. The mask is
    H×W bool, or H×W uint8 class ids.
    """
    image, mask = read_sample_image(sample), read_sample_mask(sample)
    return preprocess_image(image, preprocessing), preprocess_mask(mask, preprocessing), mask


class Cache:
    """Decoded samples, in memory or in a memory-mapped file that worker processes share.

    `pixels` is N×(4·h·w) uint8: for each sample the image, then the target. `packed_masks`
    holds the output of pack_mask for each sample.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocessing: Preprocessing,
        size: Size,
        pixels: np.ndarray,
        packed_masks: Sequence[bytes | np.ndarray],
    ):
        self.index = {sample.image_id: i for i, sample in enumerate(samples)}
        self.preprocessing, self.size = preprocessing, size
        self.pixels, self.packed_masks = pixels, packed_masks

    def image_and_target(self, sample: Sample) -> ImageAndTarget:
        """Return image h×w×3 and target h×w, uint8 views into the cache; do not write to them."""
        record, area = self.pixels[self.index[sample.image_id]], self.size[0] * self.size[1]
        return record[: 3 * area].reshape(*self.size, 3), record[3 * area :].reshape(self.size)

    def mask(self, sample: Sample) -> np.ndarray:
        """Return the sample's mask at native size, as read_sample_mask does."""
        mask = unpack_mask(self.packed_masks[self.index[sample.image_id]])
        return mask.view(bool) if sample.class_map.is_binary else mask


def pack_mask(mask: np.ndarray) -> bytes:
    """Compress an H×W bool or uint8 mask; a mask of 1918×1280 pixels takes 16 kB."""
    return zlib.compress(np.array(mask.shape, np.int32).tobytes() + mask.tobytes(), level=1)


def unpack_mask(packed: bytes | np.ndarray) -> np.ndarray:
    """Return the H×W uint8 mask that pack_mask has compressed."""
    data = np.frombuffer(bytearray(zlib.decompress(packed)), np.uint8)
    return data[8:].reshape(data[:8].view(np.int32))


def decode_all(
    samples: Sequence[Sample], preprocessing: Preprocessing
) -> Iterator[tuple[np.ndarray, bytes]]:
    """Yield the row of Cache.pixels and the packed mask of each sample, with a progress bar."""

    def decode_one(sample: Sample) -> tuple[np.ndarray, bytes]:
        image, target, mask = load_sample(sample, preprocessing)
        return np.concatenate([image.reshape(-1), target.reshape(-1)]), pack_mask(mask)

    decoded = map_in_threads(decode_one, samples, machine.available_cores())
    yield from image_progress(decoded, "decode", len(samples))


# ---------------------------------------------------------------- in memory or on disk


def build_ram_cache(samples: Sequence[Sample], preprocessing: Preprocessing, size: Size) -> Cache:
    """Decode all samples into anonymous shared memory.

    /dev/shm would be too small: a container has only 64 MB of it by default.
    """
    shape = len(samples), 4 * size[0] * size[1]
    pixels = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)
    masks = []
    for i, (record, packed) in enumerate(decode_all(samples, preprocessing)):
        pixels[i] = record
        masks.append(packed)
    return Cache(samples, preprocessing, size, pixels, masks)


def open_disk_cache(
    samples: Sequence[Sample], preprocessing: Preprocessing, size: Size, path: Path
) -> Cache:
    """Open the two files of a cache: pixels in `path` (.npy), and masks in a .npz beside it.

    Writes the files first if they are missing. One process writes while the others wait. Raises
    InputError if a file is cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = acquire_lock(path.with_suffix(".lock"))
    try:
        if not (path.exists() and path.with_suffix(".npz").exists()):
            for suffix in (".npy", ".npz"):
                remove_stale_tmp_files(path.with_suffix(suffix))
            n_bytes = len(samples) * 4 * size[0] * size[1]
            require_space("disk", n_bytes, free_disk_bytes(path.parent))
            write_disk_cache(samples, preprocessing, size, path)
    finally:
        lock.release()
    try:
        with np.load(path.with_suffix(".npz")) as file:
            masks = np.split(file["packed"], file["ends"][:-1])
        pixels = np.load(path, mmap_mode="c")
    except (ValueError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: it or its .npz is damaged ({error}); delete both") from None
    return Cache(samples, preprocessing, size, pixels, masks)


def write_disk_cache(
    samples: Sequence[Sample], preprocessing: Preprocessing, size: Size, path: Path
) -> None:
    """Write both files of a cache.

    The .npy is renamed last. Its existence therefore means that both files are complete.
    """
    shape = len(samples), 4 * size[0] * size[1]
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    masks = []
    with atomic_write(path) as tmp_path:
        with open(tmp_path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for record, packed in decode_all(samples, preprocessing):
                file.write(record)
                masks.append(packed)
        with atomic_write(path.with_suffix(".npz")) as tmp_masks, open(tmp_masks, "wb") as file:
            ends = np.cumsum([len(packed) for packed in masks])
            np.savez(file, packed=np.frombuffer(b"".join(masks), np.uint8), ends=ends)


# ---------------------------------------------------------------- choosing the location


def make_cache(settings: Settings, samples: Sequence[Sample]) -> Cache | None:
    """Build or open the cache that the settings ask for, and print where it is.

    Returns None if images are to be decoded in every epoch. Raises InputError if there is too
    little space, or if cache=ram or cache=disk is set for images of several sizes.
    """
    preprocessing = preprocessing_from(settings)
    size, *others = {preprocessing.size} if preprocessing.size else read_checked_sizes(samples)
    if others and settings.cache in ("ram", "disk"):
        raise InputError(f"cache={settings.cache}: images have several sizes; set size=h,w")
    name = f"{settings.dataset_name}_{size[0]}x{size[1]}_{files_hash(samples, preprocessing)}.npy"
    path = Path(settings.output_dir) / "cache" / name
    n_bytes = len(samples) * size[0] * size[1] * 4
    location = "none" if others else choose_location(settings.cache, n_bytes, path)
    if location == "none":
        print("decoded images: not cached, decoded in every epoch")
        return None
    where = "memory" if location == "ram" else path
    amount = f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**29 else f"{n_bytes / 2**20:.1f} MiB"
    print(f"decoded images: {amount}, cached in {where}")
    if location == "disk":
        return open_disk_cache(samples, preprocessing, size, path)
    require_space("ram", n_bytes, available_ram())
    return build_ram_cache(samples, preprocessing, size)


def choose_location(cache: str, n_bytes: int, path: Path) -> str:
    """Return "ram", "disk" or "none" for the setting `cache`.

    "auto" uses a cache file that exists or is being written. Otherwise it uses a place with more
    than twice the needed space.
    """
    if cache != "auto":
        return cache
    if path.exists() or any(path.parent.glob(f".{path.name}.*.tmp")):
        return "disk"
    available = {"ram": available_ram(), "disk": free_disk_bytes(path.parent)}
    # Several processes share one file, but not their memory.
    order = ("ram", "disk") if process_env.local_world_size() == 1 else ("disk", "ram")
    return next((place for place in order if n_bytes < available[place] / 2), "none")


def require_space(cache: str, n_bytes: int, available: int) -> None:
    """Raise InputError if the location has too little space."""
    if n_bytes > available:
        raise InputError(
            f"cache={cache}: needs {n_bytes / 2**30:.1f} GiB but only {available / 2**30:.1f} are "
            "free; set cache=none or a smaller size"
        )


def available_ram() -> int:
    """Return the bytes of memory that each process on this machine may take."""
    return machine.available_memory() // process_env.local_world_size()


def free_disk_bytes(folder: Path) -> int:
    """Return the free bytes of the file system on which `folder` is or will be created."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free
