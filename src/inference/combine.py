"""Combine the members' probabilities (network size) into the ensemble's (native size)."""

from collections import defaultdict
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.preprocess import Preprocessing, Size, letterbox_region
from data.sample import Sample
from inference.members import EnsembleMember

MemberProbability = tuple[EnsembleMember, Tensor]  # float32 C×h×w in [0, 1], at network size


@dataclass
class ImageProbabilities:
    """The probabilities that M members predict for one image, on the device of the networks.

    C is 1 for binary segmentation; the probabilities of several classes add up to 1.
    """

    sample: Sample | None
    native_size: Size
    probabilities: list[MemberProbability]
    mask: Tensor | None  # H×W bool, or uint8 class ids; None if it was not loaded

    def mean(self) -> Tensor:
        """Return the weighted mean of the members, float32 C×H×W at native size."""
        groups, native = defaultdict(list), []
        for member, probability in self.probabilities:
            groups[member.preprocessing].append((member.weight, probability))
        for preprocessing, group in groups.items():
            mean = weighted_mean(group)  # before enlarging, which is expensive
            enlarged = resize_to_native(mean, self.native_size, preprocessing)
            native.append((sum(weight for weight, _ in group), enlarged))
        return weighted_mean(native)

    def each(self) -> Tensor:
        """Return the probabilities of all members, float32 M×C×H×W at native size."""
        native = [
            resize_to_native(probability, self.native_size, member.preprocessing)
            for member, probability in self.probabilities
        ]
        return torch.stack(native)

    def agreement(self, mean: Tensor) -> Tensor:
        """Return how much the members agree with the ensemble: a scalar in [0, 1], on the device.

        For each member, compare its mask with the mask of `mean` (C×H×W, the ensemble) at the
        member's network size. One class: the Dice of the two masks at threshold 0.5. Several
        classes: the fraction of pixels with the same class. The result is the weighted mean over
        the members.
        """
        similarities = []
        for member, probability in self.probabilities:
            region = letterbox_region(self.native_size, member.preprocessing)
            probability = probability[:, *region]
            # Not "nearest", which samples up to half a pixel too far up and left.
            size = probability.shape[-2:]
            ensemble_mean = F.interpolate(mean[None], size, mode="nearest-exact")[0]
            if len(probability) == 1:
                mask, ensemble_mask = probability >= 0.5, ensemble_mean >= 0.5
                intersection, areas = (mask & ensemble_mask).sum(), mask.sum() + ensemble_mask.sum()
                similarity = torch.where(areas > 0, 2 * intersection / areas.clamp(min=1), 1.0)
            else:
                similarity = (probability.argmax(0) == ensemble_mean.argmax(0)).float().mean()
            similarities.append((member.weight, similarity))
        return weighted_mean(similarities)


def weighted_mean(pairs: list[tuple[float, Tensor]]) -> Tensor:
    """Return the mean of tensors with weights, which need not add up to 1."""
    if len(pairs) == 1:
        return pairs[0][1]
    total = sum(weight for weight, _ in pairs)
    return sum(weight / total * tensor for weight, tensor in pairs)


def resize_to_native(
    probability: Tensor, native_size: Size, preprocessing: Preprocessing
) -> Tensor:
    """Resize a probability to the image's native size and cut off its letterbox.

    float C×h×w → C×H×W in [0, 1]. A threshold must be applied after this, not before.
    """
    probability = probability[:, *letterbox_region(native_size, preprocessing)]
    if tuple(probability.shape[-2:]) == tuple(native_size):
        return probability
    # Bicubic: 0.00002 more Dice than bilinear on 32 photographs (docs/experiments.md).
    if probability.device.type == "cpu":  # OpenCV is more than ten times as fast as torch here
        height, width = native_size
        planes = [
            cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC)
            for plane in probability.numpy()
        ]
        return torch.from_numpy(np.stack(planes)).clamp_(0, 1)
    enlarged = F.interpolate(
        probability[None], size=native_size, mode="bicubic", align_corners=False
    )
    return enlarged.clamp_(0, 1)[0]


def quantize_probability(probability: Tensor) -> Tensor:
    """Return floor(256·p), at most 255: 1×H×W in [0, 1] → H×W uint8.

    Scores and thresholds need no more: p >= i/256 if and only if floor(256·p) >= i.
    """
    return (probability[0] * 256).clamp_(max=255).to(torch.uint8)
