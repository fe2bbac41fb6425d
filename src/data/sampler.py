"""The order of the training samples: shuffled by epoch, split into steps and among ranks."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from core import process_env


def step_bounds(count: int, batch_size: int) -> list[int]:
    """Return where in an epoch its steps begin, and its end.

    A last step of a single sample, on which some networks cannot be trained, takes one sample from
    the previous step, unless that has only two.
    """
    bounds = [*range(0, count, batch_size), count]
    if len(bounds) > 2 and batch_size > 2 and bounds[-1] - bounds[-2] == 1:
        bounds[-2] -= 1
    return bounds


def smallest_batch(count: int, batch_size: int, processes: int) -> int:
    """Return the smallest number of samples that a process has in a step of an epoch of `count`."""
    return max(1, int(np.diff(step_bounds(count, batch_size)).min()) // processes)


def local_count(total: int) -> int:
    """Return how many of the `total` samples of a step this rank has."""
    return len(range(process_env.rank(), total, process_env.world_size()))


class EpochBatchSampler(Sampler):
    """This rank's part of each training step, as a list of keys (epoch, i).

    The order is a permutation drawn from (seed, epoch). A step of `batch_size` samples, or fewer
    at the end of the epoch, is divided evenly among the ranks; a rank without a sample gets one
    that must not be counted, see samples_in_step. Keys contain the epoch, because worker processes
    outlive it. The first `start` steps, which an interrupted epoch has done, are left out.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        self.count, self.seed = count, seed
        self.bounds = step_bounds(count, batch_size)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Return the number of steps of a whole epoch."""
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        for step in range(self.start, len(self)):
            chosen = order[self.bounds[step] : self.bounds[step + 1]]
            local = np.array_split(chosen, process_env.world_size())[process_env.rank()]
            yield [(self.epoch, i) for i in (local if len(local) else chosen[:1]).tolist()]

    def samples_in_update(self, step: int, n_steps: int) -> int:
        """Return how many samples of all ranks are in the update of a step: in `n_steps` steps, or
        in fewer at the end of the epoch."""
        first = step // n_steps * n_steps
        return self.bounds[min(first + n_steps, len(self))] - self.bounds[first]

    def samples_in_step(self, step: int) -> tuple[int, int]:
        """Return how many samples count in a step: (on this rank, on all ranks)."""
        total = self.bounds[step + 1] - self.bounds[step]
        return local_count(total), total
