"""What bench.py compares with: the plain way, as most published solutions go it."""

import os
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from torch.utils.data import DataLoader, Dataset

from losses import LOSSES
from models import build
from row import Row
from settings import Settings


class PlainImages(Dataset):
    """i → float image 3×h×w in [0, 1] and mask 1×h×w: decoded and resized by Pillow every time."""

    def __init__(self, rows: list[Row], size: tuple[int, int]):
        self.rows, self.shape = rows, (size[1], size[0])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.rows[i]
        image = Image.open(row.image).resize(self.shape, Image.Resampling.BICUBIC)
        mask = Image.open(row.mask).resize(self.shape, Image.Resampling.NEAREST)
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
        inside = (np.asarray(mask) > 0)[None].astype(np.float32)
        return torch.from_numpy(pixels.copy()), torch.from_numpy(inside)


def plain_training(settings: Settings, rows: list[Row], device: torch.device) -> float:
    """Images/s of the same network over one epoch: float32, NCHW, eager, nothing kept, a loss that
    is read at every step. The first batch is not counted, nor the start of the workers."""
    segmenter = build(settings, pretrained=False).to(device)
    network = segmenter.network.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    images = PlainImages(rows, tuple(settings.size))
    batches = DataLoader(images, settings.batch, num_workers=os.cpu_count(), shuffle=True)
    seen, begun = 0, 0.0
    for step, (x, y) in enumerate(batches):
        if step == 1:
            begun = time.perf_counter()
        loss = LOSSES[settings.loss](network(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        seen += len(x) if step else 0
    return seen / (time.perf_counter() - begun)


def classic_encode(mask: np.ndarray) -> str:
    """The encoder that most notebooks of the competition share: H×W → run lengths."""
    pixels = np.concatenate([[0], mask.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def coco_encode(columns: np.ndarray) -> dict[str, Any]:
    """pycocotools': H×W uint8 in column-major order → its own compressed counts."""
    return coco.encode(columns)
