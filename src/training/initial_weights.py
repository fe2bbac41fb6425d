"""Where the weights come from at the start of training: another run, or a pretrained encoder."""

from pathlib import Path

from core.errors import InputError
from core.run_folder import ensemble_path, has_snapshot, similar_run, weights_path
from core.settings import Settings
from data.fingerprint import dataset_fingerprint
from data.sample import Sample
from models.checkpoint import find_fold_mismatch
from training.stages import find_init_run


def needs_pretrained(settings: Settings, fold: int) -> bool:
    """Whether pretrained encoder weights, if the settings name any, have an effect on `fold`.

    They have none if training starts from a snapshot or from another run: both replace all weights.
    """
    return not has_snapshot(settings.run_dir, fold) and not find_init_run(settings)


def find_initial_weights(settings: Settings, fold: int, samples: list[Sample]) -> Path | None:
    """Return the weights file from which training of `fold` starts.

    It belongs to the previous stage or, without one, to the run `init_run`. Returns None if there
    is neither, or if the fold resumes from a snapshot, which replaces the weights. Raises
    InputError unless that run has finished the same fold on the same samples: otherwise its network
    was trained on images that this run is scored on.
    """
    init_run = find_init_run(settings)
    if not init_run or has_snapshot(settings.run_dir, fold):
        return None
    init_dir = Path(settings.output_dir) / init_run
    path = weights_path(init_dir, fold)
    if init_run == settings.run:
        problem = "is this run itself"
    elif not init_dir.is_dir():
        problem = f"no such run in {init_dir.parent}{similar_run(init_dir)}"
    elif ensemble_path(init_dir).exists():
        problem = "is an ensemble; choose one of its runs"
    elif not path.is_file():
        problem = f"{path} is missing; train fold={fold} of that run first"
    elif has_snapshot(init_dir, fold):
        problem = f"has not finished fold {fold}; resume it first"
    else:
        problem = find_fold_mismatch(path, fold, dataset_fingerprint(samples))
    if problem:
        raise InputError(f"init_run={init_run}: {problem}")
    return path
