"""The cache: what it holds, where it is, and when it is written again."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_settings_args
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from tiny_datasets import draw_car, make_cityscapes_pairs, make_data, make_pets, write_mask

from core import config, machine
from core.errors import InputError
from data import cache, datasets
from data.cache import load_sample, make_cache
from data.fingerprint import files_hash
from data.preprocess import Preprocessing, preprocessing_from


@pytest.fixture
def settings(data_dir):
    return config.load_settings(tiny_settings_args(data_dir, data_dir / "output"))


# ---------------------------------------------------------------- content


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    """Tiny datasets of all formats that can be cached. Read-only."""
    folder = tmp_path_factory.mktemp("cache")
    make_data(folder / "carvana")
    make_pets(folder / "pets")
    make_cityscapes_pairs(folder / "pairs")
    return folder


@pytest.mark.parametrize("location", ["ram", "disk"])
@pytest.mark.parametrize(
    ("dataset_format", "dtype"), [("carvana", bool), ("pets", np.uint8), ("pairs", np.uint8)]
)
def test_cache_holds_what_decoding_gives(shared_folder, tmp_path, dataset_format, dtype, location):
    args = [f"dataset_format={dataset_format}", f"data_dir={shared_folder / dataset_format}"]
    args += [f"output_dir={tmp_path}", f"cache={location}", "size=[32,48]", "group_regex=(.+)"]
    settings = config.load_settings([*args, "trimap_border=class"])
    samples = datasets.load_samples(settings, "train")
    cached = make_cache(settings, samples)
    assert cached.size == (32, 48) and cached.preprocessing == preprocessing_from(settings)
    for sample in samples[::-1]:
        image, target, mask = load_sample(sample, cached.preprocessing)
        cached_image, cached_target = cached.image_and_target(sample)
        assert np.array_equal(cached_image, image) and np.array_equal(cached_target, target)
        assert np.array_equal(cached.mask(sample), mask)
        assert cached.mask(sample).dtype == mask.dtype == dtype


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 255))
)
def test_unpack_mask_inverts_pack_mask(mask):
    for packed in (mask, mask.T, mask > 127):
        unpacked = cache.unpack_mask(cache.pack_mask(packed))
        assert np.array_equal(unpacked, packed) and unpacked.flags.writeable


@pytest.mark.parametrize("size", [(32, 48), (96, 144), None])
def test_load_sample_resizes_image_and_target_to_full_coverage(settings, size):
    sample = datasets.load_training_samples(settings)[0]
    image, target, mask = load_sample(sample, Preprocessing(size))
    assert image.shape[:2] == target.shape == (size or mask.shape)
    assert target.min() == 0 and target.max() == 255
    is_soft = ((target > 0) & (target < 255)).any()
    assert is_soft == (size is not None)


# ---------------------------------------------------------------- location


def test_make_cache_auto_uses_memory_then_disk_then_nothing(settings, monkeypatch, capsys):
    samples = datasets.load_training_samples(settings)
    assert not isinstance(make_cache(settings, samples).pixels, np.memmap)
    assert "cached in memory" in capsys.readouterr().out
    monkeypatch.setattr(machine, "available_memory", lambda: 1000)
    assert isinstance(make_cache(settings, samples).pixels, np.memmap)
    assert f"cached in {settings.output_dir}" in capsys.readouterr().out
    settings.size = [16, 24]  # for which no file exists
    monkeypatch.setattr(cache, "free_disk_bytes", lambda folder: 1000)
    assert make_cache(settings, samples) is None
    assert "not cached" in capsys.readouterr().out
    settings.cache = "ram"
    with pytest.raises(InputError, match="cache=none"):
        make_cache(settings, samples)


@pytest.mark.parametrize(("factor", "place"), [(2.01, "disk"), (2, "none"), (1.5, "none")])
def test_choose_location_takes_a_place_of_more_than_twice_the_bytes(
    tmp_path, monkeypatch, factor, place
):
    monkeypatch.setattr(cache, "free_disk_bytes", lambda folder: factor * 1000)
    for free_memory, expected in ((0, place), (factor * 1000, place.replace("disk", "ram"))):
        monkeypatch.setattr(cache, "available_ram", lambda free=free_memory: free)
        assert cache.choose_location("auto", 1000, tmp_path / "a.npy") == expected


def test_make_cache_auto_prefers_the_disk_for_several_processes(settings, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    samples = datasets.load_training_samples(settings)
    assert isinstance(make_cache(settings, samples).pixels, np.memmap)


def test_make_cache_of_several_sizes_is_none_or_an_error(settings):
    samples = datasets.load_training_samples(settings)
    image, mask = draw_car(0, 1, (40, 60))
    Image.fromarray(image).save(samples[0].image)
    write_mask(samples[0].mask, mask)
    settings.size, settings.batch_size = None, 1
    assert make_cache(settings, samples) is None
    settings.cache = "ram"
    with pytest.raises(InputError, match="several sizes"):
        make_cache(settings, samples)


def test_disk_cache_is_reused_until_a_file_changes(settings):
    settings.cache = "disk"
    samples = datasets.load_training_samples(settings)

    def modification_times():
        make_cache(settings, samples)
        folder = Path(settings.output_dir) / "cache"
        return {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}

    first = modification_times()
    assert len(first) == 1 and modification_times() == first
    changed = np.arange(48 * 72).reshape(48, 72) % 72 < 36
    write_mask(samples[0].mask, changed)
    assert np.array_equal(make_cache(settings, samples).mask(samples[0]), changed)
    assert len(modification_times()) == 2


def test_files_hash_depends_on_files_preprocessing_classes_and_format(settings):
    samples = datasets.load_training_samples(settings)
    preprocessing = Preprocessing((32, 48))
    key = files_hash(samples, preprocessing)
    assert files_hash(list(samples), Preprocessing((32, 48))) == key
    class_map = replace(samples[0].class_map, max_color_distance=1)
    others = [
        files_hash(samples[1:], preprocessing),
        files_hash(samples, Preprocessing((32, 48), letterbox=True)),
        files_hash([replace(s, class_map=class_map) for s in samples], preprocessing),
        files_hash([replace(s, dataset_format="pairs") for s in samples], preprocessing),
    ]
    for path in (samples[0].image, samples[0].mask):  # replaced by another file of the same size
        os.utime(path, (1, 1))
        others.append(files_hash(samples, preprocessing))
    assert len({key, *others}) == 7


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("kept", [0, 100, -1])
def test_disk_cache_that_is_cut_off_is_an_input_error(settings, suffix, kept):
    settings = replace(settings, cache="disk")
    samples = datasets.load_samples(settings, "train")
    make_cache(settings, samples)
    [path] = Path(settings.output_dir).glob(f"cache/*{suffix}")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"damaged \(.*\); delete both"):
        make_cache(settings, samples)


def test_choose_location_waits_for_a_file_that_is_being_written(tmp_path):
    (tmp_path / ".a.npy.123.tmp").touch()
    assert cache.choose_location("auto", 1, tmp_path / "a.npy") == "disk"


def test_disk_cache_without_its_masks_is_written_again(settings):
    settings.cache, samples = "disk", datasets.load_training_samples(settings)
    expected = make_cache(settings, samples).mask(samples[0])
    [masks] = (Path(settings.output_dir) / "cache").glob("*.npz")
    masks.unlink()
    assert np.array_equal(make_cache(settings, samples).mask(samples[0]), expected)
