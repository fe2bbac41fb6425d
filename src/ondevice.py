"""Augmentation of whole batches where the network runs, for CPUs that cannot keep up with a GPU.

The draws are those of augment.py, the very same for the same seed, epoch and image; only what they
do to the pixels is done here, for all images of a batch at once.
"""

from collections.abc import Callable

import albumentations as A
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from augment import Augment
from cache import Cache
from prepare import Size

Batch = tuple[Tensor, Tensor]  # float32 B×3×h×w, whole numbers in 0…255, and targets B×1×h×w


def flip(images: Tensor, targets: Tensor, numbers: Tensor, step: A.HorizontalFlip) -> Batch:
    """Left becomes right."""
    return images.flip(-1), targets.flip(-1)


def warp(images: Tensor, targets: Tensor, numbers: Tensor, step: A.Affine) -> Batch:
    """Each image by its own matrix, six numbers that take a pixel's x, y, 1 to where it comes
    from."""
    height, width = images.shape[-2:]
    sides = [
        torch.arange(side, device=numbers.device, dtype=torch.float32) for side in (height, width)
    ]
    y, x = torch.meshgrid(*sides, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3) @ numbers.view(-1, 2, 3).mT
    ends = torch.tensor([width - 1, height - 1], device=numbers.device).clamp(min=1)
    grid = (2 * places / ends - 1).view(-1, height, width, 2)
    padding = "reflection" if step.border_mode == cv2.BORDER_REFLECT_101 else "zeros"
    mode = "nearest" if step.mask_interpolation == cv2.INTER_NEAREST else "bilinear"
    options = {"padding_mode": padding, "align_corners": True}
    outside = float(step.fill_mask)  # grid_sample knows only zeros
    labels = F.grid_sample(targets - outside, grid, mode=mode, **options) + outside
    return F.grid_sample(images, grid, mode="bilinear", **options), labels


def contrast(images: Tensor, targets: Tensor, numbers: Tensor, step: A.BasicTransform) -> Batch:
    """alpha · image + beta."""
    alpha, beta = numbers[:, 0].view(-1, 1, 1, 1), numbers[:, 1].view(-1, 1, 1, 1)
    return images * alpha + beta, targets


def hue(images: Tensor, targets: Tensor, numbers: Tensor, step: A.BasicTransform) -> Batch:
    """Hue in 0…180 turned, saturation and value in 0…255 shifted; grey stays grey."""
    shift = numbers[:, :3, None, None]
    value, _ = images.max(1)
    chroma = value - images.min(1)[0]
    red, green, blue = images.unbind(1)
    safe = chroma.clamp(min=1)
    sixth = torch.where(
        value == red,
        (green - blue) / safe % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sixth = (sixth + shift[:, 0] / 30) % 6
    saturation = torch.where(chroma > 0, chroma / value.clamp(min=1) + shift[:, 1] / 255, 0.0)
    value, saturation = (value + shift[:, 2]).clamp(0, 255), saturation.clamp(0, 1)
    at = (torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1) + sixth[:, None]) % 6
    fall = torch.minimum(at, 4 - at).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * fall), targets


def gray(images: Tensor, targets: Tensor, numbers: Tensor, step: A.BasicTransform) -> Batch:
    """The luminance of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).expand_as(images), targets


Change = Callable[[Tensor, Tensor, Tensor, A.BasicTransform], Batch]
CHANGES: dict[type, Change] = {
    A.HorizontalFlip: flip,
    A.Affine: warp,
    A.RandomBrightnessContrast: contrast,
    A.HueSaturationValue: hue,
    A.ToGray: gray,
}


def draws(augment: Augment, epoch: int, image_id: str, size: Size) -> Tensor:
    """Of each step of the policy whether it strikes this image, and its numbers: S×7 float32."""
    drawn = augment.drawn(epoch, image_id, size)
    table = np.zeros((len(augment.steps), 7), np.float32)
    for row, step in zip(table, augment.steps, strict=True):
        row[1:] = np.eye(3)[:2].ravel() if isinstance(step, A.Affine) else 0
    for i, (step, known) in drawn.items():
        if isinstance(step, A.Affine):
            numbers = np.linalg.inv(known["matrix"])[:2].ravel()
        else:
            names = ("alpha", "beta", "hue_shift", "sat_shift", "val_shift")
            numbers = [known[name] for name in names if name in known]
        table[i, : 1 + len(numbers)] = [1, *numbers]
    return torch.from_numpy(table)


def augmented(images: Tensor, targets: Tensor, numbers: Tensor, augment: Augment) -> Batch:
    """uint8 B×3×h×w and B×1×h×w → the same, as draws() B×S×7 say."""
    x, y = images.float(), targets.float()
    for i, step in enumerate(augment.steps):
        struck = numbers[:, i, 0].view(-1, 1, 1, 1) > 0
        changed = CHANGES[type(step)](x, y, numbers[:, i, 1:], step)
        x = torch.where(struck, changed[0].round().clamp(0, 255), x)
        y = torch.where(struck, changed[1].round().clamp(0, 255), y)
    return x.to(torch.uint8), y.to(torch.uint8)


# ---------------------------------------------------------------- data that stay on the device


def resident(cache: Cache | None, device: torch.device) -> Tensor | None:
    """The whole cache on a GPU, if it takes at most half of what is free there."""
    if cache is None or device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return (
        torch.from_numpy(cache.pixels.copy()).to(device) if cache.pixels.nbytes < free / 2 else None
    )


def gathered(records: Tensor, places: Tensor, size: Size) -> Batch:
    """Records N×(4·h·w) of a cache, and which of them: B → images and targets, uint8."""
    found, area = records[places], size[0] * size[1]
    images = found[:, : 3 * area].view(-1, *size, 3).permute(0, 3, 1, 2)
    return images, found[:, 3 * area :].view(-1, 1, *size)
