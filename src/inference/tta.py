"""Test-time augmentation: the mean probability of an image and its flips."""

from collections.abc import Callable

from torch import Tensor

from core.settings import Settings
from inference.sliding_window import sliding_window_logits

# The axes along which each value of the setting `tta` flips an image; a flip is its own inverse.
TTA_FLIPS: dict[str, list[tuple[int, ...]]] = {
    "none": [()],
    "hflip": [(), (-1,)],
    "flips": [(), (-1,), (-2,), (-1, -2)],
}


def predict_probability_tta(
    model: Callable[[Tensor], Tensor], images: Tensor, settings: Settings
) -> Tensor:
    """Return the mean probability over the flips: uint8 B×3×h×w → float32 B×C×h×w in [0, 1]."""
    total, flips = 0.0, TTA_FLIPS[settings.tta]
    for axes in flips:
        logits = sliding_window_logits(
            model, images.flip(axes), settings.tile_size, settings.tile_overlap
        )
        probability = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
        total = total + probability.flip(axes)
    return total / len(flips)
