"""The update rule, the learning rate over time, and the averaged weights."""

import math

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from settings import Settings

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
    return OPTIMIZERS[settings.optimizer](groups, lr=settings.lr, **options)


def make_schedule(
    settings: Settings, optimizer: torch.optim.Optimizer, updates: int
) -> LRScheduler | ReduceLROnPlateau:
    """The learning rate over `updates` updates; plateau is told the Dice, the others nothing."""
    if settings.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=2)
    if settings.schedule == "onecycle":
        rise = max(settings.warmup, 1 / updates)
        return OneCycleLR(optimizer, settings.lr, total_steps=updates + 1, pct_start=rise)
    warmup = math.ceil(settings.warmup * updates)

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        if settings.schedule == "constant":
            return 1.0
        return 0.5 + 0.5 * math.cos(math.pi * (update - warmup) / max(updates - warmup, 1))

    return LambdaLR(optimizer, factor)


def make_average(settings: Settings, network: nn.Module) -> AveragedModel:
    """An exponential moving average of weights and normalisation statistics.

    The decay rises from 0.1 to `ema`, or the first random weights would linger in it.
    """

    def average(kept: list[Tensor], now: list[Tensor], count: Tensor) -> None:
        decay = min(settings.ema, (1 + count.item()) / (10 + count.item()))
        get_ema_multi_avg_fn(decay)(kept, now, count)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True).eval()
