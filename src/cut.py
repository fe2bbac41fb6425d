"""Probability → mask: the threshold and the steps after it, or the likeliest class."""

from dataclasses import dataclass

import numpy as np
import torch
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
        mask = (probability[0] >= self.threshold).cpu().numpy()
        return postprocess.apply(mask, levels(probability), self.steps) if self.steps else mask


def best_cut(settings: Settings, scores: Scores) -> Cut:
    """What the settings ask for, else what is best out of fold."""
    if not scores.binary:
        return Cut(0.5, [])
    steps = postprocess.asked(settings.postprocess, scores.trials, scores.folds)
    return Cut(settings.threshold or best_threshold(scores.counts)[0], steps)
