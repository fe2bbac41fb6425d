"""Rows → batches, for training and for prediction."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

import prepare
import ranks
import stopping
from augment import Augment
from cache import Cache, Pair, prepare_pair
from config import InputError
from device import pick_device
from ondevice import draws
from pixels import native_size, photograph, truth
from prepare import Input, Size, input_of
from row import Row
from settings import Settings

# ---------------------------------------------------------------- training


class TrainingImages(Dataset):
    """(epoch, i) → uint8 image 3×h×w and target 1×h×w (see cache.Pair), augmented. Where that is
    done on the device: not yet augmented, and the draws; of a cache that stays there (`resident`)
    its place in it, and the draws."""

    def __init__(self, rows: list[Row], settings: Settings, cache: Cache | None, resident: bool):
        self.rows, self.given, self.cache, self.resident = rows, input_of(settings), cache, resident
        self.augment = Augment(settings.augment, settings.seed, rows[0].scheme)
        self.here = settings.augment_on == "cpu"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | int, ...]:
        epoch, i = key
        row = self.rows[i]
        if self.resident:
            numbers = draws(self.augment, epoch, row.image_id, self.cache.size)
            return self.cache.at[row.image_id], numbers
        pair = self.cache.pair(row) if self.cache else prepare_pair(row, self.given, truth(row))
        if self.here:
            return tensors(*self.augment(*pair, epoch, row.image_id))
        return *tensors(*pair), draws(self.augment, epoch, row.image_id, pair[1].shape)


def tensors(image: np.ndarray, target: np.ndarray) -> tuple[Tensor, Tensor]:
    """h×w×3 and h×w uint8 → 3×h×w and 1×h×w."""
    return _channels_first(image), torch.from_numpy(target)[None]


def batch_of(pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    """B images and targets → B×3×h×w and B×1×h×w uint8."""
    images, targets = zip(*(tensors(*pair) for pair in pairs), strict=True)
    return torch.stack(images), torch.stack(targets)


class Shuffle(Sampler):
    """The steps of an epoch as lists of keys (epoch, i), in an order drawn from (seed, epoch).
    Of every step each process has its part, one list after the other, of which accelerate gives
    it its own; where there are fewer images than processes, some have one that does not count.

    The epoch travels in the key, so that worker processes that live on know it. The first `start`
    steps are left out: those that an interrupted epoch has done.
    """

    def __init__(self, count: int, batch: int, seed: int):
        self.count, self.batch, self.seed, self.epoch, self.start = count, batch, seed, 0, 0

    def __len__(self) -> int:
        return -(-self.count // self.batch) * ranks.world()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        for begin in range(self.start * self.batch, self.count, self.batch):
            images = order[begin : begin + self.batch]
            for part in np.array_split(images, ranks.world()):
                yield [(self.epoch, i) for i in (part if len(part) else images[:1]).tolist()]

    def counts(self, step: int) -> tuple[int, int]:
        """How many images count in a step, in this process and in all."""
        images = min(self.batch, self.count - step * self.batch)
        return len(np.array_split(np.arange(images), ranks.world())[ranks.rank()]), images


def training_batches(
    rows: list[Row], settings: Settings, cache: Cache | None, resident: bool = False
) -> DataLoader:
    """Batches of what TrainingImages holds; `.batch_sampler.epoch` names the epoch."""
    workers, on_gpu = _workers(settings, cache is not None), pick_device(settings).type == "cuda"
    return DataLoader(
        TrainingImages(rows, settings, cache, resident),
        batch_sampler=Shuffle(len(rows), settings.batch, settings.seed),
        num_workers=workers,
        pin_memory=on_gpu,
        persistent_workers=workers > 0,
        worker_init_fn=_begin_worker,
    )


# ---------------------------------------------------------------- prediction


@dataclass
class Photograph:
    """An image as `infer` takes it: as each network wants it; its truth, if asked."""

    row: Row
    native: Size
    images: dict[Input, Tensor]  # uint8 3×h×w
    truth: np.ndarray | None  # H×W: bool, or uint8 classes
    fault: str = ""  # why there is no image


class Photographs(Dataset):
    """i → Photograph. Where `skip` is said, one that cannot be read has only a fault."""

    def __init__(
        self,
        rows: list[Row],
        inputs: set[Input],
        with_truth: bool,
        cache: Cache | None,
        skip: bool = False,
    ):
        self.rows, self.inputs, self.with_truth, self.cache = rows, inputs, with_truth, cache
        self.skip = skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> list[Photograph]:
        """A batch: decoded by all cores at once, between two turns of the network, where that
        needs the same cores. Beside it, they would make it wait twice as long."""
        if get_worker_info() is not None:
            return [self[i] for i in indices]
        with ThreadPoolExecutor(_cores()) as pool:
            return list(pool.map(self.__getitem__, indices))

    def __getitem__(self, i: int) -> Photograph:
        try:
            return self.read(self.rows[i])
        except InputError as error:
            if not self.skip:
                raise
            return Photograph(self.rows[i], (0, 0), {}, None, str(error))

    def read(self, row: Row) -> Photograph:
        """The row's Photograph; InputError where a file cannot be read."""
        if self.cache:  # its rows have truths
            image, true = self.cache.pair(row)[0], self.cache.truth(row)
            return Photograph(row, true.shape, {self.cache.given: _channels_first(image)}, true)
        decoded = {enough: photograph(row, enough) for enough in {g.enough for g in self.inputs}}
        native = decoded[None].shape[:2] if None in decoded else native_size(row)
        true = truth(row) if self.with_truth else None
        if true is not None and true.shape != native:
            raise InputError(f"{row.mask}: its size is not that of {row.image.name}")
        images = {
            given: _channels_first(prepare.image(decoded[given.enough], given))
            for given in self.inputs
        }
        return Photograph(row, native, images, true)


def photographs(
    rows: list[Row],
    inputs: set[Input],
    settings: Settings,
    with_truth: bool,
    cache: Cache | None = None,
) -> DataLoader:
    """Lists of `batch` Photographs, in the rows' order; from the cache, if it has what is asked."""
    cache = cache if cache and inputs == {cache.given} and with_truth else None
    return DataLoader(
        Photographs(rows, inputs, with_truth, cache, settings.skip_bad and not with_truth),
        settings.batch,
        collate_fn=list,
        num_workers=_workers(settings, True),
        worker_init_fn=_begin_worker,
    )


def _channels_first(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _workers(settings: Settings, quick: bool) -> int:
    """Processes that load. What is `quick` they would take from the network where it runs on the
    same cores; yet a GPU is too fast to wait for anything."""
    if settings.workers is not None:
        return settings.workers
    return 0 if quick and pick_device(settings).type == "cpu" else _cores()


def _cores() -> int:
    """The cores this process may use, where the system tells (Linux); at most 8."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    return max(1, min(len(mine) // ranks.local_world(), 8))


def _begin_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the processes share the cores already
    stopping.linger()
