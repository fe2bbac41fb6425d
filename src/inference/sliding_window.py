"""The one road from image to probability: validation, out-of-fold scores and test all take it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.segmenter import Segmenter

# ---------------------------------------------------------------- tiles


def sliding_window_logits(network: Segmenter, images: Tensor, tile: int, overlap: float) -> Tensor:
    """float32 logits B×C×h×w, from tiles of `tile` pixels a side where the images are larger.

    Neighbours share `overlap` of a tile, and each counts by a Gaussian around its own middle, so
    that no seam is left. At its edges a tile sees itself mirrored, as an image does (Segmenter).
    """
    height, width = images.shape[-2:]
    if not tile or (height <= tile and width <= tile):
        return network(images).float()
    total, weights, peak = 0.0, 0.0, gaussian_window(tile, images.device)
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            part = images[..., top : top + tile, left : left + tile]
            rows, columns = part.shape[-2:]
            weight = peak[:rows, None] * peak[:columns]
            around = (left, width - left - columns, top, height - top - rows)
            total = total + F.pad(network(part).float() * weight, around)
            weights = weights + F.pad(weight, around)
    return total / weights


TILE_ALIGNMENT = 64  # tiles begin where the coarsest level of a deep network has a pixel


def tile_starts(side: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side: on the GRID, evenly, the last one reaching the end."""
    last = max(0, math.ceil((side - tile) / TILE_ALIGNMENT))
    step = max(1, int(tile * (1 - overlap) / TILE_ALIGNMENT))
    count = math.ceil(last / step)
    return [TILE_ALIGNMENT * (i * last // max(count, 1)) for i in range(count + 1)]


def gaussian_window(side: int, device: torch.device) -> Tensor:
    """A Gaussian over `side` pixels, an eighth of them wide (as nnU-Net, Isensee et al. 2021)."""
    away = torch.arange(side, device=device) - (side - 1) / 2
    return torch.exp(-0.5 * (away / (side / 8)) ** 2)
