"""The network that training calls: SyncBatchNorm and unused parameters on several GPUs."""

import pytest
import torch
from torch import nn

from core.config import load_settings
from models.build import build_model
from training import network_setup

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("n_processes", "step_pixels", "few"),
    [
        (1, 16 * 256 * 384, False),
        (4, 4 * 1024 * 1024, False),
        (4, 2 * 1024 * 1536, True),
        (4, 2 * 1280 * 1918, False),
    ],
)
def test_batch_norm_is_synchronized_if_each_gpu_has_few_pixels(n_processes, step_pixels, few):
    assert network_setup.needs_sync_batch_norm(GPU, n_processes, step_pixels) is few
    assert network_setup.needs_sync_batch_norm(CPU, n_processes, step_pixels) is False


def test_sync_batch_norm_keeps_the_activations_of_timm():
    args = ["model=smp", "encoder=tu-tf_efficientnet_lite0", "encoder_weights=none"]
    model = build_model(load_settings(args), 1, pretrained=False)
    activations = [type(m.act) for m in model.modules() if hasattr(m, "act")]
    converted = network_setup.convert_sync_batch_norm(model)
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    kept = [m for m in converted.modules() if hasattr(m, "act")]
    assert [type(m.act) for m in kept] == activations and nn.ReLU6 in activations
    assert all(type(m).forward is not nn.SyncBatchNorm.forward for m in kept)


@pytest.mark.parametrize(
    ("args", "unused"),
    [
        (["model=smp", "encoder=efficientnet-b0"], {"_conv_head", "_bn1"}),
        (["model=smp", "encoder=resnet18"], set()),
        (["channels=[4,8]"], set()),
    ],
)
def test_freeze_unused_excludes_what_has_no_gradient(args, unused):
    settings = load_settings([*args, "encoder_weights=none", "size=[64,64]"])
    model = build_model(settings, 1, pretrained=False)
    network_setup.freeze_unused(model, settings)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[-2] for name in frozen} == unused
    model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert frozen == without


def test_freeze_unused_tries_a_network_that_reads_values_on_the_cpu():
    class ReadsValues(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, images):
            x = images[:, 0, 0, :1].float()
            return self.used(x) if x.sum().item() == 0 else x

    model = ReadsValues()
    network_setup.freeze_unused(model, load_settings(["size=[8,8]"]))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["unused.weight", "unused.bias"]


def test_network_without_batch_norm_needs_no_synchronization(monkeypatch):
    monkeypatch.setattr(network_setup, "needs_sync_batch_norm", lambda *args: True)
    model, settings = nn.Sequential(nn.Conv2d(2, 2, 1)), load_settings(["compile=false"])
    network, _ = network_setup.prepare_network(model, settings, CPU, 1, 64)
    assert network is model and not any("Sync" in type(m).__name__ for m in network.modules())


def test_network_with_sync_batch_norm_is_not_compiled(monkeypatch, capsys):
    """Each of its layers waits for the other GPUs, which breaks the graph."""
    monkeypatch.setattr(network_setup, "needs_sync_batch_norm", lambda *args: True)
    monkeypatch.setattr(network_setup, "find_compile_error", lambda device: "")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # restored after the test
    model, settings = nn.Sequential(nn.BatchNorm2d(2)), load_settings(["compile=true"])
    network, is_compiled = network_setup.prepare_network(model, settings, CPU, 1, 64)
    assert isinstance(network[0], nn.SyncBatchNorm) and not is_compiled
    assert "training without compiling, SyncBatchNorm breaks" in capsys.readouterr().out
