# Sourced from the root of the repository. Sets PYTHON to a Python that has what requirements.txt
# pins: the active environment's if it fits, else that of .venv, which is made here once.

fail() {
  echo "error: $1" >&2
  exit 2
}

# Whether Python $1 has every pinned version; a local part such as +cu128 does not count.
satisfies() {
  "$1" - 2>/dev/null <<'PYTHON_CODE'
from importlib.metadata import version
for line in open("requirements.txt"):
    name, pinned, wanted = line.split("#")[0].strip().partition("==")
    if pinned and version(name).split("+")[0] != wanted:
        raise SystemExit(1)
PYTHON_CODE
}

# The copy of requirements.txt is written last, so it marks a .venv that is complete and current.
venv_is_ready() {
  cmp -s requirements.txt .venv/requirements.txt && .venv/bin/python -c '' 2>/dev/null
}

# What went wrong, as far as the log can tell.
reason() {
  if grep -qi 'no space left' .venv.log; then
    echo "the disk is full. Free some space"
  elif grep -qiE 'from versions: none|Retrying \(|connection|timed out|getaddrinfo|name or service|unreachable|proxyerror' .venv.log; then
    echo "no network, or the package index does not answer. Connect to the network"
  elif grep -q 'No matching distribution' .venv.log; then
    echo "$(grep -m 1 'No matching distribution' .venv.log | sed 's/^ERROR: //'). Use a platform that has it (Linux x86-64 is tested), or change requirements.txt"
  else
    echo "see the log. Remedy what it names"
  fi
}

# Announces $1 and creates an empty .venv with the first Python that can; each is run to ask its
# version, as a pyenv shim may be there and not work.
create_venv() {
  local candidate version seen="" able=""
  for candidate in python3.11 python3.12 python3 python; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    seen="$seen, $candidate is $version"
    case $version in 3.11 | 3.12) ;; *) continue ;; esac
    [ -n "$able" ] || echo "$1" >&2
    able=$candidate
    rm -rf .venv
    "$candidate" -m venv .venv >>.venv.log 2>&1 && .venv/bin/python -m pip --version >>.venv.log 2>&1 && return
  done
  [ -n "$seen" ] || seen=", no Python"
  [ -n "$able" ] || fail "Python 3.11 or 3.12 is needed, found:${seen#,}. Install one, put it on PATH and run the same command again."
  rm -rf .venv
  grep -qi 'no space left' .venv.log && fail "making .venv failed: $(reason) and run the same command again. Log: .venv.log"
  fail "$able cannot make a virtual environment. Install its venv module (Debian, Ubuntu: apt install python3-venv) and run the same command again. Log: .venv.log"
}

install_packages() {
  .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" >>.venv.log 2>&1 ||
    fail "installing requirements.txt failed: $(reason) and run the same command again. Log: .venv.log"
}

# One command makes it, others wait. The lock passes on to pip, so that a .venv is never removed
# while an orphaned pip still writes to it.
make_venv() {
  trap 'exit 130' INT # Ctrl-C ends it here, rather than counting as a failure of venv or pip
  if command -v flock >/dev/null && ! flock -n 9; then
    echo "Waiting for another command that is setting up .venv." >&2
    flock 9 || true # a network file system may have no locks: go on without
  fi
  venv_is_ready && return
  local once=once
  if [ ! -e .venv ]; then :
  elif [ ! -e .venv/requirements.txt ]; then once="again (it was half-made)"
  elif cmp -s requirements.txt .venv/requirements.txt; then once="again (its Python no longer runs)"
  else once="again (requirements.txt has changed)"
  fi
  : >.venv.log
  create_venv "Setting up .venv $once: this downloads packages (1 GB, several for a GPU) and takes minutes. Log: .venv.log"
  # The smallest package comes first with little patience, to notice quickly that there is no
  # network; the rest has much, for a slow network.
  install_packages --retries 0 --timeout 5 --no-deps "$(grep '^tqdm==' requirements.txt)"
  install_packages --retries 3 --timeout 60 -r requirements.txt
  cp requirements.txt .venv/requirements.txt || fail "cannot write to .venv. Free some space and run the same command again."
}

export NO_ALBUMENTATIONS_UPDATE=1 # no question to the network at import
# glibc keeps big buffers for the next step rather than returning them: 15 to 20 % on a CPU.
export MALLOC_MMAP_THRESHOLD_=10000000000 MALLOC_TRIM_THRESHOLD_=10000000000

PYTHON=""
for prefix in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
  if [ -z "$PYTHON" ] && [ -n "$prefix" ] && satisfies "$prefix/bin/python"; then PYTHON=$prefix/bin/python; fi
done
if [ -z "$PYTHON" ]; then
  PYTHON=$PWD/.venv/bin/python
  if ! venv_is_ready; then
    [ -w . ] || fail "cannot write to the folder of this repository, where .venv is made. Make it writable and run the same command again."
    (make_venv) 9>.venv.lock || exit $?
  fi
fi
