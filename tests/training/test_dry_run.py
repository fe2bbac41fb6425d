"""Networks that cannot be trained on a single image, or on small ones, are rejected beforehand."""

from types import SimpleNamespace

import pytest
import torch
from conftest import assert_input_error, tiny_settings_args
from torch import nn

import train
from core import distributed
from core.config import load_settings
from core.errors import InputError
from models.build import build_model
from models.segmenter import Segmenter
from training import dry_run
from training.dry_run import check_batches, find_training_error

UNET = ["channels=2,2,2,2", "device=cpu"]  # one pixel is left of 8×8
SMP = ["model=smp", "encoder=resnet18", "encoder_weights=none", "device=cpu"]


@pytest.fixture
def check(monkeypatch):
    """Check training on `count` images of this size, of which one more is held out."""

    def run(args, size, count, n_processes=1):
        monkeypatch.setattr(distributed, "count_processes", lambda: n_processes)
        settings = load_settings([*args, "size=null"])
        samples = [SimpleNamespace(fold=i == count) for i in range(count + 1)]
        check_batches(settings, build_model(settings), [1], samples, {size})

    return run


@pytest.mark.parametrize(
    ("batch_size", "count", "n_processes", "fix"),
    [
        (1, 12, 1, "set batch_size=2"),
        (2, 1, 1, "add images"),
        (4, 12, 4, "set batch_size=8"),
        (8, 7, 4, "add images"),
    ],
)
def test_check_batches_names_a_batch_size_without_steps_of_one_image(
    check, batch_size, count, n_processes, fix
):
    args = [*UNET, f"batch_size={batch_size}"]
    with pytest.raises(InputError) as error:
        check(args, (8, 8), count, n_processes)
    line = str(error.value)
    assert line.startswith(f"batch_size={batch_size}: model=unet channels=2,2,2,2")
    assert "a single image of size=8,8" in line and line.endswith(f"; {fix}")
    if fix.startswith("set "):
        check([*UNET, fix.removeprefix("set ")], (8, 8), count, n_processes)
    check([*args, "norm=none"], (8, 8), count, n_processes)
    check(args, (8, 16), count, n_processes)


@pytest.mark.parametrize("available", [10**5, 10**9])
def test_check_batches_warns_of_steps_that_take_more_memory_than_there_is(
    check, monkeypatch, capsys, available
):
    monkeypatch.setattr(dry_run.machine, "available_memory", lambda: available)
    check([*UNET, "batch_size=4", "precision=fp32"], (64, 64), 12)
    expected = ""
    if available == 10**5:
        expected = (
            "warning: a step of batch_size=4 at size=64,64 may take 0.0 GiB of memory, 0.0 "
            "are available; if it is killed, try batch_size=2 grad_accumulation=2\n"
        )
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(("precision", "gib"), [("fp32", "12.0"), ("bf16", "6.0")])
def test_warning_of_too_little_memory_counts_activations_by_precision(
    check, monkeypatch, capsys, precision, gib
):
    monkeypatch.setattr(dry_run, "activation_bytes", lambda model, size: 2 * 2**30)
    monkeypatch.setattr(dry_run.machine, "available_memory", lambda: 0)
    check([*UNET, "batch_size=4", f"precision={precision}"], (64, 64), 12)
    assert f"may take {gib} GiB of memory" in capsys.readouterr().out


def test_warning_of_too_little_memory_counts_the_weights(check, monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "activation_bytes", lambda model, size: 0)
    monkeypatch.setattr(dry_run.machine, "available_memory", lambda: 10**4)
    check([*UNET, "batch_size=4"], (64, 64), 12)
    assert "may take 0.0 GiB" in capsys.readouterr().out


def test_step_bytes_counts_every_tensor_that_the_backward_pass_needs_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1, bias=False)

        def forward(self, images):
            first = self.conv(images.float())  # saves the images, 3 × 4 bytes a pixel
            return (first.exp() + first.exp()).sqrt()  # saves three times 5 × 4 bytes

    assert dry_run.activation_bytes(Twice(), (8, 16)) == 8 * 16 * 4 * (3 + 3 * 5)


@pytest.mark.parametrize(("batch_size", "count"), [(2, 13), (4, 13), (3, 4), (5, 12)])
def test_check_batches_accepts_batches_of_two_or_more(check, batch_size, count):
    check([*UNET, f"batch_size={batch_size}"], (8, 8), count)


def test_check_batches_accepts_single_images_whose_statistics_gpus_share(check, monkeypatch):
    monkeypatch.setattr(dry_run, "pick_device", lambda settings: torch.device("cuda"))
    check([*UNET, "batch_size=4"], (8, 8), 12, 4)


def test_check_batches_rejects_more_processes_than_images(check):
    with pytest.raises(InputError, match="3 training images are too few for 4 processes"):
        check([*UNET, "batch_size=4"], (8, 16), 3, 4)


@pytest.mark.parametrize("arch", ["DeepLabV3", "PAN"])
def test_check_batches_rejects_single_images_of_networks_that_pool_to_one_pixel(check, arch):
    args = [*SMP, f"arch={arch}"]
    with pytest.raises(InputError, match=f"arch={arch} encoder=resnet18 cannot be trained on a si"):
        check([*args, "batch_size=1"], (256, 256), 13)
    check([*args, "batch_size=2"], (256, 256), 13)


def test_check_batches_rejects_images_that_are_too_small_for_the_network(check):
    with pytest.raises(InputError, match="arch=PAN encoder=resnet18: cannot be trained on images"):
        check([*SMP, "arch=PAN"], (64, 64), 12)


def test_check_batches_rejects_crops_of_a_network_that_takes_no_other_size(check):
    args = [*SMP[:1], "encoder=tu-swinv2_tiny_window8_256", "encoder_weights=none"]
    crops = [*args, "size=256,384", "crop_size=256,256"]
    with pytest.raises(InputError, match=r"cannot predict whole images of size=256,384: .* leave"):
        check(crops, (256, 384), 12)
    check([*crops, "tile_size=256"], (256, 384), 12)


class NeedsValues(nn.Module):
    """A network that reads a value of its input, which the device meta does not have."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        if x.sum().item() > self.limit:
            raise ValueError("too bright")
        return x[:, :1]


def test_find_training_error_of_a_network_that_needs_values_runs_it():
    assert find_training_error(Segmenter(NeedsValues(1e9), lambda n: n), 1, (8, 8)) == ""
    assert find_training_error(Segmenter(NeedsValues(-1e9), lambda n: n), 1, (8, 8)) == "too bright"


def test_train_with_steps_of_one_image_ends_before_decoding(data_dir, tmp_path, monkeypatch):
    args = tiny_settings_args(data_dir, tmp_path)
    args += ["size=8,8", "channels=2,2,2,2", "fold=0", "epochs=1"]
    monkeypatch.setattr(train, "make_cache", None)  # must not be reached
    assert_input_error(
        train.main, [*args, "batch_size=1"], "batch_size=1: model=unet", "batch_size=2"
    )
    monkeypatch.undo()
    train.main([*args, "batch_size=5"])  # of six images
    assert (tmp_path / "tiny/fold0/oof.csv").exists()


def check_tiny(args, sizes, n_samples):
    """Check all folds; `n_samples` of each."""
    settings = load_settings([*UNET, *args])
    samples = [SimpleNamespace(fold=k) for k, count in enumerate(n_samples) for _ in range(count)]
    check_batches(settings, build_model(settings), [0, 1], samples, sizes)


@pytest.mark.parametrize(
    ("args", "sizes", "n_samples", "message"),
    [
        # The fold with the fewest training images, the smallest native size, crops.
        (["batch_size=4", "size=8,8"], {(48, 72)}, (1, 12), r"of size=8,8 .*; add images"),
        (["batch_size=4", "size=8,8"], {(48, 72)}, (12, 1), r"of size=8,8 .*; add images"),
        (["batch_size=1", "size=null"], {(8, 8), (48, 72)}, (6, 6), "of size=8,8 "),
        (["batch_size=1", "size=null"], {(4, 72), (8, 8)}, (6, 6), "of size=8,8 "),
        (["batch_size=1", "size=48,72", "crop_size=8,8"], {(48, 72)}, (6, 6), "of size=8,8 "),
        (["batch_size=1", "size=8,8"], {(48, 72)}, (2, 2), r"of size=8,8 .*; set batch_size=2$"),
    ],
)
def test_check_batches_checks_the_smallest_steps_of_all_folds(args, sizes, n_samples, message):
    with pytest.raises(InputError, match=rf"{args[0]}: .* on a single image {message}"):
        check_tiny(args, sizes, n_samples)


@pytest.mark.parametrize(("batch_size", "count"), [(4, 12), (2, 2)])
def test_check_batches_accepts_steps_of_two_images_in_all_folds(batch_size, count):
    check_tiny([f"batch_size={batch_size}", "size=8,8"], {(48, 72)}, (count, count))
