"""Rows → batches. Images are decoded once and kept, if they fit, at the size the network sees."""

import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

import prepare
from augment import Augment
from config import InputError
from device import pick_device
from pixels import photograph, truth
from prepare import Input, Size, input_of
from row import Row
from settings import Settings


def load_pair(row: Row, given: Input) -> tuple[np.ndarray, np.ndarray]:
    """Image h×w×3 uint8 RGB, and its target h×w uint8: the mask's coverage in 0…255, or classes."""
    target = prepare.coverage if row.scheme.binary else prepare.classes
    return prepare.image(photograph(row), given), target(truth(row), given)


# ---------------------------------------------------------------- the cache


class Cache:
    """Decoded training images and masks, in memory that worker processes share.

    It is anonymous memory and not /dev/shm, of which a container has only 64 MB.
    """

    def __init__(self, rows: list[Row], given: Input, size: Size):
        self.at = {row.image_id: i for i, row in enumerate(rows)}
        self.images = _shared_memory((len(rows), *size, 3))
        self.masks = _shared_memory((len(rows), *size))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pairs = pool.map(lambda row: load_pair(row, given), rows)
            bar = tqdm(pairs, "decode", len(rows), unit="image", disable=None)
            for i, (image, mask) in enumerate(bar):
                self.images[i], self.masks[i] = image, mask

    def __getitem__(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        i = self.at[row.image_id]
        return self.images[i], self.masks[i]


def _shared_memory(shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), dtype=np.uint8).reshape(shape)


def make_cache(settings: Settings, rows: list[Row]) -> Cache | None:
    """The cache that `cache` asks for; None where images are to be decoded every time."""
    given = input_of(settings)
    size = given.size or photograph(rows[0]).shape[:2]
    needed, free = len(rows) * size[0] * size[1] * 4, psutil.virtual_memory().available
    if settings.cache == "none" or (settings.cache == "auto" and needed > free / 2):
        return None
    if needed > free:
        raise InputError(
            f"cache=ram: needs {needed / 2**30:.0f} GiB and {free / 2**30:.0f} are free; "
            "say cache=none or a smaller size"
        )
    return Cache(rows, given, size)


# ---------------------------------------------------------------- training


class TrainingImages(Dataset):
    """(epoch, i) → uint8 image 3×h×w and target 1×h×w (see load_pair), augmented."""

    def __init__(self, rows: list[Row], settings: Settings, cache: Cache | None):
        self.rows, self.given, self.cache = rows, input_of(settings), cache
        self.augment = Augment(settings.augment, settings.seed, rows[0].scheme)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, i = key
        row = self.rows[i]
        pair = self.cache[row] if self.cache else load_pair(row, self.given)
        image, mask = self.augment(*pair, epoch, row.image_id)
        return _channels_first(image), torch.from_numpy(mask)[None]


class Shuffle(Sampler):
    """The order of an epoch, drawn from (seed, epoch) alone, as keys (epoch, i).

    The epoch travels in the key, so that worker processes that live on know it.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        return ((self.epoch, i) for i in order.tolist())


def training_batches(rows: list[Row], settings: Settings, cache: Cache | None) -> DataLoader:
    """Batches of uint8 B×3×h×w images and B×1×h×w targets; `.sampler.epoch` names the epoch."""
    # From the cache an image is ready sooner than a process could hand it over; a GPU waits less.
    on_cpu = pick_device(settings).type == "cpu"
    fed = cache is not None and on_cpu
    workers = (0 if fed else _cores()) if settings.workers is None else settings.workers
    return DataLoader(
        TrainingImages(rows, settings, cache),
        settings.batch,
        sampler=Shuffle(len(rows), settings.seed),
        num_workers=workers,
        pin_memory=not on_cpu,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
    )


# ---------------------------------------------------------------- prediction


@dataclass
class Photograph:
    """An image as `infer` takes it: as each network wants it; its truth, if asked."""

    row: Row
    native: Size
    images: dict[Input, Tensor]  # uint8 3×h×w
    truth: np.ndarray | None  # H×W: bool, or uint8 classes


class Photographs(Dataset):
    """i → Photograph."""

    def __init__(self, rows: list[Row], inputs: set[Input], with_truth: bool):
        self.rows, self.inputs, self.with_truth = rows, inputs, with_truth

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Photograph:
        row = self.rows[i]
        image = photograph(row)
        true = truth(row) if self.with_truth else None
        if true is not None and true.shape != image.shape[:2]:
            raise InputError(f"{row.mask}: its size is not that of {row.image.name}")
        images = {given: _channels_first(prepare.image(image, given)) for given in self.inputs}
        return Photograph(row, image.shape[:2], images, true)


def photographs(
    rows: list[Row], inputs: set[Input], settings: Settings, with_truth: bool
) -> DataLoader:
    """Lists of `batch` Photographs, in the rows' order."""
    return DataLoader(
        Photographs(rows, inputs, with_truth),
        settings.batch,
        collate_fn=list,
        num_workers=_cores() if settings.workers is None else settings.workers,
        worker_init_fn=_one_thread,
    )


def _channels_first(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _cores() -> int:
    """The cores this process may use, where the system tells (Linux); at most 8."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    return min(len(mine), 8)


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)  # the processes share the cores already
