"""SMP's Unet with a decoder that ends at half size."""

import pytest
import torch
import torch.nn.functional as F

from core.config import load_settings
from core.errors import InputError
from models import checkpoint
from models.build import build_model
from models.half_size_unet import HalfSizeUnet

SMP = ["model=smp", "encoder=tu-mobilenetv3_small_050", "encoder_weights=none"]
HALF = [*SMP, "half_size_decoder=true"]


def build(args, n_classes=1):
    torch.manual_seed(0)
    return build_model(load_settings(args), n_classes).network.eval()


@pytest.mark.parametrize("n_classes", [1, 3])
def test_half_size_unet_logits_have_the_size_of_the_images_and_all_weights_a_gradient(n_classes):
    network = build(HALF, n_classes).train()
    logits = network(torch.randn(2, 3, 64, 96))
    assert isinstance(network, HalfSizeUnet) and logits.shape == (2, n_classes, 64, 96)
    (logits**2).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_build_smp_without_this_option_is_smps_own_unet_with_the_same_weights():
    network = build(SMP)
    import segmentation_models_pytorch as smp  # needs patch_torchvision_ops() with a CPU-only torch

    torch.manual_seed(0)
    expected = smp.Unet("tu-mobilenetv3_small_050", encoder_weights=None)
    assert type(network) is smp.Unet
    for a, b in zip(network.state_dict().items(), expected.state_dict().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


@torch.inference_mode()
def test_half_size_unet_is_smps_unet_up_to_its_last_block():
    network, x = build(HALF), torch.randn(1, 3, 64, 96)
    plain = build(SMP)
    *skips, y = plain.encoder(x)[1:]
    for block in plain.decoder.blocks[:4]:
        skip = skips.pop()
        y = block(y, *skip.shape[-2:], skip)
    assert torch.allclose(network(x), F.pixel_shuffle(network.head(y), 2), atol=1e-5)


@torch.inference_mode()
def test_load_model_restores_the_end_of_the_decoder(tmp_path):
    settings = load_settings(HALF)
    model = build_model(settings).eval()
    checkpoint.save_model(tmp_path / "w.safetensors", model, settings, {"classes": 1})
    loaded, _ = checkpoint.load_model(tmp_path / "w.safetensors", torch.device("cpu"))
    images = torch.randint(0, 256, (1, 3, 40, 61), dtype=torch.uint8)
    assert torch.equal(loaded(images), model(images))


def test_build_model_of_another_architecture_rejects_half_size_decoder():
    with pytest.raises(InputError, match="arch=FPN: half_size_decoder is an option of arch=Unet"):
        build_model(load_settings([*HALF, "arch=FPN"]))
