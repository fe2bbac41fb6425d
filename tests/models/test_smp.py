"""Networks of segmentation_models_pytorch: unknown names, and pretrained weights offline."""

import pytest

from core.config import load_settings
from core.errors import InputError
from models.build import build_model


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["encoder=resnet43"], "did you mean resnet34"),
        (["arch=Unett"], "did you mean unet"),
        (["encoder_weights=imagnet"], "did you mean imagenet"),
        (["encoder=tu-nothing", "encoder_weights=none"], "tu-nothing"),
        (["encoder=tu-resnet18.nothing"], "tag.*nothing"),
        (["encoder=convnext_tiny"], "is one of timm; set encoder=tu-convnext_tiny"),
        (["encoder=tu-resnet81"], r"timm has no such model \(did you mean tu-resnet"),
        (["encoder_weights=folder/w.bin"], r"w\.bin: must be a \.safetensors, \.pth or \.pt file"),
    ],
)
def test_build_smp_unknown_name_raises_one_line(args, hint):
    with pytest.raises(InputError, match=hint) as error:
        build_model(load_settings(["model=smp", *args]))
    assert "\n" not in str(error.value)


def test_build_smp_with_encoder_weights_none_in_any_case_loads_none():
    args = ["model=smp", "encoder=tu-resnet18", "encoder_weights=None"]
    assert build_model(load_settings(args))  # without network
