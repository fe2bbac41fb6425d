"""Number of the processes that load images, and their start."""

import sys
from typing import Any

import cv2

from core import machine, process_env, signals
from core.device import pick_device
from core.settings import Settings

# Forked processes share the cache in memory. Since Python 3.14, fork is not the default any more.
# Processes of the new default would each receive a copy of the cache. They would also outlive this
# process if it is killed. macOS has no safe fork.
START_METHOD = "fork" if sys.platform == "linux" else None


def choose_num_workers(settings: Settings, batch_bytes: int, is_cheap: bool) -> int:
    """Return the number of worker processes.

    This is `num_workers`, or by default one per core, at most 16. The default is 0 if loading is
    cheap and the network runs on the same cores. If the batches do not fit into shared memory,
    prints a message and returns a smaller number.

    Measured with the carvana_small network on 1918×1280 JPEGs, 2 cores, batches of 4: 18.2 ms per
    image with threads that decode between two forward passes, 20.2 ms with neither threads nor
    workers, 23.3 ms with 2 workers.
    """
    wanted = settings.num_workers
    if wanted is None:
        if is_cheap and pick_device(settings).type == "cpu":
            return 0
        wanted = machine.cores_per_process()
    # Two batches of each worker, one being trained on, one on its way to pinned memory.
    free = machine.free_shared_memory() // process_env.local_world_size()
    fitting = max(0, free // max(1, batch_bytes) - 2) // 2
    if wanted > fitting:
        process_env.print_once(
            f"num_workers={wanted}: the {free / 2**20:.0f} MB free in /dev/shm hold the batches of "
            f"{fitting} processes; for more, start the container with --shm-size=8g; using "
            f"{fitting}"
        )
    return min(wanted, fitting)


def worker_options(n: int) -> dict[str, Any]:
    """Return the arguments with which a DataLoader starts `n` worker processes."""
    context = START_METHOD if n else None
    return {"num_workers": n, "multiprocessing_context": context, "worker_init_fn": _init_worker}


def _init_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers already use all cores
    signals.ignore_signals_in_worker()
