#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")/.."
source src/environment.sh
exec "$PYTHON" -m pytest -q -o testpaths=tests -o pythonpath=src "$@"
