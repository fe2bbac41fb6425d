"""Depthwise convolutions in fp32, as their backward pass in bf16 is slow on a CPU."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class DepthwiseInFp32(TorchFunctionMode):
    """Context in which depthwise convolutions on a CPU run in fp32 in spite of autocast.

    With stride 2 or a 5×5 kernel, oneDNN's backward pass in bf16 takes three to seven times as long
    (docs/experiments.md).
    """

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d and is_depthwise(args[1]):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def is_depthwise(weight: torch.Tensor) -> bool:
    """Whether a convolution with this weight has one filter for each of several channels."""
    out_channels, channels_per_group = weight.shape[:2]
    return channels_per_group == 1 and out_channels > 1
