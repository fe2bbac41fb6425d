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
    json_path = settings.submission_path.with_suffix(".json")
    if not {"data_dir", "submission_csv"} & parse_overrides(args).keys() and json_path.exists():
        # Score the test images that were predicted. A relative path starts at the repository.
        data_dir = read_submission_json(json_path).get("data_dir", settings.data_dir)
        data_dir = str(config.ROOT / data_dir)
        if not Path(data_dir).exists() and Path(data_dir) != Path(settings.data_dir).absolute():
            raise InputError(
                f"{json_path}: is for the test images of {data_dir}, which is missing; set "
                "data_dir=..."
            )
        settings = replace(settings, data_dir=data_dir)
    check_and_score_submission(settings)


if __name__ == "__main__":
    cli.run_main(main)
