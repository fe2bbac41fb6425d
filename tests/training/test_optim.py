"""The first step of each optimizer, the learning rate of each schedule, and the EMA."""

import math

import pytest
import torch

from core.config import load_settings
from training.optim import ModelEMA, make_optimizer, make_schedule


def learning_rates(args, updates=10):
    """Return the learning rates of `updates` updates of a schedule that is stepped every update."""
    settings = load_settings(["lr=1", *args])
    optimizer = make_optimizer(settings, torch.nn.Conv2d(1, 1, 1))
    schedule, rates = make_schedule(settings, optimizer, updates), []
    for _ in range(updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw", 0.1),  # Adam's first step is lr × sign(gradient)
        ("adam", 0.1),
        ("rmsprop", 1.0),  # lr × g / √(0.01 g²)
        ("sgd", 0.1 * 3 * 1.9),  # Nesterov momentum of 0.9
    ],
)
def test_make_optimizer_first_step_has_the_size_of_its_update_rule(name, expected):
    settings = load_settings([f"optimizer={name}", "lr=0.1", "weight_decay=0"])
    weight = torch.nn.Linear(1, 1, bias=False)
    before = weight.weight.item()
    optimizer = make_optimizer(settings, weight)
    (3 * weight.weight).sum().backward()
    optimizer.step()
    assert before - weight.weight.item() == pytest.approx(expected, rel=1e-4)


def test_make_optimizer_decays_weights_but_not_biases_and_normalization():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    groups = make_optimizer(load_settings(["weight_decay=0.3"]), network).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {n: decays[id(p)] for n, p in network.named_parameters()} == {
        "0.weight": 0.3,
        "0.bias": 0,
        "1.weight": 0,
        "1.bias": 0,
    }


def test_make_schedule_cosine_warms_up_then_falls_to_zero():
    rates = learning_rates(["warmup=0.2"])
    assert rates[:2] == [0.5, 1]
    assert rates[2:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * i / 8) for i in range(8)])


def test_make_schedule_constant_warms_up_then_stays():
    assert learning_rates(["lr_schedule=constant", "warmup=0.2"]) == [0.5, *[1] * 9]


def test_make_schedule_onecycle_peaks_after_warmup():
    rates = learning_rates(["lr_schedule=onecycle", "warmup=0.3"])
    assert rates[0] == pytest.approx(1 / 25) and max(rates) == pytest.approx(1, abs=0.05)
    peak = rates.index(max(rates))
    assert peak == 3 and rates[peak:] == sorted(rates[peak:], reverse=True) and rates[-1] < 0.05


def test_make_schedule_plateau_halves_after_three_epochs_without_gain():
    settings = load_settings(["lr=1", "lr_schedule=plateau"])
    optimizer = make_optimizer(settings, torch.nn.Conv2d(1, 1, 1))
    schedule, rates = make_schedule(settings, optimizer, updates=10), []
    for dice in (0.8, 0.9, 0.7, 0.9, 0.8, 0.95):
        schedule.step(dice)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1, 1, 1, 1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("args", "lr"),
    [
        ([], 0.1),
        (["lr_reference_batch=4"], 0.2),
        (["lr_reference_batch=4", "lr_scaling=linear"], 0.4),
    ],
)
def test_make_optimizer_scales_lr_with_the_images_per_update(args, lr):
    settings = load_settings(["lr=0.1", "batch_size=8", "grad_accumulation=2", *args])
    optimizer = make_optimizer(settings, torch.nn.Conv2d(1, 1, 1))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)


def test_model_ema_averages_with_a_decay_that_rises_to_its_limit():
    network = torch.nn.Linear(1, 1, bias=False)
    ema, expected = ModelEMA(network, 0.5), 0.0
    for i, value in enumerate([4.0, 8.0, *[16.0] * 20]):
        network.weight.data.fill_(value)
        ema.update(network)
        decay = min(0.5, (1 + i) / (10 + i)) if i else 0.0
        expected = decay * expected + (1 - decay) * value
    assert ema.module.weight.item() == pytest.approx(expected, rel=1e-6)
