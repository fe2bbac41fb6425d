"""The one road from image to probability: validation, out-of-fold scores and test all take it."""

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

from core.device import autocast, explain_out_of_memory, pick_device, pick_precision
from core.settings import Settings
from data.cache import Cache
from data.loaders import LoadedSample, prediction_loader
from data.preprocess import Preprocessing, Size, letterbox_region, preprocessing_from
from data.sample import Sample
from inference.sliding_window import sliding_window_logits
from models.segmenter import Segmenter

# The axes along which an image is mirrored, for each view. A mirroring undoes itself.
TTA_FLIPS: dict[str, list[tuple[int, ...]]] = {
    "none": [()],
    "hflip": [(), (-1,)],
    "flips": [(), (-1,), (-2,), (-1, -2)],
}


@dataclass
class EnsembleMember:
    """One network of an ensemble: the input it is given, and its vote."""

    network: Segmenter
    preprocessing: Preprocessing
    weight: float = 1.0


T = TypeVar("Item")
MemberProbability = tuple[EnsembleMember, Tensor]  # float32 C×h×w in [0, 1], at the member's size


def make_member(network: Segmenter, settings: Settings, weight: float = 1.0) -> EnsembleMember:
    """A network, given what `settings` trained it on."""
    return EnsembleMember(network, preprocessing_from(settings), weight)


@dataclass
class Prediction:
    """A row with its probability at the image's own size, float32 in [0, 1]: of the one class, or
    of each of several, which add up to 1."""

    sample: Sample
    probability: Tensor | None  # C×H×W; M×C×H×W of members asked one by one; None of no image
    agreement: Tensor | None  # see agreement(); None where they were asked one by one
    loaded: LoadedSample


def predict_probability_tta(network: Segmenter, images: Tensor, settings: Settings) -> Tensor:
    """uint8 B×3×h×w → float32 B×C×h×w in [0, 1], the mean over the views."""
    views = []
    for axes in TTA_FLIPS[settings.tta]:
        logits = sliding_window_logits(
            network, images.flip(axes), settings.tile_size, settings.tile_overlap
        )
        views.append((logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)).flip(axes))
    return torch.stack(views).mean(0)


def resize_to_original(small: Tensor, native: Size, given: Preprocessing) -> Tensor:
    """float C×h×w → C×H×W in [0, 1]. Thresholding comes after this, never before."""
    rows, columns = letterbox_region(native, given)
    small = small[:, rows, columns]
    if tuple(small.shape[-2:]) == tuple(native):
        return small
    # Bicubic follows the edges of the area-averaged targets more closely than bilinear.
    large = F.interpolate(small[None], size=native, mode="bicubic", align_corners=False)
    return large.clamp_(0, 1)[0]


def predict(
    members: list[EnsembleMember],
    rows: list[Sample],
    settings: Settings,
    with_truth: bool = False,
    apart: bool = False,
    cache: Cache | None = None,
) -> Iterator[Prediction]:
    """Every row's probability, in order: the weighted mean of the members' votes, or each
    member's own (`apart`). What is done with one runs beside the making of the next."""
    inputs = {member.preprocessing for member in members}
    batches = iter(prediction_loader(rows, inputs, settings, with_truth, cache))
    return prefetch(_predict_batches(members, batches, settings, apart), 2)


def prefetch(items: Generator[T], count: int) -> Iterator[T]:
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
def _predict_batches(
    members: list[EnsembleMember],
    batches: Iterator[list[LoadedSample]],
    settings: Settings,
    apart: bool,
) -> Generator[Prediction]:
    """What predict() gives, made here and now."""
    device = pick_device(settings)
    precision = pick_precision(settings, device)
    for batch in batches:
        # Images of one shape go through the networks together.
        for _, same in groupby(batch, key=lambda photo: photo.native_size):
            photos = list(same)
            if photos[0].error:
                yield from (Prediction(photo.sample, None, None, photo) for photo in photos)
                continue
            with explain_out_of_memory(settings), autocast(device, precision):
                votes = forward_members(members, photos, settings, device)
            for photo, each in zip(photos, votes, strict=True):
                if apart:
                    native = [
                        resize_to_original(vote, photo.native_size, voter.preprocessing)
                        for voter, vote in each
                    ]
                    yield Prediction(photo.sample, torch.stack(native), None, photo)
                else:
                    total = weighted_mean(each, photo.native_size)
                    yield Prediction(
                        photo.sample, total, member_agreement(each, total, photo.native_size), photo
                    )


def forward_members(
    members: list[EnsembleMember],
    photos: list[LoadedSample],
    settings: Settings,
    device: torch.device,
) -> list[list[MemberProbability]]:
    """Photographs of one native size → for each of them, what every member says."""
    images = {
        given: torch.stack([photo.images[given] for photo in photos]).to(device)
        for given in {member.preprocessing for member in members}
    }
    said = [
        (voter, predict_probability_tta(voter.network, images[voter.preprocessing], settings))
        for voter in members
    ]
    return [[(voter, batch[i]) for voter, batch in said] for i in range(len(photos))]


def weighted_mean(votes: list[MemberProbability], native: Size) -> Tensor:
    """The weighted mean of the votes at the image's own size, C×H×W."""
    total, whole = 0.0, sum(member.weight for member, _ in votes)
    for given in dict.fromkeys(member.preprocessing for member, _ in votes):
        # At one size the mean is taken before enlarging, which is dear.
        same = [(member.weight, vote) for member, vote in votes if member.preprocessing == given]
        share = sum(weight for weight, _ in same)
        small = sum(weight / share * vote for weight, vote in same)
        total = total + share / whole * resize_to_original(small, native, given)
    return total


def member_agreement(votes: list[MemberProbability], total: Tensor, native: Size) -> Tensor:
    """How far the members agree, a number in [0, 1] on the device: the weighted mean over them of
    the Dice between their own mask at 0.5 and the joint one, or, of several classes, of the part
    of pixels to which they give the same. Compared at each member's own size."""
    mean, whole = 0.0, sum(member.weight for member, _ in votes)
    for member, vote in votes:
        rows, columns = letterbox_region(native, member.preprocessing)
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


def quantize_probability(probability: Tensor) -> np.ndarray:
    """1×H×W in [0, 1] → H×W uint8 floor(256·p), at most 255: what scores and thresholds need."""
    return (probability[0] * 256).clamp_(max=255).to(torch.uint8).cpu().numpy()
