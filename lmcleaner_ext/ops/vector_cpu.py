"""Backend "cpu" of the ops in vector.py: the kernels of csrc/cpu behind vector_kernels.h, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from . import cpu
from .damped_propagation import PropagationWindow


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]


def propagation_arguments(window: PropagationWindow) -> tuple[Any, ...]:
    """What the kernels of _native and _cuda take."""
    return (
        window.v.data_ptr(), window.v.numel(), *cpu.list_arguments(window.diagonals), window.coefficients.data_ptr(),
        *cpu.list_arguments(window.injections), window.injection_table.data_ptr(),
    )  # fmt: skip


def damped_propagate_window_(window: PropagationWindow) -> tuple[Tensor, Tensor]:
    squares, largest = _native.propagate(*propagation_arguments(window), torch.get_num_threads())
    return torch.tensor(squares, dtype=torch.float64), torch.tensor(largest, dtype=torch.float64)


def prefix_accumulate_(prefix: Tensor, h: Tensor, scales: Tensor, lr: float, damping: float) -> Tensor:
    clamped = _native.accumulate_prefix(
        prefix.data_ptr(),
        prefix.numel(),
        h.data_ptr(),
        scales.data_ptr(),
        cpu.format_of([h]),
        lr,
        damping,
        torch.get_num_threads(),
    )
    return torch.tensor(clamped)


def prefix_propagate_(v: Tensor, prefixes: Sequence[Tensor], signs: Sequence[float]) -> Tensor:
    squares = _native.propagate_by_prefix(
        v.data_ptr(), v.numel(), addresses(prefixes), list(signs), torch.get_num_threads()
    )
    return torch.tensor(squares, dtype=torch.float64)


def diag_hessian_update_(
    h: Tensor, scales: Tensor, a: Tensor, b: Tensor, beta: float, weight: float, seed: int | None
) -> Tensor:
    fits = _native.update_diagonal(
        h.data_ptr(),
        scales.data_ptr(),
        h.numel(),
        a.data_ptr(),
        b.data_ptr(),
        beta,
        weight,
        (seed or 0) % 2**64,
        seed is not None,
        torch.get_num_threads(),
    )
    return torch.tensor(fits)


def described(payloads: Sequence[Tensor], scales: Sequence[Tensor]) -> tuple[list[int], list[int], list[int]]:
    """Addresses of payloads and scales, and formats: these vectors may have different ones."""
    return addresses(payloads), addresses(scales), [cpu.format_of([x]) for x in payloads]


def row_squares(payloads: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    squares = _native.row_squares(*described(payloads, scales), payloads[0].numel(), torch.get_num_threads())
    return torch.tensor(squares, dtype=torch.float64)


def gram(payloads: Sequence[Tensor], scales: Sequence[Tensor], rows: int) -> Tensor:
    out = torch.empty(rows, len(payloads), dtype=torch.float64)
    _native.gram(*described(payloads, scales), rows, payloads[0].numel(), out.data_ptr(), torch.get_num_threads())
    return out


def combine_(out: Tensor, payloads: Sequence[Tensor], scales: Sequence[Tensor], coefficients: Tensor) -> None:
    factors = coefficients.float().contiguous()
    requests, n = out.shape
    _native.combine(
        out.data_ptr(), n, requests, *described(payloads, scales), factors.data_ptr(), torch.get_num_threads()
    )
