"""Pretrained weights of encoders from the model hub, which the tests never reach."""

import json
import socket
import time

import pytest
import torch
from safetensors.torch import save_file

from core.config import load_settings
from core.errors import InputError
from models import pretrained, smp
from models.build import build_model

ENCODERS = {  # name → setting encoder_weights, repository on the model hub
    "mobilenet_v2": ("imagenet", "smp-hub/mobilenet_v2.imagenet"),
    "tu-mobilenetv3_small_050": ("true", "timm/mobilenetv3_small_050.lamb_in1k"),
}


def settings_of(encoder):
    return load_settings(
        ["model=smp", f"encoder={encoder}", f"encoder_weights={ENCODERS[encoder][0]}"]
    )


def set_endpoint(monkeypatch, port):
    from huggingface_hub import constants

    url = f"http://127.0.0.1:{port}"
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(scope="module", autouse=True)
def importable_timm():
    smp.patch_torchvision_ops()


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    """An empty cache of a model hub that refuses connections."""
    import segmentation_models_pytorch  # noqa: F401  takes seconds that tests do not measure
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        set_endpoint(monkeypatch, server.getsockname()[1])  # closed again
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


CONFIG = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


def write_to_cache(hub_cache, encoder, tensors, config=CONFIG):
    """Write weights where huggingface_hub keeps what it has downloaded."""
    repo_id, revision, filenames = pretrained.find_hub_files(encoder, ENCODERS[encoder][0])
    folder = hub_cache / f"models--{repo_id.replace('/', '--')}"
    commit = revision or "0" * 40
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for name in filenames:
        (snapshot / name).write_text(json.dumps(config))
    save_file(tensors, snapshot / "model.safetensors")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_find_hub_files_returns_the_repository_of_the_weights(encoder):
    weights, repo_id = ENCODERS[encoder]
    assert pretrained.find_hub_files(encoder, weights)[0] == repo_id


def test_find_hub_files_keeps_the_tag_of_a_timm_encoder():
    files = pretrained.find_hub_files("tu-resnet18.fb_swsl_ig1b_ft_in1k", "true")
    assert files[0] == "timm/resnet18.fb_swsl_ig1b_ft_in1k"


@pytest.mark.parametrize("encoder", ENCODERS)
def test_build_smp_loads_cached_weights_without_a_network(encoder, hub_cache):
    if encoder.startswith("tu-"):
        import timm

        pretrained = timm.create_model(encoder.removeprefix("tu-"))
    else:
        from segmentation_models_pytorch.encoders import get_encoder

        pretrained = get_encoder(encoder)
    write_to_cache(hub_cache, encoder, pretrained.state_dict())
    loaded = build_model(settings_of(encoder)).network.encoder.state_dict()
    first_conv = next(p for p in pretrained.parameters() if p.ndim == 4)
    assert any(torch.equal(tensor, first_conv) for tensor in loaded.values())


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (CONFIG, 255),
        (CONFIG | {"input_range": [0, 255]}, 1),
        (CONFIG | {"input_space": "BGR"}, None),
    ],
)
def test_build_smp_normalizes_as_the_weights_metadata_on_the_hub(hub_cache, config, scale):
    from segmentation_models_pytorch.encoders import get_encoder

    write_to_cache(hub_cache, "mobilenet_v2", get_encoder("mobilenet_v2").state_dict(), config)
    if scale is None:
        with pytest.raises(InputError, match="encoder=mobilenet_v2: imagenet expects BGR images"):
            build_model(settings_of("mobilenet_v2"))
        return
    model = build_model(settings_of("mobilenet_v2"))
    for key in ("mean", "std"):
        expected = [x * scale for x in CONFIG[key]]
        assert getattr(model, key).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_build_smp_without_cache_and_network_raises_input_error_at_once(encoder, hub_cache):
    start = time.monotonic()
    with pytest.raises(InputError, match=f"{ENCODERS[encoder][1]}.*encoder_weights=none") as error:
        build_model(settings_of(encoder))
    assert time.monotonic() - start < 2 and "\n" not in str(error.value)


def test_build_smp_not_pretrained_needs_neither_cache_nor_network(hub_cache):
    assert build_model(settings_of("mobilenet_v2"), pretrained=False)


def test_build_smp_gives_up_on_a_hub_that_does_not_answer(hub_cache, monkeypatch):
    monkeypatch.setattr(pretrained, "HUB_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        set_endpoint(monkeypatch, server.getsockname()[1])
        start = time.monotonic()
        with pytest.raises(InputError, match=r"timed out.*encoder_weights=none"):
            build_model(settings_of("mobilenet_v2"))
    assert time.monotonic() - start < 10


def test_build_smp_in_offline_mode_of_huggingface_hub_raises_input_error(hub_cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"offline mode.*encoder_weights=none"):
        build_model(settings_of("mobilenet_v2"))


def test_require_hub_files_asks_for_each_file_of_the_revision_that_is_not_cached(
    hub_cache, monkeypatch
):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "get_hf_file_metadata", lambda url, timeout: asked.append(url)
    )
    write_to_cache(hub_cache, "mobilenet_v2", {})
    pretrained.require_hub_files("mobilenet_v2", "imagenet")
    assert not asked
    (folder,) = hub_cache.glob("*/snapshots/*")
    (folder / "model.safetensors").unlink()
    pretrained.require_hub_files("mobilenet_v2", "imagenet")
    assert [url.rpartition("/")[2] for url in asked] == ["model.safetensors"]
    folder.rename(folder.with_name("0" * 40))  # of another revision, which is now the main one
    next(hub_cache.glob("*/refs/main")).write_text("0" * 40)
    pretrained.require_hub_files("mobilenet_v2", "imagenet")
    names = [url.rpartition("/")[2] for url in asked[1:]]
    assert names == ["config.json", "model.safetensors"]


def test_require_hub_files_asks_again_for_a_file_that_the_hub_once_did_not_have(hub_cache):
    write_to_cache(hub_cache, "mobilenet_v2", {})
    (folder,) = hub_cache.glob("*/snapshots/*")
    (folder / "model.safetensors").unlink()
    noted = folder.parent.parent / ".no_exist" / folder.name / "model.safetensors"
    noted.parent.mkdir(parents=True)
    noted.touch()
    with pytest.raises(InputError, match=r"mobilenet_v2\.imagenet is not cached, and cannot be"):
        pretrained.require_hub_files("mobilenet_v2", "imagenet")
