"""Backend "cuda" of the ops in vector.py: the kernels of csrc/cuda/vector_kernels.h, in float32, on torch's current stream.

Results stay on the device and workspace is torch's, so that a call synchronises nothing and can be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .cpu import format_of
from .damped_propagation import PropagationWindow
from .vector_cpu import addresses, described, propagation_arguments


def _run(name: str, device: torch.device, count: int, *arguments: object) -> Tensor:
    """`count` doubles that the kernel `name` of _cuda writes after its arguments, with the workspace every kernel has."""
    from .. import _cuda  # type: ignore[attr-defined]  # not at the top: it exists only where CUDA was built

    kernel: Callable[..., None] = getattr(_cuda, name)
    results = torch.empty(count, dtype=torch.float64, device=device)
    workspace = torch.empty(_cuda.workspace_doubles, dtype=torch.float64, device=device)
    with torch.cuda.device(device):
        kernel(*arguments, results.data_ptr(), workspace.data_ptr(), torch.cuda.current_stream().cuda_stream)
    return results


def damped_propagate_window_(window: PropagationWindow) -> tuple[Tensor, Tensor]:
    results = _run("propagate", window.v.device, 2, *propagation_arguments(window))
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


def diag_hessian_update_(
    h: Tensor, scales: Tensor, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None
) -> Tensor:
    failures = _run(
        "update_diagonal",
        h.device,
        1,
        h.data_ptr(),
        scales.data_ptr(),
        h.numel(),
        a.data_ptr(),
        b.data_ptr(),
        beta,
        weight,
        (seed or 0) % 2**64,
        seed is not None,
    )
    return failures[0] == 0


def row_squares(payloads: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    n, device = payloads[0].numel(), payloads[0].device
    return _run("row_squares", device, len(payloads), *described(payloads, scales), n)


def gram(payloads: Sequence[Tensor], scales: Sequence[Tensor], rows: int) -> Tensor:
    from .. import _cuda  # type: ignore[attr-defined]

    count, n, device = len(payloads), payloads[0].numel(), payloads[0].device
    size: int = _cuda.gram_group
    groups = (count + size - 1) // size
    blocks = torch.empty(groups * (groups + 1) // 2, size, size, dtype=torch.float64, device=device)
    workspace = torch.empty(_cuda.gram_workspace_doubles, dtype=torch.float64, device=device)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        _cuda.gram(*described(payloads, scales), n, blocks.data_ptr(), workspace.data_ptr(), stream)
    out = torch.zeros(groups * size, groups * size, dtype=torch.float64, device=device)
    for index, (row, column) in enumerate((r, c) for r in range(groups) for c in range(r + 1)):
        out[row * size : (row + 1) * size, column * size : (column + 1) * size] = blocks[index]
    below = out[:count, :count].tril()
    return (below + below.tril(-1).T)[:rows].contiguous()  # symmetric to the last bit


def combine_(out: Tensor, payloads: Sequence[Tensor], scales: Sequence[Tensor], coefficients: Tensor) -> None:
    from .. import _cuda  # type: ignore[attr-defined]

    factors = coefficients.to(out.device, torch.float32, non_blocking=True).contiguous()
    requests, n = out.shape
    with torch.cuda.device(out.device):
        stream = torch.cuda.current_stream().cuda_stream
        _cuda.combine(out.data_ptr(), n, requests, *described(payloads, scales), factors.data_ptr(), stream)
