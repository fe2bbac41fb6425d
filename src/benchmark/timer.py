"""How long a step takes."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

MIN_REPEATS = 16  # that a step is measured at the least


class StepTimer:
    """Steps by name: wall and CPU time of one image, in ms, each the median over its calls."""

    def __init__(self, device: torch.device):
        self.device, self.steps = device, {}

    def wait(self) -> None:
        """Until the GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, name: str, work: Callable[[Any], Any], things: Iterable, each: int = 1) -> None:
        """Do `work` with things of `each` images, in turn, some times. What it makes is dropped,
        as in the loops: memory that is taken anew is dear."""
        things, spent = list(things), []
        work(things[0])
        for thing in tqdm(things * -(-MIN_REPEATS // len(things)), name, leave=False, disable=None):
            self.wait()
            wall, cpu = time.perf_counter(), time.process_time()
            work(thing)
            self.wait()
            spent.append((time.perf_counter() - wall, time.process_time() - cpu))
        wall, cpu = np.median(spent, axis=0) * 1000 / each
        self.steps[name] = {"ms": wall, "cpu_ms": cpu, "images_per_second": 1000 / wall}

    def sum(self, names: list[str], column: str) -> float:
        """ms of these steps together."""
        return sum(self.steps[name][column] for name in names)
