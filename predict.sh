#!/usr/bin/env bash
# bash predict.sh [key=value ...]; settings as in train.sh
set -euo pipefail
cd "$(dirname "$0")"
source src/environment.sh
exec "$PYTHON" src/predict.py "$@"
