"""Segmenter: a network with its normalization and padding, for images of any size."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Mean and deviation of ImageNet's pixels in 0…1, RGB: what pretrained encoders were fed.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """uint8 RGB images B×3×H×W of any size → logits B×classes×H×W.

    The network's own business, here so that nobody else needs to know it: normalisation, and
    mirroring beyond the edges up to a size that it takes, cropped off again.
    `frame` tells of a side's pixels how many the network needs, and how many of them come before.
    """

    def __init__(self, network: nn.Module, frame: Callable[[int], tuple[int, int]]):
        super().__init__()
        self.network, self.frame = network, frame
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        (tall, top), (wide, left) = self.frame(height), self.frame(width)
        x = (images.float() - self.mean) / self.std
        x = reflect_pad(x, (left, wide - width - left, top, tall - height - top))
        x = x.contiguous(memory_format=torch.channels_last)
        return self.network(x)[..., :height, :width]


def reflect_pad(x: Tensor, margins: tuple[int, int, int, int]) -> Tensor:
    """B×C×H×W, mirrored beyond its edges (left, right, top, bottom); along an axis that is too
    short for that, its last pixels are repeated."""
    for axis, ends in ((-1, margins[:2]), (-2, margins[2:])):
        mode = "reflect" if max(ends) < x.shape[axis] else "replicate"
        x = F.pad(x, (*ends, 0, 0) if axis == -1 else (0, 0, *ends), mode=mode) if any(ends) else x
    return x


def count_parameters(network: nn.Module) -> int:
    """How many numbers training sets."""
    return sum(p.numel() for p in network.parameters())
