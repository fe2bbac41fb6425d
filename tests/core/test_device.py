"""Choice of device, precision and compilation, and the message of out-of-memory."""

import pytest
import torch

from core import device
from core.config import load_settings
from core.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_pick_device_without_a_gpu_rejects_cuda_and_falls_back_to_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick_device(load_settings([])) == CPU
    with pytest.raises(InputError, match=r"device=cuda: torch sees no GPU"):
        device.pick_device(load_settings(["device=cuda"]))


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_pick_precision_auto_on_a_gpu_is_bf16_from_ampere_on(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.pick_precision(load_settings([]), GPU) == precision


def test_pick_precision_rejects_fp16_on_a_cpu():
    with pytest.raises(InputError, match="precision=fp16: GPUs only"):
        device.pick_precision(load_settings(["precision=fp16"]), CPU)
    assert device.pick_precision(load_settings(["precision=bf16"]), CPU) == "bf16"
    assert device.pick_precision(load_settings([]), CPU) in ("bf16", "fp32")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_autocast_computes_in_the_dtype_of_the_precision(precision, dtype):
    with device.autocast(CPU, precision):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("setting", "on_cpu", "on_gpu"),
    [("auto", False, True), ("true", True, True), ("false", False, False)],
)
def test_wants_compile_by_default_only_on_a_gpu(setting, on_cpu, on_gpu):
    settings = load_settings([f"compile={setting}"])
    assert device.wants_compile(settings, CPU) is on_cpu
    assert device.wants_compile(settings, GPU) is on_gpu


def test_compile_obstacle_without_a_compiler_names_the_package(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert "apt install gcc" in device.compile_obstacle(CPU)
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert device.compile_obstacle(CPU) == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["batch_size=8", "size=[256,384]"], r"batch_size=8.*try batch_size=4 grad_accumulation=2"),
        (["batch_size=1", "size=[256,384]"], r"batch_size=1.*try size=\[128,192\]"),
    ],
)
def test_explain_out_of_memory_suggests_smaller_settings(args, message):
    with (
        pytest.raises(InputError, match=message),
        device.explain_out_of_memory(load_settings(args)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_explain_out_of_memory_passes_on_other_errors():
    with (
        pytest.raises(RuntimeError, match="other"),
        device.explain_out_of_memory(load_settings([])),
    ):
        raise RuntimeError("other")
