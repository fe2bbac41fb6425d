"""A signal is noted until it is safe; a second one is not waited for."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from core import signals
from core.signals import DeferSignals, StopRequested


@pytest.fixture(autouse=True)
def handlers():
    """Those of pytest come back."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signals.install_handlers()
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_the_end_of_a_step(number, code):
    finished = False
    with pytest.raises(StopRequested) as stopped, DeferSignals() as asked:
        assert not asked.number
        os.kill(os.getpid(), number)
        finished = asked.number == number
    assert finished and stopped.value.code == code


def test_a_second_signal_and_one_between_steps_are_at_once():
    reached = False
    with pytest.raises(StopRequested), DeferSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        reached = True
    assert not reached
    with pytest.raises(StopRequested):
        os.kill(os.getpid(), signal.SIGINT)


def test_it_is_not_raised_once_more_while_it_is_on_its_way():
    with pytest.raises(StopRequested):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            time.sleep(0.5)
            cleaned = True
    assert cleaned


WORKER = """
import sys, time
sys.path.insert(0, "src")
import stopping
stopping.linger(1)
print("there", flush=True)
time.sleep(60)
"""


def test_a_worker_outlives_a_signal_and_yet_ends():
    command = [sys.executable, "-c", WORKER]
    worker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "there\n"
    worker.send_signal(signal.SIGINT)
    worker.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.3)
    assert worker.wait(30) == -signal.SIGALRM


class Dying:
    """Gets a signal in its destructor, where Python drops what is raised."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_within_a_destructor_is_not_lost():
    thing = Dying()
    with pytest.raises(StopRequested):
        del thing
        time.sleep(5)
