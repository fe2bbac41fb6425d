"""Optimizers, learning rate schedules, and the exponential moving average of weights."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from core.settings import Settings

OPTIMIZERS = {  # class and options
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "adam": (torch.optim.Adam, {"fused": True}),
    "rmsprop": (torch.optim.RMSprop, {}),
    # Not fused: torch 2.13 starts with uninitialized momentum if fp16 skips the first update.
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
SCHEDULES: dict[str, Callable[[float], float]] = {  # progress after warmup, 0…1 → factor of lr
    "cosine": lambda progress: 0.5 + 0.5 * math.cos(math.pi * progress),
    "constant": lambda progress: 1.0,
}


def make_optimizer(settings: Settings, network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the settings. Parameters of one dimension, such as biases and
    normalization, get no weight decay."""
    decay = [p for p in network.parameters() if p.ndim > 1]
    no_decay = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decay, "weight_decay": settings.weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    optimizer, options = OPTIMIZERS[settings.optimizer]
    return optimizer(groups, lr=scaled_learning_rate(settings), **options)


def scaled_learning_rate(settings: Settings) -> float:
    """Return the peak learning rate: `lr`, scaled if lr_reference_batch is set.

    `lr` then holds for lr_reference_batch images per update, and is scaled by the ratio of the
    actual number to this number. The scaling is linear (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677) or by the square root of the ratio, which suits Adam
    (Malladi et al. 2022, https://arxiv.org/abs/2205.10287).
    """
    images_per_update = settings.batch_size * settings.grad_accumulation
    ratio = images_per_update / (settings.lr_reference_batch or images_per_update)
    return settings.lr * (ratio if settings.lr_scaling == "linear" else math.sqrt(ratio))


def make_schedule(settings: Settings, optimizer: torch.optim.Optimizer, updates: int) -> LambdaLR:
    """Return the learning rate schedule of the settings over `updates` updates."""
    warmup_updates = math.ceil(settings.warmup * updates)

    def factor(update: int) -> float:
        if update < warmup_updates:
            return (update + 1) / warmup_updates
        progress = (update - warmup_updates) / max(updates - warmup_updates, 1)
        return SCHEDULES[settings.lr_schedule](progress)

    return LambdaLR(optimizer, factor)


class ModelEMA:
    """Exponential moving average of a network's weights and normalization statistics.

    Update 0 copies the weights. Update n uses the decay min(`decay`, (1 + n) / (10 + n)).
    `num_updates` is a Python int. torch's AveragedModel counts updates in a tensor instead, and
    reading that tensor waits for the GPU.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.module = deepcopy(network).eval().requires_grad_(False)
        self.decay, self.num_updates = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average toward the weights of `network`."""
        warmup_decay = (1 + self.num_updates) / (10 + self.num_updates) if self.num_updates else 0.0
        average, current = self.module.state_dict(), network.state_dict()
        names = [name for name, tensor in average.items() if tensor.is_floating_point()]
        move_average = get_ema_multi_avg_fn(min(self.decay, warmup_decay))
        move_average([average[n] for n in names], [current[n] for n in names], self.num_updates)
        self.num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        self.module.load_state_dict(state["module"])
