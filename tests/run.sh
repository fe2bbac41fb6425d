#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")/.."
source src/environment.sh
export OMP_NUM_THREADS=1 # the tests run on all cores already
exec "$PYTHON" -m pytest -q -n logical --dist loadscope -o testpaths=tests -o pythonpath=src "$@"
