#!/usr/bin/env bash
# Set everything up in .venv, check formatting, lint, types and that no CUDA kernel spills, and run the tests against the installed package.
# Arguments are passed on to pytest, from the folder python_tests:  scripts/test.sh cli -k demo      scripts/test.sh -m slow
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/scripts/environment.sh"
install_package "$root" test
bin=$root/.venv/bin
"$bin/python" -m pip install --quiet --disable-pip-version-check "ruff~=0.17.6" "mypy~=2.4"
cd "$root"
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/python" scripts/kernel_resources.py
# Away from the source tree, which has no compiled module and must not shadow the installed package; in importlib mode, so that
# folders such as python_tests/datasets do not shadow packages of that name.
cd python_tests
exec "$bin/pytest" -c ../pyproject.toml --rootdir .. --import-mode=importlib "$@"
