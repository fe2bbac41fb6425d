"""Loss, Dice and accuracy of the training batches of one epoch, its time, and memory use."""

import math
import resource
import sys
import time
from typing import Any

import torch
from torch import Tensor

from core import distributed
from data.classes import IGNORE


class EpochMetrics:
    """Running sums over the steps of an epoch; the scores stay on the device."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(3, device=device)  # loss, Dice, accuracy, each summed over images
        self.images, self.seconds = 0, 0.0
        self.lr = math.nan  # learning rate of the latest step

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a step of this rank; `loss` is the mean over its images."""
        self.sums += torch.cat([loss[None] * len(logits), batch_metrics(logits, targets)])
        self.images += len(logits)

    def mean_loss(self) -> float:
        """Return the mean loss of this rank's images so far; waits for the GPU."""
        return float(self.sums[0]) / self.images

    def reduced(self) -> tuple[Tensor, int]:
        """Return sums and number of images over all ranks (all of them call this)."""
        local = torch.cat([self.sums, self.sums.new_tensor([self.images])])
        total = distributed.all_reduce_sum(local)
        return total[:3], int(total[3])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all ranks for a snapshot (all of them call this)."""
        sums, images = self.reduced()
        return {"sums": sums, "images": images, "seconds": self.seconds, "lr": self.lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums of all ranks; call it on one rank only."""
        self.sums.copy_(state["sums"])
        self.images, self.seconds = state["images"], state["seconds"]
        self.lr = state.get("lr", math.nan)  # snapshots of earlier versions lack it


def batch_metrics(logits: Tensor, targets: Tensor) -> Tensor:
    """Return Dice and accuracy summed over a batch, as a tensor of 2 on the device.

    logits: B×C×h×w, C = 1 for one class. targets: B×1×h×w uint8, coverage 0…255 for one class, else
    class ids or IGNORE. For several classes, the Dice of an image is the mean over the classes that
    its target or its prediction contains.
    """
    if logits.shape[1] == 1:
        predicted, true = logits > 0, targets > 127
        valid = torch.ones_like(true)
    else:
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        valid = targets != IGNORE
        predicted = (logits.argmax(1, keepdim=True) == classes) & valid
        true = targets == classes
    intersection = (predicted & true).sum((2, 3))
    areas = predicted.sum((2, 3)) + true.sum((2, 3))
    present = (areas > 0).sum(1)
    dice = (2 * intersection / areas.clamp(min=1)).sum(1) / present.clamp(min=1)
    dice = torch.where(present > 0, dice, 1.0)
    wrong = ((predicted != true) & valid).any(1).sum((1, 2))
    accuracy = 1 - wrong / valid.sum((1, 2, 3)).clamp(min=1)
    return torch.stack([dice.sum(), accuracy.sum()])


def synchronized_time(device: torch.device) -> float:
    """Wait until a GPU has finished all queued work; return time.monotonic()."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def reset_peak_memory(device: torch.device) -> None:
    """Reset what peak_memory() returns on a GPU."""
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU if `device` is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
