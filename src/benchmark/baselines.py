"""Baselines for bench.py: a plain training loop and the usual RLE encoder."""

import os
import time

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from core.settings import Settings
from data.sample import Sample
from models.build import build_model
from training.losses import LOSSES


class PlainDataset(Dataset):
    """Images 3×h×w in [0, 1] and masks 1×h×w, float32, decoded and resized by Pillow each time."""

    def __init__(self, samples: list[Sample], height: int, width: int):
        self.samples, self.pillow_size = samples, (width, height)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = Image.open(self.samples[i].image).resize(self.pillow_size, Image.Resampling.BICUBIC)
        mask = Image.open(self.samples[i].mask).resize(self.pillow_size, Image.Resampling.NEAREST)
        pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 255
        return pixels, torch.from_numpy(np.array(mask) > 0)[None].float()


def plain_images_per_second(
    settings: Settings, samples: list[Sample], device: torch.device
) -> float:
    """Train the settings' network for an epoch as most published solutions do: float32, NCHW,
    eager, without a cache, reading the loss at every step. The first step is not timed."""
    network = build_model(settings, pretrained=False).network.to(device)
    network.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    dataset = PlainDataset(samples, *settings.size)
    loader = DataLoader(dataset, settings.batch_size, num_workers=os.cpu_count(), shuffle=True)
    count, start = -settings.batch_size, 0.0
    for images, masks in loader:
        loss = LOSSES["bce_dice"](network(images.to(device)), masks.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        loss.item()
        start = start or time.perf_counter()
        count += len(images)
    return count / (time.perf_counter() - start)


def rle_encode_kaggle(mask: np.ndarray) -> str:
    """Encode an H×W bool mask as most notebooks of the competition do."""
    pixels = np.concatenate([[0], mask.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)
