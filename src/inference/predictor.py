"""The single path from image to probability: validation, out-of-fold scores and prediction."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
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

# The axes along which test-time augmentation flips an image; a flip is its own inverse.
TTA_FLIPS: dict[str, list[tuple[int, ...]]] = {
    "none": [()],
    "hflip": [(), (-1,)],
    "flips": [(), (-1,), (-2,), (-1, -2)],
}
PREFETCHED_PREDICTIONS = 2


@dataclass
class EnsembleMember:
    """One network of an ensemble, with its preprocessing and weight."""

    network: Segmenter
    preprocessing: Preprocessing
    weight: float = 1.0


def make_member(network: Segmenter, settings: Settings, weight: float = 1.0) -> EnsembleMember:
    """Return the network as a member with the preprocessing of its training settings."""
    return EnsembleMember(network, preprocessing_from(settings), weight)


@dataclass
class Prediction:
    """Prediction of one image; None in a field that was not computed."""

    sample: Sample
    # float32 in [0, 1] at native size, C×H×W; M×C×H×W from predict_each_member(). C is 1 for
    # binary segmentation; several classes add up to 1. None if the image could not be read.
    probability: Tensor | None
    agreement: Tensor | None  # a scalar in [0, 1], see member_agreement()
    loaded: LoadedSample


Item = TypeVar("Item")
MemberProbability = tuple[EnsembleMember, Tensor]  # float32 C×h×w in [0, 1], at network size
Combine = Callable[[LoadedSample, list[MemberProbability]], Prediction]

# ---------------------------------------------------------------- predicting samples


def predict(
    members: list[EnsembleMember],
    samples: list[Sample],
    settings: Settings,
    with_mask: bool = False,
    cache: Cache | None = None,
    with_agreement: bool = False,
) -> Iterator[Prediction]:
    """Predict the samples in order: the weighted mean of the members' probabilities, C×H×W.

    The caller's work on one prediction runs concurrently with the forward pass of the next.
    `with_mask` loads the masks as well.
    """

    def combine(loaded: LoadedSample, probabilities: list[MemberProbability]) -> Prediction:
        mean = weighted_mean(probabilities, loaded.native_size)
        agreement = None
        if with_agreement:
            agreement = member_agreement(probabilities, mean, loaded.native_size)
        return Prediction(loaded.sample, mean, agreement, loaded)

    return predict_in_background(members, samples, settings, with_mask, cache, combine)


def predict_each_member(
    members: list[EnsembleMember],
    samples: list[Sample],
    settings: Settings,
    with_mask: bool = False,
) -> Iterator[Prediction]:
    """Predict the samples in order: the probabilities of all M members, M×C×H×W."""

    def combine(loaded: LoadedSample, probabilities: list[MemberProbability]) -> Prediction:
        native = [
            resize_to_original(probability, loaded.native_size, member.preprocessing)
            for member, probability in probabilities
        ]
        return Prediction(loaded.sample, torch.stack(native), None, loaded)

    return predict_in_background(members, samples, settings, with_mask, None, combine)


def predict_in_background(
    members: list[EnsembleMember],
    samples: list[Sample],
    settings: Settings,
    with_mask: bool,
    cache: Cache | None,
    combine: Combine,
) -> Iterator[Prediction]:
    """Load the samples, preprocessed for every member, and predict them in a background thread."""
    preprocessings = {member.preprocessing for member in members}
    batches = iter(prediction_loader(samples, preprocessings, settings, with_mask, cache))
    return prefetch(predict_batches(members, batches, settings, combine), PREFETCHED_PREDICTIONS)


def prefetch(items: Generator[Item, None, None], count: int) -> Iterator[Item]:
    """Iterate over the items in order, up to `count` of them ahead in a background thread."""
    end = object()
    try:
        with ThreadPoolExecutor(1) as thread:
            pending = deque(thread.submit(next, items, end) for _ in range(count))
            while (item := pending.popleft().result()) is not end:
                pending.append(thread.submit(next, items, end))
                yield item
    finally:
        items.close()


@torch.inference_mode()
def predict_batches(
    members: list[EnsembleMember],
    batches: Iterator[list[LoadedSample]],
    settings: Settings,
    combine: Combine,
) -> Generator[Prediction, None, None]:
    """Predict every image of the batches in order, synchronously.

    `combine` makes a Prediction of an image and its probability from each member.
    """
    device = pick_device(settings)
    precision = pick_precision(settings, device)
    for batch in batches:
        for same_size in group_by_size(batch):
            if same_size[0].error:
                yield from (Prediction(loaded.sample, None, None, loaded) for loaded in same_size)
                continue
            with explain_out_of_memory(settings), autocast(device, precision):
                probabilities = forward_members(members, same_size, settings, device)
            for loaded, of_members in zip(same_size, probabilities, strict=True):
                with explain_out_of_memory(settings):  # at native size
                    prediction = combine(loaded, of_members)
                yield prediction


def group_by_size(batch: list[LoadedSample]) -> Iterator[list[LoadedSample]]:
    """Split a batch into consecutive images of one native size; unreadable ones have size 0×0."""
    for _, same_size in groupby(batch, key=lambda loaded: loaded.native_size):
        yield list(same_size)


def forward_members(
    members: list[EnsembleMember],
    same_size: list[LoadedSample],
    settings: Settings,
    device: torch.device,
) -> list[list[MemberProbability]]:
    """Forward all members on images of one native size; return a list per image."""
    images = {
        preprocessing: torch.stack([loaded.images[preprocessing] for loaded in same_size]).to(
            device
        )
        for preprocessing in {member.preprocessing for member in members}
    }
    batches = [
        (member, predict_probability_tta(member.network, images[member.preprocessing], settings))
        for member in members
    ]
    return [[(member, batch[i]) for member, batch in batches] for i in range(len(same_size))]


def predict_probability_tta(network: Segmenter, images: Tensor, settings: Settings) -> Tensor:
    """Return the mean probability over the flips: uint8 B×3×h×w → float32 B×C×h×w in [0, 1]."""
    probabilities = []
    for axes in TTA_FLIPS[settings.tta]:
        logits = sliding_window_logits(
            network, images.flip(axes), settings.tile_size, settings.tile_overlap
        )
        probability = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
        probabilities.append(probability.flip(axes))
    return torch.stack(probabilities).mean(0)


# ---------------------------------------------------------------- one image


def resize_to_original(
    probability: Tensor, native_size: Size, preprocessing: Preprocessing
) -> Tensor:
    """Resize a probability to the image's native size and cut off its letterbox.

    float C×h×w → C×H×W in [0, 1]. A threshold must be applied after this, not before.
    """
    probability = probability[:, *letterbox_region(native_size, preprocessing)]
    if tuple(probability.shape[-2:]) == tuple(native_size):
        return probability
    # Bicubic follows the edges of the area-averaged targets more closely than bilinear.
    enlarged = F.interpolate(
        probability[None], size=native_size, mode="bicubic", align_corners=False
    )
    return enlarged.clamp_(0, 1)[0]


def weighted_mean(probabilities: list[MemberProbability], native_size: Size) -> Tensor:
    """Return the weighted mean of the members' probabilities, C×H×W at native size."""
    mean, total_weight = 0.0, sum(member.weight for member, _ in probabilities)
    for preprocessing in dict.fromkeys(member.preprocessing for member, _ in probabilities):
        # Members with the same preprocessing are averaged before enlarging, which is expensive.
        same = [(m.weight, p) for m, p in probabilities if m.preprocessing == preprocessing]
        weight = sum(member_weight for member_weight, _ in same)
        small = sum(member_weight / weight * p for member_weight, p in same)
        mean = mean + weight / total_weight * resize_to_original(small, native_size, preprocessing)
    return mean


def member_agreement(
    probabilities: list[MemberProbability], mean: Tensor, native_size: Size
) -> Tensor:
    """Return how much the members agree with the ensemble: a scalar in [0, 1], on the device.

    It is the weighted mean, over members, of the Dice between the member's mask and the mask of
    the ensemble's `mean` (C×H×W), both at threshold 0.5; for several classes, of the fraction of
    pixels with the same class. Compared at each member's network size.
    """
    agreement, total_weight = 0.0, sum(member.weight for member, _ in probabilities)
    for member, probability in probabilities:
        probability = probability[:, *letterbox_region(native_size, member.preprocessing)]
        joint = F.interpolate(mean[None], probability.shape[-2:])[0]
        if len(probability) == 1:
            mask, joint_mask = probability >= 0.5, joint >= 0.5
            intersection, areas = (mask & joint_mask).sum(), mask.sum() + joint_mask.sum()
            similarity = torch.where(areas > 0, 2 * intersection / areas.clamp(min=1), 1.0)
        else:
            similarity = (probability.argmax(0) == joint.argmax(0)).float().mean()
        agreement = agreement + member.weight / total_weight * similarity
    return agreement


def quantize_probability(probability: Tensor) -> np.ndarray:
    """Return floor(256·p), at most 255: 1×H×W in [0, 1] → H×W uint8.

    Scores and thresholds need no more: p >= i/256 if and only if floor(256·p) >= i.
    """
    return (probability[0] * 256).clamp_(max=255).to(torch.uint8).cpu().numpy()
