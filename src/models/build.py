"""Build the model that the settings describe."""

import torch

from core.errors import InputError
from core.settings import Settings
from models.segmenter import Segmenter
from models.smp import build_smp
from models.unet import UNet


def build_model(settings: Settings, n_classes: int = 1, pretrained: bool = True) -> Segmenter:
    """Return the model of the settings, with weights in channels-last memory format.

    Set `pretrained=False` if its weights are loaded afterwards: pretrained ones of an encoder are
    then neither downloaded nor read. Raises InputError if the settings do not fit together.
    """
    check_options(settings)
    if settings.model == "unet":
        unet = build_unet(settings, n_classes)
        model = Segmenter(unet, unet.input_size)
    else:
        model = build_smp(settings, n_classes, pretrained)
    return model.to(memory_format=torch.channels_last)


def check_options(settings: Settings) -> None:
    """Raise InputError for an option that the network of the settings does not have."""
    is_smp_unet = settings.model == "smp" and settings.arch.lower() == "unet"
    is_same_unet = settings.model == "unet" and settings.padding == "same"
    for name, has_option, network in (
        ("full_size_skip", is_smp_unet, "model=smp arch=Unet"),
        ("half_size_decoder", is_smp_unet, "model=smp arch=Unet"),
        ("dilated_bottom", is_same_unet, "model=unet padding=same"),
    ):
        value = getattr(settings, name)
        if value and not has_option:
            found = f"model={settings.model} arch={settings.arch} padding={settings.padding}"
            raise InputError(
                f"{name}={str(value).lower()}: is an option of {network}, found {found}"
            )


def build_unet(settings: Settings, n_classes: int) -> UNet:
    """Return the U-Net of the settings; InputError if their lists do not fit together."""
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
    return UNet(
        settings.channels,
        n_classes,
        norm=settings.norm,
        upsampling=settings.upsampling,
        dropout=settings.dropout,
        space_to_depth=settings.space_to_depth,
        decoder_channels=settings.decoder_channels,
        upsample_channels=settings.upsample_channels,
        refine_channels=settings.refine_channels,
        convs_per_level=settings.convs_per_level,
        padding=settings.padding,
        weight_init=settings.weight_init,
        dilated_bottom=settings.dilated_bottom,
    )
