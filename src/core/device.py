"""Device, precision and compilation of the network, and the error for too little memory."""

import gc
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torch._functorch.config as functorch_config

from core import process_env
from core.errors import InputError
from core.settings import Settings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GPU_FILE = Path("/dev/nvidia0")
OLDEST_DRIVERS = {"12": 525, "13": 580}  # by major version of CUDA
# Parts of the messages of CUDA's allocator, cuDNN, cuBLAS and Linux.
OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "alloc_failed",
    "allocation_failed",
    "can't allocate memory",
    "unable to find an engine",  # cuDNN, if no engine has enough memory
)

# Errors after a process that loads images was killed: parts of DataLoader's messages, of which the
# second appears only with a GPU, and errors of receiving a batch from that process.
LOST_WORKER_TEXTS = ("dataloader worker (pid", "pin memory thread exited")
LOST_WORKER_ERRORS = (ConnectionResetError, ConnectionRefusedError)


def pick_device(settings: Settings) -> torch.device:
    """Return the device to compute on: the CPU, or this process's GPU.

    device=auto chooses the GPU if there is one. The GPU becomes the current GPU of the calling
    thread. Raises InputError, instead of using the CPU, if torch cannot use the GPU of this
    machine. Also raises InputError if there are more processes than GPUs.
    """
    if settings.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        count, index = torch.cuda.device_count(), process_env.local_rank()
        if index >= count:
            raise InputError(
                f"{process_env.local_world_size()} processes on this machine, which has {count} "
                f"GPUs: start {count} (GPUS={count}, or torchrun --nproc-per-node {count})"
            )
        if not can_run_kernels(index):
            raise InputError(
                f"{torch.cuda.get_device_name(index)}: torch {torch.__version__} was built for "
                f"{', '.join(torch.cuda.get_arch_list())}, not for this GPU; install a build for "
                "an older CUDA version, or set device=cpu"
            )
        if index:  # threads start on GPU 0, where they would open a second context
            torch.cuda.set_device(index)
        return torch.device("cuda", index)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown not in ("", "-1") and (driver := installed_driver()):
        hint = ""
        if shown and torch.version.cuda:
            hint = f"; or CUDA_VISIBLE_DEVICES={shown} names no GPU that nvidia-smi lists"
        raise InputError(f"device={settings.device}: {_explain_unusable_gpu(driver)}{hint}")
    if settings.device == "cuda":
        raise InputError("device=cuda: torch sees no GPU; check the driver or set device=cpu")
    return torch.device("cpu")


@cache
def can_run_kernels(index: int) -> bool:
    """Whether torch was built with code that runs on this GPU.

    A GPU runs code built for its own architecture, such as sm_86, or for an earlier one of the same
    generation. It also runs the PTX of any earlier architecture.
    """
    major, minor = torch.cuda.get_device_capability(index)
    for arch in torch.cuda.get_arch_list():
        if not (match := re.match(r"(sm|compute)_(\d+)", arch)):
            return True  # a build for AMD's GPUs, such as gfx90a
        kind, built_for = match[1], divmod(int(match[2]), 10)
        if built_for <= (major, minor) and (kind == "compute" or built_for[0] == major):
            return True
    return False


@cache
def installed_driver() -> str:
    """Return the driver version of this machine's NVIDIA GPU; "" if there is no GPU."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return found.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):  # is missing, fails, prints nothing
        return "of unknown version" if GPU_FILE.exists() else ""


def _explain_unusable_gpu(driver: str) -> str:
    if not torch.version.cuda:
        return (
            f"this machine has an NVIDIA GPU, but torch {torch.__version__} is built without CUDA; "
            "install a CUDA build of torch or set device=cpu"
        )
    major = torch.version.cuda.partition(".")[0]
    oldest = f" (CUDA {major} needs {OLDEST_DRIVERS[major]})" if major in OLDEST_DRIVERS else ""
    return (
        f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use this machine's GPU "
        f"with driver {driver}{oldest}; update the driver or set device=cpu"
    )


def pick_precision(settings: Settings, device: torch.device) -> str:
    """Return 'bf16', 'fp16' or 'fp32'; auto: bf16 if the device computes it natively."""
    if settings.precision != "auto":
        if settings.precision == "fp16" and device.type == "cpu":
            raise InputError("precision=fp16: GPUs only; set precision=bf16 or precision=fp32")
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    # Without these instructions bf16 is emulated, and slower than fp32.
    capabilities = torch.cpu.get_capabilities()
    has_native_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bf16" if has_native_bf16 else "fp32"


def wants_compile(settings: Settings, device: torch.device, is_long: bool) -> bool:
    """Whether to compile the network.

    `is_long`: there is enough work to repay the time for compiling. compile=auto compiles on a GPU
    only: on a CPU, compiling took a minute and steps were no faster.
    """
    pays = device.type == "cuda" and is_long
    return settings.compile == "true" or (settings.compile == "auto" and pays)


@cache
def find_compile_error(device: torch.device) -> str:
    """Return why torch.compile cannot work on this machine; "" if it can.

    Compiles a trivial function, as compilers, Triton and its cache folder can fail in many ways.
    """
    if not os.environ.get("CC") and not any(map(shutil.which, ("gcc", "clang"))):
        return "there is no C compiler (Debian, Ubuntu: apt install gcc g++)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "there are no Python headers (Debian, Ubuntu: apt install python3-dev)"
    try:
        torch.compile(torch.nn.functional.relu)(torch.ones(8, device=device))
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        return f"torch.compile fails: {reason.splitlines()[0]}"
    return ""


def compile_network(network: torch.nn.Module, has_one_size: bool) -> None:
    """Compile the network's forward pass in place, at its first call.

    The networks of all folds share one graph, because parameters are inputs to it. If the compiler
    fails on a network, torch logs the error and runs the network eagerly.
    """
    torch._dynamo.config.suppress_errors = True
    # Compile the backward graph with the forward graph, so that its errors are suppressed, too.
    functorch_config.force_non_lazy_backward_lowering = True
    # All networks share this limit: those of all stages and runs, in training and validation.
    torch._dynamo.config.recompile_limit = 64
    network.compile(dynamic=False if has_one_size else None)


def free_memory(device: torch.device) -> None:
    """Release the memory of unused networks.

    Networks are part of reference cycles, so only the garbage collector frees them.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def explain_out_of_memory(settings: Settings, is_training: bool = True) -> Iterator[None]:
    """Turn an out-of-memory error into an InputError that suggests smaller settings.

    These are training settings, or, if not `is_training`, settings that prediction can change.
    """
    try:
        yield
    except (RuntimeError, MemoryError, *LOST_WORKER_ERRORS) as error:
        text = str(error).lower()
        is_lost = isinstance(error, LOST_WORKER_ERRORS)
        if is_lost or any(words in text for words in LOST_WORKER_TEXTS):
            fix = "num_workers=0 or cache=none" if is_training else "num_workers=0"
            raise InputError(
                "a process that loads images was killed, probably because memory ran out; set "
                f"{fix}"
            ) from None
        if not is_out_of_memory(error):
            raise
        size = settings.train_size if is_training else settings.size
        smaller = smaller_for_training if is_training else _smaller_for_prediction
        raise InputError(
            f"out of memory with batch_size={settings.batch_size} at size={size or 'native'}: "
            f"try {smaller(settings)}"
        ) from None


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error of torch, CUDA or numpy says that memory has run out."""
    text = str(error).lower()
    is_oom = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_oom or any(words in text for words in OUT_OF_MEMORY_TEXTS)


@contextmanager
def explain_large_photograph(name: str) -> Iterator[None]:
    """Turn an out-of-memory error into an InputError about the photograph `name`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"{name}: out of memory; scale the photograph down, or cut it into tiles (for a run at "
            "native size, predict.sh can do this: tile_size=1024)"
        ) from None


def smaller_for_training(settings: Settings) -> str:
    """Return settings that take less memory: a smaller batch, or smaller images."""
    processes = process_env.world_size()
    half = settings.batch_size // 2 // processes * processes
    if half:
        steps = settings.grad_accumulation * settings.batch_size // half
        smaller = f"batch_size={half} grad_accumulation={steps}"
    else:
        height, width = settings.train_size or (1024, 1536)
        name = "crop_size" if settings.crop_size else "size"
        smaller = f"{name}={height // 2},{width // 2}"
    # An earlier stage is a run of its own, named <run>/stage<n>.
    is_stage = settings.stages or "/" in settings.run
    return smaller + (" for all stages, with another run=" if is_stage else "")


def _smaller_for_prediction(settings: Settings) -> str:
    """Return settings with which prediction or validation takes less memory.

    A smaller batch_size is suggested only for predict.sh, because a run cannot resume with one.
    """
    side = settings.tile_size or max(settings.size or (1024, 1536))
    smaller = f"tile_size={max(128, side // 2)}"
    if settings.batch_size > 1:
        smaller += f", or for predict.sh batch_size={settings.batch_size // 2}"
    return smaller
