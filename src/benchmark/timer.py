"""StepTimer: the time per image of single steps."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch
from torch.utils.benchmark import Timer

MIN_SECONDS = 0.5  # per step


class StepTimer:
    def __init__(self):
        self.ms: dict[str, float] = {}  # median per image, by step

    def measure(
        self, name: str, fn: Callable, inputs: Sequence, images_per_input: int = 1
    ) -> list[Any]:
        """Time fn(x) for x in `inputs` in turn, on all cores; return the results of one round."""
        names = {"fn": fn, "inputs": cycle(inputs)}
        timer = Timer("fn(next(inputs))", globals=names, num_threads=torch.get_num_threads())
        median = timer.blocked_autorange(min_run_time=MIN_SECONDS).median
        self.ms[name] = 1000 * median / images_per_input
        return [fn(x) for x in inputs]
