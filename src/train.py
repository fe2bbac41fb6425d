"""Train one fold or all folds, score each out of fold, and update the leaderboard."""

import shlex
import shutil
import sys
from pathlib import Path

from core import cli
from core.settings import Settings

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

import torch

from core import config, distributed, process_env, provenance, run_folder
from core.device import explain_out_of_memory, free_memory, pick_device, pick_precision
from core.overrides import parse_overrides
from data import datasets
from data.cache import Cache, make_cache
from data.fingerprint import dataset_fingerprint
from data.preprocess import Size
from data.sample import Sample
from evaluation import leaderboard, oof, score_text
from inference.members import make_member
from models import checkpoint
from training import preflight, run_start
from training.stages import split_stages
from training.trainer import FoldTrainer


def train_stages(settings: Settings) -> None:
    """Train the folds of a run; with several stages, train the folds of each stage in turn."""
    stages, samples = split_stages(settings), datasets.load_training_samples(settings)
    n_folds, sizes = preflight.check_data(stages[0], samples)
    distributed.init_process_group(pick_device(settings))
    if settings.stages:
        run_start.save_config(settings)  # so that the run can be resumed in any stage
    for stage in stages:
        if settings.stages:
            print(f"{stage.run}: size={stage.size} epochs={stage.epochs} lr={stage.lr:g}")
        preflight.check_sizes(stage, sizes)
        train_folds(stage, samples, n_folds, sizes)
        # The next stage of any process reads what the main process has written.
        distributed.barrier()


def train_folds(settings: Settings, samples: list[Sample], n_folds: int, sizes: set[Size]) -> None:
    """Train the requested folds that are not finished, one after the other."""
    folds = preflight.folds_to_train(settings, n_folds)
    fingerprint, commit = dataset_fingerprint(samples), provenance.current_commit()
    preflight.check_finished_folds(settings, fingerprint)
    if folds:
        preflight.check_folds(settings, folds, samples, sizes)
        distributed.assert_equal_on_all_ranks({"data_dir": fingerprint, "commit": commit})
        run_start.save_config(settings)
        cache = make_cache(settings, samples)
        distributed.barrier()  # machines may decode at different speeds
        for fold in folds:
            with run_start.lock_fold(settings, fold), explain_out_of_memory(settings):
                train_fold(settings, fold, samples, cache)
    else:
        print(f"{settings.run_dir}: the requested folds are finished; nothing to train")
    remove_snapshots(settings)


def train_fold(settings: Settings, fold: int, samples: list[Sample], cache: Cache | None) -> None:
    """Train one fold, score its held-out images, and delete its snapshots."""
    device = pick_device(settings)
    if process_env.is_main_process():
        folder = run_folder.fold_dir(settings.run_dir, fold)
        # oof.npz marks a fold as finished. It is left over if only the weights were deleted.
        (folder / "oof.npz").unlink(missing_ok=True)
        if not settings.resume and not run_folder.has_snapshot(settings.run_dir, fold):
            provenance.remove_run_records(folder)  # of an attempt that failed in its first steps
        data = {"fingerprint": dataset_fingerprint(samples), "images": len(samples)}
        provenance.append_run_record(folder, device, data)
    FoldTrainer(settings, fold, samples, cache).fit()
    held_out = [sample for sample in samples if sample.fold == fold]
    score_fold(settings, fold, held_out, cache)
    remove_snapshots(settings)
    free_memory(device)


def remove_snapshots(settings: Settings) -> None:
    """Delete the snapshots of finished folds, also if an earlier run was killed before doing so."""
    if process_env.is_main_process():
        for fold in run_folder.finished_folds(settings.run_dir):
            shutil.rmtree(run_folder.snapshot_dir(settings.run_dir, fold), ignore_errors=True)


def score_fold(settings: Settings, fold: int, held_out: list[Sample], cache: Cache | None) -> None:
    """Score the saved weights out of fold, with TTA; write oof.csv and oof.npz; print the score."""
    distributed.barrier()  # the main process has written the weights
    path = run_folder.weights_path(settings.run_dir, fold)
    model, _ = checkpoint.load_model(path, pick_device(settings))
    members = [make_member(model, settings)]
    scores = oof.score_out_of_fold(members, held_out, settings, f"fold {fold} oof", cache)
    if process_env.is_main_process():
        oof.save_scores(path.parent, scores, weights=path)
    print(
        f"fold {fold}: out-of-fold dice {score_text.format_mean_dice(scores)} on "
        f"{len(scores.dice)} images (tta={settings.tta}); {score_text.score_summary(scores)}"
    )
    score_text.warn_of_constant_masks(scores)


def suggest_prediction(runs: list[Settings]) -> str:
    """Return the command that predicts test images with the runs, or else photographs."""
    names = ",".join(settings.run for settings in runs)
    words = ["bash", "predict.sh", f"run={names}" if len(runs) == 1 else f"runs={names}"]
    words += config.output_dir_argument(runs[0])
    if not datasets.get_format(runs[0]).find_test_images_dir(runs[0]).exists():
        return f"{shlex.join(words)} images=<a photograph or a folder>"
    return shlex.join(words)


def main(args: list[str]) -> None:
    sys.argv[1:] = args  # for provenance.json, if a notebook calls main()
    runs = []
    for run_args in config.split_runs(args):
        runs.append(run_start.load_run_settings(run_args))
        run_start.prepare_data(runs[-1], run_args)
    device = pick_device(runs[0])
    is_default = not {"recipe", "runs", "size", "resume"} & parse_overrides(args).keys()
    if device.type == "cpu" and is_default and not process_env.is_launched():
        print(
            "warning: carvana, the default recipe, needs a GPU; for a CPU there are "
            "recipe=carvana_small and recipe=carvana_lite"
        )
    recipe = parse_overrides(args).get("recipe")  # need not exist when a run is resumed by its name
    named = config.read_recipe(recipe).get("runs", []) if recipe else []
    if len(named) > len(runs) and not process_env.is_launched():
        print(
            f"recipe={recipe} is for the runs {', '.join(named)}; training only {runs[0].run}, "
            "with the network of this recipe"
        )
    for settings in runs:
        pick_precision(settings, device)  # InputError before images are decoded
    torch.set_float32_matmul_precision("high")  # TF32 for fp32 matrix products
    launches = distributed.requested_processes() > 1
    has_later_training = len(runs) > 1 or bool(runs[0].stages)
    # All runs and stages are checked now: once for all processes, and before hours of training.
    if launches or (has_later_training and not process_env.is_launched()):
        for settings in runs:
            preflight.check_before_launch(settings)
    if launches:
        distributed.launch_processes(device)
        return
    for settings in runs:
        if len(runs) > 1:
            print(f"run {settings.run}")
        train_stages(settings)
    distributed.destroy_process_group()
    if process_env.is_main_process():
        leaderboard.write_leaderboard(Path(runs[0].output_dir), runs[0].run)
        print(f"\nnext: {suggest_prediction(runs)}")


if __name__ == "__main__":
    cli.run_main(main, "run the same command with resume=true to resume")
