"""Prediction of large images in overlapping tiles."""

import math

import torch
from torch import Tensor

from models.segmenter import Segmenter

TILE_ALIGNMENT = 64  # tile offsets are multiples of the stride of a network with 7 levels


def sliding_window_logits(
    model: Segmenter, images: Tensor, tile_size: int, overlap: float
) -> Tensor:
    """Return logits: uint8 B×3×h×w → float32 B×C×h×w.

    An image is divided into tiles if a side is longer than `tile_size` pixels; 0 disables tiles.
    Neighboring tiles share about the fraction `overlap`. Gaussian windows blend them, so that no
    seam is visible. The Segmenter pads each tile by reflection, as it pads whole images.
    """
    height, width = images.shape[-2:]
    if not tile_size or (height <= tile_size and width <= tile_size):
        return model(images).float()
    # As in Isensee et al. 2021, nnU-Net.
    window = torch.signal.windows.gaussian(tile_size, std=tile_size / 8, device=images.device)
    logits, weights = None, images.new_zeros((height, width), dtype=torch.float32)
    for top in tile_starts(height, tile_size, overlap):
        for left in tile_starts(width, tile_size, overlap):
            tile = images[..., top : top + tile_size, left : left + tile_size]
            rows, columns = tile.shape[-2:]
            weight = window[:rows, None] * window[:columns]
            tile_logits = model(tile).float() * weight
            if logits is None:
                logits = tile_logits.new_zeros((*tile_logits.shape[:2], height, width))
            logits[..., top : top + rows, left : left + columns] += tile_logits
            weights[top : top + rows, left : left + columns] += weight
    return logits.div_(weights)


def tile_starts(side: int, tile_size: int, overlap: float) -> list[int]:
    """Return evenly spaced tile offsets, multiples of TILE_ALIGNMENT, that cover `side` pixels."""
    # In units of TILE_ALIGNMENT. The last offset is rounded up, so the last tile may be smaller.
    last = max(0, math.ceil((side - tile_size) / TILE_ALIGNMENT))
    if last == 0:
        return [0]
    step = max(1, int(tile_size * (1 - overlap) / TILE_ALIGNMENT))
    n_steps = math.ceil(last / step)
    return [TILE_ALIGNMENT * (i * last // n_steps) for i in range(n_steps + 1)]
