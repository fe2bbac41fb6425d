"""Under autocast nearest upsampling keeps its dtype; depthwise convolutions on a CPU are fp32."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.config import load_settings
from models.build import build_model
from models.eager_autocast import EagerAutocast, forward_context, is_depthwise
from training.train_state import TrainState


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_forward_context_corrects_the_autocast_of_eager_networks_only(
    precision, dtype, is_compiled
):
    depthwise, x = nn.Conv2d(4, 4, 3, groups=4), torch.randn(1, 4, 9, 8)
    with forward_context(torch.device("cpu"), precision, is_compiled):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
        # The compiler sees plain autocast.
        assert depthwise(x).dtype == (dtype if is_compiled else torch.float32)


@pytest.mark.parametrize(
    ("conv", "dtype"),
    [
        (nn.Conv2d(4, 4, 5, stride=2, padding=2, groups=4), torch.float32),
        (nn.Conv2d(4, 8, 3, groups=4), torch.float32),
        (nn.Conv2d(4, 8, 3, groups=2), torch.bfloat16),
        (nn.Conv2d(4, 8, 3), torch.bfloat16),
        (nn.Conv2d(4, 1, 1), torch.bfloat16),
        (nn.Conv2d(1, 1, 3), torch.bfloat16),
    ],
)
def test_depthwise_in_fp32_leaves_other_convolutions_in_bf16(conv, dtype):
    assert is_depthwise(conv.weight) == (dtype == torch.float32)
    x = torch.randn(2, conv.in_channels, 9, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), EagerAutocast():
        y = conv(x)
        assert torch.is_autocast_enabled("cpu")
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16 and conv.weight.grad.abs().sum() > 0
    if dtype == torch.float32:
        assert torch.equal(y, conv(x.float()))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_train_state_trains_depthwise_convolutions_in_fp32_on_a_cpu(precision, dtype):
    args = ["model=smp", "encoder=tu-mobilenetv3_small_050", "encoder_weights=none", "device=cpu"]
    settings = load_settings([*args, f"precision={precision}"])
    state = TrainState(settings, 1, updates=1, image_pixels=64 * 64, device=torch.device("cpu"))
    seen = {True: set(), False: set()}

    def note_dtype(module, inputs, output):
        seen[is_depthwise(module.weight)].add(output.dtype)

    for module in state.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note_dtype)
    state.forward(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert seen == {True: {torch.float32}, False: {dtype}}


@pytest.mark.parametrize("args", [[], ["half_size_decoder=true"]])
def test_nearest_upsampling_keeps_its_dtype_and_all_values(args):
    settings = load_settings(["model=smp", "encoder=resnet18", "encoder_weights=none", *args])
    model, images = build_model(settings), torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    results, dtypes = [], set()

    def note_dtype(module, inputs):
        dtypes.add(inputs[0].dtype)

    for block in model.network.decoder.blocks:
        block.conv1.register_forward_pre_hook(note_dtype)
    for context in (nullcontext(), EagerAutocast()):
        dtypes.clear()
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), context:
            logits = model(images)
        logits.float().square().mean().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    assert dtypes == {torch.bfloat16}
    assert torch.equal(results[0][0], results[1][0])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-6)


def test_eager_autocast_leaves_depthwise_convolutions_of_prediction_in_bf16():
    conv, x = nn.Conv2d(4, 4, 3, groups=4), torch.randn(1, 4, 9, 8)
    with torch.autocast("cpu", torch.bfloat16), EagerAutocast(), torch.no_grad():
        assert conv(x).dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_eager_autocast_switches_autocast_off_for_nearest_upsampling_only(mode, monkeypatch):
    """On a CPU autocast converts neither, so that dtypes would not show it."""

    def is_on(x, mode):
        return torch.is_autocast_enabled("cpu")

    monkeypatch.setattr(F, "interpolate", is_on)
    with torch.autocast("cpu", torch.bfloat16):
        found = EagerAutocast().__torch_function__(is_on, (), (torch.zeros(1),), {"mode": mode})
    assert found == (mode != "nearest")
