"""What runs here: backends and versions of this installation, and the machine that a measured figure must name."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from . import _native
from ._version import __version__
from .ops import available_backends
from .replay import gpu_direct


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


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """On what, with what and when something is measured: device, cores and threads, versions, the date (UTC)."""
    gpu = torch.device(device).type == "cuda"
    bound = os.environ.get("OMP_PROC_BIND", "false") != "false"  # OpenMP has bound this thread to one core of them
    return {
        "device": torch.cuda.get_device_name(device) if gpu else processor_name(),
        "cores": os.cpu_count() if bound else len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instruction_set": _native.cpu_instruction_set(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "transformers": _version_of("transformers"),
        "lmcleaner_ext": __version__,
        "compiler": _native.build_info()["compiler"],
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def processor_name() -> str:
    """The processor as Linux names it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe(found: dict[str, Any]) -> str:
    """An `environment` in one line for people."""
    return (
        f"{found['device']}, {found['cores']} cores, {found['threads']} threads ({found['instruction_set']}); "
        f"Python {found['python']}, torch {found['torch']}, transformers {found['transformers']}, "
        f"lmcleaner_ext {found['lmcleaner_ext']}; {found['date']}"
    )


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
