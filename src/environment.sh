# Sourced from the root of the repository. Sets PYTHON, unless the user has, to a Python with the
# packages pinned in requirements.txt: the active virtualenv's or conda environment's if it has all
# of them, else that of .venv, which is made here on first use and remade when requirements.txt
# changes; a .venv that the user has made is used if it has all of them, and never changed. A Python
# that the user has set needs the packages in versions that are known to work.

fail() {
  echo "error: $1" >&2
  exit 2
}

case ${OSTYPE:-} in
msys* | cygwin* | win32*) fail "on Windows, use WSL: \`wsl --install\`, then the same commands in Ubuntu" ;;
esac

# Whether Python $1 has every pinned version. Local version labels such as +cu128 are ignored.
has_requirements() {
  "$1" - 2>/dev/null <<'PYTHON_CODE'
from importlib.metadata import version
for line in open("requirements.txt"):
    name, pinned, wanted = line.split("#")[0].strip().partition("==")
    if pinned and version(name).split("+")[0] != wanted:
        raise SystemExit(1)
PYTHON_CODE
}

# Whether make_venv has made .venv, or started to: it first creates an empty requirements.txt in it,
# and after the installation the copy that marks a complete .venv.
is_our_venv() {
  [ -f .venv/requirements.txt ]
}

venv_is_ready() {
  if ! is_our_venv; then
    has_requirements .venv/bin/python
  else
    cmp -s requirements.txt .venv/requirements.txt && .venv/bin/python -c '' 2>/dev/null
  fi
}

make_venv() {
  trap 'exit 130' INT
  if command -v flock >/dev/null && ! flock -n 9; then # pip inherits the lock, even if orphaned
    echo "Waiting for another command that uses .venv, or installs into it." >&2
    flock 9 || true # some network file systems have no locks
  fi
  if venv_is_ready; then return; fi
  if [ -e .venv ] || [ -L .venv ]; then
    is_our_venv || fail "$PWD/.venv was not made by train.sh and lacks packages of requirements.txt; move it away, install them into it, or set PYTHON=/path/to/python"
  fi
  local python
  for python in python3.11 python3.12 python3.13 python3.14 python3 python ""; do
    "$python" -c 'import sys, ensurepip, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && break
  done
  [ -n "$python" ] || fail "no Python 3.11 to 3.14 with its venv module is on PATH (Debian, Ubuntu: apt install python3 python3-venv)"
  echo "Installing requirements.txt into .venv: downloads several GB on Linux, 1 GB on macOS." >&2
  rm -rf .venv
  { mkdir .venv && : >.venv/requirements.txt && "$python" -m venv .venv && .venv/bin/python -m pip install --disable-pip-version-check --no-input -r requirements.txt &&
    cp requirements.txt .venv/requirements.txt; } >&2 ||
    fail "installing requirements.txt into .venv failed, see above; fix that and run the same command again"
}

use_requirements() {
  PYTHON=$PWD/.venv/bin/python
  local prefix
  for prefix in "${CONDA_PREFIX:-}" "${VIRTUAL_ENV:-}"; do
    if [ -n "$prefix" ] && has_requirements "$prefix/bin/python"; then PYTHON=$prefix/bin/python; fi
  done
  if [ "$PYTHON" = "$PWD/.venv/bin/python" ] && ! venv_is_ready; then
    [ -w . ] || fail "$PWD is not writable, so .venv cannot be made there; set PYTHON=/path/to/python"
    (make_venv) 9>.venv.lock || exit $?
  fi
  # The command holds this lock while it runs: make_venv of another one then waits.
  if [ "$PYTHON" = "$PWD/.venv/bin/python" ] && [ -w .venv.lock ] && command -v flock >/dev/null; then
    exec 8<.venv.lock
    flock -s -n 8 || true
  fi
}

unset PYTHONSAFEPATH # else the scripts find none of their modules
# glibc asks the kernel for huge pages: a training step on a CPU took 17% and 29% less time
# (docs/speed.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

if [ -n "${PYTHON:-}" ]; then
  case $PYTHON in
  /*) ;;
  */*) PYTHON=${OLDPWD:-$PWD}/$PYTHON ;; # relative to the folder in which the command was typed
  *) PYTHON=$(command -v "$PYTHON" || echo "$PYTHON") ;;
  esac
  [ -f "$PYTHON" ] && [ -x "$PYTHON" ] || fail "PYTHON=$PYTHON: no such program; set the path of a Python, or unset it to use .venv"
  PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -c 'import signal
signal.signal(signal.SIGINT, signal.SIG_DFL) # no traceback on Ctrl-C
from core.environment import check_python
check_python()' || exit $?
else
  use_requirements
fi
