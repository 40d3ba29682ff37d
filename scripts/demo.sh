#!/usr/bin/env bash
# Set everything up in .venv and run the demonstration; arguments are passed on to `lmcleaner demo`.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/scripts/environment.sh"
begin_package "$root" hf
finish_package "$root"
"$root/.venv/bin/lmcleaner" demo "$@"
