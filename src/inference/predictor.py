"""Predict the probabilities of images, for validation, out-of-fold scores and test images.

Apart from overlapping and precision, this is what predict() does:

    for batch in loader:
        probabilities = [predict_probability_tta(member.model, batch) for member in members]
        for i, image in enumerate(batch):
            yield keep(image, [p[i] for p in probabilities])

On a GPU three stages overlap. Worker processes load batches; one thread loads cached images. The
network thread runs the networks, up to two batches ahead of the caller. The caller consumes the
results, with map_in_threads() if that is slow. Only the caller waits for the GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from core.device import (
    compile_network,
    explain_out_of_memory,
    find_compile_error,
    pick_device,
    pick_precision,
    wants_compile,
)
from core.settings import Settings
from core.signals import DeferSignals
from core.threads import prefetch
from data.cache import Cache
from data.loaders import LoadedSample, SubBatch, prediction_loader
from data.preprocess import Preprocessing
from data.sample import Sample
from inference.combine import ImageProbabilities
from inference.device_copies import NETWORK_THREAD, record_event, to_device, to_host
from inference.members import EnsembleMember
from inference.tta import TTA_FLIPS, predict_probability_tta
from models.eager_autocast import forward_context
from models.segmenter import Segmenter

PREFETCHED_BATCHES = 2
MAX_TUNED_SHAPES = 8  # cudnn.benchmark tunes for each new shape; after so many it is turned off
# Compiling and cuDNN's benchmarks save more time than they take from this number of forward passes
# (of single images) on. Estimated from training on an H200 (docs/speed.md).
TUNE_MIN_PASSES = 10_000

# A Keep function reduces the probabilities of an image to named tensors on the device; only these
# are copied to the host. It must not synchronize with the device, for example through .item().
Keep = Callable[[ImageProbabilities], dict[str, Tensor]]


@dataclass
class Prediction:
    """What is kept of one image, on the host."""

    loaded: LoadedSample
    values: dict[str, Tensor]  # of a Keep; empty if the image could not be read

    @property
    def sample(self) -> Sample:
        return self.loaded.sample

    @property
    def probability(self) -> Tensor:
        """C×H×W if keep_mean() was used, M×C×H×W (one per member) if keep_each() was used."""
        return self.values["probability"]


def keep_mean(image: ImageProbabilities) -> dict[str, Tensor]:
    """Keep the weighted mean of the members, float32 C×H×W."""
    return {"probability": image.mean()}


def keep_each(image: ImageProbabilities) -> dict[str, Tensor]:
    """Keep the probabilities of all members, float32 M×C×H×W."""
    return {"probability": image.each()}


# ---------------------------------------------------------------- predicting samples


def predict(
    members: list[EnsembleMember],
    samples: list[Sample],
    settings: Settings,
    keep: Keep = keep_mean,
    with_mask: bool = False,
    cache: Cache | None = None,
) -> Iterator[Prediction]:
    """Yield a Prediction of each sample, in order.

    Args:
        keep: What is kept of an image's probabilities; by default the mean of the members.
        with_mask: Also load the masks, for `keep` and for Prediction.loaded.mask.
        cache: Read images and masks from here; all members must have the cache's preprocessing.
    """
    preprocessings = {member.preprocessing for member in members}
    loader = prediction_loader(samples, preprocessings, settings, with_mask, cache)
    with DeferSignals():  # Python drops what a handler raises while a worker process is forked
        batches = (batch for batch in iter(loader))  # a generator, which can be closed
    predictor = BatchPredictor(members, settings, keep)
    benchmark = torch.backends.cudnn.benchmark  # of training, which validation interrupts
    is_long = len(samples) * len(members) * len(TTA_FLIPS[settings.tta]) >= TUNE_MIN_PASSES
    if predictor.device.type == "cuda":  # on a CPU, loading would slow the networks down
        batches = prefetch(batches, 1)
    started = (predictor.start(batch) for batch in batches)
    pending = prefetch(started, PREFETCHED_BATCHES, NETWORK_THREAD)
    try:
        if is_long:
            # Tune in the thread that compiles: compiler settings are per thread since torch 2.12.
            NETWORK_THREAD.submit(predictor.tune).result()
        with explain_out_of_memory(settings, False), closing(batches), closing(pending):
            for started_batch in pending:
                yield from predictor.finish(started_batch)
    finally:
        torch.backends.cudnn.benchmark = benchmark


@dataclass
class StartedBatch:
    """A batch on which the device works; after wait() the tensors are valid."""

    batch: list[SubBatch]
    kept: list[dict[str, Tensor]]  # of each image, on the host; empty if it could not be read
    are_finite: list[Tensor]  # of each forward pass in fp16, a bool: whether its logits are finite
    wait: Callable[[], None]


class BatchPredictor:
    """Runs all members on a batch, and `keep` on each of its images."""

    def __init__(self, members: list[EnsembleMember], settings: Settings, keep: Keep):
        self.members, self.settings, self.keep = members, settings, keep
        self.device = pick_device(settings)
        self.set_precision(pick_inference_precision(settings, self.device))
        self.is_compiled, self.shapes = False, set()

    def set_precision(self, precision: str) -> None:
        """Predict in 'bf16', 'fp16' or 'fp32' from the next batch on."""
        # Set the models before the precision. Other threads that call a TrainedModel read the
        # precision first, so they never run a fused model in bf16.
        self.models = [member.model_for(precision) for member in self.members]
        self.precision = precision

    def select_device(self) -> None:
        """Make this process's GPU the current one of this thread; by default it is the first."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def tune(self) -> None:
        """Compile the networks and let cuDNN benchmark its kernels, if the settings ask for it."""
        if not wants_compile(self.settings, self.device, is_long=True):
            return
        self.select_device()
        torch.backends.cudnn.benchmark = True
        if not find_compile_error(self.device):
            for member, model in zip(self.members, self.models, strict=True):
                compile_network(model.network, member.preprocessing.size is not None)
            self.is_compiled = True

    @torch.inference_mode()
    def start(self, batch: list[SubBatch]) -> StartedBatch:
        """Start predicting a batch, without waiting for the device."""
        self.select_device()
        kept, are_finite = [], []
        for part in batch:
            if not part.images:  # unreadable
                kept += [{} for _ in part.samples]
                continue
            images = {key: to_device(x, self.device) for key, x in part.images.items()}
            self.shapes |= {x.shape for x in images.values()}
            if len(self.shapes) > MAX_TUNED_SHAPES:
                torch.backends.cudnn.benchmark = False
            probabilities, finite = self.run_members(images)
            for image in self.split_images(part, probabilities):
                kept.append({k: to_host(x) for k, x in self.keep(image).items()})
            are_finite += map(to_host, finite)
        return StartedBatch(batch, kept, are_finite, record_event(self.device))

    def finish(self, started: StartedBatch) -> list[Prediction]:
        """Wait for the predictions of a batch; if fp16 overflowed, predict it again without."""
        started.wait()
        if not all(started.are_finite):  # in the network thread, between two batches
            started = NETWORK_THREAD.submit(self.start_without_fp16, started.batch).result()
            started.wait()
        samples = [sample for part in started.batch for sample in part.samples]
        return [Prediction(*pair) for pair in zip(samples, started.kept, strict=True)]

    def split_images(
        self, part: SubBatch, probabilities: list[Tensor]
    ) -> Iterator[ImageProbabilities]:
        """Yield the ImageProbabilities of each image. `probabilities` has a tensor per member."""
        for i, loaded in enumerate(part.samples):
            pairs = [(member, p[i]) for member, p in zip(self.members, probabilities, strict=True)]
            mask = loaded.mask
            if mask is not None:
                mask = to_device(torch.from_numpy(mask), self.device)
            yield ImageProbabilities(loaded.sample, loaded.native_size, pairs, mask)

    def run_members(self, images: dict[Preprocessing, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run all members on uint8 images B×3×h×w, given by preprocessing; return device tensors.

        The first list has each member's probabilities, float32 B×C×h×w. The second list has one
        bool for each forward pass in fp16: whether its logits are finite.
        """
        probabilities, are_finite = [], []

        def checked(model: Segmenter, images: Tensor) -> Tensor:
            logits = model(images)
            are_finite.append(logits.isfinite().all())
            return logits

        precision, models = self.precision, self.models
        is_partial = any(len(x) != self.settings.batch_size for x in images.values())
        # A compiled network would be compiled again for a batch of another size.
        runs_eagerly = self.is_compiled and is_partial
        stance = torch.compiler.set_stance("force_eager") if runs_eagerly else nullcontext()
        with stance, forward_context(self.device, precision, self.is_compiled):
            for member, model in zip(self.members, models, strict=True):
                if precision == "fp16":
                    model = partial(checked, model)
                x = images[member.preprocessing]
                probabilities.append(predict_probability_tta(model, x, self.settings))
        return probabilities, are_finite

    def start_without_fp16(self, batch: list[SubBatch]) -> StartedBatch:
        """Change to the precision of training (to fp32 if that is fp16); start the batch again."""
        if self.precision == "fp16":
            precision = pick_precision(replace(self.settings, precision="auto"), self.device)
            if precision == "fp16":
                precision = "fp32"
            self.set_precision(precision)
            if precision == "bf16":  # runs the networks without fusing, which are not compiled
                self.is_compiled = False
            print(f"precision=fp16 overflows in this network: predicting in {precision}")
        return self.start(batch)


def pick_inference_precision(settings: Settings, device: torch.device) -> str:
    """Return 'bf16', 'fp16' or 'fp32'. On a GPU auto is fp16: as fast as bf16 and more exact."""
    if settings.precision == "auto" and device.type == "cuda":
        return "fp16"
    return pick_precision(settings, device)
