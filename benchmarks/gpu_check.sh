#!/usr/bin/env bash
# Everything that needs a GPU, in one command, under ten minutes and without a network: build, tests on CUDA and Triton,
# compute-sanitizer, benchmarks. Results as JSON in a folder of at most eight files; exit status 0 when every part passed.
#
#   benchmarks/gpu_check.sh [--out FOLDER] [--seconds 570] [--only PART,PART] [--rehearse]
#
# --rehearse runs on a machine without a GPU what can run there: CPU build, interpreted kernels, CPU benchmarks.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PATH=$PATH:/usr/local/cuda/bin
exec "${PYTHON:-python3}" "$root/benchmarks/_gpu_check.py" "$@"
