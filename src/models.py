"""Settings → a network that gives logits for images of any size.

`python src/models.py recipe=...` prints it as a table.
"""

import contextlib
import difflib
import glob
import importlib.util
import os
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
import torchinfo
from torch import Tensor, nn

import config
from config import InputError
from labels import scheme_of
from settings import Settings
from unet import UNet

# Mean and deviation of ImageNet's pixels in 0…1, RGB: what pretrained encoders were fed.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """uint8 RGB images B×3×H×W of any size → logits B×classes×H×W.

    The network's own business, here so that nobody else needs to know it: normalisation, and
    mirroring beyond the edges up to a size that it takes, cropped off again.
    `frame` tells of a side's pixels how many the network needs, and how many of them come before.
    """

    def __init__(self, network: nn.Module, frame: Callable[[int], tuple[int, int]]):
        super().__init__()
        self.network, self.frame = network, frame
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        (tall, top), (wide, left) = self.frame(height), self.frame(width)
        x = (images.float() - self.mean) / self.std
        x = pad(x, (left, wide - width - left, top, tall - height - top))
        x = x.contiguous(memory_format=torch.channels_last)
        return self.network(x)[..., :height, :width]


def pad(x: Tensor, margins: tuple[int, int, int, int]) -> Tensor:
    """B×C×H×W, mirrored beyond its edges (left, right, top, bottom); along an axis that is too
    short for that, its last pixels are repeated."""
    for axis, ends in ((-1, margins[:2]), (-2, margins[2:])):
        mode = "reflect" if max(ends) < x.shape[axis] else "replicate"
        x = F.pad(x, (*ends, 0, 0) if axis == -1 else (0, 0, *ends), mode=mode) if any(ends) else x
    return x


def build(settings: Settings, classes: int = 1, pretrained: bool = True) -> Segmenter:
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
    for name, count in (("dropout", levels), ("decoder", levels - 1), ("ups", levels - 1)):
        given = getattr(settings, name)
        if given and len(given) != count:
            raise InputError(
                f"{name}={given}: {levels} levels (channels={settings.channels}) "
                f"need {count} numbers"
            )
    knobs = ("norm", "up", "dropout", "stem", "decoder", "ups", "tail", "convs", "padding", "init")
    return UNet(settings.channels, classes, **{name: getattr(settings, name) for name in knobs})


def parameters(network: nn.Module) -> int:
    """How many numbers training sets."""
    return sum(p.numel() for p in network.parameters())


def main() -> None:
    """Print the network of the settings, layer by layer, for one image of its size."""
    settings = config.load(sys.argv[1:])
    segmenter = build(settings, len(scheme_of(settings).names), pretrained=False)
    sides = [segmenter.frame(side)[0] for side in settings.size or (1280, 1918)]
    summary = torchinfo.summary(
        segmenter.network,
        (1, 3, *sides),
        col_names=("output_size", "num_params"),
        row_settings=("depth", "var_names"),
        depth=3,
        verbose=0,
    )
    print(summary)


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
    return Segmenter(network, lambda side: (-(-side // 32) * 32, 0))


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


if __name__ == "__main__":
    config.run(main)
