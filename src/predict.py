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

import config
from config import InputError
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
import ranks
import rle
import together
from cut import Cut, best_cut
from device import pick_device
from files import replacing
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
    made, data = cv2.imencode(path.suffix, picture[..., ::-1] if picture.ndim == 3 else picture)
    if not made:
        raise InputError(f"{path}: too large for this kind of file; say masks=false")
    with replacing(path, len(data)) as partial:
        partial.write_bytes(data)


def found_in(settings: Settings, prediction: Prediction, cut: Cut) -> Found:
    """What is kept of a prediction; its pictures are written on the way."""
    row, binary = prediction.row, prediction.row.scheme.binary
    if fault := prediction.photograph.fault:
        return Found(row.image.name, "", 0.0, float("nan"), fault)
    mask = cut.mask(prediction.probability)
    if settings.masks or not binary:
        write_masks(settings.run_dir / "masks", prediction, mask)
    return Found(
        row.image.name,
        rle.encode(mask) if binary else hashlib.sha256(mask).hexdigest(),
        float((mask != 0).mean()),
        float(prediction.agreement),
        measured=oof.measure(prediction) if row.mask else {},
    )


def predict_parts(settings: Settings, members: list[Member], parts: Parts, cut: Cut) -> None:
    """Predict the parts that are missing, in one stream behind a bar; each is stored when it is
    whole. Several processes share the parts."""
    together.wait()
    missing, count = together.gathered([parts.missing()])[0], len(parts.rows)
    begun = count - sum(len(parts.rows_of(i)) for i in missing)
    if begun:
        print(f"{begun} images were predicted before; going on")
    mine = together.share(missing)
    rows = [row for i in mine for row in parts.rows_of(i)]
    predictions = predict(members, rows, settings, with_truth=all(row.mask for row in rows))
    bar = tqdm(predictions, "predict", begun + len(rows), initial=begun, unit="image", disable=None)
    stream = (found_in(settings, prediction, cut) for prediction in bar)
    for i in mine:
        parts.write(i, list(islice(stream, len(parts.rows_of(i)))))
    together.wait()


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
        "threshold": cut.threshold if labels.scheme_of(settings).binary else None,
        "postprocess": cut.steps,
        "tta": settings.tta,
        **known,
        **provenance.machine(pick_device(settings)),
    }
    with replacing(settings.submission_csv.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")


def merge(settings: Settings, parts: Parts, binary: bool) -> tuple[list[Found], dict[str, Any]]:
    """All parts → submission.csv or the classes' legend, and the table beside it; what was found
    of each image, and facts about all."""
    target = settings.submission_csv
    if binary:
        digest = write_submission(target, parts)
    else:
        digest = write_legend(settings.run_dir / "masks", parts, parts.rows[0].scheme)
    found = [replace(each, text="") for each in parts.read()]
    with replacing(target.with_suffix(".images.csv")) as partial:
        table = pd.DataFrame(found)[["img", "area", "agreement"]]
        table.to_csv(partial, index=False, float_format="%.6f")
    skipped = {each.img: each.fault for each in found if each.fault}
    return found, {"rows": len(found), "sha256": digest, "skipped": skipped}


def check(settings: Settings, found: list[Found], rows: list[Row], known: dict[str, Any]) -> None:
    """Say scores where labels are known, have the submission checked, list what was skipped."""
    if found[0].measured:
        say_scores(settings, rows, [each.measured for each in found])
    if rows[0].scheme.binary:
        config.run_script("score.py", config.as_words(settings))
    for fault in known["skipped"].values():
        print(f"skipped, its mask is empty: {fault}")
    if known["skipped"]:
        sys.exit(3)


def main() -> None:
    settings = checkpoint.settings_of_runs(sys.argv[1:])
    rows, device = datasets.test_rows(settings), pick_device(settings)
    weights, scores = ensemble.choices(settings)
    if together.wanted() > 1:
        together.launch(device)
        return
    members = ensemble.voters(settings, weights, device)
    cut = best_cut(settings, scores)
    print(
        f"{len(rows)} images of {settings.data_dir}, {len(members)} networks, tta={settings.tta}"
        + (told(settings, cut) if scores.binary else "")
    )
    together.join(device)
    prediction = key(settings, members, rows, cut)
    together.check_alike({"weights, images or settings": prediction})
    parts = Parts(settings.submission_csv.with_suffix(".parts"), rows, settings.batch)
    with parts.held(prediction) if ranks.first() else nullcontext():
        predict_parts(settings, list(members.values()), parts, cut)
        if ranks.first():
            found, known = merge(settings, parts, scores.binary)
            write_about(settings, cut, weights, members, known)
            parts.remove()
    together.leave()
    if ranks.first():
        check(settings, found, rows, known)


if __name__ == "__main__":
    config.run(main, "the same command goes on after what is done")
