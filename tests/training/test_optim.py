"""The first step of each optimizer, the learning rate of each schedule, and the EMA."""

import math

import pytest
import torch

from core.config import load_settings
from training.optim import OPTIMIZERS, ModelEMA, make_optimizer, make_schedule


def learning_rates(args, updates=10):
    """Return the learning rate of each update, and the one after the last."""
    settings = load_settings(["lr=1", *args])
    optimizer = make_optimizer(settings, torch.nn.Conv2d(1, 1, 1))
    schedule = make_schedule(settings, optimizer, updates)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(updates):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert optimizer.param_groups[1]["lr"] == rates[-1]
    return rates


def cosine(start, end, position):
    """Return the value at `position` in [0, 1] of half a cosine from `start` to `end`."""
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * position))


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


def test_make_optimizer_sgd_starts_at_zero_momentum_after_a_skipped_first_update():
    """As in fp16 if the first gradients overflow."""
    settings = load_settings(["optimizer=sgd", "lr=0.1", "weight_decay=0"])
    weight = torch.nn.Linear(1, 1, bias=False)
    before = weight.weight.item()
    optimizer, scaler = make_optimizer(settings, weight), torch.amp.GradScaler("cpu")
    for gradient in (math.inf, 3.0):
        weight.weight.grad = torch.full((1, 1), gradient) * scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
    assert before - weight.weight.item() == pytest.approx(0.1 * 3 * 1.9, rel=1e-4)


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


RATES = {  # schedule, warmup → learning rates before update 0, 1, … and after the last of 10
    ("cosine", 0.2): [0.5, 1, *(cosine(1, 0, i / 8) for i in range(9))],
    ("cosine", 0): [cosine(1, 0, i / 10) for i in range(11)],
    ("constant", 0.2): [0.5, *[1] * 10],
    ("constant", 0): [1] * 11,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("schedule", "warmup"), RATES)
def test_make_schedule_has_the_expected_learning_rate_at_each_update(optimizer, schedule, warmup):
    rates = learning_rates(
        [f"optimizer={optimizer}", f"lr_schedule={schedule}", f"warmup={warmup}"]
    )
    assert rates == pytest.approx(RATES[schedule, warmup], abs=1e-9)


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


def test_model_ema_averages_normalization_statistics_and_keeps_no_gradients():
    network = torch.nn.BatchNorm1d(2)
    ema = ModelEMA(network, 0.9)
    network(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    ema.update(network)
    assert torch.equal(ema.module.running_mean, network.running_mean)
    assert network.running_mean.any() and not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())


def test_model_ema_continues_from_its_state_dict():
    torch.manual_seed(0)
    networks = [torch.nn.Linear(2, 2) for _ in range(6)]
    whole, resumed = (ModelEMA(networks[0], 0.9) for _ in range(2))
    for network in networks[:3]:
        whole.update(network)
    resumed.load_state_dict(whole.state_dict())
    for network in networks[3:]:
        whole.update(network)
        resumed.update(network)
    assert torch.equal(whole.module.weight, resumed.module.weight)


def test_warmup_takes_a_whole_number_of_updates_rounded_up():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    [factor] = make_schedule(load_settings(["warmup=0.25"]), optimizer, 10).lr_lambdas
    assert [factor(i) for i in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
