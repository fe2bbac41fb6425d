"""Training augmentation, applied to image and target together.

All random numbers come from (seed, epoch, image_id): they depend neither on the number of worker
processes nor on where an interrupted run resumed.
"""

import os
import warnings
import zlib
from collections.abc import Sequence
from copy import deepcopy

import cv2
import numpy as np

from data.classes import IGNORE, ClassMap

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks PyPI for updates

import albumentations as A

# albumentations ignores unknown arguments with a warning only.
warnings.filterwarnings("error", message="Argument.*not valid")


PAPER_PROBABILITY = 0.1  # probability of each distortion in Jois & Aygar 2017


def _affine(scale: float, shift: float, rotate: float, p: float) -> A.Affine:
    """Zoom by 1 ± scale, shift by ± a fraction of the size, rotate by ± degrees."""
    return A.Affine(
        scale=(1 - scale, 1 + scale),
        keep_ratio=True,  # else albumentations samples a separate zoom for each axis
        translate_percent=(-shift, shift),
        rotate=(-rotate, rotate),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


def _photometric(strength: float) -> list[A.BasicTransform]:
    """Vary exposure, contrast and the color of the light."""
    return [
        A.RandomBrightnessContrast(
            brightness_limit=0.15 * strength, contrast_limit=0.15 * strength, p=0.5
        ),
        A.HueSaturationValue(  # in OpenCV's units: hue 0 to 179, saturation and value 0 to 255
            hue_shift_limit=int(8 * strength),
            sat_shift_limit=int(15 * strength),
            val_shift_limit=int(8 * strength),
            p=0.3,
        ),
    ]


FLIP = A.HorizontalFlip(p=0.5)
POLICIES: dict[str, list[A.BasicTransform]] = {
    "none": [],
    "hflip": [FLIP],
    "flips": [FLIP, A.VerticalFlip(p=0.5)],  # not for cars, which are upright
    "light": [FLIP, _affine(scale=0.1, shift=0.05, rotate=3, p=0.5), *_photometric(1)],
    "paper": [  # independent of each other; the border is black, as in a letterbox
        A.HorizontalFlip(p=PAPER_PROBABILITY),
        A.Affine(rotate=(-20, 20), p=PAPER_PROBABILITY),
        A.Affine(scale={"x": (0.8, 1.0), "y": (0.8, 1.0)}, p=PAPER_PROBABILITY),
        A.Affine(shear={"x": (-20, 20), "y": (-20, 20)}, p=PAPER_PROBABILITY),
        A.Affine(translate_percent=(-0.2, 0.2), p=PAPER_PROBABILITY),
    ],
    "strong": [
        FLIP,
        _affine(scale=0.25, shift=0.1, rotate=10, p=0.8),
        *_photometric(2),
        A.ToGray(p=0.1),
    ],
}


class Augmenter:
    """Applies a policy, then crops; its random numbers depend only on (seed, epoch, image_id)."""

    def __init__(
        self,
        policy: str,
        seed: int,
        class_map: ClassMap,
        crop_size: Sequence[int] | None = None,
    ):
        self.seed = seed
        transforms = deepcopy(POLICIES[policy])  # seeds and fill_mask are set on these objects
        if crop_size:
            transforms.append(A.RandomCrop(height=crop_size[0], width=crop_size[1]))
        mask_interpolation = cv2.INTER_LINEAR  # soft masks stay soft
        if not class_map.is_binary:
            mask_interpolation = cv2.INTER_NEAREST  # class ids must not be interpolated
            for transform in transforms:
                if isinstance(transform, A.Affine):
                    transform.fill_mask = IGNORE
        self.transform = A.Compose(transforms, mask_interpolation=mask_interpolation)

    def __call__(
        self, image: np.ndarray, target: np.ndarray, epoch: int, image_id: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the augmented image h×w×3 and target h×w (coverage 0…255, or class ids), uint8."""
        seed = zlib.crc32(f"{self.seed} {epoch} {image_id}".encode())
        # Not Compose.set_random_seed(): it gives all transforms the same random numbers.
        for i, transform in enumerate(self.transform.transforms):
            transform.set_random_seed(seed + i)
        augmented = self.transform(image=image, mask=target)
        return augmented["image"], augmented["mask"]
