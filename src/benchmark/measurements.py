"""Measurements of bench.py: the speed of a recipe."""

import math
from contextlib import closing
from dataclasses import asdict, replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmark import baselines, timer
from benchmark.steps import BINARIZER, time_loading, time_prediction
from benchmark.timer import LoopTimer, StepTimer
from core.device import explain_out_of_memory, free_memory
from core.errors import InputError
from core.settings import Settings
from core.threads import map_in_threads
from data import rle
from data.cache import make_cache
from data.sample import Sample
from inference.combine import ImageProbabilities
from inference.predictor import TUNE_MIN_PASSES, Prediction, predict
from models.build import build_model
from training.epoch_metrics import peak_memory
from training.trainer import FoldTrainer

N_STEP_IMAGES = 8
# Images are repeated up to this number: prediction is then tuned, and loops rarely restart.
MIN_LOOP_IMAGES = TUNE_MIN_PASSES


def make_trial(settings: Settings, folder: str) -> Settings:
    """Return settings of a single-stage training from random weights, which has the same speed.

    It saves no snapshots, and its learning rate is constant.
    """
    changes = {"stages": [], "init_run": "", "encoder_weights": "none"}
    changes |= {"lr_schedule": "constant", "snapshot_seconds": 1e9}
    return replace(settings, output_dir=folder, **changes)


def measure_recipe(settings: Settings, samples: list[Sample], n_training: int) -> dict[str, Any]:
    """Measure training and prediction of a recipe on `samples`.

    Training is compiled if the recipe's training on `n_training` images would be. `training_busy`
    and `prediction_busy` are the time per image of the steps alone (on data that is already on the
    device), divided by the time per image of the loop.
    """
    steps, repeated = StepTimer(), samples * math.ceil(MIN_LOOP_IMAGES / len(samples))
    with TemporaryDirectory() as folder, explain_out_of_memory(settings):
        trial = make_trial(settings, folder)
        # Make as many updates as the recipe: their number decides whether training is compiled.
        trial.epochs = max(1, round(settings.epochs * n_training / len(repeated)))
        cache = make_cache(trial, samples)
        if cache is None:
            raise InputError(
                f"cache={trial.cache}: bench.py needs room for decoded images; set cache=ram, "
                "cache=disk or a smaller size"
            )
        trainer = FoldTrainer(trial, -1, repeated, cache)
        batch = time_loading(steps, trainer, samples[:N_STEP_IMAGES])
        training = measure_training(steps, trainer, batch)
        device = trainer.device
        peak_bytes = peak_memory(device)
        prediction_ms = time_prediction(steps, trainer, samples[:N_STEP_IMAGES])
        prediction = measure_prediction(trainer, repeated)
        precision, is_binary = trainer.state.precision, trainer.class_map.is_binary
        del trainer, batch
        free_memory(device)
        plain = baselines.plain_images_per_second(trial, repeated, device) if is_binary else None
        free_memory(device)
    tflop = count_training_flops(settings, len(samples[0].class_map.names)) / 1e12
    return {
        "settings": asdict(settings),
        "precision": precision,
        "ms": steps.ms,
        "training_images_per_second": training,
        "training_busy": training * steps.ms["training step"] / 1000,
        "training_tflops": training * tflop,
        "matrix_product_tflops": baselines.matrix_product_tflops(device, precision),
        "plain_training_images_per_second": plain,
        "peak_gib": peak_bytes / 2**30,
        "prediction_images_per_second": prediction,
        "prediction_busy": prediction * prediction_ms / 1000,
    }


def measure_training(steps: StepTimer, trainer: FoldTrainer, batch: list[Tensor]) -> float:
    """Return the training loop's images/s. Also time a step on `batch`, already on the device."""

    def train_epoch() -> None:
        trainer.train_epoch(loop)
        trainer.next_epoch()

    def step_ms() -> float:
        seconds = timer.median_seconds(lambda b: trainer.state.train_step(*b), [batch])
        return 1000 * seconds / len(batch[0])

    before = step_ms()
    loop = LoopTimer(trainer.device)
    loop.run(train_epoch)
    # Time the step before and after the loop, so that a drifting clock speed affects both.
    steps.ms["training step"] = (before + step_ms()) / 2
    return loop.images_per_second


def measure_prediction(trainer: FoldTrainer, samples: list[Sample]) -> float:
    """Return images/s of the prediction pipeline, from files to run lengths."""
    loop = LoopTimer(torch.device("cpu"))  # results are on the host

    def keep(image: ImageProbabilities) -> dict[str, Tensor]:
        return {"mask": BINARIZER.to_mask(image.mean())}

    def encode(prediction: Prediction) -> None:
        mask = BINARIZER.postprocess(prediction.values["mask"])
        if trainer.class_map.is_binary:
            rle.encode(mask)

    def predict_all() -> None:
        predictions = predict([trainer.ema_member()], samples, trainer.settings, keep)
        with closing(map_in_threads(encode, predictions)) as results:
            for _ in results:
                loop.update()

    loop.run(predict_all)
    return loop.images_per_second


@torch.no_grad()
def count_training_flops(settings: Settings, n_classes: int) -> float:
    """Return the floating point operations of a training step for one image.

    A multiplication with an addition counts as two. The result is three times the forward pass: the
    backward pass is not counted, because torch would count it as if no convolution had groups.
    """
    model = build_model(settings, n_classes, pretrained=False).to("meta")
    images = torch.empty(2, 3, *settings.train_size, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(images)
    return 3 * counter.get_total_flops() / len(images)
