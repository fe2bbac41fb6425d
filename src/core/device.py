"""Where the network runs, and in which precision."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._triton import has_triton

from core import process_env
from core.errors import InputError
from core.settings import Settings

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def pick_device(settings: Settings) -> torch.device:
    """The device that is there, or the one asked for; InputError where that is absent."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda: torch sees no GPU here; say device=cpu or mend the driver")
    here = "cpu" if settings.device == "cpu" or not torch.cuda.is_available() else "cuda"
    return torch.device("cuda", process_env.local_rank()) if here == "cuda" else torch.device("cpu")


def pick_precision(settings: Settings, device: torch.device) -> str:
    """'bf16', 'fp16' or 'fp32': auto takes what the device computes faster than fp32."""
    if settings.precision != "auto":
        if settings.precision == "fp16" and device.type == "cpu":
            raise InputError("precision=fp16: is for GPUs; say precision=bf16 or precision=fp32")
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    # Without these instructions bf16 is emulated, and slower than fp32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks run; for fp32 it does nothing."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def compile_obstacle(settings: Settings, device: torch.device) -> str | None:
    """Why training does not compile its network: '' where it is not asked to, None where it does.

    Tried on a CPU: a minute of compiling, and steps no faster.
    """
    if settings.compile == "false" or (settings.compile == "auto" and device.type == "cpu"):
        return ""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "there is no C compiler (Debian, Ubuntu: apt install gcc)"
    if device.type == "cuda" and not has_triton():
        return "torch has no Triton for this GPU"
    return None


@contextmanager
def explain_out_of_memory(settings: Settings) -> Iterator[None]:
    """Turn out-of-memory into a line that names the batch and what to try."""
    try:
        yield
    except RuntimeError as error:
        exhausted = isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
        if not exhausted:
            raise
        halves = f"batch_size={settings.batch_size // 2} grad_accumulation={settings.grad_accumulation * 2}"
        height, width = settings.size or (1024, 1536)
        smaller = f"size=[{height // 2},{width // 2}]"
        raise InputError(
            f"out of memory with batch_size={settings.batch_size} at size={settings.size or 'native'}: try "
            f"{halves if settings.batch_size > 1 else smaller}"
        ) from None
