"""Networks that cannot be trained on a single image, or on small ones, are rejected beforehand."""

import pytest
import torch
from conftest import assert_input_error, tiny_settings_args
from torch import nn

import train
from core.config import load_settings
from core.errors import InputError
from models.build import build_model
from models.segmenter import Segmenter
from training import dry_run
from training.dry_run import check_batches, find_obstacle

UNET = ["channels=2,2,2,2", "device=cpu"]  # one pixel is left of 8×8
SMP = ["model=smp", "encoder=resnet18", "encoder_weights=none", "device=cpu"]


def check(args, size, counts, n_processes=1):
    settings = load_settings(args)
    check_batches(settings, build_model(settings), size, counts, n_processes)


@pytest.mark.parametrize(
    ("batch_size", "counts", "n_processes", "fix"),
    [
        (1, [12], 1, "set batch_size=2"),
        (1, [13], 1, "set batch_size=3"),
        (2, [12, 13], 1, "set batch_size=3"),
        (2, [1], 1, "add images"),
        (4, [12], 4, "set batch_size=12"),
        (4, [14], 2, "set batch_size=5"),
    ],
)
def test_check_batches_names_a_batch_size_without_steps_of_one_image(
    batch_size, counts, n_processes, fix
):
    args = [*UNET, f"batch_size={batch_size}"]
    with pytest.raises(InputError) as error:
        check(args, (8, 8), counts, n_processes)
    line = str(error.value)
    assert line.startswith(f"batch_size={batch_size}: a step has only one of {counts[-1]} training")
    assert "channels=2,2,2,2" in line and line.endswith(f"; {fix}")
    assert ("processes" in line) == (n_processes > 1)
    if fix.startswith("set "):
        check([*UNET, fix.removeprefix("set ")], (8, 8), counts, n_processes)
    check([*args, "norm=none"], (8, 8), counts, n_processes)
    check(args, (8, 16), counts, n_processes)


@pytest.mark.parametrize(("batch_size", "count"), [(2, 12), (4, 13), (3, 4), (5, 12)])
def test_check_batches_accepts_batches_of_two_or_more(batch_size, count):
    check([*UNET, f"batch_size={batch_size}"], (8, 8), [count])


def test_check_batches_accepts_single_images_whose_statistics_gpus_share(monkeypatch):
    monkeypatch.setattr(dry_run, "pick_device", lambda settings: torch.device("cuda"))
    check([*UNET, "batch_size=4", "size=8,8"], (8, 8), [12], 4)


@pytest.mark.parametrize("arch", ["DeepLabV3", "PAN"])
def test_check_batches_rejects_single_images_of_networks_that_pool_to_one_pixel(arch):
    args = [*SMP, f"arch={arch}", "batch_size=2"]
    with pytest.raises(InputError, match=f"arch={arch} encoder=resnet18 cannot be trained on a si"):
        check(args, (256, 256), [13])
    check(args, (256, 256), [12])


def test_check_batches_rejects_images_that_are_too_small_for_the_network():
    with pytest.raises(InputError, match="arch=PAN encoder=resnet18: cannot be trained on images"):
        check([*SMP, "arch=PAN"], (64, 64), [12])


class NeedsValues(nn.Module):
    """A network that reads a value of its input, which the device meta does not have."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        if x.sum().item() > self.limit:
            raise ValueError("too bright")
        return x[:, :1]


def test_find_obstacle_of_a_network_that_needs_values_runs_it():
    assert find_obstacle(Segmenter(NeedsValues(1e9), lambda n: n), 1, (8, 8)) == ""
    assert find_obstacle(Segmenter(NeedsValues(-1e9), lambda n: n), 1, (8, 8)) == "too bright"


def test_train_with_a_last_step_of_one_image_succeeds_or_ends_before_decoding(
    data_dir, tmp_path, monkeypatch
):
    args = tiny_settings_args(data_dir, tmp_path)
    args += ["size=8x8", "channels=2,2,2,2", "fold=0", "epochs=1"]
    monkeypatch.setattr(train, "make_cache", None)  # must not be reached
    assert_input_error(train.main, [*args, "batch_size=1"], "batch_size=1: a step", "batch_size=2")
    monkeypatch.undo()
    train.main([*args, "batch_size=5"])  # six images: steps of four and two
    assert (tmp_path / "tiny/fold0/oof.csv").exists()
