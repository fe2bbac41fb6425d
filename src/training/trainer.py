"""FoldTrainer: the training loop of one fold, with validation, snapshots and exact resume.

A step is a forward and backward pass over one batch. An update changes the weights, after every
`grad_accumulation` steps. For one class, without accumulation, snapshots, signals and DDP:

    for epoch in range(epochs):
        for images, targets in loader:              # uint8, B×3×h×w and B×1×h×w
            loss(network(images), targets / 255).backward()    # TrainState.train_step
            clip_gradients(); optimizer.step(); lr_schedule.step(); ema.update(network)
            optimizer.zero_grad()
        score = validate(ema, held_out_images)      # if due; the best EMA is saved
"""

import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from core import distributed, process_env, provenance, run_folder
from core.device import pick_device
from core.errors import InputError
from core.settings import Settings
from core.signals import DeferSignals, StopRequested
from data.cache import Cache
from data.datasets import read_native_size
from data.fingerprint import dataset_fingerprint
from data.loaders import train_loader
from data.sample import Sample
from evaluation import oof, visualize
from inference.combine import ImageProbabilities
from inference.members import EnsembleMember, make_member
from inference.predictor import keep_mean, predict
from models import checkpoint
from models.segmenter import count_parameters
from training import epoch_metrics
from training.epoch_log import EpochLog
from training.epoch_metrics import EpochMetrics, peak_memory, synchronized_time
from training.initial_weights import find_initial_weights, needs_pretrained
from training.snapshots import SnapshotWriter, load_snapshot
from training.train_state import TrainState


class FoldTrainer:
    """Trains one fold; holds its samples, its TrainState, and its position (epoch and step)."""

    def __init__(self, settings: Settings, fold: int, samples: list[Sample], cache: Cache | None):
        self.settings, self.fold, self.cache = settings, fold, cache
        self.device = device = pick_device(settings)
        self.train_samples = [sample for sample in samples if sample.fold != fold]
        self.val_samples = [sample for sample in samples if sample.fold == fold]
        self.class_map, self.fingerprint = samples[0].class_map, dataset_fingerprint(samples)
        self.epoch, self.step, self.best_score, self.clock = 0, 0, -1.0, 0.0
        self.metrics, self.log = EpochMetrics(device), EpochLog(settings, fold)
        self.loader = train_loader(self.train_samples, settings, cache)
        self.snapshots = SnapshotWriter(run_folder.snapshot_dir(settings.run_dir, fold), device)
        updates = math.ceil(len(self.loader) / settings.grad_accumulation) * settings.epochs
        epoch_metrics.reset_peak_memory(device)
        torch.manual_seed(self.step_seed())  # for the initial weights; DDP takes those of rank 0
        weights = find_initial_weights(settings, fold, samples)
        n_classes, pretrained = len(self.class_map.names), needs_pretrained(settings, fold)
        pixels = math.prod(settings.train_size or read_native_size(self.train_samples[0]))
        self.state = TrainState(settings, n_classes, updates, pixels, device, weights, pretrained)

    def fit(self) -> None:
        """Train from the latest snapshot, or from scratch, to the last epoch."""
        self.resume()
        epochs, sampler = self.settings.epochs, self.loader.batch_sampler
        steps, done = epochs * len(sampler), self.epoch * len(sampler) + self.step
        with self.log.progress_bar(steps, done, sampler.step_size) as bar:
            while self.epoch < epochs:
                row = self.train_epoch(bar)
                is_last = self.epoch + 1 == epochs
                if is_last or (self.epoch + 1) % self.settings.validate_every_epochs == 0:
                    self.save_snapshot()  # if killed while validating, repeat only the validation
                    row |= self.validate()
                if process_env.is_main_process():
                    self.log.add_epoch(row)
                self.next_epoch()
                self.save_snapshot()
        self.snapshots.wait()
        if process_env.is_main_process():
            self.log.writer.close()

    def train_epoch(self, bar: tqdm) -> dict[str, float]:
        """Train for the rest of the epoch; return its columns of history.csv."""
        self.state.wrapped_model.train()
        sampler = self.loader.batch_sampler
        sampler.epoch, sampler.start = self.epoch, self.step
        self.clock = time.monotonic()
        with DeferSignals() as stop:
            for batch in self.loader:
                if self.epoch == self.step == 0 and process_env.is_main_process():
                    self.log.save_first_batch(*batch, self.class_map)
                images, targets = (part.to(self.device, non_blocking=True) for part in batch)
                if self.train_batch(images, targets, bar):  # no gradients are pending
                    self.save_if_due(stop.signum)
            self.count_seconds()
            self.save_if_due(stop.signum)  # a signal may have come while the GPU was finishing
        return self.epoch_summary()

    def count_seconds(self) -> None:
        """Add the training time since `clock` to that of the epoch, and restart the clock."""
        now = synchronized_time(self.device)
        self.metrics.seconds += now - self.clock
        self.clock = now

    def save_if_due(self, signum: int) -> None:
        """Save a snapshot if snapshot_seconds have passed or if any process got a signal. After a
        signal, also raise StopRequested. All ranks save and stop after the same update."""
        is_due = time.monotonic() - self.clock > self.settings.snapshot_seconds
        due, stopping = distributed.all_reduce_any([is_due, bool(signum)])
        if not (due or stopping):
            return
        self.count_seconds()
        self.save_snapshot()
        if stopping:
            self.snapshots.wait()
            raise StopRequested(signum or signal.SIGTERM)
        self.clock = time.monotonic()  # without the time that saving took

    def train_batch(self, images: torch.Tensor, targets: torch.Tensor, bar: tqdm) -> bool:
        """Train on this rank's part of a step; return whether the weights were updated."""
        torch.manual_seed(self.step_seed())  # dropout is reproducible after resume
        sampler, accumulation = self.loader.batch_sampler, self.settings.grad_accumulation
        first = self.step // accumulation * accumulation  # first step of the current update
        n_steps = min(accumulation, len(sampler) - first)  # fewer at the end of the epoch
        self.step += 1
        is_update = self.step == first + n_steps
        self.metrics.lr = self.state.optimizer.param_groups[0]["lr"]
        loss, logits = self.state.train_step(images, targets, 1 / n_steps, is_update)
        self.metrics.add(loss, logits, targets)
        bar.update(sampler.step_size)
        if self.step % 50 == 1:  # rarely: reading the loss synchronizes with the GPU
            bar.set_postfix_str(f"loss {self.require_finite(self.metrics.mean_loss()):.4f}")
        return is_update

    def step_seed(self) -> int:
        """Return the seed of this rank's random numbers in the current step, such as dropout."""
        step = self.step * process_env.world_size() + process_env.rank()
        key = [self.settings.seed, self.fold + 1, self.epoch, step]  # + 1: bench.py trains fold −1
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])

    def epoch_summary(self) -> dict[str, float]:
        """Return the training columns of history.csv for the epoch (all ranks call this)."""
        sums, images = self.metrics.reduced()
        loss, dice, accuracy = (sums / images).tolist()
        return {
            "epoch": self.epoch + 1,
            "lr": self.metrics.lr,
            "loss": self.require_finite(loss),
            "train_dice": dice,
            "train_accuracy": accuracy,
            "seconds": round(self.metrics.seconds, 2),
            "images_per_second": round(images / self.metrics.seconds, 2),
            "peak_gb": round(peak_memory(self.device) / 2**30, 3),
        }

    def require_finite(self, loss: float) -> float:
        """Return `loss`; raise InputError if it is NaN or infinite."""
        if math.isfinite(loss):
            return loss
        kept = "the best weights are kept" if self.best_score >= 0 else "no weights were saved"
        raise InputError(
            f"the loss is {loss} in epoch {self.epoch + 1} of fold {self.fold}; {kept}; start "
            f"another run= with a lower lr (now {self.settings.lr:g}), grad_clip=1 or "
            "precision=fp32"
        )

    def next_epoch(self) -> None:
        """Advance to the first step of the next epoch."""
        self.epoch, self.step, self.metrics = self.epoch + 1, 0, EpochMetrics(self.device)

    # ---------------------------------------------------------------- validation

    def validate(self) -> dict[str, float]:
        """Score the EMA network on the held-out images, at native size and without TTA. Save it if
        checkpoint_metric has improved. Return the mean Dice and accuracy."""
        distributed.broadcast_module(self.state.ema.module)
        scores = distributed.map_sharded(self.score_samples, self.val_samples)
        means = pd.DataFrame(scores).mean().to_dict()
        metric = means[f"val_{self.settings.checkpoint_metric}"]
        if metric > self.best_score:
            self.best_score = metric
            if process_env.is_main_process():
                path = run_folder.weights_path(self.settings.run_dir, self.fold)
                metadata = self.checkpoint_metadata() | means
                self.snapshots.wait()  # a kill must not leave new weights without a snapshot
                checkpoint.save_model(path, self.state.ema.module, self.settings, metadata)
        return means

    def ema_member(self) -> EnsembleMember:
        """Return the EMA network as an ensemble member."""
        return make_member(self.state.ema.module, self.settings)

    def score_samples(self, samples: list[Sample]) -> Iterator[dict[str, float]]:
        """Yield the scores of each sample without TTA; log the first three to TensorBoard."""
        settings, shown = replace(self.settings, tta="none"), samples[:3]

        def keep(image: ImageProbabilities) -> dict[str, torch.Tensor]:
            return oof.keep_statistics(image) | (keep_mean(image) if image.sample in shown else {})

        members = [self.ema_member()]
        predictions = predict(members, samples, settings, keep, with_mask=True, cache=self.cache)
        for i, prediction in enumerate(oof.with_progress_bar(predictions, samples, "validate")):
            if i < len(shown) and process_env.is_main_process():
                picture = visualize.thumbnail(prediction)
                self.log.writer.add_image(f"val/{i}", picture, self.epoch + 1, dataformats="HWC")
            yield oof.validation_scores(prediction)

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Return the metadata stored with the weights."""
        folder = run_folder.fold_dir(self.settings.run_dir, self.fold)
        return {
            **self.class_map.metadata,
            "fold": self.fold,
            "data": self.fingerprint,
            "epoch": self.epoch + 1,
            "parameters": count_parameters(self.state.model),
            "precision": self.state.precision,
            "command": provenance.train_command(folder),
            "commit": provenance.current_commit(),
        }

    # ---------------------------------------------------------------- snapshots

    def save_snapshot(self) -> None:
        """Start saving everything that exact resume needs (all ranks call this; rank 0 writes)."""
        snapshot = self.state.state_dict() | {
            "metrics": self.metrics.state_dict(),
            "history": self.log.rows,
            "epoch": self.epoch,
            "step": self.step,
            "best_score": self.best_score,
            "fingerprint": self.fingerprint,
        }
        if process_env.is_main_process():
            self.snapshots.start(snapshot)

    def resume(self) -> None:
        """Restore the latest snapshot, if there is one (all ranks call this)."""
        snapshot = load_snapshot(self.snapshots.folder, self.fingerprint)
        position = f"{snapshot['epoch']}-{snapshot['step']}" if snapshot else "none"
        distributed.assert_equal_on_all_ranks({"snapshot": position})
        if snapshot is None:
            return
        self.state.load_state_dict(snapshot)
        if process_env.is_main_process():  # rank 0 continues the sums of all ranks
            self.metrics.load_state_dict(snapshot["metrics"])
        self.log.rows, self.best_score = snapshot["history"], snapshot["best_score"]
        self.epoch, self.step = snapshot["epoch"], snapshot["step"]
        at = f" and step {self.step} of {len(self.loader)}" if self.step else ""
        print(f"fold {self.fold}: resuming after epoch {self.epoch} of {self.settings.epochs}{at}")
