"""Check submission.csv strictly; with truth_csv=, also score it."""

from dataclasses import replace
from pathlib import Path

from core import cli, config, run_folder

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

from evaluation.submission import check_submission

# Settings of a trained run that its submission depends on.
INHERITED = ("dataset_name", "dataset_format", "group_regex", "data_dir", "use_hq_images")


def main(args: list[str]) -> None:
    settings = config.load_settings_without_stages(args)
    first_run = Path(settings.output_dir) / min(settings.runs)
    if run_folder.finished_folds(first_run):
        stored = run_folder.read_run_settings(first_run)
        inherited = {name: stored[name] for name in INHERITED if name in stored}
        base = config.read_recipe(settings.recipe) | inherited
        settings = config.load_settings_without_stages(args, base)
    check_submission(replace(settings, run=run_folder.ensemble_name(settings.runs)))


if __name__ == "__main__":
    cli.run_main(main)
