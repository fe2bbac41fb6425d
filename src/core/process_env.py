"""One process or several: which of them this is, and who of them speaks.

torchrun tells each process its rank in the environment; without it there is one process, rank 0.
"""

import os
import sys
from datetime import timedelta

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")


def is_distributed() -> bool:
    """Whether torchrun has started this process."""
    return "RANK" in os.environ


def rank() -> int:
    """This process's number among all."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number among those of its machine: the GPU that is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many processes this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def restart_count() -> int:
    """How often torchrun has started all processes anew after one failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def env_without_torchrun() -> dict[str, str]:
    """The environment without what torchrun told, for a script that is no part of the team."""
    return {k: v for k, v in os.environ.items() if not k.startswith(TORCHRUN_VARIABLES)}


STORE_TIMEOUT = timedelta(seconds=10)
stderr_fd = 2


def silence_other_ranks() -> None:
    """All but the first process fall silent, also the libraries in them; but for tell()."""
    global stderr_fd
    if not is_main_process() and stderr_fd == 2:
        stderr_fd = os.dup(2)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)


def report_error(line: str) -> None:
    """Say why this process ends; of several that end for one reason, the first one speaks."""
    sys.stdout.flush()
    if not is_distributed() or _claim_error_report():
        os.write(stderr_fd, f"{line}\n".encode())


def _claim_error_report() -> bool:
    from torch.distributed import DistError, TCPStore, is_initialized  # only where a team fails

    if not (is_initialized() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"):
        return True  # they have not met, and have nowhere to agree
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(*place, is_master=False, wait_for_workers=False, timeout=STORE_TIMEOUT)
        return store.add(f"told in {restart_count()}", 1) == 1
    except (DistError, RuntimeError):
        return True  # torchrun itself is gone
