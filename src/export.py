"""Write the networks of a run to one ONNX file: output/<run>/<run>.onnx.

The graph maps uint8 RGB images B×3×H×W, resized as for training, to probabilities. It normalizes
and pads the images, and averages over folds and flips. `fold=0 tta=none` exports one network.
"""

import json
from dataclasses import replace
from pathlib import Path

from core import cli
from core.settings import Settings

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

import numpy as np

from core.errors import InputError
from core.text import format_count
from data import datasets, image_io
from data.preprocess import Preprocessing, preprocess_image
from evaluation import ensemble, oof
from inference import load_runs
from inference.onnx_export import MeanProbability, check_exportable, export_onnx


def read_photograph(settings: Settings) -> np.ndarray:
    """Return the first photograph of the setting `images`, or the first test image."""
    if settings.images:
        return image_io.read_image(image_io.find_photographs(Path(settings.images))[0])
    try:
        return datasets.read_sample_image(datasets.load_test_samples(settings)[0])
    except InputError as error:
        raise InputError(
            f"{error}; a photograph is needed to check the ONNX file: set images=photo.jpg"
        ) from None


def to_check_images(photograph: np.ndarray, preprocessing: Preprocessing) -> list[np.ndarray]:
    """Return two batches B×3×h×w uint8: the preprocessed photograph, and a part of it twice."""
    image = preprocess_image(photograph, preprocessing).transpose(2, 0, 1)[None]
    height, width = image.shape[2:]
    part = image[..., : height - height // 5, : width - width // 7]
    return [np.ascontiguousarray(image), np.concatenate([part, part[..., ::-1]])]


def main(args: list[str]) -> None:
    settings = load_runs.settings_for_prediction(args)
    photograph = read_photograph(settings)
    on_cpu = replace(settings, device="cpu")
    members = load_runs.load_members(on_cpu)
    check_exportable(members, on_cpu)
    binarizer = oof.choose_binarizer(settings, ensemble.ensure_oof_scores(settings))
    preprocessing, class_map = members[0].preprocessing, datasets.get_class_map(settings)
    size = "x".join(map(str, preprocessing.size or ["native"]))
    metadata = {
        "run": settings.run,
        "classes": json.dumps(class_map.names, ensure_ascii=False),
        "size": size,
        "resize_mode": settings.resize_mode,
        "tta": settings.tta,
        "threshold": str(binarizer.threshold),
        "postprocess": ",".join(binarizer.steps),
    }
    if not class_map.is_binary:
        metadata["label_values"] = json.dumps(class_map.label_values)
    suffix = "" if settings.fold is None else f"_fold{settings.fold}"
    path = settings.run_dir / f"{settings.run}{suffix}.onnx"
    images = to_check_images(photograph, preprocessing)
    count = format_count(len(members), "network")
    print(f"exporting {count}, tta={settings.tta}; takes up to a minute for each forward pass")
    difference = export_onnx(path, MeanProbability(members, on_cpu), metadata, images)
    print(
        f"{path}: {count}, tta={settings.tta}, {path.stat().st_size / 2**20:.1f} MiB\n"
        f"images: uint8 RGB B×3×H×W, resized to {size}; probability: float32 B×C×H×W, differs from "
        f"torch's by {difference:.1e} at most"
    )


if __name__ == "__main__":
    cli.run_main(main)
