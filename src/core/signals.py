"""SIGINT and SIGTERM: stop at once, or after the current step. Scripts exit with 130 or 143."""

import os
import signal
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_S = 1.0  # a job scheduler and the launcher may both pass on one signal


class StopRequested(KeyboardInterrupt):
    """SIGINT or SIGTERM, `signum`, arrived; the script exits with `exit_code`."""

    def __init__(self, signum: int):
        super().__init__()
        self.signum, self.exit_code = signum, 128 + signum


def raise_on_signal() -> None:
    """Raise StopRequested at the first signal; a second one kills the process."""
    for signum in SIGNALS:
        signal.signal(signum, _raise)


def _raise(signum: int, _: FrameType | None) -> None:
    default_on_signal()
    raise StopRequested(signum)


def default_on_signal() -> None:
    """Let the next signal kill the process, as the operating system does by default."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


def ignore_signals_in_worker(seconds: int = 5) -> None:
    """Ignore SIGINT in a DataLoader worker, and exit `seconds` after SIGTERM.

    Ctrl-C and Slurm signal the workers as well, while the parent finishes its step. A parent that
    exits sends SIGTERM and waits for the workers, so the workers must exit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # torch would report an exit code other than 0.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(seconds))


class DeferSignals:
    """Record the first signal in `signum`, for a loop that stops after its current step.

    At the end of the block a recorded signal raises StopRequested. A second signal, after REPEAT_S,
    kills the process: snapshots and chunks on disk are kept. Outside the main thread, which alone
    receives signals, the block has no effect.
    """

    signum, received = 0, 0.0

    def __enter__(self) -> "DeferSignals":
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():
            self.handlers = {signum: signal.signal(signum, self._record) for signum in SIGNALS}
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)
        if self.signum and exception is None:
            raise StopRequested(self.signum)

    def _record(self, signum: int, _: FrameType | None) -> None:
        if not self.signum:
            self.signum, self.received = signum, time.monotonic()
        elif time.monotonic() - self.received > REPEAT_S:
            default_on_signal()
            os.kill(os.getpid(), signum)
