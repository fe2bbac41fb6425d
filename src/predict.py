"""Test images → submission.csv, by every trained fold of the runs, in one pass.

With several classes: pictures in their colours. Where the labels are there, also their scores.
"""

import csv
import hashlib
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from core import cli, config, distributed, process_env, provenance
from core.device import pick_device
from core.errors import InputError
from core.files import atomic_write
from core.settings import Settings
from data import classes, datasets, image_io
from data.classes import ClassMap
from data.sample import Sample
from evaluation import ensemble, oof, visualize
from evaluation.oof import choose_binarizer
from evaluation.statistics import clustered_standard_error
from evaluation.visualize import draw_overlay
from inference import rle
from inference.chunks import ChunkedPrediction, ImageResult, prediction_key
from inference.postprocess import Binarizer
from inference.predictor import EnsembleMember, Prediction, predict

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    cli.run_main(lambda: config.load_settings(sys.argv[1:]))


def describe_binarizer(settings: Settings, cut: Binarizer) -> str:
    """How a probability becomes a mask."""
    said = "as said" if settings.threshold else "best out of fold"
    steps = ",".join(cut.steps) or "none"
    return f", threshold {cut.threshold:.4f} ({said}), postprocess {steps}"


def save_mask_images(folder: Path, prediction: Prediction, mask: np.ndarray) -> None:
    """To look at: of one class a PNG mask (0/255) and an overlay, of several a coloured PNG."""
    name, scheme = prediction.sample.image_id, prediction.sample.class_map
    if scheme.is_binary:
        save_image(folder / f"{name}_mask.png", mask.astype(np.uint8) * 255)
        picture = draw_overlay(image_io.read_sample_image(prediction.sample), mask)
        save_image(folder / f"{name}_overlay.jpg", picture)
    else:
        save_image(folder / f"{name}.png", classes.colorize(mask, scheme))


def save_image(path: Path, picture: np.ndarray) -> None:
    """H×W or H×W×3 RGB uint8 → a file of the kind that its ending says."""
    made, data = cv2.imencode(path.suffix, picture[..., ::-1] if picture.ndim == 3 else picture)
    if not made:
        raise InputError(f"{path}: too large for this kind of file; say save_masks=false")
    with atomic_write(path, len(data)) as partial:
        partial.write_bytes(data)


def to_result(settings: Settings, prediction: Prediction, cut: Binarizer) -> ImageResult:
    """What is kept of a prediction; its pictures are written on the way."""
    row, binary = prediction.sample, prediction.sample.class_map.is_binary
    if fault := prediction.loaded.error:
        return ImageResult(row.image.name, "", 0.0, float("nan"), fault)
    mask = cut.mask(prediction.probability)
    if settings.save_masks or not binary:
        save_mask_images(settings.run_dir / "masks", prediction, mask)
    return ImageResult(
        row.image.name,
        rle.encode(mask) if binary else hashlib.sha256(mask).hexdigest(),
        float((mask != 0).mean()),
        float(prediction.agreement),
        measured=oof.image_statistics(prediction) if row.mask else {},
    )


def predict_pending_chunks(
    settings: Settings, members: list[EnsembleMember], parts: ChunkedPrediction, cut: Binarizer
) -> None:
    """Predict the parts that are missing, in one stream behind a bar; each is stored when it is
    whole. Several processes share the parts."""
    distributed.barrier()
    missing, count = distributed.gather([parts.missing()])[0], len(parts.samples)
    begun = count - sum(len(parts.rows_of(i)) for i in missing)
    if begun:
        print(f"{begun} images were predicted before; going on")
    mine = distributed.shard(missing)
    rows = [row for i in mine for row in parts.rows_of(i)]
    predictions = predict(members, rows, settings, with_truth=all(row.mask for row in rows))
    bar = tqdm(predictions, "predict", begun + len(rows), initial=begun, unit="image", disable=None)
    stream = (to_result(settings, prediction, cut) for prediction in bar)
    for i in mine:
        parts.write(i, list(islice(stream, len(parts.rows_of(i)))))
    distributed.barrier()


def write_submission(path: Path, parts: ChunkedPrediction) -> str:
    """The masks of all parts → submission.csv; its SHA-256."""
    with atomic_write(path) as partial:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["img", "rle_mask"])
            table.writerows((found.img, found.text) for found in parts.read())
        with open(partial, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def save_legend(folder: Path, parts: ChunkedPrediction, scheme: ClassMap) -> str:
    """The colours of the classes, for their pictures; the SHA-256 of all images' classes."""
    save_image(folder / "legend.png", visualize.draw_legend(scheme))
    texts = "".join(found.text for found in parts.read())
    return hashlib.sha256(texts.encode()).hexdigest()


def report_test_scores(settings: Settings, rows: list[Sample], measured: list[dict]) -> None:
    """Where the labels are known: test.csv and test.npz in the run's folder, and their mean."""
    scores = oof.to_scores(rows, measured)
    oof.save_scores(settings.run_dir, scores, "test")
    error = clustered_standard_error(scores.dice, scores.groups)
    iou = (scores.dice / (2 - scores.dice)).mean()
    print(
        f"test dice {scores.dice.mean():.5f} ± {error:.5f} on {len(rows)} images"
        + (f" at 0.5, IoU {iou:.5f}" if scores.is_binary else f"; {oof.score_summary(scores)}")
    )


def write_submission_json(
    settings: Settings,
    cut: Binarizer,
    weights: dict[str, float],
    members: dict[str, EnsembleMember],
    known: dict,
) -> None:
    """submission.json: how the submission came about."""
    about = {
        "runs": weights,
        "weights": {path: voter.weight for path, voter in members.items()},
        "threshold": cut.threshold if classes.get_class_map(settings).is_binary else None,
        "postprocess": cut.steps,
        "tta": settings.tta,
        **known,
        **provenance.describe_machine(pick_device(settings)),
    }
    with atomic_write(settings.submission_path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")


def merge_chunks(
    settings: Settings, parts: ChunkedPrediction, binary: bool
) -> tuple[list[ImageResult], dict[str, Any]]:
    """All parts → submission.csv or the classes' legend, and the table beside it; what was found
    of each image, and facts about all."""
    target = settings.submission_path
    if binary:
        digest = write_submission(target, parts)
    else:
        digest = save_legend(settings.run_dir / "masks", parts, parts.samples[0].class_map)
    found = [replace(each, text="") for each in parts.read()]
    with atomic_write(target.with_suffix(".images.csv")) as partial:
        table = pd.DataFrame(found)[["img", "area", "agreement"]]
        table.to_csv(partial, index=False, float_format="%.6f")
    skipped = {each.img: each.error for each in found if each.error}
    return found, {"rows": len(found), "sha256": digest, "skipped": skipped}


def check_and_report(
    settings: Settings, found: list[ImageResult], rows: list[Sample], known: dict[str, Any]
) -> None:
    """Say scores where labels are known, have the submission checked, list what was skipped."""
    if found[0].measured:
        report_test_scores(settings, rows, [each.measured for each in found])
    if rows[0].class_map.is_binary:
        cli.run_script_in_subprocess("score.py", cli.to_cli_args(settings))
    for fault in known["skipped"].values():
        print(f"skipped, its mask is empty: {fault}")
    if known["skipped"]:
        sys.exit(3)


def main() -> None:
    settings = ensemble.settings_for_prediction(sys.argv[1:])
    rows, device = datasets.load_test_samples(settings), pick_device(settings)
    weights, scores = ensemble.weights_and_scores(settings)
    if distributed.requested_processes() > 1:
        distributed.launch_processes(device)
        return
    members = ensemble.load_members(settings, weights, device)
    cut = choose_binarizer(settings, scores)
    print(
        f"{len(rows)} images of {settings.data_dir}, {len(members)} networks, tta={settings.tta}"
        + (describe_binarizer(settings, cut) if scores.is_binary else "")
    )
    distributed.init_process_group(device)
    prediction = prediction_key(settings, members, rows, cut)
    distributed.assert_equal_on_all_ranks({"weights, images or settings": prediction})
    parts = ChunkedPrediction(
        settings.submission_path.with_suffix(".parts"), rows, settings.batch_size
    )
    with parts.held(prediction) if process_env.is_main_process() else nullcontext():
        predict_pending_chunks(settings, list(members.values()), parts, cut)
        if process_env.is_main_process():
            found, known = merge_chunks(settings, parts, scores.is_binary)
            write_submission_json(settings, cut, weights, members, known)
            parts.remove()
    distributed.destroy_process_group()
    if process_env.is_main_process():
        check_and_report(settings, found, rows, known)


if __name__ == "__main__":
    cli.run_main(main, "the same command goes on after what is done")
