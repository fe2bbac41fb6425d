"""Check a written submission.csv strictly, and score it if truth_csv= is set."""

from dataclasses import replace
from pathlib import Path

from core import cli, config, run_folder

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

from evaluation.submission import check_submission

INHERITED = ("dataset_name", "dataset_format", "group_regex")  # from a trained run


def main(args: list[str]) -> None:
    settings = config.load_settings_without_stages(args)
    first_run, typed = Path(settings.output_dir) / min(settings.runs), config.parse_overrides(args)
    if run_folder.finished_folds(first_run):
        stored = run_folder.read_run_settings(first_run)
        inherited = {n: stored[n] for n in INHERITED if n in stored and n not in typed}
        settings = replace(settings, **inherited)
    check_submission(replace(settings, run=run_folder.ensemble_name(settings.runs)))


if __name__ == "__main__":
    cli.run_main(main)
