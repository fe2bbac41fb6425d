"""Settings → a network that gives logits for images of any size.

`python src/models.py recipe=...` prints it as a table.
"""

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

from core.errors import InputError
from core.settings import Settings
from models.segmenter import Segmenter

# ---------------------------------------------------------------- segmentation_models_pytorch


def build_smp(settings: Settings, classes: int, pretrained: bool) -> Segmenter:
    """Any of SMP's architectures over any of its encoders, or timm's as `tu-<name>`."""
    patch_torchvision_ops()
    import segmentation_models_pytorch as smp  # takes seconds; the from-scratch U-Net does without

    archs = smp.MODEL_ARCHITECTURES_MAPPING
    arch = archs[require_known("arch", settings.arch.lower(), archs)]
    weights = None if settings.encoder_weights == "none" else settings.encoder_weights
    if not settings.encoder.startswith("tu-"):
        encoders = smp.encoders.encoders
        encoder = encoders[require_known("encoder", settings.encoder, encoders)]
        require_known(
            "encoder_weights", weights or "none", [*encoder["pretrained_settings"], "none"]
        )
        repo = encoder["pretrained_settings"].get(weights, {})
    else:
        repo = {"repo_id": f"timm/{settings.encoder.removeprefix('tu-')}"}
    if weights and pretrained:
        require_pretrained_weights(settings.encoder_weights, repo)
    options = {"encoder_weights": weights if pretrained else None, "classes": classes}
    if arch is smp.DPT:
        options["dynamic_img_size"] = True  # else it takes no size but its encoder's own
    try:
        network = arch(settings.encoder, **options)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"arch={settings.arch} encoder={settings.encoder}: {reason}") from None
    return Segmenter(network, lambda side: (-(-side // 32) * 32, 0))


def require_known(key: str, name: str, names: Iterable[str]) -> str:
    """`name` if it is one of `names`; InputError with the nearest of them."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, list(names), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(names))}"
    raise InputError(f"{key}={name}: unknown; {hint}")


def require_pretrained_weights(weights: str, repo: dict[str, str]) -> None:
    """InputError within a second where pretrained weights are neither here nor to be had.

    Left to itself the hub's client tries again and again, for half a minute.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    repo_id, revision = repo["repo_id"], repo.get("revision")
    here = isinstance(try_to_load_from_cache(repo_id, "model.safetensors", revision=revision), str)
    offline = constants.HF_HUB_OFFLINE or not is_reachable(urlsplit(constants.ENDPOINT).hostname)
    if not here and offline:
        raise InputError(
            f"encoder_weights={weights}: {repo_id} is not on this machine and the model hub does "
            "not answer; connect to the network, or say encoder_weights=none to start from scratch"
        )


def is_reachable(host: str, port: int = 443, seconds: float = 1.0) -> bool:
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


def patch_torchvision_ops() -> None:
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
