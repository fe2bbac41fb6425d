"""The one road from image to probability: validation, out-of-fold scores and test all take it."""

import math
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cache import Cache
from device import autocast, memory_advice, pick_device, pick_precision
from loader import Photograph, photographs
from models import Segmenter
from prepare import Input, Size, inner, input_of
from row import Row
from settings import Settings

# The axes along which an image is mirrored, for each view. A mirroring undoes itself.
VIEWS: dict[str, list[tuple[int, ...]]] = {
    "none": [()],
    "hflip": [(), (-1,)],
    "flips": [(), (-1,), (-2,), (-1, -2)],
}


@dataclass
class Member:
    """One network of an ensemble: the input it is given, and its vote."""

    network: Segmenter
    given: Input
    weight: float = 1.0


Item = TypeVar("Item")
Vote = tuple[Member, Tensor]  # float32 C×h×w in [0, 1], at the member's size


def member(network: Segmenter, settings: Settings, weight: float = 1.0) -> Member:
    """A network, given what `settings` trained it on."""
    return Member(network, input_of(settings), weight)


@dataclass
class Prediction:
    """A row with its probability at the image's own size, float32 in [0, 1]: of the one class, or
    of each of several, which add up to 1."""

    row: Row
    probability: Tensor | None  # C×H×W; M×C×H×W of members asked one by one; None of no image
    agreement: Tensor | None  # see agreement(); None where they were asked one by one
    photograph: Photograph


def probability(network: Segmenter, images: Tensor, settings: Settings) -> Tensor:
    """uint8 B×3×h×w → float32 B×C×h×w in [0, 1], the mean over the views."""
    views = []
    for axes in VIEWS[settings.tta]:
        logits = tiled(network, images.flip(axes), settings.tile, settings.overlap)
        views.append((logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)).flip(axes))
    return torch.stack(views).mean(0)


def to_native(small: Tensor, native: Size, given: Input) -> Tensor:
    """float C×h×w → C×H×W in [0, 1]. Thresholding comes after this, never before."""
    rows, columns = inner(native, given)
    small = small[:, rows, columns]
    if tuple(small.shape[-2:]) == tuple(native):
        return small
    # Bicubic follows the edges of the area-averaged targets more closely than bilinear.
    large = F.interpolate(small[None], size=native, mode="bicubic", align_corners=False)
    return large.clamp_(0, 1)[0]


def predict(
    members: list[Member],
    rows: list[Row],
    settings: Settings,
    with_truth: bool = False,
    apart: bool = False,
    cache: Cache | None = None,
) -> Iterator[Prediction]:
    """Every row's probability, in order: the weighted mean of the members' votes, or each
    member's own (`apart`). What is done with one runs beside the making of the next."""
    inputs = {member.given for member in members}
    batches = iter(photographs(rows, inputs, settings, with_truth, cache))
    return ahead(predictions(members, batches, settings, apart), 2)


def ahead(items: Generator[Item], count: int) -> Iterator[Item]:
    """The items in order, made in a thread that is at most `count` of them ahead."""
    end = object()
    try:
        with ThreadPoolExecutor(1) as thread:
            coming = deque(thread.submit(next, items, end) for _ in range(count))
            while (item := coming.popleft().result()) is not end:
                coming.append(thread.submit(next, items, end))
                yield item
    finally:
        items.close()


@torch.inference_mode()
def predictions(
    members: list[Member], batches: Iterator[list[Photograph]], settings: Settings, apart: bool
) -> Generator[Prediction]:
    """What predict() gives, made here and now."""
    device = pick_device(settings)
    precision = pick_precision(settings, device)
    for batch in batches:
        # Images of one shape go through the networks together.
        for _, same in groupby(batch, key=lambda photo: photo.native):
            photos = list(same)
            if photos[0].fault:
                yield from (Prediction(photo.row, None, None, photo) for photo in photos)
                continue
            with memory_advice(settings), autocast(device, precision):
                votes = ask(members, photos, settings, device)
            for photo, each in zip(photos, votes, strict=True):
                if apart:
                    native = [to_native(vote, photo.native, voter.given) for voter, vote in each]
                    yield Prediction(photo.row, torch.stack(native), None, photo)
                else:
                    total = combine(each, photo.native)
                    yield Prediction(photo.row, total, agreement(each, total, photo.native), photo)


def ask(
    members: list[Member], photos: list[Photograph], settings: Settings, device: torch.device
) -> list[list[Vote]]:
    """Photographs of one native size → for each of them, what every member says."""
    images = {
        given: torch.stack([photo.images[given] for photo in photos]).to(device)
        for given in {member.given for member in members}
    }
    said = [(voter, probability(voter.network, images[voter.given], settings)) for voter in members]
    return [[(voter, batch[i]) for voter, batch in said] for i in range(len(photos))]


def combine(votes: list[Vote], native: Size) -> Tensor:
    """The weighted mean of the votes at the image's own size, C×H×W."""
    total, whole = 0.0, sum(member.weight for member, _ in votes)
    for given in dict.fromkeys(member.given for member, _ in votes):
        # At one size the mean is taken before enlarging, which is dear.
        same = [(member.weight, vote) for member, vote in votes if member.given == given]
        share = sum(weight for weight, _ in same)
        small = sum(weight / share * vote for weight, vote in same)
        total = total + share / whole * to_native(small, native, given)
    return total


def agreement(votes: list[Vote], total: Tensor, native: Size) -> Tensor:
    """How far the members agree, a number in [0, 1] on the device: the weighted mean over them of
    the Dice between their own mask at 0.5 and the joint one, or, of several classes, of the part
    of pixels to which they give the same. Compared at each member's own size."""
    mean, whole = 0.0, sum(member.weight for member, _ in votes)
    for member, vote in votes:
        rows, columns = inner(native, member.given)
        vote = vote[:, rows, columns]
        joint = F.interpolate(total[None], vote.shape[-2:])[0]
        if len(vote) == 1:
            mask, joint = vote >= 0.5, joint >= 0.5
            both, sizes = (mask & joint).sum(), mask.sum() + joint.sum()
            alike = torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0)
        else:
            alike = (vote.argmax(0) == joint.argmax(0)).float().mean()
        mean = mean + member.weight / whole * alike
    return mean


# ---------------------------------------------------------------- tiles


def tiled(network: Segmenter, images: Tensor, tile: int, overlap: float) -> Tensor:
    """float32 logits B×C×h×w, from tiles of `tile` pixels a side where the images are larger.

    Neighbours share `overlap` of a tile, and each counts by a Gaussian around its own middle, so
    that no seam is left. At its edges a tile sees itself mirrored, as an image does (Segmenter).
    """
    height, width = images.shape[-2:]
    if not tile or (height <= tile and width <= tile):
        return network(images).float()
    total, weights, peak = 0.0, 0.0, bell(tile, images.device)
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            part = images[..., top : top + tile, left : left + tile]
            rows, columns = part.shape[-2:]
            weight = peak[:rows, None] * peak[:columns]
            around = (left, width - left - columns, top, height - top - rows)
            total = total + F.pad(network(part).float() * weight, around)
            weights = weights + F.pad(weight, around)
    return total / weights


GRID = 64  # tiles begin where the coarsest level of a deep network has a pixel


def starts(side: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side: on the GRID, evenly, the last one reaching the end."""
    last = max(0, math.ceil((side - tile) / GRID))
    step = max(1, int(tile * (1 - overlap) / GRID))
    count = math.ceil(last / step)
    return [GRID * (i * last // max(count, 1)) for i in range(count + 1)]


def bell(side: int, device: torch.device) -> Tensor:
    """A Gaussian over `side` pixels, an eighth of them wide (as nnU-Net, Isensee et al. 2021)."""
    away = torch.arange(side, device=device) - (side - 1) / 2
    return torch.exp(-0.5 * (away / (side / 8)) ** 2)


def levels(probability: Tensor) -> np.ndarray:
    """1×H×W in [0, 1] → H×W uint8 floor(256·p), at most 255: what scores and thresholds need."""
    return (probability[0] * 256).clamp_(max=255).to(torch.uint8).cpu().numpy()
