"""Common start and end of all scripts: argument checks, one-line errors and exit codes."""
# ruff: noqa: E402

import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from core import environment

environment.reject_windows()
sys.excepthook = environment.explain_missing_package  # before the first import of a package

from core import machine, process_env, signals
from core.config import SRC, load_settings
from core.errors import WRITE_REMEDIES, InputError
from core.help import help_text
from core.settings import FIELDS
from core.signals import StopRequested

# Matches messages of collective operations that fail because another process is gone.
PEER_FAILURE = "gloo|NCCL|c10d|Connection (closed|reset)|Broken pipe"


def check_arguments() -> None:
    """Check the settings or print the help, before the slow import of torch.

    Also sets the variables that torch's libraries read at import, and makes glibc keep freed
    memory.
    """
    run_main(_check_arguments)
    machine.set_thread_defaults()
    machine.keep_freed_memory()


def _check_arguments(args: list[str]) -> None:
    words = {"help", "--help", "-h"}
    if words & {*args}:
        print(help_text([arg for arg in args if arg not in words and "=" not in arg]))
        sys.exit(0)
    for one, next_one in pairwise(args):  # bash expands fold={0,1} to fold=0 fold=1
        name = one.partition("=")[0]
        if one != next_one and name == next_one.partition("=")[0]:
            is_list = name in FIELDS and "list" in str(FIELDS[name].type)
            fix = f"write a list as {name}=a,b" if is_list else "it takes one value"
            raise InputError(f"{one} {next_one}: {name} is set twice; {fix}")
    load_settings(args)


def run_main(main: Callable[[list[str]], object], resume_hint: str = "") -> None:
    """Run main(sys.argv[1:]) and turn errors into exit codes.

    An error that the user can fix prints one line and exits with 2. A signal prints `resume_hint`
    and exits with 128 + signal number.
    """
    name = Path(sys.argv[0]).name
    if "#" in sys.argv:  # an interactive zsh passes a comment on as arguments
        del sys.argv[sys.argv.index("#") :]
    sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show, as \xd7
    signals.raise_on_signal()
    try:
        process_env.require_all_variables()
        process_env.silence_other_ranks()
        main(sys.argv[1:])
    except InputError as error:
        _report_and_exit(f"{name}: {error}", 2)
    except StopRequested as stop:
        _report_and_exit(f"{name}: stopped{resume_hint and f'; {resume_hint}'}", stop.exit_code)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in WRITE_REMEDIES:
            remedy = WRITE_REMEDIES[error.errno]
            problem = f"{error.filename or 'writing'}: {error.strerror}; {remedy}"
            hint = resume_hint and f", then {resume_hint}"
            _report_and_exit(f"{name}: {problem}{hint}", 2)
        if not process_env.is_distributed():
            raise
        # After a failure of another process, that one reports the error.
        if not re.search(PEER_FAILURE, str(error).partition("\n")[0]):
            process_env.report_error(traceback.format_exc().strip(), 1)
        sys.exit(1)
    finally:
        signals.default_on_signal()  # while the script imports torch, or exits, stop at once


def _report_and_exit(message: str, exit_code: int) -> NoReturn:
    process_env.report_error(message, exit_code)
    sys.exit(exit_code)


def run_script_in_subprocess(name: str, args: list[str]) -> None:
    """Run another script; if it fails, exit with its code."""
    sys.stdout.flush()
    command = [sys.executable, str(SRC / name), *args]
    with subprocess.Popen(command) as process:
        try:
            code = process.wait()
        except StopRequested as stop:
            if stop.signum == signal.SIGTERM:  # Ctrl-C reaches both processes
                process.terminate()
            raise  # after the script has removed its temporary files
    if code < 0:
        process_env.report_error(f"{name}: killed by {signal.Signals(-code).name}", 128 - code)
    if code:
        sys.exit(code if code > 0 else 128 - code)
