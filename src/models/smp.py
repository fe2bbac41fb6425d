"""Networks of segmentation_models_pytorch (SMP), with pretrained encoders of the model hub."""

import difflib
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from core.errors import InputError
from core.settings import Settings
from models.segmenter import Segmenter

ENCODER_STRIDE = 32
HUB_TIMEOUT_S = 2


def build_smp(settings: Settings, n_classes: int, pretrained: bool) -> Segmenter:
    """Return a network of SMP; its encoder is one of SMP's, or one of timm's as `tu-<name>`.

    Raises InputError if there is no such architecture, encoder or pretrained weights, if the two
    do not fit together, or if the weights are neither cached nor downloadable.
    """
    patch_torchvision_ops()
    import segmentation_models_pytorch as smp  # takes seconds, and model=unet does without

    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    architecture = architectures[require_known("arch", settings.arch.lower(), architectures)]
    pretrained = pretrained and settings.encoder_weights != "none"
    weights = True if settings.encoder.startswith("tu-") else settings.encoder_weights
    options = {"encoder_weights": weights if pretrained else None, "classes": n_classes}
    if architecture is smp.DPT:
        options["dynamic_img_size"] = True  # otherwise DPT accepts only its encoder's own size
    try:
        hub_files = find_hub_files(settings.encoder, settings.encoder_weights)
        if pretrained and hub_files:
            require_cached_or_online(hub_files, settings.encoder_weights)
        network = architecture(settings.encoder, **options)
    except (RuntimeError, KeyError, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"arch={settings.arch} encoder={settings.encoder}: {reason}") from None
    return Segmenter(network, round_up_to_stride)


def round_up_to_stride(size: int) -> int:
    """Return the smallest multiple of the encoders' stride from `size` on."""
    return -(-size // ENCODER_STRIDE) * ENCODER_STRIDE


def require_known(key: str, name: str, names: Iterable[str]) -> str:
    """Return `name` if it is among `names`; InputError with the most similar name otherwise."""
    if name in names:
        return name
    similar = difflib.get_close_matches(name, list(names), n=1)
    hint = f"did you mean {similar[0]}?" if similar else f"available: {', '.join(sorted(names))}"
    raise InputError(f"{key}={name}: unknown; {hint}")


# ---------------------------------------------------------------- pretrained weights


class HubFiles(NamedTuple):
    """Files of a repository on the model hub, huggingface.co."""

    repo_id: str
    revision: str | None
    filenames: list[str]


def find_hub_files(encoder: str, encoder_weights: str) -> HubFiles | None:
    """Return where the model hub has the pretrained weights of an encoder.

    None if encoder_weights is 'none', or if timm has no weights of the encoder on the hub. Raises
    InputError if SMP has no such encoder, or no such weights of it.
    """
    if encoder.startswith("tu-"):
        import timm

        # For example tu-resnet18 → timm/resnet18.a1_in1k: timm appends its default tag.
        pretrained_cfg = timm.models.get_pretrained_cfg(encoder.removeprefix("tu-"))
        if encoder_weights == "none" or not pretrained_cfg or not pretrained_cfg.hf_hub_id:
            return None
        return HubFiles(pretrained_cfg.hf_hub_id, None, ["model.safetensors"])

    from segmentation_models_pytorch.encoders import encoders

    available = encoders[require_known("encoder", encoder, encoders)]["pretrained_settings"]
    require_known("encoder_weights", encoder_weights, [*available, "none"])
    if encoder_weights == "none":
        return None
    return HubFiles(**available[encoder_weights], filenames=["config.json", "model.safetensors"])


def require_cached_or_online(files: HubFiles, encoder_weights: str) -> None:
    """Raise InputError if the files are neither in the local cache nor offered by the model hub.

    Asks the hub once: a download would repeat the request for half a minute before it fails.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    repo_id, revision, filenames = files
    for filename in filenames:
        if isinstance(try_to_load_from_cache(repo_id, filename, revision=revision), str):
            continue
        url = hf_hub_url(repo_id, filename, revision=revision)
        try:
            get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
        except Exception as error:  # of any type: errors of the HTTP client are not wrapped
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"encoder_weights={encoder_weights}: {repo_id} is not cached, and the model hub "
                f"does not offer it ({reason}); check the network, or set encoder_weights=none to "
                "train from scratch"
            ) from None


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
