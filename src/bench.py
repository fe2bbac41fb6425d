"""Measures this machine: each step from file to csv, and the two loops against their limits.

    python src/bench.py recipe=carvana_small                   # on the training images of data_dir
    python src/bench.py recipe=carvana_small compare=true      # and plain rivals beside them

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

import config
from settings import Settings

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    config.run(lambda: config.load(sys.argv[1:]))

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import datasets
import pixels
import prepare
import provenance
import rivals
import rle
from augment import Augment
from cache import make_cache
from clock import Clock
from config import InputError
from cut import Cut
from device import PRECISIONS, autocast, pick_precision
from files import replacing
from infer import predict, probability, to_native
from loader import batch_of
from row import Row
from state import Fold, make_engine
from trainer import peak_memory, train_epoch, train_step

IMAGES = 64  # of the loops, unless `limit` says otherwise
SAMPLE = 8  # of the steps
ROUNDS = 3  # of training


# ---------------------------------------------------------------- steps


def file_steps(clock: Clock, settings: Settings, rows: list[Row]) -> None:
    """From files to what the network sees."""
    given = prepare.input_of(settings)
    clock.time("decode image", lambda row: pixels.photograph(row, given.enough), rows)
    clock.time("decode mask", pixels.truth, rows)
    images = [pixels.photograph(row, given.enough) for row in rows]
    clock.time("resize image", lambda image: prepare.image(image, given), images)
    target = prepare.coverage if rows[0].scheme.binary else prepare.classes
    labels = [pixels.truth(row) for row in rows]
    clock.time("resize mask", lambda label: target(label, given), labels)


def training_steps(clock: Clock, fold: Fold, rows: list[Row]) -> list[torch.Tensor]:
    """From what the network sees to a batch on the device, which is given back."""
    settings, batch = fold.settings, fold.settings.batch
    augment = Augment(settings.augment, settings.seed, fold.scheme)
    clock.time("augment", lambda row: augment(*fold.cache.pair(row), 0, row.image_id), rows)
    pairs = [fold.cache.pair(rows[i % len(rows)]) for i in range(batch)]
    clock.time("assemble batch", batch_of, [pairs], batch)
    device = fold.engine.device
    made = batch_of(pairs)
    clock.time("copy to device", lambda b: [part.to(device) for part in b], [made], batch)
    return [part.to(device) for part in made]


PREDICTION = ["decode image", "resize image", "assemble batch", "copy to device"]
PREDICTION += ["network, all views", "enlarge", "cut", "run lengths", "csv line"]


@torch.inference_mode()
def prediction_steps(clock: Clock, fold: Fold, rows: list[Row]) -> None:
    """From a batch to lines of the csv."""
    member, settings = fold.member(), fold.settings
    native, precision = pixels.native_size(rows[0]), pick_precision(settings, fold.engine.device)
    pairs = [fold.cache.pair(rows[i % len(rows)]) for i in range(settings.batch)]
    images = batch_of(pairs)[0].to(fold.engine.device)

    def network(images: torch.Tensor) -> torch.Tensor:
        with autocast(fold.engine.device, precision):
            return probability(member.network, images, settings)

    clock.time("network, all views", network, [images], len(images))
    small, cut = network(images), Cut(0.5, [])
    clock.time("enlarge", lambda p: to_native(p, native, member.given), small)
    large = [to_native(p, native, member.given) for p in small]
    clock.time("cut", cut.mask, large)
    if fold.scheme.binary:
        masks = [cut.mask(p) for p in large]
        clock.time("run lengths", rle.encode, masks)
        table = csv.writer(io.StringIO(), lineterminator="\n")
        lines = [(rows[0].image.name, rle.encode(mask)) for mask in masks]
        clock.time("csv line", table.writerow, lines)


# ---------------------------------------------------------------- loops


def training_loop(clock: Clock, fold: Fold, there: list[torch.Tensor]) -> float:
    """Images/s from the second epoch on, as train.py runs it; in turns with steps on the batch
    that is `there`, as a machine's speed changes from minute to minute."""
    loop, steps = [], []
    for _ in range(1 + ROUNDS):
        loop.append(train_epoch(fold, tqdm(disable=True), lambda: None)["images_per_second"])
        fold.end_epoch()
        clock.time("training step", lambda b: train_step(fold, *b), [there], len(there[0]))
        steps.append(clock.steps["training step"])
    clock.steps["training step"] = pd.DataFrame(steps[1:]).mean().to_dict()
    return float(np.mean(loop[1:]))


def prediction_loop(fold: Fold, rows: list[Row]) -> float:
    """Images/s of the road from files to run lengths, as predict.py runs it."""
    cut, begun = Cut(0.5, []), time.perf_counter()
    rows = rows * -(-3 * IMAGES // len(rows))  # that the start weighs little
    for prediction in predict([fold.member()], rows, fold.settings):
        mask = cut.mask(prediction.probability)
        if fold.scheme.binary:
            rle.encode(mask)
    return len(rows) / (time.perf_counter() - begun)


# ---------------------------------------------------------------- arithmetic


def ceiling(device: torch.device, precision: str) -> float:
    """TFLOP/s of one large matrix product, the most this machine computes in that precision."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.rand(side, side, device=device, dtype=PRECISIONS[precision] or torch.float32)
    clock = Clock(device)
    clock.time("product", lambda a: a @ a, [a])
    return 2 * side**3 / clock.steps["product"]["ms"] / 1e9


def flops(fold: Fold, size: tuple[int, int]) -> float:
    """TFLOP of a training step, for each image: of a forward pass, and twice that backward."""
    images = torch.zeros(1, 3, *size, dtype=torch.uint8, device=fold.engine.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fold.average.module(images)
    return 3 * counter.get_total_flops() / 1e12


# ---------------------------------------------------------------- rivals


def compared(clock: Clock, fold: Fold, rows: list[Row], loop: float) -> dict[str, float]:
    """How many times faster than the plain way, in this run."""
    plain = rivals.plain_rate(fold.settings, rows, fold.engine.device)
    masks = [pixels.truth(row) for row in rows[:16]]
    clock.time("encode: ours", rle.encode, masks)
    clock.time("encode: classic", rivals.classic_encode, masks)
    columns = [np.asfortranarray(mask.view(np.uint8)) for mask in masks]
    clock.time("encode: pycocotools", rivals.coco_encode, columns)
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


def loops(clock: Clock, fold: Fold, rows: list[Row], there: list[torch.Tensor]) -> dict[str, float]:
    """Both loops, what they reach of their limits, and of the machine's arithmetic."""
    device = fold.engine.device
    training = training_loop(clock, fold, there)
    prediction_steps(clock, fold, rows[:SAMPLE])
    prediction, step = prediction_loop(fold, rows), 1000 / clock.steps["training step"]["ms"]
    if device.type == "cuda":
        limit = 1000 / clock.steps["network, all views"]["ms"]
    else:
        names = [name for name in PREDICTION if name in clock.steps]
        limit = 1000 * torch.get_num_threads() / clock.sum(names, "cpu_ms")
    most = ceiling(device, pick_precision(fold.settings, device))
    reached = step * flops(fold, fold.cache.size)
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
    settings = config.load(sys.argv[1:])
    if settings.size is None or settings.cache == "none":
        raise InputError("bench.py: needs size=[h,w] and a cache")
    settings = replace(settings, epochs=1 + ROUNDS, ema=0.9)
    rows = datasets.training_rows(settings)
    rows = rows if settings.limit else rows[:: max(1, len(rows) // IMAGES)][:IMAGES]
    engine = make_engine(settings)
    clock = Clock(engine.device)
    file_steps(clock, settings, rows[:SAMPLE])
    fold = Fold(settings, -1, rows, make_cache(settings, rows), engine)
    there = training_steps(clock, fold, rows[:SAMPLE])
    found = loops(clock, fold, rows, there)
    if settings.compare:
        found |= compared(clock, fold, rows, found["training loop, images/s"])
    if settings.minutes:
        found |= rivals.plain_dice(settings, datasets.training_rows(settings), engine.device)
    tell(
        settings,
        clock,
        found,
        provenance.machine(engine.device) | {"precision": engine.mixed_precision},
    )


def tell(settings: Settings, clock: Clock, found: dict[str, float], about: dict[str, Any]) -> None:
    """The table, and the same in output/bench.json."""
    print(pd.DataFrame(clock.steps).T.to_string(float_format="{:.2f}".format))
    for name, value in found.items():
        print(f"{name:<44} {value:.3f}")
    print(", ".join(f"{name} {value}" for name, value in about.items() if value))
    with replacing(Path(settings.output_dir) / "bench.json") as partial:
        known = {"machine": about, "settings": asdict(settings), "steps": clock.steps} | found
        partial.write_text(json.dumps(known, indent=2, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    config.run(main)
