"""SMP's Unet with a decoder that ends at half size, for half_size_decoder=true."""

import torch.nn.functional as F
from torch import Tensor, nn


class HalfSizeUnet(nn.Module):
    """SMP's Unet without its last decoder block, which would work at full size.

    Maps images B×3×H×W to logits B×n_classes×H×W; H and W must be even. From features of half size,
    the head predicts the logits of 2×2 pixels. A pixel shuffle then puts them in their places.

    Args:
        unet: segmentation_models_pytorch.Unet, whose encoder and decoder this module takes over.
    """

    def __init__(self, unet: nn.Module):
        super().__init__()
        *blocks, last_block = unet.decoder.blocks
        unet.decoder.blocks = nn.ModuleList(blocks)
        self.encoder, self.decoder = unet.encoder, unet.decoder
        channels = last_block.conv1[0].in_channels
        n_classes = unet.segmentation_head[0].out_channels
        self.head = nn.Conv2d(channels, 4 * n_classes, kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return F.pixel_shuffle(self.head(self.decoder(self.encoder(images))), 2)
