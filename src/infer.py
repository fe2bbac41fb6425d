"""The one road from image to probability: validation, out-of-fold scores and test all take it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import Row
from device import autocast, memory_advice, pick_device, pick_precision
from loader import Photograph, Size, photographs
from models import Segmenter
from settings import Settings

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


Vote = tuple[Member, Tensor]  # float32 1×h×w in [0, 1], at the member's size


def member(network: Segmenter, settings: Settings, weight: float = 1.0) -> Member:
    """A network at the size that `settings` trained it for."""
    return Member(network, tuple(settings.size) if settings.size else None, weight)


@dataclass
class Prediction:
    """A row with its probability at the image's own size, float32 in [0, 1]."""

    row: Row
    probability: Tensor  # H×W; M×H×W where the members were asked one by one
    agreement: Tensor | None  # see agreement(); None where they were asked one by one
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
    members: list[Member],
    rows: list[Row],
    settings: Settings,
    with_truth: bool = False,
    apart: bool = False,
) -> Iterator[Prediction]:
    """Every row's probability, in order: the weighted mean of the members' votes, or each
    member's own (`apart`)."""
    device = pick_device(settings)
    precision = pick_precision(settings, device)
    sizes = {member.size for member in members}
    for batch in photographs(rows, sizes, settings, with_truth):
        # Images of one shape go through the networks together.
        for _, same in groupby(batch, key=lambda photo: photo.native):
            photos = list(same)
            with memory_advice(settings), autocast(device, precision):
                votes = ask(members, photos, settings.tta, device)
            for photo, each in zip(photos, votes, strict=True):
                if apart:
                    native = torch.stack([to_native(vote, photo.native) for _, vote in each])
                    yield Prediction(photo.row, native, None, photo)
                else:
                    total = combine(each, photo.native)
                    yield Prediction(photo.row, total, agreement(each, total), photo)


def ask(
    members: list[Member], photos: list[Photograph], tta: str, device: torch.device
) -> list[list[Vote]]:
    """Photographs of one native size → for each of them, what every member says."""
    images = {
        size: torch.stack([photo.images[size] for photo in photos]).to(device)
        for size in {member.size for member in members}
    }
    said = [(member, probability(member.network, images[member.size], tta)) for member in members]
    return [[(member, batch[i]) for member, batch in said] for i in range(len(photos))]


def combine(votes: list[Vote], native: Size) -> Tensor:
    """The weighted mean of the votes at the image's own size, H×W."""
    total, whole = 0.0, sum(member.weight for member, _ in votes)
    for size in dict.fromkeys(member.size for member, _ in votes):
        # At one size the mean is taken before enlarging, which is dear.
        same = [(member.weight, vote) for member, vote in votes if member.size == size]
        share = sum(weight for weight, _ in same)
        small = sum(weight / share * vote for weight, vote in same)
        total = total + share / whole * to_native(small, native)
    return total


def agreement(votes: list[Vote], total: Tensor) -> Tensor:
    """How far the members agree: the weighted mean of the Dice between the mask at 0.5 of each
    and of them all, a number in [0, 1] on the device. Compared at each member's own size."""
    mean, whole = 0.0, sum(member.weight for member, _ in votes)
    for member, vote in votes:
        mask, joint = vote[0] >= 0.5, F.interpolate(total[None, None], vote.shape[-2:])[0, 0] >= 0.5
        both, sizes = (mask & joint).sum(), mask.sum() + joint.sum()
        dice = torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0)
        mean = mean + member.weight / whole * dice
    return mean


def levels(probability: Tensor) -> np.ndarray:
    """H×W in [0, 1] → uint8 floor(256·p), at most 255: all that scores and thresholds need."""
    return (probability * 256).clamp_(max=255).to(torch.uint8).cpu().numpy()
