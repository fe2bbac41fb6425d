"""Segmenter: normalization, padding and cropping for images of any size."""

import pytest
import torch
import torch.nn.functional as F

from core.config import load_settings
from models.build import build_model
from models.segmenter import Segmenter, reflect_pad


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_model(load_settings(["channels=[4,8,8]", "space_to_depth=2"])).eval()


@pytest.fixture(scope="module")
def smp_unet():
    args = ["model=smp", "encoder=resnet18", "encoder_weights=none"]
    return build_model(load_settings(args)).eval()


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 47), (64, 96), (80, 119)])
@pytest.mark.parametrize("model", ["unet", "smp_unet"])
@torch.inference_mode()
def test_segmenter_logits_have_the_size_of_the_images(model, size, request):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    logits = request.getfixturevalue(model)(images)
    assert logits.shape == (2, 1, *size) and logits.isfinite().all()


def test_segmenter_normalizes_with_the_statistics_of_imagenet():
    """(RGB in [0, 1] − mean) / standard deviation, the numbers of torchvision's models."""
    segmenter = Segmenter(torch.nn.Identity(), lambda size: size)
    pixel = segmenter(torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)).flatten()
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert pixel.tolist() == pytest.approx(expected, rel=1e-5)


class PaddedImage(torch.nn.Module):
    """Remembers its input and returns it."""

    def forward(self, x):
        self.x = x
        return x


@pytest.mark.parametrize(
    ("model", "size", "padding"),
    [
        ("smp_unet", (1280, 1918), (0, 0, 1, 1)),  # top, bottom, left, right
        ("smp_unet", (61, 33), (1, 2, 15, 16)),
        ("smp_unet", (64, 96), (0, 0, 0, 0)),
        ("unet", (1280, 1918), (0, 0, 1, 1)),
        ("unet", (61, 63), (1, 2, 0, 1)),
    ],
)
def test_segmenter_padding_is_centered(model, size, padding, request):
    network = PaddedImage()
    segmenter = Segmenter(network, request.getfixturevalue(model).input_size, [0.0] * 3, [1.0] * 3)
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    assert torch.equal(segmenter(images) * 255, images.float())
    top, bottom, left, right = padding
    expected = F.pad(images.float(), (left, right, top, bottom), mode="reflect")
    assert torch.equal(network.x * 255, expected)


@torch.inference_mode()
def test_segmenter_with_valid_padding_reflects_the_border():
    """The logits equal the middle of those of the image with a reflected border."""
    model = build_model(load_settings(["channels=[4,8,8]", "norm=none", "padding=valid"])).eval()
    image = torch.randint(0, 256, (1, 3, 60, 76), dtype=torch.uint8)
    bordered = F.pad(image.float(), (16, 16, 16, 16), mode="reflect").to(torch.uint8)
    assert torch.allclose(model(bordered)[..., 16:-16, 16:-16], model(image), atol=1e-5)


def test_reflect_pad_repeats_the_last_pixel_of_an_axis_that_is_too_short():
    x = torch.tensor([[1.0, 2.0, 3.0]]).view(1, 1, 1, 3)
    expected = [[3, 2, 1, 2, 3, 2]] * 3  # reflected along the width, repeated along the height
    assert reflect_pad(x, 2, 1, 1, 1)[0, 0].tolist() == expected
    # By three pixels, the whole axis.
    assert reflect_pad(x, 3, 0, 0, 0).flatten().tolist() == [1, 1, 1, 1, 2, 3]
    assert reflect_pad(x.mT, 0, 0, 3, 0).flatten().tolist() == [1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("extra", [6, 7, 10])
def test_segmenter_puts_the_logits_of_a_network_that_crops_in_their_place(extra):
    class Crop(torch.nn.Module):
        def forward(self, x):
            return x[:, :1, 3:-3, 3:-3]

    segmenter = Segmenter(Crop(), lambda size: size + extra, mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.randint(0, 256, (2, 3, 12, 17), dtype=torch.uint8)
    assert torch.equal(segmenter(images), images[:, :1] / 255)
