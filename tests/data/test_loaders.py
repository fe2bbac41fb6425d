"""Batches: every sample once an epoch, and the same bytes with any number of processes."""

import multiprocessing
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_rejected, tiny_settings_args
from tiny_datasets import write_mask
from torch.utils.data._utils.pin_memory import pin_memory

from core import config, machine, process_env
from core.errors import InputError
from data import datasets, image_io, loaders, mask_io, workers
from data.cache import build_ram_cache
from data.preprocess import Preprocessing
from data.sampler import EpochBatchSampler

SIZE = (32, 48)


def load_tiny_settings(data_dir):
    args = tiny_settings_args(data_dir, data_dir / "output")
    settings = config.load_settings([*args, "augmentation=strong"])
    settings.batch_size = 5
    return settings


@pytest.fixture
def settings(shared_data_dir):
    """Settings of a tiny dataset that tests must not change."""
    return load_tiny_settings(shared_data_dir)


@pytest.fixture
def writable_settings(data_dir):
    """Settings of a tiny dataset that the test may change."""
    return load_tiny_settings(data_dir)


# ---------------------------------------------------------------- EpochBatchSampler


def sampled_indices(sampler):
    return [[i for _, i in keys] for keys in sampler]


def test_sampler_order_is_that_of_the_first_release():
    sampler = EpochBatchSampler(7, 3, seed=1)
    sampler.epoch = 2
    assert [key for keys in sampler for key in keys] == [(2, i) for i in (0, 6, 5, 1, 4, 3)]
    sampler = EpochBatchSampler(8, 3, seed=1)
    assert sampled_indices(sampler) == [[5, 0, 1], [4, 2, 6]]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(12, 4, [4, 4, 4]), (14, 4, [4, 4, 4]), (3, 1, [1, 1, 1]), (1, 4, [1]), (3, 4, [3])],
)
def test_sampler_steps_have_one_size_and_no_sample_twice(count, batch_size, sizes):
    sampler = EpochBatchSampler(count, batch_size, seed=0)
    steps = sampled_indices(sampler)
    assert [len(indices) for indices in steps] == sizes and len(sampler) == len(sizes)
    drawn = [i for indices in steps for i in indices]
    assert len(set(drawn)) == len(drawn) == sum(sizes) and set(drawn) <= set(range(count))


def test_sampler_leaves_out_other_samples_in_each_epoch():
    sampler, left_out = EpochBatchSampler(7, 3, seed=0), set()
    for sampler.epoch in range(30):
        left_out |= set(range(7)) - {i for indices in sampled_indices(sampler) for i in indices}
    assert left_out == set(range(7))


def test_sampler_order_differs_by_epoch_and_seed_and_is_repeated():
    def order(seed, epoch):
        sampler = EpochBatchSampler(30, 4, seed)
        sampler.epoch = epoch
        return [i for indices in sampled_indices(sampler) for i in indices]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4
    assert all(len(set(order(0, epoch))) == 28 for epoch in range(3))


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size"), [(13, 4, 2), (9, 4, 4), (12, 6, 3), (5, 2, 2), (7, 8, 2)]
)
def test_sampler_divides_every_step_evenly_among_ranks(monkeypatch, count, batch_size, world_size):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    n_samples = min(batch_size, count) // world_size * world_size
    joined = [[] for _ in range(count // n_samples)]
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        steps = sampled_indices(EpochBatchSampler(count, batch_size, seed=0))
        assert all(len(indices) == n_samples // world_size for indices in steps)
        joined = [so_far + indices for so_far, indices in zip(joined, steps, strict=True)]
    monkeypatch.undo()
    assert joined == sampled_indices(EpochBatchSampler(count, n_samples, seed=0))


def test_sampler_with_start_yields_the_remaining_steps():
    sampler = EpochBatchSampler(13, 4, seed=0)
    whole, sampler.start = list(sampler), 2
    assert list(sampler) == whole[2:]


# ---------------------------------------------------------------- train_loader


def load_batches(settings, epochs, cache=None, num_workers=0):
    """Return all batches of some epochs as (images, targets)."""
    settings.num_workers = num_workers
    loader = loaders.train_loader(datasets.load_training_samples(settings), settings, cache)
    batches = []
    for epoch in epochs:
        loader.batch_sampler.epoch = epoch
        batches += list(loader)
    return batches


def assert_equal_batches(first, second):
    for (images, targets), (other_images, other_targets) in zip(first, second, strict=True):
        assert torch.equal(images, other_images) and torch.equal(targets, other_targets)


def test_train_loader_yields_uint8_batches_of_one_size(settings):
    batches = load_batches(settings, [0])
    assert [len(images) for images, _ in batches] == [5, 5]
    for images, targets in batches:
        assert images.dtype == targets.dtype == torch.uint8
        assert images.shape[1:] == (3, *SIZE) and targets.shape == (len(images), 1, *SIZE)


def test_train_loader_does_not_depend_on_workers_and_cache(settings):
    samples = datasets.load_training_samples(settings)
    expected = load_batches(settings, [0, 1])
    assert_equal_batches(load_batches(settings, [0, 1], num_workers=2), expected)
    cache = build_ram_cache(samples, Preprocessing(SIZE), SIZE)
    assert_equal_batches(load_batches(settings, [0, 1], cache), expected)
    assert not torch.equal(expected[0][0], expected[2][0])  # the epochs differ


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no safe fork")
def test_workers_share_the_cache_whatever_python_starts_them_with(settings):
    """The workers see pixels that are changed after the loader was made: they have no copy."""
    samples = datasets.load_training_samples(settings)
    cache = build_ram_cache(samples, Preprocessing(SIZE), SIZE)
    settings.num_workers, settings.batch_size, settings.augmentation = 1, 1, "none"
    default = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # the default since Python 3.14
    try:
        batches = iter(loaders.train_loader(samples, settings, cache))
        cache.pixels[:] = 7
        # Two batches were prefetched, perhaps before this change.
        assert all((images == 7).all() for images, _ in list(batches)[2:])
    finally:
        multiprocessing.set_start_method(default, force=True)


STOP_AT_A_BAD_IMAGE = """
from core import cli, config, signals
from data import datasets, loaders

signals.ignore_signals_in_worker.__defaults__ = (1,)  # seconds: to be done sooner

def main(args):
    settings = config.load_settings(args)
    for _ in loaders.train_loader(datasets.load_training_samples(settings), settings, None):
        pass

cli.run_main(main)
"""


def test_script_with_workers_ends_in_one_line_at_a_bad_image(data_dir):
    """Workers that ignored the SIGTERM of their parent would keep it from exiting."""
    (data_dir / "train/000000000000_01.jpg").write_bytes(b"not an image")
    args = [*tiny_settings_args(data_dir, data_dir / "output")[:-1], "num_workers=2"]
    completed = subprocess.run(
        [sys.executable, "-c", STOP_AT_A_BAD_IMAGE, *args],
        cwd=ROOT / "src",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert_rejected(completed, "000000000000_01.jpg: cannot be read as an image")


def test_train_dataset_augments_by_epoch(settings):
    samples = datasets.load_training_samples(settings)
    dataset = loaders.TrainDataset(samples, settings, None)
    assert len({dataset[epoch, 0][0].tobytes() for epoch in range(4)}) > 1


@pytest.mark.parametrize("cached", [False, True])
def test_train_loader_crops_whole_images_to_crop_size(settings, cached):
    settings.crop_size = [16, 24]
    samples = datasets.load_training_samples(settings)
    cache = build_ram_cache(samples, Preprocessing(SIZE), SIZE) if cached else None
    images, targets = next(iter(loaders.train_loader(samples, settings, cache)))
    assert images.shape[1:] == (3, 16, 24) and targets.shape[1:] == (1, 16, 24)


# ---------------------------------------------------------------- prediction_loader


def load_for_prediction(samples, preprocessings, settings, with_mask=True, cache=None):
    """Return each LoadedSample with its images, which are empty if it could not be read."""
    loader = loaders.prediction_loader(samples, preprocessings, settings, with_mask, cache)
    return [
        (loaded, {key: stacked[i] for key, stacked in part.images.items()})
        for batch in loader
        for part in batch
        for i, loaded in enumerate(part.samples)
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_prediction_loader_yields_samples_in_order_at_every_size(settings, num_workers):
    settings.num_workers = num_workers
    samples = datasets.load_training_samples(settings)
    small, native = Preprocessing(SIZE), Preprocessing(None)
    pairs = load_for_prediction(samples, {small, native}, settings)
    assert [loaded.sample for loaded, _ in pairs] == samples
    for loaded, images in pairs:
        image = image_io.read_image(loaded.sample.image)
        assert loaded.native_size == (48, 72) and images[small].shape == (3, *SIZE)
        assert np.array_equal(images[native].permute(1, 2, 0), image)
        assert np.array_equal(loaded.mask, mask_io.read_mask(loaded.sample.mask))


def test_prediction_loader_from_cache_equals_from_files(settings):
    samples = datasets.load_training_samples(settings)
    cache = build_ram_cache(samples, Preprocessing(SIZE), SIZE)
    preprocessings = {cache.preprocessing}
    from_files = load_for_prediction(samples[2:7], preprocessings, settings)
    from_cache = load_for_prediction(samples[2:7], preprocessings, settings, cache=cache)
    for (expected, images), (loaded, cached) in zip(from_files, from_cache, strict=True):
        assert loaded.sample == expected.sample and loaded.native_size == expected.native_size
        assert np.array_equal(loaded.mask, expected.mask)
        assert torch.equal(cached[cache.preprocessing], images[cache.preprocessing])


@pytest.mark.parametrize("size", [(40, 72), (72, 48)])  # also with the sides swapped
def test_prediction_loader_rejects_a_mask_of_another_size(writable_settings, size):
    samples = datasets.load_training_samples(writable_settings)
    write_mask(samples[0].mask, np.ones(size, bool))
    with pytest.raises(InputError, match=f"{samples[0].mask.name}: its size is not that of"):
        load_for_prediction(samples, {Preprocessing(SIZE)}, writable_settings)


@pytest.mark.parametrize("i", [0, 3])  # the first one's size is read beforehand
def test_prediction_loader_reports_a_truncated_image_in_one_line(writable_settings, i):
    samples = datasets.load_training_samples(writable_settings)
    data = samples[i].image.read_bytes()
    samples[i].image.write_bytes(data[: len(data) // 2])  # OpenCV would decode the upper half
    preprocessings = {Preprocessing(None)}
    with pytest.raises(InputError) as raised:
        load_for_prediction(samples, preprocessings, writable_settings, with_mask=False)
    line, _, hint = str(raised.value).rpartition("; or ")
    assert line.startswith(str(samples[i].image)) and hint == "set skip_unreadable=true"

    writable_settings.skip_unreadable = True
    pairs = load_for_prediction(samples, preprocessings, writable_settings, with_mask=False)
    assert [k for k, (loaded, _) in enumerate(pairs) if loaded.error] == [i]
    assert pairs[i][0].error == line and not pairs[i][1]


def test_loaded_batch_is_pinned_by_the_loader_one_call_for_each_stack_and_mask(monkeypatch):
    sizes = [(8, 12), (8, 12), (0, 0), (6, 10), (8, 12)]
    loaded = []
    for height, width in sizes:
        error = "" if height else "truncated"
        images = {Preprocessing(None): np.full((height, width, 3), len(loaded), np.uint8)}
        mask = None if error else np.zeros((height, width), bool)
        sample = loaders.LoadedSample(None, (height, width), mask, error)
        loaded.append((sample, {} if error else images))
    batch = loaders.collate_samples(loaded)
    assert [len(part.samples) for part in batch] == [2, 1, 1, 1]
    assert not batch[1].images  # unreadable
    shapes = [part.images[Preprocessing(None)].shape for part in batch if part.images]
    assert shapes == [(2, 3, 8, 12), (1, 3, 6, 10), (1, 3, 8, 12)]
    assert batch[3].images[Preprocessing(None)].unique().item() == 4
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x.shape) or x.clone())
    for part, pinned_part in zip(batch, pin_memory(batch), strict=True):  # as DataLoader does
        assert pinned_part is part
    assert sorted(pinned) == sorted([*shapes, *(size for size in sizes if size[0])])


# ---------------------------------------------------------------- worker processes


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_a_worker_sends_masks_in_shared_memory(dtype):
    rng, images = np.random.default_rng(0), {Preprocessing(SIZE): torch.zeros(2, 3, *SIZE)}
    masks = [rng.integers(0, 2, size).astype(dtype)[:, ::-1] for size in ((500, 80), (90, 700))]
    samples = [loaders.LoadedSample(None, mask.shape, mask) for mask in masks]
    message = ForkingPickler.dumps(loaders.SubBatch(samples, images))
    assert len(message) < 4096  # what a pipe takes at once
    received = ForkingPickler.loads(message)
    assert [sample.mask.dtype for sample in received.samples] == [dtype, dtype]
    assert all(map(np.array_equal, [sample.mask for sample in received.samples], masks))
    assert samples[0].mask is masks[0]  # the sender keeps it
    without_masks = loaders.SubBatch([loaders.LoadedSample(None, (8, 9), None)], {})
    assert ForkingPickler.loads(ForkingPickler.dumps(without_masks)) == without_masks


MB = 10**6


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 64)
    process_env.print_once.cache_clear()


@pytest.mark.parametrize("change", ["none", "mirrored", "read-only"])
def test_collate_stacks_any_arrays_channels_last(change):
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    image = image[:, ::-1] if change == "mirrored" else image
    image.flags.writeable = change != "read-only"
    images, targets = loaders.collate([(image, image[..., 0].copy())] * 2)
    assert images.shape == (2, 3, 4, 6) and targets.shape == (2, 1, 4, 6)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(images[1].permute(1, 2, 0), image)
    assert np.array_equal(targets[1, 0], image[..., 0])


def training_workers(settings, cache=None):
    return loaders.train_loader(
        datasets.load_training_samples(settings), settings, cache
    ).num_workers


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("shared_memory", "size", "processes", "workers"),
    [
        (64 * MB, [1024, 1536], 1, 0),  # a batch of 4 takes 25 MB
        (64 * MB, [512, 768], 1, 4),  # 6 MB
        (64 * MB, [512, 768], 2, 4),  # half of the memory and of the batch
        (64 * MB, [256, 384], 1, 16),
        (1000 * MB, [1024, 1536], 1, 16),
    ],
)
def test_train_loader_has_as_many_workers_as_shared_memory_holds_batches(
    settings, many_cores, monkeypatch, capsys, shared_memory, size, processes, workers
):
    monkeypatch.setattr(machine, "free_shared_memory", lambda: shared_memory)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    settings.num_workers, settings.size, settings.batch_size = None, size, 4
    assert training_workers(settings) == training_workers(settings) == workers
    printed = capsys.readouterr().out
    assert printed.count("--shm-size=8g") == (workers < 16)
    settings.num_workers = 8
    assert training_workers(settings) == min(8, workers)
    line = f"hold the batches of {workers} processes; for more, start the container with "
    assert (line in capsys.readouterr().out) == (workers < 8)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_loaders_have_workers_only_where_they_pay_off(settings, many_cores, monkeypatch):
    """Processes decode and augment; a cached image is read faster than passed on."""
    monkeypatch.setattr(machine, "free_shared_memory", lambda: 10**10)
    settings.num_workers = None
    samples = datasets.load_training_samples(settings)
    cache = build_ram_cache(samples, Preprocessing(SIZE), SIZE)

    def prediction_workers(cache=None):
        args = samples, {Preprocessing(SIZE)}, settings, True, cache
        return loaders.prediction_loader(*args).num_workers

    assert training_workers(settings) == 16 and training_workers(settings, cache) == 0
    assert prediction_workers() == prediction_workers(cache) == 0
    for module in (loaders, workers):
        monkeypatch.setattr(module, "pick_device", lambda settings: torch.device("cuda", 0))
    assert training_workers(settings) == training_workers(settings, cache) == 16
    assert prediction_workers() == 16 and prediction_workers(cache) == 0


SMALL_SHARED_MEMORY = """
import sys, time
sys.path.insert(0, "src")
from core import config, machine
from data import datasets, loaders

machine.available_cores = lambda: 8
settings = config.load_settings(sys.argv[1:])
loader = loaders.train_loader(datasets.load_training_samples(settings), settings, None)
for i, (images, targets) in enumerate(loader):
    time.sleep(3 if i == 0 else 0)  # the workers load as many batches as they may
print(loader.num_workers, "workers,", i + 1, "batches")
"""


def test_train_loader_with_workers_needs_no_more_than_64_mb_of_shared_memory(settings):
    settings_args = [f"data_dir={settings.data_dir}", f"folds_csv={settings.folds_csv}"]
    settings_args += ["dataset_name=tiny", "size=[1024,1536]", "batch_size=2", "device=cpu"]
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm || exit 77; exec "$@"'
    command = ["unshare", "-m", "bash", "-c", mount, "bash", sys.executable, "-c"]
    command += [SMALL_SHARED_MEMORY, *settings_args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode == 77 or "unshare: " in done.stderr:
        pytest.skip("cannot mount a small /dev/shm")
    assert done.stdout.endswith("1 workers, 6 batches\n"), done.stdout + done.stderr
    assert "MB free in /dev/shm hold the batches of 1 processes; " in done.stdout


def test_prediction_loader_with_masks_skips_no_unreadable_image(writable_settings):
    samples = datasets.load_training_samples(writable_settings)
    samples[0].image.write_bytes(b"damaged")
    writable_settings.skip_unreadable = True
    with pytest.raises(InputError, match=samples[0].image.name):
        load_for_prediction(samples, {Preprocessing(SIZE)}, writable_settings)


# ---------------------------------------------------------------- what the loaders are asked for


@pytest.fixture
def asked_workers(monkeypatch):
    """The bytes of a batch for which the loaders ask for workers."""
    asked = []
    monkeypatch.setattr(
        loaders, "choose_num_workers", lambda settings, n_bytes, **_: asked.append(n_bytes) or 0
    )
    return asked


@pytest.mark.parametrize("processes", [1, 2])
def test_train_loader_counts_the_bytes_of_the_crops_of_one_process(
    settings, monkeypatch, asked_workers, processes
):
    samples = datasets.load_training_samples(settings)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    settings.batch_size = 4
    loaders.train_loader(samples, settings, None)
    settings.crop_size = [16, 24]
    loaders.train_loader(samples, settings, None)
    expected = [4 * 32 * 48 * 4, 4 * 16 * 24 * 4]  # three bytes of an image's pixel, one of a mask
    assert asked_workers == [n_bytes // processes for n_bytes in expected]


def test_prediction_loader_counts_the_bytes_of_a_batch_at_every_size(settings, asked_workers):
    samples = datasets.load_training_samples(settings)
    preprocessings = {Preprocessing(SIZE), Preprocessing(None)}
    loaders.prediction_loader(samples, preprocessings, settings, with_mask=False)
    loaders.prediction_loader(samples, preprocessings, settings, with_mask=True)
    n_bytes = 3 * (32 * 48 + 48 * 72)
    assert asked_workers == [5 * n_bytes, 5 * (n_bytes + 48 * 72)]  # a mask has its native size


def test_prediction_loader_of_no_samples_yields_nothing(settings):
    assert not list(loaders.prediction_loader([], {Preprocessing(None)}, settings, False))


def test_prediction_loader_stacks_no_images_of_equal_areas_but_other_sides(tmp_path):
    images = [np.zeros((*size, 3), np.uint8) for size in ((8, 12), (12, 8))]
    sample = loaders.LoadedSample(None, (8, 12), None)
    batch = loaders.collate_samples([(sample, {Preprocessing(None): image}) for image in images])
    shapes = [part.images[Preprocessing(None)].shape for part in batch]
    assert shapes == [(1, 3, 8, 12), (1, 3, 12, 8)]


def test_train_dataset_augments_each_image_of_a_car_differently(settings, monkeypatch):
    samples, seen = datasets.load_training_samples(settings), []
    dataset = loaders.TrainDataset(samples, settings, None)
    monkeypatch.setattr(dataset, "augment", lambda image, target, epoch, key: seen.append(key))
    for i in range(len(samples)):
        dataset[0, i]
    assert len({*seen}) == len(samples)


def test_worker_processes_ignore_ctrl_c(monkeypatch):
    calls = []
    monkeypatch.setattr(workers.signals, "ignore_signals_in_worker", lambda *_: calls.append(1))
    monkeypatch.setattr(workers.cv2, "setNumThreads", lambda n: None)
    workers._init_worker(0)
    assert calls
