#!/usr/bin/env bash
# bash train.sh [key=value ...]; `bash train.sh help` lists all settings
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as sh train.sh
set -euo pipefail
unset CDPATH # else cd may go to another folder
cd "$(dirname "$(readlink -f "$0" 2>/dev/null || echo "$0")")" # $0 may be a link
source src/environment.sh
script=$PWD/src/train.py
cd "$OLDPWD" # paths are relative to the folder in which the command was typed
exec "$PYTHON" "$script" "$@"
