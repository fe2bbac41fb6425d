"""Compare the out-of-fold scores of all runs and ensembles; write output/leaderboard.{csv,md}.

With `runs=[a,b]` these runs are first scored as an ensemble, on all training images.
"""

from pathlib import Path

from core import cli, config

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

from core.device import pick_device
from data.datasets import load_training_samples
from evaluation import comparison, ensemble


def main(args: list[str]) -> None:
    settings = config.load_settings(args)
    if len(settings.runs) > 1:
        settings = ensemble.settings_for_prediction(args)
        samples = load_training_samples(settings)
        ensemble.score_ensemble(settings, samples, pick_device(settings))
    comparison.write_leaderboard(Path(settings.output_dir))


if __name__ == "__main__":
    cli.run_main(main)
