#!/usr/bin/env bash
# Set everything up in .venv, check formatting, lint, types and that no CUDA kernel spills, and run the tests against the installed package.
# Arguments are passed on to pytest, from the folder python_tests:  scripts/test.sh cli -k demo      scripts/test.sh -m slow -n 0
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/scripts/environment.sh"
bin=$root/.venv/bin
cd "$root"

say() { printf '[%3d s] %s\n' "$SECONDS" "$*"; }

say "setting up .venv; the package is being built beside it"
begin_package "$root" test lint
say "ruff, clang-format, mypy"
"$bin/ruff" check .
"$bin/ruff" format --check .
find csrc -regex '.*\.\(h\|cuh\|cpp\|cu\)' -exec "$bin/clang-format" --dry-run -Werror {} +
"$bin/mypy"
say "building the ring's native tests"
scripts/build_store_tests.sh "$bin/python" address,undefined
say "the package: build, install"
finish_package "$root"
"$bin/python" scripts/kernel_resources.py
say "pytest"
export OMP_NUM_THREADS=1  # each process of pytest uses one core
# Away from the source tree, which has no compiled module and must not shadow the installed package; in importlib mode, so that
# folders such as python_tests/datasets do not shadow packages of that name. A process takes up to 1.5 GB.
cd python_tests
"$bin/pytest" -c ../pyproject.toml --rootdir .. --import-mode=importlib -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
say "done"
