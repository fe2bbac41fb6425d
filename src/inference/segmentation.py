"""The result of one photograph: probability, mask, opacity and cutout."""

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch

from core.errors import InputError
from inference.cutout import clean_edge_colors, put_on_background, read_background, soft_alpha
from inference.postprocess import Binarizer


@dataclass(frozen=True)
class Segmentation:
    """A photograph with its prediction; its properties are computed on first use."""

    image: np.ndarray = field(repr=False)  # H×W×3 uint8 sRGB, turned as EXIF requires
    # float32 in [0, 1]: H×W for one class, C×H×W for several classes
    probability: np.ndarray = field(repr=False)
    binarizer: Binarizer
    edge_radius: float  # see cutout.edge_radius()

    @cached_property
    def mask(self) -> np.ndarray:
        """H×W bool for one class; H×W uint8 class ids for several classes."""
        several = self.probability.ndim == 3
        probability = self.probability if several else self.probability[None]
        return self.binarizer(torch.from_numpy(probability))

    @cached_property
    def alpha(self) -> np.ndarray:
        """H×W uint8 opacity, soft within a few pixels of the mask's outline; for one class only."""
        if self.probability.ndim > 2:
            raise InputError("a cutout needs a run of one class; this run has several")
        threshold = self.binarizer.threshold
        return soft_alpha(self.probability, self.mask, threshold, self.edge_radius)

    def cutout(self, background: str | os.PathLike | None = None) -> np.ndarray:
        """Return the object as H×W×4 uint8 RGBA, not premultiplied.

        With a `background`, return the object on it as H×W×3 uint8 RGB. `background` is a color
        (#rrggbb or a name) or the path of a picture. Raises InputError for several classes.
        """
        cutout = np.dstack([clean_edge_colors(self.image, self.alpha), self.alpha])
        if not background:
            return cutout
        return put_on_background(cutout, read_background(background, self.mask.shape))

    def with_threshold(self, threshold: float) -> Self:
        """Return the same prediction with another threshold, above 0 and below 1; for one class."""
        if self.probability.ndim > 2:
            raise InputError("a threshold needs a run of one class; this run has several")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold}: must be between 0 and 1")
        return replace(self, binarizer=replace(self.binarizer, threshold=threshold))
