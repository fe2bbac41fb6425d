"""The U-Net, written out: Ronneberger, Fischer & Brox 2015, arXiv:1505.04597.

Going down, each level looks at half the size with more channels; going up, each level doubles the
size again and is shown the features that the way down had at that size (the skip connection).
What later papers changed are arguments: widths, normalisation, up-sampling, dropout, and the stem.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = {"batch": nn.BatchNorm2d, "none": None}


def conv_norm_relu(inputs: int, outputs: int, norm: str, padding: str) -> list[nn.Module]:
    """3×3 convolution, normalisation, ReLU. The size stays, or with padding 'valid' loses 2."""
    if norm == "none":
        return [nn.Conv2d(inputs, outputs, 3, padding=padding), nn.ReLU(inplace=True)]
    # The normalisation subtracts the mean, so a bias before it would have no effect.
    conv = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False)
    return [conv, NORMS[norm](outputs), nn.ReLU(inplace=True)]


# ---------------------------------------------------------------- up-sampling by two


def transposed_conv_2x2(inputs: int, outputs: int) -> nn.Module:
    """Each pixel paints its own 2×2 block (the paper's up-convolution)."""
    return nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2)


def transposed_conv_3x3(inputs: int, outputs: int) -> nn.Module:
    """Each pixel paints 3×3; the blocks overlap."""
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)


def nearest_conv(inputs: int, outputs: int) -> nn.Module:
    """Double by repeating, then a 2×2 convolution; the padding keeps the size."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(inputs, outputs, kernel_size=2),
    )


def nearest(inputs: int, outputs: int) -> nn.Module:
    """Double by repeating; all `inputs` channels stay."""
    return nn.Upsample(scale_factor=2, mode="nearest")


def conv_bilinear(inputs: int, outputs: int) -> nn.Module:
    """Double smoothly; the 1×1 convolution comes first, where it costs a quarter."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    )


UPSAMPLERS = {
    "transpose": transposed_conv_2x2,
    "transpose3": transposed_conv_3x3,
    "nearest": nearest_conv,
    "repeat": nearest,
    "bilinear": conv_bilinear,
}


# ---------------------------------------------------------------- the network


class UNet(nn.Module):
    """B×3×H×W float → B×classes×H×W logits; see frame() for the H and W that it takes.

    channels: width of each level, top to bottom; the last is the bottleneck.
    decoder, ups: widths on the way up, bottom to top: of each level's convolutions, and of what
        the up-sampling before it gives. Empty: decoder as `channels`, ups as decoder.
    tail: widths of 3×3 convolutions between the top level and the 1×1 one that gives the logits.
    convs: convolutions of each level, on both sides.
    norm, up: keys of NORMS and UPS. dropout: probability at the end of each level of the way down,
        top to bottom; empty: none.
    padding: 'same', or 'valid' as in the paper: every 3×3 convolution takes a pixel off each edge.
    init: 'default' of torch, or 'he' (He et al. 2015, normal by fan-in, no bias).
    stem: s folds each s×s block of pixels into 3·s² channels at the input and unfolds the logits
        likewise at the output, so that all levels work on s² times fewer positions.
    """

    def __init__(
        self,
        channels: list[int],
        classes: int = 1,
        norm: str = "batch",
        upsampling: str = "transpose",
        dropout: list[float] = (),
        space_to_depth: int = 1,
        decoder_channels: list[int] = (),
        upsample_channels: list[int] = (),
        refine_channels: list[int] = (),
        convs_per_level: int = 2,
        padding: str = "same",
        weight_init: str = "default",
    ):
        super().__init__()
        self.space_to_depth, self.convs_per_level, self.padding = space_to_depth, convs_per_level, padding
        decoder = list(decoder_channels) or channels[-2::-1]
        ups = list(upsample_channels) or decoder

        def block(inputs: int, outputs: int, count: int = convs_per_level) -> nn.Sequential:
            widths = pairwise([inputs, *[outputs] * count])
            return nn.Sequential(
                *(x for i, o in widths for x in conv_norm_relu(i, o, norm, padding))
            )

        inputs = [3 * space_to_depth**2, *channels]
        self.down = nn.ModuleList(block(i, o) for i, o in zip(inputs, channels, strict=False))
        below = [channels[-1], *decoder]
        self.up = nn.ModuleList(UPSAMPLERS[upsampling](i, o) for i, o in zip(below, ups, strict=False))
        doubled = below if upsampling == "repeat" else ups
        self.merge = nn.ModuleList(
            block(skip + deep, width)
            for skip, deep, width in zip(channels[-2::-1], doubled, decoder, strict=False)
        )
        widths = [decoder[-1], *refine_channels]
        self.tail = nn.Sequential(*(block(i, o, 1) for i, o in pairwise(widths)))
        self.dropout = nn.ModuleList(nn.Dropout(p) for p in dropout or [0.0] * len(channels))
        self.head = nn.Conv2d(widths[-1], classes * space_to_depth**2, kernel_size=1)
        if weight_init == "he":
            self.apply(init_he_normal)

    def forward(self, images: Tensor) -> Tensor:
        x = F.pixel_unshuffle(images, self.space_to_depth)
        skips = []
        for level, (block, dropout) in enumerate(zip(self.down, self.dropout, strict=True)):
            if level > 0:
                x = F.max_pool2d(x, 2)
            x = dropout(block(x))
            skips.append(x)
        skips.pop()  # the bottleneck has nobody to skip to
        for up, merge in zip(self.up, self.merge, strict=True):
            x = up(x)
            x = merge(torch.cat([center_crop(skips.pop(), x), x], dim=1))
        return F.pixel_shuffle(self.head(self.tail(x)), self.space_to_depth)

    def frame(self, side: int) -> tuple[int, int]:
        """How many pixels the input needs along a side for at least `side` of output, and how
        many of them lie before the output's first."""
        valid = self.padding == "valid"
        lost, tail = (2 * self.convs_per_level, 2 * len(self.tail)) if valid else (0, 0)
        output = -(-side // self.space_to_depth) + tail
        for _ in self.up:
            output = -(-(output + lost) // 2)
        given = output + lost
        for _ in self.up:
            given, output = 2 * given + lost, 2 * output - lost
        return given * self.space_to_depth, (given - output + tail) // 2 * self.space_to_depth


def center_crop(skip: Tensor, like: Tensor) -> Tensor:
    """The middle of `skip`, as high and wide as `like`."""
    top, left = ((a - b) // 2 for a, b in zip(skip.shape[-2:], like.shape[-2:], strict=True))
    return skip[..., top : top + like.shape[-2], left : left + like.shape[-1]]


def init_he_normal(module: nn.Module) -> None:
    """Weights of a convolution normal with deviation sqrt(2 / fan-in), its bias 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias) if module.bias is not None else None
