"""Ctrl-C and SIGTERM: at once, or after a step; a script ends with 130 or 143."""

import os
import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(KeyboardInterrupt):
    """A signal asks this process to end, with exit status `code`."""

    def __init__(self, number: int):
        super().__init__()
        self.code = 128 + number


def install_handlers() -> None:
    """From here on a signal raises Stopped."""
    for number in SIGNALS:
        signal.signal(number, _raise)


def exit_immediately_on_signal() -> None:
    """From here on a signal ends this process without a word."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in SIGNALS:
        signal.signal(number, lambda number, _: os._exit(128 + number))


def ignore_signals_in_worker(seconds: int = 5) -> None:
    """For worker processes: Ctrl-C and SIGTERM reach them too, but the step that they serve is
    finished. They end some time after a SIGTERM, as whoever waits for their end sends one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(seconds))


def _raise(number: int, _: FrameType | None) -> None:
    if isinstance(sys.exc_info()[1], StopRequested):
        return  # it is on its way
    # Python drops what is raised in a destructor or around a fork: look again in a moment.
    signal.signal(signal.SIGALRM, lambda _, frame: _raise(number, frame))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    raise StopRequested(number)


class DeferSignals:
    """`with AfterStep() as asked`: the first signal is noted in `asked.number`, to end where it is
    safe, at the latest with the block; a second one raises Stopped at once."""

    number = 0

    def __enter__(self) -> "DeferSignals":
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        install_handlers()
        if self.number and raised is None:
            raise StopRequested(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            _raise(number, frame)
        self.number = number
