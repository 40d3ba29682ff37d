"""Backend "cuda" of the ops in vector.py: the kernels of csrc/cuda/vector_kernels.h, in float32, on torch's current stream.

Results stay on the device and workspace is torch's, so that a call synchronises nothing and can be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .cpu import format_of
from .vector_cpu import addresses


def _run(name: str, device: torch.device, count: int, *arguments: object) -> Tensor:
    """`count` doubles that the kernel `name` of _cuda writes after its arguments, with the workspace every kernel has."""
    from .. import _cuda  # type: ignore[attr-defined]  # not at the top: it exists only where CUDA was built

    kernel: Callable[..., None] = getattr(_cuda, name)
    results = torch.empty(count, dtype=torch.float64, device=device)
    workspace = torch.empty(_cuda.workspace_doubles, dtype=torch.float64, device=device)
    with torch.cuda.device(device):
        kernel(*arguments, results.data_ptr(), workspace.data_ptr(), torch.cuda.current_stream().cuda_stream)
    return results


def damped_propagate_window_(
    v: Tensor,
    diagonals: Sequence[Tensor],
    diagonal_scales: Sequence[Tensor],
    coefficients: Tensor,
    injections: Sequence[Tensor],
    injection_scales: Sequence[Tensor],
    injection_table: Tensor,
) -> tuple[Tensor, Tensor]:
    results = _run(
        "propagate",
        v.device,
        2,
        v.data_ptr(),
        v.numel(),
        addresses(diagonals),
        addresses(diagonal_scales),
        format_of(diagonals),
        coefficients.data_ptr(),
        addresses(injections),
        addresses(injection_scales),
        format_of(injections),
        injection_table.data_ptr(),
    )
    return results[0].clone(), results[1].clone()


def prefix_accumulate_(prefix: Tensor, h: Tensor, scales: Tensor, lr: float, damping: float) -> Tensor:
    clamped = _run(
        "accumulate_prefix",
        prefix.device,
        1,
        prefix.data_ptr(),
        prefix.numel(),
        h.data_ptr(),
        scales.data_ptr(),
        format_of([h]),
        lr,
        damping,
    )
    return clamped[0].to(torch.int64)


def prefix_propagate_(v: Tensor, prefixes: Sequence[Tensor], signs: Sequence[float]) -> Tensor:
    return _run("propagate_by_prefix", v.device, 1, v.data_ptr(), v.numel(), addresses(prefixes), list(signs))[
        0
    ].clone()
