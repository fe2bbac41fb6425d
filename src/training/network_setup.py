"""The network that training calls: compiled, and wrapped by DistributedDataParallel (DDP)."""

import warnings
from copy import deepcopy

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from core import process_env
from core.device import compile_network, find_compile_error, wants_compile
from core.settings import Settings

# Batch normalization takes its statistics from all GPUs if a step has fewer pixels per GPU than
# this (four images of 1024×1024). The GPUs then wait for each other in every layer.
SYNC_BN_BELOW = 2**22
# Compiling and cuDNN's benchmarks save more time than they take if training has at least this many
# pixels, summed over all steps of a GPU: 6,400 steps of four images of 1024×1536. Estimated on an
# H200 (docs/speed.md).
TUNE_MIN_PIXELS = 40e9


def prepare_network(
    model: nn.Module, settings: Settings, device: torch.device, updates: int, image_pixels: int
) -> tuple[nn.Module, bool]:
    """Return the network that training calls, and whether it is compiled.

    The network shares the parameters of `model`. It is compiled if the settings ask for it, and
    wrapped in DDP if there are several processes. `updates` is the number of updates in the whole
    training. `image_pixels` is height × width of the first training image.
    """
    n_processes = process_env.world_size()
    step_pixels = settings.batch_size // n_processes * image_pixels
    if n_processes > 1:
        freeze_unused(model, settings)
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    syncs = has_norm and needs_sync_batch_norm(device, n_processes, step_pixels)
    if syncs:
        model = convert_sync_batch_norm(model)
    is_compiled = False
    pixels = updates * settings.grad_accumulation * step_pixels
    tunes = wants_compile(settings, device, is_long=pixels >= TUNE_MIN_PIXELS)
    torch.backends.cudnn.benchmark = tunes and has_one_size(settings)
    if tunes:
        error = "SyncBatchNorm breaks the graph" if syncs else find_compile_error(device)
        if error:
            print(f"compile={settings.compile}: training without compiling, {error}")
        else:
            compile_network(model.network, has_one_size(settings))
            is_compiled = True
    if n_processes > 1:
        device_ids = None if device.type == "cpu" else [device.index]
        # Deprecated in torch 2.13, but torch 2.11 does not have its successor.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        # The statistics of batch normalization differ between ranks; only those of rank 0 are used.
        model = DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
    return model, is_compiled


def has_one_size(settings: Settings) -> bool:
    """Whether all training images have the same size. With batch_size above 1 they have, because
    check_sizes() rejects images of several sizes."""
    return settings.train_size is not None or settings.batch_size > 1


def freeze_unused(model: nn.Module, settings: Settings) -> None:
    """Freeze the parameters that the forward pass does not use, such as some encoders' last layer.

    DDP would wait for their gradients forever.
    """
    size = settings.train_size or (256, 256)

    def find_used(device: str) -> set[str]:
        trial = deepcopy(model).to(device).train()
        trial(torch.zeros((2, 3, *size), dtype=torch.uint8, device=device)).sum().backward()
        return {name for name, parameter in trial.named_parameters() if parameter.grad is not None}

    try:
        used = find_used("meta")  # computes only shapes
    except RuntimeError:  # "meta" tensors have no values; some operations are missing
        used = find_used("cpu")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in used)


# ---------------------------------------------------------------- batch normalization


def needs_sync_batch_norm(device: torch.device, n_processes: int, step_pixels: int) -> bool:
    """Whether several GPUs train and each has too few pixels for its own batch statistics."""
    return device.type != "cpu" and n_processes > 1 and step_pixels < SYNC_BN_BELOW


def convert_sync_batch_norm(model: nn.Module) -> nn.Module:
    """Replace batch normalization layers by SyncBatchNorm, which uses the statistics of all GPUs.

    Layers of timm need timm's own conversion: torch's would drop the activations they include.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if all(type(norm) is nn.BatchNorm2d for norm in norms):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    from timm.layers import convert_sync_batchnorm  # takes seconds, and model=unet does without

    return convert_sync_batchnorm(model)
