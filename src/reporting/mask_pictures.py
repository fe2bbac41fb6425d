"""Masks and overlays of the test images, written to output/<run>/masks/."""

from pathlib import Path

import numpy as np

from core import run_folder
from core.settings import Settings
from data import classes
from data.datasets import read_sample_image
from data.image_io import write_image
from data.sample import Sample
from evaluation import visualize


def mask_paths(settings: Settings, sample: Sample) -> list[Path]:
    """Return the paths of the pictures of a sample. One class: mask (0/255) and overlay, only if
    save_masks is set. Several classes: mask in color and label file, always."""
    folder, name = run_folder.masks_dir(settings.run_dir), sample.image_id
    if not sample.class_map.is_binary:
        return [folder / f"{name}.png", folder / "labels" / f"{name}.png"]
    if settings.save_masks:
        return [folder / f"{name}_mask.png", folder / f"{name}_overlay.jpg"]
    return []


def write_mask_pictures(settings: Settings, sample: Sample, mask: np.ndarray) -> None:
    """Write the pictures of a predicted mask, see mask_paths()."""
    paths = mask_paths(settings, sample)
    if not sample.class_map.is_binary:
        write_image(paths[0], classes.colorize(mask, sample.class_map))
        write_image(paths[1], classes.encode_values(mask, sample.class_map))
    elif settings.save_masks:
        write_image(paths[0], mask.astype(np.uint8) * 255)
        write_image(paths[1], visualize.draw_overlay(read_sample_image(sample), mask))
