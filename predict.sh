#!/usr/bin/env bash
# bash predict.sh [key=value ...]; settings as in train.sh
set -euo pipefail
unset CDPATH # else cd may go to another folder
cd "$(dirname "$0")"
source src/environment.sh
script=$PWD/src/predict.py
cd "$OLDPWD" # paths are relative to the folder in which the command was typed
exec "$PYTHON" "$script" "$@"
