"""SMP's Unet with a different last decoder block: full-size skip connection or pixel shuffle."""

from functools import partial

import torch
from torch import Tensor, nn

from models.unet import conv_block, init_he_normal


class SmpUnet(nn.Module):
    """SMP's Unet whose last decoder block is replaced. Maps images B×3×H×W to logits, H and W even.

    SMP's last decoder block enlarges features of half size to full size without a skip connection.
    Here it has one, from two 3×3 convolutions on the image (the stem), or works at half size:

    | full_size_skip | half_size_decoder | end of the decoder |
    |---|---|---|
    | 16 | no | nearest upsampling, joined with the stem, two 3×3 convolutions, head |
    | 0 | yes | head for 2×2 pixels, pixel shuffle |
    | 16 | yes | pixel shuffle, joined with the stem, one 3×3 convolution, head |

    Args:
        unet: segmentation_models_pytorch.Unet, whose encoder and decoder this module takes over.
        full_size_skip: Channels of the stem; 0: none.
        half_size_decoder: Whether a pixel shuffle is used for the last upsampling.
    """

    def __init__(self, unet: nn.Module, full_size_skip: int, half_size_decoder: bool):
        super().__init__()
        *blocks, last_block = unet.decoder.blocks
        unet.decoder.blocks = nn.ModuleList(blocks)  # now it ends at half size
        self.encoder, self.decoder, self.head = unet.encoder, unet.decoder, unet.segmentation_head
        self.upsample = nn.PixelShuffle(2) if half_size_decoder else nn.Upsample(scale_factor=2)
        self.stem = None
        channels = last_block.conv1[0].in_channels
        if full_size_skip:
            up_channels = channels // 4 if half_size_decoder else channels
            n_convs, head_channels = 1 if half_size_decoder else 2, self.head[0].in_channels
            block = partial(conv_block, norm="batch", padding="same")
            self.stem = block(3, full_size_skip, n_convs=2)
            self.block = block(up_channels + full_size_skip, head_channels, n_convs)
            self.stem.apply(init_he_normal)
            self.block.apply(init_he_normal)
        else:
            n_classes = self.head[0].out_channels
            self.head = nn.Conv2d(channels, 4 * n_classes, kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.decoder(self.encoder(images))
        if self.stem is None:
            return self.upsample(self.head(x))
        x = torch.cat([self.upsample(x), self.stem(images)], dim=1)
        return self.head(self.block(x))
