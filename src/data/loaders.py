"""Batches of samples, for training and for prediction."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from core import machine, process_env
from core.device import pick_device
from core.errors import InputError
from core.settings import Settings
from data.cache import Cache, ImageAndTarget, load_sample
from data.datasets import SKIP_HINT, read_native_size, read_sample_image, read_sample_mask
from data.formats.carvana import IMAGE_SIZE
from data.preprocess import Preprocessing, Size, preprocess_image, preprocessing_from
from data.sample import Sample
from data.sampler import EpochBatchSampler
from data.workers import choose_num_workers, worker_options

# ---------------------------------------------------------------- training


class TrainDataset(Dataset):
    """Maps (epoch, i) to the augmented image h×w×3 and target h×w of sample i, both uint8."""

    def __init__(self, samples: Sequence[Sample], settings: Settings, cache: Cache | None):
        from data.augment import Augmenter  # imported here, as it takes half a second

        self.samples, self.cache = samples, cache
        self.preprocessing = preprocessing_from(settings)
        class_map, crop_size = samples[0].class_map, settings.crop_size
        self.augment = Augmenter(settings.augmentation, settings.seed, class_map, crop_size)

    def __getitem__(self, key: tuple[int, int]) -> ImageAndTarget:
        epoch, i = key
        sample = self.samples[i]
        if self.cache:
            image, target = self.cache.image_and_target(sample)
        else:
            image, target, _ = load_sample(sample, self.preprocessing)
        return self.augment(image, target, epoch, sample.image_id)


def collate(pairs: Sequence[ImageAndTarget]) -> list[Tensor]:
    """Stack B images h×w×3 and targets h×w to B×3×h×w and B×1×h×w, uint8."""
    images, targets = zip(*pairs, strict=True)
    return [stack_images(images), default_collate([target[None] for target in targets])]


def train_loader(samples: Sequence[Sample], settings: Settings, cache: Cache | None) -> DataLoader:
    """Return a loader of uint8 batches: images B×3×h×w and targets B×1×h×w.

    Set `epoch` and `start` of its `batch_sampler` before each epoch.
    """
    height, width = settings.crop_size or network_size(samples[0], preprocessing_from(settings))
    sampler = EpochBatchSampler(len(samples), settings.batch_size, settings.seed)
    local_batch_size = sampler.step_size // process_env.world_size()
    batch_bytes = local_batch_size * 4 * height * width  # three of the image, one of the target
    workers = choose_num_workers(settings, batch_bytes, is_cheap=cache is not None)
    return DataLoader(
        TrainDataset(samples, settings, cache),
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=pick_device(settings).type == "cuda",
        persistent_workers=workers > 0,
        **worker_options(workers),
    )


# ---------------------------------------------------------------- prediction


@dataclass
class LoadedSample:
    """A sample with the size of its image, and with its mask if requested."""

    sample: Sample | None  # None: an array of pixels
    native_size: Size
    mask: np.ndarray | None  # H×W bool, or uint8 class ids
    error: str = ""  # why the image could not be read; its sub-batch has no images


@dataclass
class SubBatch:
    """Consecutive samples of a batch whose images have the same shape.

    `images` is empty if the samples could not be read.
    """

    samples: list[LoadedSample]
    images: dict[Preprocessing, Tensor]  # B×3×h×w uint8, channels-last in memory

    # A worker process sends the masks as one tensor, which is in shared memory, not through a pipe:
    # if the worker were killed halfway, reading the rest from the pipe would never end.

    def __getstate__(self) -> dict[str, Any]:
        masks = [sample.mask.ravel() for sample in self.samples if sample.mask is not None]
        packed = torch.from_numpy(np.concatenate(masks)) if masks else None
        samples = [replace(sample, mask=None) for sample in self.samples]
        return {"samples": samples, "images": self.images, "masks": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.samples, self.images, packed = state["samples"], state["images"], state["masks"]
        if packed is not None:  # then all samples have a mask
            areas = [prod(sample.native_size) for sample in self.samples]
            for sample, mask in zip(self.samples, packed.split(areas), strict=True):
                sample.mask = mask.numpy().reshape(sample.native_size)

    def pin_memory(self) -> Self:
        """Move images and masks to pinned memory; DataLoader calls this in a thread."""
        for sample in self.samples:
            if sample.mask is not None:
                sample.mask = torch.from_numpy(sample.mask).pin_memory().numpy()
        self.images = {key: images.pin_memory() for key, images in self.images.items()}
        return self


Images = dict[Preprocessing, np.ndarray]  # one image, h×w×3 uint8, preprocessed for each network


def collate_samples(loaded: Sequence[tuple[LoadedSample, Images]]) -> list[SubBatch]:
    """Stack the images of consecutive samples whose images have the same shapes."""

    def shapes(pair: tuple[LoadedSample, Images]) -> list[tuple[int, ...]]:
        return [image.shape for image in pair[1].values()]

    batch = []
    for _, pairs in groupby(loaded, shapes):
        samples, dicts = zip(*pairs, strict=True)
        stacked = {key: stack_images([images[key] for images in dicts]) for key in dicts[0]}
        batch.append(SubBatch(list(samples), stacked))
    return batch


def stack_images(images: Sequence[np.ndarray]) -> Tensor:
    """Stack images h×w×3 to a tensor B×3×h×w, channels-last in memory.

    A worker process stacks them directly into shared memory.
    """
    # Copies only arrays that torch cannot use.
    arrays = [np.require(image, requirements=["C_CONTIGUOUS", "WRITEABLE"]) for image in images]
    return default_collate(arrays).permute(0, 3, 1, 2)


@dataclass
class PredictionDataset(Dataset):
    """Maps i to the LoadedSample and the images of sample i."""

    samples: Sequence[Sample]
    preprocessings: set[Preprocessing]
    with_mask: bool
    cache: Cache | None
    skip_unreadable: bool
    n_threads: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[LoadedSample, Images]:
        try:
            return self.read(self.samples[i])
        except InputError as error:
            if not self.skip_unreadable:
                hint = "" if self.with_mask else SKIP_HINT
                raise InputError(f"{error}{hint}") from None
            return LoadedSample(self.samples[i], (0, 0), None, str(error)), {}

    def __getitems__(self, indices: list[int]) -> list[tuple[LoadedSample, Images]]:
        """Return the samples of a batch, read in threads.

        DataLoader calls this instead of __getitem__().
        """
        with ThreadPoolExecutor(self.n_threads) as pool:
            return list(pool.map(self.__getitem__, indices))

    def read(self, sample: Sample) -> tuple[LoadedSample, Images]:
        """Read a sample from the cache or its files.

        Raises InputError if a file is unreadable, or if mask and image differ in size.
        """
        if self.cache:
            image, mask = self.cache.image_and_target(sample)[0], self.cache.mask(sample)
            return LoadedSample(sample, mask.shape, mask), {self.cache.preprocessing: image}
        image = read_sample_image(sample)
        mask = read_sample_mask(sample) if self.with_mask else None
        if mask is not None and mask.shape != image.shape[:2]:
            raise InputError(f"{sample.mask}: its size is not that of {sample.image.name}")
        images = {p: preprocess_image(image, p) for p in self.preprocessings}
        return LoadedSample(sample, image.shape[:2], mask), images


def prediction_loader(
    samples: Sequence[Sample],
    preprocessings: set[Preprocessing],
    settings: Settings,
    with_mask: bool,
    cache: Cache | None = None,
) -> DataLoader:
    """Return a loader whose batches are lists of SubBatches, in the order of `samples`.

    A batch has up to `batch_size` samples. With a `cache`, `preprocessings` must hold only the
    preprocessing of the cache.
    """
    workers = 0  # passing a cached image to this process takes longer than reading it
    if samples and cache is None:  # the share of a rank may be empty
        n_bytes = sum(3 * prod(network_size(samples[0], p)) for p in preprocessings)
        if with_mask:
            n_bytes += prod(network_size(samples[0], Preprocessing(None)))
        batch_bytes = settings.batch_size * n_bytes
        workers = choose_num_workers(settings, batch_bytes, is_cheap=True)
    dataset = PredictionDataset(
        samples,
        preprocessings,
        with_mask,
        cache,
        skip_unreadable=settings.skip_unreadable and not with_mask,
        n_threads=1 if workers else machine.cores_per_process(),
    )
    return DataLoader(
        dataset,
        settings.batch_size,
        collate_fn=collate_samples,
        pin_memory=pick_device(settings).type == "cuda",
        **worker_options(workers),
    )


def network_size(sample: Sample, preprocessing: Preprocessing) -> Size:
    """Return the network size of a sample.

    At native size this is the size of the image. If the image is unreadable, returns the size of
    the competition's images; the error is reported when the image is loaded.
    """
    try:
        return preprocessing.size or read_native_size(sample)
    except InputError:
        return IMAGE_SIZE
