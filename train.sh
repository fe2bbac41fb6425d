#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
source src/environment.sh
exec "$PYTHON" src/train.py "$@"
