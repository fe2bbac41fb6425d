"""Time every step of training and prediction, and both loops against their upper bounds.

    python src/bench.py recipe=carvana_small                       # on the images of data_dir
    python src/bench.py recipe=carvana_small bench_baselines=true  # also a plain loop, RLE encoders

The upper bound of the training loop is its step on a batch that is on the device already. That of
the prediction loop is the network alone on a GPU; on a CPU it is the sum of all its steps, those
of one thread divided by the number of cores. Prints the numbers and writes output/bench.json.
"""

import json
import time
from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from core import cli

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor
from tqdm import tqdm

from benchmark import baselines
from benchmark.timer import StepTimer
from core import config, provenance
from core.device import autocast, pick_device
from core.errors import InputError
from core.files import atomic_write
from data import datasets, preprocess, rle
from data.augment import Augmenter
from data.cache import make_cache
from data.loaders import collate
from data.sample import Sample
from inference.combine import ImageProbabilities, resize_to_original
from inference.pipeline import map_in_threads
from inference.postprocess import Binarizer
from inference.predictor import (
    BatchForward,
    Prediction,
    keep_mean,
    predict,
    predict_probability_tta,
)
from training.epoch_metrics import peak_memory
from training.trainer import FoldTrainer

N_LOOP_IMAGES, N_STEP_IMAGES = 64, 8  # for the loops, if max_images is not set; for the steps
N_EPOCHS = 3
BINARIZER = Binarizer(0.5, [])
SINGLE_THREAD_STEPS = ["decode image", "resize image", "assemble batch", "encode"]


def time_loading(timer: StepTimer, trainer: FoldTrainer, samples: list[Sample]) -> list[Tensor]:
    """Time the steps from files to a batch on the device; return the batch."""
    settings, cache, batch_size = trainer.settings, trainer.cache, trainer.settings.batch_size
    preprocessing, class_map = preprocess.preprocessing_from(settings), trainer.class_map
    to_target = preprocess.mask_to_soft_target if class_map.is_binary else preprocess.resize_classes
    augment = Augmenter(settings.augmentation, settings.seed, class_map, settings.crop_size)

    def read_image(sample: Sample) -> np.ndarray:
        return datasets.read_sample_image(sample, preprocessing.min_decode_size)

    def resize_image(image: np.ndarray) -> np.ndarray:
        return preprocess.preprocess_image(image, preprocessing)

    images = timer.measure("decode image", read_image, samples)
    masks = timer.measure("decode mask", datasets.read_sample_mask, samples)
    timer.measure("resize image", resize_image, images)
    timer.measure("resize mask", lambda mask: to_target(mask, preprocessing), masks)
    timer.measure("augment", lambda s: augment(*cache.image_and_target(s), 0, s.image_id), samples)
    chosen = (samples * batch_size)[:batch_size]
    pairs = [augment(*cache.image_and_target(s), 0, s.image_id) for s in chosen]
    [batch] = timer.measure("assemble batch", collate, [pairs], batch_size)

    def to_device(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.to(trainer.device) for tensor in tensors]

    return timer.measure("copy to device", to_device, [batch], batch_size)[0]


@torch.inference_mode()
def time_prediction_steps(
    timer: StepTimer, trainer: FoldTrainer, images: Tensor, native_size: tuple[int, int]
) -> None:
    """Time the steps from images on the device, B×3×h×w uint8, to RLE."""
    member = trainer.ema_member()
    predicting = BatchForward([member], trainer.settings, keep_mean)

    def forward(images: Tensor) -> Tensor:
        with autocast(trainer.device, predicting.precision):
            return predict_probability_tta(predicting.networks[0], images, trainer.settings)

    def enlarge(probability: Tensor) -> Tensor:
        return resize_to_original(probability, native_size, member.preprocessing)

    [small] = timer.measure("network with tta", forward, [images], len(images))
    large = timer.measure("enlarge", enlarge, list(small))
    masks = timer.measure("binarize", BINARIZER, large)
    if trainer.class_map.is_binary:
        timer.measure("encode", rle.encode, masks)


def time_training_loop(timer: StepTimer, trainer: FoldTrainer, batch: list[Tensor]) -> float:
    """Return images/s after the first epoch. Epochs alternate with steps on the resident batch, so
    that a drifting clock speed affects both."""
    train_step, rates, step_ms = trainer.state.train_step, [], []
    for _ in range(1 + N_EPOCHS):
        rates.append(trainer.train_epoch(tqdm(disable=True))["images_per_second"])
        trainer.next_epoch()
        timer.measure("training step", lambda b: train_step(*b), [batch], len(batch[0]))
        step_ms.append(timer.ms["training step"])
    timer.ms["training step"] = float(np.mean(step_ms[1:]))
    return float(np.mean(rates[1:]))


def time_prediction_loop(trainer: FoldTrainer, samples: list[Sample]) -> float:
    """Return images/s from files to RLE."""

    def keep(image: ImageProbabilities) -> dict[str, Tensor]:
        return BINARIZER.reduce(image.mean())

    def encode(prediction: Prediction) -> None:
        mask = BINARIZER.finish(prediction.values)
        if trainer.class_map.is_binary:
            rle.encode(mask)

    samples = samples * -(-3 * N_LOOP_IMAGES // len(samples))  # long enough to amortize start-up
    start = time.perf_counter()
    predictions = predict([trainer.ema_member()], samples, trainer.settings, keep)
    deque(map_in_threads(encode, predictions), maxlen=0)
    return len(samples) / (time.perf_counter() - start)


def measure_all(timer: StepTimer, trainer: FoldTrainer, samples: list[Sample]) -> dict[str, float]:
    """Time all steps and both loops; return the loops' images/s, also relative to their bounds."""
    batch = time_loading(timer, trainer, samples[:N_STEP_IMAGES])
    training = time_training_loop(timer, trainer, batch)
    time_prediction_steps(timer, trainer, batch[0], datasets.read_native_size(samples[0]))
    prediction = time_prediction_loop(trainer, samples)
    bound_ms = timer.ms["network with tta"]
    if trainer.device.type == "cpu":
        single = sum(timer.ms.get(name, 0) for name in SINGLE_THREAD_STEPS)
        bound_ms += timer.ms["enlarge"] + timer.ms["binarize"] + single / torch.get_num_threads()
    return {
        "training loop, images/s": training,
        "training loop / its step on a resident batch": training * timer.ms["training step"] / 1000,
        "prediction loop, images/s": prediction,
        "prediction loop / its upper bound": prediction * bound_ms / 1000,
        "peak memory, GiB": peak_memory(trainer.device) / 2**30,
    }


def compare_baselines(
    timer: StepTimer, trainer: FoldTrainer, samples: list[Sample]
) -> dict[str, float]:
    """Return images/s of a plain training loop; time three RLE encoders on true masks."""
    masks = [datasets.read_sample_mask(sample) for sample in samples[:N_STEP_IMAGES]]
    timer.measure("encode true mask", rle.encode, masks)
    timer.measure("encode true mask, kaggle kernel", baselines.rle_encode_kaggle, masks)
    columns = [np.asfortranarray(mask.view(np.uint8)) for mask in masks]
    timer.measure("encode true mask, pycocotools", coco.encode, columns)
    plain = baselines.plain_images_per_second(trainer.settings, samples, trainer.device)
    return {"plain training loop, images/s": plain}


def main(args: list[str]) -> None:
    settings = config.load_settings(args)
    if settings.size is None or settings.cache == "none":
        raise InputError("bench.py needs size=h,w and a cache")
    samples = datasets.load_training_samples(settings)
    if settings.bench_baselines and not samples[0].class_map.is_binary:
        raise InputError("bench_baselines=true needs a data set with one class")
    if not settings.max_images:
        samples = samples[:: max(1, len(samples) // N_LOOP_IMAGES)][:N_LOOP_IMAGES]
    device, timer = pick_device(settings), StepTimer()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    trial = {"epochs": 1 + N_EPOCHS, "lr_schedule": "constant", "ema_decay": 0.9, "init_run": ""}
    with TemporaryDirectory() as folder:  # for snapshots
        trial_settings = replace(settings, output_dir=folder, **trial)
        trainer = FoldTrainer(trial_settings, -1, samples, make_cache(settings, samples), device)
        results = measure_all(timer, trainer, samples)
    if settings.bench_baselines:
        results |= compare_baselines(timer, trainer, samples)
    machine = provenance.describe_machine(device) | {"precision": trainer.state.precision}
    for name, value in [*((f"{step}, ms", ms) for step, ms in timer.ms.items()), *results.items()]:
        print(f"{name:<45} {value:10.3f}")
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value))
    report = {"machine": machine, "settings": asdict(settings), "ms": timer.ms, **results}
    with atomic_write(Path(settings.output_dir) / "bench.json") as tmp_path:
        tmp_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run_main(main)
