"""The order of the training samples: shuffled by epoch, split into steps and among ranks."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from core import process_env


def samples_per_step(count: int, batch_size: int, processes: int) -> int:
    """Return the number of samples of a step over all ranks.

    This is `batch_size`, or `count` if there are fewer samples, rounded down to a multiple of
    `processes`.
    """
    return min(batch_size, count) // processes * processes


class EpochBatchSampler(Sampler):
    """This rank's part of each training step, as a list of keys (epoch, i).

    The order is a permutation drawn from (seed, epoch). All steps have the same number of samples,
    split equally among the ranks. Samples at the end of the permutation that do not fill a step are
    left out; they are different ones in each epoch. Keys contain the epoch, because worker
    processes outlive it. The first `start` steps are skipped, because an interrupted epoch has
    already done them.
    """

    def __init__(self, n_samples: int, batch_size: int, seed: int):
        self.n_samples, self.seed = n_samples, seed
        self.step_size = samples_per_step(n_samples, batch_size, process_env.world_size())
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Return the number of steps of a whole epoch."""
        return self.n_samples // self.step_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_samples)
        for step in range(self.start, len(self)):
            chosen = order[step * self.step_size : (step + 1) * self.step_size]
            local = np.split(chosen, process_env.world_size())[process_env.rank()]
            yield [(self.epoch, i) for i in local.tolist()]
