"""Segmenter: a network with input normalization and padding, for images of any size."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Mean and standard deviation of ImageNet's RGB values in [0, 1]; pretrained encoders expect images
# normalized by them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """Maps uint8 RGB images B×3×H×W of any size to logits B×n_classes×H×W.

    Normalizes the images, pads them by reflection to a size that the network accepts, and crops
    the logits to the images' size.

    Args:
        network: Maps normalized float images to logits.
        input_size_and_offset: Function of a height or width in pixels. Returns the input size at
            which the network yields at least so many output pixels, and the offset in the input
            of the first output pixel.
    """

    def __init__(self, network: nn.Module, input_size_and_offset: Callable[[int], tuple[int, int]]):
        super().__init__()
        self.network = network
        self.input_size_and_offset = input_size_and_offset
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded_height, top = self.input_size_and_offset(height)
        padded_width, left = self.input_size_and_offset(width)
        bottom, right = padded_height - height - top, padded_width - width - left
        x = (images.float() - self.mean) / self.std
        x = reflect_pad(x, left, right, top, bottom).contiguous(memory_format=torch.channels_last)
        return self.network(x)[..., :height, :width]


def reflect_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Pad images B×C×H×W by reflection, or by repeating the last pixel along an axis that is too
    short to be reflected."""
    height, width = x.shape[-2:]
    if left or right:
        mode = "reflect" if max(left, right) < width else "replicate"
        x = F.pad(x, (left, right, 0, 0), mode=mode)
    if top or bottom:
        mode = "reflect" if max(top, bottom) < height else "replicate"
        x = F.pad(x, (0, 0, top, bottom), mode=mode)
    return x


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters; buffers are not counted."""
    return sum(p.numel() for p in network.parameters())
