"""The update rule, the learning rate over time, and the averaged weights."""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from core.settings import Settings

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def make_optimizer(settings: Settings, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that settings name. Weight decay spares biases and normalisation."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    special = {"rmsprop": {}, "sgd": {"momentum": 0.9, "nesterov": True, "fused": True}}
    options = special.get(settings.optimizer, {"fused": True})
    return OPTIMIZERS[settings.optimizer](groups, lr=scaled_learning_rate(settings), **options)


def scaled_learning_rate(settings: Settings) -> float:
    """lr, scaled to the batch where `lr_batch` says for which one it is meant: linearly (Goyal et
    al. 2017), or by the square root, as suits Adam (Malladi et al. 2022)."""
    images = settings.batch_size * settings.grad_accumulation
    times = images / (settings.lr_reference_batch or images)
    return settings.lr * (times if settings.lr_scaling == "linear" else math.sqrt(times))


def make_schedule(
    settings: Settings, optimizer: torch.optim.Optimizer, updates: int
) -> LRScheduler | ReduceLROnPlateau:
    """The learning rate over `updates` updates; plateau is told the Dice, the others nothing."""
    if settings.lr_schedule == "plateau":
        return ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=2)
    if settings.lr_schedule == "onecycle":
        rise = max(settings.warmup, 1 / updates)
        return OneCycleLR(
            optimizer, scaled_learning_rate(settings), total_steps=updates + 1, pct_start=rise
        )
    warmup = math.ceil(settings.warmup * updates)

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        if settings.lr_schedule == "constant":
            return 1.0
        return 0.5 + 0.5 * math.cos(math.pi * (update - warmup) / max(updates - warmup, 1))

    return LambdaLR(optimizer, factor)


class ModelEMA:
    """An exponential moving average of a network's weights and normalisation statistics.

    The decay rises from 0.1 to `ema`, or the first random weights would linger in it. It is a
    plain number on the CPU: torch's AveragedModel keeps a count on the GPU, which it waits for.
    """

    def __init__(self, network: nn.Module, ema: float):
        self.module = deepcopy(network).eval().requires_grad_(False)
        self.ema, self.count = ema, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in what the network has become."""
        decay = min(self.ema, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        kept, now = self.module.state_dict(), network.state_dict()
        names = [name for name, tensor in kept.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([kept[n] for n in names], [now[n] for n in names], 1 - decay)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"count": self.count, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.count = state["count"]
        self.module.load_state_dict(state["module"])
