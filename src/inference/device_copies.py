"""Asynchronous copies between host and GPU, and the thread in which the networks run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

# predict() runs all networks in this one thread: cuDNN chooses its kernels anew in each thread.
NETWORK_THREAD = ThreadPoolExecutor(1, "networks")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to the device through pinned memory; on a CPU, return it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to pinned memory of the host; on a CPU, return it.

    To wait until the values are valid, call the function that record_event() returns.
    """
    return tensor.to("cpu", non_blocking=True)


def record_event(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until the device has finished all work queued so far."""
    if device.type == "cpu":
        return lambda: None
    event = torch.cuda.Event(blocking=True)  # the waiting thread sleeps
    event.record()
    return event.synchronize
