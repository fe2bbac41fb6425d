"""Checks before the first training step: data, folds and model."""

import math
from collections.abc import Collection

import numpy as np

from core import distributed, process_env, run_folder
from core.errors import InputError
from core.settings import Settings
from core.text import format_count
from data import csv_files, datasets
from data.classes import IGNORE, ClassMap
from data.fingerprint import dataset_fingerprint
from data.image_files import list_names
from data.preprocess import Size
from data.sample import Sample
from data.sampler import samples_per_step
from models import checkpoint
from models.build import build_model
from training.dry_run import check_batches
from training.initial_weights import find_initial_weights, needs_pretrained
from training.losses import BINARY_LOSSES, MULTICLASS_LOSSES
from training.stages import has_begun_later_stage, split_stages

# On 24 photographs, 120 updates scored 0.9868, 360 scored 0.9906, and 900 scored 0.9920
# (docs/experiments.md).
MIN_UPDATES = 600


def check_data(settings: Settings, samples: list[Sample]) -> tuple[int, set[Size]]:
    """Print a summary of the data; return the number of folds and the native sizes of all images.

    Raises InputError for unreadable images and masks of another size.
    """
    group_folds = {sample.group: sample.fold for sample in samples}
    listed = csv_files.read_folds(settings)
    n_folds = max(listed.values()) + 1
    sizes = datasets.read_checked_sizes(samples)
    shapes = list_names([f"{width}×{height}" for height, width in sorted(sizes)])
    per_fold = "+".join(str(list(group_folds.values()).count(k)) for k in range(n_folds))
    print(
        f"{settings.data_dir}: {len(samples)} images with masks, {shapes}; {len(group_folds)} of "
        f"the {len(listed)} groups in {settings.folds_csv}, {n_folds} folds of {per_fold} groups"
    )
    return n_folds, sizes


def check_sizes(settings: Settings, native_sizes: Collection[Size]) -> None:
    """Raise InputError if images of these sizes cannot be batched or are smaller than crop_size;
    print a warning if `size` seems to be width,height."""
    height, width = settings.size or (0, 0)
    if all((height - width) * (high - wide) < 0 for high, wide in native_sizes):
        shape = "taller than wide" if height > width else "wider than tall"
        print(
            f"warning: size={height},{width} is height,width, but no image is {shape}; try "
            f"size={width},{height}"
        )
    if settings.train_size is None and len(native_sizes) > 1 and settings.batch_size > 1:
        found = f"has images of {len(native_sizes)} sizes"
        raise InputError(
            f"{settings.data_dir}: {found}; set size=h,w to resize them, or crop_size=h,w"
        )
    sizes = [settings.size] if settings.size else native_sizes
    crop, smallest = settings.crop_size, [min(sides) for sides in zip(*sizes, strict=True)]
    if crop and (crop[0] > smallest[0] or crop[1] > smallest[1]):
        fix = "null for whole images" if len(sizes) == 1 else "set size=h,w to resize all images"
        raise InputError(
            f"crop_size={crop[0]},{crop[1]}: images are {smallest[0]},{smallest[1]} (height,width)"
            f"{' or larger' if len(sizes) > 1 else ''}; set a smaller crop_size, or {fix}"
        )


def folds_to_train(settings: Settings, n_folds: int) -> list[int]:
    """Return the requested folds that this stage still has to train.

    Leaves out folds that this stage has finished or that a later stage has begun. Raises InputError
    if a fold does not exist. Also raises InputError if a fold has weights or a snapshot and resume
    is false, so that weights are never overwritten, or if its files cannot be resumed.
    """
    if settings.fold is not None and settings.fold >= n_folds:
        last = n_folds - 1
        raise InputError(f"fold={settings.fold}: {settings.folds_csv} has folds 0 to {last}")
    requested = list(range(n_folds)) if settings.fold is None else [settings.fold]
    requested = [fold for fold in requested if not has_begun_later_stage(settings, fold)]
    finished = run_folder.finished_folds(settings.run_dir)
    for fold in requested:
        weights = run_folder.weights_path(settings.run_dir, fold)
        has_snapshot = run_folder.has_snapshot(settings.run_dir, fold)
        if not settings.resume and (weights.exists() or has_snapshot):
            raise InputError(
                f"{weights.parent}: already exists; set resume=true to continue, or choose "
                "another run=..."
            )
        if fold not in finished and weights.exists() and not has_snapshot:
            raise InputError(
                f"{weights.parent}: has weights, but neither oof.npz nor a snapshot to resume "
                "from; move it away to train this fold again"
            )
    return [fold for fold in requested if fold not in finished]


def check_folds(
    settings: Settings, folds: list[int], samples: list[Sample], native_sizes: Collection[Size]
) -> None:
    """Raise InputError if these folds, or this model, cannot be trained on these samples."""
    check_batch_and_loss(settings, samples[0].class_map)
    with_images = sorted({sample.fold for sample in samples})
    for fold in folds:
        if fold not in with_images or len(with_images) < 2:
            raise InputError(
                f"fold={fold}: needs images in this fold and in others; in {settings.folds_csv}, "
                f"only fold {', '.join(map(str, with_images))} has images in {settings.data_dir}; "
                "set fold= to one of these if there are several, or write another folds_csv"
            )
        require_two_classes([sample for sample in samples if sample.fold != fold])
        require_labels([sample for sample in samples if sample.fold == fold], fold)
    # Reports an unknown encoder, or weights that do not fit, before images are decoded.
    pretrained = any(needs_pretrained(settings, fold) for fold in folds)
    model = build_model(settings, len(samples[0].class_map.names), pretrained)
    for fold in folds:
        if path := find_initial_weights(settings, fold, samples):
            checkpoint.load_weights(path, model, "the network of this run")
    check_batches(settings, model, folds, samples, native_sizes)
    warn_of_few_updates(settings, folds, samples)


def warn_of_few_updates(settings: Settings, folds: list[int], samples: list[Sample]) -> None:
    """Print a warning if training makes so few updates that it probably ends too early.

    Prints none for stages, trials with max_images, or training that resumes or starts from a run.
    """
    is_stage = bool(settings.stages) or "/" in settings.run
    if settings.max_images or settings.init_run or settings.resume or is_stage:
        return
    count = min(sum(sample.fold != fold for sample in samples) for fold in folds)
    step_size = samples_per_step(count, settings.batch_size, distributed.count_processes())
    updates = math.ceil(count // step_size / settings.grad_accumulation) * settings.epochs
    if updates < MIN_UPDATES:
        print(
            f"warning: with {count} images to train on, epochs={settings.epochs} makes "
            f"{format_count(updates, 'update')} of the weights; below {MIN_UPDATES}, more epochs "
            "probably raise the score: try another run= with "
            f"epochs={math.ceil(settings.epochs * MIN_UPDATES / updates)}"
        )


def check_finished_folds(settings: Settings, fingerprint: str) -> None:
    """Raise InputError if a finished fold of the run was trained on other data.

    An image could otherwise be held out in two folds, or in none.
    """
    for fold in run_folder.finished_folds(settings.run_dir):
        path = run_folder.weights_path(settings.run_dir, fold)
        if problem := checkpoint.find_fold_mismatch(path, fold, fingerprint):
            raise InputError(f"{problem}, or set another run=")


def require_labels(held_out: list[Sample], fold: int) -> None:
    """Raise InputError if all held-out masks of a fold show only ignored pixels.

    Such a fold would have no score. Reads masks only until a pixel with a class is found.
    """
    if all((datasets.read_sample_mask(sample) == IGNORE).all() for sample in held_out):
        raise InputError(
            f"fold={fold}: its masks, such as {held_out[0].mask.name}, show only ignored pixels; "
            "label one of them, or move another group to this fold in folds_csv"
        )


def require_two_classes(samples: list[Sample]) -> None:
    """Raise InputError if all masks together show fewer than two classes. Reads masks only until
    two classes are found."""
    seen = set()
    for sample in samples:
        seen |= {*np.unique(datasets.read_sample_mask(sample)).tolist()} - {IGNORE}
        if len(seen) > 1:
            return
    names = ("empty", "full") if sample.class_map.is_binary else sample.class_map.names
    raise InputError(
        f"{samples[0].mask.parent}: all {len(samples)} masks that would be trained on are "
        f"{names[min(seen)] if seen else 'of class ignore'}, {samples[0].mask.name} for example; a "
        "network cannot learn from them"
    )


def check_batch_and_loss(settings: Settings, class_map: ClassMap) -> None:
    """Raise InputError if batch_size is not a multiple of the number of processes, or if the loss
    does not fit the number of classes."""
    processes = distributed.count_processes()
    if settings.batch_size % processes:
        raise InputError(
            f"batch_size={settings.batch_size}: is the total over {processes} processes; set a "
            f"multiple of {processes}, or another number of processes"
        )
    losses = BINARY_LOSSES if class_map.is_binary else MULTICLASS_LOSSES
    if settings.loss not in losses:
        kind = "one class" if class_map.is_binary else f"{len(class_map.names)} classes"
        raise InputError(f"loss={settings.loss}: does not fit {kind}; set loss={'|'.join(losses)}")


def check_before_launch(settings: Settings) -> None:
    """Run all checks of all stages, without printing anything.

    Several processes would each report the same error, so the checks run before these start. A run
    or stage that starts late is also checked here, before an earlier one trains for hours.
    """
    with process_env.silenced():
        samples, stages = datasets.load_training_samples(settings), split_stages(settings)
        n_folds, sizes = check_data(stages[0], samples)
        check_sizes(stages[0], sizes)
        fingerprint = dataset_fingerprint(samples)
        for stage in stages:
            check_finished_folds(stage, fingerprint)
        first_folds, *later_folds = [folds_to_train(stage, n_folds) for stage in stages]
        if first_folds:
            check_folds(stages[0], first_folds, samples, sizes)
        # All stages have one network.
        model = build_model(settings, len(samples[0].class_map.names), pretrained=False)
        later_stages = zip(stages[1:], later_folds, strict=True)
        for number, (stage, folds) in enumerate(later_stages, 2):
            try:
                check_sizes(stage, sizes)
                check_batch_and_loss(stage, samples[0].class_map)
                if folds:
                    check_batches(stage, model, folds, samples, sizes)
            except InputError as error:
                raise InputError(f"stage {number}: {error}") from None
