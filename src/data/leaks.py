"""Warnings of objects that a network may be trained on and scored on."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from core import process_env
from core.errors import InputError
from core.files import file_sha256
from core.settings import Settings
from data import datasets
from data.image_files import to_nfc
from data.sample import Sample

NUMBERED_NAMES = (r"(.+?)(?:_\d+)?", r"(.+?)(?:-\d+)?")  # such as car7_01, car7_02


def find_copies(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Return the lists of samples that have the same image file. Reads only files of one size."""
    by_size, by_content = defaultdict(list), defaultdict(list)
    for sample in samples:
        if sample.image.exists():  # a dangling link is reported when it is read
            by_size[sample.image.stat().st_size].append(sample)
    for same_size in by_size.values():
        for sample in same_size if len(same_size) > 1 else ():
            by_content[file_sha256(sample.image)].append(sample)
    return [copies for copies in by_content.values() if len(copies) > 1]


def warn_of_copies(samples: list[Sample]) -> None:
    """Print a warning if an image file occurs in two groups, which may be in different folds."""
    groups = [sorted({sample.group for sample in copies}) for copies in find_copies(samples)]
    if copies := [names for names in groups if len(names) > 1]:
        print(
            f"warning: images that occur more than once: {len(copies)}, for example in groups "
            f"{copies[0][0]} and {copies[0][1]}: a network may be trained on one copy and scored "
            "on the other"
        )


def warn_of_training_images(settings: Settings, test_samples: list[Sample]) -> None:
    """Print a warning if test images are training images, or show groups of the training images.

    Prints nothing if there are no training images on this machine.
    """
    try:
        with process_env.silenced():
            training = datasets.load_samples(settings, "train")
    except InputError:
        return
    groups = {sample.group for sample in training}
    shown = [s for s in test_samples if s.group in groups and s.group != to_nfc(s.image_id)]
    found = [sample.image.name for sample in shown]
    reason = f"show groups of the training images (group_regex={settings.group_regex})"
    if not found:
        reason, of_test = "are training images, too", {id(sample) for sample in test_samples}
        for copies in find_copies([*training, *test_samples]):
            names = [sample.image.name for sample in copies if id(sample) in of_test]
            if len(names) < len(copies):
                found += names
    if found:
        print(
            f"warning: {len(found)} of {len(test_samples)} test images, {found[0]} for example, "
            f"{reason}: their scores are too high"
        )


def warn_of_split_groups(settings: Settings, samples: list[Sample]) -> None:
    """Print a warning if each image is a group, but names such as car7_01 and car7_02 suggest that
    several images show one object."""
    is_grouped = len({sample.group for sample in samples}) < len(samples)
    if is_grouped or settings.dataset_format != "carvana":
        return
    stems = [sample.image_id for sample in samples]
    for regex in NUMBERED_NAMES:
        objects = Counter(datasets.group_from_stem(stem, regex) for stem in stems)
        repeated = [name for name, count in objects.items() if name and count > 1]
        # If only one name is repeated, it is no object, as in photo_1, photo_2, ...
        if len(repeated) > 1:
            examples = [s for s in stems if datasets.group_from_stem(s, regex) == repeated[0]]
            print(
                f"warning: {examples[0]} and {examples[1]} are in different groups; if they show "
                "one object, a network may be trained on one and scored on the other: delete "
                f"{settings.folds_csv}, set group_regex='{regex}', and choose another run="
            )
            return
