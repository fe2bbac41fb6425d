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

from core import process_env, signals
from core.device import pick_device
from core.errors import InputError
from core.settings import Settings
from data import preprocess
from data.augment import Augmenter
from data.cache import Cache, ImageAndTarget, load_image_and_target
from data.image_io import read_native_size, read_sample_image, read_sample_mask
from data.preprocess import Preprocessing, Size, preprocessing_from
from data.sample import Sample

# ---------------------------------------------------------------- training


class TrainDataset(Dataset):
    """(epoch, i) → uint8 image 3×h×w and target 1×h×w (see cache.Pair), augmented. Where that is
    done on the device: not yet augmented, and the draws; of a cache that stays there (`resident`)
    its place in it, and the draws."""

    def __init__(self, rows: list[Sample], settings: Settings, cache: Cache | None, resident: bool):
        self.samples, self.preprocessing, self.cache, self.resident = (
            rows,
            preprocessing_from(settings),
            cache,
            resident,
        )
        self.augment = Augmenter(settings.augmentation, settings.seed, rows[0].class_map)
        self.here = settings.augment_on == "cpu"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | int, ...]:
        epoch, i = key
        row = self.samples[i]
        if self.resident:
            numbers = draws(self.augment, epoch, row.image_id, self.cache.size)
            return self.cache.at[row.image_id], numbers
        pair = (
            self.cache.pair(row)
            if self.cache
            else load_image_and_target(row, self.preprocessing, read_sample_mask(row))
        )
        if self.here:
            return to_tensors(*self.augment(*pair, epoch, row.image_id))
        return *to_tensors(*pair), draws(self.augment, epoch, row.image_id, pair[1].shape)


def to_tensors(image: np.ndarray, target: np.ndarray) -> tuple[Tensor, Tensor]:
    """h×w×3 and h×w uint8 → 3×h×w and 1×h×w."""
    return _channels_first(image), torch.from_numpy(target)[None]


def collate(pairs: list[ImageAndTarget]) -> tuple[Tensor, Tensor]:
    """B images and targets → B×3×h×w and B×1×h×w uint8."""
    images, targets = zip(*(to_tensors(*pair) for pair in pairs), strict=True)
    return torch.stack(images), torch.stack(targets)


class EpochBatchSampler(Sampler):
    """The steps of an epoch as lists of keys (epoch, i), in an order drawn from (seed, epoch).
    Of every step each process has its part, one list after the other, of which accelerate gives
    it its own; where there are fewer images than processes, some have one that does not count.

    The epoch travels in the key, so that worker processes that live on know it. The first `start`
    steps are left out: those that an interrupted epoch has done.
    """

    def __init__(self, count: int, batch: int, seed: int):
        self.count, self.batch, self.seed, self.epoch, self.start = count, batch, seed, 0, 0

    def __len__(self) -> int:
        return -(-self.count // self.batch) * process_env.world_size()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        for begin in range(self.start * self.batch, self.count, self.batch):
            images = order[begin : begin + self.batch]
            for part in np.array_split(images, process_env.world_size()):
                yield [(self.epoch, i) for i in (part if len(part) else images[:1]).tolist()]

    def counts(self, step: int) -> tuple[int, int]:
        """How many images count in a step, in this process and in all."""
        images = min(self.batch, self.count - step * self.batch)
        return len(
            np.array_split(np.arange(images), process_env.world_size())[process_env.rank()]
        ), images


def train_loader(
    rows: list[Sample], settings: Settings, cache: Cache | None, resident: bool = False
) -> DataLoader:
    """Batches of what TrainingImages holds; `.batch_sampler.epoch` names the epoch."""
    workers, on_gpu = (
        _num_workers(settings, cache is not None),
        pick_device(settings).type == "cuda",
    )
    return DataLoader(
        TrainDataset(rows, settings, cache, resident),
        batch_sampler=EpochBatchSampler(len(rows), settings.batch_size, settings.seed),
        num_workers=workers,
        pin_memory=on_gpu,
        persistent_workers=workers > 0,
        worker_init_fn=_init_worker,
    )


# ---------------------------------------------------------------- prediction


@dataclass
class LoadedSample:
    """An image as `infer` takes it: as each network wants it; its truth, if asked."""

    sample: Sample
    native_size: Size
    images: dict[Preprocessing, Tensor]  # uint8 3×h×w
    truth: np.ndarray | None  # H×W: bool, or uint8 classes
    error: str = ""  # why there is no image


class PredictionDataset(Dataset):
    """i → Photograph. Where `skip` is said, one that cannot be read has only a fault."""

    def __init__(
        self,
        rows: list[Sample],
        inputs: set[Preprocessing],
        with_truth: bool,
        cache: Cache | None,
        skip: bool = False,
    ):
        self.samples, self.inputs, self.with_truth, self.cache = rows, inputs, with_truth, cache
        self.skip = skip

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> list[LoadedSample]:
        """A batch: decoded by all cores at once, between two turns of the network, where that
        needs the same cores. Beside it, they would make it wait twice as long."""
        if get_worker_info() is not None:
            return [self[i] for i in indices]
        with ThreadPoolExecutor(_num_cores()) as pool:
            return list(pool.map(self.__getitem__, indices))

    def __getitem__(self, i: int) -> LoadedSample:
        try:
            return self.read(self.samples[i])
        except InputError as error:
            if not self.skip:
                raise
            return LoadedSample(self.samples[i], (0, 0), {}, None, str(error))

    def read(self, row: Sample) -> LoadedSample:
        """The row's Photograph; InputError where a file cannot be read."""
        if self.cache:  # its rows have truths
            image, true = self.cache.pair(row)[0], self.cache.truth(row)
            return LoadedSample(
                row, true.shape, {self.cache.preprocessing: _channels_first(image)}, true
            )
        decoded = {
            enough: read_sample_image(row, enough)
            for enough in {g.min_decode_size for g in self.inputs}
        }
        native = decoded[None].shape[:2] if None in decoded else read_native_size(row)
        true = read_sample_mask(row) if self.with_truth else None
        if true is not None and true.shape != native:
            raise InputError(f"{row.mask}: its size is not that of {row.image.name}")
        images = {
            given: _channels_first(
                preprocess.preprocess_image(decoded[given.min_decode_size], given)
            )
            for given in self.inputs
        }
        return LoadedSample(row, native, images, true)


def prediction_loader(
    rows: list[Sample],
    inputs: set[Preprocessing],
    settings: Settings,
    with_truth: bool,
    cache: Cache | None = None,
) -> DataLoader:
    """Lists of `batch` Photographs, in the rows' order; from the cache, if it has what is asked."""
    cache = cache if cache and inputs == {cache.preprocessing} and with_truth else None
    return DataLoader(
        PredictionDataset(
            rows, inputs, with_truth, cache, settings.skip_unreadable and not with_truth
        ),
        settings.batch_size,
        collate_fn=list,
        num_workers=_num_workers(settings, True),
        worker_init_fn=_init_worker,
    )


def _channels_first(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _num_workers(settings: Settings, quick: bool) -> int:
    """Processes that load. What is `quick` they would take from the network where it runs on the
    same cores; yet a GPU is too fast to wait for anything."""
    if settings.num_workers is not None:
        return settings.num_workers
    return 0 if quick and pick_device(settings).type == "cpu" else _num_cores()


def _num_cores() -> int:
    """The cores this process may use, where the system tells (Linux); at most 8."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    return max(1, min(len(mine) // process_env.local_world_size(), 8))


def _init_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the processes share the cores already
    signals.ignore_signals_in_worker()
