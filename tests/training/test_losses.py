"""Losses against numpy references, and at the limits of their range."""

import numpy as np
import pytest
import torch

from training.losses import BINARY_LOSSES, MULTICLASS_LOSSES, edge_weights


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_bce(x, t):
    p = sigmoid(x)
    return -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()


def numpy_dice(x, t):
    p = sigmoid(x)
    losses = [
        1 - (2 * (a * b).sum() + 1) / ((a * a).sum() + (b * b).sum() + 1)
        for a, b in zip(p, t, strict=True)
    ]
    return np.mean(losses)


def numpy_focal(x, t):
    p = sigmoid(x)
    return (np.abs(p - t) ** 2 * -(t * np.log(p) + (1 - t) * np.log(1 - p))).mean()


def numpy_lovasz(x, t):
    """The Lovász extension of the Jaccard loss, term by term over the sorted hinge errors."""
    losses = []
    for logits, mask in zip(x.reshape(len(x), -1), t.reshape(len(t), -1) >= 0.5, strict=True):
        errors = np.maximum(0, 1 - logits * np.where(mask, 1, -1))
        order, loss, previous = np.argsort(-errors), 0.0, 0.0
        for count in range(1, len(order) + 1):
            wrong = np.zeros(len(order), bool)
            wrong[order[:count]] = True
            union = (mask | wrong).sum()
            jaccard_loss = 1 - (mask & ~wrong).sum() / union
            loss += errors[order[count - 1]] * (jaccard_loss - previous)
            previous = jaccard_loss
        losses.append(loss)
    return np.mean(losses)


def numpy_edge_bce(x, t):
    """Each pixel whose 11×11 neighborhood, within the image, is not constant weighs 20 times."""
    losses = []
    for logits, mask in zip(x[:, 0], t[:, 0], strict=True):
        weights = np.ones(mask.shape)
        for row, column in np.ndindex(mask.shape):
            near = mask[max(0, row - 5) : row + 6, max(0, column - 5) : column + 6]
            weights[row, column] = 20 if 0.005 < near.mean() < 0.995 else 1
        p = sigmoid(logits)
        bce = -(mask * np.log(p) + (1 - mask) * np.log(1 - p))
        losses.append((bce * weights / weights.mean()).mean())
    return np.mean(losses)


REFERENCES = {
    "auto": lambda x, t: numpy_edge_bce(x, t) + numpy_dice(x, t),
    "edge_bce_dice": lambda x, t: numpy_edge_bce(x, t) + numpy_dice(x, t),
    "bce": numpy_bce,
    "dice": numpy_dice,
    "bce_dice": lambda x, t: numpy_bce(x, t) + numpy_dice(x, t),
    "focal": numpy_focal,
    "lovasz": numpy_lovasz,
}


@pytest.mark.parametrize("name", BINARY_LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_binary_loss_equals_numpy(name, soft):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 2, (3, 1, 4, 5)), rng.random((3, 1, 4, 5))
    targets = targets if soft else targets.round()
    loss = BINARY_LOSSES[name](torch.tensor(logits), torch.tensor(targets))
    assert loss.item() == pytest.approx(REFERENCES[name](logits, targets), rel=1e-5)


@pytest.mark.parametrize("name", BINARY_LOSSES)
def test_gradient_of_a_binary_loss_equals_finite_differences_of_its_reference(name):
    rng, step = np.random.default_rng(1), 1e-5
    logits, targets = rng.normal(0, 2, (2, 1, 3, 4)), rng.random((2, 1, 3, 4)).round()
    tensor = torch.tensor(logits, requires_grad=True)
    BINARY_LOSSES[name](tensor, torch.tensor(targets)).backward()
    expected = np.zeros_like(logits)
    for index in np.ndindex(logits.shape):
        shift = np.zeros_like(logits)
        shift[index] = step
        difference = REFERENCES[name](logits + shift, targets)
        expected[index] = (difference - REFERENCES[name](logits - shift, targets)) / (2 * step)
    assert np.allclose(tensor.grad.numpy(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", BINARY_LOSSES)
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_binary_loss_of_extreme_half_precision_logits_is_finite(name, target, dtype):
    logits = torch.tensor([-6e4, -20.0, 0.0, 20.0, 6e4], dtype=dtype).view(1, 1, 1, 5)
    logits.requires_grad_()
    loss = BINARY_LOSSES[name](logits, torch.full((1, 1, 1, 5), target))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", BINARY_LOSSES)
@pytest.mark.parametrize("mask", [[1.0, 1.0, 0.0, 0.0], [0.0] * 4])
def test_binary_loss_is_near_zero_for_the_correct_mask_only(name, mask):
    targets = torch.tensor(mask).view(1, 1, 1, 4)
    correct = BINARY_LOSSES[name](30 * (targets * 2 - 1), targets)
    inverted = BINARY_LOSSES[name](-30 * (targets * 2 - 1), targets)
    assert correct < 1e-6 and inverted > 1e-3


@pytest.mark.parametrize("name", BINARY_LOSSES)
def test_binary_loss_sums_half_precision_logits_in_fp32(name):
    """300 × 300 pixels: half precision cannot represent such sums."""
    logits = torch.linspace(-2, 2, 90_000).view(1, 1, 300, 300)
    targets = (torch.arange(90_000) % 3 == 0).float().view(1, 1, 300, 300)
    rounded = logits.bfloat16()
    exact = BINARY_LOSSES[name](rounded.double(), targets).item()
    assert BINARY_LOSSES[name](rounded, targets).item() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("mask", ["half", "empty", "full"])
def test_edge_weights_are_20_times_as_large_near_an_outline(mask):
    targets = torch.zeros(2, 1, 20, 40)
    targets[..., :20] = mask in ("half", "full")
    targets[..., 20:] = mask == "full"
    weights = edge_weights(targets)
    assert torch.allclose(weights.mean((1, 2, 3)), torch.ones(2))
    expected = torch.ones(40)
    if mask == "half":
        expected[15:25] = 20
    assert torch.allclose(weights / weights[0, 0, 0, 0], expected.expand(2, 1, 20, 40))
    logits = torch.randn(2, 1, 20, 40)
    both = BINARY_LOSSES["edge_bce_dice"](logits, targets)
    alone = [BINARY_LOSSES["edge_bce_dice"](logits[i : i + 1], targets[i : i + 1]) for i in (0, 1)]
    assert both == pytest.approx((alone[0] + alone[1]) / 2)  # as gradients are accumulated


@pytest.mark.parametrize("name", ["bce", "dice", "bce_dice", "edge_bce_dice", "focal"])
def test_binary_loss_of_a_soft_target_is_minimal_at_the_target(name):
    target = torch.full((1, 1, 8, 8), 0.3)
    logits = np.linspace(-3, 3, 121)
    losses = [BINARY_LOSSES[name](torch.full((1, 1, 8, 8), x), target) for x in logits]
    assert sigmoid(logits[int(np.argmin(losses))]) == pytest.approx(0.3, abs=0.02)


def numpy_mean_class_dice(p, t, valid):
    dice = [
        2 * (p[:, c] * (t == c))[valid].sum() / (p[:, c][valid].sum() + (t == c)[valid].sum())
        for c in np.unique(t[valid])
    ]
    return np.mean(dice)


@pytest.mark.parametrize("name", MULTICLASS_LOSSES)
def test_multiclass_loss_equals_numpy_without_ignored_pixels(name):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 4, 5, 6))
    targets = rng.integers(0, 3, (2, 5, 6)).astype(np.uint8)  # class 3 is absent
    targets[rng.random((2, 5, 6)) < 0.3] = 255
    valid = targets != 255
    e = np.exp(logits - logits.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    p_target = np.take_along_axis(p, np.where(valid, targets, 0)[:, None].astype(int), 1)[:, 0]
    expected = -np.log(p_target[valid]).mean()
    if name != "ce":
        expected += 1 - numpy_mean_class_dice(p, targets, valid)
    x = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    loss = MULTICLASS_LOSSES[name](x, torch.from_numpy(targets)[:, None])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    ignored = ~torch.from_numpy(valid)
    assert not x.grad.movedim(1, -1)[ignored].any() and x.grad.isfinite().all()


@pytest.mark.parametrize("name", MULTICLASS_LOSSES)
def test_multiclass_loss_of_ignored_pixels_only_is_zero(name):
    logits = torch.randn(1, 3, 4, 4, dtype=torch.float16, requires_grad=True)
    loss = MULTICLASS_LOSSES[name](logits, torch.full((1, 1, 4, 4), 255, dtype=torch.uint8))
    assert loss.item() == 0 and loss.dtype == torch.float32
    loss.backward()
    assert not logits.grad.any()


def test_edge_weights_have_mean_one_in_each_image():
    targets = torch.zeros(2, 1, 32, 32)
    targets[0, :, 8:24, 8:24] = 1  # the second image has no edge
    weights = edge_weights(targets)
    assert weights.mean((1, 2, 3)).tolist() == pytest.approx([1, 1])
    assert torch.equal(weights[1], torch.ones(1, 32, 32))


def test_edge_weights_of_a_single_pixel_make_an_edge_around_it():
    targets = torch.zeros(1, 1, 33, 33)
    targets[..., 16, 16] = 1
    for target in (targets, 1 - targets):
        weights = edge_weights(target)[0, 0]
        is_edge = weights > weights[0, 0]
        assert is_edge.sum() == 11 * 11 and is_edge[11:22, 11:22].all()


def test_default_losses_are_edge_bce_dice_and_ce_dice():
    assert BINARY_LOSSES["auto"] is BINARY_LOSSES["edge_bce_dice"]
    assert MULTICLASS_LOSSES["auto"] is MULTICLASS_LOSSES["ce_dice"]
