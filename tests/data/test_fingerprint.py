"""Fingerprint of a dataset: what changes it, and that of the first release; hash of its files."""

import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from core.settings import Settings
from data import datasets
from data.classes import ClassMap
from data.fingerprint import (
    combine_fingerprints,
    dataset_fingerprint,
    files_hash,
    image_identity,
    is_same_dataset,
    mask_identity,
)
from data.sample import Sample

CAR = ClassMap(("car",), ((255, 255, 255),))


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
        image.write_bytes(b"image")
        samples.append(Sample(image, f"g{i}", mask, i, dataset_format, class_map))
    first = dataset_fingerprint(samples)
    assert first.partition("-")[0] == expected
    assert dataset_fingerprint(samples[::-1]) == first
    assert is_same_dataset(first, first) and is_same_dataset(expected, first)
    other_fold = [replace(samples[0], fold=1), samples[1]]
    assert not is_same_dataset(first, dataset_fingerprint(other_fold))
    samples[1].image.write_bytes(b"another image")
    other_image = dataset_fingerprint(samples)
    assert first.split("-")[:2] == other_image.split("-")[:2]
    assert not is_same_dataset(first, other_image)
    samples[1].mask.write_bytes(b"y" * 11)  # of the same size
    other_mask = dataset_fingerprint(samples)
    assert other_mask.partition("-")[0] == expected
    assert combine_fingerprints([other_mask]) != combine_fingerprints([first])


def test_combine_fingerprints_completes_those_of_earlier_versions():
    assert combine_fingerprints(["a", "a-b-c"]) == "a-b"
    assert combine_fingerprints(["a"]) == "a"
    assert combine_fingerprints(["a-b-c", "a-d-c"]) == "a-b a-d"


def test_dataset_fingerprint_changes_with_the_masks_of_a_csv(tmp_path):
    csv, class_map = tmp_path / "train_masks.csv", datasets.get_class_map(Settings())
    samples = [Sample(tmp_path / "a.jpg", "a", csv, 0, "carvana", class_map)]
    samples[0].image.write_bytes(b"image")
    csv.write_text("img,rle_mask\na.jpg,1 2\nb.jpg,3 4\n")
    first = dataset_fingerprint(samples)
    csv.write_text("img,rle_mask\na.jpg,3 4\nb.jpg,1 2\n")  # of the same size
    os.utime(csv, ns=(1, 1))  # clocks of file systems may be coarse
    assert dataset_fingerprint(samples) != first


def test_mask_identity_of_a_file_of_all_masks_is_that_of_its_content(tmp_path):
    path, identities = tmp_path / "masks.json", set()
    for text in ('{"a": 1}', '{"a": 2}'):
        path.write_text(text)
        os.utime(path, ns=(1, len(identities)))  # clocks of file systems may be coarse
        identities.add(mask_identity(path))
    assert len(identities) == 2


@pytest.mark.parametrize("suffix", [".bmp", ".tif"])
def test_mask_identity_of_an_uncompressed_file_is_that_of_its_content(tmp_path, suffix):
    identities = set()
    for x in (1, 2):
        mask = np.zeros((8, 8), np.uint8)
        mask[2:4, x : x + 2] = 255
        Image.fromarray(mask).save(tmp_path / f"a{suffix}")
        identities.add(mask_identity(tmp_path / f"a{suffix}"))
    assert len(identities) == 2


@pytest.mark.parametrize("suffix", [".bmp", ".tif"])
def test_image_identity_of_an_uncompressed_file_changes_with_its_pixels(tmp_path, suffix):
    identities = set()
    for value in (1, 2):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / f"a{suffix}")
        identities.add(image_identity(tmp_path / f"a{suffix}"))
    assert len(identities) == 2


def test_image_identity_of_a_compressed_file_is_its_size(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    assert image_identity(tmp_path / "a.jpg") == 5


def test_dataset_fingerprint_changes_if_two_masks_of_equal_size_are_swapped(tmp_path):
    class_map, samples = datasets.get_class_map(Settings()), []
    for name in ("a", "b"):
        image, mask = tmp_path / f"{name}.jpg", tmp_path / f"{name}.png"
        image.write_bytes(b"image")
        mask.write_bytes(name.encode())
        samples.append(Sample(image, name, mask, 0, "carvana", class_map))
    first = dataset_fingerprint(samples)
    samples[0].mask.write_bytes(b"b")
    samples[1].mask.write_bytes(b"a")
    for sample in samples:
        os.utime(sample.mask, ns=(1, 1))  # clocks of file systems may be coarse
    assert combine_fingerprints([dataset_fingerprint(samples)]) != combine_fingerprints([first])


def test_dataset_fingerprint_changes_with_mask_threshold(tmp_path):
    fingerprints = set()
    for threshold in (0, 1, 128):
        class_map = datasets.get_class_map(Settings(mask_threshold=threshold))
        sample = Sample(tmp_path / "a.jpg", "a", tmp_path / "a.png", 0, "carvana", class_map)
        sample.image.write_bytes(b"image")
        sample.mask.write_bytes(b"mask")
        fingerprints.add(combine_fingerprints([dataset_fingerprint([sample])]))
    assert len(fingerprints) == 3


def test_files_hash_differs_between_folders_with_the_same_names_sizes_and_times(tmp_path):
    """A folder that is copied with its times, moved or unpacked again keeps its hash."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), np.uint8)
    pixels[1] = pixels[0]
    pixels[1, 40:60] += 1

    def samples_in(name):
        return [Sample(tmp_path / name / "a.bmp", "a", None, 0, "carvana", CAR)]

    for name, image in zip("xy", pixels, strict=True):
        [sample] = samples_in(name)
        sample.image.parent.mkdir()
        cv2.imwrite(str(sample.image), image)
        os.utime(sample.image, (1, 1))
    sizes = {samples_in(name)[0].image.stat().st_size for name in "xy"}
    assert len(sizes) == 1 and sizes.pop() > 4 * 4096  # too large to be hashed as a whole
    key = files_hash(samples_in("x"))
    assert files_hash(samples_in("y")) != key
    shutil.copytree(tmp_path / "x", tmp_path / "copy")  # keeps the times
    assert files_hash(samples_in("copy")) == key


def test_files_hash_of_a_file_that_is_unreadable_or_missing_is_no_error(tmp_path):
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.jpg").mkdir()
    for path in tmp_path.iterdir():
        sample = Sample(path, "a", None, 0, "carvana", CAR)
        assert files_hash([sample]) == files_hash([sample])
