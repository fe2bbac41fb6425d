"""Measures this machine: each step from file to csv, and the two loops against their limits.

    python src/bench.py recipe=carvana_small                   # on the training images of data_dir
    python src/bench.py recipe=carvana_small bench_baselines=true      # and plain rivals beside them

The limit of training is its step on data that is there already. The limit of prediction is the
bare network on a GPU; on a CPU, the CPU time of all its steps shared by all cores.
"""

import csv
import io
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmark import baselines
from benchmark.timer import StepTimer
from core import cli, config, provenance
from core.device import PRECISIONS, autocast, pick_precision
from core.errors import InputError
from core.files import atomic_write
from core.settings import Settings
from data import datasets, image_io, preprocess
from data.augment import Augmenter
from data.cache import make_cache
from data.loaders import collate
from data.sample import Sample
from inference import rle
from inference.postprocess import Binarizer
from inference.predictor import predict, predict_probability_tta, resize_to_original
from training.state import FoldTrainer, make_accelerator
from training.trainer import peak_memory, train_epoch, train_step

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    cli.run_main(lambda: config.load_settings(sys.argv[1:]))

N_LOOP_IMAGES = 64  # of the loops, unless `limit` says otherwise
N_STEP_IMAGES = 8  # of the steps
N_EPOCHS = 3  # of training


# ---------------------------------------------------------------- steps


def time_loading(clock: StepTimer, settings: Settings, rows: list[Sample]) -> None:
    """From files to what the network sees."""
    given = preprocess.preprocessing_from(settings)
    clock.time(
        "decode image", lambda row: image_io.read_sample_image(row, given.min_decode_size), rows
    )
    clock.time("decode mask", image_io.read_sample_mask, rows)
    images = [image_io.read_sample_image(row, given.min_decode_size) for row in rows]
    clock.time("resize image", lambda image: preprocess.preprocess_image(image, given), images)
    target = (
        preprocess.mask_to_soft_target if rows[0].class_map.is_binary else preprocess.resize_classes
    )
    labels = [image_io.read_sample_mask(row) for row in rows]
    clock.time("resize mask", lambda label: target(label, given), labels)


def time_training_steps(
    clock: StepTimer, fold: FoldTrainer, rows: list[Sample]
) -> list[torch.Tensor]:
    """From what the network sees to a batch on the device, which is given back."""
    settings, batch = fold.settings, fold.settings.batch_size
    augment = Augmenter(settings.augmentation, settings.seed, fold.class_map)
    clock.time("augment", lambda row: augment(*fold.cache.pair(row), 0, row.image_id), rows)
    pairs = [fold.cache.pair(rows[i % len(rows)]) for i in range(batch)]
    clock.time("assemble batch", collate, [pairs], batch)
    device = fold.engine.device
    made = collate(pairs)
    clock.time("copy to device", lambda b: [part.to(device) for part in b], [made], batch)
    return [part.to(device) for part in made]


PREDICTION = ["decode image", "resize image", "assemble batch", "copy to device"]
PREDICTION += ["network, all views", "enlarge", "cut", "run lengths", "csv line"]


@torch.inference_mode()
def time_prediction_steps(clock: StepTimer, fold: FoldTrainer, rows: list[Sample]) -> None:
    """From a batch to lines of the csv."""
    member, settings = fold.member(), fold.settings
    native, precision = (
        image_io.read_native_size(rows[0]),
        pick_precision(settings, fold.engine.device),
    )
    pairs = [fold.cache.pair(rows[i % len(rows)]) for i in range(settings.batch_size)]
    images = collate(pairs)[0].to(fold.engine.device)

    def network(images: torch.Tensor) -> torch.Tensor:
        with autocast(fold.engine.device, precision):
            return predict_probability_tta(member.network, images, settings)

    clock.time("network, all views", network, [images], len(images))
    small, cut = network(images), Binarizer(0.5, [])
    clock.time("enlarge", lambda p: resize_to_original(p, native, member.preprocessing), small)
    large = [resize_to_original(p, native, member.preprocessing) for p in small]
    clock.time("cut", cut.mask, large)
    if fold.class_map.is_binary:
        masks = [cut.mask(p) for p in large]
        clock.time("run lengths", rle.encode, masks)
        table = csv.writer(io.StringIO(), lineterminator="\n")
        lines = [(rows[0].image.name, rle.encode(mask)) for mask in masks]
        clock.time("csv line", table.writerow, lines)


# ---------------------------------------------------------------- loops


def time_training_loop(clock: StepTimer, fold: FoldTrainer, there: list[torch.Tensor]) -> float:
    """Images/s from the second epoch on, as train.py runs it; in turns with steps on the batch
    that is `there`, as a machine's speed changes from minute to minute."""
    loop, steps = [], []
    for _ in range(1 + N_EPOCHS):
        loop.append(train_epoch(fold, tqdm(disable=True), lambda: None)["images_per_second"])
        fold.end_epoch()
        clock.time("training step", lambda b: train_step(fold, *b), [there], len(there[0]))
        steps.append(clock.steps["training step"])
    clock.steps["training step"] = pd.DataFrame(steps[1:]).mean().to_dict()
    return float(np.mean(loop[1:]))


def time_prediction_loop(fold: FoldTrainer, rows: list[Sample]) -> float:
    """Images/s of the road from files to run lengths, as predict.py runs it."""
    cut, begun = Binarizer(0.5, []), time.perf_counter()
    rows = rows * -(-3 * N_LOOP_IMAGES // len(rows))  # that the start weighs little
    for prediction in predict([fold.member()], rows, fold.settings):
        mask = cut.mask(prediction.probability)
        if fold.class_map.is_binary:
            rle.encode(mask)
    return len(rows) / (time.perf_counter() - begun)


# ---------------------------------------------------------------- arithmetic


def peak_matmul_tflops(device: torch.device, precision: str) -> float:
    """TFLOP/s of one large matrix product, the most this machine computes in that precision."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.rand(side, side, device=device, dtype=PRECISIONS[precision] or torch.float32)
    clock = StepTimer(device)
    clock.time("product", lambda a: a @ a, [a])
    return 2 * side**3 / clock.steps["product"]["ms"] / 1e9


def training_tflop(fold: FoldTrainer, size: tuple[int, int]) -> float:
    """TFLOP of a training step, for each image: of a forward pass, and twice that backward."""
    images = torch.zeros(1, 3, *size, dtype=torch.uint8, device=fold.engine.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fold.average.module(images)
    return 3 * counter.get_total_flops() / 1e12


# ---------------------------------------------------------------- rivals


def compare_baselines(
    clock: StepTimer, fold: FoldTrainer, rows: list[Sample], loop: float
) -> dict[str, float]:
    """How many times faster than the plain way, in this run."""
    plain = baselines.baseline_throughput(fold.settings, rows, fold.engine.device)
    masks = [image_io.read_sample_mask(row) for row in rows[:16]]
    clock.time("encode: ours", rle.encode, masks)
    clock.time("encode: classic", baselines.rle_encode_kaggle, masks)
    columns = [np.asfortranarray(mask.view(np.uint8)) for mask in masks]
    clock.time("encode: pycocotools", baselines.rle_encode_coco, columns)
    texts = [rle.encode(mask) for mask in masks]
    clock.time("decode: ours", lambda text: rle.decode(text, masks[0].shape), texts)
    ours = clock.steps["encode: ours"]["ms"]
    return {
        "training loop / plain loop (images/s)": loop / plain,
        "plain loop, images/s": plain,
        "encoding / classic encoder": clock.steps["encode: classic"]["ms"] / ours,
        "encoding / pycocotools": clock.steps["encode: pycocotools"]["ms"] / ours,
    }


# ---------------------------------------------------------------- the table


def measure_loops(
    clock: StepTimer, fold: FoldTrainer, rows: list[Sample], there: list[torch.Tensor]
) -> dict[str, float]:
    """Both loops, what they reach of their limits, and of the machine's arithmetic."""
    device = fold.engine.device
    training = time_training_loop(clock, fold, there)
    time_prediction_steps(clock, fold, rows[:N_STEP_IMAGES])
    prediction, step = time_prediction_loop(fold, rows), 1000 / clock.steps["training step"]["ms"]
    if device.type == "cuda":
        limit = 1000 / clock.steps["network, all views"]["ms"]
    else:
        names = [name for name in PREDICTION if name in clock.steps]
        limit = 1000 * torch.get_num_threads() / clock.sum(names, "cpu_ms")
    most = peak_matmul_tflops(device, pick_precision(fold.settings, device))
    reached = step * training_tflop(fold, fold.cache.size)
    return {
        "training loop, images/s": training,
        "training loop / its step on resident data": training / step,
        "prediction loop, images/s": prediction,
        "prediction loop / its limit": prediction / limit,
        "training step, TFLOP/s": reached,
        "large matrix product, TFLOP/s": most,
        "training step / matrix product": reached / most,
        "peak memory, GiB": peak_memory() / 2**30,
    }


def main() -> None:
    settings = config.load_settings(sys.argv[1:])
    if settings.size is None or settings.cache == "none":
        raise InputError("bench.py: needs size=[h,w] and a cache")
    settings = replace(settings, epochs=1 + N_EPOCHS, ema_decay=0.9)
    rows = datasets.load_training_samples(settings)
    rows = (
        rows if settings.max_images else rows[:: max(1, len(rows) // N_LOOP_IMAGES)][:N_LOOP_IMAGES]
    )
    engine = make_accelerator(settings)
    clock = StepTimer(engine.device)
    time_loading(clock, settings, rows[:N_STEP_IMAGES])
    fold = FoldTrainer(settings, -1, rows, make_cache(settings, rows), engine)
    there = time_training_steps(clock, fold, rows[:N_STEP_IMAGES])
    found = measure_loops(clock, fold, rows, there)
    if settings.bench_baselines:
        found |= compare_baselines(clock, fold, rows, found["training loop, images/s"])
    if settings.bench_train_minutes:
        found |= baselines.train_baseline(
            settings, datasets.load_training_samples(settings), engine.device
        )
    report_results(
        settings,
        clock,
        found,
        provenance.describe_machine(engine.device) | {"precision": engine.mixed_precision},
    )


def report_results(
    settings: Settings, clock: StepTimer, found: dict[str, float], about: dict[str, Any]
) -> None:
    """The table, and the same in output/bench.json."""
    print(pd.DataFrame(clock.steps).T.to_string(float_format="{:.2f}".format))
    for name, value in found.items():
        print(f"{name:<44} {value:.3f}")
    print(", ".join(f"{name} {value}" for name, value in about.items() if value))
    with atomic_write(Path(settings.output_dir) / "bench.json") as partial:
        known = {"machine": about, "settings": asdict(settings), "steps": clock.steps} | found
        partial.write_text(json.dumps(known, indent=2, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run_main(main)
