"""Predict the test images with all trained folds of the runs; write and check submission.csv.

Multiclass runs write PNG masks instead. If the test images have labels, scores are printed. With
images=..., photographs are predicted instead of the test images.
"""

import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from core import cli
from core.settings import Settings

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

import numpy as np
import pandas as pd
from torch import Tensor

from core import config, distributed, process_env, provenance, run_folder
from core.device import explain_out_of_memory, free_memory, pick_device
from core.errors import InputError
from core.files import atomic_write, atomic_write_json, file_sha256
from core.progress import image_progress
from core.text import format_count
from core.threads import map_in_threads
from data import datasets, leaks, rle
from data.fingerprint import short_hash
from data.image_files import warn_of_other_files
from data.image_io import write_image
from data.sample import Sample
from evaluation import ensemble, oof, score_text, submission, visualize
from evaluation.pixel_counts import count_pixels
from inference import load_runs
from inference.chunks import ChunkedPrediction, ImageResult, prediction_key
from inference.combine import ImageProbabilities
from inference.members import EnsembleMember
from inference.postprocess import Binarizer
from inference.predictor import Prediction, predict
from reporting.mask_pictures import mask_paths, write_mask_pictures
from reporting.pictures import list_photographs, predict_photographs


def describe_prediction(
    settings: Settings, images: str, members: list[EnsembleMember], binarizer: Binarizer
) -> str:
    """Return a line that says how many networks predict the `images`, and how masks are made."""
    line = f"{images}, {format_count(len(members), 'network')}, tta={settings.tta}"
    if datasets.get_class_map(settings).is_binary:
        is_default = binarizer.threshold == 0.5
        source = "no other one gains out of fold" if is_default else "chosen out of fold"
        if len(ensemble.common_folds(settings)) == 1:
            source = "the best on the only fold with scores"
        if settings.threshold is not None:
            source = "from settings"
        line += f", threshold {binarizer.threshold:.4f} ({source})"
        line += f", postprocess {','.join(binarizer.steps) or 'none'}"
    return line


def predict_pending_chunks(
    settings: Settings,
    members: list[EnsembleMember],
    chunks: ChunkedPrediction,
    binarizer: Binarizer,
) -> None:
    """Predict all chunks that are not on disk yet; each rank predicts its share of them."""
    distributed.barrier()  # the main process has locked the folder
    pending = distributed.gather([chunks.pending()])[0]  # all ranks divide the list of rank 0
    done = len(chunks.samples) - sum(len(chunks.chunk(i)) for i in pending)
    if done:
        print(f"resuming: {format_count(done, 'image')} predicted already")
    my_chunks = distributed.shard(pending)
    samples = [sample for i in my_chunks for sample in chunks.chunk(i)]
    with_mask = all(sample.mask for sample in samples)

    def keep(image: ImageProbabilities) -> dict[str, Tensor]:
        mean = image.mean()
        counts = count_pixels(mean, image.mask) if with_mask else {}
        return counts | {"mask": binarizer.to_mask(mean), "agreement": image.agreement(mean)}

    predictions = predict(members, samples, settings, keep, with_mask)
    results = map_in_threads(partial(to_result, settings, binarizer), predictions)
    rank, n = process_env.rank(), process_env.world_size()
    title, done = ("predict", done) if n == 1 else (f"predict, process {rank} of {n}", 0)
    bar = image_progress(results, title, done + len(samples), done)
    with closing(results):
        for i in my_chunks:
            chunks.write(i, list(islice(bar, len(chunks.chunk(i)))))
    distributed.barrier()


def to_result(settings: Settings, binarizer: Binarizer, prediction: Prediction) -> ImageResult:
    """Binarize and encode a prediction; write its pictures, see mask_paths()."""
    sample = prediction.sample
    if error := prediction.loaded.error:
        for path in mask_paths(settings, sample):  # delete the files of an earlier prediction
            path.unlink(missing_ok=True)
        return ImageResult(sample.image.name, rle="", area=0.0, agreement=float("nan"), error=error)
    mask = binarizer.postprocess(prediction.values["mask"])
    write_mask_pictures(settings, sample, mask)
    return ImageResult(
        sample.image.name,
        rle.encode(mask) if sample.class_map.is_binary else "",
        np.count_nonzero(mask) / mask.size,
        float(prediction.values["agreement"]),
        scores=oof.image_statistics(prediction) if sample.mask else {},
    )


def merge_chunks(settings: Settings, chunks: ChunkedPrediction) -> list[ImageResult]:
    """Write submission_stats.csv, and submission.csv (one class) or the legend of the colors
    (several classes). Return the results without their run lengths."""
    path, class_map = settings.submission_path, chunks.samples[0].class_map
    folder = run_folder.masks_dir(settings.run_dir)
    results = [replace(result, rle="") for result in chunks.read()]
    if class_map.is_binary:
        masks = ((result.file_name, result.rle) for result in chunks.read())
        submission.write_submission(path, masks)
    else:
        write_image(folder / "legend.png", visualize.draw_legend(class_map))
    written = {path.name for s in chunks.samples for path in mask_paths(settings, s)[:1]}
    if written:
        n_masks = sum(not result.error for result in results)
        print(f"masks of {format_count(n_masks, 'image')} written to {folder}")
    warn_of_other_files(folder, "*.png", {*written, "legend.png"})
    rows = [(result.file_name, result.area, result.agreement) for result in results]
    table = pd.DataFrame(rows, columns=["img", "area", "agreement"])
    with atomic_write(path.with_name(f"{path.stem}_stats.csv")) as tmp_path:
        table.to_csv(tmp_path, index=False, float_format="%.6f")
    return results


def write_submission_json(
    settings: Settings,
    binarizer: Binarizer,
    members: list[EnsembleMember],
    results: list[ImageResult],
) -> None:
    """Write submission.json: the networks, settings and machine of the submission."""
    path, is_binary = settings.submission_path, datasets.get_class_map(settings).is_binary
    metadata = {
        "runs": sorted(settings.runs),
        "data_dir": config.to_stored_settings(settings)["data_dir"],
        "networks": sorted(file_sha256(member.path) for member in members),
        "weights": {str(member.path): member.weight for member in members},
        "threshold": binarizer.threshold if is_binary else None,
        "postprocess": binarizer.steps,
        "tta": settings.tta,
        "rows": len(results),
        "sha256": file_sha256(path) if is_binary else None,
        "skipped": {result.file_name: result.error for result in results if result.error},
        **provenance.describe_machine(pick_device(settings)),
    }
    atomic_write_json(path.with_suffix(".json"), metadata)


def check_and_score(settings: Settings, samples: list[Sample], results: list[ImageResult]) -> None:
    """Score the probabilities if the test masks are known; check and score a submission."""
    if results[0].scores:
        scores = oof.to_scores(samples, [result.scores for result in results])
        stem = run_folder.test_scores_stem(settings)
        oof.save_scores(stem.parent, scores, stem.name)
        score_text.report_test_scores(scores)
    if samples[0].class_map.is_binary:
        submission.check_and_score_submission(settings)


def end_with_errors(errors: list[str]) -> None:
    """Print the errors of skipped images and exit with code 3; return if there are none."""
    for error in errors:
        print(f"skipped, {error}")
    if errors:
        sys.exit(3)


def main(args: list[str]) -> None:
    settings = load_runs.settings_for_prediction(args)
    if settings.images:
        if (count := distributed.count_processes()) > 1:
            raise InputError(f"images: one process predicts them, not {count}; leave out GPUS")
        photographs = list_photographs(settings)
        model = ensemble.load_trained_model(settings)
        print(describe_prediction(settings, settings.images, model.members, model.binarizer))
        end_with_errors(predict_photographs(settings, model, photographs))
        return
    with explain_out_of_memory(settings, is_training=False):  # a worker may be killed at any time
        predict_test_images(settings, load_checked_samples(settings))


def load_checked_samples(settings: Settings) -> list[Sample]:
    """Return the test images. Raise InputError if predictions could not be written or scored."""
    samples, path = datasets.load_test_samples(settings), settings.submission_path
    if path.resolve() == Path(settings.truth_csv or samples[0].mask or "").resolve():
        raise InputError(f"submission_csv={path}: is the csv of the true masks; set another file")
    if settings.truth_csv:
        submission.read_truth(settings, pd.Series([sample.image.name for sample in samples]))
    if samples[0].mask:
        if settings.skip_unreadable:
            raise InputError("skip_unreadable: is for test images without masks; leave it out")
        datasets.read_checked_sizes(samples)  # an InputError should come before prediction
        leaks.warn_of_training_images(settings, samples)
    elif not settings.skip_unreadable:
        datasets.check_headers([sample.image for sample in samples])
    if not samples[0].class_map.is_binary and any(s.image_id == "legend" for s in samples):
        raise InputError("legend: the picture of the colors has this name; rename the test image")
    if samples[0].class_map.is_binary:
        submission.require_replaceable(settings, [sample.image.name for sample in samples])
    return samples


def predict_test_images(settings: Settings, samples: list[Sample]) -> None:
    """Predict the test images in the requested processes; write and check the submission."""
    device = pick_device(settings)
    scores = ensemble.ensure_oof_scores(settings)
    free_memory(device)  # taken by the networks that scored the ensemble
    if distributed.requested_processes() > 1:
        distributed.launch_processes(device)
        return
    members = load_runs.load_members(settings)
    binarizer = oof.choose_binarizer(settings, scores)
    images = f"{format_count(len(samples), 'image')} of {settings.data_dir}"
    print(describe_prediction(settings, images, members, binarizer))
    distributed.init_process_group(device)
    key = prediction_key(settings, members, binarizer)
    chunks = ChunkedPrediction(key, samples, settings, partial(mask_paths, settings))
    images_hash = short_hash("".join(chunks.images_hashes), 12)
    distributed.assert_equal_on_all_ranks({"weights or settings": key, "test images": images_hash})
    with chunks.lock() if process_env.is_main_process() else nullcontext():
        predict_pending_chunks(settings, members, chunks, binarizer)
        if process_env.is_main_process():
            results = merge_chunks(settings, chunks)
            write_submission_json(settings, binarizer, members, results)
            check_and_score(settings, samples, results)
            if any(result.error for result in results):
                print(f"{chunks.folder}: kept, so that repaired images can be predicted alone")
            else:
                chunks.remove()  # last: the check of 100,064 masks takes minutes, too
    distributed.destroy_process_group()
    if process_env.is_main_process():
        effect = "its mask is empty" if samples[0].class_map.is_binary else "it has no mask"
        end_with_errors([f"{effect}: {result.error}" for result in results if result.error])


if __name__ == "__main__":
    cli.run_main(main, "run the same command again")
