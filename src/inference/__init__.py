"""From networks and images to probabilities, masks and run lengths.

from inference import load

model = load("output/carvana")
mask = model("car.jpg").mask
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.trained_model import TrainedModel


def load(run_dir: str | PathLike, device: str = "auto") -> TrainedModel:
    """Return the networks of a trained run or ensemble, to be called with photographs."""
    from inference.trained_model import TrainedModel  # imports torch; data.rle needs none

    return TrainedModel.load(run_dir, device)
