"""The U-Net: parameter count of the paper, its forward pass, shapes, initial weights."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from core.config import load_settings
from core.errors import InputError
from models.build import build_model
from models.segmenter import count_parameters
from models.unet import UPSAMPLERS, UNet, center_crop

PAPER_CHANNELS = [64, 128, 256, 512, 1024]


def conv_parameters(c_in, c_out, kernel_size, bias=True):
    return c_in * c_out * kernel_size**2 + c_out * bias


def expected_parameters(channels, norm, upsampling_kernel_size):
    """Count the weights layer by layer."""
    bias = norm == "none"

    def block(c_in, c_out):
        norm_parameters = 0 if bias else 2 * c_out  # scale and shift
        convs = conv_parameters(c_in, c_out, 3, bias) + conv_parameters(c_out, c_out, 3, bias)
        return convs + 2 * norm_parameters

    total = block(3, channels[0]) + conv_parameters(channels[0], 1, 1)
    for shallow, deep in pairwise(channels):
        total += block(shallow, deep) + conv_parameters(deep, shallow, upsampling_kernel_size)
        total += block(2 * shallow, shallow)
    return total


@pytest.mark.parametrize(
    ("norm", "upsampling", "parameters"),
    [
        ("none", "transpose", 31_031_745),
        ("none", "nearest_conv", 31_031_745),
        ("batch", "transpose", None),
    ],
)
def test_unet_of_the_paper_has_the_published_number_of_parameters(norm, upsampling, parameters):
    expected = expected_parameters(PAPER_CHANNELS, norm, upsampling_kernel_size=2)
    assert parameters in (None, expected)
    with torch.device("meta"):
        network = UNet(PAPER_CHANNELS, norm=norm, upsampling=upsampling)
    assert count_parameters(network) == expected


# ---------------------------------------------------------------- forward pass


def reference_forward(network, x):
    """Apply a U-Net of three levels without normalization, written out with its weights."""
    w = dict(network.named_parameters())

    def conv(x, name):
        return F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1))

    def block(x, name):
        return conv(conv(x, f"{name}.0"), f"{name}.2")

    def up(x, name):
        return F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2)

    a = block(x, "encoder_blocks.0")
    b = block(F.max_pool2d(a, 2), "encoder_blocks.1")
    c = block(F.max_pool2d(b, 2), "encoder_blocks.2")
    y = block(torch.cat([b, up(c, "upsamplers.0")], 1), "decoder_blocks.0")
    y = block(torch.cat([a, up(y, "upsamplers.1")], 1), "decoder_blocks.1")
    return F.conv2d(y, w["head.weight"], w["head.bias"])


def test_unet_forward_equals_the_paper_written_out():
    torch.manual_seed(0)
    network, x = UNet([4, 8, 16], norm="none").eval(), torch.randn(2, 3, 16, 24)
    assert torch.allclose(network(x), reference_forward(network, x), atol=1e-6)


@pytest.mark.parametrize("space_to_depth", [1, 2, 4])
@pytest.mark.parametrize("upsampling", UPSAMPLERS)
@pytest.mark.parametrize("channels", [[4, 8], [4, 8, 8, 16]])
def test_unet_logits_have_the_size_of_the_images_and_all_weights_a_gradient(
    space_to_depth, upsampling, channels
):
    network = UNet(channels, n_classes=2, upsampling=upsampling, space_to_depth=space_to_depth)
    stride = space_to_depth * 2 ** (len(channels) - 1)
    assert [network.input_size(side) for side in (1, stride, stride + 1)] == [
        *(stride, stride, 2 * stride)
    ]
    logits = network(torch.randn(2, 3, stride * 2, stride * 3))
    assert logits.shape == (2, 2, stride * 2, stride * 3)
    (logits**2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_unet_dropout_is_active_only_in_training():
    network, x = UNet([4, 8], norm="none", dropout=[0, 0.5]), torch.randn(1, 3, 8, 8)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize("upsampling", UPSAMPLERS)
def test_upsampler_adds_one_pixel_below_and_right_of_each(upsampling):
    """The first output row and column come from the first pixel."""
    upsampler = UPSAMPLERS[upsampling](1, 1)
    with torch.no_grad():
        for name, parameter in upsampler.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = 1
    y = upsampler(x)[0, 0]
    assert y.shape == (8, 8) and y[0, 0] == y.max() > 0 and (y[4:] == 0).all()


def test_center_crop_keeps_the_center():
    x = torch.arange(35).view(1, 1, 5, 7)
    assert torch.equal(center_crop(x, (3, 3)), x[..., 1:4, 2:5])
    assert torch.equal(center_crop(x, (2, 6)), x[..., 1:3, 0:6])


# ---------------------------------------------------------------- unpadded convolutions


@pytest.mark.parametrize("axis", [-1, -2])
def test_unet_of_valid_padding_with_symmetric_weights_mirrors_its_logits(axis):
    """Skip connections are cropped equally on both sides."""
    torch.manual_seed(0)
    unet = UNet([4, 8, 16], norm="none", padding="valid")
    for weight in unet.parameters():
        if weight.ndim == 4:
            weight.data = (weight.data + weight.data.flip(axis)) / 2
    images = torch.rand(1, 3, unet.input_size(12), unet.input_size(12))
    torch.testing.assert_close(unet(images.flip(axis)), unet(images).flip(axis))


def test_input_size_of_valid_padding_is_the_papers():
    network = UNet(PAPER_CHANNELS, norm="none", padding="valid")
    assert network.input_size(388) == network.input_size(387) == 572


@pytest.mark.parametrize("size", [1, 17, 40])
def test_input_size_fits_the_forward_pass_of_valid_padding(size):
    options = {"padding": "valid", "refine_channels": [3], "space_to_depth": 2}
    network = UNet([2, 4, 6], **options).eval()
    input_size = network.input_size(size)
    output_size = network(torch.randn(1, 3, input_size, input_size)).shape[-1]
    stride = 2 * 2**2
    assert size <= output_size < size + stride
    # 2 pixels for each convolution: refine; level 0; level 1, twice as large; bottom, four times.
    assert input_size - output_size == 2 * (2 + (4 + 4) + (4 + 4) * 2 + 4 * 4)


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "values", "n_expected"),
    [("dropout", [0.1], 3), ("upsample_channels", [4], 2), ("decoder_channels", [4], 2)],
)
def test_build_unet_with_a_list_of_wrong_length_raises_input_error(name, values, n_expected):
    settings = load_settings(["channels=[4,8,8]", f"{name}={values}"])
    with pytest.raises(InputError, match=rf"{name}=.*expected {n_expected} numbers.*3 levels"):
        build_model(settings)


@pytest.mark.parametrize("name", ["norm", "weight_init"])
def test_unet_rejects_unknown_options(name):
    with pytest.raises(ValueError, match=f"{name}='other': expected .*'"):
        UNet([8, 16], **{name: "other"})


def test_unet_he_initialization_keeps_the_variance_of_the_activations():
    torch.manual_seed(0)
    network = UNet([64, 128], norm="none", weight_init="he")
    conv = network.encoder_blocks[1][0]
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert not conv.bias.any()


def test_unet_initial_weights_depend_only_on_the_seed_and_the_order_of_the_layers():
    """The order is part of what a seed reproduces: encoder, upsamplers, decoder, refine, head."""
    torch.manual_seed(0)
    network = UNet([4, 8, 8], refine_channels=[5])
    parts = ["encoder_blocks", "upsamplers", "decoder_blocks", "refine", "head"]
    names = [name.partition(".")[0] for name, _ in network.named_parameters()]
    assert list(dict.fromkeys(names)) == parts
    torch.manual_seed(0)
    for part in parts:
        for module in getattr(network, part).modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                weight = module.weight.detach().clone()
                module.reset_parameters()
                assert torch.equal(module.weight, weight)
