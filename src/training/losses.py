"""What training minimises. Each loss gives one number, in fp32.

For one class: B×1×H×W logits and targets in [0, 1], which may be soft: a mask resized by area
holds the covered part of each pixel. For several: B×C×H×W logits and B×1×H×W uint8 classes, 255
where a pixel does not count.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − Dice of probabilities, per image, mean over images; squares in the denominator.

    Milletari et al. 2016, V-Net. With squares the optimum for a soft target is the target itself,
    not its rounding. The 1 makes two empty masks cost nothing.
    """
    p, t = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    overlap = 2 * (p * t).sum(1) + 1
    return (1 - overlap / ((p * p).sum(1) + (t * t).sum(1) + 1)).mean()


def bce_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy finds the car, Dice the score; the sum of both."""
    return bce_loss(logits, targets) + dice_loss(logits, targets)


def focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy weighted by |target − probability|^gamma: easy pixels fade.

    Lin et al. 2017, Focal Loss for Dense Object Detection; for soft targets as in Li et al. 2020,
    Generalized Focal Loss.
    """
    logits, targets = logits.float(), targets.float()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return ((logits.sigmoid() - targets).abs() ** gamma * entropy).mean()


def lovasz_hinge_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The Lovász hinge, per image: a convex bound of the Jaccard loss. Targets count from 0.5.

    Berman et al. 2018, The Lovász-Softmax loss, algorithm 1 and equation 12.
    """
    logits, inside = logits.float().flatten(1), targets.flatten(1) >= 0.5
    errors = 1 - torch.where(inside, logits, -logits)
    errors, order = errors.sort(dim=1, descending=True)
    hit = inside.gather(1, order).float()
    intersection = hit.sum(1, keepdim=True) - hit.cumsum(1)
    union = hit.sum(1, keepdim=True) + (1 - hit).cumsum(1)
    jaccard = 1 - intersection / union
    steps = torch.diff(jaccard, dim=1, prepend=torch.zeros_like(jaccard[:, :1]))
    return (F.relu(errors) * steps).sum(1).mean()


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the softmax, mean over the pixels that count; 0 where none does."""
    classes = targets[:, 0].long()
    total = F.cross_entropy(logits.float(), classes, ignore_index=IGNORE, reduction="sum")
    return total / (classes != IGNORE).sum().clamp(min=1)


def cross_entropy_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, and 1 − Dice of the probabilities over a batch, mean over its classes."""
    counts = (targets != IGNORE).float()
    p = logits.float().softmax(1) * counts
    t = F.one_hot(targets[:, 0].long().clamp(max=logits.shape[1] - 1), logits.shape[1])
    t = t.movedim(-1, 1) * counts
    overlap, true = 2 * (p * t).sum((0, 2, 3)), t.sum((0, 2, 3))
    scores = overlap / (p.sum((0, 2, 3)) + true).clamp(min=1)
    present = true > 0
    return cross_entropy_loss(logits, targets) + (
        (1 - scores) * present
    ).sum() / present.sum().clamp(min=1)


Loss = Callable[[Tensor, Tensor], Tensor]
MULTICLASS_LOSSES: dict[str, Loss] = {"ce": cross_entropy_loss, "ce_dice": cross_entropy_dice_loss}
BINARY_LOSSES: dict[str, Loss] = {
    "bce_dice": bce_dice_loss,
    "bce": bce_loss,
    "dice": dice_loss,
    "focal": focal_loss,
    "lovasz": lovasz_hinge_loss,
}
LOSSES = BINARY_LOSSES | MULTICLASS_LOSSES
