"""What bench.py compares with: the plain way, as most published solutions go it."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from core.settings import Settings
from data import image_io
from data.sample import Sample
from evaluation import oof
from inference.predictor import make_member
from models.build import build_model
from models.segmenter import Segmenter
from models.unet import UNet
from training.losses import LOSSES


class PlainDataset(Dataset):
    """i → float image 3×h×w in [0, 1] and mask 1×h×w: decoded and resized by Pillow every time."""

    def __init__(self, rows: list[Sample], size: tuple[int, int]):
        self.samples, self.shape = rows, (size[1], size[0])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.samples[i]
        image = Image.open(row.image).resize(self.shape, Image.Resampling.BICUBIC)
        mask = Image.open(row.mask).resize(self.shape, Image.Resampling.NEAREST)
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
        inside = (np.asarray(mask) > 0)[None].astype(np.float32)
        return torch.from_numpy(pixels.copy()), torch.from_numpy(inside)


def train_steps(network: nn.Module, optimizer: Optimizer, batches: DataLoader) -> Iterator[int]:
    """Trains for an epoch in float32, eagerly, and reads the loss at every step: the number of
    images of each step, after it."""
    device = next(network.parameters()).device
    for images, masks in batches:
        loss = LOSSES["bce_dice"](network(images.to(device)), masks.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        loss.item()
        yield len(images)


def plain_loader(rows: list[Sample], size: tuple[int, int], batch: int) -> DataLoader:
    """Shuffled PlainImages, loaded by a process for each core."""
    return DataLoader(PlainDataset(rows, size), batch, num_workers=os.cpu_count(), shuffle=True)


def baseline_throughput(settings: Settings, rows: list[Sample], device: torch.device) -> float:
    """Images/s of the settings' own network, NCHW, over one epoch. The first batch is not counted,
    nor the start of the workers."""
    segmenter = build_model(settings, pretrained=False).to(device)
    network = segmenter.network.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    going = train_steps(
        network, optimizer, plain_loader(rows, tuple(settings.size), settings.batch_size)
    )
    next(going)
    begun = time.perf_counter()
    return sum(going) / (time.perf_counter() - begun)


def train_baseline(
    settings: Settings, rows: list[Sample], device: torch.device
) -> dict[str, float]:
    """Trains the U-Net 64…1024 for `minutes` as Pytorch-UNet does by default (RMSprop with momentum
    0.999, lr 1e-5, one image a step) at an eighth of the photographs' size; native Dice of fold 0,
    which it never saw."""
    size = tuple(round(side / 128) * 16 for side in image_io.read_native_size(rows[0]))
    network = UNet([64, 128, 256, 512, 1024], 1).to(device)
    optimizer = torch.optim.RMSprop(
        network.parameters(), lr=1e-5, momentum=0.999, weight_decay=1e-8
    )
    batches = plain_loader([row for row in rows if row.fold != 0], size, 1)
    end, seen = time.perf_counter() + 60 * settings.bench_train_minutes, 0
    while time.perf_counter() < end:
        for count in train_steps(network, optimizer, batches):
            seen += count
            if time.perf_counter() > end:
                break
    segmenter = Segmenter(network.eval(), network.frame)
    segmenter.mean, segmenter.std = torch.zeros(3, 1, 1), torch.full((3, 1, 1), 255.0)
    alone = replace(settings, size=list(size), tta="none")
    held_out = [row for row in rows if row.fold == 0]
    scores = oof.score_out_of_fold(
        [make_member(segmenter.to(device), alone)], held_out, alone, "plain U-Net"
    )
    return {"plain U-Net, images trained on": seen, "plain U-Net, Dice": scores.dice.mean()}


def rle_encode_kaggle(mask: np.ndarray) -> str:
    """The encoder that most notebooks of the competition share: H×W → run lengths."""
    pixels = np.concatenate([[0], mask.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def rle_encode_coco(columns: np.ndarray) -> dict[str, Any]:
    """pycocotools': H×W uint8 in column-major order → its own compressed counts."""
    return coco.encode(columns)
