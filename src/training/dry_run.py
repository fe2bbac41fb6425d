"""Check, before training, that a network can be trained on all batches. Estimate its memory."""

from collections.abc import Collection
from copy import deepcopy
from math import prod

import torch
from torch import Tensor

from core import distributed, machine
from core.device import pick_device, pick_precision, smaller_for_training
from core.errors import InputError
from core.settings import Settings, format_value
from data.preprocess import Size
from data.sample import Sample
from data.sampler import samples_per_step
from models.segmenter import Segmenter
from training.network_setup import needs_sync_batch_norm

MEMORY_FACTOR = 1.5  # a step on a CPU took 1.2 to 1.5 times as much as activation_bytes()
TRAINING_COPIES = 5  # weights, gradients, two moments of Adam, EMA


def check_batches(
    settings: Settings,
    model: Segmenter,
    folds: list[int],
    samples: list[Sample],
    native_sizes: Collection[Size],
) -> None:
    """Raise InputError if `model` cannot be trained on the batches of these folds.

    Batch normalization needs two values per channel. A network that pools an image to one pixel
    has one value per image, so each process needs two images in a step.
    """
    processes = distributed.count_processes()
    count = min(sum(sample.fold != fold for sample in samples) for fold in folds)
    if count < processes:
        raise InputError(
            f"{count} training images are too few for {processes} processes; use {count} or fewer"
        )
    sizes = [tuple(settings.train_size)] if settings.train_size else native_sizes
    smallest, largest = extreme_sizes(sizes)
    names = ["arch", "encoder"] if settings.model == "smp" else ["model", "channels", "norm"]
    network = " ".join(f"{name}={format_value(getattr(settings, name))}" for name in names)
    for size in {smallest, largest}:
        if error := find_training_error(model, 2, size):
            found = f"cannot be trained on images of size={format_value([*size])}: {error}"
            raise InputError(f"{network}: {found}")
    if settings.crop_size and not settings.tile_size:
        whole_sizes = [tuple(settings.size)] if settings.size else native_sizes
        for size in {*extreme_sizes(whole_sizes)}:
            if error := find_training_error(model, 2, size):
                found = f"cannot predict whole images of size={format_value([*size])}: {error}"
                raise InputError(f"{network}: {found}; leave out crop_size, or set tile_size")
    has_singles = samples_per_step(count, settings.batch_size, processes) == processes
    step_pixels = settings.batch_size // processes * prod(largest)
    syncs = needs_sync_batch_norm(pick_device(settings), processes, step_pixels)
    if has_singles and not syncs and find_training_error(model, 1, smallest):
        fix = f"set batch_size={2 * processes}" if count >= 2 * processes else "add images"
        raise InputError(
            f"batch_size={settings.batch_size}: {network} cannot be trained on a single image of "
            f"size={format_value([*smallest])} per step and process, because of batch "
            f"normalization; {fix}"
        )
    if pick_device(settings).type == "cpu":
        warn_of_memory(settings, model, largest)


def extreme_sizes(sizes: Collection[Size]) -> tuple[Size, Size]:
    """Return the size with the shortest longer side, and the one with the most pixels.

    If any size shrinks to one pixel in the encoder, the first one does.
    """
    return min(sizes, key=max), max(sizes, key=prod)


def warn_of_memory(settings: Settings, model: Segmenter, size: Size) -> None:
    """Print a warning if a training step on the CPU may take more memory than is available.

    The system kills a process that takes too much, without a message.
    """
    needed = MEMORY_FACTOR * activation_bytes(model, size) * settings.batch_size
    if pick_precision(settings, torch.device("cpu")) == "bf16":
        needed /= 2
    needed += TRAINING_COPIES * sum(parameter.nbytes for parameter in model.parameters())
    if needed > (available := machine.available_memory()):
        print(
            f"warning: a step of batch_size={settings.batch_size} at size={size[0]},{size[1]} "
            f"may take {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} are "
            f"available; if it is killed, try {smaller_for_training(settings)}"
        )


def activation_bytes(model: Segmenter, size: Size) -> int:
    """Return a lower bound of the memory that a training step in fp32 takes per image, in bytes.

    Counts the tensors that the forward pass saves for the backward pass. Runs on torch's device
    `meta`, which computes only shapes. Returns 0 if the network cannot run there.
    """
    saved = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[id(storage)] = storage
        return tensor

    on_meta = deepcopy(model).to("meta").train()
    images = torch.zeros((2, 3, *size), dtype=torch.uint8, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            on_meta(images)
    except Exception:  # of any type: networks come from several libraries
        return 0
    for tensor in on_meta.state_dict().values():
        saved.pop(id(tensor.untyped_storage()), None)
    return sum(storage.nbytes() for storage in saved.values()) // 2


def find_training_error(model: Segmenter, n_images: int, size: tuple[int, int]) -> str:
    """Return why `model` cannot be trained on a batch of `n_images` of `size` (h, w); '' if it can.

    Runs a forward pass on torch's device `meta`, which computes only shapes. If `meta` lacks an
    operation, runs it on the CPU.
    """
    reason = ""
    for device in ("meta", "cpu"):
        images = torch.zeros((n_images, 3, *size), dtype=torch.uint8, device=device)
        try:
            with torch.no_grad():
                deepcopy(model).to(device).train()(images)
            return ""
        except Exception as error:  # of any type: networks come from several libraries
            reason = " ".join(str(error).split())[:200]
        if "meta" not in reason.lower():
            break
    return reason
