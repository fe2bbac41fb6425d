"""Networks of segmentation_models_pytorch (SMP), with encoders of SMP or timm."""

import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from core.errors import InputError, did_you_mean
from core.settings import Settings
from models import pretrained
from models.half_size_unet import HalfSizeUnet
from models.segmenter import Segmenter

ENCODER_STRIDE = 32


def build_smp(settings: Settings, n_classes: int, is_pretrained: bool) -> Segmenter:
    """Return a network of SMP with an encoder of SMP, or one of timm as `tu-<name>`.

    Images are normalized as the pretrained weights expect, or by the mean and standard deviation of
    ImageNet without such weights. Raises InputError for an unknown architecture, encoder or
    weights, and if they do not fit together. Also raises InputError if the weights are neither on
    disk nor downloadable.
    """
    patch_torchvision_ops()
    import segmentation_models_pytorch as smp  # takes seconds, and model=unet does without

    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    name = pretrained.require_known("arch", settings.arch.lower(), architectures)
    if name != "unet" and settings.half_size_decoder:
        raise InputError(f"arch={settings.arch}: half_size_decoder is an option of arch=Unet")
    require_known_encoder(settings.encoder, smp.encoders.encoders)
    options = {"encoder_weights": None, "classes": n_classes}
    if name == "dpt":
        options["dynamic_img_size"] = True  # otherwise DPT accepts only its encoder's own size
    is_pretrained = is_pretrained and settings.encoder_weights.lower() != "none"
    weights_file = pretrained.find_weights_file(settings.encoder_weights) if is_pretrained else None
    try:
        if is_pretrained and not weights_file:
            pretrained.require_hub_files(settings.encoder, settings.encoder_weights)
            is_timm = settings.encoder.startswith("tu-")
            options["encoder_weights"] = True if is_timm else settings.encoder_weights
        network = architectures[name](settings.encoder, **options)
        normalization = pretrained.read_normalization(settings) if is_pretrained else {}
    except (RuntimeError, KeyError, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"arch={settings.arch} encoder={settings.encoder}: {reason}") from None
    if weights_file:
        pretrained.load_encoder_weights(network.encoder, weights_file, settings)
    if settings.half_size_decoder:
        network = HalfSizeUnet(network)
    return Segmenter(network, round_up_to_stride, **normalization)


def require_known_encoder(name: str, smp_encoders: Iterable[str]) -> None:
    """Raise InputError unless `name` is an encoder of SMP, or tu-<name> of an encoder of timm.

    Names of timm with a colon, such as those of a hub, are not checked.
    """
    import timm

    if not name.startswith("tu-"):
        if name not in smp_encoders and timm.is_model(name):
            raise InputError(f"encoder={name}: is one of timm; set encoder=tu-{name}")
        pretrained.require_known("encoder", name, smp_encoders)
    elif ":" not in name and not timm.is_model(name.removeprefix("tu-")):
        hint = did_you_mean(name, [f"tu-{model}" for model in timm.list_models()])
        raise InputError(f"encoder={name}: timm has no such model{hint}")


def round_up_to_stride(size: int) -> int:
    """Return the smallest multiple of the encoders' stride that is at least `size`."""
    # ONNX rounds toward 0 and Python down, so only positive numbers are divided.
    return (size + ENCODER_STRIDE - 1) // ENCODER_STRIDE * ENCODER_STRIDE


@cache  # torch drops the operators with the Library object, which the cache keeps
def patch_torchvision_ops() -> torch.library.Library | None:
    """Register dummy torchvision operators, so that timm imports with a CPU-only torch.

    PyPI's torchvision is built for CUDA. With a CPU-only torch its compiled library cannot be
    loaded, and its Python part, which suffices here, does not import without these operators.
    """
    if torch.version.cuda or torch.version.hip:
        return None
    folder = Path(importlib.util.find_spec("torchvision").origin).parent
    try:
        for path in folder.glob("_C*.so"):
            torch.ops.load_library(path)
        return None
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
