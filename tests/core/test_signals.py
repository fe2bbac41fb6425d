"""The first SIGINT or SIGTERM stops at once or after a step; the second one kills the process."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT

from core import signals
from core.signals import DeferSignals, StopRequested


@pytest.fixture(autouse=True)
def raising_handlers(restored_handlers):
    signals.raise_on_signal()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_raise_on_signal_raises_with_the_exit_code_of_the_signal(signum, code):
    with pytest.raises(StopRequested) as stop:
        os.kill(os.getpid(), signum)
    assert stop.value.exit_code == code


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_defer_signals_records_the_first_signal_and_raises_at_the_end(signum, code):
    finished = False
    with pytest.raises(StopRequested) as stop, DeferSignals() as pending:
        assert not pending.signum
        os.kill(os.getpid(), signum)
        finished = pending.signum == signum
    assert finished and stop.value.exit_code == code


def test_defer_signals_does_not_replace_an_exception_of_the_block():
    with pytest.raises(ZeroDivisionError), DeferSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ZeroDivisionError
    with pytest.raises(StopRequested):  # and the next signal is raised at once again
        os.kill(os.getpid(), signal.SIGTERM)


def test_defer_signals_restores_the_handlers_of_a_program_that_calls_the_scripts():
    handlers = [signal.signal(signum, lambda *_: None) for signum in signals.SIGNALS]
    own = [signal.getsignal(signum) for signum in signals.SIGNALS]
    with DeferSignals():
        pass
    assert [signal.getsignal(signum) for signum in signals.SIGNALS] == own != handlers


def test_defer_signals_has_no_effect_in_another_thread():
    own = signal.getsignal(signal.SIGINT)

    def defer():
        with DeferSignals():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(defer).result() is own


DEFER_THREE_SIGNALS = """
import os, signal, time
from core import signals
with signals.DeferSignals():
    os.kill(os.getpid(), signal.SIGTERM)
    print("first", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("the same from another sender", flush=True)
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGTERM)
    print("second", flush=True)
"""


def test_defer_signals_lets_the_second_signal_kill_the_process_after_a_second():
    command = [sys.executable, "-c", DEFER_THREE_SIGNALS]
    completed = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True)
    assert completed.returncode == -signal.SIGTERM
    assert completed.stdout == "first\nthe same from another sender\n"


IGNORE_SIGNALS = """
import time
from core import signals
signals.ignore_signals_in_worker(seconds=1)
print("ready", flush=True)
time.sleep(60)
"""


def test_ignore_signals_in_worker_survives_ctrl_c_and_exits_after_sigterm():
    command = [sys.executable, "-c", IGNORE_SIGNALS]
    worker = subprocess.Popen(command, cwd=ROOT / "src", stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "ready\n"
    worker.send_signal(signal.SIGINT)
    worker.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.3)
    assert worker.wait(20) == 0  # a parent that exits sends SIGTERM and waits for its workers
