"""Predict the test images with all trained folds of the runs; write and check submission.csv.

Multiclass runs write colored PNG masks instead. If the test split has labels, scores are printed.
"""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from core import cli
from core.settings import Settings

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from core import distributed, process_env, provenance, run_folder
from core.device import pick_device
from core.errors import InputError
from core.files import atomic_write
from data import classes, datasets, rle
from data.sample import Sample
from evaluation import ensemble, oof, submission, visualize
from inference.chunks import ChunkedPrediction, ImageResult, prediction_key
from inference.postprocess import Binarizer
from inference.predictor import EnsembleMember, Prediction, predict


def predict_pending_chunks(
    settings: Settings,
    members: list[EnsembleMember],
    chunks: ChunkedPrediction,
    binarizer: Binarizer,
) -> None:
    """Predict the chunks that are not on disk yet, in one stream; the ranks share them."""
    distributed.barrier()  # the main process has removed the chunks of other predictions
    pending = distributed.gather([chunks.pending()])[0]
    done = len(chunks.samples) - sum(len(chunks.chunk(i)) for i in pending)
    if done:
        print(f"{done} images have been predicted already; resuming")
    my_chunks = distributed.shard(pending)
    samples = [sample for i in my_chunks for sample in chunks.chunk(i)]
    with_mask = all(sample.mask for sample in samples)
    predictions = predict(members, samples, settings, with_mask, with_agreement=True)
    total, options = done + len(samples), {"unit": "image", "disable": None}
    bar = tqdm(predictions, "predict", total, initial=done, **options)
    results = (to_result(settings, prediction, binarizer) for prediction in bar)
    for i in my_chunks:
        chunks.write(i, list(islice(results, len(chunks.chunk(i)))))
    distributed.barrier()


def to_result(settings: Settings, prediction: Prediction, binarizer: Binarizer) -> ImageResult:
    """Binarize and encode a prediction; save its mask as PNG if asked to."""
    sample = prediction.sample
    if error := prediction.loaded.error:
        return ImageResult(sample.image.name, "", 0.0, float("nan"), error)
    mask = binarizer(prediction.probability)
    is_binary = sample.class_map.is_binary
    if settings.save_masks or not is_binary:
        save_mask_images(run_folder.masks_dir(settings.run_dir), sample, mask)
    return ImageResult(
        sample.image.name,
        rle.encode(mask) if is_binary else "",
        float((mask != 0).mean()),
        float(prediction.agreement),
        scores=oof.image_statistics(prediction) if sample.mask else {},
    )


def save_mask_images(folder: Path, sample: Sample, mask: np.ndarray) -> None:
    """Save a PNG mask (0/255) and an overlay (binary), or a colored PNG (multiclass)."""
    if sample.class_map.is_binary:
        save_image(folder / f"{sample.image_id}_mask.png", mask.astype(np.uint8) * 255)
        overlay = visualize.draw_overlay(datasets.read_sample_image(sample), mask)
        save_image(folder / f"{sample.image_id}_overlay.jpg", overlay)
    else:
        colored = classes.colorize(mask, sample.class_map)
        save_image(folder / f"{sample.image_id}.png", colored)


def save_image(path: Path, image: np.ndarray) -> None:
    """Save H×W or H×W×3 RGB uint8 in the file format of the suffix."""
    encoded, data = cv2.imencode(path.suffix, image[..., ::-1] if image.ndim == 3 else image)
    if not encoded:
        raise InputError(f"{path}: too large for {path.suffix}; set save_masks=false")
    with atomic_write(path, len(data)) as tmp_path:
        tmp_path.write_bytes(data)


def merge_chunks(settings: Settings, chunks: ChunkedPrediction) -> list[ImageResult]:
    """Write submission.csv (binary) or the legend of the colors (multiclass), and
    submission_stats.csv; return the results without their RLE."""
    path, class_map = settings.submission_path, chunks.samples[0].class_map
    if class_map.is_binary:
        submission.write_submission(path, ((r.file_name, r.rle) for r in chunks.read()))
    else:
        legend = visualize.draw_legend(class_map)
        save_image(run_folder.masks_dir(settings.run_dir) / "legend.png", legend)
    results = [replace(result, rle="") for result in chunks.read()]
    with atomic_write(path.with_name(f"{path.stem}_stats.csv")) as tmp_path:
        table = pd.DataFrame([(r.file_name, r.area, r.agreement) for r in results])
        header = ["img", "area", "agreement"]
        table.to_csv(tmp_path, index=False, header=header, float_format="%.6f")
    return results


def write_submission_json(
    settings: Settings,
    binarizer: Binarizer,
    run_weights: dict[str, float],
    members: dict[str, EnsembleMember],
    results: list[ImageResult],
) -> None:
    """Write submission.json: the networks, settings and machine of the submission."""
    path, is_binary = settings.submission_path, datasets.get_class_map(settings).is_binary
    metadata: dict[str, Any] = {
        "runs": run_weights,
        "weights": {weights_file: member.weight for weights_file, member in members.items()},
        "threshold": binarizer.threshold if is_binary else None,
        "postprocess": binarizer.steps,
        "tta": settings.tta,
        "rows": len(results),
        "sha256": ensemble.file_sha256(path) if is_binary else None,
        "skipped": {result.file_name: result.error for result in results if result.error},
        **provenance.describe_machine(pick_device(settings)),
    }
    with atomic_write(path.with_suffix(".json")) as tmp_path:
        tmp_path.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def check_and_report(settings: Settings, samples: list[Sample], results: list[ImageResult]) -> None:
    """Print test scores if labels are known, check the submission, list unreadable images."""
    if results[0].scores:
        report_test_scores(settings, samples, [result.scores for result in results])
    if samples[0].class_map.is_binary:
        submission.check_submission(settings)
    errors = [result.error for result in results if result.error]
    for error in errors:
        print(f"skipped, its mask is empty: {error}")
    if errors:
        sys.exit(3)


def report_test_scores(settings: Settings, samples: list[Sample], statistics: list[dict]) -> None:
    """Write test.csv and test.npz to the run's folder and print the mean scores."""
    scores = oof.to_scores(samples, statistics)
    oof.save_scores(settings.run_dir, scores, "test")
    iou = (scores.dice / (2 - scores.dice)).mean()
    print(
        f"test dice {oof.format_mean_dice(scores)} on {len(samples)} images"
        + (f" at 0.5, IoU {iou:.5f}" if scores.is_binary else f"; {oof.score_summary(scores)}")
    )


def describe_binarizer(settings: Settings, binarizer: Binarizer) -> str:
    """Format the threshold, where it comes from, and the post-processing steps."""
    source = "from settings" if settings.threshold else "best out of fold"
    steps = ",".join(binarizer.steps) or "none"
    return f", threshold {binarizer.threshold:.4f} ({source}), postprocess {steps}"


def main(args: list[str]) -> None:
    settings = ensemble.settings_for_prediction(args)
    samples, device = datasets.load_test_samples(settings), pick_device(settings)
    run_weights, scores = ensemble.weights_and_scores(settings)
    if distributed.requested_processes() > 1:
        distributed.launch_processes(device)
        return
    members = ensemble.load_members(settings, run_weights, device)
    binarizer = oof.choose_binarizer(settings, scores)
    print(
        f"{len(samples)} images of {settings.data_dir}, {len(members)} networks, "
        f"tta={settings.tta}"
        + (describe_binarizer(settings, binarizer) if scores.is_binary else "")
    )
    distributed.init_process_group(device)
    key = prediction_key(settings, members, samples, binarizer)
    distributed.assert_equal_on_all_ranks({"weights, images or settings": key})
    folder = settings.submission_path.with_suffix(".chunks")
    chunks = ChunkedPrediction(folder, samples, settings.batch_size)
    with chunks.lock(key) if process_env.is_main_process() else nullcontext():
        predict_pending_chunks(settings, list(members.values()), chunks, binarizer)
        if process_env.is_main_process():
            results = merge_chunks(settings, chunks)
            write_submission_json(settings, binarizer, run_weights, members, results)
            chunks.remove()
    distributed.destroy_process_group()
    if process_env.is_main_process():
        check_and_report(settings, samples, results)


if __name__ == "__main__":
    cli.run_main(main, "run the same command again to resume")
