"""TrainState: the network and everything that an update changes, in plain torch."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core import process_env
from core.device import pick_precision
from core.settings import Settings
from models import checkpoint
from models.build import build_model
from models.eager_autocast import forward_context
from training.losses import BINARY_LOSSES, MULTICLASS_LOSSES
from training.network_setup import prepare_network
from training.optim import ModelEMA, make_optimizer, make_schedule

STATE_PARTS = ("model", "ema", "optimizer", "lr_schedule", "scaler")  # saved in a snapshot


class TrainState:
    """Model, EMA, optimizer, learning rate schedule and gradient scaler.

    `model` is the Segmenter. `wrapped_model` is the same module as training calls it: possibly
    compiled, and wrapped in DDP if there are several processes.

    Args:
        updates: Number of updates in the whole training, the length of the learning rate schedule.
        image_pixels: Height × width of the first training image. With `updates`, it decides whether
            compiling pays.
        initial_weights: Weights file from which model and EMA start; None: random weights.
        pretrained: Load the pretrained encoder weights that the settings name, if any.
    """

    def __init__(
        self,
        settings: Settings,
        n_classes: int,
        updates: int,
        image_pixels: int,
        device: torch.device,
        initial_weights: Path | None = None,
        pretrained: bool = False,
    ):
        self.settings, self.device, self.is_binary = settings, device, n_classes == 1
        self.loss = (BINARY_LOSSES if self.is_binary else MULTICLASS_LOSSES)[settings.loss]
        self.precision = pick_precision(settings, device)
        self.model = build_model(settings, n_classes, pretrained)
        if initial_weights:
            checkpoint.load_weights(initial_weights, self.model, "the network of this run")
        self.model.to(device)
        self.ema = ModelEMA(self.model, settings.ema_decay)
        prepared = prepare_network(self.model, settings, device, updates, image_pixels)
        self.wrapped_model, self.is_compiled = prepared
        self.optimizer = make_optimizer(settings, self.wrapped_model)
        self.lr_schedule = make_schedule(settings, self.optimizer, updates)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits in fp32, as sums in losses and metrics overflow in half precision."""
        # Autocast, with the two exceptions in models/eager_autocast.py.
        with forward_context(self.device, self.precision, self.is_compiled):
            return self.wrapped_model(images).float()

    def train_step(
        self, images: Tensor, targets: Tensor, loss_weight: float = 1.0, is_update: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Run forward and backward of a step; if `is_update`, also update the weights.

        images: B×3×h×w uint8. targets: B×1×h×w uint8, coverage 0…255 for one class, else class ids.
        loss_weight: 1 / (steps per update). Returns the loss and the logits, detached. Does not
        wait for the GPU, except with RMSprop or SGD in fp16.
        """
        # DDP averages gradients over the ranks in a backward pass: once for an update is enough.
        skips_averaging = isinstance(self.wrapped_model, DistributedDataParallel) and not is_update
        with self.wrapped_model.no_sync() if skips_averaging else nullcontext():
            logits = self.forward(images)
            expected = targets.float() / 255 if self.is_binary else targets
            loss = self.loss(logits, expected)
            self.scaler.scale(loss * loss_weight).backward()
        if is_update:
            self.update_weights()
        return loss.detach(), logits.detach()

    def update_weights(self) -> None:
        """Clip the gradients, update weights, learning rate and EMA, and clear the gradients."""
        if self.settings.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.wrapped_model.parameters(), self.settings.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr_schedule.step()
        if process_env.is_main_process():  # FoldTrainer.validate() copies it to the others
            self.ema.update(self.model)
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all parts, for a snapshot."""
        return {name: getattr(self, name).state_dict() for name in STATE_PARTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict() returned. A run may resume in another precision."""
        for name in STATE_PARTS:
            # A disabled scaler has an empty state, which an enabled one does not load.
            if name != "scaler" or state[name]:
                getattr(self, name).load_state_dict(state[name])
