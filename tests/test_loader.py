"""Augmentation and batches: every image once, every draw its own, the same bytes on any machine."""

import importlib

import cv2
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from conftest import draw_car, write_mask
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from core import config
from core.errors import InputError
from core.settings import Settings
from data import augment, cache, classes, datasets, image_io, loaders, ondevice, preprocess
from data.augment import POLICIES, Augmenter
from data.cache import make_cache
from data.preprocess import Preprocessing

CAR = classes.carvana_class_map(Settings())


@pytest.fixture
def settings(data):
    """Settings under which the tiny data set is read."""
    words = [
        f"output_dir={data / 'output'}",
        "dataset_name=tiny",
        "size=[32,48]",
        "batch_size=5",
        "augmentation=strong",
        "device=cpu",
        "num_workers=0",
    ]
    return config.load_settings([f"data_dir={data}", f"folds_csv={data / 'folds.csv'}", *words])


def batches_of(settings, epochs, kept=None, **changes):
    """All batches of some epochs, as (images, masks)."""
    for name, value in changes.items():
        setattr(settings, name, value)
    made = loaders.train_loader(datasets.load_training_samples(settings), settings, kept)
    out = []
    for epoch in epochs:
        made.batch_sampler.epoch = epoch
        out += list(made)
    return out


def equal(first, second):
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


# ---------------------------------------------------------------- augmentation


def test_what_comes_in_from_outside_is_of_no_class():
    scheme = classes.cityscapes_class_map(Settings(dataset_format="pairs"))
    change, road = Augmenter("paper", 0, scheme), np.full((32, 32), 7, np.uint8)
    seen = [change(np.zeros((32, 32, 3), np.uint8), road, epoch, "a")[1] for epoch in range(40)]
    assert set(np.unique(seen)) == {7, classes.IGNORE}


@pytest.mark.parametrize("policy", POLICIES)
def test_shapes_and_types_stay_and_the_mask_stays_coverage(policy):
    image, mask = draw_car(0, 1, (48, 72))
    mask = mask.astype(np.uint8) * 255
    change = Augmenter(policy, 0, CAR)
    for epoch in range(8):
        new_image, new_mask = change(image, mask, epoch, "a")
        assert new_image.shape == image.shape and new_image.dtype == np.uint8
        assert new_mask.shape == mask.shape and new_mask.dtype == np.uint8


@pytest.mark.parametrize("policy", ["flip", "light", "strong"])
def test_draws_depend_on_seed_epoch_and_image_and_on_nothing_else(policy):
    image, mask = draw_car(0, 1, (48, 72))
    mask = mask.astype(np.uint8)

    def draws(seed, image_id, first=0):
        fresh, epochs = Augmenter(policy, seed, CAR), range(first, first + 12)
        return [fresh(image, mask, epoch, image_id)[0].tobytes() for epoch in epochs]

    assert draws(0, "a") == draws(0, "a")
    assert len(set(draws(0, "a"))) > 1
    others = [draws(1, "a"), draws(0, "b"), draws(1, "a", first=-1)]  # seed 1 is no later epoch
    assert all(draws(0, "a") != other for other in others)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_turns_a_car_over(policy):
    image = np.full((48, 72, 3), 100, np.uint8)
    image[:24] = 200
    change = Augmenter(policy, 0, CAR)
    for epoch in range(40):
        new = change(image, image[..., 0], epoch, "a")[0].mean(axis=2)
        middle = (new[new > 5].min() + new.max()) / 2
        bright, dark = new > middle, (new > 5) & (new <= middle)  # black is what lies outside
        assert np.argwhere(bright)[:, 0].mean() + 12 < np.argwhere(dark)[:, 0].mean()


def test_flip_is_an_exact_mirror_half_of_the_time():
    image, mask = draw_car(0, 1, (48, 72))
    mask = mask.astype(np.uint8)
    change, mirrored = Augmenter("flip", 0, CAR), 0
    for epoch in range(200):
        new_image, new_mask = change(image, mask, epoch, "a")
        turned = not np.array_equal(new_image, image)
        mirrored += turned
        assert np.array_equal(new_mask, mask[:, ::-1] if turned else mask)
        assert np.array_equal(new_image, image[:, ::-1] if turned else image)
    assert 70 < mirrored < 130


def test_a_warp_moves_the_mask_with_the_image():
    _, mask = draw_car(0, 1, (96, 144))
    mask = mask.astype(np.uint8) * 255
    warp = augment._affine(0.2, 0.1, 10, p=1)
    for seed in range(10):
        warp.set_random_seed(seed)
        done = warp(image=np.stack([mask] * 3, -1), mask=mask)
        assert np.abs(done["image"][..., 0].astype(int) - done["mask"]).max() <= 1
        assert ((done["mask"] > 0) & (done["mask"] < 255)).any()  # soft at the edge, not cut


def test_an_argument_that_albumentations_does_not_know_is_an_error():
    importlib.reload(augment)  # pytest has put the module's filter aside
    with pytest.raises(UserWarning, match="not valid"):
        augment.A.HorizontalFlip(probability=0.5)


# ---------------------------------------------------------------- batches


def test_every_image_comes_once_an_epoch_also_in_the_last_small_batch(settings):
    sizes = [len(images) for images, _ in batches_of(settings, [0])]
    assert sizes == [5, 5, 2]
    shuffle = loaders.EpochBatchSampler(12, 5, seed=0)
    assert sorted(i for step in shuffle for _, i in step) == list(range(12))


def test_orders_differ_by_epoch_and_seed_and_are_repeated():
    def order(seed, epoch):
        shuffle = loaders.EpochBatchSampler(30, 4, seed)
        shuffle.epoch = epoch
        return [i for step in shuffle for _, i in step]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


@pytest.mark.parametrize(
    ("count", "batch", "world"), [(13, 4, 2), (9, 4, 4), (12, 8, 3), (5, 2, 2)]
)
def test_processes_share_every_step_and_see_each_image_once(monkeypatch, count, batch, world):
    """By the very sampler that accelerate puts around ours; an image that stands in for one that
    is not there does not count."""
    monkeypatch.setenv("WORLD_SIZE", str(world))
    shuffle, seen = loaders.EpochBatchSampler(count, batch, seed=0), []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        steps = list(BatchSamplerShard(shuffle, world, rank, even_batches=False))
        assert len(steps) == -(-count // batch)
        for step, keys in enumerate(steps):
            mine, whole = shuffle.counts(step)
            assert len(keys) == max(mine, 1) and whole == min(batch, count - step * batch)
            seen += [i for _, i in keys[:mine]]
    assert sorted(seen) == list(range(count))


def test_an_interrupted_epoch_goes_on_with_the_steps_that_are_left():
    shuffle = loaders.EpochBatchSampler(13, 4, seed=0)
    whole, shuffle.start = list(shuffle), 2
    assert list(shuffle) == whole[2:]


def test_keys_carry_the_epoch_for_the_augmentation(settings):
    shuffle = loaders.EpochBatchSampler(3, 2, seed=0)
    shuffle.epoch = 7
    assert {epoch for step in shuffle for epoch, _ in step} == {7}
    images = loaders.TrainDataset(datasets.load_training_samples(settings), settings, None, False)
    assert len({images[(epoch, 0)][0].numpy().tobytes() for epoch in range(4)}) > 1


def test_batches_are_the_same_with_workers_and_with_the_cache(settings):
    rows = datasets.load_training_samples(settings)
    plain = batches_of(settings, [0, 1], workers=0)
    assert equal(plain, batches_of(settings, [0, 1], workers=2))
    assert equal(
        plain,
        batches_of(
            settings,
            [0, 1],
            cache.build_ram_cache(rows, Preprocessing((32, 48)), (32, 48)),
            workers=0,
        ),
    )
    assert not equal(plain[:3], plain[3:])


def test_auto_cache_gives_way_where_memory_is_short(settings, monkeypatch):
    rows = datasets.load_training_samples(settings)
    assert isinstance(make_cache(settings, rows).pixels, np.ndarray)
    short = type("Memory", (), {"available": 1000})
    monkeypatch.setattr(cache.psutil, "virtual_memory", short)
    assert isinstance(make_cache(settings, rows).pixels, np.memmap)
    settings.size = [16, 24]  # the file of another size is there already
    monkeypatch.setattr(cache, "disk_room", lambda folder: 1000)
    assert make_cache(settings, rows) is None
    settings.cache = "ram"
    with pytest.raises(InputError, match="cache=none"):
        make_cache(settings, rows)


@pytest.mark.parametrize("place", ["ram", "disk"])
def test_a_cache_holds_what_decoding_gives(settings, place, tmp_path):
    settings.cache, settings.output_dir = place, str(tmp_path)
    rows = datasets.load_training_samples(settings)
    kept, given = make_cache(settings, rows), Preprocessing((32, 48))
    for row in rows[::-1]:
        image, mask = cache.load_image_and_target(row, given, image_io.read_sample_mask(row))
        assert np.array_equal(kept.pair(row)[0], image) and np.array_equal(kept.pair(row)[1], mask)
        assert (
            np.array_equal(kept.truth(row), image_io.read_sample_mask(row))
            and kept.truth(row).dtype == bool
        )


def test_a_disk_cache_is_made_once_and_again_where_a_file_has_changed(settings, tmp_path):
    settings.cache, settings.output_dir = "disk", str(tmp_path)
    rows = datasets.load_training_samples(settings)
    make_cache(settings, rows)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.npy")}
    make_cache(settings, rows)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.npy")} == made
    changed = np.arange(48 * 72).reshape(48, 72) % 72 < 36
    write_mask(rows[0].mask, changed)
    assert np.array_equal(make_cache(settings, rows).truth(rows[0]), changed)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2))
)
def test_packed_labels_come_back(label):
    packed = cache.concat_runs([cache.encode_runs(label), cache.encode_runs(label.T)])
    for i, wanted in enumerate((label, label.T)):
        runs = slice(*packed["ends"][i : i + 2])
        found = np.repeat(packed["values"][runs], packed["lengths"][runs])
        assert np.array_equal(found.reshape(packed["shapes"][i]), wanted)


def test_photographs_from_the_cache_are_those_from_the_files(settings):
    rows = datasets.load_training_samples(settings)[2:7]
    kept = cache.build_ram_cache(
        datasets.load_training_samples(settings), Preprocessing((32, 48)), (32, 48)
    )
    made = [
        [
            photo
            for batch in loaders.prediction_loader(
                rows, {kept.preprocessing}, settings, True, source
            )
            for photo in batch
        ]
        for source in (None, kept)
    ]
    for plain, cached in zip(*made, strict=True):
        assert plain.sample == cached.sample and plain.native_size == cached.native_size
        assert np.array_equal(plain.truth_csv, cached.truth)
        assert torch.equal(plain.images[kept.preprocessing], cached.images[kept.preprocessing])


def test_images_of_several_sizes_are_not_kept(settings):
    rows = datasets.load_training_samples(settings)
    picture, mask = draw_car(0, 1, (40, 60))
    Image.fromarray(picture).save(rows[0].image)
    write_mask(rows[0].mask, mask)
    settings.size, settings.batch_size = None, 1
    assert make_cache(settings, rows) is None


@pytest.mark.parametrize(
    ("enough", "size"), [((60, 90), (60, 90)), ((61, 90), (120, 180)), ((15, 20), (15, 23))]
)
def test_a_jpeg_is_decoded_no_larger_than_enough(tmp_path, enough, size):
    path = tmp_path / "a.jpg"
    picture = cv2.resize(draw_car(0, 1, (48, 72))[0], (180, 120))
    Image.fromarray(picture).save(path, quality=95)
    found = image_io.read_image(path, enough)
    assert found.shape[:2] == size
    wanted = cv2.resize(image_io.read_image(path), size[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - wanted).mean() < 5


def test_resizing_a_mask_by_area_gives_the_covered_part():
    mask = np.random.default_rng(0).integers(0, 2, (12, 18), dtype=np.uint8) * 255
    small = preprocess.preprocess_image(mask, Preprocessing((4, 6)))
    blocks = mask.reshape(4, 3, 6, 3).mean(axis=(1, 3))
    assert np.abs(small - blocks).max() <= 0.5


def test_a_pair_is_resized_together_and_coverage_goes_up_to_255(settings):
    row = datasets.load_training_samples(settings)[0]
    for size in ((32, 48), (96, 144), None):
        image, mask = cache.load_image_and_target(
            row, Preprocessing(size), image_io.read_sample_mask(row)
        )
        assert image.shape[:2] == mask.shape == (size or (48, 72))
        assert mask.min() == 0 and mask.max() == 255
    assert ((mask == 0) | (mask == 255)).all()
    large = cache.load_image_and_target(
        row, Preprocessing((96, 144)), image_io.read_sample_mask(row)
    )[1]
    assert ((large > 0) & (large < 255)).any()  # enlarged smoothly


def test_a_mask_that_does_not_fit_its_photograph_is_noticed_when_scoring(settings):
    rows = datasets.load_training_samples(settings)
    write_mask(rows[0].mask, np.ones((40, 72), bool))
    with pytest.raises(InputError, match=rows[0].mask.name):
        list(loaders.prediction_loader(rows, {Preprocessing(None)}, settings, True))


def test_photographs_come_in_order_with_their_own_size_and_truth(settings):
    rows = datasets.load_training_samples(settings)
    inputs = {Preprocessing((32, 48)), Preprocessing(None)}
    photos = [p for batch in loaders.prediction_loader(rows, inputs, settings, True) for p in batch]
    assert [photo.sample for photo in photos] == rows
    for photo in photos:
        image = image_io.read_image(photo.sample.image)
        assert photo.native_size == (48, 72) and photo.images[Preprocessing((32, 48))].shape == (
            3,
            32,
            48,
        )
        assert np.array_equal(photo.images[Preprocessing(None)].permute(1, 2, 0), image)
        assert np.array_equal(photo.truth, image_io.read_mask(photo.sample.mask))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_one_line_also_from_a_worker(settings, data, workers):
    settings.num_workers = workers
    rows = datasets.load_training_samples(settings)
    whole = rows[3].image.read_bytes()
    rows[3].image.write_bytes(whole[: len(whole) // 2])  # OpenCV would give half a picture
    with pytest.raises(InputError) as error:
        list(loaders.prediction_loader(rows, {Preprocessing(None)}, settings, False))
    assert str(error.value).startswith(str(rows[3].image)) and "\n" not in str(error.value)


# ---------------------------------------------------------------- on the device


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scheme", [CAR, classes.cityscapes_class_map(Settings())])
def test_the_device_does_what_the_cpu_does(policy, scheme):
    """The same draws, and the same pixels but for OpenCV's coarser arithmetic."""
    image, mask = draw_car(0, 1, (48, 72))
    image = cv2.GaussianBlur(image, (0, 0), 2)  # a photograph has no such edges
    target = mask.astype(np.uint8) * (255 if scheme.is_binary else 1)
    change, struck = Augmenter(policy, 0, scheme), 0
    batch = [loaders.to_tensors(image, target) for _ in range(40)]
    numbers = [ondevice.draws(change, epoch, "a", (48, 72)) for epoch in range(40)]
    pair = (torch.stack(part) for part in zip(*batch, strict=True))
    images, targets = ondevice.augmented(*pair, torch.stack(numbers), change)
    for epoch in range(40):
        wanted, wanted_target = change(image, target, epoch, "a")
        found = images[epoch].permute(1, 2, 0).numpy()
        assert np.abs(found.astype(int) - wanted).mean() < 4
        assert (np.abs(targets[epoch, 0].numpy().astype(int) - wanted_target) > 8).mean() < 0.02
        struck += not np.array_equal(wanted, image)
        if policy in ("none", "flip"):
            assert np.array_equal(found, wanted)
            assert np.array_equal(targets[epoch, 0], wanted_target)
    assert struck > 2 or policy == "none"


def test_batches_augmented_on_the_device_come_from_files_cache_and_device_alike(settings):
    rows = datasets.load_training_samples(settings)
    settings.augment_on = "gpu"
    kept = cache.build_ram_cache(rows, Preprocessing((32, 48)), (32, 48))
    records, made = torch.from_numpy(kept.pixels), []
    for source, stays in ((None, False), (kept, False), (kept, True)):
        for batch in loaders.train_loader(rows, settings, source, stays):
            pair, numbers = batch[:-1], batch[-1]
            pair = ondevice.gathered(records, *pair, kept.size) if stays else pair
            made.append((stays, source is kept, *pair, numbers))
    third = len(made) // 3
    for first, second, last in zip(
        made[:third], made[third : 2 * third], made[2 * third :], strict=True
    ):
        for a, b, c in zip(first[2:], second[2:], last[2:], strict=True):
            assert torch.equal(a, b) and torch.equal(b, c)
