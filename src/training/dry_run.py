"""Check before training that a network can be trained on the smallest batch of an epoch."""

from copy import deepcopy

import torch

from core.config import format_value
from core.device import pick_device
from core.errors import InputError
from core.settings import Settings
from data.sampler import smallest_batch
from models.segmenter import Segmenter
from training.network_setup import has_few_pixels


def check_batches(
    settings: Settings,
    model: Segmenter,
    size: tuple[int, int],
    counts: list[int],
    n_processes: int,
) -> None:
    """Raise InputError if `model` cannot be trained on images of this size (h, w), or not on the
    single image that a process has in some step of an epoch of `counts` images.

    Batch normalization needs two values per channel. A network that pools an image to one pixel
    has one value per image.
    """
    names = ["arch", "encoder"] if settings.model == "smp" else ["model", "channels", "norm"]
    network = " ".join(f"{name}={format_value(getattr(settings, name))}" for name in names)
    shape = f"size={size[0]},{size[1]}"
    if obstacle := find_obstacle(model, 2, size):
        raise InputError(f"{network}: cannot be trained on images of {shape}: {obstacle}")
    syncs = has_few_pixels(settings, pick_device(settings), n_processes)
    singles = find_singles(counts, settings.batch_size, n_processes)
    if syncs or not singles or not find_obstacle(model, 1, size):
        return
    larger = range(settings.batch_size + 1, max(counts) + 1)
    fits = (n for n in larger if not find_singles(counts, n, n_processes))
    fix = next((f"set batch_size={n}" for n in fits), "add images")
    where = f" on one of {n_processes} processes" if n_processes > 1 else ""
    raise InputError(
        f"batch_size={settings.batch_size}: a step has only one of {singles[0]} training images"
        f"{where}, and {network} cannot be trained on a single image of {shape}, because of batch "
        f"normalization; {fix}"
    )


def find_singles(counts: list[int], batch_size: int, n_processes: int) -> list[int]:
    """Return the image counts for which some process gets a single image in a step."""
    return [count for count in counts if smallest_batch(count, batch_size, n_processes) == 1]


def find_obstacle(model: Segmenter, n_images: int, size: tuple[int, int]) -> str:
    """Return why `model` cannot be trained on a batch of `n_images` of `size` (h, w); '' if it can.

    Tries it on torch's device `meta`, which computes only shapes, and on the CPU if that lacks an
    operation.
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
