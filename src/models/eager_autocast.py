"""The context of a forward pass: autocast, and corrections of it for eager networks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from core.device import DTYPES


@contextmanager
def forward_context(device: torch.device, precision: str, is_compiled: bool) -> Iterator[None]:
    """Run networks in 'bf16', 'fp16' or 'fp32'; eager ones with EagerAutocast."""
    is_mixed = precision != "fp32"
    eager = EagerAutocast() if is_mixed and not is_compiled else nullcontext()
    with torch.autocast(device.type, DTYPES[precision], enabled=is_mixed), eager:
        yield


class EagerAutocast(TorchFunctionMode):
    """Make two operations faster under autocast, as a context.

    - Nearest upsampling keeps the dtype of its input. Autocast would convert the input to fp32, and
      the output back for the next convolution. The values are the same. A compiler would fuse the
      conversions.
    - In training on a CPU, depthwise convolutions run in fp32. With stride 2 or a 5×5 kernel,
      oneDNN's backward pass takes three to seven times as long in bf16.

    Measured in docs/speed.md.
    """

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate and kwargs.get("mode") == "nearest":
            with torch.autocast(args[0].device.type, enabled=False):
                return func(*args, **kwargs)
        trains_on_cpu = func is torch.conv2d and args[0].is_cpu and torch.is_grad_enabled()
        if trains_on_cpu and is_depthwise(args[1]):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)


def is_depthwise(weight: torch.Tensor) -> bool:
    """Whether a convolution with this weight has one filter for each of several channels."""
    out_channels, channels_per_group = weight.shape[:2]
    return channels_per_group == 1 and out_channels > 1
