#!/usr/bin/env bash
# bash train.sh [key=value ...]; `bash train.sh help` lists all settings
set -euo pipefail
cd "$(dirname "$0")"
source src/environment.sh
exec "$PYTHON" src/train.py "$@"
