"""Check a written submission.csv strictly, and score it if truth_csv= is set."""

from dataclasses import replace
from pathlib import Path

from core import cli, config, run_folder

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

from evaluation.submission import check_submission
from inference import load_runs


def main(args: list[str]) -> None:
    settings = config.load_settings_without_stages(args)
    if run_folder.finished_folds(Path(settings.output_dir) / min(settings.runs)):
        settings = load_runs.settings_for_prediction(args)  # as predict.py has written it
    check_submission(replace(settings, run=run_folder.ensemble_name(settings.runs)))


if __name__ == "__main__":
    cli.run_main(main)
