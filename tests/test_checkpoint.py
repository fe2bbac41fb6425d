"""Weights come back as they were; files that are not ours are refused and never run."""

from models.build import build_model

import pickle

import pytest
import torch
from conftest import Payload

from core import config, run_folder
from core.errors import InputError
from models import checkpoint


@pytest.fixture
def saved(tmp_path):
    settings = config.load_settings(["channels=[4,8]", "size=[32,48]", f"output_dir={tmp_path}"])
    network = build_model(settings).eval()
    path = run_folder.weights_path(settings.run_dir, 0)
    checkpoint.save_model(path, network, settings, {"classes": 1, "dice": 0.5, "fold": 0})
    return path, network, settings


def test_weights_settings_and_facts_come_back(saved):
    path, network, settings = saved
    loaded, stored, about = checkpoint.load_model(path, torch.device("cpu"))
    images = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
    assert torch.equal(loaded(images), network(images)) and not loaded.training
    assert stored == settings and about["dice"] == 0.5


def test_a_pickle_is_never_run(saved, tmp_path):
    sign = tmp_path / "exploded"
    saved[0].write_bytes(pickle.dumps(Payload(sign)))
    with pytest.raises(InputError, match=r"best\.safetensors"):
        checkpoint.load_model(saved[0], torch.device("cpu"))
    assert not sign.exists()


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"x" + b])
def test_spoiled_weights_are_one_line(saved, spoil):
    path = saved[0]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=r"best\.safetensors") as error:
        checkpoint.load_model(path, torch.device("cpu"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("about", "reason"),
    [({}, "classes"), ({"classes": 1, "extra": 2}, "another version")],
)
def test_weights_that_train_py_did_not_write_are_one_line(saved, about, reason, monkeypatch):
    path, network, settings = saved
    if "extra" in about:
        monkeypatch.setattr(checkpoint, "asdict", lambda s: {"no_such_setting": 1})
    checkpoint.save_model(path, network, settings, about)
    with pytest.raises(InputError, match=reason):
        checkpoint.load_model(path, torch.device("cpu"))


def test_weights_of_another_network_are_refused(saved):
    path, network, settings = saved
    settings.channels = [8, 8]
    checkpoint.save_model(path, network, settings, {"classes": 1})
    with pytest.raises(InputError, match="does not fit"):
        checkpoint.load_model(path, torch.device("cpu"))


def test_only_finished_folds_count_as_trained(saved):
    path, _, settings = saved
    assert run_folder.finished_folds(settings.run_dir) == []
    (path.parent / "oof.npz").touch()
    (settings.run_dir / "fold_of_mine").mkdir()
    (settings.run_dir / "fold_of_mine/oof.npz").touch()
    assert run_folder.finished_folds(settings.run_dir) == [0]
