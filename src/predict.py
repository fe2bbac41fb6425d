"""Test images → submission.csv, by every trained fold of the runs, in one pass."""

import csv
import hashlib
import json
import sys
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
import postprocess
import rle
from datasets import Row
from device import pick_device
from files import replacing
from infer import Member, Prediction, predict
from metrics import best_threshold
from pictures import overlay
from postprocess import Cut


def write_masks(folder: Path, prediction: Prediction, mask: np.ndarray) -> None:
    """A PNG mask (0/255) and an overlay, for looking at."""
    folder.mkdir(parents=True, exist_ok=True)
    name = prediction.row.image_id
    cv2.imwrite(str(folder / f"{name}_mask.png"), mask.astype(np.uint8) * 255)
    picture = overlay(datasets.read_image(prediction.row.image), mask)
    cv2.imwrite(str(folder / f"{name}_overlay.jpg"), picture[..., ::-1])


def write_submission(
    settings: Settings, members: list[Member], rows: list[Row], cut: Cut
) -> tuple[str, pd.DataFrame]:
    """Stream the rows into the csv, in their order; its sha256, and what is known of each image."""
    predictions, seen = predict(members, rows, settings), []
    with replacing(settings.submission_csv) as partial:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["img", "rle_mask"])
            for prediction in tqdm(predictions, "predict", len(rows), unit="image", disable=None):
                mask, name = cut.mask(prediction.probability), prediction.row.image.name
                table.writerow([name, rle.encode(mask)])
                seen.append((name, mask.mean(), float(prediction.agreement)))
                if settings.masks:
                    write_masks(settings.run_dir / "masks", prediction, mask)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    return digest, pd.DataFrame(seen, columns=["img", "area", "agreement"])


def main() -> None:
    settings = checkpoint.settings_of_runs(sys.argv[1:])
    rows = datasets.test_rows(settings)
    weights, scores = ensemble.choices(settings)
    members = ensemble.voters(settings, weights, pick_device(settings))
    said, best = settings.threshold, best_threshold(scores.counts)[0]
    cut = Cut(said or best, postprocess.asked(settings.postprocess, scores.trials, scores.folds))
    print(
        f"{len(rows)} images of {settings.data_dir}, {len(members)} networks, tta={settings.tta}, "
        f"threshold {cut.threshold:.4f} ({'as said' if said else 'best out of fold'}), "
        f"postprocess {','.join(cut.steps) or 'none'}"
    )
    digest, images = write_submission(settings, list(members.values()), rows, cut)
    with replacing(settings.submission_csv.with_suffix(".images.csv")) as partial:
        images.to_csv(partial, index=False, float_format="%.6f")
    about = {
        "runs": weights,
        "weights": {path: voter.weight for path, voter in members.items()},
        "threshold": cut.threshold,
        "postprocess": cut.steps,
        "tta": settings.tta,
        "rows": len(rows),
        "sha256": digest,
        "commit": checkpoint.commit(),
    }
    with replacing(settings.submission_csv.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")
    config.run_script("score.py", config.as_words(settings))


if __name__ == "__main__":
    config.run(main)
