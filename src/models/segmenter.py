"""Segmenter: a network with input normalization and padding, for images of any size."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Mean and standard deviation of ImageNet's RGB values in [0, 1]. Most pretrained encoders expect
# images normalized by them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """Maps uint8 RGB images B×3×H×W of any size to logits B×n_classes×H×W.

    Normalizes the images, pads them by reflection to a size that the network accepts, and crops
    the logits to the images' size. Each axis is padded equally on both sides; if the number of
    added pixels is odd, the bottom or right side gets one more. If it is even, the grid of the
    network's strides lies in the same way on an image and on its flip.

    Args:
        network: Maps normalized float images to logits. The logits may be smaller, by the same
            number of pixels on both sides of an axis.
        input_size: Function of a height or width in pixels. Returns the smallest input size at
            which the network yields at least that many output pixels.
        mean: Mean of the RGB values in [0, 1], subtracted first. Stored with the weights.
        std: Standard deviation of the RGB values. Stored with the weights.
    """

    def __init__(
        self,
        network: nn.Module,
        input_size: Callable[[int], int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        self.network = network
        self.input_size = input_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        extra_rows, extra_columns = self.input_size(height) - height, self.input_size(width) - width
        top, left = extra_rows // 2, extra_columns // 2
        x = (images.float() - self.mean) / self.std
        x = reflect_pad(x, left, extra_columns - left, top, extra_rows - top)
        logits = self.network(x.contiguous(memory_format=torch.channels_last))
        # The network may have cut the same number of pixels off both sides (padding "valid").
        top -= (x.shape[-2] - logits.shape[-2]) // 2
        left -= (x.shape[-1] - logits.shape[-1]) // 2
        return logits[..., top : top + height, left : left + width]


def reflect_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Pad images B×C×H×W by reflection, or by repeating the last pixel along an axis that is too
    short to be reflected."""
    height, width = x.shape[-2:]
    if torch.compiler.is_exporting():
        # F.pad is not exported with dynamic sizes. No axis is too short: the graph takes images
        # with sides of smallest_side() or more (onnx_export.py).
        rows, columns = _reflected(height, top, bottom), _reflected(width, left, right)
        return x[..., rows, :][..., columns]
    if left or right:
        mode = "reflect" if max(left, right) < width else "replicate"
        x = F.pad(x, (left, right, 0, 0), mode=mode)
    if top or bottom:
        mode = "reflect" if max(top, bottom) < height else "replicate"
        x = F.pad(x, (0, 0, top, bottom), mode=mode)
    return x


def _reflected(size: int, before: int, after: int) -> Tensor:
    """Return the indices of an axis of `size` pixels that is padded by reflection."""
    index = torch.arange(-before, size + after).abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters; buffers are not counted."""
    return sum(p.numel() for p in network.parameters())
