"""Test images → submission.csv, by every trained fold of the runs, in one pass.

With several classes: pictures in their colours. Where the labels are there, also their scores.
"""

import csv
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import config
from settings import Settings

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    config.run(lambda: config.load(sys.argv[1:]))

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

import checkpoint
import datasets
import ensemble
import labels
import oof
import pictures
import pixels
import rle
from cut import Cut, best_cut
from device import pick_device
from files import replacing
from infer import Member, Prediction, predict
from labels import Scheme
from metrics import clustered_error
from pictures import overlay
from row import Row


def told(settings: Settings, cut: Cut) -> str:
    """How a probability becomes a mask."""
    said = "as said" if settings.threshold else "best out of fold"
    steps = ",".join(cut.steps) or "none"
    return f", threshold {cut.threshold:.4f} ({said}), postprocess {steps}"


def write_masks(folder: Path, prediction: Prediction, mask: np.ndarray) -> None:
    """To look at: of one class a PNG mask (0/255) and an overlay, of several a coloured PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    name, scheme = prediction.row.image_id, prediction.row.scheme
    if scheme.binary:
        cv2.imwrite(str(folder / f"{name}_mask.png"), mask.astype(np.uint8) * 255)
        picture = overlay(pixels.photograph(prediction.row), mask)
        cv2.imwrite(str(folder / f"{name}_overlay.jpg"), picture[..., ::-1])
    else:
        cv2.imwrite(str(folder / f"{name}.png"), labels.to_colours(mask, scheme)[..., ::-1])


def results(
    settings: Settings, members: list[Member], rows: list[Row], cut: Cut
) -> Iterator[tuple[Prediction, np.ndarray]]:
    """Each row's prediction with its mask, in order, behind a bar."""
    known = all(row.mask for row in rows)
    predictions = predict(members, rows, settings, with_truth=known)
    for prediction in tqdm(predictions, "predict", len(rows), unit="image", disable=None):
        yield prediction, cut.mask(prediction.probability)


def write_submission(
    settings: Settings, found: Iterable[tuple[Prediction, np.ndarray]]
) -> tuple[str, list[tuple], list[dict]]:
    """Stream the masks into the csv; its sha256, what is known of each image, and its scores."""
    seen, measured = [], []
    with replacing(settings.submission_csv) as partial:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["img", "rle_mask"])
            for prediction, mask in found:
                name = prediction.row.image.name
                table.writerow([name, rle.encode(mask)])
                seen.append((name, mask.mean(), float(prediction.agreement)))
                measured += [oof.measure(prediction)] if prediction.row.mask else []
                if settings.masks:
                    write_masks(settings.run_dir / "masks", prediction, mask)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    return digest, seen, measured


def write_classes(
    settings: Settings, found: Iterable[tuple[Prediction, np.ndarray]], scheme: Scheme
) -> tuple[str, list[tuple], list[dict]]:
    """A picture in the classes' colours of each image, and their legend; the sha256 of all classes,
    what is known of each image, and its scores."""
    folder, seen, measured, digest = settings.run_dir / "masks", [], [], hashlib.sha256()
    for prediction, classes in found:
        digest.update(classes.tobytes())
        name, sure = prediction.row.image.name, float((classes != 0).mean())
        seen.append((name, sure, float(prediction.agreement)))
        measured += [oof.measure(prediction)] if prediction.row.mask else []
        write_masks(folder, prediction, classes)
    cv2.imwrite(str(folder / "legend.png"), pictures.legend(scheme)[..., ::-1])
    return digest.hexdigest(), seen, measured


def say_scores(settings: Settings, rows: list[Row], measured: list[dict]) -> None:
    """Where the labels are known: test.csv and test.npz in the run's folder, and their mean."""
    scores = oof.collect(rows, measured)
    oof.save(settings.run_dir, scores, "test")
    error = clustered_error(scores.dice, scores.groups)
    iou = (scores.dice / (2 - scores.dice)).mean()
    print(
        f"test dice {scores.dice.mean():.5f} ± {error:.5f} on {len(rows)} images"
        + (f" at 0.5, IoU {iou:.5f}" if scores.binary else f"; {oof.beside(scores)}")
    )


def main() -> None:
    settings = checkpoint.settings_of_runs(sys.argv[1:])
    rows = datasets.test_rows(settings)
    weights, scores = ensemble.choices(settings)
    members = ensemble.voters(settings, weights, pick_device(settings))
    cut = best_cut(settings, scores)
    print(
        f"{len(rows)} images of {settings.data_dir}, {len(members)} networks, tta={settings.tta}"
        + (told(settings, cut) if scores.binary else "")
    )
    found, scheme = results(settings, list(members.values()), rows, cut), rows[0].scheme
    if scheme.binary:
        digest, seen, measured = write_submission(settings, found)
    else:
        digest, seen, measured = write_classes(settings, found, scheme)
    with replacing(settings.submission_csv.with_suffix(".images.csv")) as partial:
        table = pd.DataFrame(seen, columns=["img", "area", "agreement"])
        table.to_csv(partial, index=False, float_format="%.6f")
    about = {
        "runs": weights,
        "weights": {path: voter.weight for path, voter in members.items()},
        "threshold": cut.threshold if scheme.binary else None,
        "postprocess": cut.steps,
        "tta": settings.tta,
        "rows": len(rows),
        "sha256": digest,
        "commit": checkpoint.commit(),
    }
    with replacing(settings.submission_csv.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")
    if measured:
        say_scores(settings, rows, measured)
    if scheme.binary:
        config.run_script("score.py", config.as_words(settings))


if __name__ == "__main__":
    config.run(main)
