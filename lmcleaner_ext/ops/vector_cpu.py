"""Backend "cpu" of the ops in vector.py: the kernels of csrc/cpu behind vector_kernels.h, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _native
from . import cpu


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]


def damped_propagate_window_(
    v: Tensor,
    diagonals: Sequence[Tensor],
    diagonal_scales: Sequence[Tensor],
    coefficients: Tensor,
    injections: Sequence[Tensor],
    injection_scales: Sequence[Tensor],
    injection_table: Tensor,
) -> tuple[Tensor, Tensor]:
    squares, largest = _native.propagate(
        v.data_ptr(),
        v.numel(),
        addresses(diagonals),
        addresses(diagonal_scales),
        cpu.format_of(diagonals),
        coefficients.data_ptr(),
        addresses(injections),
        addresses(injection_scales),
        cpu.format_of(injections),
        injection_table.data_ptr(),
        torch.get_num_threads(),
    )
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
