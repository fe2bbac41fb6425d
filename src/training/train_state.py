"""TrainState: the network and everything that an update changes, in plain torch."""

from contextlib import nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau

from core import process_env
from core.device import compile_network, compile_obstacle, pick_precision, wants_compile
from core.settings import Settings
from data.sampler import local_count
from models import checkpoint
from models.build import build_model
from models.eager_autocast import forward_context
from training.losses import BINARY_LOSSES, MULTICLASS_LOSSES
from training.optim import ModelEMA, make_optimizer, make_schedule

# Pixels of a GPU's images at network size, for example four of 1024×1024. Batch normalization over
# fewer takes its statistics from all GPUs, for which it waits in every layer.
SYNC_BN_BELOW = 2**22
# For fewer updates, compiling and cuDNN's benchmarks take longer than they save. An estimate from
# an H200 (docs/experiments.md).
TUNE_MIN_UPDATES = 7000
STATE_PARTS = ("model", "ema", "optimizer", "lr_schedule", "scaler")  # of a snapshot


def has_few_pixels(settings: Settings, device: torch.device, n_processes: int) -> bool:
    """Whether each of several GPUs has too few pixels for batch normalization on its own."""
    height, width = settings.train_size or (0, 0)  # native sizes are not known here
    pixels = settings.batch_size // n_processes * height * width
    return device.type != "cpu" and n_processes > 1 and pixels < SYNC_BN_BELOW


def has_one_size(settings: Settings) -> bool:
    """Whether all images of training have one size: batches of native images have."""
    return settings.train_size is not None or settings.batch_size > 1


def convert_sync_batch_norm(model: nn.Module) -> nn.Module:
    """Replace batch normalization by one with the statistics of all GPUs. torch's conversion would
    drop the activations that timm's layers include."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if all(type(norm) is nn.BatchNorm2d for norm in norms):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    from timm.layers import convert_sync_batchnorm  # takes seconds, and model=unet does without

    return convert_sync_batchnorm(model)


def freeze_unused(model: nn.Module, settings: Settings) -> None:
    """Exclude parameters that the forward pass does not use from training, as in the last layer of
    some encoders: DDP waits for the gradient of each that is not excluded."""
    size, gradients = settings.train_size or (256, 256), {}
    # The device meta computes only shapes: it has no values to read, and lacks some operations.
    for device in ("meta", "cpu"):
        with suppress(RuntimeError) if device == "meta" else nullcontext():
            trial = deepcopy(model).to(device).train()
            trial(torch.zeros((2, 3, *size), dtype=torch.uint8, device=device)).sum().backward()
            gradients = {name: p.grad for name, p in trial.named_parameters()}
            break
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(gradients[name] is not None)


class TrainState:
    """Model, EMA, optimizer, learning rate schedule and gradient scaler.

    `model` is the Segmenter; `network` is what training calls: the same module, compiled, and
    wrapped by DDP if there are several processes. With `initial_weights`, a file, model and EMA
    start from these.
    """

    def __init__(
        self,
        settings: Settings,
        n_classes: int,
        updates: int,
        device: torch.device,
        initial_weights: Path | None = None,
    ):
        self.settings, self.device, self.is_binary = settings, device, n_classes == 1
        self.loss = (BINARY_LOSSES if self.is_binary else MULTICLASS_LOSSES)[settings.loss]
        self.precision = pick_precision(settings, device)
        self.model = build_model(settings, n_classes, pretrained=not initial_weights)
        if initial_weights:
            checkpoint.load_weights(initial_weights, self.model, "the network of this run")
        self.model.to(device)
        self.ema = ModelEMA(self.model, settings.ema_decay)
        self.is_compiled, self.is_long = False, updates >= TUNE_MIN_UPDATES
        tunes = wants_compile(settings, device, self.is_long)
        torch.backends.cudnn.benchmark = tunes and has_one_size(settings)
        self.network = self.wrap(self.model)
        self.optimizer = make_optimizer(settings, self.network)
        self.lr_schedule = make_schedule(settings, self.optimizer, updates)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return `model` compiled if the settings ask for it, and wrapped by DDP if needed."""
        if process_env.world_size() > 1:
            freeze_unused(model, self.settings)
        syncs = self.syncs_batch_norm(model)
        if syncs:
            model = convert_sync_batch_norm(model)
        if wants_compile(self.settings, self.device, self.is_long):
            obstacle = "SyncBatchNorm" if syncs else compile_obstacle(self.device)
            if obstacle:
                print(f"compile={self.settings.compile}: training without compiling, {obstacle}")
            else:
                compile_network(model.network, has_one_size(self.settings))
                self.is_compiled = True
        if process_env.world_size() == 1:
            return model
        device_ids = None if self.device.type == "cpu" else [self.device.index]
        return DistributedDataParallel(model, device_ids=device_ids)

    def syncs_batch_norm(self, model: nn.Module) -> bool:
        """Whether `model` has batch normalization, over too few pixels on each of several GPUs."""
        has_few = has_few_pixels(self.settings, self.device, process_env.world_size())
        return has_few and any(isinstance(m, nn.BatchNorm2d) for m in model.modules())

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits in fp32, as half precision overflows in the sums of the losses."""
        is_odd = len(images) != local_count(self.settings.batch_size)
        with forward_context(self.device, self.precision, self.is_compiled, is_odd):
            return self.network(images).float()

    def train_step(
        self, images: Tensor, targets: Tensor, weight: float = 1.0, is_update: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Run forward and backward; with `is_update`, also update the weights.

        images: B×3×h×w uint8; targets: B×1×h×w uint8. `weight`: this batch's part of the images of
        an update, times the number of ranks, whose gradients DDP averages. Returns loss and logits,
        detached, without synchronizing with the GPU.
        """
        no_sync = isinstance(self.network, DistributedDataParallel) and not is_update
        with self.network.no_sync() if no_sync else nullcontext():
            logits = self.forward(images)
            expected = targets.float() / 255 if self.is_binary else targets
            loss = self.loss(logits, expected)
            self.scaler.scale(loss * weight).backward()
        if is_update:
            self.update_weights()
        return loss.detach(), logits.detach()

    def update_weights(self) -> None:
        """Clip the gradients, update weights, learning rate and EMA, and clear the gradients."""
        if self.settings.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not isinstance(self.lr_schedule, ReduceLROnPlateau):
            self.lr_schedule.step()
        if process_env.is_main_process():
            self.ema.update(self.model)
        self.optimizer.zero_grad()

    def report_metric(self, metric: float) -> None:
        """Pass a validation score to the plateau schedule."""
        if isinstance(self.lr_schedule, ReduceLROnPlateau):
            self.lr_schedule.step(metric)

    def state_dict(self) -> dict[str, Any]:
        """State of all parts, for a snapshot."""
        return {name: getattr(self, name).state_dict() for name in STATE_PARTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict() returned. A run may resume in another precision."""
        for name in STATE_PARTS:
            if name != "scaler" or state[name]:
                getattr(self, name).load_state_dict(state[name])
