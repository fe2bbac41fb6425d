"""Scripts in any terminal, without their packages, and on Windows."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, assert_rejected, run_script

from core import cli
from core.errors import InputError

# ---------------------------------------------------------------- terminals


def run_script_in_ascii(monkeypatch, *args):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    return run_script("score.py", *args)


def test_help_is_printed_in_a_terminal_without_unicode(monkeypatch):
    completed = run_script_in_ascii(monkeypatch, "help")
    assert completed.returncode == 0, completed.stderr
    assert "extra 3\\xd73 convolutions" in completed.stdout


def test_error_with_a_foreign_name_is_one_line_in_a_terminal_without_unicode(monkeypatch):
    completed = run_script_in_ascii(monkeypatch, "recipe=Zürich×2.yaml")
    assert_rejected(completed, r"recipe=Z\xfcrich\xd72.yaml: No such file or directory")


PRINT = "from core import cli; cli.run_main(lambda args: print(args[0]))"


def test_run_main_ignores_a_comment_that_zsh_passes_on():
    command = [sys.executable, "-c", PRINT.replace("args[0]", "args"), "fold=0", "#", "one", "fold"]
    completed = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True)
    assert completed.stdout == "['fold=0']\n"


def test_run_main_ignores_empty_variables_of_torchrun():
    command, empty = [sys.executable, "-c", PRINT, "printed"], {"RANK": "", "WORLD_SIZE": ""}
    environment = {"cwd": ROOT / "src", "env": os.environ | empty}
    completed = subprocess.run(command, capture_output=True, text=True, **environment)
    assert completed.stdout == "printed\n"


@pytest.mark.parametrize("variables", [{"RANK": "1"}, {"WORLD_SIZE": "2"}])
def test_run_main_rejects_a_part_of_torchruns_variables(variables):
    command = [sys.executable, "-c", PRINT, "printed"]
    environment = {"cwd": ROOT / "src", "env": os.environ | variables}
    completed = subprocess.run(command, capture_output=True, text=True, **environment)
    assert completed.returncode == 2 and completed.stdout == ""
    assert "the environment lacks " in completed.stderr


def test_check_arguments_rejects_two_values_side_by_side():
    """As bash expands fold={0,1}. Of others the last one counts, so that scripts can append."""
    with pytest.raises(InputError, match="fold=0 fold=1: fold is set twice; it takes one value"):
        cli._check_arguments(["run=a", "fold=0", "fold=1"])
    with pytest.raises(InputError, match="runs is set twice; write a list as runs=a,b"):
        cli._check_arguments(["runs=a", "runs=b"])
    cli._check_arguments(["resume=true", "resume=true", "fold=0", "run=a", "fold=1"])


# ---------------------------------------------------------------- packages and systems

RUN_TRAIN = """
import runpy, sys
sys.path.insert(0, sys.argv[1] + "/src")
sys.argv = [sys.argv[1] + "/src/train.py"]
{change}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_train_with(change, root=ROOT, cwd=ROOT):
    """Run train.py in a Python that a line of code has changed."""
    command = [sys.executable, "-c", RUN_TRAIN.format(change=change), str(root)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)


@pytest.fixture
def checkout(tmp_path):
    """A copy of src/, without an environment."""
    root = tmp_path / "my checkout"
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.parametrize("package", ["psutil", "yaml", "torch"])
def test_script_without_a_package_names_the_way_into_the_environment(checkout, package):
    (checkout / ".venv").mkdir()
    completed = run_train_with(f"sys.modules['{package}'] = None", checkout, cwd=checkout)
    line = assert_rejected(completed, f"train.py: the package {package} is not installed in ")
    assert line.endswith("fix: `source .venv/bin/activate`, or start with `bash train.sh`")


def test_script_before_the_installation_names_the_command_that_installs(checkout):
    completed = run_train_with("sys.modules['yaml'] = None", checkout, cwd=checkout.parent)
    line = assert_rejected(
        completed, "`bash 'my checkout/train.sh' help`, which installs the packages"
    )
    assert line.endswith("then `source 'my checkout/.venv/bin/activate'`")


def test_error_in_our_own_imports_is_a_traceback():
    completed = run_train_with("sys.modules['core.signals'] = None")
    assert completed.returncode == 1 and "Traceback" in completed.stderr


def test_windows_is_rejected_in_one_line():
    imported = "import shutil, subprocess"  # on Linux not possible with sys.platform as on Windows
    assert_rejected(run_train_with(f"{imported}; sys.platform = 'win32'"), "on Windows, use WSL")


@pytest.mark.parametrize(("signum", "code"), [(2, 130), (15, 143)])
def test_run_main_after_a_signal_prints_how_to_resume(signum, code):
    kill = f"lambda args: os.kill(os.getpid(), {signum})"
    program = f"import os; from core import cli; cli.run_main({kill}, 'set resume=true')"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "-c: stopped; set resume=true\n")
