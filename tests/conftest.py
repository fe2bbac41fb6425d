"""What all tests share: the tiny dataset, a run trained on it, and ways to call the scripts."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings
from tiny_datasets import make_data

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
REAL = Path(os.environ.get("REAL_DATA", ROOT.parent / "shared" / "data"))

settings.register_profile("reproducible", derandomize=True, database=None, deadline=None)
settings.load_profile("reproducible")

needs_real_data = pytest.mark.skipif(
    not (REAL / "carvana" / "train").is_dir(), reason="no real images; set REAL_DATA"
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """pytest-xdist runs one test a core. Not at import: its own process needs no torch."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A new tiny dataset, which the test may change."""
    return make_data(tmp_path / "tiny")


@pytest.fixture(scope="module")
def scratch_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all examples of a hypothesis test."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def restored_handlers() -> Iterator[None]:
    """Restore the signal handlers that the test replaces."""
    from core.signals import SIGNALS

    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def once_per_session(
    tmp_path_factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]
) -> Path:
    """Return a folder that `fill` has filled once, shared by all tests of all pytest-xdist workers.

    Tests must not change it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    filled = folder / ".filled"
    with FileLock(f"{folder}.lock"):
        if not filled.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a worker in which `fill` failed
            folder.mkdir()
            fill(folder)
            filled.touch()
    return folder


@pytest.fixture(scope="session")
def shared_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset. Read-only."""
    folder = once_per_session(tmp_path_factory, "tiny_data", lambda path: make_data(path / "tiny"))
    return folder / "tiny"


# ---------------------------------------------------------------- runs


def tiny_settings_args(data_dir: Path, output_dir: Path) -> list[str]:
    """Arguments that train the tiny dataset within a second."""
    return [
        *(f"data_dir={data_dir}", f"folds_csv={data_dir / 'folds.csv'}"),
        *(f"output_dir={output_dir}", "dataset_name=tiny", "run=tiny"),
        *("size=[32,48]", "channels=[8,16]", "batch_size=4", "epochs=3", "lr=0.01"),
        *("ema_decay=0.5", "device=cpu", "precision=fp32", "num_workers=0"),
    ]


def smp_args(args: list[str], encoder: str) -> list[str]:
    """Return `args` with another model, an SMP U-Net over an encoder without pretrained weights."""
    from core.settings import FIELDS

    kept = [
        arg for arg in args if FIELDS[arg.partition("=")[0]].metadata["only_for_model"] != "unet"
    ]
    return [*kept, "model=smp", f"encoder={encoder}", "encoder_weights=none"]


def prediction_args(args: list[str]) -> list[str]:
    """Select the arguments that prediction accepts: paths, run and machine, nothing of training."""
    names = ("data_dir", "output_dir", "run", "device", "precision", "num_workers")
    return [arg for arg in args if arg.split("=")[0] in names]


@dataclass(frozen=True)
class TinyRun:
    """A trained run of the tiny dataset; `args` are the arguments that trained it."""

    data_dir: Path
    output_dir: Path
    args: list[str]
    printed: str = ""


def read_tiny_run(folder: Path) -> TinyRun:
    data_dir, output_dir = folder / "data", folder / "output"
    args = [*tiny_settings_args(data_dir, output_dir), "dropout=[0,0.2]", "epochs=8"]
    return TinyRun(data_dir, output_dir, args, (folder / "stdout.txt").read_text())


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Both folds of the tiny dataset, trained once a session. Read-only."""

    def fill(folder: Path) -> None:
        import train

        make_data(folder / "data")
        (folder / "stdout.txt").touch()
        args = read_tiny_run(folder).args
        with open(folder / "stdout.txt", "w") as stdout, redirect_stdout(stdout):
            train.main(args)

    return read_tiny_run(once_per_session(tmp_path_factory, "trained_run", fill))


@pytest.fixture
def run_copy(trained_run: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy of `trained_run`, which the test may change."""
    folder = tmp_path / "run_copy"
    shutil.copytree(trained_run.data_dir.parent, folder)
    return read_tiny_run(folder)


# ---------------------------------------------------------------- scripts


def run_script(name: str, *args: str) -> subprocess.CompletedProcess:
    """Run src/<name> in a process, as a user does, and capture its output as text."""
    command = [sys.executable, str(ROOT / "src" / name), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def assert_rejected(completed: subprocess.CompletedProcess, *parts: str) -> str:
    """Assert that a script ended with exit code 2 and one line that holds all of `parts`."""
    assert completed.returncode == 2, completed.stderr + completed.stdout
    lines = completed.stderr.strip().splitlines()
    assert len(lines) == 1, completed.stderr
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]


def assert_input_error(main: Callable[[list[str]], None], args: list[str], *parts: str) -> str:
    """Assert that a script's main raises InputError with one line that holds all of `parts`.

    cli.run_main prints this line and exits with code 2.
    """
    from core.errors import InputError

    with pytest.raises(InputError) as raised:
        main(args)
    line = str(raised.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line
    return line


class Payload:
    """An object whose unpickling creates the file `path`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; the test is skipped where this user cannot mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a file system of 1 MB")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
