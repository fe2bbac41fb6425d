"""Device and precision of the forward pass, and what to do when memory runs out."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._triton import has_triton

from core import process_env
from core.errors import InputError
from core.settings import Settings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def pick_device(settings: Settings) -> torch.device:
    """Return the requested device, or the GPU if there is one; InputError if it is missing."""
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise InputError("device=cuda: torch sees no GPU; check the driver or set device=cpu")
    if settings.device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", process_env.local_rank())


def pick_precision(settings: Settings, device: torch.device) -> str:
    """Return 'bf16', 'fp16' or 'fp32'; auto: the fastest that the device computes natively."""
    if settings.precision != "auto":
        if settings.precision == "fp16" and device.type == "cpu":
            raise InputError("precision=fp16: GPUs only; set precision=bf16 or precision=fp32")
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    # Without these instructions bf16 is emulated, and slower than fp32.
    has_native_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_native_bf16 else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a precision; for fp32 it does nothing."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def wants_compile(settings: Settings, device: torch.device) -> bool:
    """Whether training should compile the network.

    compile=auto does so on a GPU only: on a CPU it took a minute and steps were no faster.
    """
    return settings.compile == "true" or (settings.compile == "auto" and device.type == "cuda")


def compile_obstacle(device: torch.device) -> str:
    """Return why torch.compile cannot work on this machine; "" if it can."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "there is no C compiler (Debian, Ubuntu: apt install gcc)"
    if device.type == "cuda" and not has_triton():
        return "torch has no Triton for this GPU"
    return ""


@contextmanager
def explain_out_of_memory(settings: Settings) -> Iterator[None]:
    """Turn an out-of-memory error into an InputError that suggests smaller settings."""
    try:
        yield
    except RuntimeError as error:
        is_oom = isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
        if not is_oom:
            raise
        height, width = settings.size or (1024, 1536)
        if settings.batch_size > 1:
            halved, doubled = settings.batch_size // 2, settings.grad_accumulation * 2
            fix = f"batch_size={halved} grad_accumulation={doubled}"
        else:
            fix = f"size=[{height // 2},{width // 2}]"
        raise InputError(
            f"out of memory with batch_size={settings.batch_size} at "
            f"size={settings.size or 'native'}: try {fix}"
        ) from None
