"""Weights with all that is needed to use them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from core.errors import InputError
from core.files import atomic_write
from core.settings import Settings
from models.build import build_model
from models.segmenter import Segmenter


def save_model(path: Path, network: Segmenter, settings: Settings, about: dict[str, Any]) -> None:
    """One safetensors file: the weights, the settings that made them, and facts `about` them."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    about = {**about, "settings": asdict(settings)}
    data = save(tensors, metadata={"about": json.dumps(about)})  # several would be in any order
    with atomic_write(path, len(data)) as partial:
        partial.write_bytes(data)


def read_metadata(path: Path) -> dict[str, Any]:
    """What save_weights was told, from the file's header alone; InputError if it is not ours."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as weights ({error}); train them again") from None
    missing = {"settings", "classes"} - about.keys()
    if missing:
        raise InputError(f"{path}: holds no {min(missing)}; train.py did not write it")
    return about


def load_model(path: Path, device: torch.device) -> tuple[Segmenter, Settings, dict[str, Any]]:
    """The network in evaluation mode, the settings that made it, and facts about it."""
    about = read_metadata(path)
    try:
        settings = Settings(**about["settings"])
    except TypeError as error:
        raise InputError(f"{path}: holds settings of another version ({error})") from None
    network = build_model(settings, about["classes"], pretrained=False)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{path}: holds numbers that are not finite; train them again")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: does not fit its own settings ({reason})") from None
    return network.to(device).eval(), settings, about
