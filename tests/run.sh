#!/usr/bin/env bash
# bash tests/run.sh [pytest options], such as -k rle or -m slow
set -euo pipefail
unset CDPATH # else cd may go to another folder
cd "$(dirname "$0")/.."
source src/environment.sh
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE # the tests run on all cores already
unset PYTHONDONTWRITEBYTECODE # else every process compiles all sources anew
exec "$PYTHON" -m pytest -q -n logical --dist worksteal -m "not slow" "$@"
