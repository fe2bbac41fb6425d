"""Checks a written submission.csv strictly, and scores it where there is a truth."""

import sys

from core import cli, config
from core.errors import InputError
from data import csv_files
from evaluation.submission import (
    SUBMISSION_COLUMNS,
    expected_file_names,
    mask_errors,
    name_errors,
    print_limited,
    score_submission,
    suspicious_masks,
)

if __name__ == "__main__":  # help, wrong words and Ctrl-C are answered before the heavy imports
    cli.run_main(lambda: config.load_settings(sys.argv[1:]))


def main() -> None:
    settings = config.load_settings(sys.argv[1:])
    path = settings.submission_path
    table = csv_files.read_csv_strict(path, SUBMISSION_COLUMNS)
    names = expected_file_names(settings)
    faults = name_errors(table, names)
    broken, areas = mask_errors(settings, table)
    if faults or broken:
        print_limited(f"{path}: faults", faults + broken, sys.stderr)
        raise InputError(f"{path}: not fit to submit, {len(faults + broken)} faults")
    print_limited("worth a look", suspicious_masks(settings, table["img"], areas))
    if settings.max_images:
        print(f"max_images={settings.max_images}: these are not all test images")
    print(f"{path}: {len(table)} rows, no fault")
    if settings.truth_csv:
        score_submission(settings, table)


if __name__ == "__main__":
    cli.run_main(main)
