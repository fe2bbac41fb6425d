#!/usr/bin/env bash
# bash predict.sh [key=value ...]; settings as in train.sh
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as sh predict.sh
set -euo pipefail
unset CDPATH # else cd may go to another folder
cd "$(dirname "$(readlink -f "$0" 2>/dev/null || echo "$0")")" # $0 may be a link
source src/environment.sh
script=$PWD/src/predict.py
cd "$OLDPWD" # paths are relative to the folder in which the command was typed
exec "$PYTHON" "$script" "$@"
