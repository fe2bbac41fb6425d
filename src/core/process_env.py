"""Rank and world size from torchrun's environment variables, and who prints. Imports no torch."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path

from core.errors import InputError

LAUNCHED = "CARVANA_LAUNCHED"  # set for the processes that launch_processes() starts


def require_all_variables() -> None:
    """Raise InputError if only some of torchrun's variables are set, for example by a scheduler."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if missing and (is_distributed() or world_size() > 1):
        raise InputError(
            f"the environment lacks {missing[0]}, but has other variables of torchrun; unset RANK "
            "and WORLD_SIZE to run one process, or start several with GPUS= or torchrun"
        )


def is_distributed() -> bool:
    """Whether torchrun or launch_processes() started this process."""
    return bool(os.environ.get("RANK"))


def is_launched() -> bool:
    """Whether launch_processes() started this process, after it had checked everything."""
    return LAUNCHED in os.environ and is_distributed()


def rank() -> int:
    """Return the rank of this process among all processes."""
    return int(os.environ.get("RANK") or 0)


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def local_rank() -> int:
    """Return the rank of this process on its machine: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process prints and writes files."""
    return rank() == 0


def restart_count() -> int:
    """Return how often torchrun has restarted all processes after one failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def silence_other_ranks() -> None:
    """Discard what processes other than the main one print."""
    if not is_main_process():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


@cache
def print_once(line: str) -> None:
    """Print a line, but not a second time in this process."""
    print(line)


@contextmanager
def silenced() -> Iterator[None]:
    """Discard what the block prints.

    After the block, print_once() may print these lines again.
    """
    with redirect_stdout(None):
        yield
    print_once.cache_clear()


def report_error(message: str, exit_code: int) -> None:
    """Print why this process ends; under torchrun, write it to the error file instead.

    The launcher reads the error files of all processes and prints the first failure only.
    """
    sys.stdout.flush()
    if error_file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        # torch's threads may abort a process that exits, so its own code could be another one.
        error = {"message": message, "timestamp": int(time.time()), "exit_code": exit_code}
        Path(error_file).write_text(json.dumps(error), encoding="utf-8")
    else:
        print(message, file=sys.__stderr__)
