"""Networks for inference: batch normalization becomes part of the convolutions."""

import pytest
import torch
from torch import nn

from core.config import load_settings
from inference.members import fuse_batch_norms, make_member
from models.build import build_model
from models.segmenter import Segmenter

UNET = ["channels=[4,8,12,16,24]"]


def count_norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def randomize_norms(network):
    """Give all normalization layers statistics and weights as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1, generator=generator)
    return network.eval()


def build_trained(args):
    torch.manual_seed(0)
    settings = load_settings([*args, "encoder_weights=none"])
    return randomize_norms(build_model(settings, pretrained=False)), settings


@torch.inference_mode()
def logits_of(network):
    images = torch.randint(
        0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return network(images)


@pytest.mark.parametrize(
    ("args", "n_norms"),
    [
        (UNET, 18),
        ([*UNET, "padding=valid", "upsampling=bilinear"], 18),
        (["recipe=carvana_smp"], 46),
        (["recipe=carvana_smp", "encoder=tu-tf_efficientnet_lite0"], 58),
    ],
)
def test_fuse_batch_norms_leaves_no_norm_and_the_same_logits(args, n_norms):
    network, _ = build_trained(args)
    fused, expected = fuse_batch_norms(network), logits_of(network)
    assert count_norms(network) == n_norms and count_norms(fused) == 0
    difference = (logits_of(fused) - expected).abs().max()
    assert difference < 1e-4 * max(1, expected.abs().max())


def test_fuse_batch_norms_leaves_the_original_unchanged():
    network, _ = build_trained(["channels=[4,8]"])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fused = fuse_batch_norms(network)
    assert not fused.training
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


class NormBeforeConv(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.conv(self.norm(x).relu())


class OneSizeOnly(nn.Sequential):
    def forward(self, x):
        assert x.shape[-2:] == (32, 32)
        return super().forward(x)


@pytest.mark.parametrize(
    "network",
    [NormBeforeConv(), OneSizeOnly(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))],
    ids=["order", "size"],
)
def test_fuse_batch_norms_keeps_norms_that_it_cannot_fuse(network):
    network = randomize_norms(Segmenter(network, lambda size: size))
    assert fuse_batch_norms(network) is network


def test_make_member_takes_the_preprocessing_of_training():
    network, settings = build_trained(["channels=[4,8]", "size=[32,48]"])
    member = make_member(network, settings, 0.5)
    assert member.model is network and member.weight == 0.5
    assert member.preprocessing.size == (32, 48)


def test_model_for_bf16_keeps_its_norms():
    member = make_member(*build_trained(["channels=[4,8]"]))
    assert member.model_for("bf16") is member.model
    assert count_norms(member.model_for("fp32")) == 0
    assert member.model_for("fp16") is member.model_for("fp32")
