"""Losses against numpy, and at the edges of their range."""

import numpy as np
import pytest
import torch

from training.losses import BINARY_LOSSES, MULTICLASS_LOSSES


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_bce(x, t):
    p = sigmoid(x)
    return -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()


def numpy_dice(x, t):
    p = sigmoid(x)
    each = [
        1 - (2 * (a * b).sum() + 1) / ((a * a).sum() + (b * b).sum() + 1)
        for a, b in zip(p, t, strict=True)
    ]
    return np.mean(each)


def numpy_focal(x, t):
    p = sigmoid(x)
    return (np.abs(p - t) ** 2 * -(t * np.log(p) + (1 - t) * np.log(1 - p))).mean()


def numpy_lovasz(x, t):
    """The Lovász extension of the Jaccard loss, set by set, of the sorted hinge errors."""
    each = []
    for logits, truth in zip(x.reshape(len(x), -1), t.reshape(len(t), -1) >= 0.5, strict=True):
        errors = np.maximum(0, 1 - logits * np.where(truth, 1, -1))
        order, total, before = np.argsort(-errors), 0.0, 0.0
        for count in range(1, len(order) + 1):
            wrong = np.zeros(len(order), bool)
            wrong[order[:count]] = True
            union = (truth | wrong).sum()
            jaccard = 1 - (truth & ~wrong).sum() / union
            total += errors[order[count - 1]] * (jaccard - before)
            before = jaccard
        each.append(total)
    return np.mean(each)


REFERENCES = {
    "bce": numpy_bce,
    "dice": numpy_dice,
    "bce_dice": lambda x, t: numpy_bce(x, t) + numpy_dice(x, t),
    "focal": numpy_focal,
    "lovasz": numpy_lovasz,
}


@pytest.mark.parametrize("name", BINARY_LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_equal_to_numpy(name, soft):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 2, (3, 1, 4, 5)), rng.random((3, 1, 4, 5))
    targets = targets if soft else targets.round()
    mine = BINARY_LOSSES[name](torch.tensor(logits), torch.tensor(targets))
    assert mine.item() == pytest.approx(REFERENCES[name](logits, targets), rel=1e-5)


@pytest.mark.parametrize("name", BINARY_LOSSES)
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_half_precision_logits_give_a_finite_fp32_loss_and_gradient(name, target, dtype):
    logits = torch.tensor([-6e4, -20.0, 0.0, 20.0, 6e4], dtype=dtype).view(1, 1, 1, 5)
    logits.requires_grad_()
    loss = BINARY_LOSSES[name](logits, torch.full((1, 1, 1, 5), target))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", BINARY_LOSSES)
def test_the_right_answer_costs_less_than_the_wrong_one(name):
    targets = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    right = BINARY_LOSSES[name](20 * (targets * 2 - 1), targets)
    wrong = BINARY_LOSSES[name](-20 * (targets * 2 - 1), targets)
    assert right < 1e-3 < wrong


@pytest.mark.parametrize("name", BINARY_LOSSES)
def test_half_precision_logits_are_summed_in_fp32(name):
    """300 × 300 pixels: counts that half precision cannot hold."""
    logits = torch.linspace(-2, 2, 90_000).view(1, 1, 300, 300)
    targets = (torch.arange(90_000) % 3 == 0).float().view(1, 1, 300, 300)
    rounded = logits.bfloat16()
    exact = BINARY_LOSSES[name](rounded.double(), targets).item()
    assert BINARY_LOSSES[name](rounded, targets).item() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("name", ["bce", "dice", "bce_dice", "focal"])
def test_a_soft_target_is_its_own_best_answer(name):
    target = torch.full((1, 1, 8, 8), 0.3)
    costs = [
        BINARY_LOSSES[name](torch.full((1, 1, 8, 8), x), target) for x in np.linspace(-3, 3, 121)
    ]
    best = np.linspace(-3, 3, 121)[int(np.argmin(costs))]
    assert sigmoid(best) == pytest.approx(0.3, abs=0.02)


def test_an_empty_mask_found_empty_costs_nothing():
    logits, empty = torch.full((2, 1, 4, 4), -30.0), torch.zeros(2, 1, 4, 4)
    assert all(
        loss(logits, empty).item() == pytest.approx(0, abs=1e-6) for loss in BINARY_LOSSES.values()
    )


def one_hot_dice(p, t, counts):
    scores = [
        2 * (p[:, c] * (t == c))[counts].sum() / (p[:, c][counts].sum() + (t == c)[counts].sum())
        for c in np.unique(t[counts])
    ]
    return np.mean(scores)


@pytest.mark.parametrize("name", MULTICLASS_LOSSES)
def test_losses_of_classes_are_numpys_and_leave_ignored_pixels_out(name):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 4, 5, 6))
    targets = rng.integers(0, 3, (2, 5, 6)).astype(np.uint8)  # class 3 is not there
    targets[rng.random((2, 5, 6)) < 0.3] = 255
    counts = targets != 255
    e = np.exp(logits - logits.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    right = np.take_along_axis(p, np.where(counts, targets, 0)[:, None].astype(int), 1)[:, 0]
    expected = -np.log(right[counts]).mean()
    if name == "ce_dice":
        expected += 1 - one_hot_dice(p, targets, counts)
    given = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    loss = MULTICLASS_LOSSES[name](given, torch.from_numpy(targets)[:, None])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    ignored = ~torch.from_numpy(counts)
    assert not given.grad.movedim(1, -1)[ignored].any() and given.grad.isfinite().all()


@pytest.mark.parametrize("name", MULTICLASS_LOSSES)
def test_a_batch_of_ignored_pixels_costs_nothing(name):
    logits = torch.randn(1, 3, 4, 4, dtype=torch.float16, requires_grad=True)
    loss = MULTICLASS_LOSSES[name](logits, torch.full((1, 1, 4, 4), 255, dtype=torch.uint8))
    assert loss.item() == 0 and loss.dtype == torch.float32
    loss.backward()
    assert not logits.grad.any()
