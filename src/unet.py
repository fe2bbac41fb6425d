"""The U-Net, written out: Ronneberger, Fischer & Brox 2015, arXiv:1505.04597.

Going down, each level looks at half the size with more channels; going up, each level doubles the
size again and is shown the features that the way down had at that size (the skip connection).
What later papers changed are arguments: normalisation, up-sampling, dropout, and the stem.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = {"batch": nn.BatchNorm2d, "none": None}


def convolution(inputs: int, outputs: int, norm: str) -> list[nn.Module]:
    """3×3 convolution, normalisation, ReLU; the size stays."""
    if norm == "none":
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
    # The normalisation subtracts the mean, so a bias before it would have no effect.
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [conv, NORMS[norm](outputs), nn.ReLU(inplace=True)]


def double_convolution(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    """What the U-Net does at each level, on both of its sides."""
    return nn.Sequential(*convolution(inputs, outputs, norm), *convolution(outputs, outputs, norm))


def transpose(inputs: int, outputs: int) -> nn.Module:
    """Each pixel paints its own 2×2 block (the paper's up-convolution)."""
    return nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2)


def nearest(inputs: int, outputs: int) -> nn.Module:
    """Double by repeating, then a 2×2 convolution; the padding keeps the size."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(inputs, outputs, kernel_size=2),
    )


def bilinear(inputs: int, outputs: int) -> nn.Module:
    """Double smoothly; the 1×1 convolution comes first, where it costs a quarter."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    )


UPS = {"transpose": transpose, "nearest": nearest, "bilinear": bilinear}


class UNet(nn.Module):
    """B×3×H×W float → B×classes×H×W logits; H and W are multiples of `stride`.

    channels: width of each level, top to bottom; the last is the bottleneck.
    norm, up: keys of NORMS and UPS. dropout: probability at the bottleneck.
    stem: s folds each s×s block of pixels into 3·s² channels at the input and unfolds the logits
        likewise at the output, so that all levels work on s² times fewer positions.
    """

    def __init__(
        self,
        channels: list[int],
        classes: int = 1,
        norm: str = "batch",
        up: str = "transpose",
        dropout: float = 0.0,
        stem: int = 1,
    ):
        super().__init__()
        self.stem = stem
        self.stride = stem * 2 ** (len(channels) - 1)
        inputs = [3 * stem**2, *channels]
        self.down = nn.ModuleList(
            double_convolution(i, o, norm) for i, o in zip(inputs, channels, strict=False)
        )
        pairs = list(pairwise(channels[::-1]))
        self.up = nn.ModuleList(UPS[up](deep, shallow) for deep, shallow in pairs)
        self.merge = nn.ModuleList(
            double_convolution(2 * shallow, shallow, norm) for _, shallow in pairs
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(channels[0], classes * stem**2, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.pixel_unshuffle(images, self.stem)
        skips = []
        for level, block in enumerate(self.down):
            if level > 0:
                x = F.max_pool2d(x, 2)
            x = block(x)
            skips.append(x)
        x = self.dropout(skips.pop())  # the bottleneck has nobody to skip to
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return F.pixel_shuffle(self.head(x), self.stem)
