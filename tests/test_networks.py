"""The U-Net and the networks around it: parameters, shapes, any image size, clear refusals."""

from models.build import build_model, build_unet

import socket
import subprocess
import sys
import threading
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from core import config
from core.errors import InputError
from models import segmenter, smp
from models.unet import UPSAMPLERS, UNet

PAPER = [64, 128, 256, 512, 1024]


def conv_parameters(inputs, outputs, side, bias=True):
    return inputs * outputs * side**2 + outputs * bias


def expected_parameters(channels, norm, up_side):
    """The U-Net's weights, counted layer by layer."""
    bias = norm == "none"

    def double(i, o):
        extra = 0 if bias else 2 * o  # scale and shift of each normalisation
        convs = conv_parameters(i, o, 3, bias) + conv_parameters(o, o, 3, bias)
        return convs + 2 * extra

    total = double(3, channels[0]) + conv_parameters(channels[0], 1, 1)
    for shallow, deep in pairwise(channels):
        total += double(shallow, deep) + conv_parameters(deep, shallow, up_side)
        total += double(2 * shallow, shallow)
    return total


@pytest.mark.parametrize(
    ("norm", "up", "parameters"),
    [
        ("none", "transpose", 31_031_745),
        ("none", "nearest", 31_031_745),
        ("batch", "transpose", None),
    ],
)
def test_the_papers_widths_have_the_published_number_of_parameters(norm, up, parameters):
    expected = expected_parameters(PAPER, norm, up_side=2)
    assert parameters in (None, expected)
    with torch.device("meta"):
        assert segmenter.count_parameters(UNet(PAPER, norm=norm, up=up)) == expected


PUBLISHED = {  # settings, classes, parameters
    # Jois & Aygar 2017, Background Separation using U-Net
    "background_separation": ({"norm": "none", "up": "nearest", "channels": PAPER}, 1, 31_031_745),
    # Gupta, Aggarwal, Singh, Chaudhary, Image Segmentation Project
    "cityscapes_pairs": (
        {"channels": [16 * 2**i for i in range(6)], "norm": "none", "up": "transpose3"}
        | {"tail": [16], "dropout": [0, 0, 0, 0.1, 0.3, 0.3], "init": "he"},
        34,
        8_651_442,
    ),
    # Oltean, Image segmentation using deep learning
    "pets_slim": (
        {"channels": [8 * 2**i for i in range(7)], "norm": "none", "ups": [64, 32, 16, 8, 4, 2]}
        | {"decoder": [256, 128, 64, 32, 16, 16]},
        1,
        6_667_639,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_number_of_parameters_and_a_recipe(name):
    knobs, classes, parameters = PUBLISHED[name]
    with torch.device("meta"):
        net = UNet(**knobs, classes=classes)
    assert segmenter.count_parameters(net) == parameters
    settings = config.load_settings([f"recipe={name}"])
    assert {key: getattr(settings, key) for key in knobs} == knobs
    with torch.device("meta"):
        assert segmenter.count_parameters(build_unet(settings, classes)) == parameters


def test_valid_convolutions_take_and_give_the_papers_sizes():
    net = UNet(PAPER, norm="none", padding="valid")
    assert net.frame(388) == (572, 92) and net.frame(387) == (572, 92)
    small = UNet([2, 4, 6], padding="valid", tail=[3], stem=2).eval()
    for side in (1, 17, 40):
        given, before = small.frame(side)
        after = given - small(torch.randn(1, 3, given, given)).shape[-1] - before
        assert 0 <= before <= after < before + small.frame(1)[0] and given % 2 == 0


@torch.inference_mode()
def test_valid_convolutions_see_a_mirrored_border():
    """Inside, an image of any size is answered as a part of the larger mirrored one."""
    settings = config.load_settings(["channels=[4,8,8]", "norm=none", "padding=valid"])
    network = build_model(settings).eval()
    image = torch.randint(0, 256, (1, 3, 60, 76), dtype=torch.uint8)
    large = F.pad(image.float(), (16, 16, 16, 16), mode="reflect").to(torch.uint8)
    assert torch.allclose(network(large)[..., 16:-16, 16:-16], network(image), atol=1e-5)


@pytest.mark.parametrize(("name", "given"), [("dropout", [0.1]), ("ups", [4]), ("decoder", [4])])
def test_lists_that_do_not_fit_each_other_are_told(name, given):
    settings = config.load_settings(["channels=[4,8,8]", f"{name}={given}"])
    with pytest.raises(InputError, match=rf"{name}=.*3 levels .* need [23] numbers"):
        build_model(settings)


def test_he_initialisation_keeps_the_size_of_what_flows():
    torch.manual_seed(0)
    net = UNet([64, 64], norm="none", init="he")
    conv = net.down[0][2]
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert not conv.bias.any()


def straight_line(net, x):
    """A three-level U-Net without normalisation, spelled out on the same weights."""
    w = dict(net.named_parameters())

    def conv(x, name):
        return F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1))

    def up(x, i):
        return F.conv_transpose2d(x, w[f"up.{i}.weight"], w[f"up.{i}.bias"], stride=2)

    a = conv(conv(x, "down.0.0"), "down.0.2")
    b = conv(conv(F.max_pool2d(a, 2), "down.1.0"), "down.1.2")
    c = conv(conv(F.max_pool2d(b, 2), "down.2.0"), "down.2.2")
    y = conv(conv(torch.cat([b, up(c, 0)], 1), "merge.0.0"), "merge.0.2")
    y = conv(conv(torch.cat([a, up(y, 1)], 1), "merge.1.0"), "merge.1.2")
    return F.conv2d(y, w["head.weight"], w["head.bias"])


def test_forward_is_the_papers():
    torch.manual_seed(0)
    net, x = UNet([4, 8, 16], norm="none").eval(), torch.randn(2, 3, 16, 24)
    assert torch.allclose(net(x), straight_line(net, x), atol=1e-6)


@pytest.mark.parametrize("stem", [1, 2, 4])
@pytest.mark.parametrize("up", UPSAMPLERS)
@pytest.mark.parametrize("channels", [[4, 8], [4, 8, 8, 16]])
def test_output_has_the_inputs_size_and_every_weight_learns(stem, up, channels):
    net = UNet(channels, classes=2, up=up, stem=stem)
    stride = stem * 2 ** (len(channels) - 1)
    assert [net.frame(side) for side in (1, stride, stride + 1)] == [
        (size, 0) for size in (stride, stride, 2 * stride)
    ]
    logits = net(torch.randn(2, 3, stride * 2, stride * 3))
    assert logits.shape == (2, 2, stride * 2, stride * 3)
    (logits**2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_dropout_only_while_training():
    net, x = UNet([4, 8], norm="none", dropout=[0, 0.5]), torch.randn(1, 3, 8, 8)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


@pytest.fixture(scope="module")
def segmenters():
    torch.manual_seed(0)
    small = config.load_settings(["channels=[4,8,8]", "space_to_depth=2"])
    smp = config.load_settings(["model=smp", "encoder=resnet18", "encoder_weights=none"])
    return [build_model(settings).eval() for settings in (small, smp)]


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 47), (64, 96), (80, 119)])
@torch.inference_mode()
def test_any_image_size_is_answered_at_that_size(segmenters, size):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    for segmenter in segmenters:
        logits = segmenter(images)
        assert logits.shape == (2, 1, *size) and logits.isfinite().all()


def test_pixels_are_normalised_as_imagenet_was():
    """(0…1 RGB − mean) / deviation, the numbers of torchvision's pretrained models."""
    segmenter = segmenter.Segmenter(torch.nn.Identity(), lambda side: (side, 0))
    pixel = segmenter(torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)).flatten()
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert pixel.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("up", UPSAMPLERS)
def test_doubling_adds_one_pixel_below_and_right_of_each(up):
    """A constant stays in place: the first output row and column come from the first pixel."""
    double = UPSAMPLERS[up](1, 1)
    with torch.no_grad():
        for name, parameter in double.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = 1
    y = double(x)[0, 0]
    assert y.shape == (8, 8) and y[0, 0] == y.max() > 0 and (y[4:] == 0).all()


@torch.inference_mode()
def test_padding_is_reflection_below_and_right(segmenters):
    images = torch.randint(0, 256, (1, 3, 59, 60), dtype=torch.uint8)
    padded = F.pad(images.float(), (0, 4, 0, 5), mode="reflect").to(torch.uint8)
    whole = segmenters[0](padded)[..., :59, :60]
    assert torch.allclose(segmenters[0](images), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["encoder=resnet43"], "did you mean resnet34"),
        (["arch=Unett"], "did you mean unet"),
        (["encoder_weights=imagnet"], "did you mean imagenet"),
        (["encoder=tu-nothing", "encoder_weights=none"], "tu-nothing"),
    ],
)
def test_an_unknown_network_is_one_line(words, hint):
    with pytest.raises(InputError, match=hint) as error:
        build_model(config.load_settings(["model=smp", *words]))
    assert "\n" not in str(error.value)


def test_an_encoder_of_timm_builds():
    settings = config.load_settings(["model=smp", "encoder=tu-resnet18", "encoder_weights=none"])
    assert segmenter.count_parameters(build_model(settings)) > 1e6


def test_pretrained_weights_without_a_network_are_refused_at_once(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "answers", lambda host: False)
    for encoder, weights in (("resnet34", "imagenet"), ("tu-resnet18", "true")):
        words = ["model=smp", f"encoder={encoder}", f"encoder_weights={weights}"]
        with pytest.raises(InputError, match="encoder_weights=none"):
            build_model(config.load_settings(words))


def test_answers_knows_an_open_port_from_a_closed_one(monkeypatch):
    monkeypatch.setattr(smp.urllib.request, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert smp.is_reachable("127.0.0.1", port)
    assert not smp.is_reachable("127.0.0.1", port)


def test_a_look_up_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(smp.urllib.request, "getproxies", dict)
    enough = threading.Event()

    def hang(*_):
        enough.wait(10)
        raise OSError

    monkeypatch.setattr(smp.socket, "create_connection", hang)
    assert not smp.is_reachable("nowhere", seconds=0.05)
    enough.set()


def test_timm_and_smp_import_beside_this_torch():
    code = "import models; models.mend_torchvision(); import timm, segmentation_models_pytorch"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True)
    assert done.returncode == 0, done.stderr
