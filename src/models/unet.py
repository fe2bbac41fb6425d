"""U-Net (Ronneberger, Fischer & Brox 2015, https://arxiv.org/abs/1505.04597).

The encoder computes features at lower and lower resolution with more and more channels. The
decoder doubles the resolution level by level and concatenates at each level the encoder's features
of the same resolution (skip connections), so that the output has both context and sharp edges:

    image  -> encoder_blocks[0] ---------------- skip ----------------> decoder_blocks[1] -> logits
                     | max pool                                                ^ upsamplers[1]
              encoder_blocks[1] ------ skip -----> decoder_blocks[0] ----------+
                     | max pool                           ^ upsamplers[0]
              encoder_blocks[2] (bottleneck) -------------+

The arrow to the logits is `head`, a 1×1 convolution. With 5 levels of 64, 128, 256, 512 and 1024
channels, an image of 3×256×384 becomes 1024×16×24 in the bottleneck, and 1×256×384 logits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_CONVS = 2  # 3×3 convolutions in each encoder and decoder block


def conv_block(
    in_channels: int, out_channels: int, n_convs: int, norm: str, padding: str
) -> nn.Sequential:
    """Return a block of `n_convs` repetitions of 3×3 convolution, normalization and ReLU.

    Padding 'same' keeps height and width. With 'valid', each convolution reduces them by 2.
    """
    if norm not in ("batch", "none"):
        raise ValueError(f"norm={norm!r}: expected 'batch' or 'none'")
    has_norm = norm == "batch"
    layers = []
    for i in range(n_convs):
        channels = in_channels if i == 0 else out_channels
        # Batch normalization subtracts the mean, so a bias before it would have no effect.
        layers.append(nn.Conv2d(channels, out_channels, 3, padding=padding, bias=not has_norm))
        if has_norm:
            layers.append(nn.BatchNorm2d(out_channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


# ---------------------------------------------------------------- upsampling by a factor of 2


# Name → function of input and output channels.
UPSAMPLERS: dict[str, Callable[[int, int], nn.Module]] = {
    # Transposed convolution as in the paper: the outputs do not overlap.
    "transpose": lambda c_in, c_out: nn.ConvTranspose2d(c_in, c_out, kernel_size=2, stride=2),
    # Transposed convolution whose outputs overlap by one pixel.
    "transpose3": lambda c_in, c_out: nn.ConvTranspose2d(
        c_in, c_out, kernel_size=3, stride=2, padding=1, output_padding=1
    ),
    # Nearest neighbor, then a 2×2 convolution, padded to keep the size.
    "nearest_conv": lambda c_in, c_out: nn.Sequential(
        nn.Upsample(scale_factor=2), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(c_in, c_out, 2)
    ),
    # Nearest neighbor alone; the output has c_in channels.
    "repeat": lambda c_in, c_out: nn.Upsample(scale_factor=2),
    # A 1×1 convolution, then bilinear: a quarter of the cost of the reverse order.
    "bilinear": lambda c_in, c_out: nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel_size=1), nn.Upsample(scale_factor=2, mode="bilinear")
    ),
}


# ---------------------------------------------------------------- the network


class UNet(nn.Module):
    """U-Net with the options of the published variants in src/recipes.

    Maps float images B×3×H×W to logits B×n_classes×H×W. With padding 'same', H and W should be
    multiples of `space_to_depth` · 2^(levels − 1). For other sizes, and always with padding
    'valid', the skip connections are cropped and the logits are smaller than the images. Sizes that
    are not multiples of `space_to_depth` raise RuntimeError. `input_size` returns a size that fits.

    Args:
        channels: Channels of each encoder level, top to bottom; the last level is the bottleneck.
        n_classes: Channels of the logits; 1 for foreground against background.
        norm: Normalization after each 3×3 convolution: "batch" or "none".
        upsampling: A key of UPSAMPLERS.
        dropout: Dropout probability after each encoder level, top to bottom, as many numbers as
            `channels`; empty: no dropout.
        space_to_depth: Factor s of a pixel unshuffle at the input, B×3×H×W → B×3s²×H/s×W/s, and
            of a pixel shuffle at the output. All levels compute on s² times fewer pixels.
        decoder_channels: Channels of each decoder level, bottom to top, one fewer than
            `channels`; empty: those of the encoder level of the same resolution.
        upsample_channels: Channels after each upsampling, bottom to top, as many as
            `decoder_channels`; empty: equal to them. Has no effect with upsampling "repeat".
        refine_channels: Channels of extra 3×3 convolutions before the output layer.
        padding: 'same', or 'valid' for unpadded convolutions as in the paper.
        weight_init: 'default' for PyTorch's initialization, 'he' for `init_he_normal`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        n_classes: int = 1,
        norm: str = "batch",
        upsampling: str = "transpose",
        dropout: Sequence[float] = (),
        space_to_depth: int = 1,
        decoder_channels: Sequence[int] = (),
        upsample_channels: Sequence[int] = (),
        refine_channels: Sequence[int] = (),
        padding: str = "same",
        weight_init: str = "default",
    ):
        super().__init__()
        self.space_to_depth, self.padding = space_to_depth, padding
        block = partial(conv_block, n_convs=N_CONVS, norm=norm, padding=padding)

        # Channels of the decoder, bottom to top.
        skip_channels = list(reversed(channels[:-1]))
        decoder_channels = decoder_channels or skip_channels
        below_channels = [channels[-1], *decoder_channels[:-1]]  # input of each upsampling
        up_channels = upsample_channels or decoder_channels  # output of each upsampling
        if upsampling == "repeat":  # has no convolution that could change the channels
            up_channels = below_channels
        top_channels = [decoder_channels[-1], *refine_channels]

        # Reordering these lines would change the initial weights for a given seed.
        down = pairwise([3 * space_to_depth**2, *channels])
        self.encoder_blocks = nn.ModuleList(block(c_in, c_out) for c_in, c_out in down)
        up = zip(below_channels, up_channels, strict=True)
        self.upsamplers = nn.ModuleList(UPSAMPLERS[upsampling](c_in, c_out) for c_in, c_out in up)
        merge = zip(skip_channels, up_channels, decoder_channels, strict=True)
        self.decoder_blocks = nn.ModuleList(
            block(c_skip + c_up, c_out) for c_skip, c_up, c_out in merge
        )
        top = pairwise(top_channels)
        self.refine = nn.Sequential(*(block(c_in, c_out, n_convs=1) for c_in, c_out in top))
        self.dropouts = nn.ModuleList(nn.Dropout(p) for p in dropout or [0.0] * len(channels))
        self.head = nn.Conv2d(top_channels[-1], n_classes * space_to_depth**2, kernel_size=1)
        if weight_init not in ("default", "he"):
            raise ValueError(f"weight_init={weight_init!r}: expected 'default' or 'he'")
        if weight_init == "he":
            self.apply(init_he_normal)

    def forward(self, images: Tensor) -> Tensor:
        # B×3×h·s×w·s → B×3·s²×h×w, with s = space_to_depth
        x = F.pixel_unshuffle(images, self.space_to_depth)

        # Level k: B×channels[k]×h/2^k×w/2^k
        skips: list[Tensor] = []
        for level, (block, dropout) in enumerate(
            zip(self.encoder_blocks, self.dropouts, strict=True)
        ):
            if level > 0:
                x = F.max_pool2d(x, kernel_size=2)
            x = dropout(block(x))
            skips.append(x)
        skips.pop()  # the bottleneck has no skip connection

        # From level k + 1 to level k, down to level 0
        for upsampler, block in zip(self.upsamplers, self.decoder_blocks, strict=True):
            x = upsampler(x)
            skip = center_crop(skips.pop(), x.shape[-2:])
            x = block(torch.cat([skip, x], dim=1))

        # B×n_classes·s²×h×w → B×n_classes×h·s×w·s
        logits = self.head(self.refine(x))
        return F.pixel_shuffle(logits, self.space_to_depth)

    def input_size(self, size: int) -> int:
        """Return the smallest input size that yields at least `size` output pixels along one axis.

        With padding 'valid' the output is smaller by the same number of pixels on both sides.
        """
        block_shrinkage = 2 * N_CONVS if self.padding == "valid" else 0
        refine_shrinkage = 2 * len(self.refine) if self.padding == "valid" else 0

        # Compute sizes from the output back through the decoder to the bottleneck, and on to the
        # input. The ONNX export traces this with a symbolic size. ONNX rounds toward 0 and Python
        # down, so only positive numbers are divided.
        side = (size + self.space_to_depth - 1) // self.space_to_depth + refine_shrinkage
        for _ in self.upsamplers:
            side = (side + block_shrinkage + 1) // 2
        side += block_shrinkage
        for _ in self.upsamplers:
            side = 2 * side + block_shrinkage
        return side * self.space_to_depth


def center_crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Crop `x`, B×C×H×W, to `size` = (height, width) around its center."""
    height, width = size
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def init_he_normal(module: nn.Module) -> None:
    """Draw a convolution's weights from N(0, 2 / fan_in) and set its bias to 0.

    He et al. 2015, Delving Deep into Rectifiers, https://arxiv.org/abs/1502.01852. Other modules
    are left as they are. For a transposed convolution, torch takes the output channels as fan_in.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
