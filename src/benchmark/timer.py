"""StepTimer: the time per image of single steps; LoopTimer: the images per second of a loop."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import cycle
from typing import Any

import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm

from training.epoch_metrics import synchronized_time

MIN_STEP_SECONDS = 0.5
LOOP_SECONDS = 10.0


class StepTimer:
    def __init__(self):
        self.ms: dict[str, float] = {}  # median per image, by step

    def measure(
        self, name: str, fn: Callable, inputs: Sequence, images_per_input: int = 1
    ) -> list[Any]:
        """Time fn(x) on all cores, see median_seconds(). Return the results for all inputs."""
        self.ms[name] = 1000 * median_seconds(fn, inputs) / images_per_input
        return [fn(x) for x in inputs]


def median_seconds(fn: Callable, inputs: Sequence) -> float:
    """Return the median time of fn(x) in seconds, including its work on a GPU.

    The calls cycle through `inputs`. The first call is not timed, because it may compile: Timer
    would conclude that calls are slow, and make too few calls between two waits for the GPU.
    """
    fn(inputs[0])
    names = {"fn": fn, "inputs": cycle(inputs)}
    timer = Timer("fn(next(inputs))", globals=names, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=MIN_STEP_SECONDS).median


class LoopDone(Exception):
    """The loop has run for long enough."""


class LoopTimer(tqdm):
    """Hidden progress bar that counts a loop's images and ends the loop after LOOP_SECONDS.

    The clock starts after the first step, because this step starts workers and fills pipelines. The
    timer waits for a GPU when the clock starts and when it stops, but not in between.
    """

    def __init__(self, device: torch.device):
        super().__init__(disable=True)
        self.device, self.images, self.start, self.elapsed = device, 0, None, 0.0

    def update(self, n: float = 1) -> None:
        if self.start is None:
            self.start = synchronized_time(self.device)
            return
        self.images += n
        if time.monotonic() - self.start > LOOP_SECONDS:
            self.elapsed = synchronized_time(self.device) - self.start
            raise LoopDone

    def run(self, loop: Callable[[], None]) -> None:
        """Run the loop, several times if it is short, until LoopDone."""
        with suppress(LoopDone):
            while True:
                loop()

    @property
    def images_per_second(self) -> float:
        return self.images / self.elapsed
