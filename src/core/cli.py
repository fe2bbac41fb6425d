"""Words → settings: `key=value` over a recipe over the defaults. How a script starts and ends."""

import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from core import process_env, signals
from core.config import SRC
from core.errors import DISK_FULL_ERRNOS, NOT_WRITABLE_ERRNOS, InputError
from core.settings import Settings
from core.signals import StopRequested


def run_main(main: Callable[[], None], remedy: str = "") -> None:
    """Run a script's main; what the person can mend ends in one line and exit code 2, a signal in
    128 + its number and how to go on."""
    name = Path(sys.argv[0]).name
    process_env.silence_other_ranks()
    try:
        signals.install_handlers()
        main()
    except InputError as error:
        process_env.report_error(f"{name}: {error}")
        sys.exit(2)
    except StopRequested as stopped:
        process_env.report_error(f"{name}: stopped{remedy and f'; {remedy}'}")
        sys.exit(stopped.code)
    except BrokenPipeError:  # whoever reads what is printed, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS | NOT_WRITABLE_ERRNOS:
            process_env.report_error(f"{name}: {error.filename or 'writing'}: {error.strerror}")
            sys.exit(2)
        if not process_env.is_distributed():
            raise
        process_env.report_error(peer_failure_message(error) or traceback.format_exc().strip())
        sys.exit(1)
    finally:
        signals.exit_immediately_on_signal()  # while a script imports what it needs, nothing is lost


def peer_failure_message(error: Exception) -> str:
    """A line, where the error is that another process of the team has gone."""
    line = str(error).splitlines()[0] if str(error) else ""
    ours = re.search("gloo|NCCL|c10d|Connection (closed|reset)|Broken pipe", line)
    return f"another process is gone ({line[:80]}); the same command goes on" if ours else ""


def run_script_in_subprocess(name: str, words: list[str]) -> None:
    """Run another script as a person would; if it fails, its line has been said: end likewise."""
    sys.stdout.flush()
    done = subprocess.run(
        [sys.executable, str(SRC / name), *words],
        check=False,
        env=process_env.env_without_torchrun(),
    )
    if done.returncode:
        sys.exit(done.returncode)


def to_cli_args(settings: Settings) -> list[str]:
    """The command line that gives these settings again."""
    values = {k: v for k, v in asdict(settings).items() if v not in ("", [])}
    return [f"{key}={json.dumps(v) if not isinstance(v, str) else v}" for key, v in values.items()]
