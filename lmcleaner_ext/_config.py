"""What this installation can do on this machine, and for what is missing, why."""

import importlib.metadata
import platform
from typing import Any

from lmcleaner_ext import _native
from lmcleaner_ext._version import __version__
from lmcleaner_ext.ops import available_backends
from lmcleaner_ext.replay import gpu_direct


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def show_config(as_dict: bool = False) -> dict[str, Any] | None:
    """Print the backends, instruction sets and versions in use, or return them.

    Args:
        as_dict: return a dictionary instead of printing.

    Returns:
        With `as_dict=True`, a dictionary with the keys

        - `backends`: `reference`, `cpu`, `cuda`, `triton`, each `"available"` or `"missing: <why>"`;
        - `gpudirect`: whether logged vectors can be read straight into a GPU's memory (`LMCLEANER_GPUDIRECT=1`), in the same words;
        - `instruction_sets`: `compiled` (list) and `in_use`;
        - `threads`: `"OpenMP"` or `"serial: …"`;
        - `versions`: lmcleaner_ext, python, torch, transformers, triton, numpy, compiler, cuda_compiler
          (None for what is not installed);
        - `cuda_architectures`: compute capabilities the CUDA kernels were built for, such as `"80,90"`.

        Otherwise None.
    """
    build = _native.build_info()

    def shown(reason: str | None) -> str:
        return "available" if reason is None else f"missing: {reason}"

    config: dict[str, Any] = {
        "backends": {name: shown(reason) for name, reason in available_backends().items()},
        "gpudirect": shown(gpu_direct.missing()),
        "instruction_sets": {
            "compiled": build["instruction_sets"],
            "in_use": _native.cpu_instruction_set(),
        },
        "threads": "OpenMP" if build["openmp"] else "serial: the compiler had no OpenMP when the package was built",
        "versions": {
            "lmcleaner_ext": __version__,
            "python": platform.python_version(),
            "torch": _version_of("torch"),
            "transformers": _version_of("transformers"),
            "triton": _version_of("triton"),
            "numpy": _version_of("numpy"),
            "compiler": build["compiler"],
            "cuda_compiler": build["cuda_compiler"] or None,
        },
        "cuda_architectures": build["cuda_architectures"] or None,
    }
    if as_dict:
        return config
    for title, value in config.items():
        if isinstance(value, dict):
            print(f"{title.replace('_', ' ')}:")
            for name, detail in value.items():
                text = ", ".join(detail) if isinstance(detail, list) else detail or "not installed"
                print(f"  {name:<14} {text}")
        else:
            print(f"{title.replace('_', ' ')}: {value or 'none'}")
    return None
