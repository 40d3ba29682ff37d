"""Registers and local memory of every CUDA kernel of the installed package; exit status 1 if one spills.

    python scripts/kernel_resources.py

Needs cuobjdump, the CUDA toolkit's or the one that Triton brings, and c++filt.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys


def main() -> int:
    module, tool = importlib.util.find_spec("lmcleaner_ext._cuda"), _cuobjdump()
    if module is None or module.origin is None:
        print("CUDA kernels: not built here (lmcleaner show-config says why)")
        return 0
    if tool is None:
        print("CUDA kernels: not looked at, there is no cuobjdump")
        return 0
    dump = _output(tool, "--dump-resource-usage", module.origin)
    found = re.findall(r"arch = sm_(\d+)|Function (\S+):\s*REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", dump)
    mangled = [name for _, name, *_ in found if name]
    readable = dict(zip(mangled, _output("c++filt", *mangled).splitlines(), strict=True))
    architecture, spilling = "", 0
    print(f"{'sm':<4} {'registers':>9} {'local bytes':>11}  kernel")
    for this_architecture, name, registers, stack, local in found:
        if this_architecture:
            architecture = this_architecture
            continue
        spilling += int(stack) + int(local) > 0
        print(f"{architecture:<4} {registers:>9} {int(stack) + int(local):>11}  {_short(readable[name])}")
    print(f"{len(mangled)} kernels, {spilling} of them spill")
    return 1 if spilling or not mangled else 0


def _cuobjdump() -> str | None:
    if shutil.which("cuobjdump"):
        return "cuobjdump"
    try:
        import triton
    except ImportError:
        return None
    return str(triton.knobs.nvidia.cuobjdump.path)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _short(signature: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|lmcleaner::|cuda::|math::|^void ", "", signature)
    return re.sub(r"\(.*$", "", name)


if __name__ == "__main__":
    sys.exit(main())
