"""Saved models load as they were; other files are rejected and never executed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from core.config import load_settings
from core.errors import InputError
from core.run_folder import read_run_settings, weights_path
from core.settings import Settings
from models import checkpoint
from models.build import build_model

# A run of the first release: its settings, parameters and metadata have old names. logits.npy holds
# what its own code predicted for `first_release_images`.
FIRST_RELEASE = Path(__file__).parent / "first_release"
CPU = torch.device("cpu")


@pytest.fixture
def saved(tmp_path):
    """Path, model and settings of a saved model."""
    settings = load_settings(["channels=[4,8]", "size=[32,48]", f"output_dir={tmp_path}"])
    model = build_model(settings).eval()
    path = weights_path(settings.run_dir, 0)
    metadata = {"classes": 1, "val_dice": 0.5, "fold": 0}
    checkpoint.save_model(path, model, settings, metadata)
    return path, model, settings


def test_load_model_returns_what_save_model_saved(saved):
    path, model, settings = saved
    loaded, loaded_settings = checkpoint.load_model(path, CPU)
    images = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
    assert torch.equal(loaded(images), model(images)) and not loaded.training
    assert loaded_settings == settings and checkpoint.read_metadata(path)["val_dice"] == 0.5


def test_save_model_writes_the_same_bytes_each_time(saved):
    path, model, settings = saved
    before = path.read_bytes()
    metadata = {"classes": 1, "val_dice": 0.5, "fold": 0}
    checkpoint.save_model(path, model, settings, metadata)
    assert path.read_bytes() == before


# ---------------------------------------------------------------- the first release


def first_release_images():
    return (torch.arange(3 * 9 * 14) * 37 % 256).to(torch.uint8).view(1, 3, 9, 14)


@torch.inference_mode()
def test_load_model_of_the_first_release_predicts_what_the_first_release_did():
    """The first release padded 9×14 pixels below and on the right, to 12×16."""
    model, _ = checkpoint.load_model(weights_path(FIRST_RELEASE, 0), CPU)
    expected = np.load(FIRST_RELEASE / "logits.npy")
    padded = F.pad(first_release_images().float(), (0, 2, 0, 3), mode="reflect").to(torch.uint8)
    assert np.allclose(model(padded)[..., :9, :14].numpy(), expected, atol=1e-5)


def test_load_model_of_the_first_release_has_todays_names():
    _, settings = checkpoint.load_model(weights_path(FIRST_RELEASE, 0), CPU)
    metadata = checkpoint.read_metadata(weights_path(FIRST_RELEASE, 0))
    assert settings.refine_channels == [4] and settings.batch_size == 4
    assert metadata["val_dice"] == pytest.approx(0.98124, abs=1e-5)
    assert metadata["val_accuracy"] == pytest.approx(0.99137, abs=1e-5)
    assert not {"dice", "accuracy"} & metadata.keys()
    run_settings = read_run_settings(FIRST_RELEASE) | {"fold": 0}
    assert load_settings([], base=run_settings) == settings


def test_load_model_of_the_first_release_saved_again_is_the_same_model(tmp_path):
    model, settings = checkpoint.load_model(weights_path(FIRST_RELEASE, 0), CPU)
    metadata = checkpoint.read_metadata(weights_path(FIRST_RELEASE, 0))
    path = tmp_path / "best.safetensors"
    checkpoint.save_model(path, model, settings, metadata)
    old, new = load_file(weights_path(FIRST_RELEASE, 0)), load_file(path)
    assert len(old) == len(new) and not any("network.down." in name for name in new)
    again, settings_again = checkpoint.load_model(path, CPU)
    metadata_again = checkpoint.read_metadata(path)
    for name in ("settings", "training_settings"):  # the old file lacks today's
        metadata.pop(name, None), metadata_again.pop(name)
    assert settings_again == settings and metadata_again == metadata
    tensors = again.state_dict()
    assert all(torch.equal(tensors[name], t) for name, t in model.state_dict().items())


# ---------------------------------------------------------------- invalid files


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"x" + b])
def test_load_model_of_a_damaged_file_raises_one_line(saved, damage):
    path = saved[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"best\.safetensors") as error:
        checkpoint.load_model(path, CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "'classes'"),
        ({"metadata": '{"classes": 1}'}, "'settings'"),
        ({"metadata": '{"settings": {}}'}, "'classes'"),
        ({"metadata": "[]"}, "not a weights file"),
        ({"metadata": "{"}, "not a weights file"),
        ({"metadata": '{"classes": 1, "settings": {"no_such": 1}}'}, r"version \(no_such\)"),
    ],
)
def test_load_model_of_a_file_that_train_did_not_write_raises_one_line(tmp_path, header, reason):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, path, header)
    with pytest.raises(InputError, match=reason) as error:
        checkpoint.load_model(path, CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("training_settings", [["new"], []])
def test_load_model_ignores_only_training_settings_of_another_version(tmp_path, training_settings):
    settings = load_settings(["channels=[4,8]", "lr=0.5"])
    model, path = build_model(settings), tmp_path / "best.safetensors"
    checkpoint.save_model(path, model, settings, {"classes": 1})
    stored = checkpoint.read_metadata(path)
    assert "lr" in stored["training_settings"] and "channels" not in stored["training_settings"]
    stored["settings"]["new"], stored["training_settings"] = 1, training_settings
    save_file(load_file(path), path, {"metadata": json.dumps(stored)})
    if training_settings:
        assert checkpoint.load_model(path, CPU)[1] == settings
    else:
        with pytest.raises(InputError, match=r"settings of another version \(new\)"):
            checkpoint.load_model(path, CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_load_model_with_weights_that_are_not_finite_raises_input_error(saved, value):
    path, model, settings = saved
    model.network.head.bias.data.fill_(value)
    checkpoint.save_model(path, model, settings, {"classes": 1})
    with pytest.raises(InputError, match="NaN or inf"):
        checkpoint.load_model(path, CPU)


def test_find_fold_mismatch_of_weights_without_the_fingerprint_of_their_data(
    tmp_path,
):
    settings = Settings(channels=[4, 8])
    path = tmp_path / "best.safetensors"
    checkpoint.save_model(path, build_model(settings), settings, {"classes": 1, "fold": 0})
    assert "was trained on other images" in checkpoint.find_fold_mismatch(path, 0, "0123456789ab")
