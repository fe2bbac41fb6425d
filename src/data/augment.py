"""What training does to an image and its mask, together.

Every draw comes from (seed, epoch, image) alone: it differs from epoch to epoch, and depends
neither on the number of worker processes nor on where an interrupted run went on.
"""

import os
import warnings
import zlib
from copy import deepcopy
from typing import Any

import albumentations as A
import cv2
import numpy as np

from data.classes import IGNORE, ClassMap

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network at import

# albumentations only warns of an argument it does not know, and goes on without it.
warnings.filterwarnings("error", message="Argument.*not valid")


PAPER_PROBABILITY = 0.1  # of Jois & Aygar 2017: how often each of their distortions strikes


BILINEAR = {  # soft masks stay soft
    "interpolation": cv2.INTER_LINEAR,
    "mask_interpolation": cv2.INTER_LINEAR,
}
REFLECT_BORDER = {"border_mode": cv2.BORDER_REFLECT_101, **BILINEAR}
BLACK_BORDER = {"border_mode": cv2.BORDER_CONSTANT, **BILINEAR}  # as a letterbox


def _affine(scale: float, shift: float, turn: float, p: float) -> A.Affine:
    """Zoom by 1 ± scale, shift by ± a part of the size, turn by ± degrees."""
    return A.Affine(
        scale=(1 - scale, 1 + scale),
        translate_percent=(-shift, shift),
        rotate=(-turn, turn),
        **REFLECT_BORDER,
        p=p,
    )


def _photometric(strength: float) -> list[A.BasicTransform]:
    """Exposure, contrast and the colour of the light."""
    return [
        A.RandomBrightnessContrast(0.15 * strength, 0.15 * strength, p=0.5),
        A.HueSaturationValue(int(8 * strength), int(15 * strength), int(8 * strength), p=0.3),
    ]


FLIP = A.HorizontalFlip(p=0.5)  # a car may face either way, but never stands on its roof
POLICIES: dict[str, list[A.BasicTransform]] = {
    "none": [],
    "flip": [FLIP],
    "light": [FLIP, _affine(0.1, 0.05, 3, p=0.5), *_photometric(1)],
    "paper": [  # flip, turn, zoom of each axis, shear to either side, shift: each by itself
        A.HorizontalFlip(p=PAPER_PROBABILITY),
        *(
            A.Affine(**change, **BLACK_BORDER, p=PAPER_PROBABILITY)
            for change in (
                {"rotate": (-20, 20)},
                {"scale": {"x": (0.8, 1.0), "y": (0.8, 1.0)}},
                {"shear": {"x": (-20, 20), "y": (-20, 20)}},
                {"translate_percent": (-0.2, 0.2)},
            )
        ),
    ],
    "strong": [FLIP, _affine(0.25, 0.1, 10, p=0.8), *_photometric(2), A.ToGray(p=0.1)],
}


SampledTransform = tuple[A.BasicTransform, dict[str, Any]]


class Augmenter:
    """A policy by name, called with the key of one draw."""

    def __init__(self, policy: str, seed: int, scheme: ClassMap):
        self.seed = seed
        # Classes have nothing in between. Compose sets this in the transforms themselves.
        between = None if scheme.is_binary else cv2.INTER_NEAREST
        steps = deepcopy(POLICIES[policy])
        for step in steps:
            if not scheme.is_binary and isinstance(step, A.Affine):
                step.fill_mask = IGNORE  # what comes in from outside is of no class
        self.transform = A.Compose(steps, mask_interpolation=between)

    @property
    def steps(self) -> list[A.BasicTransform]:
        """What may happen, in its order."""
        return self.transform.transforms

    def start(self, epoch: int, image_id: str) -> None:
        """Begin the draws of this image in this epoch."""
        self.transform.set_random_seed(zlib.crc32(f"{self.seed} {epoch} {image_id}".encode()))

    def drawn(
        self, epoch: int, image_id: str, size: tuple[int, int]
    ) -> dict[int, SampledTransform]:
        """What __call__ would do to an image of this size (h, w), without doing it: the steps that
        strike, by their place, with their numbers."""
        self.start(epoch, image_id)
        self.transform.py_random.random()  # Compose asks whether it is to run at all
        struck, nothing = {}, {"image": np.zeros((1, 1, 3), np.uint8)}
        for i, step in enumerate(self.steps):
            if step.should_apply():
                params = step.get_params()
                known = {"shape": (*size, 3)} | params
                struck[i] = step, params | step.get_params_dependent_on_data(known, nothing)
        return struck

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, epoch: int, image_id: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """H×W×3 and H×W uint8 → the same shapes; the mask holds coverage 0…255, or classes."""
        self.start(epoch, image_id)
        done = self.transform(image=image, mask=mask)
        return done["image"], done["mask"]
