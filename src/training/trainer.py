"""What an epoch of training does with a fold."""

import math
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

from core import process_env
from core.device import explain_out_of_memory
from core.errors import InputError
from data.classes import IGNORE
from training.losses import LOSSES
from training.state import FoldTrainer, step_seed


def train_epoch(fold: FoldTrainer, bar: tqdm, updated: Callable[[], None]) -> dict[str, float]:
    """One pass over the training images, or what is left of it; what it took, for history.csv.
    `updated` is called after every update of the weights."""
    fold.network.train()
    fold.shuffle.epoch, fold.shuffle.start = fold.epoch, fold.step
    begun = time.perf_counter()
    for batch in fold.batches if fold.step < len(fold.batches) else []:
        torch.manual_seed(step_seed(fold))
        images, masks = fold.finished(batch)
        mine, whole = fold.shuffle.counts(fold.step)
        with explain_out_of_memory(fold.settings):
            loss, logits = train_step(fold, images, masks, mine * process_env.world_size() / whole)
        fold.step += 1
        if mine:
            fold.sums.scores += torch.cat([loss[None] * mine, batch_metrics(logits, masks)])
        fold.sums.images += mine
        fold.sums.seconds += time.perf_counter() - begun
        bar.update(whole)
        if fold.step % 50 == 1:  # reading the loss makes the CPU wait for the GPU: not every time
            mean = float(fold.sums.scores[0]) / max(fold.sums.images, 1)
            bar.set_postfix_str(progress_text(fold, require_finite_loss(mean, fold)))
        if fold.engine.sync_gradients:
            updated()
        begun = time.perf_counter()
    scores, seen = fold.sums.over_all()
    loss, dice, accuracy = (scores / seen).tolist()
    return {
        "epoch": fold.epoch + 1,
        "lr": fold.optimizer.param_groups[0]["lr"],
        "loss": require_finite_loss(loss, fold),
        "train_dice": dice,
        "train_accuracy": accuracy,
        "seconds": round(fold.sums.seconds, 2),
        "images_per_second": round(seen / fold.sums.seconds, 2),
        "peak_gb": round(peak_memory() / 2**30, 3),
    }


def train_step(
    fold: FoldTrainer, images: Tensor, targets: Tensor, weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Forward, backward and, after `accumulate` of them, an update: loss and logits. The CPU waits
    for nothing here. The gradients of several processes are averaged: `weight` is for those that
    have more images than others."""
    settings, engine = fold.settings, fold.engine
    with engine.accumulate(fold.network):
        logits = fold.network(images)
        soft = targets.float() / 255 if fold.class_map.is_binary else targets
        loss = LOSSES[settings.loss](logits, soft)
        engine.backward(loss * weight)
        if engine.sync_gradients:
            if settings.grad_clip:
                engine.clip_grad_norm_(fold.network.parameters(), settings.grad_clip)
            optimizer_step(fold)
        fold.optimizer.zero_grad()
    return loss.detach(), logits.detach()


def batch_metrics(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice and accuracy of what B×C×h×w logits say, each summed over the images: 2 numbers that
    stay on the device. Dice of several classes is the mean over those there or predicted."""
    if logits.shape[1] == 1:
        predicted, true = logits > 0, targets > 127
        counts = torch.ones_like(true)
    else:
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        counts = targets != IGNORE
        predicted = (logits.argmax(1, keepdim=True) == classes) & counts
        true = targets == classes
    both, sizes = (predicted & true).sum((2, 3)), predicted.sum((2, 3)) + true.sum((2, 3))
    there = (sizes > 0).sum(1)
    dice = (2 * both / sizes.clamp(min=1)).sum(1) / there.clamp(min=1)
    dice = torch.where(there > 0, dice, 1.0)
    wrong = ((predicted != true) & counts).any(1).sum((1, 2))
    accuracy = 1 - wrong / counts.sum((1, 2, 3)).clamp(min=1)
    return torch.stack([dice.sum(), accuracy.sum()])


def progress_text(fold: FoldTrainer, loss: float) -> str:
    """What stands at the end of the progress bar."""
    return f"loss {loss:.4f}" + (f"  best dice {fold.best:.5f}" if fold.best >= 0 else "")


def optimizer_step(fold: FoldTrainer) -> None:
    """One step of the weights, the learning rate and the average."""
    fold.optimizer.step()
    if not isinstance(fold.schedule, ReduceLROnPlateau):
        fold.schedule.step()
    if process_env.is_main_process():
        fold.average.update(fold.engine.unwrap_model(fold.network))


def require_finite_loss(loss: float, fold: FoldTrainer) -> float:
    """The loss if it is a number; else stop: nothing of this epoch has been written."""
    if math.isfinite(loss):
        return loss
    kept = f"the weights of epoch {fold.epoch} are kept" if fold.epoch else "nothing was kept"
    raise InputError(
        f"the loss became {loss} in epoch {fold.epoch + 1} of fold {fold.fold}; {kept}; start "
        f"another run= with a lower lr (now {fold.settings.lr:g}), grad_clip=1 or precision=fp32"
    )


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
