"""Times of the individual steps of training and prediction."""

import torch
from torch import Tensor

from benchmark.timer import StepTimer
from data import datasets, preprocess, rle
from data.loaders import collate
from data.sample import Sample
from inference.combine import resize_to_native
from inference.postprocess import Binarizer
from inference.predictor import BatchPredictor, keep_mean
from training.trainer import FoldTrainer

BINARIZER = Binarizer(0.5, [])


def time_loading(timer: StepTimer, trainer: FoldTrainer, samples: list[Sample]) -> list[Tensor]:
    """Time the steps from files to a training batch on the device; return the batch."""
    settings, cache, batch_size = trainer.settings, trainer.cache, trainer.settings.batch_size
    preprocessing = preprocess.preprocessing_from(settings)
    augment = trainer.loader.dataset.augment

    images = timer.measure("decode image", datasets.read_sample_image, samples)
    masks = timer.measure("decode mask", datasets.read_sample_mask, samples)
    timer.measure("resize image", lambda i: preprocess.preprocess_image(i, preprocessing), images)
    timer.measure("resize mask", lambda m: preprocess.preprocess_mask(m, preprocessing), masks)
    timer.measure("augment", lambda s: augment(*cache.image_and_target(s), 0, s.image_id), samples)
    chosen = (samples * batch_size)[:batch_size]
    pairs = [augment(*cache.image_and_target(s), 0, s.image_id) for s in chosen]
    [batch] = timer.measure("assemble batch", collate, [pairs], batch_size)

    def to_device(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.to(trainer.device) for tensor in tensors]

    return timer.measure("copy to device", to_device, [batch], batch_size)[0]


@torch.inference_mode()
def time_prediction(timer: StepTimer, trainer: FoldTrainer, samples: list[Sample]) -> float:
    """Time the steps of prediction, from a batch of images on the device to RLE.

    Returns the milliseconds per image of the steps that run on the device.
    """
    settings = trainer.settings
    chosen = (samples * settings.batch_size)[: settings.batch_size]
    native_size = datasets.read_native_size(samples[0])
    images = collate([trainer.cache.image_and_target(s) for s in chosen])[0].to(trainer.device)
    member = trainer.ema_member()
    predictor = BatchPredictor([member], settings, keep_mean)
    predictor.tune()  # as when predict.py predicts all test images

    def forward(images: Tensor) -> Tensor:
        [probability], _ = predictor.run_members({member.preprocessing: images})
        return probability

    def enlarge(probability: Tensor) -> Tensor:
        return resize_to_native(probability, native_size, member.preprocessing)

    [small] = timer.measure("network with tta", forward, [images], len(images))
    large = timer.measure("enlarge", enlarge, list(small))
    masks = timer.measure("binarize", BINARIZER.to_mask, large)
    if trainer.class_map.is_binary:
        masks = [BINARIZER.postprocess(mask.cpu()) for mask in masks]
        timer.measure("encode", rle.encode, masks)
    return sum(timer.ms[name] for name in ("network with tta", "enlarge", "binarize"))
