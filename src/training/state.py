"""One fold in training: its network, and all that moves with it from step to step."""

import math
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from core import distributed, process_env
from core.device import compile_obstacle, pick_device, pick_precision
from core.run_folder import fold_dir
from core.settings import Settings
from data import ondevice
from data.augment import Augmenter
from data.cache import Cache
from data.datasets import dataset_fingerprint
from data.loaders import train_loader
from data.sample import Sample
from inference.predictor import EnsembleMember, make_member
from models.build import build_model
from training.optim import ModelEMA, make_optimizer, make_schedule


def make_accelerator(settings: Settings) -> Accelerator:
    """What brings network and batches to the device and runs them there in mixed precision."""
    device = pick_device(settings)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    precision = pick_precision(settings, device)
    engine = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device.type == "cpu",
        gradient_accumulation_steps=settings.grad_accumulation,
        dataloader_config=DataLoaderConfiguration(non_blocking=True, even_batches=False),
        kwargs_handlers=[distributed.PROCESS_GROUP_TIMEOUT],
    )
    distributed.init_process_group(device)
    return engine


class FoldTrainer:
    """One fold in training: its network, and all that moves with it from step to step."""

    def __init__(
        self,
        settings: Settings,
        fold: int,
        rows: list[Sample],
        cache: Cache | None,
        engine: Accelerator,
    ):
        self.settings, self.fold, self.engine, self.cache = settings, fold, engine, cache
        self.held_out = [row for row in rows if row.fold == fold]
        self.epoch, self.step, self.best, self.data = 0, 0, -1.0, dataset_fingerprint(rows)
        self.sums = EpochMetrics(engine.device)  # of the epoch's steps so far
        torch.manual_seed(step_seed(self))  # the first weights
        self.class_map = rows[0].class_map
        network = build_model(settings, len(self.class_map.names)).to(engine.device)
        self.average = ModelEMA(network, settings.ema_decay)
        trained = [row for row in rows if row.fold != fold]
        self.augment = Augmenter(settings.augmentation, settings.seed, self.class_map)
        on_device = settings.augment_on == "gpu"
        self.resident = ondevice.resident(cache, engine.device) if on_device else None
        batches = train_loader(trained, settings, cache, self.resident is not None)
        self.shuffle = batches.batch_sampler
        several = process_env.world_size() > 1 and engine.device.type == "cuda"
        if several and settings.batch_size // process_env.world_size() < SYNC_BN_BELOW:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        optimizer = make_optimizer(settings, network)
        self.network, self.optimizer, self.batches = engine.prepare(network, optimizer, batches)
        if compile_obstacle(settings, engine.device) is None:
            self.network.compile(dynamic=False)  # a shape is compiled at its first step
        updates = math.ceil(len(self.batches) / settings.grad_accumulation) * settings.epochs
        self.schedule = make_schedule(settings, optimizer, updates)
        self.history: list[dict[str, Any]] = []

    @cached_property
    def writer(self) -> SummaryWriter:
        """TensorBoard's, in the fold's folder."""
        return SummaryWriter(fold_dir(self.settings.run_dir, self.fold) / "tensorboard")

    def member(self) -> EnsembleMember:
        """The averaged network, as `infer` takes it."""
        return make_member(self.average.module, self.settings)

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
        parts |= {"optimizer": self.optimizer, "schedule": self.schedule, "sums": self.sums}
        return {name: part for name, part in parts.items() if part is not None}

    def state(self) -> dict[str, Any]:
        """All that an exact resume needs after an update; all processes ask for it together."""
        numbers = {name: getattr(self, name) for name in COUNTERS}
        return {name: part.state_dict() for name, part in self.parts().items()} | numbers

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        for name in COUNTERS:
            setattr(self, name, state[name])
        if not process_env.is_main_process():  # the first one's sums are those of all
            self.sums = EpochMetrics(self.engine.device)

    @property
    def last_epoch(self) -> bool:
        """Whether the epoch in training is the last one."""
        return self.epoch + 1 == self.settings.epochs

    def end_epoch(self) -> None:
        """Turn to the next one."""
        self.epoch, self.step, self.sums = self.epoch + 1, 0, EpochMetrics(self.engine.device)


SYNC_BN_BELOW = 16  # images of a process: with fewer, normalisation takes those of all
COUNTERS = ("epoch", "step", "best", "history")


class EpochMetrics:
    """What the steps of an epoch add up to: loss, Dice and accuracy stay on the device."""

    def __init__(self, device: torch.device):
        self.scores, self.images, self.seconds = torch.zeros(3, device=device), 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, of all processes."""
        scores, images = self.over_all()
        return {"scores": scores, "images": images, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.scores.copy_(state["scores"])
        self.images, self.seconds = state["images"], state["seconds"]

    def over_all(self) -> tuple[Tensor, int]:
        """The scores and the images of all processes."""
        both = distributed.all_reduce_sum(
            torch.cat([self.scores, self.scores.new_tensor([self.images])])
        )
        return both[:3], int(both[3])


def step_seed(fold: FoldTrainer) -> int:
    """The seed of a step's dropout, so that a resumed run draws what an undisturbed one does."""
    known = fold.settings.seed, fold.fold, fold.epoch
    step = fold.step * process_env.world_size() + process_env.rank()
    return ((step * 1000 + known[0]) * 1000 + known[1]) * 100_000 + known[2]
