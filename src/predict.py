"""Test images → submission.csv, by every trained fold of the runs, in one pass.

With several classes: pictures in their colours. Where the labels are there, also their scores.
"""

import csv
import hashlib
import json
import sys
from dataclasses import replace
from itertools import islice
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
import provenance
import rle
from cut import Cut, best_cut
from device import pick_device
from files import only_one, replacing
from infer import Member, Prediction, predict
from labels import Scheme
from metrics import clustered_error
from parts import Found, Parts, key
from pictures import overlay
from row import Row


def told(settings: Settings, cut: Cut) -> str:
    """How a probability becomes a mask."""
    said = "as said" if settings.threshold else "best out of fold"
    steps = ",".join(cut.steps) or "none"
    return f", threshold {cut.threshold:.4f} ({said}), postprocess {steps}"


def write_masks(folder: Path, prediction: Prediction, mask: np.ndarray) -> None:
    """To look at: of one class a PNG mask (0/255) and an overlay, of several a coloured PNG."""
    name, scheme = prediction.row.image_id, prediction.row.scheme
    if scheme.binary:
        write_picture(folder / f"{name}_mask.png", mask.astype(np.uint8) * 255)
        picture = overlay(pixels.photograph(prediction.row), mask)
        write_picture(folder / f"{name}_overlay.jpg", picture)
    else:
        write_picture(folder / f"{name}.png", labels.to_colours(mask, scheme))


def write_picture(path: Path, picture: np.ndarray) -> None:
    """H×W or H×W×3 RGB uint8 → a file of the kind that its ending says."""
    _, data = cv2.imencode(path.suffix, picture[..., ::-1] if picture.ndim == 3 else picture)
    with replacing(path, len(data)) as partial:
        partial.write_bytes(data)


def found_in(settings: Settings, prediction: Prediction, cut: Cut) -> Found:
    """What is kept of a prediction; its pictures are written on the way."""
    row = prediction.row
    if fault := prediction.photograph.fault:
        return Found(row.image.name, "", 0.0, float("nan"), fault)
    mask = cut.mask(prediction.probability)
    if settings.masks or not row.scheme.binary:
        write_masks(settings.run_dir / "masks", prediction, mask)
    binary = row.scheme.binary
    return Found(
        row.image.name,
        rle.encode(mask) if binary else hashlib.sha256(mask).hexdigest(),
        float((mask != 0).mean()),
        float(prediction.agreement),
        measured=oof.measure(prediction) if row.mask else {},
    )


def predict_parts(settings: Settings, members: list[Member], parts: Parts, cut: Cut) -> None:
    """Predict the parts that are missing, in one stream behind a bar; each is stored when it is
    whole."""
    missing, count = parts.missing(), len(parts.rows)
    rows = [row for i in missing for row in parts.rows_of(i)]
    if len(rows) < count:
        print(f"{count - len(rows)} images were predicted before; going on")
    predictions = predict(members, rows, settings, with_truth=all(row.mask for row in rows))
    begun = count - len(rows)
    bar = tqdm(predictions, "predict", count, initial=begun, unit="image", disable=None)
    stream = (found_in(settings, prediction, cut) for prediction in bar)
    for i in missing:
        parts.write(i, list(islice(stream, len(parts.rows_of(i)))))


def write_submission(path: Path, parts: Parts) -> str:
    """The masks of all parts → submission.csv; its SHA-256."""
    with replacing(path) as partial:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["img", "rle_mask"])
            table.writerows((found.img, found.text) for found in parts.read())
        with open(partial, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def write_legend(folder: Path, parts: Parts, scheme: Scheme) -> str:
    """The colours of the classes, for their pictures; the SHA-256 of all images' classes."""
    write_picture(folder / "legend.png", pictures.legend(scheme))
    texts = "".join(found.text for found in parts.read())
    return hashlib.sha256(texts.encode()).hexdigest()


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


def write_about(
    settings: Settings, cut: Cut, weights: dict[str, float], members: dict[str, Member], known: dict
) -> None:
    """submission.json: how the submission came about."""
    about = {
        "runs": weights,
        "weights": {path: voter.weight for path, voter in members.items()},
        "threshold": cut.threshold,
        "postprocess": cut.steps,
        "tta": settings.tta,
        **known,
        **provenance.machine(pick_device(settings)),
    }
    with replacing(settings.submission_csv.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")


def main() -> None:
    settings = checkpoint.settings_of_runs(sys.argv[1:])
    rows = datasets.test_rows(settings)
    weights, scores = ensemble.choices(settings)
    members = ensemble.voters(settings, weights, pick_device(settings))
    cut, target = best_cut(settings, scores), settings.submission_csv
    print(
        f"{len(rows)} images of {settings.data_dir}, {len(members)} networks, tta={settings.tta}"
        + (told(settings, cut) if scores.binary else "")
    )
    parts = Parts(target.with_suffix(".parts"), rows, settings.batch)
    with only_one(parts.folder, "wait, or write another with submission=..."):
        parts.begin(key(settings, members, rows, cut))
        predict_parts(settings, list(members.values()), parts, cut)
        if scores.binary:
            digest = write_submission(target, parts)
        else:
            digest = write_legend(settings.run_dir / "masks", parts, rows[0].scheme)
        found = [replace(each, text="") for each in parts.read()]
        with replacing(target.with_suffix(".images.csv")) as partial:
            table = pd.DataFrame(found)[["img", "area", "agreement"]]
            table.to_csv(partial, index=False, float_format="%.6f")
        bad = {each.img: each.fault for each in found if each.fault}
        known = {"rows": len(rows), "sha256": digest, "skipped": bad}
        write_about(settings, cut, weights, members, known)
        parts.remove()
    if found[0].measured:
        say_scores(settings, rows, [each.measured for each in found])
    if scores.binary:
        config.run_script("score.py", config.as_words(settings))
    if bad:
        for fault in bad.values():
            print(f"skipped, its mask is empty: {fault}")
        sys.exit(3)


if __name__ == "__main__":
    config.run(main, "the same command goes on after what is done")
