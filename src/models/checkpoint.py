"""Model weights with their settings and metadata, in one safetensors file."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from core.errors import InputError
from core.files import atomic_write
from core.old_settings import rename_old_settings
from core.run_folder import weights_path
from core.settings import FIELDS, Settings
from data.fingerprint import is_same_dataset
from models.build import build_model
from models.segmenter import Segmenter

# Settings without effect on prediction; stored, because another version may have different ones.
TRAINING_SETTINGS = [n for n, field in FIELDS.items() if field.metadata["scope"] == "training"]
# Names in files of the first release → current names. They are the key of the header, keys of the
# metadata, and prefixes of the U-Net's parameter names.
FIRST_RELEASE_NAMES = {
    "about": "metadata",
    "dice": "val_dice",
    "accuracy": "val_accuracy",
    "network.down.": "network.encoder_blocks.",
    "network.up.": "network.upsamplers.",
    "network.merge.": "network.decoder_blocks.",
    "network.tail.": "network.refine.",
}


def save_model(path: Path, model: Segmenter, settings: Settings, metadata: dict[str, Any]) -> None:
    """Save the weights of `model` with its settings and JSON-serializable metadata.

    `metadata` must contain "classes", the number of classes.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    metadata = metadata | {"settings": asdict(settings), "training_settings": TRAINING_SETTINGS}
    # One entry only: safetensors writes several in random order.
    header = {"metadata": json.dumps(metadata)}
    with atomic_write(path) as tmp_path:
        tmp_path.write_bytes(save(tensors, metadata=header))


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a weights file, including its "settings" as a dict.

    Reads only the file's header. Raises InputError if `save_model` did not write the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = _rename_keys(file.metadata() or {})
            metadata = _rename_keys(json.loads(header.get("metadata", "{}")))
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a weights file ({error}); train the run again") from None
    missing = {"settings", "classes"} - metadata.keys()
    if missing:
        raise InputError(f"{path}: no {min(missing)!r} in its metadata: not written by train.py")
    stored = rename_old_settings(metadata["settings"])
    # Another version, such as a branch, may have other settings that only training uses.
    unneeded = {*metadata.get("training_settings", [])} - FIELDS.keys()
    settings = {name: value for name, value in stored.items() if name not in unneeded}
    return metadata | {"settings": settings}


def find_fold_mismatch(path: Path, fold: int, fingerprint: str) -> str:
    """Return an error message if scores of the network in `path` on `fold` are not out of fold.

    They are out of fold if the network held out `fold`, and was trained on the data with this
    fingerprint. Returns "" in this case.
    """
    if error := find_wrong_folder(path, fold):
        return error
    if not is_same_dataset(read_metadata(path).get("data"), fingerprint):
        return (
            f"{path}: was trained on other images, masks or folds than data_dir and folds_csv "
            "hold now; restore them"
        )
    return ""


def find_wrong_folder(path: Path, fold: int) -> str:
    """Return "" if the weights held out `fold`, else an error message."""
    if (held_out := read_metadata(path).get("fold")) == fold:
        return ""
    return f"{path}: is in the wrong folder: it held out fold {held_out}, not {fold}; move it"


def tensors_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's weights, without its metadata.

    The metadata differ after a resumed training.
    """
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        file.seek(8 + header_size)
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_scored_weights(run_dir: Path, fold: int, scored: str) -> None:
    """Raise InputError if the fold's weights held out another fold or are not those scored.

    `scored` is tensors_sha256() of the scored weights.
    """
    path = weights_path(run_dir, fold)
    if error := find_wrong_folder(path, fold):
        raise InputError(error)
    if scored != tensors_sha256(path):
        raise InputError(
            f"{path}: has other weights than those whose scores are in oof.npz; restore them, or "
            "move the folder away and train the fold again"
        )


def load_model(path: Path, device: torch.device) -> tuple[Segmenter, Settings]:
    """Return the model on `device`, for prediction only, and its settings."""
    metadata = read_metadata(path)
    if unknown := metadata["settings"].keys() - FIELDS.keys():
        raise InputError(
            f"{path}: has settings of another version ({', '.join(sorted(unknown))}); check out "
            f"commit {metadata.get('commit') or 'unknown'}"
        )
    settings = Settings(**metadata["settings"])
    model = build_model(settings, metadata["classes"], pretrained=False)
    load_weights(path, model, "its own settings")
    return model.to(device).eval().requires_grad_(False), settings


def load_weights(path: Path, model: Segmenter, description: str) -> None:
    """Copy the weights of a file that `save_model` wrote into `model`.

    Raises InputError if they do not fit `model` or are not finite. `description` says in the
    message what they do not fit.
    """
    tensors = _rename_keys(load_file(path))
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{path}: contains NaN or inf; train the run again")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise InputError(f"{path}: does not fit {description} ({reason})") from None


def _rename_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with the first release's names replaced by today's."""
    return {_current_name(name): value for name, value in values.items()}


def _current_name(name: str) -> str:
    for old, new in FIRST_RELEASE_NAMES.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name.removeprefix(old)
    return name
