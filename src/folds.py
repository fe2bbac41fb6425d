"""Write folds.csv: the fold in which each group (car) is held out.

The 16 views of a car share the car and the studio. A split by image would put some of them on both
sides and score the network on cars that it was trained on, so the file has one row per car.
"""

from collections.abc import Callable
from pathlib import Path

from core import cli

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

import numpy as np
import pandas as pd

from core import config
from core.errors import InputError
from core.files import atomic_write
from core.overrides import parse_overrides
from core.progress import image_progress
from core.settings import Settings
from core.text import format_count
from core.threads import map_in_threads
from data import csv_files, datasets, leaks
from data.classes import IGNORE
from data.sample import Sample

COLUMNS = ["dataset", "group", "fold"]


def mean_mask_area(samples: list[Sample]) -> pd.Series:
    """Return group → mean fraction of the image that its masks cover, rounded to 6 digits."""
    fractions = map_in_threads(foreground_fraction, samples)
    areas = list(image_progress(fractions, "mask areas", len(samples)))
    states = ((0, "show only background"), (1, "cover the whole image"))
    for area, state in states if samples[0].class_map.has_background else ():
        names = [sample.image_id for sample, a in zip(samples, areas, strict=True) if a == area]
        if names:
            print(f"masks that {state}: {len(names)}, such as {', '.join(names[:5])}")
    if samples[0].class_map.is_binary and np.mean(areas) > 0.5:
        print(
            f"warning: the masks cover {np.mean(areas):.0%} of the images on average; the object "
            "must be white, the background black; if it is not, invert the masks"
        )
    table = pd.DataFrame({"group": [sample.group for sample in samples], "area": areas})
    return table.groupby("group")["area"].mean().round(6)


def foreground_fraction(sample: Sample) -> float:
    """Return the fraction of the image that is neither class 0 (background) nor IGNORE."""
    return float(np.mean(~np.isin(datasets.read_sample_mask(sample), [0, IGNORE])))


def assign_folds(
    areas: pd.Series, n_folds: int, stratify_by: Callable[[str], str] = lambda group: ""
) -> pd.Series:
    """Return group → fold, stratified by `stratify_by(group)` and mask area.

    Sorts the groups by stratum and area, and assigns them to the folds in snake order (0 1 2, 2 1
    0, 0 1 2, ...), so that no fold always gets the larger area. The result depends on names and
    areas alone.
    """
    groups = sorted(areas.index, key=lambda group: (stratify_by(group), areas[group], group))
    snake = [*range(n_folds), *reversed(range(n_folds))]
    folds = {group: snake[i % (2 * n_folds)] for i, group in enumerate(groups)}
    return pd.Series(folds).sort_index()


def check_groups(settings: Settings, samples: list[Sample]) -> None:
    """Raise InputError if there are fewer groups than folds."""
    groups = sorted({sample.group for sample in samples})
    if len(samples) == 1:
        raise InputError(
            f"{settings.data_dir}: has a single training image, {samples[0].image_id}; at least "
            "two are needed, one of them to be held out"
        )
    if len(groups) < settings.n_folds:
        remedies = []
        if len(groups) < len(samples):
            remedies.append("group_regex='(.+)' if no two images show the same object")
        if len(groups) > 1:
            remedies.insert(0, f"n_folds={len(groups)}")
        raise InputError(
            f"n_folds={settings.n_folds}: group_regex={settings.group_regex} makes only "
            f"{format_count(len(groups), 'group')} of {len(samples)} images in "
            f"{settings.data_dir}: {', '.join(groups[:5])}; set {' or '.join(remedies)}"
        )


def write_folds(settings: Settings, folds: pd.Series) -> None:
    """Write the dataset's rows of folds_csv, and keep those of other datasets.

    Raise InputError if the file lists other groups or folds for this dataset.
    """
    path, name = Path(settings.folds_csv), settings.dataset_name
    table = pd.DataFrame({"dataset": name, "group": folds.index, "fold": folds.values})
    if path.exists():
        existing = csv_files.read_csv_strict(path, COLUMNS)
        is_same_dataset = existing["dataset"] == name
        listed = existing[is_same_dataset].set_index("group")["fold"]
        if len(listed) and listed.to_dict() != folds.astype(str).to_dict():
            found = f"has {len(listed)} groups of dataset {name}, {settings.data_dir} {len(folds)}"
            if {*listed.index} == {*folds.index}:
                found = f"has other folds of dataset {name}: n_folds or masks have changed"
            raise InputError(
                f"{path}: {found}; set folds_csv=<new file> or dataset_name=<new name>, or delete "
                "these rows"
            )
        table = pd.concat([existing[~is_same_dataset], table], ignore_index=True)
    with atomic_write(path) as tmp_path:
        table.to_csv(tmp_path, index=False, lineterminator="\n")


def main(args: list[str]) -> None:
    settings = config.load_settings(args)
    samples = datasets.load_samples(settings, "train")
    check_groups(settings, samples)
    leaks.warn_of_copies(samples)
    if "group_regex" not in parse_overrides(args):
        leaks.warn_of_split_groups(settings, samples)
    areas = mean_mask_area(samples)
    stratify_by = datasets.get_format(settings).fold_stratum
    folds = assign_folds(areas, settings.n_folds, stratify_by)
    write_folds(settings, folds)
    for fold, fold_areas in areas.groupby(folds):
        groups = format_count(len(fold_areas), "group")
        print(f"fold {fold}: {groups}, mean area {fold_areas.mean():.4f}")
    print(
        f"{settings.folds_csv}: {len(folds)} groups of dataset {settings.dataset_name} "
        f"in {settings.n_folds} folds"
    )


if __name__ == "__main__":
    cli.run_main(main)
