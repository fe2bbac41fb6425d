"""SMP's Unet with a skip connection at full size, and with a decoder that ends at half size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.config import load_settings
from core.errors import InputError
from models import checkpoint
from models.build import build_model
from models.smp_unet import SmpUnet

ENCODER = "tu-mobilenetv3_small_050"


def build(*args, n_classes=1):
    torch.manual_seed(0)
    args = ["model=smp", f"encoder={ENCODER}", "encoder_weights=none", *args]
    return build_model(load_settings(args), n_classes).network.eval()


ENDS = {
    "skip": ["full_size_skip=6"],
    "half": ["half_size_decoder=true"],
    "half_skip": ["full_size_skip=6", "half_size_decoder=true"],
}


@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("end", ENDS)
def test_smp_unet_logits_have_the_size_of_the_images_and_all_weights_a_gradient(end, n_classes):
    network = build(*ENDS[end], n_classes=n_classes).train()
    logits = network(torch.randn(2, 3, 64, 96))
    assert isinstance(network, SmpUnet) and logits.shape == (2, n_classes, 64, 96)
    (logits**2).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_build_smp_without_these_options_is_smps_own_unet_with_the_same_weights():
    import segmentation_models_pytorch as smp

    network = build()
    torch.manual_seed(0)
    expected = smp.Unet(ENCODER, encoder_weights=None)
    assert type(network) is smp.Unet
    for a, b in zip(network.state_dict().items(), expected.state_dict().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


@pytest.mark.parametrize("end", ENDS)
@torch.inference_mode()
def test_smp_unet_forward_equals_its_end_written_out(end):
    network, x = build(*ENDS[end]), torch.randn(1, 3, 64, 96)
    plain = build()
    *skips, y = plain.encoder(x)[1:]
    for block in plain.decoder.blocks[:4]:  # all but the last: up to half size
        skip = skips.pop()
        y = block(y, *skip.shape[-2:], skip)
    y = F.pixel_shuffle(y, 2) if end == "half_skip" else y
    if end == "skip":
        y = F.interpolate(y, scale_factor=2, mode="nearest")
    if end == "half":
        assert torch.allclose(network(x), F.pixel_shuffle(network.head(y), 2), atol=1e-5)
    else:
        y = network.block(torch.cat([y, network.stem(x)], dim=1))
        assert torch.allclose(network(x), network.head(y), atol=1e-5)


@pytest.mark.parametrize(("end", "radius"), [("skip", 5), ("half_skip", 4)])
def test_smp_unet_skip_at_full_size_is_aligned_with_the_image(end, radius):
    """Without the decoder's features a logit sees the pixels around its own: 2 convolutions of the
    stem, 2 or 1 of the block, and the head."""
    network = build(*ENDS[end])
    network.block[0].weight.data[:, :-6] = 0
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    network(image)[0, 0, 30, 31].backward()
    rows, columns = image.grad.abs().sum((0, 1)).nonzero().T
    assert (rows.min(), rows.max()) == (30 - radius, 30 + radius)
    assert (columns.min(), columns.max()) == (31 - radius, 31 + radius)


@torch.inference_mode()
def test_load_model_restores_the_end_of_the_decoder(tmp_path):
    args = ["model=smp", f"encoder={ENCODER}", "encoder_weights=none", *ENDS["half_skip"]]
    settings = load_settings(args)
    model = build_model(settings).eval()
    checkpoint.save_model(tmp_path / "w.safetensors", model, settings, {"classes": 1})
    loaded, _ = checkpoint.load_model(tmp_path / "w.safetensors", torch.device("cpu"))
    images = torch.randint(0, 256, (1, 3, 40, 61), dtype=torch.uint8)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("option", ["full_size_skip=16", "half_size_decoder=true"])
def test_build_model_of_another_architecture_rejects_options_of_unet(option):
    with pytest.raises(InputError, match="arch=FPN: full_size_skip and half_size_decoder are"):
        build_model(load_settings(["model=smp", "arch=FPN", "encoder_weights=none", option]))


@pytest.mark.parametrize("end", ["skip", "half_skip"])
def test_smp_unet_draws_the_convolutions_of_the_skip_from_he_and_normalizes_them(end):
    network = build("full_size_skip=32", *ENDS[end][1:])
    convs = [m for part in (network.stem, network.block) for m in part if isinstance(m, nn.Conv2d)]
    norms = [m for part in (network.stem, network.block) for m in part if has_statistics(m)]
    assert len(norms) == len(convs) == {"skip": 4, "half_skip": 3}[end]
    for conv in convs:  # torch's own standard deviation is less than half of He's
        expected = (2 / conv.weight[0].numel()) ** 0.5
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.2)


def has_statistics(module):
    return isinstance(module, nn.BatchNorm2d)
