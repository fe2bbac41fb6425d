"""Training metrics against those of evaluation, and memory use."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation import metrics
from evaluation.pixel_counts import confusion_matrix
from training import epoch_metrics
from training.epoch_metrics import EpochMetrics, batch_metrics


@pytest.mark.parametrize("classes", [1, 4])
def test_batch_metrics_are_those_of_evaluation(classes):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(3, classes, 6, 7)).astype(np.float32))
    targets = rng.integers(0, classes, (3, 6, 7)).astype(np.uint8)
    dice, accuracy = [], []
    if classes == 1:
        targets = rng.choice([0, 90, 200, 255], (3, 6, 7)).astype(np.uint8)
        for mask, target in zip(logits[:, 0].numpy() > 0, targets > 127, strict=True):
            dice.append(metrics.mask_dice(mask, target))
            accuracy.append((mask == target).mean())
    else:
        targets[rng.random(targets.shape) < 0.2] = 255
        for class_map, target in zip(logits.argmax(1), targets, strict=True):
            matrix = confusion_matrix(class_map, torch.from_numpy(target), classes).numpy()
            dice.append(float(metrics.mean_over_classes(matrix, "dice")))
            accuracy.append(np.trace(matrix) / matrix.sum())
    result = batch_metrics(logits, torch.from_numpy(targets)[:, None])
    assert result.tolist() == pytest.approx([sum(dice), sum(accuracy)], rel=1e-5)


def test_epoch_metrics_weight_each_step_by_its_images():
    epoch = EpochMetrics(torch.device("cpu"))
    full, empty = torch.full((2, 1, 4, 4), 9.0), torch.full((1, 1, 4, 4), -9.0)
    target = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    epoch.add(torch.tensor(1.0), full, target)
    epoch.add(torch.tensor(4.0), empty, target[:1])
    sums, images = epoch.reduced()
    assert images == 3 and sums.tolist() == pytest.approx([2 * 1 + 4, 2, 2])
    epoch.seconds, epoch.lr = 7.5, 0.01
    restored = EpochMetrics(torch.device("cpu"))
    restored.load_state_dict(epoch.state_dict())
    assert restored.reduced()[1] == 3 and torch.equal(restored.reduced()[0], sums)
    assert (restored.seconds, restored.lr) == (7.5, 0.01)


@pytest.mark.parametrize(("platform", "maxrss"), [("linux", 3 * 2**20), ("darwin", 3 * 2**30)])
def test_peak_memory_is_in_bytes_on_every_system(monkeypatch, platform, maxrss):
    usage = SimpleNamespace(ru_maxrss=maxrss)
    monkeypatch.setattr(epoch_metrics.resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(epoch_metrics.sys, "platform", platform)
    assert epoch_metrics.peak_memory(torch.device("cpu")) == 3 * 2**30


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_peak_memory_is_that_of_this_process():
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    # Linux passes on the peak of the process that started this one.
    assert 0.9 * peak < epoch_metrics.peak_memory(torch.device("cpu")) < 100 * peak


@pytest.mark.parametrize("classes", [1, 3])
def test_batch_metrics_of_images_without_a_counted_pixel_are_one(classes):
    logits = torch.full((2, classes, 4, 4), -9.0)
    target = torch.full((2, 1, 4, 4), 0 if classes == 1 else 255, dtype=torch.uint8)
    assert batch_metrics(logits, target).tolist() == [2, 2]
