"""Segmentation losses: functions of logits and targets that return an fp32 scalar.

Binary losses take logits B×1×H×W and targets B×1×H×W in [0, 1]. Targets may be soft: resizing a
mask by area gives values between 0 and 1. Multiclass losses take logits B×C×H×W and targets
B×1×H×W of uint8 class ids; a pixel without a class has the value IGNORE_INDEX.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = 255  # IGNORE of data/classes.py; this file needs only torch
EDGE_WEIGHT = 20  # of edge_bce_dice; measured in docs/experiments.md
EDGE_RADIUS = 5  # pixels of the network's input

# ---------------------------------------------------------------- binary


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy, averaged over pixels."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return 1 − soft Dice of each image, averaged over the images.

    The denominator sums squares, as in Milletari et al. 2016, V-Net,
    https://arxiv.org/abs/1606.04797. With squares, a soft target has its minimum at the target
    itself, not at the rounded target. Numerator and denominator have 1 added, so that the loss of
    two empty masks is 0.
    """
    p, t = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    numerator = 2 * (p * t).sum(1) + 1
    denominator = (p * p).sum(1) + (t * t).sum(1) + 1
    return (1 - numerator / denominator).mean()


def bce_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of binary cross-entropy and Dice loss."""
    return bce_loss(logits, targets) + dice_loss(logits, targets)


def edge_bce_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of Dice loss and binary cross-entropy with edge_weights()."""
    logits, targets = logits.float(), targets.float()
    weights = edge_weights(targets)
    bce = F.binary_cross_entropy_with_logits(logits, targets, weights)
    return bce + dice_loss(logits, targets)


def edge_weights(targets: Tensor) -> Tensor:
    """Return pixel weights, B×1×H×W with mean 1 in each image.

    A pixel within EDGE_RADIUS of an object's boundary weighs EDGE_WEIGHT times as much as another
    pixel, because most errors are near boundaries.
    """
    # Average over the square around each pixel. Two passes, one for each axis, are faster than one
    # pass over the whole square.
    side, pad = 2 * EDGE_RADIUS + 1, EDGE_RADIUS
    rows = F.avg_pool2d(targets, (side, 1), 1, (pad, 0), count_include_pad=False)
    foreground = F.avg_pool2d(rows, (1, side), 1, (0, pad), count_include_pad=False)
    # A single pixel that differs makes an edge: 1/121 = 0.008.
    is_edge = (foreground > 0.005) & (foreground < 0.995)
    weights = 1 + (EDGE_WEIGHT - 1) * is_edge.float()
    return weights / weights.mean((1, 2, 3), keepdim=True)


def focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the binary cross-entropy weighted by |target − probability|^gamma, pixel by pixel.

    Lin et al. 2017, Focal Loss for Dense Object Detection, https://arxiv.org/abs/1708.02002;
    for soft targets as in Li et al. 2020, Generalized Focal Loss, https://arxiv.org/abs/2006.04388.
    """
    logits, targets = logits.float(), targets.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return ((logits.sigmoid() - targets).abs() ** gamma * cross_entropy).mean()


def lovasz_hinge_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the Lovász hinge of each image, averaged: a convex surrogate of 1 − IoU.

    Targets are binarized at 0.5. Berman et al. 2018, The Lovász-Softmax loss, algorithm 1 and
    equation 12, https://arxiv.org/abs/1705.08790.
    """
    logits, is_foreground = logits.float().flatten(1), targets.flatten(1) >= 0.5
    errors = 1 - torch.where(is_foreground, logits, -logits)  # above 0: wrong, or within the margin
    errors, order = errors.sort(dim=1, descending=True)
    foreground = is_foreground.gather(1, order).float()
    # Value k of iou_loss is 1 − IoU if the first k + 1 pixels were wrong and all others correct.
    intersection = foreground.sum(1, keepdim=True) - foreground.cumsum(1)
    union = foreground.sum(1, keepdim=True) + (1 - foreground).cumsum(1)
    iou_loss = 1 - intersection / union
    # Each error is weighted by the increase of iou_loss at its pixel.
    gradient = torch.diff(iou_loss, dim=1, prepend=torch.zeros_like(iou_loss[:, :1]))
    return (F.relu(errors) * gradient).sum(1).mean()


# ---------------------------------------------------------------- multiclass


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy, averaged over the pixels that have a class; 0 if there is none."""
    class_ids = targets[:, 0].long()
    total = F.cross_entropy(logits.float(), class_ids, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (class_ids != IGNORE_INDEX).sum().clamp(min=1)


def cross_entropy_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of cross-entropy and 1 − soft Dice.

    Dice is computed for each class over the whole batch, then averaged over the classes that the
    targets contain.
    """
    valid = (targets != IGNORE_INDEX).float()  # B×1×H×W
    p = logits.float().softmax(1) * valid
    classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
    t = (targets == classes).float()  # IGNORE_INDEX is not a class
    intersection, target_area = (p * t).sum((0, 2, 3)), t.sum((0, 2, 3))
    dice = 2 * intersection / (p.sum((0, 2, 3)) + target_area).clamp(min=1)
    present = target_area > 0
    dice_term = ((1 - dice) * present).sum() / present.sum().clamp(min=1)
    return cross_entropy_loss(logits, targets) + dice_term


Loss = Callable[[Tensor, Tensor], Tensor]
BINARY_LOSSES: dict[str, Loss] = {
    "auto": edge_bce_dice_loss,
    "bce_dice": bce_dice_loss,
    "edge_bce_dice": edge_bce_dice_loss,
    "bce": bce_loss,
    "dice": dice_loss,
    "focal": focal_loss,
    "lovasz": lovasz_hinge_loss,
}
MULTICLASS_LOSSES: dict[str, Loss] = {
    "auto": cross_entropy_dice_loss,
    "ce_dice": cross_entropy_dice_loss,
    "ce": cross_entropy_loss,
}
