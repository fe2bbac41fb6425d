#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")/.."
source src/environment.sh
exec "$PYTHON" -m pytest -q -n logical --dist loadscope -o testpaths=tests -o pythonpath=src "$@"
