"""The recipes of the published U-Nets build the networks that are written out here layer by layer,
and train them with the settings that are repeated here."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import load_settings
from models.build import build_unet
from models.segmenter import count_parameters
from models.unet import UNet


class Layers:
    """Layers whose weights are those of a UNet, taken in the order of its forward pass. Each checks
    the shape of the weight that it takes."""

    def __init__(self, network: UNet):
        n_up = len(network.upsamplers)
        levels = [(f"upsamplers.{i}.", f"decoder_blocks.{i}.") for i in range(n_up)]
        parts = [f"encoder_blocks.{i}." for i in range(n_up + 1)]
        parts += [part for level in levels for part in level] + ["refine.", "head."]
        state = network.state_dict()
        used = [name for part in parts for name in state if name.startswith(part)]
        assert sorted(used) == sorted(state)
        self.tensors = [state[name] for name in used if state[name].ndim]

    def take(self, *shape: int) -> Tensor:
        tensor = self.tensors.pop(0)
        assert tuple(tensor.shape) == shape
        return tensor

    def conv(self, x: Tensor, channels: int, kernel_size: int = 3) -> Tensor:
        weight = self.take(channels, x.shape[1], kernel_size, kernel_size)
        return F.conv2d(x, weight, self.take(channels), padding=(kernel_size - 1) // 2)

    def two_convs(self, x: Tensor, channels: int) -> Tensor:
        for _ in range(2):
            x = self.conv(x, channels).relu()
        return x

    def two_convs_with_norm(self, x: Tensor, channels: int) -> Tensor:
        for _ in range(2):
            x = F.conv2d(x, self.take(channels, x.shape[1], 3, 3), padding=1)
            scale, shift, mean, variance = (self.take(channels) for _ in range(4))
            x = F.batch_norm(x, mean, variance, scale, shift).relu()
        return x

    def transposed(self, x: Tensor, channels: int, kernel_size: int) -> Tensor:
        weight = self.take(x.shape[1], channels, kernel_size, kernel_size)
        padding = {"padding": 1, "output_padding": 1} if kernel_size == 3 else {}
        return F.conv_transpose2d(x, weight, self.take(channels), stride=2, **padding)

    def repeat(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def encode(layers: Layers, x: Tensor, channels: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Return the features of the last level, and those of the levels above, top to bottom."""
    skips = []
    for n_channels in channels[:-1]:
        x = layers.two_convs(x, n_channels)
        skips.append(x)
        x = F.max_pool2d(x, 2)
    return layers.two_convs(x, channels[-1]), skips


def background_separation(layers: Layers, x: Tensor) -> Tensor:
    x, skips = encode(layers, x, (64, 128, 256, 512, 1024))
    for channels in (512, 256, 128, 64):
        # A 2×2 convolution of the repeated pixels, padded below and on the right; no ReLU.
        x = layers.conv(F.pad(layers.repeat(x), (0, 1, 0, 1)), channels, kernel_size=2)
        x = layers.two_convs(torch.cat([skips.pop(), x], 1), channels)
    return layers.conv(x, 1, 1)


def pets_slim(layers: Layers, x: Tensor) -> Tensor:
    x, skips = encode(layers, x, (8, 16, 32, 64, 128, 256, 512))
    for up_channels, channels in ((64, 256), (32, 128), (16, 64), (8, 32), (4, 16), (2, 16)):
        x = torch.cat([skips.pop(), layers.transposed(x, up_channels, 2)], 1)
        x = layers.two_convs(x, channels)
    return layers.conv(x, 1, 1)


def pets_fcn(layers: Layers, x: Tensor) -> Tensor:
    a = layers.two_convs_with_norm(x, 64)
    b = layers.two_convs_with_norm(F.max_pool2d(a, 2), 128)
    x = layers.two_convs_with_norm(F.max_pool2d(b, 2), 256)
    x = layers.two_convs_with_norm(torch.cat([b, layers.repeat(x)], 1), 128)
    x = layers.two_convs_with_norm(torch.cat([a, layers.repeat(x)], 1), 64)
    return layers.conv(x, 3, 1)


def cityscapes_pairs(layers: Layers, x: Tensor) -> Tensor:
    skips = []
    for channels, dropout in ((16, 0), (32, 0), (64, 0), (128, 0.1), (256, 0.3)):
        x = F.dropout(layers.two_convs(x, channels), dropout)
        skips.append(x)  # after dropout
        x = F.max_pool2d(x, 2)
    x = F.dropout(layers.two_convs(x, 512), 0.3)
    for channels in (256, 128, 64, 32, 16):
        x = torch.cat([skips.pop(), layers.transposed(x, channels, 3)], 1)
        x = layers.two_convs(x, channels)
    x = layers.conv(x, 16).relu()
    return layers.conv(x, 34, 1)


def cityscapes_unet(layers: Layers, x: Tensor) -> Tensor:
    x, skips = encode(layers, x, (64, 128, 256, 512, 1024))
    for channels in (512, 256, 128, 64):
        x = torch.cat([skips.pop(), layers.transposed(x, channels, 2)], 1)
        x = layers.two_convs(x, channels)
    return layers.conv(x, 19, 1)


# Reference, height and width of its input, and number of parameters, of which the sources state the
# first three.
PUBLISHED: dict[str, tuple[Callable[[Layers, Tensor], Tensor], tuple[int, int], int]] = {
    "background_separation": (background_separation, (16, 32), 31_031_745),
    "cityscapes_pairs": (cityscapes_pairs, (32, 64), 8_651_442),
    "pets_slim": (pets_slim, (64, 128), 6_667_639),
    "pets_fcn": (pets_fcn, (8, 16), 1_884_547),
    "cityscapes_unet": (cityscapes_unet, (16, 32), 31_032_915),
}


def randomize_vectors(network: UNet) -> None:
    """Draw biases, and scale, shift and statistics of batch normalization, so that each counts."""
    for tensor in network.state_dict().values():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_recipe_builds_the_published_network(recipe):
    reference, size, n_parameters = PUBLISHED[recipe]
    n_classes = {"pets_fcn": 3, "cityscapes_pairs": 34, "cityscapes_unet": 19}.get(recipe, 1)
    torch.manual_seed(0)
    network = build_unet(load_settings([f"recipe={recipe}"]), n_classes)
    assert count_parameters(network) == n_parameters
    randomize_vectors(network)
    layers, x = Layers(network), torch.randn(1, 3, *size)
    has_dropout = recipe == "cityscapes_pairs"
    network.train(has_dropout)
    with torch.no_grad():
        torch.manual_seed(1)  # of dropout
        logits = network(x)
        torch.manual_seed(1)
        expected = reference(layers, x)
    assert not layers.tensors
    assert logits.shape == (1, n_classes, *size)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


ALL = (
    "weight_decay=0 lr_schedule=constant warmup=0 grad_clip=0 ema_decay=0 grad_accumulation=1 "
    "lr_reference_batch=0 crop_size=null stages=[] tta=none "
)
TRAINING = {
    "background_separation": "size=640,640 resize_mode=letterbox reduce_colors=8 "
    "weight_init=default augmentation=paper optimizer=adam lr=1e-4 loss=bce batch_size=2 epochs=10",
    "pets_fcn": "size=128,128 trimap_border=class weight_init=default "
    "augmentation=hflip optimizer=adam lr=1e-3 loss=ce batch_size=16 epochs=30",
    "pets_slim": "size=256,256 trimap_border=pet weight_init=default "
    "augmentation=hflip optimizer=rmsprop lr=1e-3 loss=bce batch_size=32 epochs=40",
    "cityscapes_pairs": "size=256,256 cityscapes_classes=34 weight_init=he "
    "augmentation=none optimizer=adam lr=1e-3 loss=ce batch_size=16 epochs=30 "
    "checkpoint_metric=accuracy",
    "cityscapes_unet": "size=512,1024 cityscapes_classes=19 weight_init=he "
    "augmentation=hflip optimizer=adam lr=1e-4 loss=ce batch_size=2 epochs=10",
}


@pytest.mark.parametrize("recipe", TRAINING)
def test_recipe_of_a_published_network_has_its_training_settings(recipe):
    expected = (ALL + TRAINING[recipe]).split()
    assert load_settings([f"recipe={recipe}"]) == load_settings([f"recipe={recipe}", *expected])
