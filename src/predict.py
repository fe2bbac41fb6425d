"""Test images → submission.csv, by every trained fold of the runs, in one pass."""

import csv
import hashlib
import json
import sys
from pathlib import Path

import config
from config import InputError, Settings

if __name__ == "__main__":  # help and wrong words are answered before torch takes its seconds
    config.run(lambda: config.load(sys.argv[1:]))

import cv2
import numpy as np
from tqdm import tqdm

import checkpoint
import datasets
import oof
import rle
from datasets import Row
from device import pick_device
from files import replacing
from infer import Member, Prediction, member, predict
from metrics import best_threshold
from pictures import overlay

# What a run remembers and a prediction does not take over: where and on what it was trained.
HERE = {"device", "amp", "workers", "cache", "fold", "resume", "limit", "output_dir", "run", "runs"}


def load_settings(words: list[str]) -> Settings:
    """The first run's settings below the words; what the weights know may not be said again."""
    typed = config.parse(words)
    known = [key for key in typed if key in config.NETWORK]
    settings = config.load(words)
    if known:
        raise InputError(f"{known[0]}=: is stored with the weights; leave it out")
    first = Path(settings.output_dir) / settings.runs[0]
    if not checkpoint.trained_folds(first):
        raise InputError(
            f"{first}: has no trained fold; `bash train.sh recipe={settings.recipe}` trains them, "
            "run= or runs=[a,b] name others"
        )
    stored = checkpoint.stored_settings(first)
    kept = {key: value for key, value in stored.items() if key not in HERE}
    return config.load(words, kept | {"run": settings.run})


def load_members(settings: Settings) -> tuple[list[Member], list[Path]]:
    """Every trained network of the runs. Each run has one vote, shared by its folds."""
    device, members, paths = pick_device(settings), [], []
    for run in settings.runs:
        run_dir = Path(settings.output_dir) / run
        folds = checkpoint.trained_folds(run_dir)
        if settings.fold is not None:
            folds = [fold for fold in folds if fold == settings.fold]
        if not folds:
            lack = "has no trained fold" if settings.fold is None else f"lacks fold {settings.fold}"
            raise InputError(f"{run_dir}: {lack}; train it with `bash train.sh`")
        for fold in folds:
            path = run_dir / f"fold{fold}" / "best.safetensors"
            network, trained, _ = checkpoint.load_weights(path, device)
            members.append(member(network, trained, 1 / len(folds)))
            paths.append(path)
    return members, paths


def choose_threshold(settings: Settings) -> tuple[float, str]:
    """The threshold and where it is from; for several runs the mean of their own."""
    if settings.threshold is not None:
        return settings.threshold, "as said"
    best = []
    for run in settings.runs:
        run_dir = Path(settings.output_dir) / run
        _, counts = oof.load(run_dir, checkpoint.trained_folds(run_dir))
        best.append(best_threshold(counts)[0])
    return float(np.mean(best)), "best out of fold"


def write_masks(folder: Path, prediction: Prediction, mask: np.ndarray) -> None:
    """A PNG mask (0/255) and an overlay, for looking at."""
    folder.mkdir(parents=True, exist_ok=True)
    name = prediction.row.image_id
    cv2.imwrite(str(folder / f"{name}_mask.png"), mask.astype(np.uint8) * 255)
    picture = overlay(datasets.read_image(prediction.row.image), mask)
    cv2.imwrite(str(folder / f"{name}_overlay.jpg"), picture[..., ::-1])


def write_submission(
    settings: Settings, members: list[Member], rows: list[Row], threshold: float
) -> str:
    """Stream the rows into the csv, in their order; its sha256."""
    predictions = predict(members, rows, settings)
    with replacing(settings.submission_csv) as partial:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["img", "rle_mask"])
            for prediction in tqdm(predictions, "predict", len(rows), unit="image", disable=None):
                mask = (prediction.probability >= threshold).cpu().numpy()
                table.writerow([prediction.row.image.name, rle.encode(mask)])
                if settings.masks:
                    write_masks(settings.run_dir / "masks", prediction, mask)
        return hashlib.sha256(partial.read_bytes()).hexdigest()


def main() -> None:
    settings = load_settings(sys.argv[1:])
    rows = datasets.test_rows(settings)
    members, paths = load_members(settings)
    threshold, why = choose_threshold(settings)
    print(
        f"{len(rows)} images of {settings.data_dir}, {len(members)} networks, tta={settings.tta}, "
        f"threshold {threshold:.4f} ({why})"
    )
    digest = write_submission(settings, members, rows, threshold)
    about = {
        "runs": settings.runs,
        "weights": {str(p): m.weight for p, m in zip(paths, members, strict=True)},
        "threshold": threshold,
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
