"""One fold in training: its network and all that moves with it, and what an epoch does."""

import math
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

import ondevice
from augment import Augment
from cache import Cache
from config import InputError
from datasets import fingerprint
from device import memory_advice, pick_device, pick_precision, why_not_compiled
from infer import Member, member
from labels import IGNORE
from loader import training_batches
from losses import LOSSES
from models import build
from optim import Average, make_optimizer, make_schedule
from row import Row
from settings import Settings


def make_engine(settings: Settings) -> Accelerator:
    """What brings network and batches to the device and runs them there in mixed precision."""
    device = pick_device(settings)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    precision = pick_precision(settings, device)
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device.type == "cpu",
        gradient_accumulation_steps=settings.accumulate,
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )


class Fold:
    """One fold in training: its network, and all that moves with it from step to step."""

    def __init__(
        self,
        settings: Settings,
        fold: int,
        rows: list[Row],
        cache: Cache | None,
        engine: Accelerator,
    ):
        self.settings, self.fold, self.engine, self.cache = settings, fold, engine, cache
        self.held_out = [row for row in rows if row.fold == fold]
        self.epoch, self.step, self.best, self.data = 0, 0, -1.0, fingerprint(rows)
        self.sums = Sums(engine.device)  # of the epoch's steps so far
        torch.manual_seed(draws(self))  # the first weights
        self.scheme = rows[0].scheme
        network = build(settings, len(self.scheme.names)).to(engine.device)
        self.average = Average(network, settings.ema)
        trained = [row for row in rows if row.fold != fold]
        self.augment = Augment(settings.augment, settings.seed, self.scheme)
        on_device = settings.augment_on == "gpu"
        self.resident = ondevice.resident(cache, engine.device) if on_device else None
        batches = training_batches(trained, settings, cache, self.resident is not None)
        self.shuffle = batches.sampler
        optimizer = make_optimizer(settings, network)
        self.network, self.optimizer, self.batches = engine.prepare(network, optimizer, batches)
        if why_not_compiled(settings, engine.device) is None:
            self.network.compile(dynamic=False)  # a shape is compiled at its first step
        updates = math.ceil(len(self.batches) / settings.accumulate) * settings.epochs
        self.schedule = make_schedule(settings, optimizer, updates)
        self.history: list[dict[str, Any]] = []

    def member(self) -> Member:
        """The averaged network, as `infer` takes it."""
        return member(self.average.module, self.settings)

    def finished(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """A batch as it comes → uint8 images B×3×h×w and targets B×1×h×w, augmented."""
        if self.settings.augment_on == "cpu":
            return batch
        *pair, draws = batch
        if self.resident is not None:
            pair = ondevice.gathered(self.resident, *pair, self.cache.size)
        return ondevice.augmented(*pair, draws, self.augment)

    def parts(self) -> dict[str, Any]:
        """Whatever has a state of its own."""
        network = self.engine.unwrap_model(self.network)
        parts = {"network": network, "average": self.average, "scaler": self.engine.scaler}
        parts |= {"sums": self.sums}
        parts |= {"optimizer": self.optimizer, "schedule": self.schedule}
        return {name: part for name, part in parts.items() if part is not None}

    def state(self) -> dict[str, Any]:
        """All that an exact resume needs after an update."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return {name: part.state_dict() for name, part in self.parts().items()} | numbers

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        for name in NUMBERS:
            setattr(self, name, state[name])

    @property
    def last_epoch(self) -> bool:
        """Whether the epoch in training is the last one."""
        return self.epoch + 1 == self.settings.epochs

    def end_epoch(self) -> None:
        """Turn to the next one."""
        self.epoch, self.step, self.sums = self.epoch + 1, 0, Sums(self.engine.device)


NUMBERS = ("epoch", "step", "best", "history")


class Sums:
    """What the steps of an epoch add up to: loss, Dice and accuracy stay on the device."""

    def __init__(self, device: torch.device):
        self.scores, self.images, self.seconds = torch.zeros(3, device=device), 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"scores": self.scores, "images": self.images, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.scores.copy_(state["scores"])
        self.images, self.seconds = state["images"], state["seconds"]

    def means(self) -> list[float]:
        """Loss, Dice and accuracy of an image. The CPU waits for the GPU here."""
        return (self.scores / self.images).tolist()


def draws(fold: Fold) -> int:
    """The seed of a step's dropout, so that a resumed run draws what an undisturbed one does."""
    known = fold.settings.seed, fold.fold, fold.epoch
    return ((fold.step * 1000 + known[0]) * 1000 + known[1]) * 100_000 + known[2]


# ---------------------------------------------------------------- an epoch


def train_epoch(fold: Fold, bar: tqdm, updated: Callable[[], None]) -> dict[str, float]:
    """One pass over the training images, or what is left of it; what it took, for history.csv.
    `updated` is called after every update of the weights."""
    fold.network.train()
    fold.shuffle.epoch, fold.shuffle.start = fold.epoch, fold.step * fold.settings.batch
    begun = time.perf_counter()
    for batch in fold.batches if fold.step < len(fold.batches) else []:
        torch.manual_seed(draws(fold))
        images, masks = fold.finished(batch)
        with memory_advice(fold.settings):
            loss, logits = train_step(fold, images, masks)
        fold.step += 1
        fold.sums.scores += torch.cat([loss[None] * len(images), batch_scores(logits, masks)])
        fold.sums.images += len(images)
        fold.sums.seconds += time.perf_counter() - begun
        bar.update(len(images))
        if fold.step % 50 == 1:  # reading the loss makes the CPU wait for the GPU: not every time
            bar.set_postfix_str(shown(fold, check_loss(fold.sums.means()[0], fold)))
        if fold.engine.sync_gradients:
            updated()
        begun = time.perf_counter()
    loss, dice, accuracy = fold.sums.means()
    return {
        "epoch": fold.epoch + 1,
        "lr": fold.optimizer.param_groups[0]["lr"],
        "loss": check_loss(loss, fold),
        "train_dice": dice,
        "train_accuracy": accuracy,
        "seconds": round(fold.sums.seconds, 2),
        "images_per_second": round(fold.sums.images / fold.sums.seconds, 2),
        "peak_gb": round(peak_memory() / 2**30, 3),
    }


def train_step(fold: Fold, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Forward, backward and, after `accumulate` of them, an update: loss and logits. The CPU waits
    for nothing here."""
    settings, engine = fold.settings, fold.engine
    with engine.accumulate(fold.network):
        logits = fold.network(images)
        soft = targets.float() / 255 if fold.scheme.binary else targets
        loss = LOSSES[settings.loss](logits, soft)
        engine.backward(loss)
        if engine.sync_gradients:
            if settings.clip:
                engine.clip_grad_norm_(fold.network.parameters(), settings.clip)
            update(fold)
        fold.optimizer.zero_grad()
    return loss.detach(), logits.detach()


def batch_scores(logits: Tensor, targets: Tensor) -> Tensor:
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


def shown(fold: Fold, loss: float) -> str:
    """What stands at the end of the progress bar."""
    return f"loss {loss:.4f}" + (f"  best dice {fold.best:.5f}" if fold.best >= 0 else "")


def update(fold: Fold) -> None:
    """One step of the weights, the learning rate and the average."""
    fold.optimizer.step()
    if not isinstance(fold.schedule, ReduceLROnPlateau):
        fold.schedule.step()
    fold.average.update(fold.engine.unwrap_model(fold.network))


def check_loss(loss: float, fold: Fold) -> float:
    """The loss if it is a number; else stop: nothing of this epoch has been written."""
    if math.isfinite(loss):
        return loss
    kept = f"the weights of epoch {fold.epoch} are kept" if fold.epoch else "nothing was kept"
    raise InputError(
        f"the loss became {loss} in epoch {fold.epoch + 1} of fold {fold.fold}; {kept}; start "
        f"another run= with a lower lr (now {fold.settings.lr:g}), clip=1 or amp=fp32"
    )


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
