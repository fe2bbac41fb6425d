"""Compare the out-of-fold scores of all runs and ensembles; write output/leaderboard.{csv,md}.

Prints the tables of all datasets, or with `run=a` only the table that contains this run. With
`runs=a,b`, first scores these runs as an ensemble on all training images. For inference.load(),
also writes the predictor.json of each run and ensemble.
"""

from pathlib import Path

from core import cli, config

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

from core.errors import InputError, did_you_mean
from core.overrides import parse_overrides
from evaluation import ensemble, leaderboard
from inference import load_runs

# Runs and ensembles are scored with the values of these settings that the runs were trained with.
SETTINGS_OF_RUNS = ("fold", "max_images", "tta", "tile_overlap", "threshold", "postprocess")


def main(args: list[str]) -> None:
    settings, overrides = config.load_settings(args), parse_overrides(args)
    for name in SETTINGS_OF_RUNS:
        if name in overrides:
            raise InputError(f"{name}: is taken from the runs; leave it out")
    if len(settings.runs) > 1:
        ensemble.score_ensemble(load_runs.settings_for_prediction(args))
    run = settings.run if "run" in overrides and "runs" not in overrides else ""
    names = leaderboard.write_leaderboard(Path(settings.output_dir), run)
    if run and run not in names:
        similar = did_you_mean(run, names)
        raise InputError(f"run={run}: has no scores in {settings.output_dir}{similar}")


if __name__ == "__main__":
    cli.run_main(main)
