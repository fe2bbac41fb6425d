"""Out-of-fold scores of every run → a table on the screen and output/leaderboard.csv."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

import checkpoint
import config
import oof
from config import InputError
from files import replacing
from metrics import best_threshold, clustered_error


def row_of(run_dir: Path) -> dict[str, Any] | None:
    """What a run scored, took and came from; None where no fold is finished."""
    folds = checkpoint.trained_folds(run_dir)
    if not folds:
        return None
    scores, counts = oof.load(run_dir, folds)
    dice = scores["dice"].to_numpy()
    threshold, best = best_threshold(counts)
    abouts = [checkpoint.about_weights(run_dir / f"fold{k}" / "best.safetensors") for k in folds]
    history = pd.concat(pd.read_csv(run_dir / f"fold{k}" / "history.csv") for k in folds)
    return {
        "run": run_dir.name,
        "dice": dice.mean(),
        "error": clustered_error(dice, scores["group"].to_numpy()),
        "threshold": threshold,
        "dice_at_threshold": best,
        "folds": " ".join(map(str, folds)),
        "dice_per_fold": " ".join(f"{d:.5f}" for d in scores.groupby("fold")["dice"].mean()),
        "images": len(scores),
        "tta": abouts[0]["settings"]["tta"],
        "parameters": abouts[0]["parameters"],
        "seconds": round(history["seconds"].sum()),
        "images_per_second": round(history["images_per_second"].median(), 1),
        "commit": abouts[0]["commit"],
        "command": abouts[0]["command"],
    }


def show(table: pd.DataFrame) -> str:
    """The columns one looks at, as text."""
    small = pd.DataFrame(
        {
            "run": table["run"],
            "oof dice": [
                f"{d:.5f} ± {e:.5f}" for d, e in zip(table["dice"], table["error"], strict=True)
            ],
            "at best threshold": [
                f"{d:.5f} at {t:.3f}"
                for d, t in zip(table["dice_at_threshold"], table["threshold"], strict=True)
            ],
            "per fold": table["dice_per_fold"],
            "tta": table["tta"],
            "params": [f"{p / 1e6:.1f}M" for p in table["parameters"]],
            "train": [f"{s / 60:.0f} min" for s in table["seconds"]],
        }
    )
    return small.to_string(index=False, justify="left")


def main() -> None:
    settings = config.load(sys.argv[1:])
    output = Path(settings.output_dir)
    rows = [row_of(path.parent) for path in sorted(output.glob("*/config.yaml"))]
    rows = [row for row in rows if row]
    if not rows:
        raise InputError(f"{output}: no run has a finished fold; `bash train.sh` makes one")
    table = pd.DataFrame(rows).sort_values(["dice", "run"], ascending=[False, True])
    with replacing(output / "leaderboard.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.6f")
    print(show(table))


if __name__ == "__main__":
    config.run(main)
