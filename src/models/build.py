"""Build the model that the settings describe."""

import torch

from core.errors import InputError
from core.settings import Settings
from models.segmenter import Segmenter
from models.smp import build_smp
from models.unet import UNet


def build_model(settings: Settings, classes: int = 1, pretrained: bool = True) -> Segmenter:
    """The network that settings describe. `pretrained=False` where weights are loaded later."""
    if settings.model == "unet":
        network = build_unet(settings, classes)
        segmenter = Segmenter(network, network.frame)
    else:
        segmenter = build_smp(settings, classes, pretrained)
    return segmenter.to(memory_format=torch.channels_last)


def build_unet(settings: Settings, classes: int) -> UNet:
    """The U-Net that settings describe; InputError where their lists do not fit each other."""
    levels = len(settings.channels)
    for name, count in (("dropout", levels), ("decoder_channels", levels - 1), ("upsample_channels", levels - 1)):
        given = getattr(settings, name)
        if given and len(given) != count:
            raise InputError(
                f"{name}={given}: {levels} levels (channels={settings.channels}) "
                f"need {count} numbers"
            )
    names = ("norm", "upsampling", "dropout", "space_to_depth", "decoder_channels")
    names += ("upsample_channels", "refine_channels", "convs_per_level", "padding", "weight_init")
    return UNet(settings.channels, classes, **{name: getattr(settings, name) for name in names})
