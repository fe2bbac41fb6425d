"""FoldTrainer: seeds of the steps, and gradient accumulation."""

from types import SimpleNamespace

import pytest
import torch

from core.config import load_settings
from training.train_state import TrainState
from training.trainer import FoldTrainer


def step_seed(seed=0, fold=0, epoch=0, step=0):
    position = SimpleNamespace(
        settings=SimpleNamespace(seed=seed), fold=fold, epoch=epoch, step=step
    )
    return FoldTrainer.step_seed(position)


def test_step_seed_differs_for_every_seed_fold_epoch_and_step():
    values = (0, 1, 2, 1000, 100_000)
    seeds = {
        step_seed(seed, fold, epoch, step)
        for seed in values
        for fold in (0, 1, 4)
        for epoch in values
        for step in values
    }
    assert len(seeds) == 3 * 5**3
    assert step_seed(seed=1000, step=0) != step_seed(seed=0, step=1)


def test_step_seed_differs_between_ranks_and_not_between_calls(monkeypatch):
    assert step_seed(step=3) == step_seed(step=3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    seeds = set()
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        seeds |= {step_seed(step=step) for step in range(4)}
    assert len(seeds) == 8


@pytest.mark.parametrize("loss", ["bce", "bce_dice"])
def test_train_step_accumulating_two_half_batches_equals_one_batch(loss):
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    targets = torch.randint(0, 2, (4, 1, 16, 16), dtype=torch.uint8) * 255
    weights = []
    for accumulation in (1, 2):
        torch.manual_seed(0)
        args = ["channels=[4,8]", "norm=none", "size=[16,16]", "device=cpu", "precision=fp32"]
        args += [f"grad_accumulation={accumulation}", f"loss={loss}", "optimizer=sgd"]
        settings = load_settings(args)
        state = TrainState(settings, 1, updates=2, device=torch.device("cpu"))
        for part in range(accumulation):
            chunk = slice(part * 4 // accumulation, (part + 1) * 4 // accumulation)
            state.train_step(images[chunk], targets[chunk], 1.0, part + 1 == accumulation)
        weights.append([p.detach().clone() for p in state.model.parameters()])
        assert all(p.grad is None for p in state.model.parameters())
    for one, two in zip(*weights, strict=True):
        assert torch.allclose(one, two, atol=1e-4)
