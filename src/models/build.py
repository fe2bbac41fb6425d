"""Build the model that the settings describe."""

import torch

from core.errors import InputError
from core.settings import FIELDS, Settings
from models.segmenter import Segmenter
from models.smp import build_smp
from models.unet import UNet


def build_model(settings: Settings, n_classes: int = 1, pretrained: bool = True) -> Segmenter:
    """Return the model of the settings, with weights in channels-last memory format.

    Set `pretrained=False` if its weights are loaded afterwards. The pretrained weights of an
    encoder are then neither downloaded nor read. Raises InputError if the settings do not fit
    together.
    """
    if settings.model == "unet":
        unet = build_unet(settings, n_classes)
        model = Segmenter(unet, unet.input_size)
    else:
        model = build_smp(settings, n_classes, pretrained)
    return model.to(memory_format=torch.channels_last)


def build_unet(settings: Settings, n_classes: int) -> UNet:
    """Return the U-Net of the settings. Raises InputError if they do not fit together."""
    n_levels = len(settings.channels)
    for name, n_expected in (
        ("dropout", n_levels),
        ("decoder_channels", n_levels - 1),
        ("upsample_channels", n_levels - 1),
    ):
        values = getattr(settings, name)
        if values and len(values) != n_expected:
            raise InputError(
                f"{name}={values}: expected {n_expected} numbers, found {len(values)}, as "
                f"channels={settings.channels} has {n_levels} levels"
            )
    # The options of model=unet are arguments of UNet.
    names = [name for name, field in FIELDS.items() if field.metadata["only_for_model"] == "unet"]
    return UNet(n_classes=n_classes, **{name: getattr(settings, name) for name in names})
