"""What a run or ensemble predicts with after training: written to its predictor.json."""

from pathlib import Path

from core import run_folder
from core.settings import Settings
from evaluation import ensemble, oof
from evaluation.oof import Scores
from inference.predictor_file import write_predictor


def store_predictor(run_dir: Path, scores: Scores, tta: str) -> None:
    """Write predictor.json: all finished networks, and the threshold and post-processing with the
    best out-of-fold scores."""
    runs = {run_dir.name: 1.0}
    if run_folder.ensemble_path(run_dir).exists():
        runs = ensemble.read_ensemble(run_dir)["runs"]
    weights = {}
    for run, weight in runs.items():
        folder = run_dir.parent / run
        folds = run_folder.finished_folds(folder) if weight else []
        weights |= {run_folder.weights_path(folder, k): weight / len(folds) for k in folds}
    write_predictor(run_dir, weights, tta, oof.choose_binarizer(Settings(), scores))
