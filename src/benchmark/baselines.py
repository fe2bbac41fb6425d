"""What bench.py compares with: a plain training loop and a matrix product."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmark import timer
from core import machine
from core.device import DTYPES
from core.settings import Settings
from data.datasets import read_sample_mask
from data.sample import Sample
from models.build import build_model
from training.losses import bce_dice_loss

MATRIX_SIDE = {"cuda": 8192, "cpu": 2048}


class PlainDataset(Dataset):
    """Images 3×h×w in [0, 1] and masks 1×h×w, float32, decoded and resized by Pillow each time."""

    def __init__(self, samples: list[Sample], height: int, width: int):
        self.samples, self.pillow_size = samples, (width, height)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        sample, size = self.samples[i], self.pillow_size
        image = Image.open(sample.image).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        mask = Image.fromarray(read_sample_mask(sample)).resize(size, Image.Resampling.NEAREST)
        pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 255
        return pixels, torch.from_numpy(np.array(mask) > 0)[None].float()


def plain_images_per_second(
    settings: Settings, samples: list[Sample], device: torch.device
) -> float | None:
    """Return the images per second of a textbook loop that trains the network of the settings.

    The loop is float32, NCHW, eager and without a cache, and it reads the loss at every step.
    Returns None if a GPU has too little memory for it.
    """
    torch.backends.cudnn.benchmark = False  # torch's default; earlier measurements changed it
    model = build_model(settings, pretrained=False)
    network = model.network.to(device, memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    height, width = map(model.input_size, settings.train_size)
    batch_bytes = 16 * settings.batch_size * height * width
    # Each worker prepares two batches in advance, so count three batches for each worker.
    fitting = machine.free_shared_memory() // batch_bytes // 3
    workers = min(machine.available_cores(), fitting)
    dataset = PlainDataset(samples, height, width)
    loader = DataLoader(dataset, settings.batch_size, num_workers=workers, shuffle=True)
    loop = timer.LoopTimer(device)

    def train_epoch() -> None:
        for images, masks in loader:
            logits = network(images.to(device))
            # The output of an unpadded network lacks the border.
            masks = masks[..., : logits.shape[-2], : logits.shape[-1]].to(device)
            loss = bce_dice_loss(logits, masks)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            loss.item()
            loop.update(len(images))

    try:
        loop.run(train_epoch)
    except torch.OutOfMemoryError:
        return None
    return loop.images_per_second


def matrix_product_tflops(device: torch.device, precision: str) -> float:
    """Return the TFLOP/s that the device reaches in a large matrix product in `precision`."""
    side = MATRIX_SIDE[device.type]
    matrix = torch.rand(side, side, device=device, dtype=DTYPES[precision])
    return 2 * side**3 / timer.median_seconds(lambda m: m @ m, [matrix]) / 1e12
