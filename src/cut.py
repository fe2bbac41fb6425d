"""Probability → mask: the threshold and the steps after it, or the likeliest class."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import postprocess
from infer import levels
from metrics import best_threshold
from oof import Scores
from settings import Settings


@dataclass
class Cut:
    """How a probability becomes a mask, or classes."""

    threshold: float
    steps: list[str]  # see postprocess

    def mask(self, probability: Tensor) -> np.ndarray:
        """C×H×W probability → H×W bool of the one class, H×W uint8 of several."""
        if len(probability) > 1:
            return probability.argmax(0).to(torch.uint8).cpu().numpy()
        mask = to_host(probability[0] >= self.threshold)
        return postprocess.apply(mask, levels(probability), self.steps) if self.steps else mask


def to_host(mask: Tensor) -> np.ndarray:
    """H×W bool on any device → H×W bool in memory; from a GPU come bits, not bytes."""
    if mask.device.type == "cpu":
        return mask.numpy()
    bits = np.unpackbits(pack(mask).cpu().numpy(), count=mask.numel())
    return bits.view(bool).reshape(mask.shape)


def pack(mask: Tensor) -> Tensor:
    """Bool of any shape → uint8, eight pixels in each, the first one highest, as np.packbits."""
    flat = F.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8)
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=mask.device)
    return (flat * places).sum(1, dtype=torch.uint8)


def best_cut(settings: Settings, scores: Scores) -> Cut:
    """What the settings ask for, else what is best out of fold."""
    if not scores.binary:
        return Cut(0.5, [])
    steps = postprocess.asked(settings.postprocess, scores.trials, scores.folds)
    return Cut(settings.threshold or best_threshold(scores.counts)[0], steps)
