"""Choice of device, precision and compilation, and the message of out-of-memory."""

import shutil
import sysconfig

import pytest
import torch

from core import device
from core.config import load_settings
from core.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_gpu(monkeypatch):
    """Let torch see no GPU, and this machine have none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "installed_driver", lambda: "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_pick_device_without_a_gpu_rejects_cuda_and_falls_back_to_cpu(no_gpu):
    assert device.pick_device(load_settings([])) == CPU
    with pytest.raises(InputError, match=r"device=cuda: torch sees no GPU"):
        device.pick_device(load_settings(["device=cuda"]))


@pytest.mark.parametrize("setting", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("cuda", "driver", "message"),
    [
        (
            "13.0",
            "535.104.05",
            r"driver 535\.104\.05 \(CUDA 13 needs 580\); update the driver or set",
        ),
        ("12.8", "470.57", r"driver 470\.57 \(CUDA 12 needs 525\)"),
        ("14.1", "of unknown version", "driver of unknown version; update the driver"),
        (None, "580.65", "built without CUDA; install a CUDA build of torch or set device=cpu"),
    ],
)
def test_pick_device_rejects_a_gpu_that_torch_cannot_use(
    no_gpu, monkeypatch, setting, cuda, driver, message
):
    monkeypatch.setattr(device, "installed_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(InputError, match=rf"device={setting}: .*{message}"):
        device.pick_device(load_settings([f"device={setting}"]))
    assert device.pick_device(load_settings(["device=cpu"])) == CPU


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_pick_device_is_the_cpu_where_the_user_hides_the_gpu(no_gpu, monkeypatch, hidden):
    monkeypatch.setattr(device, "installed_driver", lambda: "535.104.05")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert device.pick_device(load_settings([])) == CPU


def test_pick_device_is_one_gpu_per_process_and_rejects_more_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(device, "can_run_kernels", lambda index: True)
    current = []  # set in every thread that asks; a new one's is 0
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert device.pick_device(load_settings([])) == torch.device("cuda", int(rank))
    assert current == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="3 processes on this machine, which has 2 GPUs: start 2"):
        device.pick_device(load_settings([]))


@pytest.mark.parametrize(
    ("capability", "archs", "is_built_for_it"),
    [
        ((8, 6), ["sm_80", "sm_90"], True),  # code of sm_80 runs on sm_86
        ((8, 0), ["sm_86", "sm_90a"], False),
        ((6, 0), ["sm_75", "sm_120", "compute_120"], False),  # a P100 with CUDA 13
        ((12, 1), ["sm_75", "compute_90"], True),
        ((9, 0), ["sm_80", "sm_90a"], True),
    ],
)
def test_pick_device_rejects_a_gpu_that_torch_was_not_built_for(
    monkeypatch, capability, archs, is_built_for_it
):
    fakes = {"is_available": True, "device_count": 1, "get_arch_list": archs}
    fakes |= {"get_device_capability": capability, "get_device_name": "Tesla P100"}
    for name, value in fakes.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(device, "can_run_kernels", device.can_run_kernels.__wrapped__)
    if is_built_for_it:
        assert device.pick_device(load_settings([])).type == "cuda"
        return
    with pytest.raises(InputError, match=f"Tesla P100: torch .* was built for {archs[0]}, "):
        device.pick_device(load_settings([]))


@pytest.mark.parametrize(
    ("program", "has_device_file", "driver"),
    [
        ("echo 535.104.05; echo 535.104.05", True, "535.104.05"),
        ("echo 'Failed to initialize NVML'; exit 18", True, "of unknown version"),
        (None, True, "of unknown version"),
        ("echo 'No devices were found'; exit 6", False, ""),
        (None, False, ""),
    ],
)
def test_installed_driver_asks_nvidia_smi(tmp_path, monkeypatch, program, has_device_file, driver):
    if program:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device, "GPU_FILE", tmp_path / "nvidia0")
    if has_device_file:
        device.GPU_FILE.touch()
    assert device.installed_driver.__wrapped__() == driver


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_pick_precision_auto_on_a_gpu_is_bf16_from_ampere_on(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.pick_precision(load_settings([]), GPU) == precision


def test_pick_precision_rejects_fp16_on_a_cpu():
    with pytest.raises(InputError, match="precision=fp16: GPUs only"):
        device.pick_precision(load_settings(["precision=fp16"]), CPU)
    assert device.pick_precision(load_settings(["precision=bf16"]), CPU) == "bf16"


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")],
)
def test_pick_precision_auto_on_a_cpu_is_bf16_if_it_computes_that(
    monkeypatch, capabilities, precision
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert device.pick_precision(load_settings([]), CPU) == precision


@pytest.mark.parametrize(
    ("setting", "on_cpu", "on_gpu", "if_short"),
    [("auto", False, True, False), ("true", True, True, True), ("false", False, False, False)],
)
def test_wants_compile_by_default_only_for_long_work_on_a_gpu(setting, on_cpu, on_gpu, if_short):
    settings = load_settings([f"compile={setting}"])
    assert device.wants_compile(settings, CPU, is_long=True) is on_cpu
    assert device.wants_compile(settings, GPU, is_long=True) is on_gpu
    assert device.wants_compile(settings, GPU, is_long=False) is if_short


def fail_to_compile(function):
    raise RuntimeError("CalledProcessError: gcc returned 1\n\nSet TORCHDYNAMO_VERBOSE=1")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, ""),
        (
            {"which": lambda name: None},
            "there is no C compiler (Debian, Ubuntu: apt install gcc g++)",
        ),
        (
            {"get_paths": lambda: {"include": "/nowhere"}},
            "there are no Python headers (Debian, Ubuntu: apt install python3-dev)",
        ),
        (
            {"compile": fail_to_compile},
            "torch.compile fails: CalledProcessError: gcc returned 1",
        ),
    ],
)
def test_find_compile_error_names_what_is_missing(tmp_path, monkeypatch, broken, message):
    (tmp_path / "Python.h").touch()
    working = {
        "which": lambda name: f"/usr/bin/{name}",
        "get_paths": lambda: {"include": str(tmp_path)},
        "compile": lambda function: function,
    }
    monkeypatch.delenv("CC", raising=False)
    for module, name in ((shutil, "which"), (sysconfig, "get_paths"), (torch, "compile")):
        monkeypatch.setattr(module, name, (working | broken)[name])
    assert device.find_compile_error.__wrapped__(CPU) == message


def explanation(error, args, is_training=True):
    """Return what explain_out_of_memory makes of an error."""
    settings = load_settings(args)
    with pytest.raises(InputError) as raised, device.explain_out_of_memory(settings, is_training):
        raise error
    return str(raised.value)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("args", "processes", "suggestion"),
    [
        (["batch_size=8", "size=[256,384]"], 1, "batch_size=4 grad_accumulation=2"),
        (["batch_size=1", "size=[256,384]"], 1, "size=128,192"),
        (["batch_size=1", "size=null", "crop_size=64,96"], 1, "crop_size=32,48"),
        (
            ["batch_size=8", "stages=[{lr: 1}]"],
            1,
            "batch_size=4 grad_accumulation=2 for all stages, with another run=",
        ),
        (["batch_size=12", "size=[256,384]"], 4, "batch_size=4 grad_accumulation=3"),
        (["batch_size=4", "size=[256,384]"], 4, "size=128,192"),
    ],
)
def test_explain_out_of_memory_suggests_smaller_settings(monkeypatch, args, processes, suggestion):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    line = explanation(OUT_OF_MEMORY, args)
    assert line.startswith(f"out of memory with {args[0]} at size=")
    assert line.endswith(f": try {suggestion}")


@pytest.mark.parametrize(
    ("args", "suggestion"),
    [
        (
            ["batch_size=8", "size=null", "crop_size=64,64"],
            "native: try tile_size=768, or for predict.sh batch_size=4",
        ),
        (["batch_size=1", "size=[160,96]"], "try tile_size=128"),
        (["batch_size=1", "size=[2048,1024]"], "try tile_size=1024"),
        (["batch_size=1", "size=null", "tile_size=512"], "at size=native: try tile_size=256"),
    ],
)
def test_explain_out_of_memory_at_prediction_suggests_what_can_be_changed_there(args, suggestion):
    line = explanation(OUT_OF_MEMORY, args, is_training=False)
    assert f"with {args[0]} at" in line and line.endswith(suggestion)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        RuntimeError("Pin memory thread exited unexpectedly"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
)
def test_explain_out_of_memory_names_a_killed_loading_process(error):
    line = explanation(error, [])
    assert "loads images was killed, probably because memory ran out" in line


@pytest.mark.parametrize(
    "error",
    [
        OUT_OF_MEMORY,
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDNN_BACKEND: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("InductorError: RuntimeError: CUDA driver error: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError("Unable to allocate 8.00 GiB for an array"),
    ],
)
def test_explain_out_of_memory_recognizes_the_errors_of_all_libraries(error):
    assert explanation(error, ["size=null"]).startswith("out of memory with batch_size=4 at size=")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0."),
        KeyError("out of memory"),
    ],
)
def test_explain_out_of_memory_passes_on_other_errors(error):
    with pytest.raises(type(error)), device.explain_out_of_memory(load_settings([])):
        raise error
