"""Check submission.csv strictly, and score it if truth_csv= is set or test images have masks."""

from dataclasses import replace
from pathlib import Path

from core import cli, config, run_folder
from core.errors import InputError
from core.overrides import parse_overrides
from core.settings import Settings

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

from data.datasets import get_class_map
from evaluation.submission import check_and_score_submission, read_submission_json

# Settings of a trained run that its submission depends on.
INHERITED = ["dataset_name", "dataset_format", "group_regex", "data_dir", "use_hq_images"]
INHERITED += ["mask_name", "mask_threshold", "trimap_border", "truth_csv"]


def require_submission_of_runs(settings: Settings, args: list[str]) -> None:
    """Raise InputError if predict.py made the submission with other runs than `args` name."""
    path, typed = settings.submission_path, parse_overrides(args).keys()
    json_path = path.with_suffix(".json")
    if "submission_csv" in typed or not {"run", "runs", "recipe"} & typed or not json_path.exists():
        return
    runs = read_submission_json(json_path)["runs"]
    if {*runs} != {*settings.runs}:
        made_by = f"{path}: was made by {','.join(runs)}, not by {','.join(settings.runs)}"
        for folder in settings.run_dirs:
            if not folder.exists():
                similar = run_folder.similar_run(folder)
                raise InputError(f"{made_by}; there is no run {folder.name}{similar}")
        raise InputError(f"{made_by}; predict with these first, or set submission_csv=...")


def find_data_dir(settings: Settings, args: list[str]) -> str:
    """Return the data_dir whose test images predict.py has predicted, unless `args` set another.

    Raises InputError if it is missing.
    """
    json_path = settings.submission_path.with_suffix(".json")
    if {"data_dir", "submission_csv"} & parse_overrides(args).keys() or not json_path.exists():
        return settings.data_dir
    stored = read_submission_json(json_path).get("data_dir", settings.data_dir)
    data_dir = config.ROOT / stored  # a relative path starts at the repository
    if not data_dir.exists() and data_dir != Path(settings.data_dir).absolute():
        raise InputError(
            f"{json_path}: is for the test images of {data_dir}, which is missing; set data_dir=..."
        )
    return str(data_dir)


def main(args: list[str]) -> None:
    settings = config.load_settings(args)
    runs = sorted({name for run in settings.runs for name in run.split("+")})  # of an ensemble
    first_run = Path(settings.output_dir) / runs[0]
    if run_folder.finished_folds(first_run):
        stored = run_folder.read_run_settings(first_run)
        inherited = {name: stored[name] for name in INHERITED if name in stored}
        base = config.read_recipe(settings.recipe) | inherited
        settings = config.load_settings(args, base)
    settings = replace(settings, runs=runs, run=run_folder.ensemble_name(runs))
    if len(get_class_map(settings).names) > 1:
        raise InputError(
            f"{settings.data_dir}: has several classes, of which there is no submission.csv; "
            "predict.sh prints the scores of test images with masks"
        )
    require_submission_of_runs(settings, args)
    check_and_score_submission(replace(settings, data_dir=find_data_dir(settings, args)))


if __name__ == "__main__":
    cli.run_main(main)
