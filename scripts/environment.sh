# Sourced by the scripts beside it: a virtual environment in .venv with torch and this package. Native code is compiled
# without torch, so both happen at once; what needs the tools but not the package comes between the two functions.

TORCH=${LMCLEANER_TORCH:-torch==2.13.0}

# begin_package ROOT EXTRA...: start to build ROOT's wheel, in isolation, and install what these extras and the package require.
begin_package() {
  local root=$1 requirements
  local python=$root/.venv/bin/python
  shift
  if [ ! -x "$python" ]; then
    python3 -m venv "$root/.venv" || {
      echo "python3 -m venv failed: install Python 3.10 or newer with venv (Debian: apt install python3-venv python3-dev)" >&2
      return 1
    }
  fi
  wheel_folder=$(mktemp -d) wheel_build=
  # Whatever ends the script also ends the build, which has a process group of its own.
  trap '[ -z "$wheel_build" ] || kill -- "-$wheel_build" 2>/dev/null || true; rm -rf "$wheel_folder"' EXIT
  set -m
  "$python" -m pip wheel --disable-pip-version-check --no-deps --wheel-dir "$wheel_folder" "$root" \
    >"$wheel_folder/log" 2>&1 &
  wheel_build=$!
  set +m
  requirements=$("$python" "$root/scripts/requirements.py" "$@")
  # Python compiles a module when it first imports it: most of these are never imported.
  mapfile -t requirements <<<"$requirements"
  "$python" -m pip install --quiet --disable-pip-version-check --no-compile "$TORCH" "${requirements[@]}"
}

# finish_package ROOT: wait for the wheel and install it.
finish_package() {
  wait "$wheel_build" || {
    cat "$wheel_folder/log" >&2
    return 1
  }
  wheel_build=
  "$1/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheel_folder"/*.whl
}
