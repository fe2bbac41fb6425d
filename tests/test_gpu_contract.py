"""What training needs of a GPU, tested without one: the step never waits for it.

On the meta device a tensor has no values, so reading one is an error; this covers the backward
pass. The fake GPU covers copies between devices and needs a CUDA build of torch.
"""

import ast
from contextlib import nullcontext

import pytest
import torch
from conftest import ROOT, smp_args
from fake_cuda import Watch, fake_gpu

from core.config import load_settings
from training import optim
from training.epoch_metrics import EpochMetrics
from training.train_state import TrainState

UNET = ["channels=[8,16]", "size=[32,48]", "compile=false"]
SMP = smp_args(UNET, "resnet18")
STEPS = [
    (UNET, 1),
    ([*UNET, "loss=focal", "grad_clip=0"], 1),
    ([*UNET, "loss=lovasz", "grad_accumulation=2"], 1),
    ([*UNET, "loss=ce_dice", "dropout=[0,0.2]"], 19),
    ([*UNET, "loss=ce", "optimizer=adam"], 19),
    (SMP, 1),
]
needs_cuda_build = pytest.mark.skipif(
    torch.version.cuda is None, reason="this torch is built without CUDA"
)


def train_steps(state, metrics, size, device):
    """Train two steps, an update and the last one of an accumulation, as FoldTrainer does."""
    state.wrapped_model.train()
    for is_update in (True, False, True):
        images = torch.empty(4, 3, *size, dtype=torch.uint8, device=device)
        targets = torch.empty(4, 1, *size, dtype=torch.uint8, device=device)
        loss, logits = state.train_step(images, targets, 1.0, is_update)
        metrics.add(loss, logits, targets)
    return loss, logits


@pytest.mark.parametrize(("args", "n_classes"), STEPS)
def test_training_step_reads_no_tensor(monkeypatch, args, n_classes):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta
    for _, options in optim.OPTIMIZERS.values():  # neither do fused optimizers
        monkeypatch.delitem(options, "fused", raising=False)
    meta = torch.device("meta")
    settings = load_settings([*args, "precision=fp32"])
    state = TrainState(settings, n_classes, updates=9, image_pixels=1, device=meta)
    loss, logits = train_steps(state, EpochMetrics(meta), settings.size, meta)
    assert loss.is_meta and logits.shape == (4, n_classes, 32, 48)
    with pytest.raises((RuntimeError, NotImplementedError)):  # as reading one is an error
        loss.item()


@needs_cuda_build
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("args", "n_classes"), STEPS)
def test_training_step_on_a_fake_gpu_never_waits(monkeypatch, args, n_classes, precision):
    settings = load_settings([*args, f"precision={precision}"])
    gpu = torch.device("cuda", 0)
    with fake_gpu():
        state = TrainState(settings, n_classes, updates=9, image_pixels=1, device=gpu)
        metrics = EpochMetrics(gpu)
        for parameter in state.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        state.optimizer.zero_grad = lambda: None
        with Watch() as watch:
            loss, logits = train_steps(state, metrics, settings.size, gpu)
        assert loss.device == logits.device == gpu and logits.dtype == torch.float32
        with Watch() as reading:
            metrics.sums[0].to("cpu")
    assert not watch.waits, watch.waits
    assert reading.waits  # so that Watch can fail


@needs_cuda_build
@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bf16"), ((7, 5), "fp16")])
def test_precision_on_a_fake_gpu_is_what_it_computes_natively(capability, precision):
    with fake_gpu(capability):
        gpu = torch.device("cuda", 0)
        state = TrainState(load_settings(UNET), 1, updates=9, image_pixels=1, device=gpu)
    assert state.precision == precision
    assert state.scaler.is_enabled() == (precision == "fp16")


def test_no_tensor_is_made_on_the_gpu_from_numbers():
    """torch.tensor(numbers, device="cuda") copies from pageable memory, which blocks."""
    found = []
    for folder in ("models", "training", "inference"):
        for path in sorted((ROOT / "src" / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                is_call = isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.tensor"
                if is_call and any(keyword.arg == "device" for keyword in node.keywords):
                    found.append(f"{path.name}:{node.lineno}")
    assert not found
