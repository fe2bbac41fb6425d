"""The making and choosing of the environment, with stub Pythons: nothing is installed."""

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ["basename", "bash", "cat", "cmp", "cp", "dirname", "flock", "grep", "mkdir", "rm", "sed"]

# Stands for python3.11, for .venv/bin/python and for pip. It notes each call but the questions
# (-c, -) and behaves as the variables STUB_* say.
STUB = """#!/bin/bash
case "$1" in -c | -) ;; *) echo "${0##*/} $*" >>"$STUB_CALLS" ;; esac
case "$1 ${2:-}" in
  "-c "?*) echo "${STUB_VERSION:-3.11}" ;;
  "-c ") exit 0 ;;
  "- ") cat >/dev/null; exit 1 ;;
  "-m venv") [ -z "${STUB_NO_VENV:-}" ] || { echo "ensurepip is not available"; exit 1; }
             mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") [ "$3" = --version ] || { eval "${STUB_PIP:-}"; } ;;
  src/train.py*) echo "trained with $0: ${*:2}" ;;
esac
"""


class Clone:
    """A copy of the setup files, and a PATH with the tools they need but no real Python."""

    def __init__(self, folder: Path, bin_: Path):
        self.folder, self.bin, self.venv = folder, bin_, folder / ".venv"
        (folder / "src").mkdir(parents=True)
        bin_.mkdir()
        for name in ("train.sh", "requirements.txt", "src/environment.sh"):
            shutil.copy(ROOT / name, folder / name)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (bin_ / tool).symlink_to(found)

    def stub(self, path: Path | None = None, text: str = STUB) -> None:
        path = path or self.bin / "python3.11"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def env(self, **variables: str) -> dict[str, str]:
        return {"PATH": str(self.bin), "STUB_CALLS": str(self.bin / "calls"), **variables}

    def run(self, *args: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(self.folder / "train.sh"), *args],
            env=self.env(**variables),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=30,
        )

    def calls(self, word: str) -> int:
        path = self.bin / "calls"
        return path.read_text().count(word) if path.exists() else 0

    def refused(self, done: subprocess.CompletedProcess) -> str:
        """The one line of error, after checking that it is one and that nothing was left."""
        errors = [x for x in done.stderr.splitlines() if not x.startswith("Setting up .venv")]
        assert (done.returncode, done.stdout, len(errors)) == (2, "", 1), done.stderr
        assert errors[0].startswith("error: ")
        assert "run the same command again" in errors[0]
        assert not (self.venv / "requirements.txt").exists()
        return errors[0]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "a clone with spaces", tmp_path / "bin")


def test_it_is_made_once_and_reused_without_pip(clone):
    clone.stub()
    first = clone.run("one", "two words")
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"trained with {clone.venv}/bin/python: one two words\n"
    assert len(first.stderr.splitlines()) == 1
    assert first.stderr.startswith("Setting up .venv once: ")
    assert clone.calls("-r requirements.txt") == 1

    second = clone.run("one")
    assert (second.returncode, second.stderr) == (0, "")
    assert clone.calls("venv .venv") == 1
    assert clone.calls("pip install") == 2  # the first making's: the probe and the rest


def test_the_environment_variables_reach_the_program(clone):
    clone.stub(
        text=STUB.replace("trained with", "$NO_ALBUMENTATIONS_UPDATE $MALLOC_TRIM_THRESHOLD_")
    )
    assert clone.run().stdout.startswith("1 10000000000 ")


def test_a_half_made_one_is_remade(clone):
    clone.stub()
    clone.stub(clone.venv / "bin" / "python")
    (clone.venv / "left over").touch()
    done = clone.run()
    assert done.returncode == 0, done.stderr
    assert "half-made" in done.stderr and len(done.stderr.splitlines()) == 1
    assert clone.calls("venv .venv") == 1
    assert not (clone.venv / "left over").exists()


def test_one_whose_python_is_gone_is_remade(clone):
    clone.stub()
    clone.run()
    (clone.venv / "bin" / "python").unlink()
    done = clone.run()
    assert done.returncode == 0, done.stderr
    assert "no longer runs" in done.stderr


def test_changed_requirements_remake_it(clone):
    clone.stub()
    clone.run()
    with open(clone.folder / "requirements.txt", "a") as file:
        file.write("another==1.0\n")
    done = clone.run()
    assert done.returncode == 0, done.stderr
    assert "requirements.txt has changed" in done.stderr and len(done.stderr.splitlines()) == 1
    assert clone.calls("venv .venv") == 2
    assert clone.run().stderr == ""


@pytest.mark.parametrize("version", ["2.7", "3.8", "3.10", "3.13"])
def test_an_unfit_python_is_refused(clone, version):
    clone.stub(clone.bin / "python3")
    done = clone.run(STUB_VERSION=version)
    error = clone.refused(done)
    assert done.stderr.startswith("error: ")  # nothing announced before
    assert f"python3 is {version}" in error and "3.11 or 3.12 is needed" in error
    assert not clone.venv.exists()


def test_no_python_is_refused(clone):
    clone.stub(text="#!/bin/bash\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n")
    assert "no Python" in clone.refused(clone.run())


def test_a_missing_venv_module_falls_through_to_the_next_python(clone):
    clone.stub(text=STUB.replace("${STUB_NO_VENV:-}", "yes"))
    clone.stub(clone.bin / "python3")
    done = clone.run()
    assert done.returncode == 0, done.stderr
    assert clone.calls("python3 -m venv") == 1


def test_a_missing_venv_module_is_refused_where_nothing_else_works(clone):
    clone.stub()
    error = clone.refused(clone.run(STUB_NO_VENV="yes"))
    assert "apt install python3-venv" in error
    assert not clone.venv.exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("ERROR: No matching distribution (from versions: none)", "no network"),
        ("WARNING: Retrying (Retry(total=0)) NewConnectionError", "no network"),
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for torch==2.13.0", "found for torch==2.13.0."),
        ("ERROR: something else", "see the log"),
    ],
)
def test_a_failing_pip_leaves_no_mark_and_the_next_run_makes_it(clone, output, words):
    clone.stub()
    error = clone.refused(clone.run(STUB_PIP=f"echo '{output}'; exit 1"))
    assert words in error and ".venv.log" in error
    assert output in (clone.folder / ".venv.log").read_text()

    done = clone.run()
    assert done.returncode == 0, done.stderr
    assert "half-made" in done.stderr


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
@pytest.mark.parametrize("suffix", ["", "+cu128"])
def test_an_active_environment_that_has_everything_is_used(clone, variable, suffix):
    active = clone.folder.parent / "active env"
    program = f'#!/bin/bash\nexport PYTHONPATH="{active}"\nexec "{sys.executable}" "$@"\n'
    clone.stub(active / "bin" / "python", program)
    metadata = active / "made_up-1.2.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: made-up\nVersion: 1.2{suffix}\n")
    requirements = clone.folder / "requirements.txt"
    requirements.write_text(f"# why\nmade-up==1.2\n\npytest=={version('pytest')}\n")
    (clone.folder / "src" / "train.py").write_text("print('trained')")
    done = clone.run(**{variable: str(active)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "trained\n", "")
    assert not clone.venv.exists()


@pytest.mark.parametrize("wanted", ["pytest==0.0.1", "not-installed-anywhere==1.0"])
def test_an_active_environment_that_lacks_something_is_not_used(clone, wanted):
    active = clone.folder.parent / "active"
    clone.stub(active / "bin" / "python", f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    (clone.folder / "requirements.txt").write_text(f"tqdm==1.0\n{wanted}\n")
    clone.stub()
    done = clone.run(VIRTUAL_ENV=str(active))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"trained with {clone.venv}/bin/python")


@pytest.mark.skipif(not shutil.which("flock"), reason="there is no flock on this system")
def test_two_commands_at_once_make_one(clone):
    clone.stub()
    (clone.bin / "sleep").symlink_to(shutil.which("sleep"))
    both = [
        subprocess.Popen(
            ["bash", "train.sh"],
            cwd=clone.folder,
            env=clone.env(STUB_PIP="sleep 0.2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=30) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all(out.startswith("trained with") for out, _ in outputs)
    assert sorted(err.split()[0] for _, err in outputs) == ["Setting", "Waiting"]
    assert clone.calls("venv .venv") == 1


def test_the_program_does_not_hold_the_lock(clone):
    """The lock's file descriptor ends with the making, else a training would hold it for days."""
    clone.stub(text=STUB.replace('echo "trained with', '[ -e /dev/fd/9 ] && echo locked; echo "'))
    assert "locked" not in clone.run().stdout


def test_the_requirements_are_pinned_exactly():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and all(len(pin.split("==")) == 2 and " " not in pin for pin in pins)
    assert any(pin.startswith("tqdm==") for pin in pins)  # the setup asks for it first


def test_an_interruption_stops_it_without_a_second_try(clone):
    clone.stub()
    # As pip does at Ctrl-C: it ends by itself with 1, after the signal has reached the shell too.
    done = clone.run(STUB_PIP="kill -INT $PPID; exit 1")
    assert done.returncode == 130
    assert len(done.stderr.splitlines()) == 1
    assert not (clone.venv / "requirements.txt").exists()
    assert clone.run().returncode == 0
