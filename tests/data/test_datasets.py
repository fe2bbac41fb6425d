"""Samples of the tiny data set in the competition's layout: pairing, groups, folds, splits."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from tiny_datasets import make_data, write_mask

from core import config
from core.errors import InputError
from core.settings import Settings
from data import datasets
from data.sample import Sample


def tiny_settings(data_dir, *args):
    folds_csv = data_dir / "folds.csv"
    args = [f"data_dir={data_dir}", f"folds_csv={folds_csv}", "dataset_name=tiny", *args]
    return config.load_settings(args)


@pytest.fixture(scope="module")
def shared_data_dir(tmp_path_factory):
    """A tiny data set that tests must not change."""
    return make_data(tmp_path_factory.mktemp("datasets") / "tiny")


# ---------------------------------------------------------------- training samples


def test_load_training_samples_pairs_by_name_and_sets_group_view_and_fold(shared_data_dir):
    samples = datasets.load_training_samples(tiny_settings(shared_data_dir))
    assert len(samples) == 12
    for sample in samples:
        assert sample.mask.name == f"{sample.image_id}_mask.gif"
        assert sample.image_id == f"{sample.group}_{sample.view}"
        assert sample.fold == int(sample.group, 16) % 2


@pytest.mark.parametrize("fold", [0, 1])
def test_load_training_samples_keeps_each_group_in_one_fold(shared_data_dir, fold):
    samples = datasets.load_training_samples(tiny_settings(shared_data_dir))
    inside = {sample.group for sample in samples if sample.fold == fold}
    assert inside and not inside & {sample.group for sample in samples if sample.fold != fold}


def test_load_training_samples_with_max_images_takes_the_first_of_each_fold(shared_data_dir):
    samples = datasets.load_training_samples(tiny_settings(shared_data_dir, "max_images=2"))
    names = [f"{car:012x}_{view:02d}" for car in (0, 1) for view in (1, 2)]
    assert [sample.image_id for sample in samples] == names


def test_load_training_samples_with_use_hq_images_reads_train_hq(data_dir):
    shutil.copytree(data_dir / "train", data_dir / "train_hq")
    samples = datasets.load_training_samples(tiny_settings(data_dir, "use_hq_images=true"))
    assert {sample.image.parent.name for sample in samples} == {"train_hq"}


def test_load_training_samples_with_skip_empty_drops_empty_masks(data_dir, capsys):
    name = "000000000001_02"
    write_mask(data_dir / "train_masks" / f"{name}_mask.gif", np.zeros((48, 72), bool))
    kept = datasets.load_training_samples(tiny_settings(data_dir, "skip_empty=true"))
    assert len(kept) == 11 and name not in {sample.image_id for sample in kept}
    assert capsys.readouterr().out == f"skip_empty: 1 masks show only background: {name}\n"


def test_load_training_samples_rejects_names_that_group_regex_does_not_match(data_dir):
    shutil.move(data_dir / "train/000000000001_02.jpg", data_dir / "train/car.jpg")
    masks = data_dir / "train_masks"
    shutil.move(masks / "000000000001_02_mask.gif", masks / "car_mask.gif")
    with pytest.raises(InputError, match=r"car: .*group_regex"):
        datasets.load_training_samples(tiny_settings(data_dir))


def test_load_training_samples_without_folder_explains_the_download(tmp_path):
    with pytest.raises(InputError, match=r"kaggle competitions download.*recipe=demo"):
        datasets.load_training_samples(tiny_settings(tmp_path))


# ---------------------------------------------------------------- test samples


def test_load_test_samples_follows_sample_submission(data_dir):
    sample_submission = data_dir / "sample_submission.csv"
    header, *lines = sample_submission.read_text().splitlines()
    sample_submission.write_text("\n".join([header, *reversed(lines)]) + "\n")
    names = [s.image.name for s in datasets.load_test_samples(tiny_settings(data_dir))]
    assert names == [line.split(",")[0] for line in reversed(lines)]


def test_load_test_samples_without_sample_submission_is_sorted_by_name(data_dir):
    (data_dir / "sample_submission.csv").unlink()
    samples = datasets.load_test_samples(tiny_settings(data_dir))
    assert [s.image.name for s in samples] == sorted(p.name for p in (data_dir / "test").iterdir())
    assert all(sample.mask is None for sample in samples)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_load_test_samples_rejects_a_folder_that_differs_from_sample_submission(data_dir, change):
    image, extra = data_dir / "test/000000000004_01.jpg", data_dir / "test/00000000000f_01.jpg"
    image.unlink() if change == "missing" else shutil.copy(image, extra)
    with pytest.raises(InputError, match=f"1 {change}"):
        datasets.load_test_samples(tiny_settings(data_dir))


def test_has_test_images_looks_for_the_folder(data_dir):
    assert datasets.has_test_images(tiny_settings(data_dir))
    shutil.rmtree(data_dir / "test")
    assert not datasets.has_test_images(tiny_settings(data_dir))


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(dataset_format="carvana"), "17f474db7cf0"),
        (Settings(dataset_format="pets", trimap_border="class"), "8f26b58e9f2b"),
        (Settings(dataset_format="pairs", label_color_tolerance=5), "d1c7f5659eaa"),
    ],
)
def test_dataset_fingerprint_is_that_of_the_first_release(tmp_path, settings, expected):
    class_map, dataset_format = datasets.get_class_map(settings), settings.dataset_format
    samples = []
    for i in range(2):
        mask = tmp_path / f"{i}.png"
        mask.write_bytes(b"x" * (10 + i))
        image = tmp_path / f"{i}.jpg"
        samples.append(Sample(image, f"g{i}", mask, i, dataset_format, class_map))
    assert datasets.dataset_fingerprint(samples) == expected
    assert datasets.dataset_fingerprint(samples[::-1]) == expected
    other_fold = [replace(samples[0], fold=1), samples[1]]
    assert datasets.dataset_fingerprint(other_fold) != expected


def test_describe_dataset_counts_images_and_bytes(shared_data_dir):
    settings = tiny_settings(shared_data_dir)
    samples = datasets.load_training_samples(settings)
    description = datasets.describe_dataset(settings, samples)
    assert description["images"] == 12
    assert description["bytes"] == sum(
        p.stat().st_size for p in (shared_data_dir / "train").iterdir()
    )
    assert description["fingerprint"] == datasets.dataset_fingerprint(samples)
