"""The one road from image to probability: validation, out-of-fold scores and test all take it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import Settings
from datasets import Row
from device import autocast, memory_advice, pick_device, pick_precision
from loader import Photograph, Size, photographs
from models import Segmenter

# The axes along which an image is mirrored, for each view. A mirroring undoes itself.
VIEWS: dict[str, list[tuple[int, ...]]] = {
    "none": [()],
    "hflip": [(), (-1,)],
    "flips": [(), (-1,), (-2,), (-1, -2)],
}


@dataclass
class Member:
    """One network of an ensemble: the size it sees (None: the image's own) and its vote."""

    network: Segmenter
    size: Size | None
    weight: float = 1.0


def member(network: Segmenter, settings: Settings, weight: float = 1.0) -> Member:
    """A network at the size that `settings` trained it for."""
    return Member(network, tuple(settings.size) if settings.size else None, weight)


@dataclass
class Prediction:
    """A row with its probability, H×W float32 in [0, 1] at the image's own size."""

    row: Row
    probability: Tensor
    photograph: Photograph


def probability(network: Segmenter, images: Tensor, tta: str) -> Tensor:
    """uint8 B×3×h×w → float32 B×1×h×w in [0, 1], the mean over the views."""
    views = [network(images.flip(axes)).float().sigmoid().flip(axes) for axes in VIEWS[tta]]
    return torch.stack(views).mean(0)


def to_native(small: Tensor, size: Size) -> Tensor:
    """float 1×h×w → H×W in [0, 1]. Thresholding comes after this, never before."""
    if tuple(small.shape[-2:]) == tuple(size):
        return small[0]
    # Bicubic follows the edges of the area-averaged targets more closely than bilinear.
    large = F.interpolate(small[None], size=size, mode="bicubic", align_corners=False)
    return large.clamp_(0, 1)[0, 0]


@torch.inference_mode()
def predict(
    members: list[Member], rows: list[Row], settings: Settings, with_truth: bool = False
) -> Iterator[Prediction]:
    """Every row's probability, in order, as the weighted mean of the members' votes."""
    device = pick_device(settings)
    precision = pick_precision(settings, device)
    sizes = {member.size for member in members}
    for batch in photographs(rows, sizes, settings, with_truth):
        # Images of one shape go through the networks together.
        for _, same in groupby(batch, key=lambda photo: photo.native):
            photos = list(same)
            with memory_advice(settings), autocast(device, precision):
                votes = vote(members, photos, settings.tta, device)
            for photo, total in zip(photos, votes, strict=True):
                yield Prediction(photo.row, total, photo)


def vote(
    members: list[Member], photos: list[Photograph], tta: str, device: torch.device
) -> list[Tensor]:
    """Photographs of one native size → their probabilities, H×W each."""
    totals: list[Tensor | float] = [0.0] * len(photos)
    whole = sum(member.weight for member in members)
    for size in {member.size for member in members}:
        images = torch.stack([photo.images[size] for photo in photos]).to(device)
        group = [member for member in members if member.size == size]
        share = sum(member.weight for member in group)
        # At one size the mean is taken before enlarging, which is dear.
        small = sum(m.weight / share * probability(m.network, images, tta) for m in group)
        for i, photo in enumerate(photos):
            totals[i] = totals[i] + share / whole * to_native(small[i], photo.native)
    return totals


def levels(probability: Tensor) -> np.ndarray:
    """H×W in [0, 1] → uint8 floor(256·p), at most 255: all that scores and thresholds need."""
    return (probability * 256).clamp_(max=255).to(torch.uint8).cpu().numpy()
