#!/usr/bin/env bash
# Build the native tests of the ring, csrc/store/tests, and print where the program is. SANITIZERS: e.g. address,undefined; none: "".
#
#   scripts/build_store_tests.sh PYTHON SANITIZERS        PYTHON: one that has cmake, ninja, pybind11 and pyarrow
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
name=${2//,/-}
folder=$root/build/store_tests-${name:-plain}
mkdir -p "$root/build"
export PATH=$(dirname "$1"):$PATH
{
  cmake -S "$root" -B "$folder" -G Ninja -DLMCLEANER_TESTS=ON -DLMCLEANER_CUDA=0 "-DLMCLEANER_SANITIZE=$2" "-DPython_EXECUTABLE=$1"
  cmake --build "$folder" --target store_tests
} >"$folder.log" 2>&1 || {
  cat "$folder.log" >&2
  exit 1
}
echo "$folder/store_tests"
