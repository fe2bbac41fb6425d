"""Settings → a network that gives logits for images of any size."""

import contextlib
import difflib
import glob
import importlib.util
import os
import socket
import threading
import urllib.request
from collections.abc import Iterable
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import InputError
from settings import Settings
from unet import UNet

# Mean and deviation of ImageNet's pixels in 0…1, RGB: what pretrained encoders were fed.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """uint8 RGB images B×3×H×W of any size → logits B×classes×H×W.

    The network's own business, here so that nobody else needs to know it: normalisation, and
    padding to the multiple of its stride by reflection, cropped off again.
    """

    def __init__(self, network: nn.Module, stride: int):
        super().__init__()
        self.network, self.stride = network, stride
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        x = (images.float() - self.mean) / self.std
        x = pad(x, -height % self.stride, -width % self.stride)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.network(x)[..., :height, :width]


def pad(x: Tensor, bottom: int, right: int) -> Tensor:
    """B×C×H×W, mirrored beyond its lower and right edge; repeated where there is too little."""
    mirrored = bottom < x.shape[-2] and right < x.shape[-1]
    return F.pad(x, (0, right, 0, bottom), mode="reflect" if mirrored else "replicate")


def build(settings: Settings, classes: int = 1, pretrained: bool = True) -> Segmenter:
    """The network that settings describe. `pretrained=False` where weights are loaded later."""
    if settings.model == "unet":
        network = UNet(
            settings.channels,
            classes,
            settings.norm,
            settings.up,
            settings.dropout,
            settings.stem,
        )
        segmenter = Segmenter(network, network.stride)
    else:
        segmenter = build_smp(settings, classes, pretrained)
    return segmenter.to(memory_format=torch.channels_last)


def parameters(network: nn.Module) -> int:
    """How many numbers training sets."""
    return sum(p.numel() for p in network.parameters())


# ---------------------------------------------------------------- segmentation_models_pytorch


def build_smp(settings: Settings, classes: int, pretrained: bool) -> Segmenter:
    """Any of SMP's architectures over any of its encoders, or timm's as `tu-<name>`."""
    mend_torchvision()
    import segmentation_models_pytorch as smp  # takes seconds; the from-scratch U-Net does without

    archs = smp.MODEL_ARCHITECTURES_MAPPING
    arch = archs[known("arch", settings.arch.lower(), archs)]
    weights = None if settings.encoder_weights == "none" else settings.encoder_weights
    if not settings.encoder.startswith("tu-"):
        encoders = smp.encoders.encoders
        encoder = encoders[known("encoder", settings.encoder, encoders)]
        known("encoder_weights", weights or "none", [*encoder["pretrained_settings"], "none"])
        repo = encoder["pretrained_settings"].get(weights, {})
    else:
        repo = {"repo_id": f"timm/{settings.encoder.removeprefix('tu-')}"}
    if weights and pretrained:
        check_download(settings.encoder_weights, repo)
    options = {"encoder_weights": weights if pretrained else None, "classes": classes}
    if arch is smp.DPT:
        options["dynamic_img_size"] = True  # else it takes no size but its encoder's own
    try:
        network = arch(settings.encoder, **options)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"arch={settings.arch} encoder={settings.encoder}: {reason}") from None
    return Segmenter(network, 32)


def known(key: str, name: str, names: Iterable[str]) -> str:
    """`name` if it is one of `names`; InputError with the nearest of them."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, list(names), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(names))}"
    raise InputError(f"{key}={name}: unknown; {hint}")


def check_download(weights: str, repo: dict[str, str]) -> None:
    """InputError within a second where pretrained weights are neither here nor to be had.

    Left to itself the hub's client tries again and again, for half a minute.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    repo_id, revision = repo["repo_id"], repo.get("revision")
    here = isinstance(try_to_load_from_cache(repo_id, "model.safetensors", revision=revision), str)
    offline = constants.HF_HUB_OFFLINE or not answers(urlsplit(constants.ENDPOINT).hostname)
    if not here and offline:
        raise InputError(
            f"encoder_weights={weights}: {repo_id} is not on this machine and the model hub does "
            "not answer; connect to the network, or say encoder_weights=none to start from scratch"
        )


def answers(host: str, port: int = 443, seconds: float = 1.0) -> bool:
    """Whether a connection opens in time. Behind a proxy, which decides itself, always."""
    if urllib.request.getproxies():
        return True
    opened = []

    def knock() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), seconds).close()
            opened.append(True)

    thread = threading.Thread(target=knock, daemon=True)  # a name look-up knows no time limit
    thread.start()
    thread.join(seconds)
    return bool(opened)


_torchvision_schemas = None  # lives as long as the process: torch forgets them with the object


def mend_torchvision() -> None:
    """Let timm import beside a CPU torch, whose PyPI torchvision is built for CUDA.

    That torchvision's library cannot be loaded there, and its Python part refuses to import
    without the two operators' names. Only that Python part is needed here.
    """
    global _torchvision_schemas
    if torch.version.cuda or torch.version.hip or _torchvision_schemas:
        return
    folder = os.path.dirname(importlib.util.find_spec("torchvision").origin)
    try:
        for library in glob.glob(os.path.join(glob.escape(folder), "_C*.so")):
            torch.ops.load_library(library)
    except OSError:
        _torchvision_schemas = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _torchvision_schemas.define(
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
